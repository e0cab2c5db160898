"""Expected cost to finish: interruptions, checkpoints, what was seen; and that it, not the list price, orders candidates."""

from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest

from skyloom_common.contracts.plan import LaunchOutcome, RunEstimate
from skyloom_common.contracts.task.model import Quantity, ResourcesSpec
from skyloom_common.core.errors import InvalidRequest
from skyloom_optimizer.availability import PRIOR_CHANCE, learn, observation
from skyloom_optimizer.catalog.load import Catalog
from skyloom_optimizer.expected import outlook, rate_of_month
from skyloom_optimizer.market import UNKNOWN_RATE, Market
from skyloom_optimizer.memory import remember
from skyloom_optimizer.plan import plan
from skyloom_optimizer.snapshot import snapshot_of
from skyloom_optimizer.testing import gpu, offer, request

NOW = 1_800_000_000.0


def simulated_hours(r: Random, hours: float, rate: float, run: RunEstimate) -> float:
    """One run, interruption by interruption."""
    segment = hours if run.checkpoint_minutes is None else run.checkpoint_minutes / 60
    clock = done = 0.0
    while done < hours - 1e-12:
        length = min(segment, hours - done)
        life = r.expovariate(rate)
        if life >= length:
            clock, done = clock + length, done + length
        else:
            clock += life + run.restart_minutes / 60
    return clock


@pytest.mark.parametrize("minutes", [None, 30.0, 7.0])
def test_expected_hours_are_what_a_simulation_finds(minutes: float | None) -> None:
    run, r = RunEstimate(checkpoint_minutes=minutes), Random(1)
    found = np.mean([simulated_hours(r, 3.3, 0.3, run) for _ in range(4000)])
    assert float(outlook(np.array(3.3), np.array(0.3), run).total) == pytest.approx(float(found), rel=0.06)


def test_nothing_is_lost_where_nothing_is_taken() -> None:
    seen = outlook(np.array([2.0]), np.array([0.0]), RunEstimate())
    assert (seen.total, seen.interruptions, seen.lost) == (2.0, 0.0, 0.0)


def test_checkpoints_save_work() -> None:
    total = [
        float(outlook(np.array(24.0), np.array(0.1), RunEstimate(checkpoint_minutes=m)).total)
        for m in (None, 240, 60, 10)
    ]
    assert total == sorted(total, reverse=True)
    assert total[0] > 2 * total[-1]


def test_a_hopeless_run_is_a_large_number_and_not_an_overflow() -> None:
    assert math.isfinite(float(outlook(np.array(1e5), np.array(5.0), RunEstimate()).total))


def test_bands_become_rates() -> None:
    assert rate_of_month(50) == pytest.approx(math.log(2) / 730)
    assert rate_of_month(100) < 0.01


SPOT = [
    offer("aws", "calm", "r", 1.00, zone="z1", use_spot=True),
    offer("aws", "wild", "r", 0.95, zone="z1", use_spot=True, vcpus=8.0),
]
BANDS = Market(bands={("aws", "r", "calm"): (0, 5), ("aws", "r", "wild"): (90, 100)})


def first_type(run: RunEstimate, market: Market = BANDS) -> str:
    wanted = request(ResourcesSpec(use_spot=True), run=run)
    return plan(wanted, snapshot_of(SPOT), market=market).candidates[0].offer.instance_type


def test_a_long_run_prefers_the_calmer_machine_and_checkpoints_give_the_cheap_one_back() -> None:
    assert first_type(RunEstimate(hours=1)) == "wild"
    assert first_type(RunEstimate(hours=72)) == "calm"
    assert first_type(RunEstimate(hours=72, checkpoint_minutes=15)) == "wild"


def test_a_gang_is_interrupted_as_often_as_its_nodes_together() -> None:
    alone, gang = (
        plan(
            request(ResourcesSpec(use_spot=True), run=RunEstimate(hours=8), num_nodes=nodes),
            snapshot_of(SPOT),
        ).candidates[0]
        for nodes in (1, 16)
    )
    assert alone.expected is not None and gang.expected is not None
    assert gang.expected.interruptions > 15 * alone.expected.interruptions


def outcome(result: str, ago: float, **more: object) -> LaunchOutcome:
    place = {"cloud": "aws", "region": "r", "zone": "z1", "instance_type": "calm", "use_spot": True, **more}
    return LaunchOutcome(result=result, at=NOW - ago, **place)  # type: ignore[arg-type]


def test_what_was_seen_moves_the_interruption_rate() -> None:
    taken = [observation(outcome("interrupted", 3600.0 * n, ran_seconds=7200)) for n in range(1, 20)]
    calm = [observation(outcome("ended", 3600.0 * n, ran_seconds=864_000)) for n in range(1, 20)]
    place = ("aws", "r", "z1", "calm", True)
    assert learn(taken, NOW).interruptions_per_hour(*place, UNKNOWN_RATE) > 0.2
    assert learn(calm, NOW).interruptions_per_hour(*place, UNKNOWN_RATE) < UNKNOWN_RATE / 10
    assert learn([], NOW).interruptions_per_hour(*place, UNKNOWN_RATE) == UNKNOWN_RATE


def test_an_interruption_says_that_capacity_is_gone() -> None:
    seen = learn([observation(outcome("interrupted", 60, ran_seconds=600))], NOW)
    assert seen.chance("aws", "r", "z1", "calm", True) < 0.1


def test_the_chance_comes_from_type_zone_and_region_and_fades() -> None:
    failed = [observation(outcome("insufficient_capacity", 60.0 * n)) for n in range(1, 6)]
    seen = learn(failed, NOW)
    same, sibling, zone, elsewhere = (
        seen.chance("aws", region, z, kind, True)
        for region, z, kind in (
            ("r", "z1", "calm"),
            ("r", "z1", "wild"),
            ("r", "z2", "wild"),
            ("q", "z9", "calm"),
        )
    )
    assert same < 0.1 < sibling < zone < elsewhere == PRIOR_CHANCE
    later = learn(failed, NOW + 14 * 86400).chance("aws", "r", "z1", "calm", True)
    assert later == pytest.approx(PRIOR_CHANCE, abs=0.02)


def test_a_success_says_that_capacity_is_there() -> None:
    seen = [observation(outcome("insufficient_capacity", 900)), observation(outcome("ok", 30))]
    assert learn(seen, NOW).chance("aws", "r", "z1", "calm", True) > 0.95


def test_time_to_running_is_learnt() -> None:
    slow = [observation(outcome("ok", 60.0 * n, seconds_to_running=600)) for n in range(20)]
    assert learn(slow, NOW).seconds_to_running("aws", "r", "z1", "calm", True) > 500


def test_a_place_where_launches_fail_stands_behind_a_dearer_one() -> None:
    world = snapshot_of(
        [offer("aws", "m", zone, 1.0 + n / 20, zone=zone, use_spot=True) for n, zone in enumerate(["a", "b"])]
    )
    seen = [
        outcome("insufficient_capacity", 3600.0 * n, region="a", zone="a", instance_type="m")
        for n in range(2, 9)
    ]
    answer = plan(request(ResourcesSpec(use_spot=True)), world, remember(seen, NOW))
    assert [item.offer.zone for item in answer.candidates] == ["b", "a"]
    assert any(reason.code == "capacity" for reason in answer.candidates[1].reasons)


def test_disks_cost_where_a_price_is_given() -> None:
    wanted = ResourcesSpec(disk_size=Quantity(730.0), disk_tier="high")
    prices = {"aws": 0.1, "aws/high": 0.2}
    answer = plan(
        request(wanted, run=RunEstimate(hours=10), disk_usd_per_gib_month=prices, num_nodes=2),
        snapshot_of([offer("aws", "m", "r", 1.0)]),
    )
    assert answer.breakdown is not None
    assert answer.breakdown.disk == pytest.approx(0.2 * 10 * 2)
    assert answer.breakdown.compute == pytest.approx(20.0)


def test_objectives() -> None:
    world = snapshot_of(
        [
            offer("red", "slow", "r", 1.0, accelerator="T4", accelerator_count=1.0),
            offer("red", "fast", "r", 9.0, accelerator="H100", accelerator_count=1.0),
            offer("blue", "middle", "b", 2.0, accelerator="A100", accelerator_count=1.0),
        ]
    )
    wanted = ResourcesSpec(accelerators=(gpu("T4"), gpu("A100"), gpu("H100")))
    run = RunEstimate(hours_on={"T4": 8, "A100": 5, "H100": 2})

    def first(objective: str) -> str:
        answer = plan(request(wanted, run=run, objective=objective), world)
        return answer.candidates[0].offer.instance_type

    assert (first("cost"), first("time"), first("both")) == ("slow", "fast", "fast")


@pytest.mark.parametrize(
    "run", [RunEstimate(hours=0), RunEstimate(checkpoint_minutes=-1), RunEstimate(hours_on={"A100": 0})]
)
def test_impossible_estimates_are_refused(run: RunEstimate) -> None:
    with pytest.raises(InvalidRequest, match=r"run\."):
        plan(request(run=run), snapshot_of(SPOT))


def test_published_bands_reach_the_catalogs_offers(catalog: Catalog) -> None:
    market, snapshot = catalog.market, catalog.snapshot
    numbers = market.band_numbers(snapshot)
    known = np.flatnonzero(numbers)
    assert len(known) > 20_000
    row = int(known[len(known) // 2])
    kind, place = int(snapshot.machine[row]), int(snapshot.place[row])
    rate = market.rate(snapshot.cloud_of(row), snapshot.places.region[place], snapshot.machines.name[kind])
    assert market.rates[numbers[row]] == pytest.approx(rate)
    assert {snapshot.cloud_of(int(r)) for r in known[::500]} == {"aws"}
