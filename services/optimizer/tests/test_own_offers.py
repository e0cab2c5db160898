"""A deployment's own list: what is wrong with it is named, what is right wins over the catalog."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from skyloom_common.contracts.task.model import ResourcesSpec
from skyloom_common.core.errors import InvalidTask
from skyloom_optimizer.gpus import AcceleratorQuery, list_accelerators
from skyloom_optimizer.overlay.apply import OWN, Overlaid, overlay
from skyloom_optimizer.overlay.read import OwnList, read_own
from skyloom_optimizer.plan import plan
from skyloom_optimizer.snapshot import OfferSnapshot, snapshot_of
from skyloom_optimizer.testing import gpu, offer, request

EXAMPLE = Path(__file__).parents[3] / "examples" / "catalog" / "offers.yaml"


def own_list(folder: Path, text: str) -> OwnList:
    path = folder / "offers.yaml"
    path.write_text(text)
    return read_own(path)


@pytest.fixture
def small() -> OfferSnapshot:
    return snapshot_of(
        [
            offer("aws", "p5.48xlarge", "us-east-1", 55.0, zone="use1-az4", vcpus=192.0, accelerator="H100", accelerator_count=8.0),
            offer("aws", "p5.48xlarge", "us-east-1", 55.0, zone="use1-az6", vcpus=192.0, accelerator="H100", accelerator_count=8.0),
            offer("aws", "p5.48xlarge", "us-west-2", 60.0, vcpus=192.0, accelerator="H100", accelerator_count=8.0),
            offer("aws", "m5.large", "us-east-1", 0.1),
            offer("gcp", "a3-highgpu-8g", "us-central1", 88.0, accelerator="H100", accelerator_count=8.0),
        ],
        version="base",
    )  # fmt: skip


def prices_of(snapshot: OfferSnapshot) -> dict[tuple[str, str, str], float | None]:
    rows = [snapshot.offer(row, use_spot=False) for row in range(len(snapshot))]
    return {(row.instance_type, row.region, row.zone): row.price_per_hour for row in rows}


def laid(folder: Path, small: OfferSnapshot, text: str) -> Overlaid:
    return overlay(small, own_list(folder, text))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "prices:\n- cloud: aws\n  prise_per_hour: 1",
            "offers.yaml:3: prices[0].prise_per_hour: unknown field",
        ),
        ("prices:\n- cloud: aws", "no price is given"),
        ("prices:\n- region: x\n  price_per_hour: 1", "cloud is missing"),
        (
            "prices:\n- cloud: aws\n  price_per_hour: cheap",
            "offers.yaml:3: prices[0].price_per_hour: 'cheap' is not a number",
        ),
        ("prices:\n- cloud: aws\n  price_per_hour: -1", "'-1' is not in range"),
        ("prices:\n- cloud: aws\n  discount_percent: 120", "is not below 100"),
        ("prices:\n- cloud: aws\n  price_per_hour: 1\n  discount_percent: 5", "contradict each other"),
        ("prices: {cloud: aws}", "prices: a mapping is not a list"),
        ("- cloud: aws", "is not a mapping"),
        ("offers:\n- cloud: rack", "instance_type is missing"),
        ("offers:\n- {cloud: rack, instance_type: a, zone: z}", "zone without region"),
        ("offers:\n- {cloud: rack, instance_type: a, arch: sparc}", "'sparc' is not known here"),
        ("offers:\n- {cloud: rack, instance_type: a, accelerators: [H100, A100]}", "one kind of accelerator"),
        ("offers:\n- {cloud: rack, instance_type: a}\n- {cloud: rack, instance_type: a}", "listed twice"),
        ("as_of: soon", "as_of: 'soon' is not a date"),
        ("offers: [", "not valid YAML"),
    ],
)
def test_faults_are_named_with_line_and_field(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InvalidTask) as error:
        own_list(tmp_path, text)
    assert words in error.value.message


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(InvalidTask, match="3 problems"):
        own_list(tmp_path, "as_of: soon\nprices:\n- cloud: aws\n  prize: 1\n  price_per_hour: x")


def test_an_empty_list_changes_nothing(tmp_path: Path, small: OfferSnapshot) -> None:
    assert laid(tmp_path, small, "").snapshot is small
    assert laid(tmp_path, small, "prices: []\noffers:\n").snapshot is small


def test_a_price_and_a_discount_win_over_the_catalog(tmp_path: Path, small: OfferSnapshot) -> None:
    text = "as_of: 2026-11-01\nprices:\n- {cloud: aws, instance_type: 'p5.*', discount_percent: 10}\n"
    text += "- {cloud: aws, region: us-west-2, instance_type: p5.48xlarge, price_per_hour: 41, spot_price_per_hour: 12}"
    found = laid(tmp_path, small, text)
    prices = prices_of(found.snapshot)
    assert prices["p5.48xlarge", "us-east-1", "use1-az4"] == 49.5
    assert prices["p5.48xlarge", "us-west-2", ""] == 41 and prices["m5.large", "us-east-1", ""] == 0.1
    best = plan(request(ResourcesSpec(accelerators=(gpu("H100", 8),))), found.snapshot).candidates[0].offer
    assert (best.price_per_hour, best.source, best.as_of) == (41, OWN, "2026-11-01")
    spot = plan(
        request(ResourcesSpec(accelerators=(gpu("H100", 8),), use_spot=True)), found.snapshot
    ).candidates
    assert [item.offer.price_per_hour for item in spot] == [12.0]
    assert prices_of(small)["p5.48xlarge", "us-west-2", ""] == 60.0
    assert found.snapshot.version.startswith("base+")


def test_rules_that_match_nothing_are_told(tmp_path: Path, small: OfferSnapshot) -> None:
    found = laid(
        tmp_path,
        small,
        "prices:\n- {cloud: aws, instance_type: p6.*, price_per_hour: 1}\n- {cloud: moon, price_per_hour: 1}",
    )
    assert [note.rpartition("/")[2] for note in found.notes] == [
        "offers.yaml:2: matches no offer of the catalog", "offers.yaml:3: matches no offer of the catalog",
    ]  # fmt: skip


PRIVATE = """
offers:
- {cloud: rack, region: berlin, instance_type: dgx, vcpus: 224, memory_gib: 2048, accelerators: H100:8, price_per_hour: 0}
- {cloud: lender, region: berlin, instance_type: loan, vcpus: 96, memory_gib: 1024, accelerators: H100:8}
- {cloud: aws, region: eu-west-9, instance_type: p5.48xlarge, price_per_hour: 44}
- {cloud: aws, region: us-west-2, instance_type: p5.48xlarge, vcpus: 8, price_per_hour: 43}
"""


def test_private_offers_are_planned_with_and_one_without_a_price_comes_last(
    tmp_path: Path, small: OfferSnapshot
) -> None:
    found = laid(tmp_path, small, PRIVATE)
    asked = request(ResourcesSpec(accelerators=(gpu("H100", 8),)))
    offers = [candidate.offer for candidate in plan(asked, found.snapshot).candidates]
    assert (offers[0].cloud, offers[0].region, offers[0].price_per_hour) == ("rack", "berlin", 0.0)
    assert (offers[-1].instance_type, offers[-1].price_per_hour, offers[-1].source) == ("loan", None, OWN)
    assert ("eu-west-9", 44.0) in [(item.region, item.price_per_hour) for item in offers]
    assert any("vcpus 8 is ignored" in note for note in found.notes)
    listed = list_accelerators(AcceleratorQuery("H100", 8.0), found.snapshot).offers
    assert {
        row.instance_type: row.price_per_hour for row in listed if row.source == OWN and row.cloud != "aws"
    } == {"dgx": 0.0, "loan": None}


@pytest.mark.slow
def test_the_overlaid_snapshot_is_sorted_as_planning_needs_it(
    tmp_path: Path, snapshot: OfferSnapshot
) -> None:
    found = overlay(snapshot, own_list(tmp_path, PRIVATE)).snapshot
    assert found.clouds == sorted(found.clouds) and len(found) == len(snapshot) + 3
    assert np.all(np.diff(found.machine) >= 0) and np.all(np.diff(found.machines.cloud) >= 0)
    assert np.all(np.diff(found.machines.first_offer) > 0) and found.machines.first_offer[-1] == len(found)
    assert np.array_equal(found.places.cloud[found.place], found.machines.cloud[found.machine])
    before = {key: value for key, value in prices_of(snapshot).items() if key[0] != "p5.48xlarge"}
    after = prices_of(found)
    assert all(after[key] == value for key, value in before.items())


def test_the_example_is_right(snapshot: OfferSnapshot) -> None:
    found = overlay(snapshot, read_own(EXAMPLE))
    assert found.notes == () and len(found.snapshot) == len(snapshot) + 2
