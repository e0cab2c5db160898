"""Which replica works on which key, and the fence that keeps a former holder's writes out.

A replica proves to be alive by counting up `beat` in its row. Whether another one is dead is judged by watching its
beat with our own monotonic clock, or at once when it ran on this machine and its process is gone: no clock of
another machine, and no wall clock, is ever compared. A key's `token` grows with every change of hands;
`fence()` inside a write transaction makes a late write of a former holder fail.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Column, Integer, MetaData, String, Table, delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from skyloom_common.core.clock import Clock
from skyloom_common.core.errors import Conflict, StoreUnavailable
from skyloom_common.core.ids import new_id
from skyloom_common.store.database import Database
from skyloom_common.store.versioned import insert_if_absent

_log = logging.getLogger(__name__)


class LeaseLost(Conflict):
    """Another replica has taken the key over: stop working on it, write nothing."""

    code = "lease_lost"


@dataclass(frozen=True)
class Lease:
    key: str
    owner: str
    token: int


@dataclass(frozen=True)
class LeaseTables:
    """Add these to a service's metadata with `LeaseTables.define(metadata)`."""

    replicas: Table
    leases: Table

    @classmethod
    def define(cls, metadata: MetaData, prefix: str = "") -> LeaseTables:
        replicas = Table(
            f"{prefix}replicas",
            metadata,
            Column("id", String(26), primary_key=True),
            Column("process", String(300), nullable=False),
            Column("beat", Integer, nullable=False),
        )
        leases = Table(
            f"{prefix}leases",
            metadata,
            Column("key", String(300), primary_key=True),
            Column("owner", String(26), nullable=False),
            Column("token", Integer, nullable=False),
        )
        return cls(replicas, leases)


def process_identity() -> str:
    """Names this process so that others on the same machine can see whether it lives: machine|pid|start."""
    return f"{_machine()}|{os.getpid()}|{_started(os.getpid())}"


def is_gone(identity: str) -> bool:
    """True only when it certainly ran on this machine and does not any more."""
    machine, _, rest = identity.partition("|")
    pid, _, started = rest.partition("|")
    if not pid.isdigit() or machine != _machine():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return bool(started) and _started(int(pid)) != started


def _machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id")
    parts = [socket.gethostname(), boot.read_text().strip() if boot.exists() else ""]
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return ":".join(parts)


def _started(pid: int) -> str:
    """Start time in ticks since boot (Linux), so that a reused pid is another process; "" where unknown or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


class LeaseKeeper:
    """This replica's leases. `ttl`: how long a silent replica keeps its keys; ours are given up before that."""

    def __init__(
        self,
        database: Database,
        tables: LeaseTables,
        clock: Clock,
        *,
        ttl: float = 15.0,
        identity: str | None = None,
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        self.id = new_id()
        self._database = database
        self._tables = tables
        self._clock = clock
        self._ttl = ttl
        self._identity = identity or process_identity()
        self._on_lost = on_lost
        self._seen: dict[str, tuple[int, float]] = {}
        self._held: dict[str, Lease] = {}
        self._beaten_at = 0.0
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self._register()
        self._task = asyncio.create_task(self._keep_beating(), name="lease-keeper")

    async def stop(self) -> None:
        """Gives every key back, so that others need not wait."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        with contextlib.suppress(StoreUnavailable):
            async with self._database.write() as connection:
                await self._remove(connection, self.id)

    async def acquire(self, key: str) -> Lease | None:
        """The lease, also when it is ours already; None while a live replica holds it."""
        if key not in self._held:
            lease = await self._take(key) if await self._may_be_free(key) else None
            if lease is None:
                return None
            self._held[key] = lease
        return self._held[key]

    async def _may_be_free(self, key: str) -> bool:
        """A cheap look first: replicas that wait for others ask often."""
        leases, replicas = self._tables.leases, self._tables.replicas
        query = select(leases.c.owner, replicas).join(replicas, replicas.c.id == leases.c.owner)
        async with self._database.read() as connection:
            row = (await connection.execute(query.where(leases.c.key == key))).first()
        return row is None or row.owner == self.id or self._looks_dead(row)

    async def _take(self, key: str) -> Lease | None:
        leases = self._tables.leases
        async with self._database.write() as connection:
            row = (await connection.execute(select(leases).where(leases.c.key == key))).first()
            if row is None:
                fresh = Lease(key, self.id, 1)
                return fresh if await insert_if_absent(connection, leases, asdict(fresh)) else None
            if row.owner == self.id:
                return Lease(key, self.id, row.token)
            if row.owner and not await self._is_dead(connection, row.owner):
                return None
            taken = await connection.execute(
                update(leases)
                .where(leases.c.key == key, leases.c.token == row.token)
                .values(owner=self.id, token=row.token + 1)
            )
            return Lease(key, self.id, row.token + 1) if taken.rowcount == 1 else None

    async def release(self, lease: Lease) -> None:
        """A former holder is still kept out: its owner id is in no row any more."""
        self._held.pop(lease.key, None)
        leases = self._tables.leases
        async with self._database.write() as connection:
            await connection.execute(
                delete(leases).where(leases.c.key == lease.key, leases.c.owner == lease.owner)
            )

    async def fence(self, connection: AsyncConnection, lease: Lease) -> None:
        """Call first in every write transaction made under `lease`. Raises LeaseLost."""
        leases = self._tables.leases
        query = select(leases.c.token).where(leases.c.key == lease.key, leases.c.owner == lease.owner)
        if connection.dialect.name != "sqlite":
            query = query.with_for_update(read=True)
        if await connection.scalar(query) != lease.token:
            self._held.pop(lease.key, None)
            raise LeaseLost(f"{lease.key}: another replica works on it now")

    async def _is_dead(self, connection: AsyncConnection, owner: str) -> bool:
        replicas = self._tables.replicas
        row = (await connection.execute(select(replicas).where(replicas.c.id == owner))).first()
        if row is None:
            return True
        if not self._looks_dead(row):
            return False
        await connection.execute(delete(replicas).where(replicas.c.id == owner))
        return True

    def _looks_dead(self, replica: Any) -> bool:
        beat, since = self._seen.get(replica.id, (None, 0.0))
        now = self._clock.monotonic()
        if beat != replica.beat:
            self._seen[replica.id] = (replica.beat, since := now)
        return now - since >= self._ttl or is_gone(replica.process)

    async def _register(self) -> None:
        async with self._database.write() as connection:
            row: dict[str, Any] = {"id": self.id, "process": self._identity, "beat": 0}
            await insert_if_absent(connection, self._tables.replicas, row)
        self._beaten_at = self._clock.monotonic()

    async def _remove(self, connection: AsyncConnection, owner: str) -> None:
        leases, replicas = self._tables.leases, self._tables.replicas
        await connection.execute(update(leases).where(leases.c.owner == owner).values(owner=""))
        await connection.execute(delete(replicas).where(replicas.c.id == owner))

    async def _keep_beating(self) -> None:
        while True:
            await self._clock.sleep(self._ttl / 3)
            try:
                alive = await self._beat()
            except StoreUnavailable as error:
                _log.warning("lease beat failed: %s", error)
                alive = True
            if not alive or self._clock.monotonic() - self._beaten_at > self._ttl * 2 / 3:
                await self._lose_all()

    async def _beat(self) -> bool:
        replicas = self._tables.replicas
        statement = update(replicas).where(replicas.c.id == self.id).values(beat=replicas.c.beat + 1)
        async with self._database.write() as connection:
            alive = (await connection.execute(statement)).rowcount == 1
        if alive:
            self._beaten_at = self._clock.monotonic()
        return alive

    async def _lose_all(self) -> None:
        """Others may hold our keys by now: start again under a new name."""
        _log.warning("this replica was silent too long; its leases are given up")
        self.id = new_id()
        self._held.clear()
        self._on_lost()
        try:
            await self._register()
        except StoreUnavailable as error:
            _log.warning("registering again failed: %s", error)
