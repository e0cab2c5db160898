"""Golden sentences: what an impossible request is told, over the bundled catalog."""

from __future__ import annotations

import pytest

from skyloom_common.contracts.plan import PlanRequest
from skyloom_common.contracts.task.model import Quantity, ResourcesSpec
from skyloom_common.core.errors import ResourcesUnavailable
from skyloom_optimizer.explain import unavailable
from skyloom_optimizer.plan import plan
from skyloom_optimizer.snapshot import OfferSnapshot
from skyloom_optimizer.testing import gpu, request

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
            "without max_hourly_cost: 1.0: civo/gpu-a100-40-xlarge ($8.72 an hour)",
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
        request(ResourcesSpec(cloud="kubernetes")),
        ["kubernetes has nothing to offer here; see: sky check kubernetes"],
    ),
    (
        request(ResourcesSpec(cloud="hetzner", accelerators=(gpu("T4"),), max_hourly_cost=0.01)),
        [
            "nothing offers T4:1 for at most $0.01 an hour on hetzner",
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
