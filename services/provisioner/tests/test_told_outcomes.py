"""What the optimizer is told about places: every kind of outcome, once, whoever dies or is away, and never in a launch's way."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from skyloom_common.contracts.clusters import LaunchRequest, StopRequest
from skyloom_common.contracts.operations import OperationStatus
from skyloom_common.contracts.plan import LaunchOutcome, Offer
from skyloom_common.contracts.task.model import TaskSpec
from skyloom_common.core.errors import (
    AccessDenied,
    AgentUnreachable,
    CredentialsInvalid,
    InsufficientCapacity,
    InvalidRequest,
    PriceLimitExceeded,
    ProviderError,
    QuotaExceeded,
    RemoteError,
    SkyloomError,
    Throttled,
    Unavailable,
)
from skyloom_provisioner.clusters.rows import NodeRow
from skyloom_provisioner.decide.failover import judge
from skyloom_provisioner.decide.outcomes import ended, failed, started
from skyloom_provisioner.outcomes.sender import KEY, USEFUL_SECONDS

SPOT = Offer("cloudy", "big", "east", "easta", use_spot=True, price_per_hour=1.0)
ONE = TaskSpec(run="echo hi")
TWO = TaskSpec(run="echo hi", num_nodes=2)
integration = pytest.mark.integration  # starts of a whole service; no process of its own


def node(running_since: float | None = 100.0, offer: Offer = SPOT) -> NodeRow:
    return NodeRow(
        "n1", "c1", 0, "cloudy", offer, "UP", False, "i-1", "", "", "op", 1.0, None, running_since, 1
    )


# --- what is told, as a table ---


@pytest.mark.parametrize(
    ("error", "place", "blocked"),
    [
        (
            InsufficientCapacity("none left"),
            ("east", "easta"),
            {"region": "east", "zone": "easta", "instance_type": "big", "use_spot": True},
        ),
        (
            InsufficientCapacity("none left", details={"blocks": "region"}),
            ("east", ""),
            {"region": "east", "instance_type": "big", "use_spot": True},
        ),
        (
            InsufficientCapacity("none left", details={"blocks": "cloud"}),
            ("", ""),
            {"instance_type": "big", "use_spot": True},
        ),
        (QuotaExceeded("vcpus"), ("east", "easta"), {"region": "east"}),
        (AccessDenied("opt in first"), ("east", ""), {"region": "east"}),
        (AccessDenied("no role", details={"blocks": "cloud"}), ("", ""), {}),
        (CredentialsInvalid("expired"), ("east", "easta"), {}),
        (
            PriceLimitExceeded("$2 now"),
            ("east", "easta"),
            {"region": "east", "zone": "easta", "instance_type": "big", "use_spot": True},
        ),
        (
            AgentUnreachable("silent"),
            ("east", "easta"),
            {"region": "east", "zone": "easta", "instance_type": "big", "use_spot": True},
        ),
    ],
)
def test_a_failure_reaches_as_far_as_the_providers_answer(
    error: SkyloomError, place: tuple[str, str], blocked: dict[str, Any]
) -> None:
    told = failed("op", 2, SPOT, error, 50.0)
    assert told is not None and (told.region, told.zone) == place
    assert (told.cloud, told.instance_type, told.use_spot, told.at) == ("cloudy", "big", True, 50.0)
    assert (told.result, told.id) == (error.code, f"op-2-{error.code}")
    assert judge(error, SPOT).blocked == {"cloud": "cloudy", **blocked} and judge(error, SPOT).sentence


def test_nobody_is_told_that_a_cloud_asked_to_wait() -> None:
    assert failed("op", 1, SPOT, Throttled("slow down"), 50.0) is None


def test_the_end_of_a_node() -> None:
    taken = ended(node(), 160.0, taken=True)
    given_back = ended(node(), 160.0, taken=False)
    assert taken is not None and given_back is not None
    assert (taken.result, taken.ran_seconds) == ("interrupted", 60.0)
    assert (given_back.result, given_back.id) == ("ended", taken.id)
    assert ended(node(running_since=200.0), 160.0, taken=False).ran_seconds == 0.0  # type: ignore[union-attr]
    assert ended(node(running_since=None), 160.0, taken=True) is None
    on_demand = ended(node(offer=replace(SPOT, use_spot=False)), 160.0, taken=True)
    assert on_demand is not None and on_demand.result == "ended"
    assert len(started("o" * 26, SPOT, 1.0, 2.0).id) <= 64


# --- by a whole provisioner ---


async def launched(rig: Any, task: TaskSpec = ONE, name: str = "c") -> Any:
    return await rig.finished(await rig.client.launch(name, LaunchRequest(task)))


def spot(rig: Any) -> None:
    rig.provider.offer_list = tuple(replace(offer, use_spot=True) for offer in rig.provider.offer_list)


def results(rig: Any) -> list[str]:
    return [outcome.result for outcome in rig.optimizer.outcomes]


async def told(rig: Any, *expected: str) -> list[LaunchOutcome]:
    """Exactly these, in this order; and nothing waits any more."""
    await rig.until(lambda: len(rig.optimizer.outcomes) >= len(expected))
    await rig.until(lambda: rig.provisioner.outcomes.is_idle())
    assert results(rig) == list(expected)
    assert await waiting(rig) == []
    return list(rig.optimizer.outcomes)


async def waiting(rig: Any) -> list[str]:
    from skyloom_provisioner.outcomes.outbox import Outbox

    return [outcome.result for outcome in await Outbox(rig.provisioner.database).waiting(1000)]


@integration
async def test_a_launch_a_stop_a_start_and_a_teardown(started: Any) -> None:
    await launched(started, TWO)
    await started.finished(await started.client.stop("c", StopRequest()))
    await launched(started, TWO)
    await launched(started, TWO)  # reuses what is up: nothing is rented, nothing is learnt
    await started.finished(await started.client.down("c", StopRequest()))
    outcomes = await told(started, "ok", "ended", "ended", "ok", "ended", "ended")
    assert outcomes[0].seconds_to_running is not None and 0 < outcomes[0].seconds_to_running < 10
    assert all(0 <= (outcome.ran_seconds or 0) < 10 for outcome in outcomes if outcome.result == "ended")
    assert {(outcome.region, outcome.zone) for outcome in outcomes} == {("east", "easta")}


@integration
@pytest.mark.parametrize(
    "error", [QuotaExceeded("q"), AccessDenied("a"), PriceLimitExceeded("p"), CredentialsInvalid("c")]
)
async def test_every_failed_attempt_is_told(started: Any, error: ProviderError) -> None:
    started.provider.fail_next("create", error)
    done = await launched(started)
    if isinstance(error, CredentialsInvalid):
        assert done.status is OperationStatus.FAILED
        await told(started, error.code)
    else:
        assert done.status is OperationStatus.SUCCEEDED, done.error
        await told(started, error.code, "ok")


@integration
async def test_a_stopped_machine_whose_place_is_sold_out_now(started: Any) -> None:
    await launched(started)
    await started.finished(await started.client.stop("c", StopRequest()))
    started.provider.fail_next("start", InsufficientCapacity("none left", details={"blocks": "zone"}))
    assert (await launched(started)).status is OperationStatus.FAILED
    await told(started, "ok", "ended", "insufficient_capacity")


@integration
async def test_a_spot_machine_that_vanishes_was_interrupted(started: Any) -> None:
    spot(started)
    await launched(started, TWO)
    await told(started, "ok")
    lost = started.provider.created[1]
    started.provider.vanish(lost)
    started.agents.kill(lost)
    outcomes = await told(started, "ok", "interrupted")
    assert outcomes[1].ran_seconds is not None and outcomes[1].ran_seconds < 30 and outcomes[1].use_spot
    await launched(started, TWO)  # one is replaced in the same place; then both are given back
    await started.finished(await started.client.down("c", StopRequest()))
    await told(started, "ok", "interrupted", "ok", "ended", "ended")


@integration
async def test_all_spot_machines_vanish_and_the_record_goes(started: Any) -> None:
    spot(started)
    await launched(started, TWO)
    for instance in list(started.provider.created):
        started.provider.vanish(instance)
        started.agents.kill(instance)

    async def forgotten() -> bool:
        return await started.status("c") is None

    await started.until(forgotten)
    await told(started, "ok", "interrupted", "interrupted")
    assert len(started.optimizer.heard) == 3


@integration
async def test_a_teardown_that_finds_the_machine_gone(started: Any) -> None:
    """A controller noticed first: nobody here had looked at the machine before it was told to go."""
    spot(started)
    await launched(started)
    started.provider.vanish(started.provider.created[0])
    await started.finished(await started.client.down("c", StopRequest()))
    await told(started, "ok", "interrupted")


@integration
async def test_a_machine_given_back_after_its_cloud_announced_the_end(started: Any) -> None:
    spot(started)
    await launched(started)
    live = started.provisioner.parts.live
    await started.until(lambda: live.nodes)
    ((id, heard),) = live.nodes.items()
    live.hear(id, replace(heard.heartbeat, interruption="spot notice"))
    await started.finished(await started.client.down("c", StopRequest()))
    await told(started, "ok", "interrupted")


# --- deaths, absences, repetitions ---


@integration
@pytest.mark.parametrize(
    "point", ["launch.intent_rows", "launch.attempt_failed", "launch.agents_up", "launch.cluster_up"]
)
async def test_a_death_in_the_middle_tells_each_outcome_once(rig: Any, point: str) -> None:
    rig.provider.capacity = {("east", "easta", "big"): 0}
    await rig.start(crash_at=point)
    operation = await rig.client.launch("c", LaunchRequest(ONE))
    await rig.crashed.wait()
    await rig.crash()
    await rig.start()
    assert (await rig.finished(operation)).status is OperationStatus.SUCCEEDED
    await told(rig, "insufficient_capacity", "ok")


@integration
@pytest.mark.parametrize("point", ["down.do.down", "down.nodes_removed", "stop.do.stop"])
async def test_a_death_while_nodes_go_tells_their_end_once(rig: Any, point: str) -> None:
    spot(rig)
    await rig.start(crash_at=point)
    await launched(rig, TWO)
    operation = await getattr(rig.client, point.partition(".")[0])("c", StopRequest())
    await rig.crashed.wait()
    await rig.crash()
    await rig.start()
    assert (await rig.finished(operation)).status is OperationStatus.SUCCEEDED
    await told(rig, "ok", "ended", "ended")


@integration
async def test_an_optimizer_that_is_away_hears_everything_later_from_the_next_process(rig: Any) -> None:
    hears = rig.optimizer.record_outcome

    async def away(outcome: LaunchOutcome) -> None:
        raise Unavailable("the optimizer is away")

    rig.optimizer.record_outcome = away
    rig.provider.capacity = {("east", "easta", "big"): 0}
    await rig.start()
    assert (await launched(rig)).status is OperationStatus.SUCCEEDED
    assert await waiting(rig) == ["insufficient_capacity", "ok"]
    await rig.crash()
    rig.optimizer.record_outcome = hears
    await rig.start()
    await told(rig, "insufficient_capacity", "ok")


@integration
async def test_an_optimizer_that_never_answers_is_in_nobodys_way(started: Any) -> None:
    entered = asyncio.Event()

    async def hang(outcome: LaunchOutcome) -> None:
        entered.set()
        await asyncio.Event().wait()

    started.optimizer.record_outcome = hang
    started.provider.capacity = {("east", "easta", "big"): 0}
    assert (await launched(started)).status is OperationStatus.SUCCEEDED
    assert entered.is_set() and await waiting(started) == ["insufficient_capacity", "ok"]


@integration
async def test_a_death_before_it_is_crossed_out_repeats_the_same_id(rig: Any) -> None:
    await rig.start()
    outbox = rig.provisioner.outcomes._reconcile.__self__._outbox

    async def dies(ids: Any) -> None:
        raise Unavailable("died here")

    outbox.told = dies
    await launched(rig)
    await rig.until(lambda: rig.optimizer.outcomes)
    await rig.crash()
    await rig.start()
    await rig.until(lambda: len(rig.optimizer.heard) > 1)
    assert len(rig.optimizer.outcomes) == 1
    await rig.until(lambda: rig.provisioner.outcomes.is_idle())
    assert await waiting(rig) == []


@integration
async def test_what_is_refused_or_too_old_goes_and_one_that_fails_does_not_hold_up_others(
    started: Any,
) -> None:
    from skyloom_provisioner.outcomes.outbox import add_outcomes_in

    hears, fails = started.optimizer.record_outcome, True

    async def picky(outcome: LaunchOutcome) -> None:
        if outcome.id == "refused":
            raise InvalidRequest("region: longer than 128 characters")
        if outcome.id == "fails" and fails:
            raise RemoteError("the optimizer answered with status 500")
        await hears(outcome)

    started.optimizer.record_outcome = picky
    now = started.provisioner.parts.clock.now()
    ages = {"old": USEFUL_SECONDS + 1, "refused": 3, "fails": 2, "fine": 1}
    rows = [LaunchOutcome("x", "", "", "t", False, "ok", now - age, id=id) for id, age in ages.items()]
    async with started.provisioner.database.write() as connection:
        await add_outcomes_in(connection, [*rows, *rows])
    started.provisioner.outcomes.wake(KEY)
    await started.until(lambda: [outcome.id for outcome in started.optimizer.outcomes] == ["fine"])
    fails = False
    started.provisioner.outcomes.wake(KEY)
    await started.until(lambda: [outcome.id for outcome in started.optimizer.outcomes] == ["fine", "fails"])
    await started.until(lambda: started.provisioner.outcomes.is_idle())
    assert await waiting(started) == []
