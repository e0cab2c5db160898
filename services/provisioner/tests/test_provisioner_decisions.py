"""The pure modules: tables and properties."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyloom_common.contracts.plan import Offer
from skyloom_common.contracts.task.model import (
    AcceleratorSpec,
    AutostopSpec,
    Quantity,
    ResourcesSpec,
    WaitFor,
)
from skyloom_common.core.errors import (
    Conflict,
    CredentialsInvalid,
    InsufficientCapacity,
    ProviderInvalidRequest,
    QuotaExceeded,
    SkyloomError,
    Throttled,
)
from skyloom_provisioner.clusters.costs import cost_report
from skyloom_provisioner.decide.autostop import Idleness, decide_autostop
from skyloom_provisioner.decide.failover import is_blocked, judge, summarize
from skyloom_provisioner.decide.fit import misfits
from skyloom_provisioner.decide.health import NodeFinding, NodeHealth, judge_health
from skyloom_provisioner.decide.mode import launch_mode

OFFER = Offer(
    "aws",
    "p5",
    "us-east-1",
    "us-east-1a",
    96,
    1152,
    "H100",
    8,
    accelerator_memory_gib=80,
    price_per_hour=30.0,
)
OTHER_TYPE = Offer("aws", "g6", "us-east-1", "us-east-1a")
OTHER_ZONE = Offer("aws", "p5", "us-east-1", "us-east-1b")
OTHER_REGION = Offer("aws", "p5", "eu-west-1", "eu-west-1a")
OTHER_CLOUD = Offer("gcp", "a3", "us-central1", "us-central1-a")
ALL = (OFFER, OTHER_TYPE, OTHER_ZONE, OTHER_REGION, OTHER_CLOUD)


@pytest.mark.parametrize(
    ("error", "left"),
    [
        (InsufficientCapacity("x"), (OTHER_TYPE, OTHER_ZONE, OTHER_REGION, OTHER_CLOUD)),
        (InsufficientCapacity("x", details={"blocks": "region"}), (OTHER_TYPE, OTHER_REGION, OTHER_CLOUD)),
        (QuotaExceeded("x"), (OTHER_REGION, OTHER_CLOUD)),
        (CredentialsInvalid("x"), (OTHER_CLOUD,)),
    ],
)
def test_an_error_blocks_as_far_as_it_reaches(error: SkyloomError, left: tuple[Offer, ...]) -> None:
    verdict = judge(error, OFFER)
    assert verdict.blocked is not None and not verdict.stop
    assert tuple(offer for offer in ALL if not is_blocked(offer, (verdict.blocked,))) == left


def test_some_errors_stop_and_one_waits() -> None:
    assert judge(ProviderInvalidRequest("x"), OFFER).stop
    assert judge(Conflict("x"), OFFER).stop
    throttled = judge(Throttled("x"), OFFER)
    assert not throttled.stop and throttled.blocked is None


def test_nothing_is_blocked_by_nothing_and_all_by_an_empty_entry() -> None:
    assert not is_blocked(OFFER, ())
    assert is_blocked(OFFER, ({},))


def test_a_summary_names_the_first_attempts() -> None:
    attempts: list[dict[str, Any]] = [
        {"cloud": "aws", "region": f"r{number}", "provider_message": "none left"} for number in range(7)
    ]
    text = summarize(attempts, [])
    assert "all 7 attempts failed" in text and "aws/r0: none left" in text and "and 2 more" in text
    assert summarize([], ["aws: not enabled"]) == "no offer can run this task: aws: not enabled"


@pytest.mark.parametrize(
    ("resources", "nodes", "problems"),
    [
        (ResourcesSpec(), 1, 0),
        (ResourcesSpec(), 3, 1),
        (ResourcesSpec(accelerators=(AcceleratorSpec("H100", 4),)), 1, 0),
        (ResourcesSpec(accelerators=(AcceleratorSpec("h100", 8),)), 2, 0),
        (ResourcesSpec(accelerators=(AcceleratorSpec("A100", 1),)), 1, 1),
        (ResourcesSpec(accelerators=(AcceleratorSpec("A100"), AcceleratorSpec("H100"))), 1, 0),
        (ResourcesSpec(accelerators=(AcceleratorSpec(memory_gib=80, memory_at_least=True),)), 1, 0),
        (ResourcesSpec(cpus=Quantity(96), memory=Quantity(12, per_cpu=True)), 1, 0),
        (ResourcesSpec(cpus=Quantity(97), memory=Quantity(2000)), 1, 2),
        (ResourcesSpec(cloud="gcp"), 1, 1),
        (ResourcesSpec(cloud="AWS", region="us-east-1"), 1, 0),
        (ResourcesSpec(use_spot=True), 1, 1),
        (ResourcesSpec(any_of=(ResourcesSpec(cloud="gcp"), ResourcesSpec(cloud="aws"))), 1, 0),
        (ResourcesSpec(cloud="aws", region="us-west-2,us-east-1"), 1, 0),
        (ResourcesSpec(cloud="aws", region="us-*"), 1, 0),
        (ResourcesSpec(infra=("gcp", "aws/us-east-1")), 1, 0),
        (ResourcesSpec(infra=("gcp", "aws/us-west-2")), 1, 1),
        (ResourcesSpec(cloud="gcp", region="us-west-2,us-west-1"), 1, 1),
    ],
)
def test_fit(resources: ResourcesSpec, nodes: int, problems: int) -> None:
    assert len(misfits(resources, nodes, OFFER, 2)) == problems


def idle(**values: Any) -> Idleness:
    return Idleness(**{"since_set": 1e6, "since_up": 1e6, "jobs": 1e5, "jobs_and_ssh": 1e5, **values})


@pytest.mark.parametrize(
    ("spec", "idleness", "action"),
    [
        (None, idle(), None),
        (AutostopSpec(enabled=False), idle(), None),
        (AutostopSpec(idle_minutes=10), idle(), "stop"),
        (AutostopSpec(idle_minutes=10, down=True), idle(), "down"),
        (AutostopSpec(idle_minutes=10), idle(jobs_and_ssh=599), None),
        (AutostopSpec(idle_minutes=10), idle(jobs_and_ssh=0), None),
        (AutostopSpec(idle_minutes=10, wait_for=WaitFor.JOBS), idle(jobs_and_ssh=0), "stop"),
        (AutostopSpec(idle_minutes=10, wait_for=WaitFor.NONE), idle(jobs=0, jobs_and_ssh=0), "stop"),
        (AutostopSpec(idle_minutes=10, wait_for=WaitFor.NONE), idle(since_set=599), None),
        (AutostopSpec(idle_minutes=10), idle(since_set=10), None),
        (AutostopSpec(idle_minutes=10), idle(since_up=10), None),
        (AutostopSpec(idle_minutes=10), idle(jobs=None, jobs_and_ssh=None), None),
        (AutostopSpec(idle_minutes=10), idle(busy=True), None),
        (AutostopSpec(idle_minutes=0), idle(jobs_and_ssh=1), None),
        (AutostopSpec(idle_minutes=0), idle(jobs_and_ssh=6), "stop"),
        (AutostopSpec(idle_minutes=10, max_lifetime_minutes=60), idle(since_up=3601, jobs_and_ssh=0), "stop"),
        (
            AutostopSpec(idle_minutes=10, max_lifetime_minutes=60),
            idle(since_up=3601, jobs_and_ssh=None),
            "stop",
        ),
    ],
)
def test_autostop(spec: AutostopSpec | None, idleness: Idleness, action: str | None) -> None:
    assert decide_autostop(spec, idleness).action == action


SECONDS = st.floats(0, 1e7)


@given(
    st.builds(
        AutostopSpec,
        idle_minutes=st.integers(0, 10_000),
        down=st.booleans(),
        wait_for=st.sampled_from(WaitFor),
        max_lifetime_minutes=st.none() | st.integers(1, 10_000),
    ),
    st.builds(
        Idleness,
        since_set=SECONDS,
        since_up=SECONDS,
        jobs=st.none() | SECONDS,
        jobs_and_ssh=st.none() | SECONDS,
    ),
)
def test_autostop_always_holds(spec: AutostopSpec, idleness: Idleness) -> None:
    decision = decide_autostop(spec, idleness)
    if decision.action is None and decision.check_after is not None:
        assert decision.check_after > 0
    if decision.action and spec.max_lifetime_minutes is None:
        assert min(idleness.since_set, idleness.since_up) >= spec.idle_minutes * 60
    again = decide_autostop(spec, idleness)
    assert again == decision


@pytest.mark.parametrize(
    ("findings", "healthy", "vanished"),
    [
        ("ok ok", True, False),
        ("ok gone", False, False),
        ("gone gone", False, True),
        ("unreachable ok", False, False),
        ("gone unreachable", False, False),
        ("", False, True),
    ],
)
def test_health(findings: str, healthy: bool, vanished: bool) -> None:
    nodes = [NodeFinding(rank, NodeHealth(word)) for rank, word in enumerate(findings.split())]
    health = judge_health(nodes)
    assert (health.healthy, health.vanished) == (healthy, vanished)
    assert healthy or health.message


@pytest.mark.parametrize(
    ("status", "goal", "mode"),
    [
        ("UP", "up", "reuse"),
        ("AUTOSTOPPING", "up", "reuse"),
        ("STOPPED", "stopped", "start"),
        ("INIT", "stopped", "start"),
        ("INIT", "up", "repair"),
        ("INIT", "gone", "replace"),
        ("UP", "gone", "replace"),
    ],
)
def test_what_a_launch_does_with_what_is_there(status: str, goal: str, mode: str) -> None:
    assert launch_mode(status, goal).value == mode


def usage(cluster: str, start: float, end: float | None, price: float | None) -> Any:
    return SimpleNamespace(
        cluster_id=cluster,
        cluster_name=cluster,
        user="ann",
        num_nodes=2,
        resources="2x(-)",
        price_per_hour=price,
        from_at=start,
        to_at=end,
    )


def test_costs_add_up_and_unknown_prices_stay_unknown() -> None:
    hour = 3600.0
    ledger = [usage("a", 0, hour, 2.0), usage("a", 3 * hour, None, 4.0), usage("b", 0, hour, None)]
    report = cost_report(ledger, {"a": "UP"}, 5 * hour, None)
    rows = {row.name: row for row in report.rows}
    assert rows["a"].cost == 2.0 + 8.0 and rows["a"].duration_seconds == 3 * hour and rows["a"].status == "UP"
    assert rows["b"].cost is None and rows["b"].status == "TERMINATED"
    assert report.total_cost == 10.0


def test_costs_of_a_period_count_only_what_lies_in_it() -> None:
    day = 86400.0
    report = cost_report([usage("a", 0, None, 1.0)], {}, 10 * day, 1)
    assert report.rows[0].duration_seconds == day and report.total_cost == 24.0
