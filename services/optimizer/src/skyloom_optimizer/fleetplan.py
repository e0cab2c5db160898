"""The decision for many tasks at once: how many of each go where, so that all of them together cost least within shared limits.

Pure. Equal tasks are one kind. Of all offers only the cheapest of those remain that use the same limits by the same amount; the
rest is arithmetic on whole numbers (`solvers.fleet`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from skyloom_common.contracts.fleet import (
    FleetGroup,
    FleetPlan,
    FleetPlanRequest,
    FleetTask,
    PoolUse,
    Reservation,
    Unplaced,
)
from skyloom_common.contracts.plan import Breakdown, Candidate, Proof, QuotaPool, Reason
from skyloom_common.core.errors import InvalidRequest
from skyloom_common.core.text import did_you_mean
from skyloom_optimizer.choices import Choices, Found, NoChoice, PlaceIndex, check_task, find, least, weigh
from skyloom_optimizer.feasible import blocked_places, check_blocked, pool_machines, units_of
from skyloom_optimizer.gate import gate_of
from skyloom_optimizer.market import Market
from skyloom_optimizer.memory import AvailabilityMemory
from skyloom_optimizer.names import number_text
from skyloom_optimizer.needs import Need
from skyloom_optimizer.plan import NO_MARKET, NOTHING_KNOWN, worlds_of
from skyloom_optimizer.snapshot import Floats, Ints, Mask, OfferSnapshot
from skyloom_optimizer.solvers import fleet as solver
from skyloom_optimizer.weigh import Weigher

SPREADS = ("cloud", "region", "zone")
MOST_COPIES = 100_000
MOST_KINDS = 5_000
_MOST_PLACES = 1 << 24


@dataclass(frozen=True)
class _Option:
    """A choice of a kind, bought (`reservation` None) or in a reservation."""

    choice: int
    usd: float
    value: float
    usd_per_hour: float
    reservation: int | None = None


@dataclass
class _Kind:
    """Equal tasks: their names with counts, and what they may choose."""

    item: FleetTask
    members: list[tuple[str, int]]
    choices: Choices
    options: list[_Option] = dataclasses.field(default_factory=list)

    @property
    def count(self) -> int:
        return sum(count for _, count in self.members)


def plan_fleet(
    request: FleetPlanRequest,
    snapshot: OfferSnapshot,
    memory: AvailabilityMemory = NOTHING_KNOWN,
    market: Market = NO_MARKET,
) -> FleetPlan:
    """Raises InvalidRequest for what can never work; what only does not fit is `unplaced`, with the reason."""
    _check(request)
    worlds = worlds_of(request, snapshot)
    finder = _Finder(request, worlds)
    kinds, missing = _kinds(request, finder, memory, market)
    limits, pools = _limits(request, kinds, finder)
    found = solver.solve(
        [_solver_kind(kind) for kind in kinds], limits, request.max_gap, request.time_limit_seconds
    )
    return _Answer(request, kinds, found, limits, pools).plan(
        missing, sum(len(world) for world in worlds), snapshot.version
    )


def _check(request: FleetPlanRequest) -> None:
    check_blocked(request.blocked)
    if not request.tasks:
        raise InvalidRequest("tasks: none; a fleet has at least one")
    names = [item.name for item in request.tasks]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidRequest(f"tasks: {twice!r} comes twice; names are unique (use count for equal tasks)")
    if sum(item.count for item in request.tasks) > MOST_COPIES:
        raise InvalidRequest(f"tasks: more than {MOST_COPIES} copies in all")
    for item in request.tasks:
        check_task(item.name, item.task, item.run)
        if item.count < 1:
            raise InvalidRequest(f"{item.name}: count: {item.count} is not at least 1")
        if item.spread is not None:
            _check_spread(item)
    if not 0 <= request.max_gap < 1 or request.time_limit_seconds <= 0:
        raise InvalidRequest("max_gap must be at least 0 and below 1, time_limit_seconds above 0")
    gate_of(request)


def _check_spread(item: FleetTask) -> None:
    spread = item.spread
    assert spread is not None
    if spread.by not in SPREADS:
        raise InvalidRequest(
            f"{item.name}: spread.by: {spread.by!r} is not one of {', '.join(SPREADS)}{did_you_mean(spread.by, SPREADS)}"
        )
    if not 0 < spread.max_share <= 1 or spread.min_places < 1:
        raise InvalidRequest(f"{item.name}: spread.max_share is above 0 and at most 1, min_places at least 1")
    if spread.min_places > item.count:
        raise InvalidRequest(
            f"{item.name}: spread.min_places: {spread.min_places} places for {item.count} copies; use at most {item.count}"
        )


def _kinds(
    request: FleetPlanRequest, finder: _Finder, memory: AvailabilityMemory, market: Market
) -> tuple[list[_Kind], dict[str, NoChoice]]:
    kinds: dict[str, _Kind] = {}
    missing: dict[str, NoChoice] = {}
    for item in request.tasks:
        weigher = Weigher(item.run, item.task.num_nodes, memory, market, request.disk_usd_per_gib_month)
        # Spread holds for each named task; without it equal tasks are one kind.
        apart = item.name if item.spread else ""
        key = repr((item.task.resources, item.task.num_nodes, item.run, item.priority, apart))
        if key not in kinds:
            found = finder.choices(item, weigher)
            if isinstance(found, NoChoice):
                missing[item.name] = found
                continue
            kinds[key] = _Kind(item, [], found, _options(item, found, finder))
        kinds[key].members.append((item.name, item.count))
    if len(kinds) > MOST_KINDS:
        raise InvalidRequest(f"tasks: {len(kinds)} different kinds; at most {MOST_KINDS} in one fleet")
    return list(kinds.values()), missing


@dataclass(frozen=True)
class _Matcher:
    """Where a limit holds in a world: on which places, and what one node takes on each machine."""

    places: Mask
    units: Floats

    def uses(self, world: OfferSnapshot, rows: Ints) -> Floats:
        found: Floats = self.units[world.machine[rows]] * self.places[world.place[rows]]
        return found


class _Finder:
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
    order = np.lexsort(facts[::-1])
    keep = np.ones(facts.shape[1], dtype=bool)
    for position, number in enumerate(order.tolist()):
        if not keep[number]:
            continue
        later = order[position + 1 :]
        worse = (facts[:, later] >= facts[:, [number]] - 1e-12).all(axis=0) & (place[later] == place[number])
        keep[later[worse]] = False
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


def _options(item: FleetTask, choices: Choices, finder: _Finder) -> list[_Option]:
    found: list[_Option] = []
    nodes, quotas = item.task.num_nodes, len(finder.request.quotas)
    reserved = [_of_choices(choices, finder, quotas + n) for n in range(len(finder.request.reservations))]
    for choice in range(len(choices)):
        part, index = choices.part(choice)
        price = float(part.world.prices(part.need.use_spot).price[part.rows[index]])
        hourly = 0.0 if price != price else price * nodes
        found.append(_Option(choice, float(choices.usd[choice]), float(choices.value[choice]), hourly))
        for number, reservation in enumerate(finder.request.reservations):
            if reserved[number][choice] and reservation.nodes >= nodes:
                paid = reservation.price_per_hour * nodes
                usd = paid * float(part.weights.outlook.total[index])
                found.append(_Option(choice, usd, usd, paid, number))
    return found


def _of_choices(choices: Choices, finder: _Finder, number: int) -> Floats:
    """What one node of each choice takes of a limit."""
    return finder.column(choices, number)[choices.flat]


def _solver_kind(kind: _Kind) -> solver.Kind:
    spread = kind.item.spread
    places = tuple(tuple(options) for options in _by_place(kind).values()) if spread else ()
    return solver.Kind(
        kind.count,
        np.array([option.value for option in kind.options]),
        kind.item.priority,
        places,
        spread.min_places if spread else 1,
    )


def _by_place(kind: _Kind) -> dict[tuple[str, ...], list[int]]:
    """Options of each place of the kind's spread."""
    assert kind.item.spread is not None
    depth = SPREADS.index(kind.item.spread.by) + 1
    found: dict[tuple[str, ...], list[int]] = {}
    for number, option in enumerate(kind.options):
        part, index = kind.choices.part(option.choice)
        place = int(part.world.place[part.rows[index]])
        cloud = part.world.cloud_of(int(part.rows[index]))
        name = (cloud, part.world.places.region[place], part.world.places.zone[place])[:depth]
        found.setdefault(name, []).append(number)
    return found


def _limits(
    request: FleetPlanRequest, kinds: Sequence[_Kind], finder: _Finder
) -> tuple[list[solver.Limit], list[tuple[str, float]]]:
    """Limits with their names; those of spreads have an empty name."""
    limits: list[solver.Limit] = []
    names: list[tuple[str, float]] = []

    def add(name: str, most: float, uses: list[tuple[int, int, float]]) -> None:
        limits.append(solver.Limit(most, tuple(use for use in uses if use[2])))
        names.append((name, most))

    for number, pool in enumerate(request.quotas):
        uses: list[tuple[int, int, float]] = []
        for k, kind in enumerate(kinds):
            column = (_of_choices(kind.choices, finder, number) * kind.item.task.num_nodes).tolist()
            if any(column):
                uses += [(k, o, column[option.choice]) for o, option in enumerate(kind.options)]
        add(pool.name, pool.limit, uses)
    for number, item in enumerate(request.reservations):
        taken = [
            (k, o, float(kind.item.task.num_nodes))
            for k, kind in enumerate(kinds)
            for o, option in enumerate(kind.options)
            if option.reservation == number
        ]
        add(item.name, item.nodes, taken)
    pairs = [(k, o, option) for k, kind in enumerate(kinds) for o, option in enumerate(kind.options)]
    if request.max_usd_per_hour is not None:
        add("max_usd_per_hour", request.max_usd_per_hour, [(k, o, x.usd_per_hour) for k, o, x in pairs])
    if request.max_usd is not None:
        add("max_usd", request.max_usd, [(k, o, x.usd) for k, o, x in pairs])
    for k, kind in enumerate(kinds):
        if kind.item.spread and kind.item.spread.max_share < 1:
            most = max(1, int(np.floor(kind.item.spread.max_share * kind.count + 1e-9)))
            for options in _by_place(kind).values():
                add("", most, [(k, o, 1.0) for o in options])
    return limits, names


class _Answer:
    """From whole numbers back to places and reasons."""

    def __init__(
        self,
        request: FleetPlanRequest,
        kinds: Sequence[_Kind],
        found: solver.Fleet,
        limits: Sequence[solver.Limit],
        pools: Sequence[tuple[str, float]],
    ) -> None:
        self.request, self.kinds, self.found = request, kinds, found
        self.limits, self.pools = limits, pools

    def plan(self, missing: dict[str, NoChoice], considered: int, version: str) -> FleetPlan:
        groups, unplaced = self._groups()
        for item in self.request.tasks:
            if item.name in missing:
                reasons = tuple(Reason("impossible", hint) for hint in missing[item.name].hints)
                unplaced.append(Unplaced(item.name, item.count, reasons))
        parts = [(group.breakdown, group.count) for group in groups]
        total = Breakdown(
            *(
                sum(getattr(part, name) * count for part, count in parts)
                for name in ("compute", "disk", "egress", "restarts")
            )
        )
        value, bound = self.found.value, self.found.bound
        gap = (value - bound) / value if value > 0 else 0.0
        return FleetPlan(
            groups=tuple(groups),
            unplaced=tuple(unplaced),
            pools=tuple(self._uses()),
            usd=total.total,
            usd_per_hour=sum((group.candidate.cost_per_hour or 0.0) * group.count for group in groups),
            breakdown=total,
            proof=Proof(value, bound, max(gap, 0.0), self.found.method),
            hints=tuple(
                f"{item.task}: {item.count} could not be placed: {item.reasons[0].text}"
                for item in unplaced
                if item.reasons
            ),
            considered=considered,
            catalog_version=version,
        )

    def _groups(self) -> tuple[list[FleetGroup], list[Unplaced]]:
        """Copies of a kind are handed to its members in turn, the cheapest options first."""
        groups: list[FleetGroup] = []
        unplaced: list[Unplaced] = []
        for kind, counts, left in zip(self.kinds, self.found.counts, self.found.unplaced, strict=True):
            stock = [[number, count] for number, count in enumerate(counts) if count]
            stock.sort(key=lambda entry: kind.options[entry[0]].value)
            for name, wanted in kind.members:
                while wanted and stock:
                    number, count = stock[0]
                    taken = min(wanted, count)
                    groups.append(self._group(kind, name, number, taken))
                    wanted -= taken
                    stock[0][1] -= taken
                    if not stock[0][1]:
                        stock.pop(0)
                if wanted:
                    unplaced.append(Unplaced(name, wanted, self._why_left(kind)))
            assert left >= 0
        return groups, unplaced

    def _group(self, kind: _Kind, name: str, number: int, count: int) -> FleetGroup:
        option, choices = kind.options[number], kind.choices
        reserved = None if option.reservation is None else self.request.reservations[option.reservation]
        candidate = choices.candidate(option.choice, kind.item.task.num_nodes, self._reason(kind, option))
        parts = choices.breakdown(option.choice)
        if self._zoned(kind):
            part, index = choices.part(option.choice)
            offer = part.world.offer(int(part.rows[index]), part.need.use_spot, None)
            candidate = dataclasses.replace(candidate, offer=offer)
        if reserved is not None:
            candidate, parts = _at_reserved_price(candidate, reserved), Breakdown(compute=option.usd)
        return FleetGroup(name, count, candidate, parts, reserved.name if reserved else "")

    def _zoned(self, kind: _Kind) -> bool:
        """Whether the zone is part of the answer, also where zones cost the same."""
        spread = kind.item.spread is not None and kind.item.spread.by == "zone"
        return (
            spread
            or any(item.zone for item in self.request.quotas)
            or any(item.zone for item in self.request.reservations)
        )

    def _reason(self, kind: _Kind, option: _Option) -> str:
        best = min(kind.options, key=lambda other: other.value)
        if option.reservation is not None:
            return f"reservation {self.request.reservations[option.reservation].name}"
        if option.value <= best.value + 1e-9:
            return "the cheapest"
        return f"${option.value - best.value:.2f} more than the cheapest, which is used up"

    def _why_left(self, kind: _Kind) -> tuple[Reason, ...]:
        """Limits that are full and concern the kind."""
        number = next(position for position, other in enumerate(self.kinds) if other is kind)
        full = []
        for needed, (name, most), use in zip(self._least, self.pools, self._used, strict=True):
            own = needed.get(number)
            if own is not None and use + own > most + 1e-6:
                text = f"{name or 'spread'} is used up: {number_text(round(use, 4))} of {number_text(round(most, 4))}"
                full.append(Reason("quota", text, {"used": use, "limit": most, "needed": own}))
        return tuple(full) or (Reason("quota", "no limit leaves room for it together with the others"),)

    @cached_property
    def _least(self) -> list[dict[int, float]]:
        """For each limit the least that a copy of each kind takes of it."""
        found: list[dict[int, float]] = []
        for limit in self.limits:
            own: dict[int, float] = {}
            for k, _, amount in limit.uses:
                own[k] = min(amount, own.get(k, amount))
            found.append(own)
        return found

    @cached_property
    def _used(self) -> list[float]:
        counts = self.found.counts
        return [
            sum(counts[k][o] * amount for k, o, amount in limit.uses if counts[k][o]) for limit in self.limits
        ]

    def _uses(self) -> list[PoolUse]:
        return [
            PoolUse(name, used, most, price if price is None or price > 1e-9 else None)
            for (name, most), used, price in zip(self.pools, self._used, self.found.prices, strict=True)
            if name
        ]


def _at_reserved_price(candidate: Candidate, reserved: Reservation) -> Candidate:
    offer = dataclasses.replace(candidate.offer, price_per_hour=reserved.price_per_hour, zone=reserved.zone)
    return dataclasses.replace(
        candidate, offer=offer, cost_per_hour=reserved.price_per_hour * candidate.num_nodes
    )
