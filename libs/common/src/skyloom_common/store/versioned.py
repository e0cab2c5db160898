"""Inserts and compare-and-set updates inside a caller's transaction."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Table, and_, insert, update
from sqlalchemy.ext.asyncio import AsyncConnection

from skyloom_common.core.errors import VersionConflict


async def insert_row(connection: AsyncConnection, table: Table, values: Mapping[str, Any]) -> None:
    """Raises Duplicate (from the transaction) when its key is taken."""
    await connection.execute(insert(table).values(**values))


async def insert_if_absent(connection: AsyncConnection, table: Table, values: Mapping[str, Any]) -> bool:
    """False when a row with one of its keys was there already; nothing changes then."""
    # The other database's dialect and driver are not loaded.
    dialect = importlib.import_module(f"sqlalchemy.dialects.{connection.dialect.name}")
    statement = dialect.insert(table).values(**values).on_conflict_do_nothing()
    return (await connection.execute(statement)).rowcount == 1


async def update_versioned(
    connection: AsyncConnection,
    table: Table,
    key: Mapping[str, Any],
    values: Mapping[str, Any],
    *,
    expected: int,
) -> int:
    """Writes `values` where the row still has version `expected`; gives the new version. VersionConflict otherwise."""
    where = and_(*(table.c[name] == value for name, value in key.items()), table.c.version == expected)
    statement = update(table).where(where).values(**values, version=expected + 1)
    if (await connection.execute(statement)).rowcount != 1:
        shown = ", ".join(f"{name}={value}" for name, value in key.items())
        raise VersionConflict(f"{table.name} {shown}: changed by somebody else since version {expected}")
    return expected + 1
