"""The files by which a local stack is found and kept single: the lock, `api.json`, and the word that it is ready.

Light to import: it is used before anything else is loaded.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class AlreadyRunning(Exception):
    """Another process holds this home. `who`: what it wrote about itself, if anything."""

    def __init__(self, home: Path, who: dict[str, Any]) -> None:
        at = f" at {who['url']} (process {who['pid']})" if "url" in who and "pid" in who else ""
        super().__init__(f"a local server is running already{at}; its state is in {home}")
        self.who = who


@contextlib.contextmanager
def single_instance(home: Path) -> Iterator[None]:
    """Holds the lock for as long as the process lives, however it ends. Raises AlreadyRunning."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(home / "standalone.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(home, read_api_file(home)) from None
        yield
    finally:
        os.close(descriptor)


def read_api_file(home: Path) -> dict[str, Any]:
    try:
        found = json.loads((home / "api.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_api_file(home: Path, url: str, version: str) -> None:
    """Atomically, readable by its owner only: whoever sees the file sees a server that answers."""
    content = {
        "pid": os.getpid(),
        "url": url,
        "started_at": time.time(),
        "version": version,
        "token_file": str(home / "token"),
        "process_started": process_started(os.getpid()),
    }
    aside = home / f".api.json.{os.getpid()}"
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(content, file)
    aside.replace(home / "api.json")


def process_started(pid: int) -> str | None:
    """Together with the number it names a process for good: numbers come again. None where there is no /proc."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def remove_api_file(home: Path) -> None:
    """Ours only."""
    if read_api_file(home).get("pid") == os.getpid():
        (home / "api.json").unlink(missing_ok=True)


class Ready:
    """Tells the process that started us, once: one JSON line on the descriptor it gave us, then the end of it."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        if descriptor is not None:
            os.set_inheritable(descriptor, False)

    def ready(self, url: str) -> None:
        self._tell({"url": url, "pid": os.getpid()})

    def failed(self, message: str, hint: str | None = None) -> None:
        self._tell({"error": {"message": message, "hint": hint}})

    def _tell(self, word: dict[str, Any]) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        # Whoever waited may have given up; that is no reason to stop.
        with contextlib.suppress(BrokenPipeError):
            os.write(descriptor, json.dumps(word).encode() + b"\n")
        os.close(descriptor)
