"""All offers that could run one task, collapsed to the few that can be part of a best plan of many tasks. Pure.

A place is a cloud's region. Of the offers of a place only those remain that no other one beats in both cost and time; where time
does not matter that is one. Offers without a price count only where a task has no other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from skyloom_common.contracts.plan import Breakdown, Candidate, Conflict, Reason, Rejection, RunEstimate
from skyloom_common.contracts.task.model import TaskSpec
from skyloom_common.core.errors import InvalidRequest
from skyloom_optimizer.conflicts import conflicts_of
from skyloom_optimizer.egress import Place
from skyloom_optimizer.expected import check_run
from skyloom_optimizer.explain import explain_empty
from skyloom_optimizer.feasible import Feasible, feasible_only, split_feasible
from skyloom_optimizer.gate import Gate
from skyloom_optimizer.needs import Need, check_needs, needs_of
from skyloom_optimizer.plan import merge_rejections, offer_of
from skyloom_optimizer.snapshot import Floats, Ints, Mask, OfferSnapshot
from skyloom_optimizer.weigh import WAIT_SHARE, Weigher, Weights


@dataclass
class PlaceIndex:
    """Numbers for (cloud, region) over all worlds of a request."""

    worlds: Sequence[OfferSnapshot]
    places: list[Place] = field(default_factory=list)
    _number: dict[Place, int] = field(default_factory=dict)
    _of_world: dict[int, Ints] = field(default_factory=dict)

    def number(self, place: Place) -> int:
        if place not in self._number:
            self._number[place] = len(self.places)
            self.places.append(place)
        return self._number[place]

    def of_offers(self, world: OfferSnapshot) -> Ints:
        """The place number of each offer."""
        if id(world) not in self._of_world:
            places = world.places
            keys = zip(places.cloud.tolist(), places.region, strict=True)
            numbers = [self.number((world.clouds[cloud], region)) for cloud, region in keys]
            self._of_world[id(world)] = np.array(numbers, dtype=np.int64)[world.place]
        return self._of_world[id(world)]


@dataclass(frozen=True)
class Part:
    """Choices that came from one need in one world: rows of the world, with their weights."""

    need: Need
    world: OfferSnapshot
    rows: Ints
    weights: Weights


@dataclass(frozen=True)
class Choices:
    """`usd`, `hours`, `wait`, `place` of each choice; `wait` is what failed attempts are worth beyond the cost."""

    parts: tuple[Part, ...]
    place: Ints
    usd: Floats
    hours: Floats
    wait: Floats
    origin: Ints
    """(part, index in part) of each choice."""

    def __len__(self) -> int:
        return len(self.place)

    @cached_property
    def value(self) -> Floats:
        total: Floats = self.usd + self.wait
        return total

    @cached_property
    def flat(self) -> Ints:
        """Position of each choice among the rows of all parts, one part after the other."""
        starts = np.cumsum([0, *(len(part.rows) for part in self.parts)])
        positions: Ints = starts[self.origin[:, 0]] + self.origin[:, 1]
        return positions

    def part(self, choice: int) -> tuple[Part, int]:
        number, index = self.origin[choice].tolist()
        return self.parts[number], index

    def breakdown(self, choice: int) -> Breakdown:
        part, index = self.part(choice)
        return part.weights.breakdown(index)

    def candidate(self, choice: int, num_nodes: int, reason: str = "") -> Candidate:
        part, index = self.part(choice)
        offer = offer_of(part.need, part.world, int(part.rows[index]))
        price = offer.price_per_hour
        return Candidate(
            offer,
            num_nodes,
            None if price is None else price * num_nodes,
            part.need.alternative,
            reason,
            (Reason("cost", reason),) if reason else (),
            part.weights.expectation(index),
        )


@dataclass(frozen=True)
class NoChoice:
    """Why a task has none."""

    hints: tuple[str, ...]
    rejected: tuple[Rejection, ...] = ()
    conflicts: tuple[Conflict, ...] = ()


def check_task(name: str, task: TaskSpec, run: RunEstimate) -> None:
    if task.num_nodes < 1:
        raise InvalidRequest(f"{name}: num_nodes: {task.num_nodes} is not at least 1")
    check_run(run, f"{name}: run")


@dataclass(frozen=True)
class Found:
    """Rows of a world that may be best for a need; `key` of each."""

    need: Need
    world: OfferSnapshot
    rows: Ints
    key: Ints


Keys = Callable[[Need, OfferSnapshot, Ints], Ints]
Keep = Callable[[Need, OfferSnapshot, Ints, Ints], Ints]


def choices_of(
    task: TaskSpec,
    worlds: Sequence[OfferSnapshot],
    gate: Gate,
    weigher: Weigher,
    index: PlaceIndex,
    *,
    timed: bool = False,
) -> Choices | NoChoice:
    """The best of each place; `timed`: hours matter too."""
    found = find(
        task,
        worlds,
        gate,
        lambda need, world, rows: index.of_offers(world)[rows],
        lambda need, world, rows, key: _best_rows(need, world, rows, key, weigher, timed),
    )
    return found if isinstance(found, NoChoice) else weigh(found, weigher, index, timed)


def find(
    task: TaskSpec, worlds: Sequence[OfferSnapshot], gate: Gate, keys: Keys, keep: Keep
) -> list[Found] | NoChoice:
    """Rows for the first turn that has any. `keep` chooses positions among the usable rows, given their keys."""
    needs, _ = check_needs(needs_of(task.resources, worlds), worlds)
    found: list[Found] = []
    for need in needs:
        if found and need.turn > found[0].need.turn:
            break
        for world in worlds:
            rows = _usable(need, world, feasible_only(need, world, gate))
            if len(rows):
                key = keys(need, world, rows)
                kept = keep(need, world, rows, key)
                found.append(Found(need, world, rows[kept], key[kept]))
    return found or _nothing(needs, worlds, gate)


def weigh(found: Sequence[Found], weigher: Weigher, index: PlaceIndex, timed: bool = False) -> Choices:
    parts = [Part(f.need, f.world, f.rows, weigher.weigh(f.need, f.world, f.rows)) for f in found]
    return _collapse(parts, np.concatenate([f.key for f in found]), index, timed)


def _nothing(needs: Sequence[Need], worlds: Sequence[OfferSnapshot], gate: Gate) -> NoChoice:
    conflicts = conflicts_of(needs, worlds, gate)
    rejected = [
        item for need in needs for world in worlds for item in split_feasible(need, world, gate).rejected
    ]
    return NoChoice(explain_empty(needs, worlds, gate, conflicts), merge_rejections(rejected), conflicts)


def _usable(need: Need, world: OfferSnapshot, feasible: Feasible) -> Ints:
    """All rows that satisfy the need; those with a price where there are any."""
    prices = world.prices(need.use_spot)
    usable: Mask = feasible.machines[world.machine] & feasible.allowed & prices.sold
    if need.spec.max_hourly_cost is not None:
        with np.errstate(invalid="ignore"):
            usable = usable & (prices.price <= need.spec.max_hourly_cost + 1e-6)
    rows: Ints = np.flatnonzero(usable)
    priced = rows[~np.isnan(prices.price[rows])]
    return priced if len(priced) else rows


def _best_rows(
    need: Need, world: OfferSnapshot, rows: Ints, key: Ints, weigher: Weigher, timed: bool
) -> Ints:
    """For each key the offers that may be best; where this deployment has seen launches, all of them."""
    usd, hours = weigher.quick(need, world, rows)
    return np.union1d(least(key, usd, hours if timed else None), weigher.seen_rows(world, rows))


def least(key: Ints, usd: Floats, hours: Floats | None = None) -> Ints:
    """Positions of the cheapest for each key; with hours, for each key and length."""
    usd = np.nan_to_num(usd)
    if hours is not None:
        _, length = np.unique(np.round(hours, 9), return_inverse=True)
        key = key * (int(length.max(initial=0)) + 1) + length
    if key.max(initial=0) > 4 * len(key) + 1000:
        _, key = np.unique(key, return_inverse=True)
    lowest = np.full(int(key.max(initial=0)) + 1, np.inf)
    np.minimum.at(lowest, key, usd)
    hits = np.flatnonzero(usd == lowest[key])
    _, first = np.unique(key[hits], return_index=True)
    return hits[first]


def _collapse(parts: Sequence[Part], key: Ints, index: PlaceIndex, timed: bool) -> Choices:
    """The best over all parts, for each key."""
    usd = np.nan_to_num(np.concatenate([part.weights.usd for part in parts]))
    hours = np.concatenate([part.weights.hours for part in parts])
    odds = np.concatenate([part.weights.odds for part in parts])
    place = np.concatenate([index.of_offers(part.world)[part.rows] for part in parts])
    origin = np.concatenate(
        [np.stack([np.full(len(p.rows), n), np.arange(len(p.rows))], axis=1) for n, p in enumerate(parts)]
    )
    wait = WAIT_SHARE * float(usd.min()) * odds
    kept = np.sort(least(key, usd + wait, hours if timed else None))
    if timed:
        kept = kept[_pareto(key[kept], (usd + wait)[kept], hours[kept])]
    return Choices(tuple(parts), place[kept], usd[kept], hours[kept], wait[kept], origin[kept])


def _pareto(key: Ints, usd: Floats, hours: Floats) -> Ints:
    """Positions that no other position of the same key beats in both."""
    order = np.lexsort((hours, usd, key))
    kept: list[int] = []
    last, best = -1, np.inf
    for position in order.tolist():
        if key[position] != last:
            last, best = int(key[position]), np.inf
        if hours[position] < best - 1e-12:
            best = float(hours[position])
            kept.append(position)
    return np.array(sorted(kept), dtype=np.int64)
