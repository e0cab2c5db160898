"""Google's price list as prices of parts: a core, a GiB of memory, a device, a GiB of local disk. Pure.

SKUs are described for people ("Spot Preemptible N2 Instance Core running in Frankfurt"); this is the one place that reads them.
A machine's price is the sum of its parts; a part that has no price leaves the machine without one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from skyloom_optimizer.refresh.gcp_tpus import GROUP, TpuPrices
from skyloom_optimizer.refresh.model import FeedError

_HOURS_OF_MONTH = 730.0
_SPOT = "Spot Preemptible "
_NOT_OURS = (
    "Custom",
    "Sole Tenancy",
    "Commitment",
    "Reserved",
    "Premium",
    "Suspended",
    "Upgrade",
    "DWS",
    "Overcommit",
    "Flex Start",
    "Calendar Mode",
)
_PART = re.compile(
    r"(?P<name>.+?)(?: Predefined)?(?: AMD| Arm)?(?: Memory-optimized)?(?: Instance)? (?P<part>Core|Ram)",
    re.IGNORECASE,
)
_SLICE = re.compile(r"(?P<family>A\d+X?) Nvidia \S+ \(1 gpu slice\)", re.IGNORECASE)
"""A device with its share of everything else: the machine is priced by them alone."""
_FAMILIES = {
    "memory-optimized": "m1",
    "compute optimized": "c2",
    "a3plus": "a3-megagpu",
    "a3ultra": "a3-ultragpu",
}
_DEVICES = {
    "Nvidia Tesla A100 GPU": "nvidia-tesla-a100",
    "Nvidia Tesla A100 80GB GPU": "nvidia-a100-80gb",
    "Nvidia H100 80GB GPU": "nvidia-h100-80gb",
    "Nvidia H100 80GB Plus GPU": "nvidia-h100-mega-80gb",
    "Nvidia H100 80GB Mega GPU": "nvidia-h100-mega-80gb",
    "Nvidia H200 141GB GPU": "nvidia-h200-141gb",
    "Nvidia L4 GPU": "nvidia-l4",
    "Nvidia Tesla T4 GPU": "nvidia-tesla-t4",
    "Nvidia Tesla V100 GPU": "nvidia-tesla-v100",
    "Nvidia Tesla P100 GPU": "nvidia-tesla-p100",
    "Nvidia Tesla P4 GPU": "nvidia-tesla-p4",
    "RTX 6000 96GB": "nvidia-rtx-pro-6000",
}
_LOCAL_DISK = "SSD backed Local Storage"
_SHARED_CORES = {"e2-micro": 0.25, "e2-small": 0.5, "e2-medium": 1.0}

Key = tuple[str, str, bool]
"""name of the part, region, spot"""


@dataclass(frozen=True)
class Machine:
    """What its price is made of. `cores`, `memory_gib` as billed; `disk_gib`: local disk that always comes with it."""

    name: str
    cores: float
    memory_gib: float
    device: str = ""
    devices: float = 0.0
    disk_gib: float = 0.0

    @property
    def family(self) -> str:
        words = self.name.split("-")
        two = "-".join(words[:2])
        return two if two in ("a3-megagpu", "a3-ultragpu") else words[0]


@dataclass
class PriceParts:
    currency: str = "USD"
    tpus: TpuPrices = field(default_factory=TpuPrices)
    _prices: dict[Key, float] = field(default_factory=dict)

    def add(self, skus: Iterable[Mapping[str, Any]]) -> None:
        """Raises FeedError for a SKU that is not one."""
        for sku in skus:
            try:
                self._add(sku)
            except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
                words = (
                    f"SKU {sku.get('skuId') if isinstance(sku, Mapping) else sku!r} cannot be read: {error!r}"
                )
                raise FeedError(f"Cloud Billing catalog: {words}") from error

    def __len__(self) -> int:
        return len(self._prices)

    def price(self, machine: Machine, region: str, use_spot: bool) -> float | None:
        whole = self._prices.get((f"{machine.family}/slice", region, use_spot))
        if whole is not None and machine.devices:
            return round(whole * machine.devices, 6)
        cores = _SHARED_CORES.get(machine.name, machine.cores)
        wanted = [
            (f"{machine.family}/core", cores),
            (f"{machine.family}/ram", machine.memory_gib),
            (machine.device, machine.devices),
            (_LOCAL_DISK, machine.disk_gib),
        ]
        total = 0.0
        for name, amount in wanted:
            if amount:
                unit = self._prices.get((name, region, use_spot))
                if unit is None:
                    return None
                total += unit * amount
        return round(total, 6)

    def _add(self, sku: Mapping[str, Any]) -> None:
        usage, text = sku["category"]["usageType"], sku["description"]
        if sku["category"].get("resourceGroup") == GROUP:
            self.tpus.add(sku, *self._unit_price(sku))
            return
        if usage not in ("OnDemand", "Preemptible") or any(word in text for word in _NOT_OURS):
            return
        name = part_of(text)
        if name is None:
            return
        price, currency = self._unit_price(sku)
        self.currency = currency if currency != "USD" else self.currency
        if name == _LOCAL_DISK:
            price /= _HOURS_OF_MONTH
        # Some spot prices are listed as on-demand use; what they are called tells the truth.
        spot = usage == "Preemptible" or _SPOT.strip() in text
        for region in sku["serviceRegions"]:
            self._prices.setdefault((name, region, spot), price)

    def _unit_price(self, sku: Mapping[str, Any]) -> tuple[float, str]:
        unit = sku["pricingInfo"][0]["pricingExpression"]["tieredRates"][-1]["unitPrice"]
        return int(unit.get("units", 0)) + unit.get("nanos", 0) / 1e9, unit.get("currencyCode", "USD")


def part_of(description: str) -> str | None:
    """`n2/core`, `n2/ram`, `nvidia-l4`, local disk; None: nothing that machines are made of."""
    text = description.removeprefix(_SPOT)
    if text.startswith(_LOCAL_DISK):
        return _LOCAL_DISK
    for words, device in _DEVICES.items():
        if text.startswith(words):
            return device
    head = text.partition(" running in ")[0]
    slice_of = _SLICE.fullmatch(head)
    if slice_of is not None:
        return f"{slice_of['family'].lower()}/slice"
    match = _PART.fullmatch(head)
    if match is None:
        return None
    name = match["name"].lower()
    family = _FAMILIES.get(name, name)
    return f"{family}/{match['part'].lower()}" if " " not in family else None
