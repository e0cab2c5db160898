"""Keeps launch outcomes in SQL: every replica of this service sees them, a restart forgets nothing."""

from __future__ import annotations

import dataclasses
import logging

from sqlalchemy import (
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    case,
    cast,
    delete,
    func,
    select,
)

from skyloom_common.contracts.plan import LaunchOutcome
from skyloom_common.core.clock import Clock
from skyloom_common.core.errors import InvalidRequest, StoreUnavailable
from skyloom_common.core.ids import new_id
from skyloom_common.store import Database, insert_if_absent
from skyloom_optimizer.availability import ENDED, INTERRUPTED, LIFETIME_HALF_LIFE, Observation
from skyloom_optimizer.memory import HALF_LIFE_SECONDS, NOT_CAPACITY, AvailabilityMemory, remember

metadata = MetaData()
launch_outcomes = Table(
    "launch_outcomes",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("cloud", String(64), nullable=False),
    Column("region", String(128), nullable=False),
    Column("zone", String(128), nullable=False),
    Column("instance_type", String(128), nullable=False),
    Column("use_spot", Boolean, nullable=False),
    Column("result", String(64), nullable=False),
    Column("at", Float, nullable=False),
    Column("seconds_to_running", Float),
    Column("ran_seconds", Float),
    Index("launch_outcomes_at", "at"),
)

RELEVANT_SECONDS = 8 * HALF_LIFE_SECONDS
LEARN_SECONDS = 2 * LIFETIME_HALF_LIFE
_BUCKET_SECONDS = 3600.0
_SUM_EVERY = 60.0
KEEP_SECONDS = 90 * 24 * 3600.0
_PRUNE_EVERY = 3600.0
_COLUMNS = tuple(field.name for field in dataclasses.fields(LaunchOutcome))
_LIMITS = {"id": 64, "cloud": 64, "region": 128, "zone": 128, "instance_type": 128, "result": 64}


class OutcomeStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def record(self, outcome: LaunchOutcome) -> bool:
        """False when an outcome with this id was recorded before."""
        _check(outcome)
        values = {name: getattr(outcome, name) for name in _COLUMNS} | {"id": outcome.id or new_id()}
        async with self._database.write() as connection:
            return await insert_if_absent(connection, launch_outcomes, values)

    async def since(self, at: float) -> list[LaunchOutcome]:
        statement = select(launch_outcomes).where(launch_outcomes.c.at >= at).order_by(launch_outcomes.c.at)
        async with self._database.read() as connection:
            rows = (await connection.execute(statement)).mappings().all()
        return [LaunchOutcome(**row) for row in rows]

    async def summed(self, since: float, before: float) -> list[Observation]:
        """Older outcomes, those of one place, result and hour as one: a busy month stays a few thousand rows."""
        columns = launch_outcomes.c
        place = (columns.cloud, columns.region, columns.zone, columns.instance_type, columns.use_spot)
        ended = columns.result.in_((INTERRUPTED, ENDED))
        seconds = case((ended, columns.ran_seconds), else_=columns.seconds_to_running)
        statement = (
            select(*place, columns.result, func.max(columns.at), func.count(), func.sum(seconds))
            .where(columns.at >= since, columns.at < before, columns.result.not_in(sorted(NOT_CAPACITY)))
            .group_by(*place, columns.result, cast(columns.at / _BUCKET_SECONDS, Integer))
        )
        async with self._database.read() as connection:
            rows = (await connection.execute(statement)).all()
        return [Observation(*row) for row in rows]

    async def prune(self, before: float) -> int:
        async with self._database.write() as connection:
            result = await connection.execute(delete(launch_outcomes).where(launch_outcomes.c.at < before))
        return int(result.rowcount)


def _check(outcome: LaunchOutcome) -> None:
    for name, limit in _LIMITS.items():
        if len(getattr(outcome, name)) > limit:
            raise InvalidRequest(f"{name}: longer than {limit} characters", details={"field": name})
    for name in ("cloud", "instance_type", "result"):
        if not getattr(outcome, name):
            raise InvalidRequest(f"{name}: empty; say which", details={"field": name})
    if outcome.at != outcome.at or abs(outcome.at) == float("inf"):
        raise InvalidRequest(f"at: {outcome.at} is not a time in Unix seconds", details={"field": "at"})


class MemoryKeeper:
    """The availability memory of now, read again when it is older than `max_age` seconds.

    Planning goes on with what was known last when the store does not answer: the memory improves the order of
    candidates, it never decides what is possible.
    """

    def __init__(self, store: OutcomeStore, clock: Clock, max_age: float = 1.0) -> None:
        self._store = store
        self._clock = clock
        self._max_age = max_age
        self._read_at: float | None = None
        self._pruned_at: float | None = None
        self._summed_at: float | None = None
        self._summed_to = 0.0
        self._earlier: list[Observation] = []
        self._memory = AvailabilityMemory()
        self._log = logging.getLogger(__name__)

    async def current(self) -> AvailabilityMemory:
        if self._read_at is None or self._clock.monotonic() - self._read_at > self._max_age:
            await self._read()
        return self._memory

    async def record(self, outcome: LaunchOutcome) -> bool:
        """The next plan of this process knows it; those of other replicas do within `max_age`."""
        # A reporter whose clock runs ahead must not keep a place in bad repute for longer than others.
        at = min(outcome.at, self._clock.now())
        new = await self._store.record(dataclasses.replace(outcome, at=at))
        self._read_at = None
        await self._prune_sometimes()
        return new

    async def _read(self) -> None:
        now = self._clock.now()
        self._read_at = self._clock.monotonic()
        try:
            await self._sum_sometimes(now)
            recent = await self._store.since(min(self._summed_to, now))
            self._memory = remember(recent, now, self._earlier)
        except StoreUnavailable as error:
            self._log.warning("planning with older launch outcomes: %s", error)

    async def _sum_sometimes(self, now: float) -> None:
        """What is older than the penalties reach changes slowly."""
        moment = self._clock.monotonic()
        if self._summed_at is None or moment - self._summed_at > _SUM_EVERY or self._summed_to > now:
            edge = now - RELEVANT_SECONDS
            self._earlier = await self._store.summed(now - LEARN_SECONDS, edge)
            self._summed_at, self._summed_to = moment, edge

    async def _prune_sometimes(self) -> None:
        moment = self._clock.monotonic()
        if self._pruned_at is None or moment - self._pruned_at > _PRUNE_EVERY:
            self._pruned_at = moment
            await self._store.prune(self._clock.now() - KEEP_SECONDS)
