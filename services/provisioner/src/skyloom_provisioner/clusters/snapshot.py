"""Every cluster as clients see it, kept in memory between changes: the hottest read there is.

Our own writes invalidate it at once. Where several replicas share a database, another one's writes are seen by the
counter that each of them reads: the sum of row versions and their number, one cheap query.
"""

from __future__ import annotations

import asyncio
import fnmatch
from collections.abc import Sequence

from sqlalchemy import func, select

from skyloom_common.contracts.clusters import Cluster, ClusterList
from skyloom_common.core import wire
from skyloom_common.core.clock import Clock
from skyloom_provisioner.clusters.rows import ClusterState
from skyloom_provisioner.clusters.store import ClusterStore
from skyloom_provisioner.clusters.view import view_of, with_ages
from skyloom_provisioner.nodes.live import LiveView
from skyloom_provisioner.tables import clusters, nodes

BODY_SECONDS = 0.1
"""Ages are shown in whole seconds: a body of this age is as good as a new one."""
_MARKS = "*?["


class ClusterSnapshot:
    def __init__(self, store: ClusterStore, live: LiveView, clock: Clock) -> None:
        self._store = store
        self._live = live
        self._clock = clock
        self._alone = store.database.is_sqlite
        self._mark: object = None
        self._entries: list[tuple[ClusterState, Cluster]] = []
        self._bodies: dict[object, tuple[float, bytes]] = {}
        self._lock = asyncio.Lock()

    async def body(self, patterns: Sequence[str], user: str | None) -> bytes:
        """The encoded ClusterList."""
        await self._refresh()
        key, now = (tuple(patterns), user), self._clock.monotonic()
        made, body = self._bodies.get(key, (float("-inf"), b""))
        if now - made > BODY_SECONDS:
            body = wire.dumps(ClusterList(tuple(self._select(patterns, user))))
            if len(self._bodies) > 100:
                self._bodies.clear()
            self._bodies[key] = (now, body)
        return body

    def _select(self, patterns: Sequence[str], user: str | None) -> list[Cluster]:
        return [
            with_ages(view, state, self._live, self._clock)
            for state, view in self._entries
            if (user is None or view.user == user)
            and (not patterns or any(_matches(view.name, pattern) for pattern in patterns))
        ]

    async def _refresh(self) -> None:
        mark = (self._store.version, None if self._alone else await self._shared_mark())
        if mark == self._mark:
            return
        async with self._lock:
            if mark == self._mark:
                return
            states = await self._store.all()
            self._entries = [(state, view_of(state, self._live, self._clock)) for state in states]
            self._bodies.clear()
            self._mark = mark

    async def _shared_mark(self) -> object:
        marks = (
            select(expression).scalar_subquery()
            for table in (clusters, nodes)
            for expression in (func.count(table.c.id), func.sum(table.c.version), func.max(table.c.id))
        )
        query = select(*marks)
        async with self._store.database.read() as connection:
            return tuple((await connection.execute(query)).one())


def _matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern) if any(mark in pattern for mark in _MARKS) else name == pattern
