"""Outcomes that the optimizer does not know yet, as rows: written with what they tell of, gone once they are told.

It sends nothing. Whoever changes rows of clusters and nodes adds outcomes inside of the same transaction, so that an
outcome exists exactly when its change does.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from skyloom_common.contracts.plan import LaunchOutcome
from skyloom_common.store import Database, insert_if_absent
from skyloom_provisioner.tables import outbox


async def add_outcomes_in(connection: AsyncConnection, outcomes: Iterable[LaunchOutcome]) -> None:
    for outcome in outcomes:
        await insert_if_absent(connection, outbox, {"id": outcome.id, "at": outcome.at, "outcome": outcome})


class Outbox:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def waiting(self, limit: int) -> list[LaunchOutcome]:
        """Oldest first."""
        query = select(outbox.c.outcome).order_by(outbox.c.at, outbox.c.id).limit(limit)
        async with self._database.read() as connection:
            return [row.outcome for row in (await connection.execute(query)).all()]

    async def count(self) -> int:
        async with self._database.read() as connection:
            return int(await connection.scalar(select(func.count()).select_from(outbox)) or 0)

    async def told(self, ids: Iterable[str]) -> None:
        async with self._database.write() as connection:
            await connection.execute(delete(outbox).where(outbox.c.id.in_(list(ids))))

    async def drop_before(self, at: float) -> int:
        """How many were too old to be of use."""
        async with self._database.write() as connection:
            return int((await connection.execute(delete(outbox).where(outbox.c.at < at))).rowcount)
