"""Where things lie in a node's home, and how small files are written so that a crash leaves the old or the new one."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, Optional

RESERVE_BYTES = 512 * 1024


class Paths:
    def __init__(self, home: Path) -> None:
        self.home = home
        self.state = home / ".sky"
        self.ranks = self.state / "ranks"
        self.jobs = self.state / "jobs"
        self.lock = self.state / "agent.lock"
        self.ready = self.state / "agent.json"
        self.cluster = self.state / "cluster.json"
        self.database = self.state / "jobs.db"
        self.socket = self.state / "agent.sock"
        self.idle = self.state / "idle.json"
        self.reserve = self.state / "reserve"
        self.runtime = self.state / "runtime"
        self.logs = home / "sky_logs"
        self.workdir = home / "sky_workdir"

    def make(self) -> None:
        for private in (self.state, self.ranks, self.jobs):
            private.mkdir(mode=0o700, parents=True, exist_ok=True)
        for public in (self.logs, self.workdir):
            public.mkdir(parents=True, exist_ok=True)

    def use_reserve(self) -> None:
        """Frees what was set aside: an agent must be able to start on a full disk."""
        self.reserve.unlink(missing_ok=True)

    def make_reserve(self) -> None:
        """Sets it aside again; on a full disk the next try may succeed."""
        if not self.reserve.exists():
            try:
                self.reserve.write_bytes(b"\0" * RESERVE_BYTES)
            except OSError:
                self.reserve.unlink(missing_ok=True)

    def forget_old_runtimes(self, ours: Path) -> None:
        """Of the unpacked agents only this one and the one before it are kept.

        A job's runner has loaded all it needs when it starts; the one before may just have started some.
        """
        if ours.parent != self.runtime:
            return
        others = sorted(
            (path for path in self.runtime.iterdir() if path != ours), key=lambda path: path.stat().st_mtime
        )
        for path in others[:-1]:
            shutil.rmtree(path, ignore_errors=True)

    def inside(self, relative: str) -> Path:
        """A path below the home; ValueError for anything that leads out of it."""
        path = (self.home / relative).resolve()
        if not path.is_relative_to(self.home.resolve()):
            raise ValueError(f"{relative!r} leads out of the node's home")
        return path


def write_atomic(path: Path, data: bytes, sync: bool = True) -> None:
    """`sync=False`: only a crash of this process is thought of, not one of the machine."""
    temporary = path.with_name(path.name + ".tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        if sync:
            file.flush()
            os.fsync(file.fileno())
    os.replace(temporary, path)


def read_json(path: Path) -> Optional[Any]:
    """None when it is not there (or was never finished)."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
