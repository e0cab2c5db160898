"""Equal tasks of a fleet as one kind, what each kind may choose, and the limits on all of them, as numbers for the solver. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from skyloom_common.contracts.fleet import FleetPlanRequest, FleetTask
from skyloom_common.core.errors import InvalidRequest
from skyloom_optimizer.choices import Choices, NoChoice
from skyloom_optimizer.fleets.check import MOST_KINDS, SPREADS
from skyloom_optimizer.fleets.find import Finder
from skyloom_optimizer.market import Market
from skyloom_optimizer.memory import AvailabilityMemory
from skyloom_optimizer.snapshot import Floats
from skyloom_optimizer.solvers import fleet as solver
from skyloom_optimizer.weigh import Weigher


@dataclass(frozen=True)
class Option:
    """A choice of a kind, bought (`reservation` None) or in a reservation."""

    choice: int
    usd: float
    value: float
    usd_per_hour: float
    reservation: int | None = None


@dataclass
class FleetKind:
    """Equal tasks: their names with counts, and what they may choose."""

    item: FleetTask
    members: list[tuple[str, int]]
    choices: Choices
    options: list[Option] = dataclasses.field(default_factory=list)

    @property
    def count(self) -> int:
        return sum(count for _, count in self.members)


def kinds_of(
    request: FleetPlanRequest, finder: Finder, memory: AvailabilityMemory, market: Market
) -> tuple[list[FleetKind], dict[str, NoChoice]]:
    kinds: dict[str, FleetKind] = {}
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
            kinds[key] = FleetKind(item, [], found, options_of(item, found, finder))
        kinds[key].members.append((item.name, item.count))
    if len(kinds) > MOST_KINDS:
        raise InvalidRequest(f"tasks: {len(kinds)} different kinds; at most {MOST_KINDS} in one fleet")
    return list(kinds.values()), missing


def options_of(item: FleetTask, choices: Choices, finder: Finder) -> list[Option]:
    found: list[Option] = []
    nodes, quotas = item.task.num_nodes, len(finder.request.quotas)
    reserved = [amounts_of(choices, finder, quotas + n) for n in range(len(finder.request.reservations))]
    for choice in range(len(choices)):
        part, index = choices.part(choice)
        price = float(part.world.prices(part.need.use_spot).price[part.rows[index]])
        hourly = 0.0 if price != price else price * nodes
        found.append(Option(choice, float(choices.usd[choice]), float(choices.value[choice]), hourly))
        for number, reservation in enumerate(finder.request.reservations):
            if reserved[number][choice] and reservation.nodes >= nodes:
                paid = reservation.price_per_hour * nodes
                usd = paid * float(part.weights.outlook.total[index])
                found.append(Option(choice, usd, usd, paid, number))
    return found


def amounts_of(choices: Choices, finder: Finder, number: int) -> Floats:
    """What one node of each choice takes of a limit."""
    return finder.column(choices, number)[choices.flat]


def solver_kind(kind: FleetKind) -> solver.Kind:
    costs, spread = np.array([option.value for option in kind.options]), kind.item.spread
    if spread is None:
        return solver.Kind(kind.count, costs, kind.item.priority)
    places = tuple(tuple(options) for options in options_by_place(kind).values())
    return solver.Kind(kind.count, costs, kind.item.priority, places, most_in_place(kind), spread.min_places)


def most_in_place(kind: FleetKind) -> int:
    """Copies that one place of the kind's spread may have; at least one."""
    share = kind.item.spread.max_share if kind.item.spread else 1.0
    return max(1, int(np.floor(share * kind.count + 1e-9)))


def options_by_place(kind: FleetKind) -> dict[tuple[str, ...], list[int]]:
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


def limits_of(
    request: FleetPlanRequest, kinds: Sequence[FleetKind], finder: Finder
) -> tuple[list[solver.Limit], list[tuple[str, float]]]:
    """Limits with their names."""
    limits: list[solver.Limit] = []
    names: list[tuple[str, float]] = []

    def add(name: str, most: float, uses: list[tuple[int, int, float]], by_kind: bool = False) -> None:
        limits.append(solver.Limit(most, tuple(use for use in uses if use[2]), by_kind))
        names.append((name, most))

    for number, pool in enumerate(request.quotas):
        uses: list[tuple[int, int, float]] = []
        for k, kind in enumerate(kinds):
            column = (amounts_of(kind.choices, finder, number) * kind.item.task.num_nodes).tolist()
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
        add("max_usd", request.max_usd, [(k, o, x.usd) for k, o, x in pairs], by_kind=True)
    return limits, names
