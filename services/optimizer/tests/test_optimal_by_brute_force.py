"""Plans of small random instances cost exactly what trying everything finds: one task, chains, graphs, fleets.

The reference knows offers and arithmetic only; it shares no code with the planner. BRUTE_FORCE_INSTANCES=10000 makes the slow tier
try that many.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations_with_replacement, product
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skyloom_common.contracts.dag import DagEdge, DagPlanRequest, DagTask
from skyloom_common.contracts.fleet import FleetPlanRequest, FleetTask, Reservation, Spread
from skyloom_common.contracts.plan import Offer, PlanRequest, QuotaPool, RunEstimate
from skyloom_common.contracts.task.model import ResourcesSpec, TaskSpec
from skyloom_optimizer.dagplan import plan_dag
from skyloom_optimizer.egress import EgressTariffs
from skyloom_optimizer.fleetplan import plan_fleet
from skyloom_optimizer.market import Market
from skyloom_optimizer.plan import plan
from skyloom_optimizer.snapshot import snapshot_of
from skyloom_optimizer.testing import at_least, gpu, offer

PLACES = (("red", "r1"), ("red", "r2"), ("blue", "east"), ("blue", "west"), ("grey", "g"))
ASKED = (
    ResourcesSpec(cpus=at_least(1)),
    ResourcesSpec(cpus=at_least(8)),
    ResourcesSpec(accelerators=(gpu("A100"),)),
    ResourcesSpec(accelerators=(gpu("A100"), gpu("T4"))),
)
WAIT_HOURS = 120 / 3600


def fits(wanted: ResourcesSpec, item: Offer) -> bool:
    if wanted.accelerators:
        return item.accelerator in {choice.name for choice in wanted.accelerators}
    return item.accelerator is None and (item.vcpus or 0) >= (wanted.cpus.value if wanted.cpus else 0)


def world(r: Random) -> list[Offer]:
    kinds = [("s", 4.0, None), ("m", 8.0, None), ("a", 8.0, "A100"), ("t", 8.0, "T4")]
    found = []
    for cloud, region in r.sample(PLACES, r.randint(2, 5)):
        for name, vcpus, device in kinds:
            if r.random() < 0.6:
                count = {"accelerator": device, "accelerator_count": 1.0} if device else {}
                found.append(
                    offer(cloud, f"{name}-{cloud}", region, r.randint(1, 30) / 10, vcpus=vcpus, **count)
                )
    return found


def hours_on(run: RunEstimate, item: Offer) -> float:
    return run.hours_on.get(item.accelerator or "", run.hours or 1.0)


def estimate(r: Random) -> RunEstimate:
    by_device = {"A100": r.randint(1, 8) / 2, "T4": r.randint(1, 8) / 2} if r.random() < 0.5 else {}
    return RunEstimate(hours=r.randint(1, 12) / 2, hours_on=by_device)


# --- one task


def one_task(r: Random) -> None:
    offers, run, nodes = world(r), estimate(r), r.randint(1, 3)
    wanted, objective = r.choice(ASKED), r.choice(["cost", "time"])
    good = [item for item in offers if fits(wanted, item)]
    if wanted.accelerators and not any(item.accelerator == "A100" for item in offers):
        return
    request = PlanRequest(TaskSpec(resources=wanted, num_nodes=nodes), run=run, objective=objective)
    answer = plan(request, snapshot_of(offers))
    assert bool(answer.candidates) == bool(good)
    if not good:
        return

    def value(item: Offer) -> float:
        hours = hours_on(run, item)
        return hours if objective == "time" else (item.price_per_hour or 0) * nodes * hours

    assert value(answer.candidates[0].offer) == pytest.approx(min(map(value, good)))


# --- chains and graphs


class Tariffs:
    """Dollars for each GiB: leaving a cloud, and between two regions of one."""

    def __init__(self, r: Random) -> None:
        self.out = {cloud: r.randint(0, 12) / 100 for cloud in ("red", "blue", "grey")}
        self.inside = {cloud: r.randint(0, 4) / 100 for cloud in ("red", "blue")}

    def market(self) -> Market:
        tiers = {(cloud, "default", "internet"): ((0.0, price),) for cloud, price in self.out.items()}
        tiers |= {(cloud, "default", "other-region"): ((0.0, price),) for cloud, price in self.inside.items()}
        return Market(egress=EgressTariffs(tiers))

    def usd(self, source: Offer, target: Offer, gib: float) -> float:
        if (source.cloud, source.region) == (target.cloud, target.region):
            return 0.0
        if source.cloud == target.cloud and source.cloud in self.inside:
            return gib * self.inside[source.cloud]
        return gib * self.out[source.cloud]


def graph(r: Random, chain: bool, objectives: Sequence[str]) -> None:
    offers, tariffs, size = world(r), Tariffs(r), r.randint(1, 4)
    tasks = tuple(DagTask(f"t{n}", TaskSpec(resources=r.choice(ASKED)), estimate(r)) for n in range(size))
    pairs = [(a, b) for b in range(size) for a in range(b) if (b == a + 1 if chain else r.random() < 0.6)]
    edges = tuple(DagEdge(f"t{a}", f"t{b}", float(r.choice([0, 1, 10, 100, 500]))) for a, b in pairs)
    good = [[item for item in offers if fits(task.task.resources, item)] for task in tasks]
    if any(task.task.resources.accelerators and not _sold(task, offers) for task in tasks):
        return
    objective = r.choice(objectives)
    request = DagPlanRequest(tasks, edges, objective=objective, usd_per_hour=2.0, gbits_per_second=0.5)
    answer = plan_dag(request, snapshot_of(offers), market=tariffs.market())
    assert bool(answer.placements) == all(good)
    if not all(good):
        assert answer.hints
        return
    chosen = {item.task: item.candidate.offer for item in answer.placements}
    mine = [chosen[task.name] for task in tasks]
    every = [(_cost(c, tasks, edges, tariffs), _hours(c, tasks, edges)) for c in product(*good)]
    weights = {"cost": (1.0, 0.0), "time": (1e-6, 1.0), "weighted": (1.0, 2.0), "both": (1.0, 0.0)}[objective]
    if objective == "both":
        cheap, fast = answer.points
        assert cheap.usd == pytest.approx(min(usd for usd, _ in every))
        assert _weighed(fast.usd, fast.hours, (1e-6, 1.0)) == pytest.approx(
            min(_weighed(*pair, (1e-6, 1.0)) for pair in every), rel=1e-6
        )
        saved, dearer = cheap.hours - fast.hours, fast.usd - cheap.usd
        if saved > 1e-9:
            weights = (1.0, dearer / saved) if dearer / saved > 1e-9 else (1e-6, 1.0)
    best = min(_weighed(*pair, weights) for pair in every)
    value = _weighed(_cost(mine, tasks, edges, tariffs), _hours(mine, tasks, edges), weights)
    assert value == pytest.approx(best, rel=1e-6, abs=1e-6)
    assert answer.proof is not None and answer.proof.gap < 1e-6
    assert answer.proof.value == pytest.approx(best, rel=1e-6, abs=1e-6)
    assert answer.usd == pytest.approx(_cost(mine, tasks, edges, tariffs))


def _weighed(usd: float, hours: float, weights: tuple[float, float]) -> float:
    return weights[0] * usd + weights[1] * hours


def _sold(task: DagTask, offers: Sequence[Offer]) -> bool:
    return any(
        item.accelerator == choice.name for choice in task.task.resources.accelerators for item in offers
    )


def _cost(
    choice: Sequence[Offer], tasks: Sequence[DagTask], edges: Sequence[DagEdge], tariffs: Tariffs
) -> float:
    at = dict(zip((task.name for task in tasks), choice, strict=True))
    total = sum(
        (item.price_per_hour or 0) * hours_on(t.run, item) for t, item in zip(tasks, choice, strict=True)
    )
    return total + sum(tariffs.usd(at[edge.source], at[edge.target], edge.gib) for edge in edges)


def _hours(choice: Sequence[Offer], tasks: Sequence[DagTask], edges: Sequence[DagEdge]) -> float:
    at = dict(zip((task.name for task in tasks), choice, strict=True))
    end: dict[str, float] = {}
    for task in tasks:
        ready = 0.0
        for edge in edges:
            if edge.target == task.name:
                a, b = at[edge.source], at[edge.target]
                moved = 0.0 if (a.cloud, a.region) == (b.cloud, b.region) else edge.gib * 2**33 / 0.5e9 / 3600
                ready = max(ready, end[edge.source] + moved)
        end[task.name] = ready + hours_on(task.run, at[task.name]) + WAIT_HOURS
    return max(end.values())


# --- fleets


PAID = 0.05
Pick = tuple[Offer, bool]
"""An offer, and whether its reservation is used."""


def fleet(r: Random) -> None:
    """Quotas, reservations, a cluster, budgets, spread, priorities: each in some of the instances."""
    offers, own = world(r), [OWN] if r.random() < 0.3 else []
    tasks = tuple(_fleet_task(r, number) for number in range(r.randint(1, 3)))
    if any(t.task.resources.accelerators for t in tasks) and not any(o.accelerator == "A100" for o in offers):
        return
    quotas = [
        QuotaPool(f"q{cloud}", r.randint(0, 3), cloud=cloud) for cloud in ("red", "blue") if r.random() < 0.7
    ]
    quotas += [QuotaPool("cpus", r.randint(1, 40), "vcpus", region=r.choice(PLACES)[1])]
    quotas += [QuotaPool("free", r.randint(0, 20), "vcpus", cloud="kubernetes")] if own else []
    held = r.choice(offers) if offers and r.random() < 0.5 else None
    reserved = () if held is None else (_reservation(held, r.randint(1, 2)),)
    request = FleetPlanRequest(
        tasks,
        tuple(quotas),
        reserved,
        max_usd=r.choice([None, None, r.randint(1, 40) / 2]),
        max_usd_per_hour=r.choice([None, None, r.randint(1, 16) / 2]),
        extra_offers=tuple(own),
        max_gap=0.0,
        time_limit_seconds=20,
    )
    answer = plan_fleet(request, snapshot_of(offers))
    left, cost = _best_fleet([*offers, *own], request)
    mine = Counter({item.task: item.count for item in answer.unplaced})
    assert tuple(sum(mine[t.name] for t in tasks if t.priority == p) for p in (1, 0)) == left
    assert answer.usd == pytest.approx(cost, abs=1e-5)
    assert answer.proof is not None and answer.proof.gap < 1e-4
    assert all(item.count == item.bound for item in answer.unplaced_proof)


OWN = Offer("kubernetes", "node", "ctx", vcpus=16.0, memory_gib=64.0, price_per_hour=0.25)


def _fleet_task(r: Random, number: int) -> FleetTask:
    count, spread = r.randint(1, 3), None
    if r.random() < 0.3:
        spread = Spread(r.choice(["cloud", "region"]), r.choice([0.4, 0.7, 1.0]), r.randint(1, count))
    task = TaskSpec(resources=r.choice(ASKED))
    return FleetTask(f"t{number}", task, count, estimate(r), spread, r.choice([0, 0, 1]))


def _reservation(held: Offer, nodes: int) -> Reservation:
    return Reservation("held", held.cloud, held.region, held.instance_type, nodes, price_per_hour=PAID)


def _best_fleet(offers: Sequence[Offer], request: FleetPlanRequest) -> tuple[tuple[int, int], float]:
    """Fewest left over of the higher priority, then of the lower, then least cost: over every choice."""
    best = ((99, 99), 0.0)
    for picks in product(*(_ways(task, offers, request) for task in request.tasks)):
        over = [task.count - len(own) for task, own in zip(request.tasks, picks, strict=True)]
        pairs = list(zip(request.tasks, over, strict=True))
        left = (sum(n for t, n in pairs if t.priority == 1), sum(n for t, n in pairs if t.priority == 0))
        cost = sum(
            _price(pick) * _fleet_hours(task, pick[0])
            for task, own in zip(request.tasks, picks, strict=True)
            for pick in own
        )
        placed = [(task, pick) for task, own in zip(request.tasks, picks, strict=True) for pick in own]
        if (left, cost) < best and _within(placed, cost, request):
            best = (left, cost)
    return best


def _price(pick: Pick) -> float:
    return PAID if pick[1] else pick[0].price_per_hour or 0


def _fleet_hours(task: FleetTask, item: Offer) -> float:
    return hours_on(task.run, item)


def _ways(task: FleetTask, offers: Sequence[Offer], request: FleetPlanRequest) -> Iterator[tuple[Pick, ...]]:
    """Every choice for the copies of a task, each of any number of copies, that keeps its spread."""
    options: list[Pick | None] = [None]
    for item in offers:
        if fits(task.task.resources, item) and (item is not OWN or not task.task.resources.accelerators):
            options.append((item, False))
            held = [(x.cloud, x.region, x.instance_type) for x in request.reservations]
            options += [(item, True)] if (item.cloud, item.region, item.instance_type) in held else []
    if not task.spread:
        options = [None, *_few([pick for pick in options if pick])]
    for choice in combinations_with_replacement(options, task.count):
        own = tuple(pick for pick in choice if pick)
        if _spread_holds(task, own):
            yield own


def _few(options: Sequence[Pick]) -> list[Pick]:
    """Of offers in one place with equal size only the cheapest can matter: keeps the product small."""
    cheapest: dict[object, Pick] = {}
    for pick in options:
        key = (pick[0].cloud, pick[0].region, pick[0].vcpus, pick[0].accelerator, pick[1])
        if key not in cheapest or _price(pick) < _price(cheapest[key]):
            cheapest[key] = pick
    return list(cheapest.values())


def _spread_holds(task: FleetTask, own: Sequence[Pick]) -> bool:
    spread = task.spread
    if spread is None:
        return True
    places = Counter((o.cloud, o.region if spread.by == "region" else "") for o, _ in own)
    most = max(1, math.floor(spread.max_share * task.count + 1e-9))
    enough = len(places) + task.count - len(own) >= spread.min_places
    return enough and max(places.values(), default=0) <= most


def _within(placed: Sequence[tuple[FleetTask, Pick]], cost: float, request: FleetPlanRequest) -> bool:
    for pool in request.quotas:
        inside = [
            (t, o) for t, (o, _) in placed if pool.cloud in ("", o.cloud) and pool.region in ("", o.region)
        ]
        if sum(_vcpus(t, o) if pool.unit == "vcpus" else 1 for t, o in inside) > pool.limit:
            return False
    hourly = sum(_price(pick) for _, pick in placed)
    return (
        all(sum(held for _, (_, held) in placed) <= item.nodes for item in request.reservations)
        and cost <= (request.max_usd or 1e9) + 1e-9
        and hourly <= (request.max_usd_per_hour or 1e9) + 1e-9
    )


def _vcpus(task: FleetTask, item: Offer) -> float:
    """Of an own machine a task takes what it asks for."""
    wanted = task.task.resources.cpus
    return wanted.value if item is OWN and wanted else item.vcpus or 0.0


CASES: dict[str, Callable[[Random], None]] = {
    "one task": one_task,
    "chain": lambda r: graph(r, True, ("cost", "time", "weighted", "both")),
    "graph": lambda r: graph(r, False, ("cost", "time", "weighted", "both")),
    "fleet": fleet,
}
INSTANCES = int(os.environ.get("BRUTE_FORCE_INSTANCES", "800"))
QUICK = {"fleet": 8}


def tried(case: str, times: int) -> None:
    """Seeds rather than choices of hypothesis': every instance is a whole one."""
    limits = settings(max_examples=times, deadline=None, suppress_health_check=list(HealthCheck))
    limits(given(st.integers(0, 2**32 - 1))(lambda seed: CASES[case](Random(seed))))()


@pytest.mark.parametrize("case", CASES)
def test_nothing_better_exists(case: str) -> None:
    tried(case, QUICK.get(case, 40))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("case", CASES)
def test_nothing_better_exists_in_many_instances(case: str) -> None:
    tried(case, -(-INSTANCES // len(CASES)))
