"""The decision: a request and a snapshot in, ordered candidates and reasons out.

Pure: no clock, no network, no store. Ordering is by turn (the user's own order), known price before unknown,
expected price, then names, so that equal input gives an equal plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from skyloom_common.contracts.plan import Candidate, Offer, Plan, PlanRequest, Rejection
from skyloom_common.core.errors import InvalidRequest
from skyloom_optimizer.explain import explain_empty, place_reason
from skyloom_optimizer.feasible import Feasible, check_blocked, rows_of, split_feasible
from skyloom_optimizer.memory import RECENT_FAILURE, AvailabilityMemory
from skyloom_optimizer.needs import Need, check_needs, needs_of
from skyloom_optimizer.snapshot import Floats, Ints, OfferSnapshot, snapshot_of

OBJECTIVES = ("cost",)
NOTHING_KNOWN = AvailabilityMemory()
# Zones have prices and capacity of their own there, or the zone is part of what is bought.
ZONAL_CLOUDS = frozenset({"gcp"})
_RETRY_WEIGHT = 1.0


class _Entry(NamedTuple):
    """A ranked possibility before it becomes a Candidate."""

    need: Need
    world: OfferSnapshot
    row: int
    price: float
    cloud: str
    by_zone: bool
    penalty: float
    key: tuple[int, bool, float, str, int]
    """Turn, price unknown, expected price, then names: the order of candidates."""


def plan(request: PlanRequest, snapshot: OfferSnapshot, memory: AvailabilityMemory = NOTHING_KNOWN) -> Plan:
    """Ordered candidates for one task. Raises InvalidRequest for what can never work.

    An empty answer explains itself: its first hint is the sentence for the user.
    """
    _check(request)
    worlds = [*_extra_worlds(request, snapshot), snapshot]
    needs, problems = check_needs(needs_of(request.task.resources), worlds)
    enabled = None if request.enabled is None else frozenset(request.enabled)
    entries: list[_Entry] = []
    rejected: list[Rejection] = []
    for need in needs:
        for world in worlds:
            feasible = split_feasible(need, world, enabled=enabled, blocked=request.blocked)
            chosen = choose_machines(world, feasible)
            entries += _expand(need, world, feasible, chosen, memory)
            rejected += [*feasible.rejected, *_dearer(world, feasible, chosen)]
    ordered = _not_first_again(sorted(entries, key=lambda entry: entry.key))
    candidates = _candidates(_select(ordered, request.max_candidates), request.task.num_nodes)
    hints = tuple(problems)
    if not candidates:
        hints = (*explain_empty(needs, worlds, enabled, request.blocked), *hints)
    return Plan(
        candidates=candidates,
        rejected=merge_rejections(rejected),
        considered=sum(len(world) for world in worlds),
        objective=request.objective,
        total_cost_per_hour=candidates[0].cost_per_hour if candidates else None,
        hints=hints,
        catalog_version=snapshot.version,
        details={"feasible": len(entries)},
    )


def _check(request: PlanRequest) -> None:
    if request.objective not in OBJECTIVES:
        raise InvalidRequest(f"objective: {request.objective!r} is not one of {', '.join(OBJECTIVES)}")
    if request.max_candidates < 1:
        raise InvalidRequest(f"max_candidates: {request.max_candidates} is not at least 1")
    if request.task.num_nodes < 1:
        raise InvalidRequest(f"num_nodes: {request.task.num_nodes} is not at least 1")
    check_blocked(request.blocked)


def _extra_worlds(request: PlanRequest, snapshot: OfferSnapshot) -> list[OfferSnapshot]:
    """Own machines are shared out; live offers of a catalog cloud are bought whole like the catalog's."""
    known = set(snapshot.clouds)
    own = [offer for offer in request.extra_offers if offer.cloud not in known]
    live = [offer for offer in request.extra_offers if offer.cloud in known]
    groups: list[tuple[list[Offer], bool]] = [(own, True), (live, False)]
    return [
        snapshot_of(offers, accelerators=snapshot.accelerators, divisible=divisible)
        for offers, divisible in groups
        if offers
    ]


def choose_machines(world: OfferSnapshot, feasible: Feasible) -> Ints:
    """The cheapest machine of each cloud, the smallest where no price is known; of own machines all."""
    if world.divisible:
        machines = np.flatnonzero(feasible.machines)
        return machines[np.argsort(world.size[machines], kind="stable")]
    cheapest = world.least_of_clouds(feasible.lowest, feasible.machines & np.isfinite(feasible.lowest))
    smallest = world.least_of_clouds(world.size, feasible.machines)
    chosen = np.where(cheapest >= 0, cheapest, smallest)
    return chosen[chosen >= 0]


def _expand(
    need: Need, world: OfferSnapshot, feasible: Feasible, chosen: Ints, memory: AvailabilityMemory
) -> list[_Entry]:
    """Every place of the chosen machines: by zone where zones differ, else by region."""
    prices = world.prices(need.use_spot).price
    entries: list[_Entry] = []
    for machine in chosen.tolist():
        cloud = world.clouds[int(world.machines.cloud[machine])]
        by_zone = need.use_spot or world.divisible or cloud in ZONAL_CLOUDS
        rows = rows_of(world, machine, need.use_spot, feasible.allowed)
        rows = _affordable(rows, prices, need.spec.max_hourly_cost)
        if need.spec.zone or not by_zone:
            rows = cheapest_by_region(world, rows, prices)
        for row, price in zip(rows.tolist(), prices[rows].tolist(), strict=True):
            penalty = _penalty(need, world, row, by_zone, memory) if cloud in memory.clouds else 0.0
            key = (need.turn, price != price, expected_price(price, penalty), cloud, row)
            entries.append(_Entry(need, world, row, price, cloud, by_zone, penalty, key))
    return _one_per_place(entries) if world.divisible else entries


def _one_per_place(entries: Sequence[_Entry]) -> list[_Entry]:
    """Own machines offer many cuts of a place: the cheapest counts, at equal price the smallest (first)."""
    best: dict[int, _Entry] = {}
    for entry in entries:
        place = int(entry.world.place[entry.row])
        if place not in best or entry.key[:3] < best[place].key[:3]:
            best[place] = entry
    return list(best.values())


def _affordable(rows: Ints, prices: Floats, cap: float | None) -> Ints:
    return rows if cap is None else rows[prices[rows] <= cap + 1e-6]


def cheapest_by_region(world: OfferSnapshot, rows: Ints, prices: Floats) -> Ints:
    """One row for each region: the one with the lowest known price."""
    if len(rows) < 2:
        return rows
    ordered = rows[np.argsort(prices[rows], kind="stable")]
    _, first = np.unique(world.places.region_number[world.place[ordered]], return_index=True)
    return ordered[np.sort(first)]


def expected_price(price: float, penalty: float) -> float:
    """What an hour is expected to cost when attempts may fail first; 0 where no price is known."""
    known = price if price == price else 0.0
    return known * (1 + _RETRY_WEIGHT * penalty)


def _penalty(need: Need, world: OfferSnapshot, row: int, by_zone: bool, memory: AvailabilityMemory) -> float:
    place, name = int(world.place[row]), world.machines.name[int(world.machine[row])]
    zone = world.places.zone[place] if by_zone else ""
    return memory.penalty(world.cloud_of(row), world.places.region[place], zone, name, need.use_spot)


def _not_first_again(ordered: list[_Entry]) -> list[_Entry]:
    """A place that just failed yields the first try to the best of its turn that did not."""
    if not ordered or ordered[0].penalty < RECENT_FAILURE:
        return ordered
    turn = ordered[0].need.turn
    for position, entry in enumerate(ordered):
        if entry.need.turn == turn and entry.penalty < RECENT_FAILURE:
            return [entry, *ordered[:position], *ordered[position + 1 :]]
    return ordered


def _select(ordered: Sequence[_Entry], most: int) -> list[_Entry]:
    """The best of each cloud and alternative, then the next best, in order; the same place only once."""
    seen: set[tuple[int, int, bool]] = set()
    leaders: set[tuple[int, str]] = set()
    first: list[int] = []
    rest: list[int] = []
    for position, entry in enumerate(ordered):
        place = (id(entry.world), entry.row, entry.need.use_spot)
        if place in seen:
            continue
        seen.add(place)
        group = (entry.need.alternative, entry.cloud)
        (rest if group in leaders else first).append(position)
        leaders.add(group)
    return [ordered[position] for position in sorted([*first, *rest][:most])]


def _candidates(entries: Sequence[_Entry], num_nodes: int) -> tuple[Candidate, ...]:
    found: list[Candidate] = []
    first_turn = entries[0].need.turn if entries else 0
    stepped_up = any(entry.need.turn == first_turn and entry.price < entries[0].price for entry in entries)
    for entry in entries:
        offer = _offer(entry)
        top = found[0].offer if found else None
        price = offer.price_per_hour
        found.append(
            Candidate(
                offer=offer,
                num_nodes=num_nodes,
                cost_per_hour=None if price is None else price * num_nodes,
                alternative=entry.need.alternative,
                reason=place_reason(offer, top, _notes(entry, top is None and stepped_up, first_turn)),
            )
        )
    return tuple(found)


def _notes(entry: _Entry, stepped_up: bool, first_turn: int) -> list[str]:
    notes = ["the cheapest that did not fail recently"] if stepped_up else []
    notes += ["later in the order asked for"] if entry.need.turn > first_turn else []
    return notes + (["failed there recently"] if entry.penalty >= RECENT_FAILURE else [])


def _offer(entry: _Entry) -> Offer:
    """Where zones do not differ the provider picks one; a zone asked for is passed on as it was written."""
    zone = entry.need.spec.zone or (None if entry.by_zone else "")
    return entry.world.offer(entry.row, entry.need.use_spot, zone)


def _dearer(world: OfferSnapshot, feasible: Feasible, chosen: Ints) -> list[Rejection]:
    """Machines that would do but cost more than the one chosen on the same cloud."""
    if world.divisible or not len(chosen):
        return []
    rest = feasible.machines.copy()
    rest[chosen] = False
    nearest = world.least_of_clouds(feasible.lowest, rest).tolist()
    counts = world.offers_by_cloud(rest).tolist()
    clouds = world.machines.cloud[chosen].tolist()
    return [
        _dearer_rejection(world, feasible, cloud, machine, nearest[cloud], counts[cloud])
        for cloud, machine in zip(clouds, chosen.tolist(), strict=True)
        if nearest[cloud] >= 0
    ]


def _dearer_rejection(
    world: OfferSnapshot, feasible: Feasible, cloud: int, machine: int, near: int, count: int
) -> Rejection:
    name, price = world.machines.name[near], feasible.lowest[near]
    if not np.isfinite(price):
        return Rejection(world.clouds[cloud], "price", "no price is known", count)
    best = f"{world.machines.name[machine]} at ${feasible.lowest[machine]:.2f}"
    return Rejection(
        world.clouds[cloud], "price", f"dearer than {best}; the next is {name} at ${price:.2f}", count, name
    )


def merge_rejections(rejected: Sequence[Rejection]) -> tuple[Rejection, ...]:
    """Equal reasons of several alternatives become one, keeping the order."""
    merged: dict[tuple[str, str, str, str | None], int] = {}
    for item in rejected:
        key = (item.cloud, item.code, item.reason, item.example)
        merged[key] = max(merged.get(key, 0), item.count)
    return tuple(
        Rejection(cloud, code, reason, count, example)
        for (cloud, code, reason, example), count in merged.items()
    )
