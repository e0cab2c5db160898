"""Google's TPUs: which slices a zone has (Cloud TPU API), and what they cost (SKUs of the resource group TPU). Prices are pure.

Newer generations (v5e, v5p, v6e) are priced by the chip among the SKUs of Compute Engine; v2, v3 and v4 by four chips in the
list of the Cloud TPU service, where slices of several machines ("Pod") cost something else than a single one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from skyloom_optimizer.refresh.model import FeedError, FeedRow

TPU_SERVICE = "E000-3F24-B8AA"
GROUP = "TPU"
_NAME = re.compile(r"\btpu[- ]?v(\d+[a-z]*)", re.IGNORECASE)
_OTHER_WAYS = re.compile(
    r"reserved|calendar|\bdws\b|defined duration|commitment|subscription|fixed price|flex start|capacity optimized",
    re.IGNORECASE,
)
_CHIPS_OF_UNIT = {"v2": 4, "v3": 4, "v4": 4}
_ALIASES = {"v5litepod": "v5e"}
_SINGLE_CORES = 8

Key = tuple[str, bool, bool, str]
"""generation, pod, spot, region"""


@dataclass
class TpuPrices:
    """Dollars per chip and hour."""

    currency: str = "USD"
    _prices: dict[Key, float] = field(default_factory=dict)

    def add(self, sku: Mapping[str, Any], price: float, currency: str) -> None:
        text, usage = sku["description"], sku["category"]["usageType"]
        match = _NAME.search(text)
        if match is None or usage not in ("OnDemand", "Preemptible") or _OTHER_WAYS.search(text):
            return
        generation = f"v{match.group(1).lower()}"
        spot = usage == "Preemptible" or "preemptible" in text.lower()
        self.currency = currency if currency != "USD" else self.currency
        chips = _CHIPS_OF_UNIT.get(generation, 1)
        for region in sku["serviceRegions"]:
            self._prices.setdefault((generation, "pod" in text.lower(), spot, region), price / chips)

    def price(self, tpu: Tpu, region: str, use_spot: bool) -> float | None:
        unit = self._prices.get((tpu.generation, tpu.pod, use_spot, region))
        return None if unit is None else round(unit * tpu.chips, 6)


@dataclass(frozen=True)
class Tpu:
    """A slice: `kind` as the API calls it (v5litepod-8)."""

    kind: str
    chips: int

    @property
    def generation(self) -> str:
        name = self.kind.rpartition("-")[0]
        return _ALIASES.get(name, name)

    @property
    def pod(self) -> bool:
        cores = int(self.kind.rpartition("-")[2])
        if self.generation == "v4":
            return True
        return self.generation in ("v2", "v3") and cores > _SINGLE_CORES


def tpus_of(items: Iterable[Mapping[str, Any]], where: str) -> Iterator[Tpu]:
    """From acceleratorTypes of a zone. A slice with several topologies is one: they have equally many chips."""
    for item in items:
        kind, configs = item.get("type"), item.get("acceleratorConfigs") or []
        if not isinstance(kind, str) or not re.fullmatch(r"v\d+\w*-\d+", kind):
            raise FeedError(f"{where}: {kind!r} is not the name of a TPU type")
        topology = configs[0].get("topology", "") if configs and isinstance(configs[0], Mapping) else ""
        if not re.fullmatch(r"\d+(x\d+)+", str(topology)):
            raise FeedError(f"{where}: {kind} has the topology {topology!r}, such as 2x2 was expected")
        chips = 1
        for side in topology.split("x"):
            chips *= int(side)
        yield Tpu(kind, chips)


def tpu_row(region: str, zone: str, tpu: Tpu, prices: TpuPrices) -> FeedRow:
    """The size of its host is not told. A slice is one device, named after its type."""
    return FeedRow(
        region=region,
        zone=zone,
        instance_type=f"tpu-{tpu.kind}",
        accelerator=f"tpu-{tpu.kind}",
        accelerator_count=1.0,
        price=prices.price(tpu, region, use_spot=False),
        spot_price=prices.price(tpu, region, use_spot=True),
        currency=prices.currency,
    )
