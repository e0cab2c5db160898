"""The decision for one task: a request and a snapshot in, ordered candidates and reasons out.

Pure: no clock, no network, no store. Ordering is by turn (the user's own order), known price before unknown, what it is expected to
cost until it is done (or to take), then names, so that equal input gives an equal plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from skyloom_common.contracts.plan import Candidate, Offer, Plan, PlanRequest, Proof, Rejection
from skyloom_common.core.errors import InvalidRequest
from skyloom_common.core.text import did_you_mean
from skyloom_optimizer.conflicts import conflicts_of
from skyloom_optimizer.expected import check_run
from skyloom_optimizer.explain import Standing, explain_empty, place_reasons
from skyloom_optimizer.feasible import Feasible, check_blocked, rows_of, split_feasible
from skyloom_optimizer.gate import Gated, gate_of
from skyloom_optimizer.market import Market
from skyloom_optimizer.memory import RECENT_FAILURE, AvailabilityMemory
from skyloom_optimizer.needs import Need, check_needs, needs_of
from skyloom_optimizer.snapshot import Floats, Ints, OfferSnapshot, snapshot_of
from skyloom_optimizer.weigh import WAIT_SHARE, Weigher, Weights, by_zone, place_of_row

OBJECTIVES = ("cost", "time", "both")
NOTHING_KNOWN = AvailabilityMemory()
NO_MARKET = Market()


class _Entry(NamedTuple):
    """A ranked possibility before it becomes a Candidate."""

    need: Need
    world: OfferSnapshot
    row: int
    price: float
    usd: float
    hours: float
    odds: float
    cloud: str
    penalty: float
    weights: Weights
    position: int
    """Its place in `weights`."""


def plan(
    request: PlanRequest,
    snapshot: OfferSnapshot,
    memory: AvailabilityMemory = NOTHING_KNOWN,
    market: Market = NO_MARKET,
) -> Plan:
    """Ordered candidates for one task. Raises InvalidRequest for what can never work.

    An empty answer explains itself: its first hint is the sentence for the user.
    """
    _check(request)
    worlds = worlds_of(request, snapshot)
    needs, problems = check_needs(needs_of(request.task.resources, worlds), worlds)
    gate = gate_of(request, request.task.num_nodes)
    weigher = Weigher(request.run, request.task.num_nodes, memory, market, request.disk_usd_per_gib_month)
    entries: list[_Entry] = []
    rejected: list[Rejection] = []
    for need in needs:
        for world in worlds:
            feasible = split_feasible(need, world, gate)
            value = _machine_value(request.objective, need, world, feasible, weigher)
            chosen = choose_machines(world, feasible, value)
            entries += _expand(need, world, feasible, chosen, weigher)
            rejected += [*feasible.rejected, *_dearer(world, feasible, chosen)]
    ordered = _not_first_again(_in_order(entries, request.objective))
    selected = _select(ordered, request.max_candidates)
    candidates = _candidates(selected, request)
    hints = tuple(problems)
    conflicts = () if candidates else conflicts_of(needs, worlds, gate)
    if not candidates:
        hints = (*explain_empty(needs, worlds, gate, conflicts), *hints)
    return Plan(
        candidates=candidates,
        rejected=merge_rejections(rejected),
        considered=sum(len(world) for world in worlds),
        objective=request.objective,
        total_cost_per_hour=candidates[0].cost_per_hour if candidates else None,
        hints=hints,
        catalog_version=snapshot.version,
        details={"feasible": len(entries)},
        conflicts=conflicts,
        proof=_proof(selected, request.objective),
        breakdown=selected[0].weights.breakdown(selected[0].position) if selected else None,
    )


def _check(request: PlanRequest) -> None:
    check_objective(request.objective, OBJECTIVES)
    check_run(request.run)
    if request.max_candidates < 1:
        raise InvalidRequest(f"max_candidates: {request.max_candidates} is not at least 1")
    if request.task.num_nodes < 1:
        raise InvalidRequest(f"num_nodes: {request.task.num_nodes} is not at least 1")
    check_blocked(request.blocked)


def check_objective(objective: str, known: Sequence[str]) -> None:
    if objective not in known:
        guess = did_you_mean(objective, known)
        raise InvalidRequest(f"objective: {objective!r} is not one of {', '.join(known)}{guess}")


def worlds_of(request: Gated, snapshot: OfferSnapshot) -> list[OfferSnapshot]:
    """Own machines are shared out; live offers of a catalog cloud are bought whole like the catalog's."""
    known = set(snapshot.clouds)
    own = [offer for offer in request.extra_offers if offer.cloud not in known]
    live = [offer for offer in request.extra_offers if offer.cloud in known]
    groups: list[tuple[list[Offer], bool]] = [(own, True), (live, False)]
    extra = [
        snapshot_of(offers, accelerators=snapshot.accelerators, divisible=divisible)
        for offers, divisible in groups
        if offers
    ]
    return [*extra, snapshot]


def _machine_value(
    objective: str, need: Need, world: OfferSnapshot, feasible: Feasible, weigher: Weigher
) -> Floats:
    """What the best offer of each machine is worth by the objective; infinite without a price."""
    cost = weigher.lowest(need, world, feasible.lowest, feasible.allowed)
    if objective == "cost":
        return cost
    hours = weigher.machine_hours(world)
    # Time first: dollars decide only between machines that take equally long.
    return cost * hours if objective == "both" else np.where(np.isfinite(cost), hours * 1e6 + cost, np.inf)


def choose_machines(world: OfferSnapshot, feasible: Feasible, value: Floats) -> Ints:
    """The best machine of each cloud, the smallest where no price is known; of own machines all."""
    if world.divisible:
        machines = np.flatnonzero(feasible.machines)
        return machines[np.argsort(world.size[machines], kind="stable")]
    cheapest = world.least_of_clouds(value, feasible.machines & np.isfinite(value))
    smallest = world.least_of_clouds(world.size, feasible.machines)
    chosen = np.where(cheapest >= 0, cheapest, smallest)
    return chosen[chosen >= 0]


def _expand(
    need: Need, world: OfferSnapshot, feasible: Feasible, chosen: Ints, weigher: Weigher
) -> list[_Entry]:
    """Every place of the chosen machines: by zone where zones differ, else by region."""
    prices = world.prices(need.use_spot).price
    found: list[Ints] = []
    for machine in chosen.tolist():
        rows = rows_of(world, machine, need.use_spot, feasible.allowed)
        rows = _affordable(rows, prices, need.spec.max_hourly_cost)
        cloud = world.clouds[int(world.machines.cloud[machine])]
        if need.spec.zone or not by_zone(need, world, cloud):
            rows = cheapest_by_region(world, rows, prices)
        found.append(rows)
    rows = np.concatenate(found) if found else np.zeros(0, dtype=np.int64)
    entries = _entries(need, world, rows, weigher) if len(rows) else []
    return _one_per_place(entries) if world.divisible else entries


def _entries(need: Need, world: OfferSnapshot, rows: Ints, weigher: Weigher) -> list[_Entry]:
    weights, memory = weigher.weigh(need, world, rows), weigher.memory
    columns = (rows, world.prices(need.use_spot).price[rows], weights.usd, weights.hours, weights.odds)
    entries: list[_Entry] = []
    for index, (row, price, usd, hours, odds) in enumerate(
        zip(*(column.tolist() for column in columns), strict=True)
    ):
        cloud = world.cloud_of(row)
        known = cloud in memory.clouds
        penalty = memory.penalty(*place_of_row(need, world, row)) if known else 0.0
        entries.append(_Entry(need, world, row, price, usd, hours, odds, cloud, penalty, weights, index))
    return entries


def _one_per_place(entries: Sequence[_Entry]) -> list[_Entry]:
    """Own machines offer many cuts of a place: the cheapest counts, at equal price the smallest (first)."""
    best: dict[int, _Entry] = {}
    for entry in entries:
        place = int(entry.world.place[entry.row])
        if place not in best or _priced(entry) < _priced(best[place]):
            best[place] = entry
    return list(best.values())


def _priced(entry: _Entry) -> tuple[bool, float]:
    return entry.price != entry.price, 0.0 if entry.usd != entry.usd else entry.usd


def _affordable(rows: Ints, prices: Floats, cap: float | None) -> Ints:
    return rows if cap is None else rows[prices[rows] <= cap + 1e-6]


def cheapest_by_region(world: OfferSnapshot, rows: Ints, prices: Floats) -> Ints:
    """One row for each region: the one with the lowest known price."""
    if len(rows) < 2:
        return rows
    ordered = rows[np.argsort(prices[rows], kind="stable")]
    _, first = np.unique(world.places.region_number[world.place[ordered]], return_index=True)
    return ordered[np.sort(first)]


def _in_order(entries: Sequence[_Entry], objective: str) -> list[_Entry]:
    """By what is expected. Attempts in a row cost least when ordered by cost + (cost of a failed attempt) / chance."""
    known = [_score(entry, objective) for entry in entries if entry.price == entry.price]
    wait = WAIT_SHARE * min(known, default=0.0)

    def key(entry: _Entry) -> tuple[int, bool, float, float, str, int]:
        unknown = entry.price != entry.price
        second = 0.0 if unknown else (entry.usd if objective != "cost" else entry.hours)
        value = _score(entry, objective) + wait * entry.odds
        return entry.need.turn, unknown, value, second, entry.cloud, entry.row

    return sorted(entries, key=key)


def _score(entry: _Entry, objective: str) -> float:
    usd = 0.0 if entry.usd != entry.usd else entry.usd
    if objective == "cost":
        return usd
    return entry.hours if objective == "time" else usd * entry.hours


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
    seen: set[tuple[int, int, bool, str | None]] = set()
    leaders: set[tuple[int, str]] = set()
    first: list[int] = []
    rest: list[int] = []
    for position, entry in enumerate(ordered):
        place = (id(entry.world), entry.row, entry.need.use_spot, entry.need.spec.zone)
        if place in seen:
            continue
        seen.add(place)
        group = (entry.need.alternative, entry.cloud)
        (rest if group in leaders else first).append(position)
        leaders.add(group)
    return [ordered[position] for position in sorted([*first, *rest][:most])]


def _candidates(entries: Sequence[_Entry], request: PlanRequest) -> tuple[Candidate, ...]:
    found: list[Candidate] = []
    standings = [_standing(entry, entries) for entry in entries]
    for entry, standing in zip(entries, standings, strict=True):
        reasons = place_reasons(standing, standings[0], request.objective)
        price = standing.offer.price_per_hour
        found.append(
            Candidate(
                offer=standing.offer,
                num_nodes=request.task.num_nodes,
                cost_per_hour=None if price is None else price * request.task.num_nodes,
                alternative=entry.need.alternative,
                reason="; ".join(reason.text for reason in reasons),
                reasons=reasons,
                expected=standing.expected,
            )
        )
    return tuple(found)


def _standing(entry: _Entry, entries: Sequence[_Entry]) -> Standing:
    first = entries[0]
    passed = entry is first and any(
        other.need.turn == first.need.turn and other.usd < first.usd for other in entries
    )
    return Standing(
        offer=offer_of(entry.need, entry.world, entry.row),
        expected=entry.weights.expectation(entry.position),
        failed_recently=entry.penalty >= RECENT_FAILURE,
        later_turn=entry.need.turn > first.need.turn,
        passed_over=passed,
        known_odds=abs(entry.odds) > 1e-9,
    )


def offer_of(need: Need, world: OfferSnapshot, row: int) -> Offer:
    """Where zones do not differ the provider picks one; a zone asked for is passed on as it was written."""
    zone = need.spec.zone or (None if by_zone(need, world, world.cloud_of(row)) else "")
    return world.offer(row, need.use_spot, zone)


def _proof(entries: Sequence[_Entry], objective: str) -> Proof | None:
    """All offers were compared, so the answer is its own bound, unless the memory stepped in."""
    known = [_score(entry, objective) for entry in entries if entry.price == entry.price]
    if not known or not entries or entries[0].price != entries[0].price:
        return None
    turn = entries[0].need.turn
    same = [_score(e, objective) for e in entries if e.price == e.price and e.need.turn == turn]
    value, bound = _score(entries[0], objective), min(same)
    return Proof(value, bound, (value - bound) / value if value > 0 else 0.0, "all offers compared")


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
    name, price = world.machines.name[near], float(feasible.lowest[near])
    if not np.isfinite(price):
        return Rejection(world.clouds[cloud], "price", "no price is known", count)
    chosen = float(feasible.lowest[machine])
    best = f"{world.machines.name[machine]} at ${chosen:.2f}"
    word = "dearer than" if price >= chosen else "expected to cost more in all than"
    text = f"{word} {best}; the next is {name} at ${price:.2f}"
    return Rejection(world.clouds[cloud], "price", text, count, name, {"price": price, "chosen": chosen})


def merge_rejections(rejected: Sequence[Rejection]) -> tuple[Rejection, ...]:
    """Equal reasons of several alternatives become one, keeping the order."""
    merged: dict[tuple[str, str, str, str | None], Rejection] = {}
    for item in rejected:
        key = (item.cloud, item.code, item.reason, item.example)
        if key not in merged or merged[key].count < item.count:
            merged[key] = item
    return tuple(merged.values())
