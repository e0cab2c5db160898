"""Observed prices as time series: deduplicated, bounded, served."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skyloom_common.contracts.catalog import PriceHistory, PricePoint
from skyloom_common.core.errors import InvalidRequest
from skyloom_common.store import Database, ensure_schema
from skyloom_common.testing.clock import FakeClock
from skyloom_optimizer.history.downsample import downsampled
from skyloom_optimizer.history.query import HistoryQuery, machines_of
from skyloom_optimizer.history.store import DAY, KEEP_DAYS, KEEP_RAW, PriceHistoryStore
from skyloom_optimizer.main import SCHEMA
from skyloom_optimizer.snapshot import OfferSnapshot

START = 1_794_960_000.0
P5 = [("aws", "p5.48xlarge")]


def seen(price: float, zone: str = "use1-az4", use_spot: bool = True) -> list[object]:
    return ["aws", "us-east-1", zone, "p5.48xlarge", use_spot, price]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[PriceHistoryStore]:
    database = Database(f"sqlite:///{tmp_path}/optimizer.db")
    await ensure_schema(database, SCHEMA)
    yield PriceHistoryStore(database, FakeClock(START))
    await database.close()


async def points(store: PriceHistoryStore, **more: object) -> list[tuple[float, float]]:
    found = await store.history(HistoryQuery(P5, **more))  # type: ignore[arg-type]
    return [(point.at, point.price) for series in found.series for point in series.points]


async def test_series_by_place_and_capacity_type(store: PriceHistoryStore) -> None:
    await store.record(START, [seen(20.0), seen(21.0, "use1-az6"), seen(55.0, use_spot=False)])
    await store.record(START + 60, [seen(19.0)])
    found = await store.history(HistoryQuery(P5))
    assert [(series.zone, series.use_spot, len(series.points)) for series in found.series] == [
        ("use1-az4", False, 1), ("use1-az4", True, 2), ("use1-az6", True, 1),
    ]  # fmt: skip
    assert await points(store, zone="use1-az4", use_spot=True) == [(START, 20.0), (START + 60, 19.0)]
    assert await points(store, region="eu-west-1") == []
    assert await points(store, zone="use1-az4", since=START + 1) == [(START + 60, 19.0)]


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
    (series,) = (await store.history(HistoryQuery(P5))).series
    first, second = series.points
    assert (first.price, first.low, first.high, first.samples, first.seconds) == (20.0, 10.0, 30.0, 3, DAY)
    assert (first.at, second.price, second.seconds) == (START, 40.0, 0.0)
    await store.thin(START + KEEP_RAW + DAY)
    assert len(await points(store)) == 2
    await store.thin(START + KEEP_DAYS + 2 * DAY)
    assert [price for _, price in await points(store)] == [40.0]


# --- series in even steps ---


def point(at: float, price: float, seconds: float = 0.0) -> PricePoint:
    return PricePoint(at, price, price, price, seconds)


def test_a_price_weighs_as_long_as_it_stood() -> None:
    found = downsampled([point(0, 10.0), point(2700, 20.0), point(5400, 40.0)], 3600, 0, 7200)
    assert [(p.at, p.price, p.low, p.high, p.seconds, p.samples) for p in found] == [
        (0, 12.5, 10.0, 20.0, 3600, 2),
        (3600, 30.0, 20.0, 40.0, 3600, 1),
    ]


def test_what_was_in_force_before_the_range_counts_in_it_and_silence_is_a_gap() -> None:
    found = downsampled([point(0, 10.0), point(5 * DAY, 20.0)], DAY, DAY / 2, 5 * DAY + 10)
    assert [(p.at / DAY, p.price, p.samples) for p in found] == [(0, 10.0, 0), (1, 10.0, 0), (5, 20.0, 1)]


def test_daily_means_keep_their_range() -> None:
    daily = PricePoint(0, 15.0, 10.0, 20.0, DAY, 24)
    (found,) = downsampled([daily, point(DAY, 30.0)], 2 * DAY, 0, 2 * DAY)
    assert (found.price, found.low, found.high, found.samples) == (22.5, 10.0, 30.0, 25)


def test_no_observations_no_points() -> None:
    assert downsampled([], 3600, 0, 7200) == ()
    assert downsampled([point(9000, 1.0)], 3600, 0, 7200) == ()


@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.floats(0.01, 100)), min_size=1, max_size=40),
    st.sampled_from([60.0, 3600.0, DAY]),
    st.floats(0, 5e5),
)
@settings(max_examples=20, deadline=None)
def test_steps_stay_within_what_was_seen(seen: list[tuple[float, float]], step: float, since: float) -> None:
    points = [point(at, price) for at, price in sorted(dict(seen).items())]
    found = downsampled(points, step, since, 1e6 + DAY)
    prices = [p.price for p in points]
    assert all(
        min(prices) - 1e-9 <= p.low <= p.price + 1e-9 <= p.high + 2e-9 <= max(prices) + 3e-9 for p in found
    )
    assert [p.at for p in found] == sorted({p.at for p in found}) and all(p.at % step == 0 for p in found)
    assert sum(p.samples for p in found) == sum(p.at >= since for p in points)


async def test_a_dashboard_gets_at_most_so_many_points(store: PriceHistoryStore) -> None:
    for hour in range(0, 30 * 24, 8):
        await store.record(START + hour * 3600, [seen(20.0 + hour % 24)])
    end = START + 30 * DAY
    found = await store.history(HistoryQuery(P5, since=START, until=end, points=100))
    (series,) = found.series
    assert found.step_seconds == 43200 and 60 <= len(series.points) <= 61 and not found.truncated
    assert (min(p.low for p in series.points), max(p.high for p in series.points)) == (20.0, 36.0)
    assert await store.history(HistoryQuery(P5, since=end + 10 * DAY, points=10)) == PriceHistory()
    with pytest.raises(InvalidRequest, match="too fine for this range; at least 1320"):
        await store.history(HistoryQuery(P5, since=START, until=end, step=60))


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"since": 5.0, "until": 5.0}, "since: 5 is not before"),
        ({"since": float("nan")}, "since: nan"),
        ({"step": 60.0, "points": 5}, "step and points"),
        ({"step": 1.0}, "step: 1 is not"),
        ({"step": float("nan")}, "step: nan"),
        ({"points": 0}, "points: 0 is not between"),
        ({"points": 100000}, "points: 100000"),
    ],
)
def test_questions_that_make_no_sense(asked: dict[str, float], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        HistoryQuery(P5, **asked)  # type: ignore[arg-type]


def test_machines_by_what_is_in_them(snapshot: OfferSnapshot) -> None:
    found = machines_of(snapshot, None, None, "H100:8")
    assert ("aws", "p5.48xlarge") in found and ("azure", "Standard_ND96isr_H100_v5") in found
    assert machines_of(snapshot, "aws", None, "h100:8") == [("aws", "p5.48xlarge")]
    assert set(found) < set(machines_of(snapshot, None, None, "H100"))
    for asked, words in (
        ((None, None, None), "say which prices"),
        (("aws", None, None), "say which prices"),
        (("aws", "p5.48xlarge", "H100"), "leave the other out"),
        ((None, None, "H1000"), "not a known accelerator; did you mean"),
        ((None, None, "H100:many"), "not NAME or NAME:COUNT"),
        (("awss", None, "H100"), "did you mean 'aws'"),
    ):
        with pytest.raises(InvalidRequest, match=words):
            machines_of(snapshot, *asked)
