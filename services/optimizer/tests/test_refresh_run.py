"""A whole refresh on a small catalog: accepted, refused, interrupted, resumed, and swapped under a running reader."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from skyloom_common.contracts.catalog import CatalogRefresh, CatalogRefreshRequest
from skyloom_common.store import Database, ensure_schema
from skyloom_optimizer.catalog import columns, csvform
from skyloom_optimizer.catalog.build import CONTAINER
from skyloom_optimizer.catalog.columns import Container
from skyloom_optimizer.main import SCHEMA
from skyloom_optimizer.refresh.files import RESUME_SECONDS, RefreshFiles
from skyloom_optimizer.refresh.live import LiveCatalog
from skyloom_optimizer.refresh.model import (
    Feed,
    FeedError,
    FeedInfo,
    FeedNotConfigured,
    FeedRow,
    FeedUnavailable,
    Known,
    RefreshRunning,
)
from skyloom_optimizer.refresh.run import Refresh
from skyloom_optimizer.refresh.settings import FeedSettings
from skyloom_optimizer.refresh.shared import SharedParts

NOW = 1_795_000_000.0
AZURE = CatalogRefreshRequest(("azure",))
REGIONS = ("eastus", "northeurope", "westeurope")


class FakeFeed:
    """Lists what `listed` says; `fail` by region."""

    info = FeedInfo("azure", "azure-retail", "a feed of the tests")

    def __init__(self, listed: dict[str, list[FeedRow]]) -> None:
        self.listed = listed
        self.fail: dict[str, BaseException] = {}
        self.fetched: list[str] = []

    def parts(self, known: Known, all_regions: bool) -> Sequence[str]:
        return known.every_region if all_regions else known.regions

    def fetch(self, part: str) -> Sequence[FeedRow]:
        self.fetched.append(part)
        if part in self.fail:
            raise self.fail[part]
        return self.listed[part]

    def close(self) -> None:
        return


class World:
    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.base = folder / "base.skycol"
        self.base.write_bytes(small_base(1.0))
        self.files = RefreshFiles(folder / "home", lambda: self.now)
        self.now = NOW
        self.feed = FakeFeed({region: listed(region, 1.1) for region in REGIONS})

    def refresh(self, request: CatalogRefreshRequest = AZURE) -> CatalogRefresh:
        def make(cloud: str) -> Feed:
            if cloud != "azure":
                raise FeedNotConfigured(f"no key for {cloud}", hint="Get one.")
            return self.feed

        return Refresh(self.files, self.base, FeedSettings(), make, lambda: self.now).run(request, "run-1")

    def prices(self) -> dict[str, float]:
        rows = csvform.offer_rows(Container(self.files.container.read_bytes()))
        return {f"{row[1]}/{row[3]}": float(row[10]) for row in rows if row[0] == "azure"}


def listed(region: str, price: float, count: int = 30) -> list[FeedRow]:
    return [FeedRow(region, f"Standard_T{number}", price=price) for number in range(count)]


def small_base(price: float) -> bytes:
    bundled = Container(CONTAINER.read_bytes())
    tables = {name: bundled.table(name) for name in bundled.names() if name not in ("offers", "doubtful")}
    rows = [
        (
            "azure",
            region,
            "",
            f"Standard_T{number}",
            "4",
            "16",
            "",
            "",
            "",
            "x86_64",
            f"{price:g}",
            "",
            "sky8",
            "",
        )
        for region in REGIONS
        for number in range(30)
    ]
    other = ("do", "nyc1", "", "g-2", "2", "8", "", "", "", "x86_64", "0.1", "", "sky6-do", "")
    return columns.pack(tables | csvform.offer_tables([*rows, other]), {"form": 1})


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_refresh_replaces_prices_and_says_what_changed(world: World) -> None:
    world.feed.listed["westeurope"] = [
        *listed("westeurope", 1.5, 29),
        FeedRow("westeurope", "Standard_New", price=3.0),
    ]
    report = world.refresh()
    assert report.status == "succeeded" and report.ended_at == NOW
    (cloud,) = report.clouds
    assert (cloud.status, cloud.offers, cloud.new, cloud.gone, cloud.up, cloud.down) == (
        "refreshed",
        90,
        1,
        1,
        29,
        0,
    )
    assert cloud.changes[0].instance_type == "Standard_New"
    prices = world.prices()
    assert prices["westeurope/Standard_New"] == 3.0 and prices["eastus/Standard_T1"] == 1.1
    assert "westeurope/Standard_T29" not in prices
    container = Container(world.files.container.read_bytes())
    sources = container.table("sources")["code"]
    assert isinstance(sources, columns.TextColumn) and "azure-retail-2026-11-18" in sources.values()
    assert world.files.report() == report and report.version == container.sha256[:12]
    assert [row[0] for row in csvform.offer_rows(container) if row[0] != "azure"] == ["do"]


def test_sizes_and_other_clouds_stay(world: World) -> None:
    world.refresh()
    rows = list(csvform.offer_rows(Container(world.files.container.read_bytes())))
    assert {row[4:10] for row in rows if row[0] == "azure"} == {("4", "16", "", "", "", "x86_64")}


@pytest.mark.parametrize(
    "bad",
    [
        [],
        [FeedRow("westeurope", f"Standard_T{number}", price=1, currency="EUR") for number in range(30)],
        listed("westeurope", 0.0),
        listed("westeurope", 500.0),
        listed("westeurope", 1.1, 5),
    ],
    ids=["empty", "currency", "zero", "absurd", "short"],
)
def test_a_bad_part_never_replaces_a_good_one(world: World, bad: list[FeedRow]) -> None:
    world.feed.listed["westeurope"] = bad
    report = world.refresh()
    assert report.status == "partly" and set(report.clouds[0].refused) == {"westeurope"}
    prices = world.prices()
    assert prices["westeurope/Standard_T1"] == 1.0 and prices["eastus/Standard_T1"] == 1.1
    assert sum(key.startswith("westeurope/") for key in prices) == 30


def test_nothing_usable_writes_nothing(world: World) -> None:
    world.refresh()
    good = world.files.container.read_bytes()
    world.now += 86400
    world.feed.listed = {region: [] for region in REGIONS}
    report = world.refresh()
    assert (report.status, report.clouds[0].status) == ("failed", "failed")
    assert "the list is empty" in report.clouds[0].message
    assert world.files.container.read_bytes() == good


def test_an_interrupted_refresh_goes_on_where_it_was(world: World) -> None:
    world.feed.fail["westeurope"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        world.refresh()
    assert not world.files.container.exists()
    world.feed.fail.clear()
    world.feed.fetched.clear()
    world.now += 600
    report = world.refresh()
    assert world.feed.fetched == ["westeurope"]
    assert (report.clouds[0].parts_done, report.clouds[0].parts_resumed) == (3, 2)
    assert len(world.prices()) == 90
    world.feed.fetched.clear()
    world.refresh()
    assert sorted(world.feed.fetched) == list(REGIONS)


def test_what_is_too_old_or_broken_is_fetched_again(world: World) -> None:
    world.feed.fail["westeurope"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        world.refresh()
    (world.files.folder / "fetched" / "azure" / "eastus.json.gz").write_bytes(b"half a fi")
    world.feed.fail.clear()
    world.feed.fetched.clear()
    assert world.refresh().clouds[0].parts_resumed == 1
    world.feed.fail["westeurope"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        world.refresh()
    world.feed.fail.clear()
    world.now += RESUME_SECONDS + 1
    assert world.refresh().clouds[0].parts_resumed == 0


def test_a_region_that_fails_does_not_hold_up_the_others(world: World) -> None:
    world.feed.fail["northeurope"] = FeedError("northeurope is out of order")
    report = world.refresh()
    assert report.status == "partly"
    assert report.clouds[0].refused == {"northeurope": "northeurope is out of order"}
    assert world.prices()["westeurope/Standard_T1"] == 1.1


def test_a_cloud_that_fell_silent_is_not_asked_for_every_region(world: World) -> None:
    world.feed.fail = {region: FeedUnavailable("no answer") for region in REGIONS}
    report = world.refresh()
    assert (report.status, report.clouds[0].status, len(world.feed.fetched)) == ("failed", "failed", 3)


def test_a_cloud_without_a_key_says_so_and_others_go_on(world: World) -> None:
    report = world.refresh(CatalogRefreshRequest(("lambda", "azure")))
    assert report.status == "succeeded"
    assert (report.clouds[0].status, report.clouds[0].message) == (
        "not_configured",
        "no key for lambda. Get one.",
    )


def test_a_missing_price_keeps_the_one_of_the_refresh_before(world: World) -> None:
    world.refresh()
    world.now += 86400
    world.feed.listed["eastus"] = [
        FeedRow("eastus", row.instance_type, spot_price=0.4) for row in listed("eastus", 0)
    ]
    world.refresh()
    rows = [
        row for row in csvform.offer_rows(Container(world.files.container.read_bytes())) if row[1] == "eastus"
    ]
    assert {row[10:] for row in rows} == {
        ("1.1", "0.4", "azure-retail-2026-11-18", "azure-retail-2026-11-19")
    }


def test_only_one_at_a_time(world: World) -> None:
    with world.files.only_one():
        assert world.files.is_running()
        with pytest.raises(RefreshRunning), RefreshFiles(world.files.folder.parent).only_one():
            pass
    assert not world.files.is_running()


# --- the reader's side ---


def live_of(world: World, own: Path | None = None) -> LiveCatalog:
    return LiveCatalog(world.base, world.files.container, own)


def cheapest(live: LiveCatalog) -> float:
    return float(live.current.catalog.snapshot.on_demand.price.max())


def test_a_running_reader_gets_the_new_catalog_and_keeps_what_it_holds(world: World) -> None:
    live = live_of(world)
    held = live.current
    assert cheapest(live) == 1.0 and not live.reload_if_changed()
    world.refresh()
    assert live.reload_if_changed() and cheapest(live) == 1.1
    assert live.current.refreshed == {"azure": NOW}
    assert float(held.catalog.snapshot.on_demand.price.max()) == 1.0


def test_a_damaged_file_leaves_the_base_and_is_told(world: World) -> None:
    world.refresh()
    data = world.files.container.read_bytes()
    world.files.container.write_bytes(data[:-40] + bytes(40))
    live = live_of(world)
    assert cheapest(live) == 1.0 and "cannot be used" in live.current.problems[0] and live.current.outdated


def test_after_an_update_of_the_base_the_accepted_parts_are_put_into_it(world: World) -> None:
    world.refresh()
    world.base.write_bytes(small_base(0.9))
    live = live_of(world)
    assert live.current.outdated and cheapest(live) == 0.9
    Refresh(world.files, world.base, FeedSettings(), lambda cloud: world.feed, lambda: world.now).rebuild()
    assert live.reload_if_changed() and not live.current.outdated and cheapest(live) == 1.1


def test_own_offers_are_taken_up_and_a_fault_in_them_leaves_the_last_good_ones(
    world: World, tmp_path: Path
) -> None:
    own = tmp_path / "offers.yaml"
    live = live_of(world, own)
    own.write_text("prices: [{cloud: azure, region: eastus, price_per_hour: 7}]")
    assert live.reload_if_changed() and cheapest(live) == 7.0 and live.current.own == 1
    version = live.current.catalog.version
    own.write_text("prices: [{cloud: azure, prize: 8}]")
    os.utime(own, ns=(1, 1))
    live.reload_if_changed()
    assert cheapest(live) == 7.0 and live.current.catalog.version == version
    assert "offers.yaml:1: prices[0].prize: unknown field" in live.current.problems[0]
    own.unlink()
    assert live.reload_if_changed() and cheapest(live) == 1.0 and live.current.problems == ()


# --- replicas ---


async def test_what_one_replica_took_all_of_them_use(tmp_path: Path) -> None:
    first, second = World(tmp_path / "one"), World(tmp_path / "two")
    database = Database(f"sqlite:///{tmp_path}/shared.db")
    await ensure_schema(database, SCHEMA)
    one, two = SharedParts(database, first.files), SharedParts(database, second.files)
    report = first.refresh()
    assert not await one.sync() and await two.sync()
    await one.tell(report)
    assert await two.told() == report
    Refresh(second.files, second.base, FeedSettings(), lambda cloud: second.feed).rebuild()
    assert second.prices() == first.prices()
    second.now += 86400
    second.feed.listed["eastus"] = listed("eastus", 1.2)
    second.refresh()
    assert not await two.sync() and await one.sync() and not await one.sync()
    Refresh(first.files, first.base, FeedSettings(), lambda cloud: first.feed).rebuild()
    assert first.prices() == second.prices() and first.prices()["eastus/Standard_T1"] == 1.2
    await database.close()
