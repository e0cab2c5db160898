"""Accelerator names: what a user writes to the devices that are meant. Pure text, no prices."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from skyloom_common.core.text import nearest

# Names by which Kubernetes labels TPU nodes; no cloud sells them as a machine.
KUBERNETES_TPUS = (
    "tpu-v4-podslice",
    "tpu-v5-lite-device",
    "tpu-v5-lite-podslice",
    "tpu-v5p-slice",
    "tpu-v6e-slice",
    "tpu7x",
)
COMMON = frozenset(
    {
        "A10",
        "A100",
        "A100-80GB",
        "A10G",
        "B200",
        "B300",
        "GH200",
        "H100",
        "H200",
        "L4",
        "L40S",
        "MI300X",
        "T4",
    }
    | {"RTX4090", "RTX5090", "RTXPRO6000", "V100", "V100-32GB"}
)
"""What most people look for: the first rows of the overview, and the examples of an error."""
_TPU = re.compile(r"tpu-?(v\d+\w*?)(?:-(\d+))?", re.IGNORECASE)
_TPU_GENERATIONS = {"v5e": "v5litepod", "v5lite": "v5litepod"}
_NOTE = re.compile(r"\([^)]*\)")
_SEPARATORS = re.compile(r"[\s_\-]+")


@dataclass(frozen=True)
class Accelerator:
    """A device; `memory_gib` is its nominal memory."""

    name: str
    aliases: tuple[str, ...] = ()
    memory_gib: float | None = None
    vendor: str = ""


@dataclass(frozen=True)
class Resolved:
    """Device numbers that a name means (none: known, but not sold here), and their count on a machine."""

    devices: tuple[int, ...]
    count: float
    label: str


class AcceleratorNames:
    """Looks names up, ignoring case, spaces, '-' and '_'. A device's own name wins over another's alias."""

    def __init__(self, devices: Sequence[Accelerator]) -> None:
        self._devices = devices
        self._own = {_key(device.name): number for number, device in enumerate(devices)}
        self._aliases: dict[str, list[int]] = {}
        for number, device in enumerate(devices):
            for alias in device.aliases:
                self._aliases.setdefault(_key(alias), []).append(number)

    def find(self, name: str, count: float) -> Resolved | None:
        """None: no such device is known."""
        return (
            self._find_plain(name, count) or self._find_tpu(name, count) or self._find_kubernetes(name, count)
        )

    def name_of(self, device: int) -> str:
        return self._devices[device].name

    def nearest(self, name: str) -> str | None:
        """The known name that was probably meant."""
        return nearest(name, self.known())

    def known(self) -> Iterable[str]:
        return [*(device.name for device in self._devices), *KUBERNETES_TPUS]

    def _find_plain(self, name: str, count: float) -> Resolved | None:
        key = _key(name)
        if key in self._own:
            number = self._own[key]
            slices = self._find_slices(self._devices[number].name, count)
            return slices or Resolved((number,), count, _label(self._devices[number].name, count))
        if key in self._aliases:
            numbers = tuple(self._aliases[key])
            return Resolved(numbers, count, _label(self._devices[numbers[0]].name, count))
        return None

    def _find_tpu(self, name: str, count: float) -> Resolved | None:
        match = _TPU.fullmatch(name.strip())
        if match is None:
            return None
        generation = _TPU_GENERATIONS.get(match[1].lower(), match[1].lower())
        base = f"tpu-{generation}"
        if match[2] is None:
            return self._find_slices(base, count)
        number = self._own.get(_key(f"{base}-{match[2]}"))
        return (
            None if number is None else Resolved((number,), count, _label(self._devices[number].name, count))
        )

    def _find_slices(self, base: str, count: float) -> Resolved | None:
        """`tpu-v6e: 8` means the slice `tpu-v6e-8`, which is one thing to buy."""
        if not base.startswith("tpu-") or count != int(count):
            return None
        number = self._own.get(_key(f"{base}-{int(count)}"))
        return None if number is None else Resolved((number,), 1.0, self._devices[number].name)

    def _find_kubernetes(self, name: str, count: float) -> Resolved | None:
        known = name.strip().lower() in KUBERNETES_TPUS
        return Resolved((), count, _label(name.strip().lower(), count)) if known else None


def number_text(value: float) -> str:
    """`8` for 8.0, `0.5` for 0.5."""
    return f"{value:g}"


def _label(name: str, count: float) -> str:
    return f"{name}:{number_text(count)}"


def _key(name: str) -> str:
    return _SEPARATORS.sub("", _NOTE.sub("", name)).casefold()
