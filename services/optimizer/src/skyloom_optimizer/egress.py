"""What moving data between places costs and how long it takes. Pure.

A place is a cloud's region. Within a region data is there for nothing; within a cloud its inter-region tariff holds where one
is known; everything else is the price to the internet at the source. Tiers are marginal: each GiB pays the price of its own tier.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from skyloom_optimizer.snapshot import Floats, Ints

INTERNET = "internet"
_OTHER, _NEAR, _FAR = "other-region", "other-region-same-continent", "other-continent"
_DEFAULT = "default"
# Scopes by which a tariff names several regions at once.
_WIDE = {
    "North America": "north-america-or-europe",
    "Europe": "north-america-or-europe",
    "Asia": "asia-or-mea",
    "Africa": "asia-or-mea",
    "Oceania": "asia-or-mea",
    "South America": "south-america",
}
_BITS_PER_GIB = 8 * 2**30

Place = tuple[str, str]
"""cloud, region; the region may be empty."""
Tiers = tuple[tuple[float, float], ...]
"""(GiB from which on, dollars for each GiB), ascending."""
FREE: Tiers = ((0.0, 0.0),)


def tier_cost(tiers: Tiers, gib: float) -> float:
    """Dollars for a volume that starts at the first tier."""
    ends = [start for start, _ in tiers[1:]] + [float("inf")]
    return sum(
        (min(gib, end) - start) * price
        for (start, price), end in zip(tiers, ends, strict=True)
        if gib > start
    )


def transfer_hours(gib: float, gbits_per_second: float) -> float:
    return gib * _BITS_PER_GIB / (gbits_per_second * 1e9) / 3600


@dataclass(frozen=True)
class EgressTariffs:
    """`tiers` by (cloud, from scope, to scope); `continent` and `position` by place."""

    tiers: Mapping[tuple[str, str, str], Tiers] = field(default_factory=dict)
    continent: Mapping[Place, str] = field(default_factory=dict)
    position: Mapping[Place, tuple[float, float]] = field(default_factory=dict)

    _between: dict[tuple[Place, Place], Tiers] = field(default_factory=dict, compare=False, repr=False)

    def between(self, source: Place, target: Place) -> Tiers:
        """The tariff from one place to another; looked up once."""
        found = self._between.get((source, target))
        if found is None:
            found = self._between[source, target] = self._look_up(source, target)
        return found

    def _look_up(self, source: Place, target: Place) -> Tiers:
        if source == target:
            return FREE
        if source[0] == target[0]:
            inside = self._inside(source, target)
            if inside is not None:
                return inside
        return self._first(source[0], (source[1], _DEFAULT), (INTERNET,)) or FREE

    def _inside(self, source: Place, target: Place) -> Tiers | None:
        cloud, region = source
        here, there = self.continent_of(source), self.continent_of(target)
        near = here == there and here != ""
        wide = _WIDE.get(here, "")
        kinds = (target[1], _NEAR if near else _FAR, _OTHER)
        return self._first(cloud, (region, wide, _DEFAULT), kinds)

    def _first(self, cloud: str, scopes: Iterable[str], kinds: Sequence[str]) -> Tiers | None:
        for kind in kinds:
            for scope in scopes:
                found = self.tiers.get((cloud, scope, kind))
                if found is not None:
                    return found
        return None

    def continent_of(self, place: Place) -> str:
        """As listed, else that of the nearest place with a continent (own hosts and resellers give only a position)."""
        named = self.continent.get(place, "")
        if named or place not in self.position:
            return named
        latitude, longitude = self.position[place]
        points, names = self._positions
        if not len(names):
            return ""
        across = np.abs(points[:, 1] - longitude)
        distance = (points[:, 0] - latitude) ** 2 + np.minimum(across, 360 - across) ** 2
        return names[int(np.argmin(distance))]

    @cached_property
    def _positions(self) -> tuple[Floats, list[str]]:
        known = [
            (self.position[place], name)
            for place, name in self.continent.items()
            if place in self.position and name
        ]
        return np.array([at for at, _ in known], dtype=np.float64).reshape(-1, 2), [name for _, name in known]


class EgressMatrix:
    """All pairs of some places: the tariff of each is looked up once, a volume then costs one vector step."""

    def __init__(self, tariffs: EgressTariffs, places: Sequence[Place]) -> None:
        number: dict[Tiers, int] = {FREE: 0}
        size = len(places)
        table = np.zeros((size, size), dtype=np.int32)
        by_cloud: dict[str, list[int]] = {}
        for position, place in enumerate(places):
            by_cloud.setdefault(place[0], []).append(position)
        for row, source in enumerate(places):
            table[row, :] = number.setdefault(tariffs.between(source, ("", "")), len(number))
            for column in by_cloud[source[0]]:
                table[row, column] = number.setdefault(tariffs.between(source, places[column]), len(number))
        self.places = list(places)
        self._table: Ints = table
        self._tiers = list(number)
        self._same: Floats = np.eye(size)

    def usd(self, gib: float) -> Floats:
        """Dollars from each place (row) to each place (column)."""
        values = np.array([tier_cost(tiers, gib) for tiers in self._tiers])
        costs: Floats = values[self._table]
        return costs

    def usd_between(self, gib: float, source: int, target: int) -> float:
        return tier_cost(self._tiers[int(self._table[source, target])], gib)

    def hours(self, gib: float, gbits_per_second: float) -> Floats:
        """Hours; none inside a region."""
        return (1 - self._same) * transfer_hours(gib, gbits_per_second)
