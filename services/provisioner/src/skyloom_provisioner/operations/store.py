"""Reads and writes of operations and their events. Every write that a runner makes is fenced by its lease.

Numbers of events have no gaps: the operation's row counts them and is locked while one is added.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, desc, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from skyloom_common.contracts.operations import OperationEvent, OperationStatus
from skyloom_common.core.clock import Clock
from skyloom_common.core.errors import Conflict, OperationDoesNotExist, SkyloomError
from skyloom_common.core.ids import new_id
from skyloom_common.store import Database, insert_if_absent
from skyloom_common.store.lease import Lease, LeaseKeeper
from skyloom_provisioner.operations.rows import OperationRow, event_of
from skyloom_provisioner.tables import operation_events, operations

UNFINISHED = (OperationStatus.PENDING.value, OperationStatus.RUNNING.value)
_unfinished = operations.c.status.in_(UNFINISHED)


@dataclass(frozen=True)
class NewOperation:
    """`request` is without secrets; `sealed_secrets` is what `Deployment.seal` made of them."""

    kind: str
    target: str
    user: str
    request: dict[str, Any]
    fingerprint: str
    sealed_secrets: str | None = None
    key: str | None = None
    purge: bool = False
    cancels_earlier: bool = False
    """What is unfinished for this target is cancelled; a down that a user asked for does that, an automatic one waits."""


class OperationStore:
    """`on_change(operation id)` is told after every commit, so that followers wake; `on_cancel` of every cancel
    wish; `on_created(target)` when there is something to run."""

    def __init__(self, database: Database, keeper: LeaseKeeper, clock: Clock) -> None:
        self._database = database
        self._keeper = keeper
        self._clock = clock
        self.on_change: Callable[[str], None] = lambda id: None
        self.on_cancel: Callable[[str], None] = lambda id: None
        self.on_created: Callable[[str], None] = lambda target: None

    # --- asked by clients ---

    async def create(self, new: NewOperation) -> tuple[OperationRow, bool]:
        """The row, and whether it is new. The same key with another request is a Conflict."""
        now = self._clock.now()
        values = {
            "id": new_id(),
            "kind": new.kind,
            "target": new.target,
            "user": new.user,
            "status": OperationStatus.PENDING.value,
            "phase": "queued",
            "created_at": now,
            "updated_at": now,
            "cancel_requested": False,
            "abandoned": False,
            "request": new.request,
            "sealed_secrets": new.sealed_secrets,
            "idempotency_key": new.key,
            "fingerprint": new.fingerprint,
            "event_seq": 0,
        }
        async with self._database.write() as connection:
            fresh = await insert_if_absent(connection, operations, values)
            where = operations.c.id == values["id"]
            if not fresh:
                where = and_(operations.c.user == new.user, operations.c.idempotency_key == new.key)
            row = OperationRow.of((await connection.execute(select(operations).where(where))).one())
            ended: list[str] = []
            if fresh:
                await self._add_event(connection, row.id, "queued", f"{new.kind} of {new.target} is queued")
                if new.cancels_earlier:
                    ended = await self._cancel_earlier(connection, row, purge=new.purge)
        if not fresh and row.fingerprint != new.fingerprint:
            raise Conflict(
                f"Idempotency-Key: {new.key!r} was used for another request ({row.kind} of {row.target}); use a new key"
            )
        self.on_created(row.target)
        for id in ended:
            self.on_cancel(id)
        for id in (row.id, *ended):
            self.on_change(id)
        return row, fresh

    async def get(self, id: str) -> OperationRow:
        """By id or unique prefix."""
        async with self._database.read() as connection:
            found = (
                await connection.execute(
                    select(operations).where(operations.c.id.startswith(id, autoescape=True)).limit(2)
                )
            ).all()
        exact = [row for row in found if row.id == id]
        if not found or not id:
            raise OperationDoesNotExist(
                f"operation {id[:40]!r} does not exist", hint="Run `sky api status -a`."
            )
        if len(found) > 1 and not exact:
            raise Conflict(f"operation {id!r} is not unique; give more of its letters")
        return OperationRow.of((exact or found)[0])

    async def newest_first(
        self, *, all: bool = False, limit: int = 100, target: str | None = None, user: str | None = None
    ) -> list[OperationRow]:
        """Newest first; only unfinished ones unless `all`."""
        query = select(operations).order_by(desc(operations.c.seq)).limit(limit)
        if not all:
            query = query.where(_unfinished)
        if target:
            query = query.where(operations.c.target == target)
        if user:
            query = query.where(operations.c.user == user)
        async with self._database.read() as connection:
            return [OperationRow.of(row) for row in (await connection.execute(query)).all()]

    async def newest(self, target: str, kinds: tuple[str, ...]) -> OperationRow | None:
        query = (
            select(operations)
            .where(operations.c.target == target, operations.c.kind.in_(kinds))
            .order_by(desc(operations.c.seq))
            .limit(1)
        )
        async with self._database.read() as connection:
            row = (await connection.execute(query)).first()
        return OperationRow.of(row) if row else None

    async def request_cancel(self, id: str) -> OperationRow:
        """A state write and nothing else; what has not begun ends here and now."""
        row = await self.get(id)
        async with self._database.write() as connection:
            await self._cancel(connection, row.id)
        self.on_cancel(row.id)
        self.on_change(row.id)
        return await self.get(row.id)

    async def events(self, id: str, after: int, limit: int = 500) -> list[OperationEvent]:
        query = (
            select(operation_events)
            .where(operation_events.c.operation_id == id, operation_events.c.seq > after)
            .order_by(operation_events.c.seq)
            .limit(limit)
        )
        async with self._database.read() as connection:
            return [event_of(row) for row in (await connection.execute(query)).all()]

    # --- asked by runners ---

    async def next_for(self, target: str) -> OperationRow | None:
        query = (
            select(operations)
            .where(operations.c.target == target, _unfinished)
            .order_by(operations.c.seq)
            .limit(1)
        )
        async with self._database.read() as connection:
            row = (await connection.execute(query)).first()
        return OperationRow.of(row) if row else None

    async def unfinished_targets(self) -> list[str]:
        async with self._database.read() as connection:
            rows = await connection.execute(select(operations.c.target).where(_unfinished).distinct())
            return [row.target for row in rows.all()]

    async def cancelled_among(self, ids: list[str]) -> dict[str, bool]:
        """Of these running ones, those with a cancel wish, and whether they are abandoned too."""
        query = select(operations.c.id, operations.c.abandoned).where(
            operations.c.id.in_(ids), operations.c.cancel_requested
        )
        async with self._database.read() as connection:
            return {row.id: row.abandoned for row in (await connection.execute(query)).all()}

    async def begin(self, lease: Lease, id: str) -> bool:
        """PENDING or RUNNING (resumed) to RUNNING; False when it ended meanwhile."""
        statement = (
            update(operations)
            .where(operations.c.id == id, _unfinished)
            .values(status=OperationStatus.RUNNING.value, updated_at=self._clock.now())
        )
        async with self._database.write() as connection:
            await self._keeper.fence(connection, lease)
            return (await connection.execute(statement)).rowcount == 1

    async def save(self, lease: Lease, id: str, **values: Any) -> None:
        async with self._database.write() as connection:
            await self.save_in(connection, lease, id, **values)

    async def save_in(self, connection: AsyncConnection, lease: Lease, id: str, **values: Any) -> None:
        await self._keeper.fence(connection, lease)
        await connection.execute(update(operations).where(operations.c.id == id).values(**values))

    async def say(
        self,
        lease: Lease,
        id: str,
        phase: str,
        message: str,
        *,
        level: str = "info",
        data: Mapping[str, Any] | None = None,
    ) -> None:
        async with self._database.write() as connection:
            await self._keeper.fence(connection, lease)
            await self._add_event(connection, id, phase, message, level=level, data=data)
        self.on_change(id)

    async def finish(
        self, lease: Lease, id: str, result: dict[str, Any] | None, error: SkyloomError | None, message: str
    ) -> None:
        """The end: its secrets and its saga are erased in the same transaction."""
        status = OperationStatus.SUCCEEDED
        if error is not None:
            cancelled = error.code == "operation_cancelled"
            status = OperationStatus.CANCELLED if cancelled else OperationStatus.FAILED
        async with self._database.write() as connection:
            await self._keeper.fence(connection, lease)
            await self._finish(connection, operations.c.id == id, status, result, error)
            level = "error" if status is OperationStatus.FAILED else "info"
            await self._add_event(connection, id, "done", message, level=level, status=status)
        self.on_change(id)

    # --- inside transactions ---

    async def _finish(
        self,
        connection: AsyncConnection,
        where: ColumnElement[bool],
        status: OperationStatus,
        result: dict[str, Any] | None,
        error: SkyloomError | None,
    ) -> int:
        now = self._clock.now()
        done = await connection.execute(
            update(operations)
            .where(where, _unfinished)
            .values(
                status=status.value,
                phase="done",
                finished_at=now,
                updated_at=now,
                result=result,
                error=error.to_wire() if error else None,
                sealed_secrets=None,
                saga=None,
                scratch=None,
            )
        )
        return int(done.rowcount)

    async def _cancel(self, connection: AsyncConnection, id: str, *, purge: bool = False) -> None:
        values: dict[str, Any] = {"cancel_requested": True, "updated_at": self._clock.now()}
        if purge:
            values["abandoned"] = True
        await connection.execute(
            update(operations).where(operations.c.id == id, _unfinished).values(**values)
        )
        pending = and_(operations.c.id == id, operations.c.status == OperationStatus.PENDING.value)
        if await self._finish(connection, pending, OperationStatus.CANCELLED, None, None):
            await self._add_event(
                connection, id, "done", "cancelled before it began", status=OperationStatus.CANCELLED
            )

    async def _cancel_earlier(
        self, connection: AsyncConnection, down: OperationRow, *, purge: bool
    ) -> list[str]:
        query = select(operations.c.id).where(
            operations.c.target == down.target, operations.c.seq < down.seq, _unfinished
        )
        ids = [row.id for row in (await connection.execute(query)).all()]
        for id in ids:
            await self._cancel(connection, id, purge=purge)
        return ids

    async def _add_event(
        self,
        connection: AsyncConnection,
        id: str,
        phase: str,
        message: str,
        *,
        level: str = "info",
        data: Mapping[str, Any] | None = None,
        status: OperationStatus | None = None,
    ) -> None:
        now = self._clock.now()
        counted = await connection.execute(
            update(operations)
            .where(operations.c.id == id)
            .values(event_seq=operations.c.event_seq + 1, phase=phase, updated_at=now)
            .returning(operations.c.event_seq)
        )
        await connection.execute(
            insert(operation_events).values(
                operation_id=id,
                seq=counted.scalar_one(),
                at=now,
                phase=phase,
                message=message,
                level=level,
                data=dict(data) if data else None,
                status=status.value if status else None,
            )
        )
