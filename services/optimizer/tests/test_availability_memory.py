"""What outcomes say about a place, and what a plan makes of it."""

from __future__ import annotations

import pytest

from skyloom_common.contracts.plan import LaunchOutcome
from skyloom_common.contracts.task.model import ResourcesSpec
from skyloom_optimizer.memory import HALF_LIFE_SECONDS, RECENT_FAILURE, remember
from skyloom_optimizer.plan import plan
from skyloom_optimizer.snapshot import snapshot_of
from skyloom_optimizer.testing import offer, request

NOW = 1_800_000_000.0
WORLD = snapshot_of(
    [
        offer("red", "m8", "r1", 0.40),
        offer("red", "m8", "r2", 0.45),
        offer("red", "m16", "r1", 0.80, vcpus=16.0, memory_gib=64.0),
        offer("blue", "b8", "east", 0.70),
    ]
)


def outcome(result: str, ago: float = 0.0, **more: object) -> LaunchOutcome:
    place = {"cloud": "red", "region": "r1", "zone": "", "instance_type": "m8", "use_spot": False, **more}
    return LaunchOutcome(result=result, at=NOW - ago, **place)  # type: ignore[arg-type]


def regions(*outcomes: LaunchOutcome, resources: ResourcesSpec | None = None) -> list[str]:
    answer = plan(request(resources), WORLD, remember(outcomes, NOW))
    return [candidate.offer.region for candidate in answer.candidates]


def test_without_outcomes_price_decides() -> None:
    assert regions() == ["r1", "r2", "east"]


def test_a_place_that_just_failed_is_not_first() -> None:
    assert regions(outcome("insufficient_capacity")) == ["r2", "east", "r1"]
    answer = plan(request(), WORLD, remember([outcome("insufficient_capacity")], NOW))
    assert answer.candidates[0].reason == "the cheapest that did not fail recently"
    assert "failed there recently" in answer.candidates[2].reason
    assert answer.candidates[2].expected is not None and answer.candidates[2].expected.chance < 0.05


def test_failures_fade() -> None:
    assert regions(outcome("insufficient_capacity", ago=6 * HALF_LIFE_SECONDS))[0] == "r2"
    assert regions(outcome("insufficient_capacity", ago=12 * 3600)) == ["r1", "r2", "east"]


def test_a_success_wipes_what_was_before_it() -> None:
    failed, worked = outcome("insufficient_capacity", ago=60), outcome("ok", ago=30)
    assert regions(worked, failed) == ["r1", "r2", "east"]
    assert regions(outcome("ok", ago=90), failed) == ["r2", "east", "r1"]


def test_repeated_failures_weigh_more() -> None:
    def penalty(times: int) -> float:
        return remember([outcome("insufficient_capacity")] * times, NOW).penalty("red", "r1", "", "m8", False)

    assert 0 < penalty(1) < penalty(2) < penalty(5) < 1
    assert penalty(1) == pytest.approx(0.5)


def test_how_far_a_failure_reaches() -> None:
    assert regions(outcome("credentials_invalid"))[0] == "east"
    quota = remember([outcome("quota_exceeded", zone="r1a")], NOW)
    assert quota.penalty("red", "r1", "r1b", "m8", False) > 0
    assert quota.penalty("red", "r2", "", "m8", False) == 0
    capacity = remember([outcome("insufficient_capacity", zone="r1a")], NOW)
    assert capacity.penalty("red", "r1", "r1b", "m8", False) == 0
    assert capacity.penalty("red", "r1", "", "m8", False) > 0
    assert capacity.penalty("red", "r1", "r1a", "m8", True) == 0
    assert capacity.penalty("red", "r1", "r1a", "m16", False) == 0


def test_a_failure_of_a_whole_region_or_cloud_is_told_by_leaving_the_rest_out() -> None:
    region = remember([outcome("insufficient_capacity", zone="")], NOW)
    assert region.penalty("red", "r1", "r1b", "m8", False) > 0 == region.penalty("red", "r2", "", "m8", False)
    cloud = remember([outcome("insufficient_capacity", region="", zone="")], NOW)
    assert (
        cloud.penalty("red", "r2", "r2a", "m8", False) > 0 == cloud.penalty("red", "r2", "r2a", "m16", False)
    )


def test_denied_access_concerns_every_type_there_and_no_capacity() -> None:
    denied = remember([outcome("access_denied", zone="")], NOW)
    assert denied.penalty("red", "r1", "r1a", "m16", True) > 0 == denied.penalty("red", "r2", "", "m8", False)
    assert denied.chance("red", "r1", "r1a", "m16", True) < 0.5 and not denied.capacity.tallies


def test_a_price_limit_is_remembered_for_the_place_and_says_nothing_about_capacity() -> None:
    dear = remember([outcome("price_limit_exceeded", zone="r1a")], NOW)
    assert dear.penalty("red", "r1", "r1a", "m8", False) > 0 == dear.penalty("red", "r1", "r1b", "m8", False)
    assert not dear.capacity.tallies and dear.chance("red", "r1", "r1a", "m8", False) == pytest.approx(0.85)


def test_what_is_nobodys_fault_is_not_held_against_the_place() -> None:
    assert regions(outcome("operation_cancelled"), outcome("throttled")) == ["r1", "r2", "east"]


def test_a_clock_jump_does_not_make_a_failure_eternal_or_huge() -> None:
    future = remember([outcome("insufficient_capacity", ago=-1e6)], NOW)
    assert future.penalty("red", "r1", "", "m8", False) == pytest.approx(0.5)


def test_the_only_place_stays_possible() -> None:
    only = ResourcesSpec(region="r1")
    assert regions(outcome("insufficient_capacity"), resources=only) == ["r1"]


def test_the_users_order_is_stronger_than_the_memory() -> None:
    entries = (ResourcesSpec(cloud="red", region="r1"), ResourcesSpec(cloud="blue"))
    ordered = ResourcesSpec(ordered=entries)
    assert regions(outcome("insufficient_capacity"), resources=ordered) == ["r1", "east"]


def test_recent_means_about_half_an_hour() -> None:
    def penalty(ago: float) -> float:
        return remember([outcome("insufficient_capacity", ago=ago)], NOW).penalty(
            "red", "r1", "", "m8", False
        )

    assert penalty(20 * 60) > RECENT_FAILURE > penalty(30 * 60)
