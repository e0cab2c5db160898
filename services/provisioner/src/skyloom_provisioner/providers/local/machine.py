"""What this machine has: CPUs, memory, NVIDIA GPUs (asked through the driver's library by ctypes; none without it)."""

from __future__ import annotations

import contextlib
import ctypes
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    vcpus: float
    memory_gib: float
    gpu_name: str | None = None
    gpu_count: int = 0
    gpu_memory_gib: float | None = None


@lru_cache(maxsize=1)
def detect() -> Machine:
    name, count, memory = _gpus()
    return Machine(_vcpus(), _memory_gib(), name, count, memory)


def _vcpus() -> float:
    if hasattr(os, "sched_getaffinity"):
        return float(len(os.sched_getaffinity(0)))
    return float(os.cpu_count() or 1)


def _memory_gib() -> float:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            total = min(total, int(Path(limit).read_text()))
    return round(total / 2**30, 1)


class _Memory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


def _gpus() -> tuple[str | None, int, float | None]:
    """Name, number and memory of the first kind of GPU."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None, 0, None
    if library.nvmlInit_v2() != 0:
        return None, 0, None
    try:
        return _ask(library)
    finally:
        library.nvmlShutdown()


def _ask(library: ctypes.CDLL) -> tuple[str | None, int, float | None]:
    count = ctypes.c_uint()
    if library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0 or not count.value:
        return None, 0, None
    device = ctypes.c_void_p()
    if library.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device)) != 0:
        return None, 0, None
    text, memory = ctypes.create_string_buffer(96), _Memory()
    library.nvmlDeviceGetName(device, text, 96)
    library.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory))
    return gpu_name(text.value.decode()), int(count.value), round(memory.total / 2**30, 1)


def gpu_name(full: str) -> str:
    """The driver's name in the catalog's words: 'NVIDIA H200' -> 'H200', 'NVIDIA A100-SXM4-80GB' -> 'A100-80GB'."""
    words = full.replace("NVIDIA", "").replace("Tesla", "").replace("GeForce", "").split()
    name = words[0] if words else full
    if name == "RTX" and len(words) > 1:
        return "RTX" + words[1]
    parts = name.split("-")
    return f"{parts[0]}-80GB" if parts[0] == "A100" and "80GB" in full else parts[0]
