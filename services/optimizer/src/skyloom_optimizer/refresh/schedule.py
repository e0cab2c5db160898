"""Refreshes the catalog now and then by itself: one replica holds the lease and does it, the others wait for its end.

It decides when (turns.py) and remembers how it went; what a refresh is, and that a bad one changes nothing, is not its business.
"""

from __future__ import annotations

import dataclasses
import logging
import random
from typing import Any, Protocol

from sqlalchemy import Column, Float, Integer, String, Table, Text, delete, insert, select

from skyloom_common.contracts.catalog import CatalogRefresh, CatalogRefreshRequest, CatalogSchedule
from skyloom_common.core.clock import Clock
from skyloom_common.core.errors import SkyloomError, StoreUnavailable
from skyloom_common.store import Database
from skyloom_common.store.lease import Lease, LeaseKeeper, LeaseTables
from skyloom_optimizer.outcomes import metadata
from skyloom_optimizer.refresh.metrics import CatalogMetrics
from skyloom_optimizer.refresh.model import RefreshRunning
from skyloom_optimizer.refresh.turns import DONE, FAILED, JITTER, RUNNING, Timetable, Turn, next_turn

KEY = "catalog-refresh"
LOOK_SECONDS = 15.0
lease_tables = LeaseTables.define(metadata, prefix="optimizer_")
refresh_turns = Table(
    "refresh_turns",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("run_id", String(64), nullable=False),
    Column("status", String(20), nullable=False),
    Column("begun_at", Float, nullable=False),
    Column("ended_at", Float),
    Column("jitter", Float, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("message", Text, nullable=False),
)


class Refresher(Protocol):
    """RefreshService, as far as it is used here."""

    async def start(self, request: CatalogRefreshRequest) -> CatalogRefresh: ...

    async def wait(self) -> None: ...

    async def report(self) -> CatalogRefresh | None: ...


class RefreshSchedule:
    """`run_forever` until cancelled, then `close`. With a timetable of 0 it only tells what others wrote down."""

    def __init__(
        self,
        database: Database,
        refresher: Refresher,
        timetable: Timetable,
        clock: Clock,
        metrics: CatalogMetrics,
        chance: random.Random | None = None,
        identity: str | None = None,
    ) -> None:
        self._database = database
        self._refresher = refresher
        self._timetable = timetable
        self._clock = clock
        self._metrics = metrics
        self._chance = chance or random.Random()
        self._keeper = LeaseKeeper(database, lease_tables, clock, ttl=60.0, identity=identity)
        self._started_at = clock.now()
        self._log = logging.getLogger(__name__)

    async def run_forever(self) -> None:
        if not self._timetable.every:
            return
        await self._keeper.start()
        while True:
            try:
                await self.look_once()
            except SkyloomError as error:
                self._log.warning("the catalog is refreshed later: %s", error)
            except Exception:
                self._log.exception("the refresh of the catalog by itself failed; it is tried again")
            await self._clock.sleep(LOOK_SECONDS)

    async def close(self) -> None:
        """Another replica may go on at once."""
        if self._timetable.every:
            await self._keeper.stop()

    async def look_once(self) -> None:
        """Refreshes if this replica holds the lease and a turn is due; returns when it has ended."""
        self._show(await self._last())
        lease = await self._keeper.acquire(KEY)
        if lease is None:
            return
        last = await self._last()
        if next_turn(self._timetable, last, self._started_at) > self._clock.now():
            return
        try:
            begun = await self._refresher.start(CatalogRefreshRequest(self._timetable.clouds))
        except RefreshRunning:
            return  # somebody asked for one; the turn stays due
        turn = Turn(
            begun.id, RUNNING, self._clock.now(), jitter=self._jitter(), failures=last.failures if last else 0
        )
        await self._write(lease, turn)
        await self._refresher.wait()
        turn = self._ended(turn, await self._refresher.report())
        await self._write(lease, turn)
        self._show(turn)

    async def state(self) -> CatalogSchedule | None:
        """None where nothing is refreshed by itself. Without its store it tells the timetable only."""
        if not self._timetable.every:
            return None
        try:
            last = await self._last()
        except StoreUnavailable:
            return CatalogSchedule(self._timetable.every, self._timetable.clouds)
        due = next_turn(self._timetable, last, self._started_at)
        found = CatalogSchedule(self._timetable.every, self._timetable.clouds, due)
        if last is None:
            return found
        return dataclasses.replace(
            found,
            last_at=last.begun_at,
            last_status=last.status,
            failures=last.failures,
            message=last.message,
        )

    def _ended(self, turn: Turn, report: CatalogRefresh | None) -> Turn:
        good = report is not None and report.id == turn.run_id and report.status in ("succeeded", "partly")
        failures = 0 if good else turn.failures + 1
        words = "" if good else _why(report)
        if not good:
            self._log.warning("refresh %s failed (%d in a row): %s", turn.run_id, failures, words)
        return dataclasses.replace(
            turn,
            status=DONE if good else FAILED,
            ended_at=self._clock.now(),
            failures=failures,
            message=words,
        )

    def _show(self, last: Turn | None) -> None:
        due = next_turn(self._timetable, last, self._started_at)
        self._metrics.turn(due, last.failures if last else 0)

    def _jitter(self) -> float:
        return self._chance.uniform(0.0, JITTER * self._timetable.every)

    async def _last(self) -> Turn | None:
        async with self._database.read() as connection:
            row = (await connection.execute(select(refresh_turns))).mappings().first()
        return None if row is None else Turn(**{name: row[name] for name in _TURN})

    async def _write(self, lease: Lease, turn: Turn) -> None:
        values: dict[str, Any] = {"name": KEY, **dataclasses.asdict(turn)}
        async with self._database.write() as connection:
            await self._keeper.fence(connection, lease)
            await connection.execute(delete(refresh_turns))
            await connection.execute(insert(refresh_turns).values(values))


_TURN = tuple(field.name for field in dataclasses.fields(Turn))


def _why(report: CatalogRefresh | None) -> str:
    if report is None:
        return "it left no report"
    reasons: list[str] = []
    for cloud in report.clouds:
        refused = [f"{part}: {why}" for part, why in cloud.refused.items()]
        reasons += [f"{cloud.cloud}: {why}" for why in ([cloud.message] if cloud.message else refused)]
    return report.message or "; ".join(reasons[:3]) or report.status
