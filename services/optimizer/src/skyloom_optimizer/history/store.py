"""Keeps observed prices in SQL, bounded: single observations for two weeks, then one point a day, for a year and a month.

An observation equal to the one before it is kept only once a day: a price that stands still is one point a day.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    Select,
    String,
    Table,
    delete,
    func,
    insert,
    literal,
    or_,
    select,
)

from skyloom_common.contracts.catalog import PriceHistory, PricePoint, PriceSeries
from skyloom_common.core.clock import Clock
from skyloom_common.store import Database
from skyloom_optimizer.history.downsample import HOLDS_SECONDS, downsampled
from skyloom_optimizer.history.query import HistoryQuery
from skyloom_optimizer.outcomes import metadata

DAY = 86400.0
KEEP_RAW = 14 * DAY
KEEP_DAYS = 400 * DAY
MAX_POINTS = 20_000
MAX_SAMPLED = 200_000
"""Rows read for series in steps: what is answered is far less."""
_CHUNK = 1000
_THIN_EVERY = 3600.0

price_points = Table(
    "price_points",
    metadata,
    Column("cloud", String(64), primary_key=True),
    Column("instance_type", String(128), primary_key=True),
    Column("region", String(128), primary_key=True),
    Column("zone", String(128), primary_key=True),
    Column("use_spot", Boolean, primary_key=True),
    Column("seconds", Float, primary_key=True),
    Column("at", Float, primary_key=True),
    Column("day", Integer, nullable=False),
    Column("price", Float, nullable=False),
    Column("low", Float, nullable=False),
    Column("high", Float, nullable=False),
    Column("samples", Integer, nullable=False),
    Index("price_points_seconds_day", "seconds", "day"),
    sqlite_with_rowid=False,
)
_C = price_points.c
_KEY = (_C.cloud, _C.instance_type, _C.region, _C.zone, _C.use_spot)
Seen = Sequence[Any]
"""cloud, region, zone, instance type, use_spot, price"""


class PriceHistoryStore:
    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._thinned_at: float | None = None

    async def record(self, at: float, rows: Sequence[Seen]) -> int:
        """How many became points. Repeating an observation changes nothing."""
        known = await self._known_since(at - DAY, at, sorted({str(row[0]) for row in rows}))
        points = [
            _point(at, row)
            for row in rows
            if known.get((row[0], row[3], row[1], row[2], bool(row[4]))) != row[5]
        ]
        for first in range(0, len(points), _CHUNK):
            async with self._database.write() as connection:
                await connection.execute(self._insert(), points[first : first + _CHUNK])
        await self._thin_sometimes()
        return len(points)

    async def history(self, query: HistoryQuery) -> PriceHistory:
        """Series by place and capacity type; of more points than the limit the newest."""
        if not query.machines:
            return PriceHistory()
        limit = MAX_SAMPLED if query.sampled else MAX_POINTS
        async with self._database.read() as connection:
            newest = _asked(query).order_by(_C.at.desc()).limit(limit)
            rows = (await connection.execute(newest)).mappings().all()
        truncated = len(rows) == limit
        if not query.sampled:
            return PriceHistory(tuple(_series(rows)), truncated=truncated)
        return await asyncio.to_thread(_sampled, rows, query, truncated, self._clock.now())

    async def thin(self, now: float) -> None:
        """Whole days older than KEEP_RAW become one point each; what is older than KEEP_DAYS goes."""
        edge = int((now - KEEP_RAW) // DAY)
        old = (_C.seconds == 0.0) & (_C.day < edge)
        daily = (
            select(
                *_KEY, literal(DAY), _C.day * DAY, _C.day,
                func.avg(_C.price), func.min(_C.low), func.max(_C.high), func.sum(_C.samples),
            )
            .where(old)
            .group_by(*_KEY, _C.day)
        )  # fmt: skip
        names = [column.name for column in price_points.columns]
        async with self._database.write() as connection:
            await connection.execute(insert(price_points).from_select(names, daily))
            await connection.execute(delete(price_points).where(old))
            await connection.execute(delete(price_points).where(_C.day < int((now - KEEP_DAYS) // DAY)))

    async def _known_since(
        self, since: float, until: float, clouds: Sequence[str]
    ) -> dict[tuple[Any, ...], float]:
        """The last price of each key in this time."""
        statement = (
            select(*_KEY, _C.price)
            .where(_C.seconds == 0.0, _C.day >= int(since // DAY), _C.at > since, _C.at <= until)
            .where(_C.cloud.in_(clouds))
            .order_by(_C.at)
        )
        async with self._database.read() as connection:
            rows = (await connection.execute(statement)).all()
        return {(row[0], row[1], row[2], row[3], bool(row[4])): row[5] for row in rows}

    def _insert(self) -> Any:
        if self._database.is_sqlite:
            from sqlalchemy.dialects.sqlite import insert as insert_sqlite

            return insert_sqlite(price_points).on_conflict_do_nothing()
        from sqlalchemy.dialects.postgresql import insert as insert_postgresql

        return insert_postgresql(price_points).on_conflict_do_nothing()

    async def _thin_sometimes(self) -> None:
        moment = self._clock.monotonic()
        if self._thinned_at is None or moment - self._thinned_at > _THIN_EVERY:
            self._thinned_at = moment
            await self.thin(self._clock.now())


def _asked(query: HistoryQuery) -> Select[Any]:
    types: dict[str, list[str]] = {}
    for cloud, kind in query.machines:
        types.setdefault(cloud, []).append(kind)
    machines = or_(*((_C.cloud == cloud) & _C.instance_type.in_(kinds) for cloud, kinds in types.items()))
    # What was in force at the beginning was seen before it.
    since = query.since - (HOLDS_SECONDS if query.sampled else 0.0)
    statement = select(price_points).where(machines, _C.at >= since)
    if query.until != math.inf:
        statement = statement.where(_C.at < query.until)
    for column, value in ((_C.region, query.region), (_C.zone, query.zone), (_C.use_spot, query.use_spot)):
        if value is not None:
            statement = statement.where(column == value)
    return statement


def _sampled(rows: Sequence[Any], query: HistoryQuery, truncated: bool, now: float) -> PriceHistory:
    if not rows:
        return PriceHistory()
    first = max(query.since, min(row["at"] for row in rows))
    until = min(query.until, max(now, rows[0]["at"] + 1))
    step = query.step_of(first, until)
    series = [replace(item, points=downsampled(item.points, step, first, until)) for item in _series(rows)]
    return PriceHistory(tuple(item for item in series if item.points), step, truncated)


def _point(at: float, row: Seen) -> dict[str, Any]:
    cloud, region, zone, kind, use_spot, price = row
    return {
        "cloud": cloud, "instance_type": kind, "region": region, "zone": zone, "use_spot": bool(use_spot),
        "seconds": 0.0, "at": at, "day": int(at // DAY), "price": price, "low": price, "high": price, "samples": 1,
    }  # fmt: skip


def _series(rows: Sequence[Any]) -> list[PriceSeries]:
    found: dict[tuple[str, str, str, str, bool], list[PricePoint]] = {}
    for row in reversed(rows):
        key = (row["cloud"], row["region"], row["zone"], row["instance_type"], bool(row["use_spot"]))
        point = PricePoint(row["at"], row["price"], row["low"], row["high"], row["seconds"], row["samples"])
        found.setdefault(key, []).append(point)
    return [PriceSeries(*key, points=tuple(points)) for key, points in sorted(found.items())]
