"""Plans of small random instances cost exactly what trying everything finds: one task, chains, graphs, fleets.

The reference knows offers and arithmetic only; it shares no code with the planner. The slow tier tries 10,000 instances.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skyloom_common.contracts.dag import DagEdge, DagPlanRequest, DagTask
from skyloom_common.contracts.fleet import FleetPlanRequest, FleetTask, Reservation
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
    per_usd, per_hour = {"cost": (1.0, 0.0), "time": (1e-6, 1.0), "weighted": (1.0, 2.0)}[objective]

    def value(choice: Sequence[Offer]) -> float:
        usd, hours = _cost(choice, tasks, edges, tariffs), _hours(choice, tasks, edges)
        return per_usd * usd + per_hour * hours

    best = min(map(value, product(*good)))
    chosen = {item.task: item.candidate.offer for item in answer.placements}
    assert value([chosen[task.name] for task in tasks]) == pytest.approx(best, rel=1e-6, abs=1e-6)
    assert answer.proof is not None and answer.proof.gap < 1e-5
    assert answer.proof.value == pytest.approx(best, rel=1e-6, abs=1e-6)
    assert answer.usd == pytest.approx(_cost([chosen[task.name] for task in tasks], tasks, edges, tariffs))


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


def fleet(r: Random) -> None:
    offers = world(r)
    tasks = tuple(
        FleetTask(f"t{n}", TaskSpec(resources=r.choice(ASKED)), r.randint(1, 2), estimate(r))
        for n in range(r.randint(1, 3))
    )
    if any(t.task.resources.accelerators for t in tasks) and not any(o.accelerator == "A100" for o in offers):
        return
    quotas = [
        QuotaPool(f"q{cloud}", r.randint(0, 3), cloud=cloud) for cloud in ("red", "blue") if r.random() < 0.7
    ]
    quotas += [QuotaPool("cpus", r.randint(1, 40), "vcpus", region=r.choice(PLACES)[1])]
    held = r.choice(offers) if offers else None
    reserved = (
        (
            Reservation(
                "held", held.cloud, held.region, held.instance_type, r.randint(1, 2), price_per_hour=0.05
            ),
        )
        if held and r.random() < 0.5
        else ()
    )
    budget = r.choice([None, None, r.randint(1, 40) / 2])
    request = FleetPlanRequest(
        tasks, tuple(quotas), reserved, max_usd=budget, max_gap=0.0, time_limit_seconds=20
    )
    answer = plan_fleet(request, snapshot_of(offers))
    left, cost = _best_fleet(offers, tasks, quotas, reserved, budget)
    assert sum(item.count for item in answer.unplaced) == left
    assert answer.usd == pytest.approx(cost, abs=1e-5)
    assert answer.proof is not None and answer.proof.gap < 1e-4


def _best_fleet(
    offers: Sequence[Offer],
    tasks: Sequence[FleetTask],
    quotas: Sequence[QuotaPool],
    reserved: Sequence[Reservation],
    budget: float | None,
) -> tuple[int, float]:
    """Fewest left over, then least cost, over every choice of every copy."""
    copies = [task for task in tasks for _ in range(task.count)]
    options: list[list[tuple[Offer, bool] | None]] = []
    for task in copies:
        own: list[tuple[Offer, bool] | None] = [None]
        for item in offers:
            if fits(task.task.resources, item):
                own.append((item, False))
                if any(
                    (x.cloud, x.region, x.instance_type) == (item.cloud, item.region, item.instance_type)
                    for x in reserved
                ):
                    own.append((item, True))
        options.append(own)
    if len(copies) > 4:
        options = [_few(own) for own in options]
    best = (len(copies), 0.0)
    for choice in product(*options):
        picked = [(task, pick) for task, pick in zip(copies, choice, strict=True) if pick]
        cost = sum(
            (0.05 if held else item.price_per_hour or 0) * hours_on(t.run, item) for t, (item, held) in picked
        )
        found = (len(copies) - len(picked), cost)
        if (
            found < best
            and _within([pick for _, pick in picked], quotas, reserved)
            and cost <= (budget or 1e9) + 1e-9
        ):
            best = found
    return best


def _few(own: list[tuple[Offer, bool] | None]) -> list[tuple[Offer, bool] | None]:
    """Of offers in one place with equal size only the cheapest can matter: keeps the product small."""
    cheapest: dict[object, tuple[Offer, bool]] = {}
    for pick in own:
        if pick is not None:
            key = (pick[0].cloud, pick[0].region, pick[0].vcpus, pick[0].accelerator, pick[1])
            if key not in cheapest or (pick[0].price_per_hour or 0) < (cheapest[key][0].price_per_hour or 0):
                cheapest[key] = pick
    return [None, *cheapest.values()]


def _within(
    picks: Sequence[tuple[Offer, bool]], quotas: Sequence[QuotaPool], reserved: Sequence[Reservation]
) -> bool:
    for pool in quotas:
        inside = [o for o, _ in picks if pool.cloud in ("", o.cloud) and pool.region in ("", o.region)]
        used = sum((o.vcpus or 0) for o in inside) if pool.unit == "vcpus" else len(inside)
        if used > pool.limit:
            return False
    return all(sum(held for _, held in picks) <= item.nodes for item in reserved)


CASES: dict[str, Callable[[Random], None]] = {
    "one task": one_task,
    "chain": lambda r: graph(r, True, ("cost", "time", "weighted")),
    "graph": lambda r: graph(r, False, ("cost", "cost", "time", "weighted")),
    "fleet": fleet,
}
quick = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
full = settings(max_examples=2500, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("case", CASES)
def test_nothing_better_exists(case: str) -> None:
    quick(given(st.randoms(use_true_random=False))(CASES[case]))()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", CASES)
def test_nothing_better_exists_in_ten_thousand_instances(case: str) -> None:
    full(given(st.randoms(use_true_random=False))(CASES[case]))()
