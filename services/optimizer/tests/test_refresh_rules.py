"""What makes a feed believable, what changed, and how fetched offers become catalog rows. Pure."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest

from skyloom_optimizer.catalog.load import Catalog
from skyloom_optimizer.refresh.aws import product_price
from skyloom_optimizer.refresh.by_gpuhunt import GpuhuntFeed
from skyloom_optimizer.refresh.diff import diff
from skyloom_optimizer.refresh.gcp_skus import part_of
from skyloom_optimizer.refresh.merge import CloudRows, canonical, finished
from skyloom_optimizer.refresh.model import FeedError, FeedInfo, FeedRow
from skyloom_optimizer.refresh.sanity import Rules, Verdict, judge
from skyloom_optimizer.refresh.vast import _step
from skyloom_optimizer.snapshot import OfferSnapshot

INFO = FeedInfo("azure", "azure-retail", "test")
RULES = Rules()


def rows(count: int, price: float | None = 1.0) -> list[FeedRow]:
    return [FeedRow("west", f"type-{number}", price=price, spot_price=0.5) for number in range(count)]


def before(
    count: int, price: float = 1.0
) -> dict[tuple[str, str, str, str], tuple[float | None, float | None]]:
    return {("azure", "west", "", f"type-{number}"): (price, 0.5) for number in range(count)}


def verdict(feed: list[FeedRow], known: int = 100, price: float = 1.0, *, force: bool = False) -> Verdict:
    return judge(INFO, feed, before(known, price), RULES, force=force)


def test_a_plain_list_is_taken_as_it_is() -> None:
    assert verdict(rows(100)) == Verdict(rows(100), notes=[])


@pytest.mark.parametrize(
    ("feed", "words"),
    [
        ([], "the list is empty"),
        ([*rows(99), FeedRow("west", "x", price=1, currency="EUR")], "priced in 'EUR'"),
        ([*rows(99), FeedRow("west", "", price=1)], "no usable instance type"),
        ([*rows(99), FeedRow("west", "a\nb", price=1)], "no usable instance type"),
        ([*rows(99), *rows(1)], "listed twice"),
        (rows(69), "more than 30% are missing"),
        (rows(100, 0.0), "cannot be right"),
        (rows(100, 1e9), "cannot be right"),
        (rows(100, -1.0), "cannot be right"),
        (rows(100, 4.1), "100 of 200 prices jump"),
        (rows(100, 0.2), "prices jump"),
    ],
)
def test_what_is_refused(feed: list[FeedRow], words: str) -> None:
    assert words in verdict(feed).refused


def test_force_admits_jumps_and_short_lists_but_nothing_broken() -> None:
    assert not verdict(rows(10, 40.0), force=True).refused
    assert verdict([FeedRow("west", "x", price=1, currency="EUR")], force=True).refused
    assert verdict(rows(10, 0.0), force=True).refused


def test_single_strange_prices_are_left_out_and_the_rest_is_taken() -> None:
    feed = rows(100)
    feed[3] = dataclasses.replace(feed[3], price=0.0)
    feed[4] = dataclasses.replace(feed[4], price=9.0)
    found = verdict(feed)
    assert not found.refused and found.held == 1
    assert (found.rows[3].price, found.rows[4].price, found.rows[5].price) == (None, None, 1.0)
    assert found.rows[3].spot_price == 0.5
    assert "from $1 to $9" in found.notes[1]


def test_few_known_offers_say_nothing_about_a_short_list_and_a_market_may_shrink() -> None:
    assert not verdict(rows(2), known=10).refused
    assert not judge(dataclasses.replace(INFO, market=True), rows(10), before(100), RULES).refused
    assert judge(dataclasses.replace(INFO, market=True), rows(4), before(100), RULES).refused


def test_spot_dearer_than_on_demand_is_left_out() -> None:
    (row,) = judge(INFO, [FeedRow("west", "x", price=1.0, spot_price=1.4)], {}, RULES).rows
    assert (row.price, row.spot_price) == (1.0, None)


def test_diff_counts_and_lists_the_dearest_first() -> None:
    def key(name: str) -> tuple[str, str, str, str]:
        return ("azure", "west", "", name)

    old = {
        key("same"): (1.0, 0.5),
        key("gone"): (9.0, None),
        key("up"): (1.0, 0.5),
        key("little"): (1.0, None),
    }
    new = {
        key("same"): (1.0, 0.5),
        key("new"): (2.0, None),
        key("up"): (1.3, 0.1),
        key("little"): (1.19, None),
    }
    found = diff(old, new)
    assert (found.new, found.gone, found.up, found.down, found.same) == (1, 1, 1, 1, 2)
    assert [(change.kind, change.instance_type, change.use_spot) for change in found.changes] == [
        ("gone", "gone", False), ("new", "new", False), ("up", "up", False), ("down", "up", True),
    ]  # fmt: skip
    assert len(diff(old, new, keep=1).changes) == 1 and diff(old, old).changes == ()


OLD = ("azure", "west", "", "nd", "96", "900", "A100", "8", "40", "x86_64", "27.2", "10", "s1", "s2")


def test_what_a_feed_does_not_say_stays_with_its_own_source(snapshot: OfferSnapshot) -> None:
    cloud = CloudRows("azure", [OLD], snapshot.names)
    (row,) = finished(cloud, INFO, "west", [FeedRow("west", "nd", price=30.0)], "new")
    assert row == (*OLD[:10], "30", "10", "new", "s2")
    (row,) = finished(cloud, INFO, "west", [FeedRow("west", "nd", spot_price=9.123456)], "new")
    assert row == (*OLD[:10], "27.2", "9.123456", "s1", "new")


def test_a_kept_spot_price_above_the_new_price_is_dropped(snapshot: OfferSnapshot) -> None:
    cloud = CloudRows("azure", [OLD], snapshot.names)
    (row,) = finished(cloud, INFO, "west", [FeedRow("west", "nd", price=5.0)], "new")
    assert row[10:] == ("5", "", "new", "")


def test_a_device_keeps_its_name_and_a_new_type_gets_the_catalogs_one(snapshot: OfferSnapshot) -> None:
    cloud = CloudRows("azure", [OLD], snapshot.names)
    same = FeedRow(
        "west", "nd", accelerator="Tesla A100", accelerator_count=8, accelerator_memory_gib=39.6, price=1
    )
    assert finished(cloud, INFO, "west", [same], "new")[0][6:9] == ("A100", "8", "40")
    larger = dataclasses.replace(same, accelerator_memory_gib=80)
    assert finished(cloud, INFO, "west", [larger], "new")[0][6:9] == ("A100-80GB", "8", "80")
    fresh = FeedRow(
        "west", "other", accelerator="NVIDIA H100", accelerator_count=4, accelerator_memory_gib=80, price=1
    )
    assert finished(cloud, INFO, "west", [fresh], "new")[0][4:9] == ("", "", "H100", "4", "80")


@pytest.mark.parametrize(
    ("name", "memory", "right"),
    [
        ("A100", 80.0, "A100-80GB"), ("A100", 40.0, "A100"), ("H100", 80.0, "H100"), ("RTX A6000", 48.0, "RTXA6000"),
        ("NVIDIA GeForce RTX 4090", 24.0, "RTX4090"), ("V100", 32.0, "V100-32GB"), ("Tesla T4", 15.0, "T4"), ("XPU 9", None, "XPU9"),
    ],
)  # fmt: skip
def test_names_of_devices(snapshot: OfferSnapshot, name: str, memory: float | None, right: str) -> None:
    assert canonical(name, memory, snapshot.names) == right


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("N1 Predefined Instance Core running in Americas", "n1/core"),
        ("Spot Preemptible E2 Instance Ram running in Zurich", "e2/ram"),
        ("N2D AMD Instance Core running in Iowa", "n2d/core"),
        ("C4A Arm Instance Ram running in Iowa", "c4a/ram"),
        ("M3 Memory-optimized Instance Core running in Iowa", "m3/core"),
        ("Memory-optimized Instance Core running in Iowa", "m1/core"),
        ("Compute optimized Core running in Iowa", "c2/core"),
        ("A3Plus Instance Ram running in Iowa", "a3-megagpu/ram"),
        ("Nvidia Tesla A100 80GB GPU attached to Spot Preemptible VMs running in Iowa", "nvidia-a100-80gb"),
        ("Nvidia H100 80GB Plus GPU running in Iowa", "nvidia-h100-mega-80gb"),
        ("Nvidia H100 80GB GPU running in Iowa", "nvidia-h100-80gb"),
        ("Licensing Fee for Windows Server", None),
        ("Network Internet Egress from Iowa", None),
    ],
)
def test_descriptions_of_google(text: str, part: str | None) -> None:
    assert part_of(text) == part


def test_a_document_of_the_bulk_list_is_read_like_the_apis(catalog: Catalog) -> None:
    document = {
        "product": {"attributes": {"instanceType": "m5.large"}},
        "terms": {
            "OnDemand": {"T": {"priceDimensions": {"D": {"unit": "Hrs", "pricePerUnit": {"USD": "0.096"}}}}}
        },
    }
    assert product_price(document) == ("m5.large", 0.096, "USD")
    assert product_price({**document, "terms": {"Reserved": {}}}) is None
    with pytest.raises(FeedError):
        product_price({"product": {"attributes": {}}})


def test_sizes_of_a_market_are_rounded_down() -> None:
    assert [_step(value) for value in (3, 4, 31.7, 33, 1000)] == [0, 4, 32, 32, 256]


@pytest.mark.parametrize(
    ("location", "gpu", "memory", "name", "right"),
    [
        ("US-KS-2", "H100", 80.0, "NVIDIA H100 80GB HBM3", ("US", "2x_H100-SXM_SECURE")),
        ("EU-RO-1", "A100", 80.0, "NVIDIA A100 80GB PCIe", ("RO", "2x_A100-80GB_SECURE")),
        ("CA-MTL-1", "A100", 80.0, "NVIDIA A100-SXM4-80GB", ("CA", "2x_A100-80GB-SXM_SECURE")),
        ("CZ", "RTX4090", 24.0, "NVIDIA GeForce RTX 4090", ("CZ", "2x_RTX4090_COMMUNITY")),
    ],
)
def test_types_of_runpod_have_the_catalogs_names(
    location: str, gpu: str, memory: float, name: str, right: tuple[str, str]
) -> None:
    item = SimpleNamespace(
        location=location, gpu_name=gpu, gpu_memory=memory, gpu_count=2, instance_name=name, cpu=16, memory=64.0,
        spot=False, price=3.0, cpu_arch=None,
    )  # fmt: skip
    (row,) = GpuhuntFeed("runpod", lambda: [item, SimpleNamespace(**{**vars(item), "price": 4.0})]).fetch("")
    assert (row.region, row.instance_type) == right and row.price == 3.0
