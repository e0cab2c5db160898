"""Brings a database to the schema that the code expects, once, at start.

A fresh database is made from the tables and stamped with the newest revision; an equal revision costs one query;
only a differing one imports Alembic (about 300 ms) and upgrades. Nothing here ever goes backwards.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Column, Connection, MetaData, String, Table, inspect, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from skyloom_common.core.errors import StoreUnavailable
from skyloom_common.store.database import Database


@dataclass(frozen=True)
class Schema:
    """`migrations`: the Alembic folder (env.py calls `run_migrations`). Services may share a PostgreSQL database:
    each has its own revision table, `<name>_alembic_version`."""

    name: str
    metadata: MetaData
    migrations: Path
    head: str

    @property
    def version_table(self) -> str:
        return f"{self.name.replace('-', '_')}_alembic_version"


async def ensure_schema(database: Database, schema: Schema) -> None:
    """Creates or upgrades the tables; several replicas may start at once."""
    async with database.read() as connection:
        if await _revision(connection, schema) == schema.head:
            return
    async with database.write() as connection:
        if not database.is_sqlite:
            key = zlib.crc32(schema.version_table.encode())
            await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})
        revision = await _revision(connection, schema)
        if revision == schema.head:
            return
        if revision is None:
            await connection.run_sync(_create, schema)
        else:
            await connection.run_sync(_upgrade, schema, revision)


def _version_table(schema: Schema) -> Table:
    return Table(schema.version_table, MetaData(), Column("version_num", String(32), primary_key=True))


async def _revision(connection: AsyncConnection, schema: Schema) -> str | None:
    if not await connection.run_sync(lambda sync: inspect(sync).has_table(schema.version_table)):
        return None
    found: str | None = await connection.scalar(select(_version_table(schema).c.version_num))
    return found


def _create(connection: Connection, schema: Schema) -> None:
    schema.metadata.create_all(connection, checkfirst=False)
    stamp = _version_table(schema)
    stamp.create(connection, checkfirst=True)
    connection.execute(stamp.insert().values(version_num=schema.head))


def _upgrade(connection: Connection, schema: Schema, revision: str) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util.exc import CommandError

    config = Config()
    config.set_main_option("script_location", str(schema.migrations))
    config.attributes.update(connection=connection, schema=schema)
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise StoreUnavailable(
            f"the database of {schema.name} is at revision {revision!r}, which this version does not know",
            hint="Install the version that wrote it, or a newer one.",
        ) from error


def run_migrations(context: Any) -> None:
    """The whole body of a service's migrations/env.py: `run_migrations(alembic.context)`."""
    attributes = context.config.attributes
    schema: Schema = attributes["schema"]
    context.configure(
        connection=attributes["connection"],
        target_metadata=schema.metadata,
        version_table=schema.version_table,
        render_as_batch=True,
        transaction_per_migration=False,
    )
    with context.begin_transaction():
        context.run_migrations()
