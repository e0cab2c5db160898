"""Accepted parts of replicas that share a database: what one has taken from a cloud, all of them use.

Only parts are shared. Every replica builds its own catalog from its own base, so that versions may meet. The newer part wins.
With SQLite there is one replica, and nothing to share.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from sqlalchemy import Column, Float, LargeBinary, String, Table, delete, insert, select

from skyloom_common.contracts.catalog import CatalogRefresh
from skyloom_common.core import wire
from skyloom_common.store import Database, Duplicate
from skyloom_optimizer.outcomes import metadata
from skyloom_optimizer.refresh.files import RefreshFiles

_REPORT = ("", "report")
_CLOSE = 0.001

catalog_parts = Table(
    "catalog_parts",
    metadata,
    Column("cloud", String(64), primary_key=True),
    Column("part", String(160), primary_key=True),
    Column("at", Float, nullable=False),
    Column("data", LargeBinary, nullable=False),
)
_C = catalog_parts.c
Key = tuple[str, str]


class SharedParts:
    def __init__(self, database: Database, files: RefreshFiles) -> None:
        self._database = database
        self._files = files

    async def sync(self) -> bool:
        """Gives what is newer here, takes what is newer there; True when something was taken."""
        here = await asyncio.to_thread(self._files.accepted_at)
        there = await self._listed()
        for key in _newer(here, there):
            data = await asyncio.to_thread(self._files.read_accepted, key)
            await self._put(key, here[key], data)
        taken = _newer(there, here)
        for key in taken:
            data = await self._data(key)
            await asyncio.to_thread(self._files.write_accepted, key, there[key], data)
        return bool(taken)

    async def tell(self, report: CatalogRefresh) -> None:
        await self._put(_REPORT, report.started_at, wire.dumps(report))

    async def told(self) -> CatalogRefresh | None:
        """The report of whoever refreshed last."""
        data = await self._data(_REPORT)
        return wire.loads(CatalogRefresh, data) if data else None

    async def _listed(self) -> dict[Key, float]:
        async with self._database.read() as connection:
            rows = (await connection.execute(select(_C.cloud, _C.part, _C.at).where(_C.cloud != ""))).all()
        return {(row[0], row[1]): row[2] for row in rows}

    async def _data(self, key: Key) -> bytes:
        where = (_C.cloud == key[0]) & (_C.part == key[1])
        async with self._database.read() as connection:
            found = await connection.scalar(select(_C.data).where(where))
        return bytes(found or b"")

    async def _put(self, key: Key, at: float, data: bytes) -> None:
        """An older one never replaces a newer one; of two at once either may win."""
        where = (_C.cloud == key[0]) & (_C.part == key[1])
        try:
            async with self._database.write() as connection:
                await connection.execute(delete(catalog_parts).where(where, _C.at <= at))
                values = {"cloud": key[0], "part": key[1], "at": at, "data": data}
                await connection.execute(insert(catalog_parts).values(values))
        except Duplicate:
            return


def _newer(one: Mapping[Key, float], other: Mapping[Key, float]) -> list[Key]:
    return sorted(key for key, at in one.items() if at > other.get(key, 0.0) + _CLOSE)
