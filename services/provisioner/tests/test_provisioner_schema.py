from __future__ import annotations

import time
from pathlib import Path

import pytest
from sqlalchemy import Connection, text

from skyloom_common.store import Database, ensure_schema
from skyloom_provisioner.tables import SCHEMA, metadata

pytestmark = pytest.mark.integration


def _differences(connection: Connection) -> list[object]:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    context = MigrationContext.configure(connection, opts={"version_table": SCHEMA.version_table})
    return list(compare_metadata(context, metadata))


@pytest.mark.parametrize("way", ["fresh", "migrated"])
async def test_tables_and_migrations_make_the_same_schema(any_database_url: str, way: str) -> None:
    database = Database(any_database_url)
    if way == "migrated":
        async with database.write() as connection:
            await connection.execute(
                text(f"CREATE TABLE {SCHEMA.version_table} (version_num VARCHAR(32) NOT NULL)")
            )
            await connection.execute(text(f"INSERT INTO {SCHEMA.version_table} VALUES ('base')"))
            await connection.execute(text(f"DELETE FROM {SCHEMA.version_table}"))
        from alembic import command
        from alembic.config import Config

        def upgrade(sync: Connection) -> None:
            config = Config()
            config.set_main_option("script_location", str(SCHEMA.migrations))
            config.attributes.update(connection=sync, schema=SCHEMA)
            command.upgrade(config, "head")

        async with database.write() as connection:
            await connection.run_sync(upgrade)
    await ensure_schema(database, SCHEMA)
    async with database.read() as connection:
        assert await connection.run_sync(_differences) == []
    await database.close()


async def test_a_fresh_database_is_ready_quickly(tmp_path: Path) -> None:
    """The bar is 150 ms; the bound here allows for a busy machine."""
    database = Database(f"sqlite:///{tmp_path}/new.db")
    began = time.perf_counter()
    await ensure_schema(database, SCHEMA)
    seconds = time.perf_counter() - began
    await database.close()
    print(f"fresh schema: {seconds * 1000:.0f} ms")
    assert seconds < 1.0
