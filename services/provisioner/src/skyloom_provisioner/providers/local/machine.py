"""What this machine has: CPUs, memory, NVIDIA GPUs (asked through the driver's library by ctypes; none without it)."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Mapping
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
    gpu_indices: tuple[int, ...] = ()
    """The driver's numbers of the GPUs that are ours; CUDA_VISIBLE_DEVICES may leave out some."""


@lru_cache(maxsize=1)
def detect() -> Machine:
    name, indices, memory = _gpus(os.environ.get("CUDA_VISIBLE_DEVICES"))
    return Machine(_vcpus(), _memory_gib(), name, len(indices), memory, indices)


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


_NONE: tuple[str | None, tuple[int, ...], float | None] = (None, (), None)


def _gpus(visible: str | None) -> tuple[str | None, tuple[int, ...], float | None]:
    """Name, numbers and memory of the first kind of GPU."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return _NONE
    if library.nvmlInit_v2() != 0:
        return _NONE
    try:
        return _ask(library, visible)
    finally:
        library.nvmlShutdown()


def _ask(library: ctypes.CDLL, visible: str | None) -> tuple[str | None, tuple[int, ...], float | None]:
    count = ctypes.c_uint()
    if library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
        return _NONE
    devices = {}
    for index in range(count.value):
        device, uuid = ctypes.c_void_p(), ctypes.create_string_buffer(96)
        if library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(device)) == 0:
            library.nvmlDeviceGetUUID(device, uuid, 96)
            devices[index] = device, uuid.value.decode()
    ours = seen({index: uuid for index, (_, uuid) in devices.items()}, visible)
    if not ours:
        return _NONE
    text, memory = ctypes.create_string_buffer(96), _Memory()
    library.nvmlDeviceGetName(devices[ours[0]][0], text, 96)
    library.nvmlDeviceGetMemoryInfo(devices[ours[0]][0], ctypes.byref(memory))
    return gpu_name(text.value.decode()), ours, round(memory.total / 2**30, 1)


def seen(devices: Mapping[int, str], visible: str | None) -> tuple[int, ...]:
    """Of the devices (number: UUID) those that CUDA_VISIBLE_DEVICES names; like CUDA, it ends at an unknown name."""
    if visible is None:
        return tuple(devices)
    found: list[int] = []
    for name in (part.strip() for part in visible.split(",")):
        named = [
            index
            for index, uuid in devices.items()
            if name == str(index) or (name.startswith("GPU-") and uuid.startswith(name))
        ]
        if not named:
            break
        found.append(named[0])
    return tuple(found)


def gpu_name(full: str) -> str:
    """The driver's name in the catalog's words: 'NVIDIA H200' -> 'H200', 'NVIDIA A100-SXM4-80GB' -> 'A100-80GB'."""
    words = full.replace("NVIDIA", "").replace("Tesla", "").replace("GeForce", "").split()
    name = words[0] if words else full
    if name == "RTX" and len(words) > 1:
        return "RTX" + words[1]
    parts = name.split("-")
    return f"{parts[0]}-80GB" if parts[0] == "A100" and "80GB" in full else parts[0]
