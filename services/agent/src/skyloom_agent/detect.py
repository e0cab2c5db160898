"""What the machine has and how much of it is in use. Every reading may be missing (None): the agent runs where it can."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from pathlib import Path
from typing import Optional

_SSH_TITLE = re.compile(rb"sshd(-session)?: \S+@(pts/\d+|tty\S*)")
GIB = 1024**3
FULL_BYTES = 32 * 1024**2


def cpu_count() -> float:
    """What this process may use: a container's quota counts, not the host's cores."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(float(affinity), _cgroup_cpus() or float(affinity))


def memory_gib() -> float:
    total = _meminfo().get("MemTotal")
    if total is None:
        with contextlib.suppress(ValueError, OSError):
            total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _cgroup_memory()
    amounts = [amount for amount in (total, limit) if amount]
    return round(min(amounts) / GIB, 2) if amounts else 0.0


def memory_used_gib() -> Optional[float]:
    info = _meminfo()
    if "MemTotal" not in info or "MemAvailable" not in info:
        return None
    return round((info["MemTotal"] - info["MemAvailable"]) / GIB, 3)


def disk_free_gib(path: Path) -> Optional[float]:
    try:
        return round(shutil.disk_usage(path).free / GIB, 3)
    except OSError:
        return None


def disk_problem(path: Path) -> str:
    """Not a word while there is room: 32 MiB, or a fiftieth of a small disk."""
    try:
        usage = shutil.disk_usage(path)
    except OSError as error:
        return f"the node's disk does not answer: {error.strerror}"
    if usage.free >= min(FULL_BYTES, usage.total // 50):
        return ""
    return f"disk full: {usage.free / 1024**2:.1f} MiB are left on the node"


def load_1m() -> Optional[float]:
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None


class CpuMeter:
    """Percent of all cores in use since the last reading."""

    def __init__(self) -> None:
        self._last = _cpu_times()

    def percent(self) -> Optional[float]:
        now, before = _cpu_times(), self._last
        self._last = now
        if now is None or before is None or now[1] <= before[1]:
            return None
        return round(100.0 * (now[0] - before[0]) / (now[1] - before[1]), 1)


def ssh_sessions() -> int:
    """Interactive sessions: sshd names its process after the user and the terminal. Tunnels and copies have none."""
    count = 0
    for name in _process_names():
        with contextlib.suppress(OSError):
            title = Path("/proc", name, "cmdline").read_bytes()
            count += bool(_SSH_TITLE.match(title))
    return count


def _process_names() -> list[str]:
    try:
        return [name for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []


def _cpu_times() -> Optional[tuple[int, int]]:
    """(busy, all) in kernel ticks since boot."""
    try:
        with open("/proc/stat", "rb") as file:
            ticks = [int(value) for value in file.readline().split()[1:9]]
    except (OSError, ValueError):
        return None
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def _meminfo() -> dict[str, int]:
    """Bytes by name."""
    values: dict[str, int] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, _, rest = line.partition(":")
            parts = rest.split()
            if parts and parts[0].isdigit():
                values[name] = int(parts[0]) * 1024
    return values


def _cgroup_cpus() -> Optional[float]:
    text = _read("/sys/fs/cgroup/cpu.max").split()
    if len(text) == 2 and text[0].isdigit():
        return int(text[0]) / int(text[1])
    quota, period = (
        _read("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"),
        _read("/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
    )
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def _cgroup_memory() -> Optional[int]:
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = _read(path)
        if text.isdigit() and int(text) < 1 << 60:
            return int(text)
    return None


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
