"""The agent file that nodes start from: the one given by the settings, or one made of the installed agent.

It is made once for a state of the sources and kept; a change of any source file makes another.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from skyloom_common.core.errors import InternalError

_SOURCES = ("skyloom_agent", "skyloom_common")


class AgentBundle:
    def __init__(self, home: Path, given: Path | None = None) -> None:
        self._folder = home / "agent"
        self._given = given
        self._made: Path | None = None
        self._lock = threading.Lock()

    def path(self) -> Path:
        """Blocks while it is being made. Raises InternalError saying what to install or set."""
        if self._given is not None:
            return self._given
        with self._lock:
            if self._made is None:
                self._made = self._make()
            return self._made

    def _make(self) -> Path:
        wanted = self._folder / f"agent-{_fingerprint()}.pyz"
        if wanted.exists():
            return wanted
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh = self._folder / f".agent-{os.getpid()}.pyz"
        command = [sys.executable, "-m", "skyloom_agent.bundle", "--out", str(fresh)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode != 0 or not fresh.exists():
            words = (done.stderr or done.stdout).strip().splitlines()[-3:]
            raise InternalError(
                f"the agent file could not be made: {' '.join(words)}",
                hint="Install skyloom-agent beside this service, or set SKYLOOM_AGENT_BUNDLE to an agent file.",
            )
        fresh.replace(wanted)
        self._forget_others(wanted)
        return wanted

    def _forget_others(self, kept: Path) -> None:
        """A running agent has read its file long ago; restarts take the newest."""
        for path in self._folder.glob("agent-*.pyz"):
            if path != kept:
                path.unlink(missing_ok=True)


def _fingerprint() -> str:
    digest = hashlib.sha256(sys.version.encode())
    for file in sorted(_source_files()):
        status = file.stat()
        digest.update(f"{file}:{status.st_size}:{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _source_files() -> Iterator[Path]:
    for name in _SOURCES:
        spec = find_spec(name)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            yield from Path(folder).rglob("*.py")
