"""Graphs and fleets: what a plan says, over small worlds whose answers are known by heart, and over the bundled catalog."""

from __future__ import annotations

import builtins
from typing import Any

import pytest

from skyloom_common.contracts.dag import Bucket, DagEdge, DagPlanRequest, DagTask
from skyloom_common.contracts.fleet import FleetPlanRequest, FleetTask, Reservation, Spread
from skyloom_common.contracts.plan import LaunchOutcome, Offer, QuotaPool, RunEstimate
from skyloom_common.contracts.task.model import ResourcesSpec, TaskSpec
from skyloom_common.core import wire
from skyloom_common.core.errors import InvalidRequest, NotSupportedYet
from skyloom_optimizer.catalog.load import Catalog
from skyloom_optimizer.dagplan import plan_dag
from skyloom_optimizer.egress import EgressTariffs, tier_cost
from skyloom_optimizer.fleetplan import plan_fleet
from skyloom_optimizer.market import Market
from skyloom_optimizer.memory import remember
from skyloom_optimizer.snapshot import snapshot_of
from skyloom_optimizer.testing import at_least, gpu, offer

WORLD = snapshot_of(
    [
        offer("red", "m", "r1", 1.00),
        offer("red", "m", "r2", 1.10),
        offer("blue", "b", "east", 0.80),
        offer("blue", "g", "east", 5.00, accelerator="A100", accelerator_count=1.0),
        offer("red", "ga", "r2", 4.00, accelerator="A100", accelerator_count=1.0),
    ]
)
TARIFFS = {
    ("red", "default", "internet"): ((0.0, 0.10),),
    ("red", "default", "other-region"): ((0.0, 0.02),),
    ("blue", "default", "internet"): ((0.0, 0.05),),
}
MARKET = Market(egress=EgressTariffs(TARIFFS))
CPU, GPU = ResourcesSpec(cpus=at_least(8)), ResourcesSpec(accelerators=(gpu("A100"),))


def dag(gib: float, **more: Any) -> DagPlanRequest:
    tasks = (
        DagTask("prepare", TaskSpec(resources=CPU), RunEstimate(hours=1)),
        DagTask("train", TaskSpec(resources=GPU), RunEstimate(hours=2)),
        DagTask("report", TaskSpec(resources=CPU), RunEstimate(hours=1)),
    )
    return DagPlanRequest(tasks, (DagEdge("prepare", "train", gib), DagEdge("train", "report", gib)), **more)


def where(request: DagPlanRequest) -> list[str]:
    answer = plan_dag(request, WORLD, market=MARKET)
    assert answer.proof is not None and answer.proof.optimal
    return [item.candidate.offer.region for item in answer.placements]


def test_little_data_goes_where_machines_are_cheap_and_much_data_stays() -> None:
    assert where(dag(0)) == ["east", "r2", "east"]
    assert where(dag(10)) == ["r2", "r2", "r2"]
    assert where(dag(3)) == ["east", "r2", "r1"]


def test_the_plan_accounts_for_every_dollar_and_hour() -> None:
    answer = plan_dag(dag(3), WORLD, market=MARKET)
    assert answer.breakdown is not None
    assert answer.breakdown.compute == pytest.approx(0.8 + 8 + 1.0)
    assert answer.breakdown.egress == pytest.approx(3 * 0.05 + 3 * 0.02)
    assert answer.usd == pytest.approx(answer.breakdown.total)
    assert [(item.source, item.target) for item in answer.transfers] == [
        ("prepare", "train"),
        ("train", "report"),
    ]
    ends = [item.end_hours for item in answer.placements]
    assert ends == sorted(ends) and answer.hours == ends[-1]
    assert answer.placements[0].reason == "the cheapest by itself"
    assert answer.placements[2].reason == "$0.20 more than on blue/east, to be near its data"


def test_time_and_the_compromise() -> None:
    slow = {"gbits_per_second": 0.01}
    cost, time, both = (
        plan_dag(dag(3, objective=o, **slow), WORLD, market=MARKET) for o in ("cost", "time", "both")
    )
    assert cost.hours is not None and time.hours is not None and both.hours is not None
    assert time.hours < cost.hours
    assert (time.usd or 0) > (cost.usd or 0)
    assert [point.objective for point in both.points] == ["cost", "time"]
    assert time.hours <= both.hours <= cost.hours


def test_buckets_attract_tasks() -> None:
    def place(region: str, gb: float) -> str:
        task = TaskSpec(resources=CPU, inputs={"s3://data": gb})
        request = DagPlanRequest((DagTask("read", task),), buckets=(Bucket("s3://data", "red", region),))
        return plan_dag(request, WORLD, market=MARKET).placements[0].candidate.offer.region

    assert place("r1", 1) == "east"
    assert place("r1", 100) == "r1"
    assert place("r2", 100) == "r2"


def test_a_bucket_nobody_knows_is_named() -> None:
    task = TaskSpec(resources=CPU, inputs={"ftp://data": 1.0})
    with pytest.raises(InvalidRequest, match="read: the place of 'ftp://data' is not known; name its cloud"):
        plan_dag(DagPlanRequest((DagTask("read", task),)), WORLD)


def test_a_task_without_a_place_says_why() -> None:
    request = DagPlanRequest(
        (
            DagTask("a", TaskSpec(resources=CPU)),
            DagTask("b", TaskSpec(resources=ResourcesSpec(accelerators=(gpu("A100", 3),)))),
        )
    )
    answer = plan_dag(request, WORLD)
    assert answer.placements == ()
    assert answer.hints == (
        "b: A100:3 does not exist on one node; largest is A100:1 on red/ga; use num_nodes: 3 with A100:1",
    )
    assert list(answer.rejected) == ["b"]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (DagPlanRequest(()), "tasks: none"),
        (DagPlanRequest((DagTask("a", TaskSpec()), DagTask("a", TaskSpec()))), "'a' comes twice"),
        (DagPlanRequest((DagTask("train", TaskSpec()),), (DagEdge("trian", "train"),)), "'trian' is not a task; did you mean 'train'"),
        (DagPlanRequest((DagTask("a", TaskSpec()), DagTask("b", TaskSpec())), (DagEdge("a", "b"), DagEdge("b", "a"))), "a circle among a, b"),
        (DagPlanRequest((DagTask("a", TaskSpec()),), objective="speed"), "objective: 'speed' is not one of cost, time, both, weighted"),
    ],
)  # fmt: skip
def test_graphs_that_are_none(request_: DagPlanRequest, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        plan_dag(request_, WORLD)


def test_tiers_are_marginal() -> None:
    tiers = ((0.0, 0.1), (100.0, 0.05))
    assert tier_cost(tiers, 50) == pytest.approx(5)
    assert tier_cost(tiers, 150) == pytest.approx(12.5)


def test_tariffs_of_the_catalog(catalog: Catalog) -> None:
    egress = catalog.market.egress

    def usd(source: tuple[str, str], target: tuple[str, str]) -> float:
        return tier_cost(egress.between(source, target), 100)

    assert usd(("aws", "us-east-1"), ("aws", "us-east-1")) == 0
    assert usd(("aws", "us-east-1"), ("aws", "us-east-2")) == pytest.approx(1)
    assert usd(("aws", "us-east-1"), ("aws", "eu-west-1")) == pytest.approx(2)
    assert usd(("gcp", "us-central1"), ("gcp", "us-east4")) == pytest.approx(2)
    assert usd(("gcp", "us-central1"), ("gcp", "europe-west1")) == pytest.approx(8)
    assert usd(("aws", "us-east-1"), ("gcp", "us-east4")) > 5
    assert usd(("lambda", "us-east-1"), ("aws", "us-east-1")) == 0


# --- fleets


def fleet(**more: Any) -> FleetPlanRequest:
    tasks = (
        FleetTask("train", TaskSpec(resources=GPU), 3, RunEstimate(hours=2)),
        FleetTask("eval", TaskSpec(resources=CPU), 4),
    )
    return FleetPlanRequest(tasks, **more)


def placed(request: FleetPlanRequest) -> dict[tuple[str, str], int]:
    answer = plan_fleet(request, WORLD)
    return {(group.task, group.candidate.offer.region): group.count for group in answer.groups}


def test_without_limits_everything_is_where_it_is_cheapest() -> None:
    assert placed(fleet()) == {("train", "r2"): 3, ("eval", "east"): 4}


def test_quotas_push_to_the_next_best() -> None:
    pools = (
        QuotaPool("red gpu", 1, "accelerators", cloud="red"),
        QuotaPool("east", 20, "vcpus", region="east"),
    )
    answer = plan_fleet(fleet(quotas=pools), WORLD)
    assert {(g.task, g.candidate.offer.region): g.count for g in answer.groups} == {
        ("train", "r2"): 1,
        ("train", "east"): 2,
        ("eval", "r1"): 4,
    }
    assert answer.proof is not None and answer.proof.gap <= 0.01
    assert {use.name: (use.used, use.limit) for use in answer.pools} == {"red gpu": (1, 1), "east": (16, 20)}
    assert answer.pools[0].price == pytest.approx(2.0, abs=0.5)


def test_what_does_not_fit_is_named_with_the_limit_that_is_full() -> None:
    pools = (QuotaPool("gpus", 2, "accelerators", accelerator="A100"),)
    answer = plan_fleet(fleet(quotas=pools), WORLD)
    assert [(item.task, item.count) for item in answer.unplaced] == [("train", 1)]
    assert answer.unplaced[0].reasons[0].text == "gpus is used up: 2 of 2"
    assert answer.hints == ("train: 1 could not be placed: gpus is used up: 2 of 2",)


def test_what_time_did_not_allow_to_prove_is_said() -> None:
    moments = iter(range(0, 1000, 5))
    pools = (QuotaPool("red gpu", 1, "accelerators", cloud="red"), QuotaPool("east", 1, "accelerators"))
    answer = plan_fleet(fleet(quotas=pools), WORLD, clock=lambda: float(next(moments)))
    (proof,) = answer.unplaced_proof
    assert (proof.count, proof.bound) == (2, 0)
    assert (
        "priority 0: whether 2 more fit could not be decided within 4.5 seconds: raise time_limit_seconds"
        in answer.hints
    )
    settled = plan_fleet(fleet(quotas=pools), WORLD)
    assert [(item.count, item.bound) for item in settled.unplaced_proof] == [(2, 2)]
    assert not any("time_limit_seconds" in hint for hint in settled.hints)


def test_a_graph_without_time_is_placed_all_the_same() -> None:
    moments = iter(range(0, 1000, 50))
    answer = plan_dag(dag(3, objective="time"), WORLD, market=MARKET, clock=lambda: float(next(moments)))
    assert len(answer.placements) == 3
    assert answer.proof is not None and 0 <= answer.proof.bound <= answer.proof.value


def test_priority_decides_who_stays_out() -> None:
    pools = (QuotaPool("nodes", 1),)
    tasks = (
        FleetTask("low", TaskSpec(resources=CPU)),
        FleetTask("high", TaskSpec(resources=CPU), priority=5),
    )
    answer = plan_fleet(FleetPlanRequest(tasks, pools), WORLD)
    assert [group.task for group in answer.groups] == ["high"]


def test_reservations_are_used_first() -> None:
    held = (Reservation("held", "blue", "east", "g", 2),)
    answer = plan_fleet(fleet(reservations=held), WORLD)
    groups = {(g.task, g.reservation): (g.candidate.offer.region, g.count) for g in answer.groups}
    assert groups["train", "held"] == ("east", 2)
    assert groups["train", ""] == ("r2", 1)


def test_a_budget_an_hour() -> None:
    assert plan_fleet(fleet(), WORLD).usd_per_hour == pytest.approx(15.2)
    answer = plan_fleet(fleet(max_usd_per_hour=12.0), WORLD)
    assert answer.usd_per_hour <= 12.0
    assert sum(item.count for item in answer.unplaced) == 1


def test_spread() -> None:
    tasks = (FleetTask("serve", TaskSpec(resources=CPU), 4, spread=Spread("region", 0.5)),)
    assert placed(FleetPlanRequest(tasks)) == {("serve", "east"): 2, ("serve", "r1"): 2}
    tasks = (FleetTask("serve", TaskSpec(resources=CPU), 4, spread=Spread("region", 1.0, 3)),)
    assert placed(FleetPlanRequest(tasks)) == {("serve", "east"): 2, ("serve", "r1"): 1, ("serve", "r2"): 1}
    tasks = (FleetTask("serve", TaskSpec(resources=CPU), 2, spread=Spread("region", 1.0, 3)),)
    with pytest.raises(InvalidRequest, match="3 places for 2 copies"):
        plan_fleet(FleetPlanRequest(tasks), WORLD)


def test_kubernetes_takes_what_it_has_free() -> None:
    nodes = (Offer("kubernetes", "node", "ctx", vcpus=32.0, memory_gib=128.0, price_per_hour=0.0),)
    free = (QuotaPool("ctx free", 16, "vcpus", cloud="kubernetes", region="ctx"),)
    answer = plan_fleet(fleet(extra_offers=nodes, quotas=free), WORLD)
    groups = {(g.task, g.candidate.offer.cloud): g.count for g in answer.groups}
    assert groups["eval", "kubernetes"] == 2
    assert groups["eval", "blue"] == 2


def test_a_place_that_just_failed_is_not_where_everything_goes() -> None:
    failed = [
        LaunchOutcome("blue", "east", "", "b", False, "insufficient_capacity", 1000.0 + n) for n in range(3)
    ]
    tasks = (FleetTask("eval", TaskSpec(resources=CPU), 4),)
    answer = plan_fleet(FleetPlanRequest(tasks), WORLD, remember(failed, 1010.0))
    assert [group.candidate.offer.region for group in answer.groups] == ["r1"]


def test_without_or_tools_there_is_one_clear_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("ortools"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    pools = (QuotaPool("red gpu", 1, "accelerators", cloud="red"),)
    with pytest.raises(NotSupportedYet, match="a fleet plan needs OR-Tools"):
        plan_fleet(fleet(quotas=pools), WORLD)
    assert plan_dag(dag(3), WORLD, market=MARKET).placements


@pytest.mark.parametrize("request_", [dag(1, objective="both"), fleet(max_usd=5.0)])
def test_requests_survive_the_wire(request_: Any) -> None:
    assert wire.loads(type(request_), wire.dumps(request_), strict=True) == request_
