"""Golden sentences: what an impossible request is told, over the bundled catalog."""

from __future__ import annotations

import pytest

from skyloom_common.contracts.plan import DeniedPlace, LaunchOutcome, Plan, PlanRequest, QuotaPool
from skyloom_common.contracts.task.model import Quantity, ResourcesSpec
from skyloom_common.core.errors import InvalidRequest, ResourcesUnavailable
from skyloom_optimizer.explain import data, lines, unavailable
from skyloom_optimizer.memory import remember
from skyloom_optimizer.plan import plan
from skyloom_optimizer.snapshot import OfferSnapshot, snapshot_of
from skyloom_optimizer.testing import gpu, offer, request

GOLDEN: list[tuple[PlanRequest, list[str]]] = [
    (
        request(ResourcesSpec(accelerators=(gpu("A100", 32),))),
        ["A100:32 does not exist on one node; largest is A100:16 on gcp/a2-megagpu-16g; use num_nodes: 2 with A100:16"],
    ),
    (
        request(ResourcesSpec(accelerators=(gpu("A100", 16),), cloud="aws")),
        ["A100:16 does not exist on one node; largest is A100:8 on aws/p4d.24xlarge; use num_nodes: 2 with A100:8"],
    ),
    (
        request(ResourcesSpec(accelerators=(gpu("V100", 3),))),
        ["V100:3 does not exist on one node; nearest is V100:4 on vast/4x-Tesla_V100-32-65536"],
    ),
    (
        request(ResourcesSpec(accelerators=(gpu("H100", 8),), region="eu-central-1", cloud="aws")),
        [
            "nothing offers H100:8 on aws/eu-central-1",
            "without region: eu-central-1: aws/p5.48xlarge ($55.04 an hour)",
        ],
    ),
    (
        request(ResourcesSpec(accelerators=(gpu("A100", 8),), max_hourly_cost=1.0)),
        [
            "nothing offers A100:8 for at most $1 an hour",
            "without max_hourly_cost: 1: civo/gpu-a100-40-xlarge ($8.72 an hour)",
        ],
    ),
    (
        request(ResourcesSpec(cpus=Quantity(5.0), cloud="gcp")),
        ["nothing offers cpus: 5 on gcp", "without cpus: 5: gcp/n2d-standard-8 ($0.22 an hour)"],
    ),
    (
        request(ResourcesSpec(cloud="lambda", use_spot=True, accelerators=(gpu("A100", 8),))),
        [
            "nothing offers A100:8 spot on lambda",
            "without cloud: lambda: aws/p4d.24xlarge ($2.47 an hour)",
            "without use_spot: true: lambda/gpu_8x_a100 ($15.92 an hour)",
        ],
    ),
    (
        request(ResourcesSpec(accelerators=(gpu("H100", 8),)), enabled=("hetzner",)),
        ["nothing offers H100:8", "a cloud that is not enabled has it: mithril/h100-80gb.sxm.8x ($8.00 an hour); see: sky check"],
    ),
    (
        request(ResourcesSpec(max_hourly_cost=0.001, cloud="aws")),  # names no size, so that ours is told as ours
        [
            "nothing offers cpus: 8+ (the default) for at most $0.001 an hour on aws",
            "without max_hourly_cost: 0.001: aws/t3a.2xlarge ($0.20 an hour)",
        ],
    ),
    (
        request(ResourcesSpec(cloud="kubernetes")),
        ["kubernetes has nothing to offer here; see: sky check kubernetes"],
    ),
    (
        request(ResourcesSpec(cloud="hetzner", accelerators=(gpu("T4"),), max_hourly_cost=0.01)),
        [
            "nothing offers T4:1 for at most $0.01 an hour on hetzner",
            "cannot hold together: accelerators: T4:1, cloud: hetzner",
            "cannot hold together: accelerators: T4:1, max_hourly_cost: 0.01",
            "cannot hold together: cloud: hetzner, max_hourly_cost: 0.01",
            "without cloud: hetzner and max_hourly_cost: 0.01: infomaniak/nvt4-a4-ram8-disk50-perf2 ($0.25 an hour)",
        ],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("wanted", "hints"), GOLDEN, ids=[hints[0][:50] for _, hints in GOLDEN])
def test_what_would_be_possible(snapshot: OfferSnapshot, wanted: PlanRequest, hints: list[str]) -> None:
    answer = plan(wanted, snapshot)
    assert answer.candidates == ()
    assert list(answer.hints) == hints


def test_every_cloud_without_a_candidate_has_a_reason(snapshot: OfferSnapshot) -> None:
    answer = plan(request(ResourcesSpec(accelerators=(gpu("A100", 8),)), max_candidates=500), snapshot)
    chosen = {candidate.offer.cloud for candidate in answer.candidates}
    explained = {item.cloud for item in answer.rejected}
    assert chosen | explained == set(snapshot.clouds)
    assert {"aws", "gcp", "azure", "lambda"} <= chosen


def test_rejections_of_one_cloud_read_well(snapshot: OfferSnapshot) -> None:
    answer = plan(request(ResourcesSpec(accelerators=(gpu("A100", 3),))), snapshot)
    reasons = {item.cloud: item for item in answer.rejected if item.cloud in ("gcp", "hetzner")}
    assert reasons["hetzner"].reason == "has no A100"
    assert reasons["gcp"].reason == "A100 in other numbers than 3: 1, 2, 4, 8 and 1 more"
    assert reasons["gcp"].example in ("a2-highgpu-2g", "a2-highgpu-4g")


def test_the_error_for_an_empty_plan(snapshot: OfferSnapshot) -> None:
    error = unavailable(plan(request(ResourcesSpec(accelerators=(gpu("A100", 32),))), snapshot))
    assert isinstance(error, ResourcesUnavailable)
    assert error.message.startswith("A100:32 does not exist on one node")
    assert error.details["rejected"]


def test_conflicts_are_minimal_and_smallest_first(snapshot: OfferSnapshot) -> None:
    wanted = ResourcesSpec(
        cloud="aws", region="eu-west-1", accelerators=(gpu("H100", 8),), max_hourly_cost=2.0, ports=("8080",)
    )
    answer = plan(request(wanted), snapshot)
    sizes = [len(item.fields) for item in answer.conflicts]
    assert sizes == sorted(sizes)
    assert answer.conflicts[0].fields == ("accelerators: H100:8", "max_hourly_cost: 2")
    assert all("ports" not in " ".join(item.fields) for item in answer.conflicts)
    assert unavailable(answer).details["conflicts"][0] == ["accelerators: H100:8", "max_hourly_cost: 2"]


SMALL = snapshot_of(
    [
        offer("red", "m8", "r1", 0.40, zone="r1a"),
        offer("red", "m8", "r2", 0.44),
        offer(
            "red", "g1", "r1", 2.00, accelerator="A100", accelerator_count=1.0, accelerator_memory_gib=40.0
        ),
        offer(
            "red", "g4", "r2", 9.00, accelerator="A100", accelerator_count=4.0, accelerator_memory_gib=40.0
        ),
        offer("blue", "b8", "east", 0.41),
        offer(
            "blue", "t1", "east", 1.10, accelerator="A10", accelerator_count=1.0, accelerator_memory_gib=24.0
        ),
        offer("gcp", "n8", "us", 0.50, zone="us-a"),
        offer("grey", "x8", "g", None),
    ]
)


def codes(answer: Plan) -> dict[tuple[str, str], str]:
    return {(item.cloud, item.code): item.reason for item in answer.rejected}


def test_quota_policy_and_features_are_reasons_with_numbers() -> None:
    wanted = request(
        ResourcesSpec(accelerators=(gpu("A100"),), ports=("80",)),
        num_nodes=3,
        quotas=(QuotaPool("red A100", 2, "accelerators", cloud="red", accelerator="A100"),),
    )
    answer = plan(wanted, SMALL)
    assert codes(answer)["red", "quota"] == "quota red A100 allows 2 accelerators, 3 are needed"
    assert answer.hints[0] == "nothing offers A100:1"
    assert "quotas leave no room" in " ".join(answer.hints)
    denied = (
        DeniedPlace("data stays in r2", cloud="red", region="r1"),
        DeniedPlace("not blue", cloud="blue"),
    )
    answer = plan(request(denied=denied), SMALL)
    assert [c.offer.region for c in answer.candidates if c.offer.cloud == "red"] == ["r2"]
    assert codes(answer)["blue", "policy"] == "not blue"
    lacking = plan(request(ResourcesSpec(ports=("8080",)), lacks={"red": ("ports",)}), SMALL)
    assert codes(lacking)["red", "feature"] == "cannot open ports"


def test_features_that_only_some_clouds_have() -> None:
    disks = ResourcesSpec(volumes=({"path": "/data", "name": "v"},))
    assert {c.offer.cloud for c in plan(request(disks), SMALL).candidates} == {"gcp"}
    images = ResourcesSpec(image_id={"r2": "img-1"})
    assert [c.offer.region for c in plan(request(images), SMALL).candidates] == ["r2"]


def test_lists_of_places_and_wildcards() -> None:
    answer = plan(request(ResourcesSpec(region="r2,east")), SMALL)
    assert [c.offer.region for c in answer.candidates] == ["east", "r2"]
    answer = plan(request(ResourcesSpec(accelerators=(gpu("A10*"),))), SMALL)
    assert [c.offer.instance_type for c in answer.candidates] == ["t1", "g1"]
    with pytest.raises(InvalidRequest, match=r"'Z\*' is not a known accelerator"):
        plan(request(ResourcesSpec(accelerators=(gpu("Z*"),))), SMALL)


def test_the_explanation_in_lines() -> None:
    seen = LaunchOutcome("red", "r1", "", "m8", False, "insufficient_capacity", 1000.0)
    answer = plan(request(num_nodes=2), SMALL, remember([seen], 1060.0))
    assert lines(answer) == (
        "1. blue/east b8, $0.41 an hour: the cheapest that did not fail recently; at most 2.4 % from the best",
        "   expected to finish: $0.82 for 1 h on 2 nodes (compute $0.82)",
        "2. red/r2 m8, $0.44 an hour: 7 % more than the first",
        "3. gcp/us/us-a n8, $0.50 an hour: 22 % more than the first",
        "4. red/r1 m8, $0.40 an hour: 2 % less than the first; failed there recently",
        "5. grey/g x8: price not known",
    )
    told = data(answer)
    assert told["chosen"]["place"] == "blue/east b8"
    assert [item["rank"] for item in told["later"]] == [2, 3, 4, 5]
    assert told["later"][2]["reasons"][1]["code"] == "capacity"
    assert told["later"][2]["reasons"][1]["numbers"]["chance"] < 0.1


def test_lines_of_an_empty_plan() -> None:
    answer = plan(request(ResourcesSpec(accelerators=(gpu("A100", 8),)), enabled=("red",)), SMALL)
    assert lines(answer)[:2] == (
        "A100:8 does not exist on one node; largest is A100:4 on red/g4; use num_nodes: 2 with A100:4",
        "not 3 clouds (blue, gcp, grey): has no A100 (4 offers)",
    )
    assert "not blue: has no A100 (2 offers)" in lines(answer, every=True)
