"""The NVIDIA GPUs that are this process's, through libnvidia-ml.so.1 and nothing else. No library, no driver: no GPUs.

The driver lists every GPU of the machine, CUDA_VISIBLE_DEVICES says which of them are ours: several nodes may share one.
"""

from __future__ import annotations

import ctypes
from typing import Any, Optional

from skyloom_common.contracts.agent import GpuInfo, GpuUse

GIB = 1024**3
TEXT = 96


class _Memory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


class _Utilization(ctypes.Structure):
    _fields_ = [("gpu", ctypes.c_uint), ("memory", ctypes.c_uint)]


class Nvml:
    """Opened once; every reading tolerates a device or a function that is not there."""

    def __init__(self, library: str = "libnvidia-ml.so.1", visible: Optional[str] = None) -> None:
        self._visible = visible_names(visible)
        self._library: Optional[Any] = None
        try:
            loaded = ctypes.CDLL(library)
            if loaded.nvmlInit_v2() == 0:
                self._library = loaded
        except (OSError, AttributeError):
            return

    def devices(self) -> tuple[GpuInfo, ...]:
        found = []
        for index, handle, visible_as in self._handles():
            memory = _Memory()
            self._call("nvmlDeviceGetMemoryInfo", handle, ctypes.byref(memory))
            name, uuid = self._text("nvmlDeviceGetName", handle), self._text("nvmlDeviceGetUUID", handle)
            found.append(GpuInfo(index, name, round(memory.total / GIB, 2), uuid, visible_as))
        return tuple(found)

    def use(self) -> tuple[GpuUse, ...]:
        found = []
        for index, handle, _ in self._handles():
            memory, rates = _Memory(), _Utilization()
            self._call("nvmlDeviceGetMemoryInfo", handle, ctypes.byref(memory))
            self._call("nvmlDeviceGetUtilizationRates", handle, ctypes.byref(rates))
            found.append(GpuUse(index, float(rates.gpu), round(memory.used / GIB, 3)))
        return tuple(found)

    def _handles(self) -> list[tuple[int, ctypes.c_void_p, str]]:
        """In the order in which a process of ours counts them; as with CUDA, those after an unknown name are not there."""
        devices = self._all_handles()
        if self._visible is None:
            return [(index, handle, str(index)) for index, handle in devices]
        found = []
        for name in self._visible:
            device = self._named(name, devices)
            if device is None:
                break
            found.append((*device, name))
        return found

    def _named(
        self, name: str, devices: list[tuple[int, ctypes.c_void_p]]
    ) -> Optional[tuple[int, ctypes.c_void_p]]:
        """By number, or by UUID, of which the beginning is enough."""
        for index, handle in devices:
            if name == str(index) or (
                name.startswith("GPU-") and self._text("nvmlDeviceGetUUID", handle).startswith(name)
            ):
                return index, handle
        return None

    def _all_handles(self) -> list[tuple[int, ctypes.c_void_p]]:
        count = ctypes.c_uint()
        if not self._call("nvmlDeviceGetCount_v2", ctypes.byref(count)):
            return []
        handles = []
        for index in range(count.value):
            handle = ctypes.c_void_p()
            if self._call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(handle)):
                handles.append((index, handle))
        return handles

    def _text(self, function: str, handle: ctypes.c_void_p) -> str:
        buffer = ctypes.create_string_buffer(TEXT)
        self._call(function, handle, buffer, ctypes.c_uint(TEXT))
        return buffer.value.decode("utf-8", "replace")

    def _call(self, function: str, *arguments: Any) -> bool:
        if self._library is None:
            return False
        try:
            return int(getattr(self._library, function)(*arguments)) == 0
        except AttributeError:
            return False


def visible_names(value: Optional[str]) -> Optional[tuple[str, ...]]:
    """What CUDA_VISIBLE_DEVICES lists, e.g. ("1", "GPU-6a0b"); None: it is not set, everything is visible."""
    if value is None:
        return None
    names = []
    for name in (part.strip() for part in value.split(",")):
        if not name or name.startswith("-"):
            break
        names.append(name)
    return tuple(names)
