"""What each offer is worth to one task: expected dollars and hours to finish, and the chance to get it at all.

Pure vector work; nothing is ordered here. Most offers share one of a handful of interruption rates, so the expectation is computed
once for each rate and looked up; places that this deployment has seen itself get their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from skyloom_common.contracts.plan import Breakdown, Expectation, RunEstimate
from skyloom_common.contracts.task.model import ResourcesSpec
from skyloom_optimizer.availability import DEFAULT_SECONDS_TO_RUNNING, PRIOR_CHANCE
from skyloom_optimizer.expected import HOURS_PER_MONTH, Outlook, hours_of_machines, outlook
from skyloom_optimizer.market import Market
from skyloom_optimizer.memory import AvailabilityMemory
from skyloom_optimizer.needs import Need
from skyloom_optimizer.snapshot import Floats, Ints, OfferSnapshot

DEFAULT_DISK_GIB = 256.0
# An attempt that fails costs about this share of the whole run: it is worth that much to start where it works.
WAIT_SHARE = 0.25
# Zones have prices and capacity of their own there, or the zone is part of what is bought.
ZONAL_CLOUDS = frozenset({"gcp"})


def by_zone(need: Need, world: OfferSnapshot, cloud: str) -> bool:
    """Whether zones of this cloud are different places for this need."""
    return need.use_spot or world.divisible or cloud in ZONAL_CLOUDS


@dataclass(frozen=True)
class Weights:
    """For some offer rows, all nodes together. `usd` NaN = no price known."""

    compute: Floats
    disk: Floats
    restarts: Floats
    outlook: Outlook
    chance: Floats
    seconds: Floats

    @cached_property
    def usd(self) -> Floats:
        total: Floats = self.compute + self.disk + self.restarts
        return total

    @cached_property
    def hours(self) -> Floats:
        """Until it is done, with the wait for a machine."""
        return self.outlook.total + self.seconds / 3600

    @cached_property
    def odds(self) -> Floats:
        """Attempts that fail, as expected, beyond those of a place of which nothing is known."""
        return np.maximum(1 / self.chance, 1.0) - 1 / PRIOR_CHANCE

    def breakdown(self, index: int) -> Breakdown:
        parts = (self.compute[index], self.disk[index], 0.0, self.restarts[index])
        return Breakdown(*(float(np.nan_to_num(part)) for part in parts))

    def expectation(self, index: int) -> Expectation:
        usd = float(self.usd[index])
        seen = self.outlook
        return Expectation(
            cost=None if usd != usd else usd,
            run_hours=float(seen.run[index]),
            lost_hours=float(seen.lost[index]),
            restart_hours=float(seen.restart[index]),
            interruptions=float(seen.interruptions[index]),
            chance=float(self.chance[index]),
            seconds_to_running=float(self.seconds[index]),
        )


@dataclass
class Weigher:
    """One task's estimate and the facts of the moment. Keeps what it looked up."""

    run: RunEstimate = field(default_factory=RunEstimate)
    num_nodes: int = 1
    memory: AvailabilityMemory = field(default_factory=AvailabilityMemory)
    market: Market = field(default_factory=Market)
    disk_prices: Mapping[str, float] = field(default_factory=dict)
    _hours: dict[int, Floats] = field(default_factory=dict)

    def machine_hours(self, world: OfferSnapshot) -> Floats:
        key = id(world)
        if key not in self._hours:
            self._hours[key] = hours_of_machines(self.run, world)
        return self._hours[key]

    def lowest(self, need: Need, world: OfferSnapshot, allowed_lowest: Floats, allowed: Ints) -> Floats:
        """Least expected compute cost of each machine over its allowed offers, in dollars of one node."""
        hours = self.machine_hours(world)
        if not need.use_spot or world.divisible or not len(world):
            return allowed_lowest * hours
        prices = world.prices(True)
        usable = prices.sold & ~np.isnan(prices.price) & allowed
        cost = np.where(usable, prices.price * self._total_hours(world), np.inf)
        return np.minimum.reduceat(cost, world.machines.first_offer[:-1])

    def quick(self, need: Need, world: OfferSnapshot, rows: Ints) -> tuple[Floats, Floats]:
        """Dollars and hours by published figures alone; the same order within a place as `weigh` gives without memory."""
        total = self.machine_hours(world)[world.machine[rows]]
        if need.use_spot and not world.divisible:
            total = self._total_hours(world)[rows]
        price = world.prices(need.use_spot).price[rows] * self.num_nodes
        return (price + self._disk(need.spec, world, rows)) * total, total

    def seen_rows(self, world: OfferSnapshot, rows: Ints) -> Ints:
        """Positions in `rows` of offers in regions where launches were seen."""
        regions = {(str(key[0]), str(key[1])) for key in self.memory.capacity.tallies}
        regions |= {(key[0], key[1]) for key in self.memory.penalties if key[1]}
        if not regions:
            return np.zeros(0, dtype=np.int64)
        names = zip(world.places.cloud.tolist(), world.places.region, strict=True)
        known = np.array([(world.clouds[cloud], region) in regions for cloud, region in names], dtype=bool)
        return np.flatnonzero(known[world.place[rows]])

    def _total_hours(self, world: OfferSnapshot) -> Floats:
        """Expected hours on each spot offer, by published rates."""
        codes, hours = self.market.band_numbers(world), self.machine_hours(world)
        values = np.unique(hours)
        table = outlook(values[:, None], self.market.rates[None, :] * self.num_nodes, self.run).total
        if len(values) == 1:
            return table[0][codes]
        return table[np.searchsorted(values, hours)[world.machine], codes]

    def weigh(self, need: Need, world: OfferSnapshot, rows: Ints) -> Weights:
        hours = self.machine_hours(world)[world.machine[rows]]
        rate = np.zeros(len(rows))
        if need.use_spot:
            rate = self.market.rates[self.market.band_numbers(world)[rows]]
        chance = np.full(len(rows), PRIOR_CHANCE)
        seconds = np.full(len(rows), DEFAULT_SECONDS_TO_RUNNING)
        if self.memory.clouds:
            self._recall(need, world, rows, rate, chance, seconds)
        if world.divisible:
            seconds = np.zeros(len(rows))
        if world.divisible:
            rate = np.zeros(len(rows))
        seen = outlook(hours, rate * self.num_nodes, self.run)
        price = world.prices(need.use_spot).price[rows] * self.num_nodes
        return Weights(
            compute=price * seen.run,
            disk=self._disk(need.spec, world, rows) * seen.total,
            restarts=price * (seen.lost + seen.restart),
            outlook=seen,
            chance=chance,
            seconds=seconds,
        )

    def _recall(
        self, need: Need, world: OfferSnapshot, rows: Ints, rate: Floats, chance: Floats, seconds: Floats
    ) -> None:
        """Replaces what is published by what was seen, on clouds of which something was seen."""
        capacity = self.memory.capacity
        numbers = [number for number, cloud in enumerate(world.clouds) if cloud in self.memory.clouds]
        for position in np.flatnonzero(np.isin(world.places.cloud[world.place[rows]], numbers)).tolist():
            place = place_of_row(need, world, int(rows[position]))
            chance[position] = self.memory.chance(*place)
            seconds[position] = capacity.seconds_to_running(*place)
            if need.use_spot:
                rate[position] = capacity.interruptions_per_hour(*place, float(rate[position]))

    def _disk(self, spec: ResourcesSpec, world: OfferSnapshot, rows: Ints) -> Floats:
        """Dollars an hour for the disks of all nodes."""
        if not self.disk_prices:
            return np.zeros(len(rows))
        tier = (spec.disk_tier or "medium").lower()
        size = spec.disk_size.value if spec.disk_size else DEFAULT_DISK_GIB
        month = [
            self.disk_prices.get(f"{cloud}/{tier}", self.disk_prices.get(cloud, 0.0))
            for cloud in world.clouds
        ]
        prices = np.array(month)[world.places.cloud[world.place[rows]]]
        hourly: Floats = prices * size * self.num_nodes / HOURS_PER_MONTH
        return hourly


def place_of_row(need: Need, world: OfferSnapshot, row: int) -> tuple[str, str, str, str, bool]:
    """How the memory knows this offer."""
    place, cloud = int(world.place[row]), world.cloud_of(row)
    zone = world.places.zone[place] if by_zone(need, world, cloud) else ""
    name = world.machines.name[int(world.machine[row])]
    return cloud, world.places.region[place], zone, name, need.use_spot
