"""Keeps observed prices in SQL, bounded: single observations for two weeks, then one point a day, for a year and a month.

An observation equal to the one before it is kept only once a day: a price that stands still is one point a day.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    String,
    Table,
    delete,
    func,
    insert,
    literal,
    select,
)

from skyloom_common.contracts.catalog import PriceHistory, PricePoint, PriceSeries
from skyloom_common.core.clock import Clock
from skyloom_common.core.errors import InvalidRequest
from skyloom_common.store import Database
from skyloom_optimizer.outcomes import metadata

DAY = 86400.0
KEEP_RAW = 14 * DAY
KEEP_DAYS = 400 * DAY
MAX_POINTS = 20_000
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

    async def history(
        self,
        cloud: str,
        instance_type: str,
        region: str | None = None,
        zone: str | None = None,
        use_spot: bool | None = None,
        since: float = 0.0,
    ) -> PriceHistory:
        """Series by place and capacity type, at most MAX_POINTS newest points in all."""
        if not cloud or not instance_type:
            raise InvalidRequest(
                "cloud and instance_type: both are needed; such as cloud=aws&instance_type=p5.48xlarge"
            )
        statement = select(price_points).where(
            _C.cloud == cloud, _C.instance_type == instance_type, _C.at >= since
        )
        for column, value in ((_C.region, region), (_C.zone, zone), (_C.use_spot, use_spot)):
            if value is not None:
                statement = statement.where(column == value)
        async with self._database.read() as connection:
            newest = statement.order_by(_C.at.desc()).limit(MAX_POINTS)
            rows = (await connection.execute(newest)).mappings().all()
        return PriceHistory(tuple(_series(rows)))

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
