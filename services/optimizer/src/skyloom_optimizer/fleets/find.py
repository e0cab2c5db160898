"""Offers that may be part of a best fleet: of those that use the same limits by the same amount the cheapest, unless one beats it.

Pure. What one node takes of each limit is worked out once for each machine and place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from skyloom_common.contracts.fleet import FleetPlanRequest, FleetTask, Reservation
from skyloom_common.contracts.plan import QuotaPool
from skyloom_optimizer.choices import Choices, Found, NoChoice, PlaceIndex, find, least, weigh
from skyloom_optimizer.feasible import blocked_places, pool_machines, units_of
from skyloom_optimizer.gate import gate_of
from skyloom_optimizer.needs import Need
from skyloom_optimizer.snapshot import Floats, Ints, Mask, OfferSnapshot
from skyloom_optimizer.weigh import Weigher

_MOST_PLACES = 1 << 24


@dataclass(frozen=True)
class _Matcher:
    """Where a limit holds in a world: on which places, and what one node takes on each machine."""

    places: Mask
    units: Floats

    def uses(self, world: OfferSnapshot, rows: Ints) -> Floats:
        found: Floats = self.units[world.machine[rows]] * self.places[world.place[rows]]
        return found


class Finder:
    """Offers that may be part of a best fleet. Tasks that differ only in how long they run share one search."""

    def __init__(self, request: FleetPlanRequest, worlds: Sequence[OfferSnapshot]) -> None:
        self.request, self.worlds = request, worlds
        self.index = PlaceIndex(worlds)
        self._found: dict[str, list[Found] | NoChoice] = {}
        self._matchers: dict[tuple[int, int], _Matcher] = {}
        self._numbers: dict[tuple[int, float], int] = {}
        self._columns: dict[tuple[int, ...], Floats] = {}
        limits = len(request.quotas) + len(request.reservations)
        self._weights = np.random.default_rng(7).uniform(1, 2, limits + 1)

    def choices(self, item: FleetTask, weigher: Weigher) -> Choices | NoChoice:
        by = item.spread.by if item.spread else ""
        # Run times that differ by machine are part of the search, others only scale its result.
        key = repr((item.task.resources, item.task.num_nodes, by, item.run if item.run.hours_on else None))
        if key not in self._found:
            gate = gate_of(self.request, item.task.num_nodes)
            self._found[key] = find(
                item.task,
                self.worlds,
                gate,
                lambda need, world, rows: self._key(need, world, rows, by),
                lambda need, world, rows, key: self._keep(need, world, rows, key, by, weigher),
            )
        found = self._found[key]
        return found if isinstance(found, NoChoice) else weigh(found, weigher, self.index)

    def uses(self, number: int, need: Need, world: OfferSnapshot, rows: Ints) -> Floats:
        """What one node on each row takes of a limit: quotas first, then reservations."""
        quotas = self.request.quotas
        if number >= len(quotas):
            return (
                np.zeros(len(rows)) if need.use_spot else self._matcher(number, need, world).uses(world, rows)
            )
        if quotas[number].use_spot not in (None, need.use_spot):
            return np.zeros(len(rows))
        return self._matcher(number, need, world).uses(world, rows)

    def column(self, choices: Choices, number: int) -> Floats:
        """What one node on each row of a search takes of a limit; kinds that share the search share it."""
        key = (number, *(id(part.rows) for part in choices.parts))
        if key not in self._columns:
            parts = [self.uses(number, part.need, part.world, part.rows) for part in choices.parts]
            self._columns[key] = np.concatenate(parts)
        return self._columns[key]

    def _matcher(self, number: int, need: Need, world: OfferSnapshot) -> _Matcher:
        key = (number, id(world))
        if key not in self._matchers or world.divisible:
            self._matchers[key] = _matcher(self.request, number, need, world)
        return self._matchers[key]

    def _key(self, need: Need, world: OfferSnapshot, rows: Ints, by: str) -> Ints:
        """Equal where the same limits are used by the same amount, in the same place of a spread."""
        total = np.zeros(len(rows))
        for number, weight in enumerate(self._weights[:-1]):
            total += weight * self.uses(number, need, world, rows)
        if self.request.max_usd_per_hour is not None:
            # Under a budget an hour the cheapest an hour and the cheapest in all may differ: all prices stay.
            total += self._weights[-1] * np.nan_to_num(world.prices(need.use_spot).price[rows])
        place = rows if world.divisible else _spread_places(world, rows, by)
        values, use = np.unique(np.round(total, 9), return_inverse=True)
        keys = [(id(world), value) for value in values.tolist()]
        number_of = np.array(
            [self._numbers.setdefault(key, len(self._numbers)) for key in keys], dtype=np.int64
        )
        return number_of[use] * _MOST_PLACES + place

    def _keep(
        self, need: Need, world: OfferSnapshot, rows: Ints, key: Ints, by: str, weigher: Weigher
    ) -> Ints:
        """For any run time: the cheapest for each key and interruption rate, unless another one beats it in everything."""
        if world.divisible:
            return np.arange(len(rows))
        # What was seen there decides for itself; it must not hide what nothing is known of.
        seen = weigher.seen_rows(world, rows)
        fresh = np.setdiff1d(np.arange(len(rows)), seen)
        best = self._best(need, world, rows[fresh], key[fresh], by, weigher)
        return np.union1d(fresh[best], seen)

    def _best(
        self, need: Need, world: OfferSnapshot, rows: Ints, key: Ints, by: str, weigher: Weigher
    ) -> Ints:
        if not len(rows):
            return np.zeros(0, dtype=np.int64)
        usd, hours = weigher.quick(need, world, rows)
        cost = usd if weigher.run.hours_on else usd / hours
        band = np.zeros_like(key)
        if need.use_spot:
            band = weigher.market.band_numbers(world)[rows].astype(np.int64)
        kept = least(key * 64 + band, cost)
        first = len(self.request.quotas)
        facts = [cost[kept], weigher.market.rates[band[kept]]]
        facts += [self.uses(number, need, world, rows[kept]) for number in range(first)]
        # To fit a reservation is an advantage.
        reservations = range(first, first + len(self.request.reservations))
        facts += [-self.uses(number, need, world, rows[kept]) for number in reservations]
        if self.request.max_usd_per_hour is not None:
            facts.append(world.prices(need.use_spot).price[rows[kept]])
        return kept[_undominated(np.vstack(facts), _spread_places(world, rows[kept], by))]


def _undominated(facts: Floats, place: Ints) -> Mask:
    """Columns that no other column of the same place equals or beats in every row."""
    facts = facts[(facts != facts[:, :1]).any(axis=1)]
    keep = np.ones(len(place), dtype=bool)
    order = np.argsort(place, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(place[order])) + 1):
        if len(members) > 1:
            keep[members] = _best_columns(facts[:, members])
    return keep


def _best_columns(facts: Floats) -> Mask:
    order = np.lexsort(facts[::-1]) if len(facts) else np.arange(facts.shape[1])
    keep = np.ones(facts.shape[1], dtype=bool)
    for position, number in enumerate(order.tolist()):
        if keep[number]:
            later = order[position + 1 :]
            keep[later[(facts[:, later] >= facts[:, [number]] - 1e-12).all(axis=0)]] = False
    return keep


def _matcher(request: FleetPlanRequest, number: int, need: Need, world: OfferSnapshot) -> _Matcher:
    quotas = request.quotas
    if number >= len(quotas):
        item = request.reservations[number - len(quotas)]
        return _Matcher(
            place_mask_of(world, item), typed(world, item.instance_type, np.ones(len(world.machines)))
        )
    pool = quotas[number]
    units = np.where(pool_machines(world, pool), units_of(need, world, pool.unit), 0.0)
    return _Matcher(place_mask_of(world, pool), typed(world, pool.instance_type, units))


def typed(world: OfferSnapshot, instance_type: str, units: Floats) -> Floats:
    if not instance_type:
        return units
    named = np.zeros(len(units), dtype=bool)
    named[world.machine_number.get(instance_type.lower(), [])] = True
    return np.where(named, units, 0.0)


def place_mask_of(world: OfferSnapshot, item: QuotaPool | Reservation) -> Mask:
    return blocked_places(world, {"cloud": item.cloud, "region": item.region, "zone": item.zone})


def _spread_places(world: OfferSnapshot, rows: Ints, by: str) -> Ints:
    places = world.places
    if not by:
        return np.zeros(len(rows), dtype=np.int64)
    if by == "cloud":
        return places.cloud[world.place[rows]]
    return places.region_number[world.place[rows]] if by == "region" else world.place[rows]
