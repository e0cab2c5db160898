"""Observed prices as time series: deduplicated, bounded, served."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from skyloom_common.core.errors import InvalidRequest
from skyloom_common.store import Database, ensure_schema
from skyloom_common.testing.clock import FakeClock
from skyloom_optimizer.history.store import DAY, KEEP_DAYS, KEEP_RAW, PriceHistoryStore
from skyloom_optimizer.main import SCHEMA

START = 1_794_960_000.0


def seen(price: float, zone: str = "use1-az4", use_spot: bool = True) -> list[object]:
    return ["aws", "us-east-1", zone, "p5.48xlarge", use_spot, price]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[PriceHistoryStore]:
    database = Database(f"sqlite:///{tmp_path}/optimizer.db")
    await ensure_schema(database, SCHEMA)
    yield PriceHistoryStore(database, FakeClock(START))
    await database.close()


async def points(store: PriceHistoryStore, **more: object) -> list[tuple[float, float]]:
    found = await store.history("aws", "p5.48xlarge", **more)  # type: ignore[arg-type]
    return [(point.at, point.price) for series in found.series for point in series.points]


async def test_series_by_place_and_capacity_type(store: PriceHistoryStore) -> None:
    await store.record(START, [seen(20.0), seen(21.0, "use1-az6"), seen(55.0, use_spot=False)])
    await store.record(START + 60, [seen(19.0)])
    found = await store.history("aws", "p5.48xlarge")
    assert [(series.zone, series.use_spot, len(series.points)) for series in found.series] == [
        ("use1-az4", False, 1), ("use1-az4", True, 2), ("use1-az6", True, 1),
    ]  # fmt: skip
    assert await points(store, zone="use1-az4", use_spot=True) == [(START, 20.0), (START + 60, 19.0)]
    assert await points(store, region="eu-west-1") == []
    assert await points(store, zone="use1-az4", since=START + 1) == [(START + 60, 19.0)]
    with pytest.raises(InvalidRequest):
        await store.history("aws", "")


async def test_a_price_that_stands_still_is_one_point_a_day_and_repeating_changes_nothing(
    store: PriceHistoryStore,
) -> None:
    assert await store.record(START, [seen(20.0)]) == 1
    assert await store.record(START, [seen(20.0)]) == 0
    assert await store.record(START + 3600, [seen(20.0)]) == 0
    assert await store.record(START + DAY, [seen(20.0)]) == 1
    assert await store.record(START + DAY + 60, [seen(20.5)]) == 1
    assert await store.record(START + DAY + 60, [seen(20.5), seen(1.0, "other")]) == 1
    assert len(await points(store)) == 4


async def test_old_points_become_one_a_day_and_then_go(store: PriceHistoryStore) -> None:
    for hour, price in enumerate((10.0, 20.0, 30.0)):
        await store.record(START + hour * 3600, [seen(price)])
    await store.record(START + KEEP_RAW, [seen(40.0)])
    await store.thin(START + KEEP_RAW + DAY)
    (series,) = (await store.history("aws", "p5.48xlarge")).series
    first, second = series.points
    assert (first.price, first.low, first.high, first.samples, first.seconds) == (20.0, 10.0, 30.0, 3, DAY)
    assert (first.at, second.price, second.seconds) == (START, 40.0, 0.0)
    await store.thin(START + KEEP_RAW + DAY)
    assert len(await points(store)) == 2
    await store.thin(START + KEEP_DAYS + 2 * DAY)
    assert [price for _, price in await points(store)] == [40.0]
