"""Golden sentences about places: lists of them, names that are wrong, and what `sky gpus list` says when nothing is there."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skyloom_common.contracts.explain import lines
from skyloom_common.contracts.plan import PlanRequest
from skyloom_common.contracts.task.model import ResourcesSpec
from skyloom_common.contracts.task.parse import parse_task_mapping
from skyloom_common.contracts.task.places import Place, accepts, packed
from skyloom_common.core.errors import InvalidRequest
from skyloom_optimizer.gpus import AcceleratorQuery, list_accelerators
from skyloom_optimizer.plan import plan
from skyloom_optimizer.snapshot import OfferSnapshot, snapshot_of
from skyloom_optimizer.testing import gpu, offer, request


def wanted(**resources: object) -> PlanRequest:
    """As a task file says it."""
    return PlanRequest(task=parse_task_mapping({"resources": resources}))


def places(snapshot: OfferSnapshot, **resources: object) -> set[tuple[str, str]]:
    found = plan(wanted(accelerators="A100:8", **resources), snapshot).candidates
    return {(one.offer.cloud, one.offer.region) for one in found}


ANY_OF_THEM = [
    ({"infra": ["aws/us-east-1", "aws/us-west-2"]}, {("aws", "us-east-1"), ("aws", "us-west-2")}),
    ({"infra": "aws/us-east-1,us-west-2"}, {("aws", "us-east-1"), ("aws", "us-west-2")}),
    ({"infra": ["aws/us-east-1", "azure/eastus"]}, {("aws", "us-east-1"), ("azure", "eastus")}),
    ({"cloud": ["aws", "azure"], "region": ["us-east-1", "eastus"]}, {("aws", "us-east-1"), ("azure", "eastus")}),
    ({"region": ["eastus", "us-west-2"], "cloud": "aws,azure"}, {("aws", "us-west-2"), ("azure", "eastus")}),
    ({"infra": "aws/us-*"}, {("aws", name) for name in ("us-east-1", "us-east-2", "us-west-2")}),
    ({"infra": "aws", "zone": None, "any_of": [{"region": "us-east-1"}, {"region": "us-west-2"}]},
     {("aws", "us-east-1"), ("aws", "us-west-2")}),
    ({"infra": ["azure/eastus", "gcp/us-central1"], "any_of": [{"cpus": "1+"}, {"infra": "aws/us-east-1"}]},
     {("azure", "eastus"), ("gcp", "us-central1"), ("aws", "us-east-1")}),
]  # fmt: skip


@pytest.mark.parametrize(("resources", "expected"), ANY_OF_THEM)
def test_any_place_of_a_list_will_do(
    snapshot: OfferSnapshot, resources: dict[str, object], expected: set[tuple[str, str]]
) -> None:
    assert places(snapshot, **resources) == expected


def test_zones_of_a_list_are_handed_on_as_they_were_written(snapshot: OfferSnapshot) -> None:
    asked = wanted(accelerators="A100:8", infra="aws/us-east-1/us-east-1a,us-east-1b")
    assert [one.offer.zone for one in plan(asked, snapshot).candidates] == ["us-east-1a", "us-east-1b"]
    failed = {"cloud": "aws", "region": "us-east-1", "zone": "us-east-1a"}
    again = plan(replace(asked, blocked=(failed,)), snapshot)
    assert [one.offer.zone for one in again.candidates] == ["us-east-1b"]


def test_a_wrong_name_of_a_list_is_told_and_the_others_are_used(snapshot: OfferSnapshot) -> None:
    answer = plan(wanted(accelerators="A100:8", infra=["aws/us-est-1", "aws/us-west-2"]), snapshot)
    assert answer.candidates[0].offer.region == "us-west-2"
    assert answer.hints == (
        "region: 'us-est-1' is not a region on aws; did you mean 'us-east-1' or 'us-west-1'?",
    )


WRONG = [
    ({"accelerators": "A10O:8"}, "accelerators: 'A10O' is not a known accelerator; did you mean 'A100'?"),
    (
        {"accelerators": "Q7"},
        "accelerators: 'Q7' is not a known accelerator; valid are, for example: A10, A100, A100-80GB, A10G, B200, B300, GH200, H100",
    ),
    ({"infra": "aws/us-est-1"}, "region: 'us-est-1' is not a region on aws; did you mean 'us-east-1' or 'us-west-1'?"),
    ({"infra": "aws/us-east-1/us-east-1z"}, "zone: 'us-east-1z' is not a zone on aws"),
    ({"instance_type": "p4d.24xlrage"}, "instance_type: 'p4d.24xlrage' is not sold on any known cloud; did you mean"),
    ({"infra": "gcp", "instance_type": "p4d.24xlarge"}, "instance_type: 'p4d.24xlarge' is not sold on gcp; it is a machine of aws"),
    ({"infra": "us-west-2"}, "infra: 'us-west-2' is not a cloud but a region of aws"),
    ({"infra": "datacentre"}, "infra: 'datacentre' is not known here: neither a price list nor an offer of your own names it"),
    ({"infra": "aws/nowhere-*"}, "region: 'nowhere-*' is not a region on aws"),
]  # fmt: skip


@pytest.mark.parametrize(("resources", "sentence"), WRONG)
def test_wrong_names(snapshot: OfferSnapshot, resources: dict[str, object], sentence: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        plan(wanted(**resources), snapshot)
    assert caught.value.message.startswith(sentence)


IMPOSSIBLE = [
    (
        {"accelerators": "H100:8", "infra": ["aws/eu-central-1", "hetzner"], "max_hourly_cost": 1},
        [
            "nothing offers H100:8 for at most $1 an hour on aws/eu-central-1, hetzner",
            "cannot hold together: accelerators: H100:8, infra: [aws/eu-central-1, hetzner]",
            "cannot hold together: accelerators: H100:8, max_hourly_cost: 1",
        ],
    ),
    (
        {"accelerators": "H100:8", "infra": "aws", "region": None, "any_of": [{"infra": "aws/eu-central-1,eu-south-1"}]},
        [
            "nothing offers H100:8 on aws/eu-central-1, aws/eu-south-1",
            "without region: [eu-central-1, eu-south-1]: aws/p5.48xlarge ($55.04 an hour)",
        ],
    ),
    (
        {"accelerators": "A100:16", "infra": ["aws", "azure"]},
        [
            "A100:16 does not exist on one node; largest is A100:8 on aws/p4d.24xlarge; use num_nodes: 2 with A100:8",
        ],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("resources", "hints"), IMPOSSIBLE)
def test_impossible_lists_are_told_once(
    snapshot: OfferSnapshot, resources: dict[str, object], hints: list[str]
) -> None:
    answer = plan(wanted(**resources), snapshot)
    assert answer.candidates == ()
    assert list(answer.hints[: len(hints)]) == hints


HINTS = [
    (AcceleratorQuery("A100", 3), "A100:3 is not sold; A100 is sold in these numbers: 1, 2, 4, 8, 16"),
    (AcceleratorQuery("A100", 3, "aws"), "A100:3 is not sold on aws; A100 is sold in these numbers: 8"),
    (AcceleratorQuery("A100", cloud="hetzner"), "A100 is not sold on hetzner; it is sold by aws, azure, civo, gcp"),
    (AcceleratorQuery("H200", cloud="gcp", region="europe-west3"), "H200 is not sold on gcp/europe-west3; on gcp it is sold in"),
    (AcceleratorQuery("A10O"), "'A10O' is not a known accelerator; did you mean 'A100'?"),
    (AcceleratorQuery("Q7"), "'Q7' is not a known accelerator; list them all with: sky gpus list --all"),
    (AcceleratorQuery("A100", cloud="kubernetes"),
     "kubernetes has no price list here, so no accelerators are listed; see what it has with: sky check kubernetes"),
    (AcceleratorQuery(cloud="local"),
     "local has no price list here, so no accelerators are listed; see what it has with: sky check local"),
]  # fmt: skip


@pytest.mark.parametrize(("query", "hint"), HINTS)
def test_an_empty_list_of_accelerators_says_why(
    snapshot: OfferSnapshot, query: AcceleratorQuery, hint: str
) -> None:
    found = list_accelerators(query, snapshot)
    assert found.offers == ()
    assert found.summaries == ()
    assert len(found.hints) == 1
    assert found.hints[0].startswith(hint)


def test_accelerators_by_wildcard_and_by_memory(snapshot: OfferSnapshot) -> None:
    by_name = list_accelerators(AcceleratorQuery("h100*", cloud="gcp"), snapshot)
    assert {one.accelerator for one in by_name.offers} == {"H100", "H100-MEGA"}
    by_memory = list_accelerators(AcceleratorQuery("80GB", cloud="aws"), snapshot)
    assert {one.accelerator for one in by_memory.offers} == {"A100-80GB", "H100"}
    more = list_accelerators(AcceleratorQuery("nvidia:141gb+", 8.0, cloud="aws"), snapshot)
    assert {one.accelerator for one in more.offers} >= {"H200"}


CROWD = snapshot_of(
    [
        *(offer("red", "g1", region, 2.00, accelerator="A100", accelerator_count=1.0) for region in "abc"),
        offer("red", "g1", "d", 2.50, accelerator="A100", accelerator_count=1.0),
        offer("blue", "g2", "a", 2.20, accelerator="A100", accelerator_count=2.0),
        offer("gold", "g4", "a", 9.00, accelerator="A100", accelerator_count=4.0),
        offer("grey", "c8", "a", 0.10),
        offer("pink", "c8", "a", 0.10),
        offer("dear", "g1", "a", 8.00, accelerator="A100", accelerator_count=1.0),
        offer("dire", "g1", "a", 9.00, accelerator="A100", accelerator_count=1.0),
    ]
)


one_place = st.builds(
    Place,
    st.sampled_from([None, "red", "blue", "gold"]),
    st.sampled_from([None, "a", "b", "d", "nowhere"]),
    st.none(),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(one_place, min_size=1, max_size=4))
def test_a_list_of_places_is_the_union_of_its_places(listed: list[Place]) -> None:
    def found(chosen: list[Place]) -> set[tuple[str, str, str]]:
        spec = ResourcesSpec(**packed(chosen), instance_type="g1")
        try:
            offers = [one.offer for one in plan(request(spec), CROWD).candidates]
        except InvalidRequest:  # places that do not exist
            return set()
        assert all(accepts(spec, one.cloud, one.region, one.zone) for one in offers)
        return {(one.cloud, one.region, one.instance_type) for one in offers}

    apart = [found([place]) for place in listed]
    assert found(listed) == set().union(*apart)


def test_equal_candidates_and_equal_reasons_share_a_line() -> None:
    answer = plan(request(ResourcesSpec(accelerators=(gpu("A100"),), max_hourly_cost=5.0)), CROWD)
    assert lines(answer) == (
        "1. red/a g1, $2.00 an hour: lowest price; proven the best",
        "   expected to finish: $2.00 for 1 h (compute $2.00)",
        "2-3. red/b g1, $2.00 an hour: same price as the first; also in c",
        "4. red/d g1, $2.50 an hour: 25 % more than the first",
        "not 2 clouds (dear, dire) for their prices (2 offers); nearest is dear/g1: $8.00 an hour is the cheapest, max_hourly_cost is 5",
        "not 2 clouds (grey, pink): has no A100 (2 offers)",
        "not 2 clouds (blue, gold): A100 in other numbers than 1 (2 offers)",
    )
    every = lines(answer, every=True)
    assert "3. red/c g1, $2.00 an hour: same price as the first" in every
    assert "not gold/g4: A100 in other numbers than 1: 4" in every
    assert len(every) > len(lines(answer))


def test_the_explanation_of_the_whole_catalog_is_short(snapshot: OfferSnapshot) -> None:
    answer = plan(wanted(accelerators="A100:8"), snapshot)
    short, long = lines(answer), lines(answer, every=True)
    assert len(short) <= 15
    assert len(long) > 60
    everything = plan(wanted(infra="aws"), snapshot)
    assert len(lines(everything)) <= 15
    assert sum(item.count for item in everything.rejected if item.cloud == "*") > 100_000
