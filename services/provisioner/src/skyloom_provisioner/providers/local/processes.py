"""Finds and ends every process of a node: by its environment, its place in the file system, or its parent.

A person's own shell that happens to stand in a node's directory has another HOME and is left alone, and so is
this process with its ancestors. Zombies count as ended: only their parent can remove them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

NODE_VARIABLE = "SKYLOOM_NODE_ID"
_GRACE_SECONDS = 3.0
_GIVE_UP_SECONDS = 10.0


@dataclass(frozen=True)
class _Process:
    pid: int
    parent: int
    belongs: bool


def is_running(pid: int) -> bool:
    """False for a zombie too."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    with contextlib.suppress(OSError):
        return _stat(pid)[0] != "Z"
    return True


def node_processes(node: Path) -> list[int]:
    """Every live process of the node in this directory, children of its processes included."""
    listed = list(_proc(node) if sys.platform == "linux" else _ps(node))
    found = {process.pid for process in listed if process.belongs}
    grew = bool(found)
    while grew:
        children = {process.pid for process in listed if process.parent in found}
        grew = not children <= found
        found |= children
    return sorted(found - _ancestors(listed))


def runs_with(node: Path, arguments: str) -> bool:
    """Whether the command line of a process of the node, or of a shell about to become one, ends with these arguments."""
    return any(_command(pid).endswith(f" {arguments}") for pid in node_processes(node))


def end_all(node: Path) -> bool:
    """SIGTERM, then SIGKILL until none is left. False when some would not go within the bound."""
    began, asked = time.monotonic(), set[int]()
    while pids := node_processes(node):
        waited = time.monotonic() - began
        if waited > _GIVE_UP_SECONDS:
            return False
        for pid in pids:
            if waited > _GRACE_SECONDS:
                _signal(pid, signal.SIGKILL)
            elif pid not in asked:
                _signal(pid, signal.SIGTERM)
                asked.add(pid)
        time.sleep(0.02 if waited < 0.2 else 0.1)
    return True


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _ancestors(listed: list[_Process]) -> set[int]:
    parents = {process.pid: process.parent for process in listed}
    spared, pid = set[int](), os.getpid()
    while pid > 1 and pid not in spared:
        spared.add(pid)
        pid = parents.get(pid, 0)
    return spared


def _proc(node: Path) -> list[_Process]:
    marks = _marks(node)
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        pid = int(entry.name)
        with contextlib.suppress(OSError):
            state, parent = _stat(pid)[:2]
            if state not in ("Z", "X"):
                found.append(_Process(pid, int(parent), _belongs(pid, node, marks)))
    return found


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _marks(node: Path) -> tuple[bytes, bytes]:
    return f"{NODE_VARIABLE}={node.name}".encode(), f"HOME={node / 'home'}".encode()


def _belongs(pid: int, node: Path, marks: tuple[bytes, bytes]) -> bool:
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    if marks[0] in variables or marks[1] in variables:
        return True
    if any(variable.startswith(b"HOME=") for variable in variables):
        return False
    return _stands_in(pid, node)


def _stands_in(pid: int, node: Path) -> bool:
    """Its working directory or an open file lies in the node's directory."""
    links = [f"/proc/{pid}/cwd"]
    with contextlib.suppress(OSError):
        links += [entry.path for entry in os.scandir(f"/proc/{pid}/fd")]
    prefix = f"{node}{os.sep}"
    for link in links:
        with contextlib.suppress(OSError):
            target = os.readlink(link)
            if target == str(node) or target.startswith(prefix):
                return True
    return False


def _command(pid: int) -> str:
    """Empty once it has ended."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").rstrip("\0").replace("\0", " ")
        return ""
    command = ["ps", "-ww", "-o", "command=", "-p", str(pid)]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout.strip()


def _ps(node: Path) -> list[_Process]:
    """Where there is no /proc (macOS): `ps` shows the environment of our own processes."""
    shown = subprocess.run(
        ["ps", "-axEww", "-o", "pid=,ppid=,stat=,command="],
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    ).stdout
    first, second = (mark.decode() for mark in _marks(node))
    found = []
    for line in shown.splitlines():
        pid, parent, state, command = [*line.split(None, 3), "", "", ""][:4]
        if pid.isdigit() and not state.startswith("Z"):
            words = command.split(" ")
            found.append(_Process(int(pid), int(parent), first in words or second in words))
    return found
