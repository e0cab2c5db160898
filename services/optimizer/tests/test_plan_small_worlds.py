"""Plans over worlds small enough to know the answer by heart."""

from __future__ import annotations

import pytest

from skyloom_common.contracts.plan import Offer, Plan
from skyloom_common.contracts.task.model import AcceleratorSpec, Quantity, ResourcesSpec
from skyloom_common.core.errors import InvalidRequest
from skyloom_optimizer.plan import plan
from skyloom_optimizer.snapshot import OfferSnapshot, snapshot_of
from skyloom_optimizer.testing import at_least, gpu, offer, request

WORLD = snapshot_of(
    [
        offer("red", "small", "r1", 0.10, vcpus=2.0, memory_gib=8.0),
        offer("red", "small", "r2", 0.12, vcpus=2.0, memory_gib=8.0),
        offer("red", "large", "r1", 0.40, zone="r1a"),
        offer("red", "large", "r1", 0.44, zone="r1b"),
        offer("red", "large", "r2", 0.42),
        offer("red", "huge", "r1", 0.90, vcpus=16.0, memory_gib=64.0),
        offer("red", "arm", "r1", 0.05, arch="arm64"),
        offer("red", "large", "r1", 0.15, zone="r1a", use_spot=True),
        offer("red", "large", "r2", 0.11, zone="r2a", use_spot=True),
        offer("blue", "b8", "east", 0.41),
        offer("blue", "b8-new", "east", None),
        offer("blue", "gpu1", "east", 2.0, accelerator="A100", accelerator_count=1.0, accelerator_memory_gib=40.0),
        offer("blue", "gpu4", "east", 9.0, accelerator="A100", accelerator_count=4.0, accelerator_memory_gib=40.0),
        offer("red", "h8", "r2", 30.0, accelerator="H100", accelerator_count=8.0, accelerator_memory_gib=80.0),
        offer("grey", "mystery", "g", None),
    ]
)  # fmt: skip


def places(answer: Plan) -> list[tuple[str, str, str]]:
    return [(c.offer.cloud, c.offer.instance_type, c.offer.region) for c in answer.candidates]


def codes(answer: Plan, cloud: str) -> dict[str, str]:
    return {item.code: item.reason for item in answer.rejected if item.cloud == cloud}


def test_the_cheapest_machine_of_each_cloud_by_region_and_price() -> None:
    answer = plan(request(), WORLD)
    assert places(answer) == [
        ("red", "large", "r1"),
        ("blue", "b8", "east"),
        ("red", "large", "r2"),
        ("grey", "mystery", "g"),
    ]
    assert [c.cost_per_hour for c in answer.candidates] == [0.40, 0.41, 0.42, None]
    assert answer.candidates[0].offer.zone == ""
    assert answer.total_cost_per_hour == 0.40


def test_cost_is_for_all_nodes() -> None:
    answer = plan(request(num_nodes=3), WORLD)
    assert answer.candidates[0].cost_per_hour == pytest.approx(1.2)
    assert answer.candidates[0].num_nodes == 3


def test_spot_is_expanded_by_zone() -> None:
    answer = plan(request(ResourcesSpec(use_spot=True)), WORLD)
    assert [(c.offer.zone, c.offer.price_per_hour) for c in answer.candidates] == [
        ("r2a", 0.11),
        ("r1a", 0.15),
    ]
    assert codes(answer, "blue")["feature"] == "sells no spot capacity"


@pytest.mark.parametrize(
    ("resources", "first"),
    [
        (ResourcesSpec(cpus=Quantity(2.0)), "small"),
        (ResourcesSpec(cpus=at_least(2)), "small"),
        (ResourcesSpec(cpus=at_least(9)), "huge"),
        (ResourcesSpec(cpus=Quantity(8.0)), "large"),
        (ResourcesSpec(memory=at_least(33)), "huge"),
        (ResourcesSpec(memory=Quantity(8.0)), "small"),
        (ResourcesSpec(memory=Quantity(4.0, per_cpu=True), cpus=at_least(4)), "large"),
        (ResourcesSpec(instance_type="ARM"), "arm"),
        (ResourcesSpec(accelerators=(gpu("a100"),)), "gpu1"),
        (ResourcesSpec(accelerators=(gpu("A100", 0.5),)), "gpu1"),
        (ResourcesSpec(accelerators=(gpu("A100", 4),)), "gpu4"),
        (ResourcesSpec(accelerators=(AcceleratorSpec(memory_gib=80.0, count=8.0),)), "h8"),
        (ResourcesSpec(accelerators=(AcceleratorSpec(memory_gib=30.0, memory_at_least=True),)), "gpu1"),
        (ResourcesSpec(cloud="blue"), "b8"),
        (ResourcesSpec(region="R2"), "large"),
        (ResourcesSpec(zone="r1b"), "large"),
    ],
)
def test_requirements(resources: ResourcesSpec, first: str) -> None:
    assert plan(request(resources), WORLD).candidates[0].offer.instance_type == first


def test_a_zone_narrows_price_and_place() -> None:
    answer = plan(request(ResourcesSpec(zone="r1b")), WORLD)
    assert [(c.offer.region, c.offer.zone, c.offer.price_per_hour) for c in answer.candidates] == [
        ("r1", "r1b", 0.44)
    ]


def test_a_regional_price_holds_in_each_known_zone() -> None:
    world = _with_zones(
        snapshot_of([offer("azure", "D8", "eastus", 0.4)]), {("azure", "eastus"): {"eastus-2"}}
    )
    answer = plan(request(ResourcesSpec(zone="eastus-2")), world)
    assert answer.candidates[0].offer.zone == "eastus-2"


def _with_zones(world: OfferSnapshot, zones: dict[tuple[str, str], set[str]]) -> OfferSnapshot:
    import dataclasses

    return dataclasses.replace(world, known_zones={key: frozenset(names) for key, names in zones.items()})


def test_aws_zone_names_stand_for_their_region() -> None:
    world = snapshot_of(
        [
            offer("aws", "m", "us-east-1", 0.4, zone="use1-az4"),
            offer("aws", "m", "us-west-2", 0.3, zone="usw2-az1"),
        ]
    )
    answer = plan(request(ResourcesSpec(zone="us-east-1a")), world)
    assert [(c.offer.region, c.offer.zone) for c in answer.candidates] == [("us-east-1", "us-east-1a")]


def test_unordered_alternatives_are_ranked_together() -> None:
    answer = plan(request(ResourcesSpec(accelerators=(gpu("H100", 8), gpu("A100", 4)))), WORLD)
    assert [c.offer.instance_type for c in answer.candidates] == ["gpu4", "h8"]


def test_ordered_accelerators_come_in_their_order() -> None:
    resources = ResourcesSpec(accelerators=(gpu("H100", 8), gpu("A100", 4)), accelerators_ordered=True)
    answer = plan(request(resources), WORLD)
    assert [c.offer.instance_type for c in answer.candidates] == ["h8", "gpu4"]
    assert "later in the order asked for" in answer.candidates[1].reason


def test_any_of_and_ordered_name_the_alternative() -> None:
    entries = (ResourcesSpec(cloud="blue"), ResourcesSpec(cloud="red", region="r2"))
    cheapest = plan(request(ResourcesSpec(any_of=entries)), WORLD)
    assert [(c.offer.cloud, c.alternative) for c in cheapest.candidates] == [("blue", 0), ("red", 1)]
    ordered = plan(request(ResourcesSpec(ordered=tuple(reversed(entries)))), WORLD)
    assert [(c.offer.cloud, c.alternative) for c in ordered.candidates] == [("red", 0), ("blue", 1)]


def test_one_place_that_two_alternatives_find_is_one_candidate() -> None:
    entries = (ResourcesSpec(cloud="blue"), ResourcesSpec(cpus=at_least(8), region="east"))
    assert places(plan(request(ResourcesSpec(any_of=entries)), WORLD)) == [("blue", "b8", "east")]


def test_max_hourly_cost_is_per_node() -> None:
    answer = plan(request(ResourcesSpec(max_hourly_cost=0.405), num_nodes=2), WORLD)
    assert places(answer) == [("red", "large", "r1")]
    assert codes(answer, "blue")["price"] == "$0.41 an hour is the cheapest, max_hourly_cost is 0.405"
    assert "no price is known" in codes(answer, "grey")["price"]


def test_only_enabled_clouds() -> None:
    answer = plan(request(enabled=("blue",)), WORLD)
    assert places(answer) == [("blue", "b8", "east")]
    assert codes(answer, "red")["not_enabled"] == "not enabled; it has this from $0.40 an hour: sky check red"


def test_blocked_places_are_left_out() -> None:
    region = {"cloud": "red", "region": "r1"}
    answer = plan(request(blocked=(region,)), WORLD)
    assert places(answer) == [("blue", "b8", "east"), ("red", "large", "r2"), ("grey", "mystery", "g")]
    zone = {"cloud": "red", "region": "r1", "zone": "r1a", "instance_type": "large"}
    answer = plan(request(blocked=(zone,)), WORLD)
    assert [c.offer.price_per_hour for c in answer.candidates] == [0.41, 0.42, 0.44, None]
    types = ({"cloud": "red", "instance_type": "large", "use_spot": False},)
    assert ("red", "huge", "r1") in places(plan(request(blocked=types), WORLD))
    other_kind = ({"cloud": "red", "use_spot": True},)
    assert places(plan(request(blocked=other_kind), WORLD)) == places(plan(request(), WORLD))


def test_blocked_everywhere_says_so() -> None:
    answer = plan(request(blocked=({},)), WORLD)
    assert answer.candidates == ()
    assert any("was tried already" in hint for hint in answer.hints)


def test_own_machines_come_first_and_are_shared_out() -> None:
    here = (
        Offer("local", "local", vcpus=4.0, memory_gib=16.0, price_per_hour=0.0),
        Offer("local", "local-1cpu", vcpus=1.0, memory_gib=4.0, price_per_hour=0.0),
    )
    default = plan(request(extra_offers=here), WORLD)
    assert places(default)[:2] == [("local", "local-1cpu", ""), ("red", "large", "r1")]
    assert default.candidates[0].reason == "own infrastructure, no charge"
    assert places(plan(request(ResourcesSpec(cpus=Quantity(2.0)), extra_offers=here), WORLD))[0][1] == "local"
    too_big = plan(request(ResourcesSpec(cpus=at_least(8)), extra_offers=here), WORLD)
    assert codes(too_big, "local")["size"] == "4 vCPUs is the nearest to 8+"


def test_a_fraction_of_an_own_accelerator() -> None:
    here = (
        Offer(
            "local",
            "gpu",
            vcpus=4.0,
            memory_gib=16.0,
            accelerator="RTX9999",
            accelerator_count=2.0,
            price_per_hour=0.0,
        ),
        Offer("local", "cpu", vcpus=4.0, memory_gib=16.0, price_per_hour=0.0),
    )
    answer = plan(request(ResourcesSpec(accelerators=(gpu("RTX9999", 0.25),)), extra_offers=here), WORLD)
    assert [c.offer.instance_type for c in answer.candidates] == ["gpu"]
    plain = plan(request(ResourcesSpec(cpus=at_least(1)), extra_offers=here), WORLD)
    assert plain.candidates[0].offer.instance_type == "cpu"


def test_the_cap_keeps_the_best_of_each_cloud() -> None:
    answer = plan(request(max_candidates=3), WORLD)
    assert places(answer) == [("red", "large", "r1"), ("blue", "b8", "east"), ("grey", "mystery", "g")]


def test_dearer_machines_are_named() -> None:
    assert (
        codes(plan(request(), WORLD), "red")["price"]
        == "dearer than large at $0.40; the next is huge at $0.90"
    )


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (
            request(ResourcesSpec(accelerators=(gpu("A10O"),))),
            "accelerators: 'A10O' is not a known accelerator",
        ),
        (request(ResourcesSpec(region="r9")), "region: 'r9' is not a region; valid: east, g, r1, r2"),
        (
            request(ResourcesSpec(cloud="red", region="east")),
            "region: 'east' is not a region on red; valid: r1, r2",
        ),
        (request(ResourcesSpec(zone="r1z")), "zone: 'r1z' is not a zone; did you mean"),
        (
            request(ResourcesSpec(instance_type="larg")),
            "instance_type: 'larg' is not sold .* did you mean 'large'",
        ),
        (request(objective="speed"), "objective: 'speed' is not one of cost"),
        (request(max_candidates=0), "max_candidates: 0 is not at least 1"),
        (request(num_nodes=0), "num_nodes: 0 is not at least 1"),
        (request(blocked=({"clowd": "red"},)), "blocked: 'clowd' is not one of .*; did you mean 'cloud'"),
    ],
)
def test_bad_input_names_field_value_and_right_form(wanted: object, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        plan(wanted, WORLD)  # type: ignore[arg-type]


def test_one_bad_alternative_is_a_hint() -> None:
    answer = plan(request(ResourcesSpec(accelerators=(gpu("A100", 4), gpu("Q77")))), WORLD)
    assert places(answer) == [("blue", "gpu4", "east")]
    assert answer.hints[0].startswith("accelerators: 'Q77' is not a known accelerator")


def test_too_many_alternatives_are_refused() -> None:
    entries = tuple(ResourcesSpec(cpus=at_least(number)) for number in range(1, 300))
    with pytest.raises(InvalidRequest, match="resources: 299 alternatives; at most 200"):
        plan(request(ResourcesSpec(any_of=entries)), WORLD)
