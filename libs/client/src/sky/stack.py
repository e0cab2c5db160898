"""The local stack: finding it, starting it, stopping it. It runs as a process of its own (`python -m skyloom_standalone`).

The stack writes $SKYLOOM_HOME/api.json when it listens; the client trusts that file only as far as a connection succeeds.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from sky.net.http1 import Address, Connection
from sky.settings import ServerAddress
from skyloom_common.core.home import skyloom_home

START_TIMEOUT = 60.0
STOP_TIMEOUT = 30.0
NO_AUTOSTART = ("SKYLOOM_NO_AUTOSTART", "SKYPILOT_DISABLE_LOCAL_API_SERVER_AUTOSTART")


def state() -> dict[str, Any] | None:
    """What the stack says about itself, running or not; None = it never ran here."""
    try:
        data = json.loads((skyloom_home() / "api.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) and data.get("url") else None


def address() -> ServerAddress | None:
    """Where the local stack listens according to its own word; the token only while the process that wrote it lives.

    After a sudden death somebody else may listen there, and would be handed the token.
    """
    found = state()
    if found is None:
        return None
    token = _token(found) if _lives(found) else None
    return ServerAddress(str(found["url"]), token, "local stack", local=True)


def _lives(found: dict[str, Any]) -> bool:
    """Whether the process that wrote the file runs, and not another one that has its number now."""
    try:
        pid = int(found.get("pid") or 0)
    except (TypeError, ValueError):
        return False
    if pid <= 0 or not _alive(pid):
        return False
    began = found.get("process_started")
    return began is None or _process_started(pid) in (None, began)


def _process_started(pid: int) -> str | None:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _token(found: dict[str, Any]) -> str | None:
    path = Path(found.get("token_file") or skyloom_home() / "token")
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def probe(server: ServerAddress) -> bool:
    """Does anything listen there?"""
    try:
        Connection(Address(server.endpoint), connect_timeout=2.0).close()
    except OSError:
        return False
    return True


def running() -> ServerAddress | None:
    found = state()
    server = address()
    return server if found and server is not None and _lives(found) and probe(server) else None


def ensure_started() -> ServerAddress:
    """The local stack's address; starts it when it does not run."""
    server = running()
    if server is not None:
        return server
    require_autostart()
    return start()


def require_autostart() -> None:
    """Raises ApiServerConnectionError where the user forbids that a command starts the stack by itself."""
    from sky.exceptions import ApiServerConnectionError

    blocked = next((name for name in NO_AUTOSTART if os.environ.get(name)), None)
    if blocked:
        raise ApiServerConnectionError(
            f"No API server is configured, and {blocked} forbids starting the local one.",
            hint="unset it, or sky api start, or sky api login -e URL",
        )


def start(arguments: Sequence[str] = (), *, timeout: float = START_TIMEOUT) -> ServerAddress:
    """Starts the stack detached from this terminal; returns once it answers."""
    require_installed()
    home = skyloom_home()
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _start_lock(home):
        server = running()
        if server is not None:
            return server
        log = home / "logs" / "server.out"
        log.parent.mkdir(exist_ok=True, mode=0o700)
        ready = _spawn([sys.executable, "-m", "skyloom_standalone", *arguments], home, log, timeout)
    server = address()
    if server is None:
        from sky.exceptions import ClientError

        raise ClientError(f"The local stack said it is ready ({ready}) but wrote no {home / 'api.json'}.")
    return server


def require_installed() -> None:
    import importlib.util

    if importlib.util.find_spec("skyloom_standalone") is None:
        from sky.exceptions import ClientError

        raise ClientError(
            "This is the thin client: it has no local server, and no API server is configured.",
            hint="sky api login -e URL -t TOKEN, or pip install skyloom for a server on this machine",
        )


@contextlib.contextmanager
def _start_lock(home: Path) -> Iterator[None]:
    """Two commands typed at once start one stack."""
    import fcntl

    with open(home / "start.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _spawn(command: list[str], home: Path, log: Path, timeout: float) -> dict[str, Any]:
    """Runs the stack until its one line of readiness; the line, or an error with what it last said."""
    reader, writer = os.pipe()
    offset = log.stat().st_size if log.exists() else 0
    import subprocess

    from sky.exceptions import ClientError

    try:
        with open(log, "ab") as output:
            process = subprocess.Popen(
                [*command, "--ready-fd", str(writer)],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                pass_fds=[writer], start_new_session=True, cwd=home,
                env={**os.environ, "SKYLOOM_HOME": str(home.absolute())},
            )  # fmt: skip
    finally:
        os.close(writer)
    line = _read_line(reader, timeout)
    try:
        ready = json.loads(line) if line else {}
    except ValueError:
        ready = {"error": line}
    if not line:
        code = process.poll()
        why = (
            f"it ended with exit code {code}" if code is not None else f"no word of it within {timeout:.0f} s"
        )
        raise ClientError(
            f"The local stack did not start: {why}.{_last_words(log, offset)}", hint=f"see {log}"
        )
    if ready.get("error"):
        error = ready["error"]
        message = error.get("message", error) if isinstance(error, dict) else error
        hint = error.get("hint") if isinstance(error, dict) else None
        raise ClientError(f"The local stack did not start: {message}", hint=hint or f"see {log}")
    # It outlives this process on purpose; nobody here will wait for it.
    process.returncode = 0
    return dict(ready)


def _read_line(descriptor: int, timeout: float) -> str:
    import select

    deadline = time.monotonic() + timeout
    data = b""
    try:
        while b"\n" not in data and (left := deadline - time.monotonic()) > 0:
            if not select.select([descriptor], [], [], left)[0]:
                break
            piece = os.read(descriptor, 65536)
            if not piece:
                break
            data += piece
    finally:
        os.close(descriptor)
    return data.decode("utf-8", "replace").strip()


def _last_words(log: Path, offset: int) -> str:
    try:
        with open(log, "rb") as file:
            file.seek(offset)
            lines = file.read()[-4000:].decode("utf-8", "replace").strip().splitlines()
    except OSError:
        return ""
    return " Its last words: " + " | ".join(lines[-3:]) if lines else ""


def stop(*, timeout: float = STOP_TIMEOUT) -> bool:
    """Asks the stack to end and waits for it; False = it did not run."""
    import signal

    from sky.exceptions import ClientError

    found = state()
    server = running()
    if found is None or server is None:
        return False
    pid = int(found.get("pid") or 0)
    if pid <= 0:
        raise ClientError("The local stack's api.json names no process; stop it where it was started.")
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return False
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if not _alive(pid):
            return True
        time.sleep(0.02)
    raise ClientError(
        f"The local stack (process {pid}) did not end within {timeout:.0f} s.", hint=f"kill -9 {pid}"
    )


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        # A dead child of ours is a zombie until somebody waits for it.
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] != b"Z"
    except (OSError, IndexError):
        return True


def become(arguments: Sequence[str]) -> NoReturn:
    """This process turns into the stack: signals and the exit code are its own."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "skyloom_standalone", *arguments])


def run_in_foreground(arguments: Sequence[str]) -> int:
    """The stack in this terminal, until it ends; its exit code."""
    import subprocess

    process = subprocess.Popen([sys.executable, "-m", "skyloom_standalone", *arguments])
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            # The terminal sent the signal to the stack as well: it is ending.
            continue
