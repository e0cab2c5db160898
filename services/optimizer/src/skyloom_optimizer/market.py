"""Facts beside prices: how often spot machines are taken, what moving data costs.

Data only; made once from a catalog, read by every plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from skyloom_optimizer.egress import EgressTariffs, Place, Tiers
from skyloom_optimizer.expected import rate_of_month
from skyloom_optimizer.snapshot import Floats, Ints, OfferSnapshot

if TYPE_CHECKING:
    from skyloom_optimizer.catalog.load import Catalog

# Taken where nothing is published and nothing was seen: one spot machine in ten is taken within a day.
UNKNOWN_RATE = float(-np.log(0.9) / 24)
_UNKNOWN_BAND = 0


@dataclass(frozen=True)
class Market:
    """`bands`: (cloud, region, instance type) to the share of machines interrupted in a month, in per cent (low, high)."""

    bands: Mapping[tuple[str, str, str], tuple[float, float]] = field(default_factory=dict)
    egress: EgressTariffs = field(default_factory=EgressTariffs)
    snapshot: OfferSnapshot | None = None
    """The offers whose bands are looked up ahead of time."""

    def rate(self, cloud: str, region: str, instance_type: str) -> float:
        """Interruptions an hour of one spot machine, as published."""
        band = self.bands.get((cloud, region, instance_type))
        return UNKNOWN_RATE if band is None else rate_of_month(sum(band) / 2)

    @cached_property
    def rates(self) -> Floats:
        """Interruptions an hour of each band; the first is for what is not published."""
        return np.array([UNKNOWN_RATE, *(rate_of_month(sum(band) / 2) for band in self._distinct)])

    def band_numbers(self, world: OfferSnapshot) -> Ints:
        """For each offer the index of its rate in `rates`."""
        if world is self.snapshot:
            return self._band_numbers
        return self._numbers(world)

    @cached_property
    def _distinct(self) -> list[tuple[float, float]]:
        return sorted(set(self.bands.values()))

    @cached_property
    def _band_numbers(self) -> Ints:
        assert self.snapshot is not None
        return self._numbers(self.snapshot)

    def _numbers(self, world: OfferSnapshot) -> Ints:
        numbers = np.full(len(world), _UNKNOWN_BAND, dtype=np.uint8)
        code = {band: position + 1 for position, band in enumerate(self._distinct)}
        known = {key[0] for key in self.bands} & set(world.clouds)
        if not known:
            return numbers
        by_type: dict[tuple[str, str], dict[str, int]] = {}
        for (cloud, region, name), band in self.bands.items():
            by_type.setdefault((cloud, name), {})[region] = code[band]
        regions = world.places.region
        for cloud in known:
            part = world.cloud_slices[world.clouds.index(cloud)]
            for machine in range(part.start, part.stop):
                found = by_type.get((cloud, world.machines.name[machine]))
                if found:
                    first, last = world.machines.first_offer[machine : machine + 2].tolist()
                    places = world.place[first:last].tolist()
                    numbers[first:last] = [found.get(regions[place], _UNKNOWN_BAND) for place in places]
        return numbers


def market_of(catalog: Catalog) -> Market:
    tiers: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for tier in catalog.egress:
        tiers.setdefault((tier.cloud, tier.from_scope, tier.to_scope), []).append(
            (tier.tier_start_gib, tier.price_per_gib)
        )
    sorted_tiers: dict[tuple[str, str, str], Tiers] = {
        key: tuple(sorted(dict(values).items())) for key, values in tiers.items()
    }
    continent: dict[Place, str] = {(r.cloud, r.name): r.continent for r in catalog.regions}
    position: dict[Place, tuple[float, float]] = {
        (r.cloud, r.name): (r.latitude, r.longitude)
        for r in catalog.regions
        if r.latitude is not None and r.longitude is not None
    }
    bands = {key: (band.low_percent, band.high_percent) for key, band in catalog.interruptions.items()}
    return Market(
        bands=bands,
        egress=EgressTariffs(sorted_tiers, continent, position),
        snapshot=catalog.snapshot,
    )
