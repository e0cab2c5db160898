"""Finding and ending every process of a job. Used by the runner too, so it imports next to nothing.

A job's processes are found in three ways, because each can be escaped alone: descent from the runner (a subreaper, so
that orphans fall back to it), the session of the main process, and the SKYLOOM_JOB marker in their environment.
Where there is no /proc (macOS) only the process group is known, and daemons that leave it live on.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Callable, Optional

MARKER = "SKYLOOM_JOB"
ROUND_SECONDS = 0.05


def marker_of(node_id: str, job_uid: str, phase: str) -> str:
    return f"{node_id}:{job_uid}:{phase}"


def start_ticks(pid: int) -> Optional[int]:
    """When the process started, in kernel ticks: together with the pid it names a process for good."""
    stat = _stat(pid)
    return stat[3] if stat else None


def descendants(root: int) -> set[int]:
    """Living processes below `root`, zombies left out."""
    children: dict[int, list[int]] = {}
    for pid in _pids():
        stat = _stat(pid)
        if stat and stat[0] != "Z":
            children.setdefault(stat[1], []).append(pid)
    found: set[int] = set()
    todo = [root]
    while todo:
        for child in children.get(todo.pop(), ()):
            if child not in found:
                found.add(child)
                todo.append(child)
    return found


def marked(marker: str, prefix: bool = False) -> set[int]:
    """Living processes whose environment holds the marker (`prefix`: a marker that begins so), this one left out."""
    needle = f"{MARKER}={marker}".encode() + (b"" if prefix else b"\0")
    return {pid for pid in _pids() if pid != os.getpid() and _has_marker(pid, needle)}


def in_session(session: int) -> set[int]:
    found = set()
    for pid in _pids():
        stat = _stat(pid)
        if stat and stat[0] != "Z" and stat[2] == session:
            found.add(pid)
    return found


def signal_all(pids: set[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
        except PermissionError:
            continue  # Became another user's; the group signal and the user's own sudo are all that reach it.


def kill_until_gone(find: Callable[[], set[int]], seconds: float, between: Callable[[], None]) -> set[int]:
    """SIGKILL to whatever `find` finds, again and again, because it may fork meanwhile; the survivors when time is up."""
    deadline = time.monotonic() + seconds
    while True:
        left = find()
        if not left or time.monotonic() > deadline:
            return left
        signal_all(left, signal.SIGKILL)
        between()
        time.sleep(ROUND_SECONDS if find() else 0)


def _pids() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []


def _stat(pid: int) -> Optional[tuple[str, int, int, int]]:
    """(state, parent, session, start ticks), None when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return fields[0].decode(), int(fields[1]), int(fields[3]), int(fields[19])


def _has_marker(pid: int, needle: bytes) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            environ = b"\0" + file.read() + b"\0"
    except OSError:
        return False
    return b"\0" + needle in environ


def kernel_boot() -> str:
    """Changes with every boot of the machine; empty where the kernel does not say."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return ""
