from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import Column, Integer, MetaData, String, Table, insert, inspect, select, text

from skyloom_common.core.errors import StoreUnavailable, VersionConflict
from skyloom_common.store import (
    Database,
    Duplicate,
    Json,
    Schema,
    WireColumn,
    ensure_schema,
    insert_if_absent,
    insert_row,
    update_versioned,
)


@dataclass(frozen=True)
class Thing:
    name: str
    size: int = 0


metadata = MetaData()
things = Table(
    "things",
    metadata,
    Column("id", String(20), primary_key=True),
    Column("version", Integer, nullable=False),
    Column("thing", WireColumn(Thing)),
    Column("extra", Json),
)

MIGRATIONS = {
    "env.py": """
        from alembic import context
        from skyloom_common.store.schema import run_migrations
        run_migrations(context)
    """,
    "versions/0001_first.py": """
        import sqlalchemy as sa
        from alembic import op
        revision, down_revision = "0001", None
        def upgrade():
            op.create_table("things", sa.Column("id", sa.String(20), primary_key=True))
    """,
    "versions/0002_more.py": """
        import sqlalchemy as sa
        from alembic import op
        revision, down_revision = "0002", "0001"
        def upgrade():
            with op.batch_alter_table("things") as batch:
                batch.add_column(sa.Column("version", sa.Integer, nullable=False, server_default="1"))
                batch.add_column(sa.Column("thing", sa.Text))
                batch.add_column(sa.Column("extra", sa.Text))
    """,
}


@pytest.fixture
def schema(tmp_path: Path) -> Schema:
    folder = tmp_path / "migrations"
    (folder / "versions").mkdir(parents=True)
    for name, body in MIGRATIONS.items():
        (folder / name).write_text(textwrap.dedent(body))
    return Schema("test-things", metadata, folder, "0002")


@pytest.fixture
async def database(database_url: str, schema: Schema) -> AsyncIterator[Database]:
    database = Database(database_url)
    await ensure_schema(database, schema)
    yield database
    await database.close()


async def test_contracts_and_json_come_back_as_they_went(database: Database) -> None:
    row = {"id": "a", "version": 1, "thing": Thing("x", 3), "extra": {"list": [1, None, "ü"]}}
    async with database.write() as connection:
        await insert_row(connection, things, row)
        await insert_row(connection, things, {"id": "b", "version": 1})
    async with database.read() as connection:
        found = (await connection.execute(select(things).order_by(things.c.id))).all()
    assert [dict(one._mapping) for one in found] == [
        row,
        {"id": "b", "version": 1, "thing": None, "extra": None},
    ]


async def test_compare_and_set_lets_one_of_two_writers_win(database: Database) -> None:
    async with database.write() as connection:
        await insert_row(connection, things, {"id": "a", "version": 1})

    async def change(name: str) -> int:
        async with database.write() as connection:
            return await update_versioned(connection, things, {"id": "a"}, {"thing": Thing(name)}, expected=1)

    results = await asyncio.gather(change("one"), change("two"), return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["VersionConflict", "int"]
    with pytest.raises(VersionConflict, match="things id=a"):
        await change("three")


async def test_a_failed_transaction_leaves_nothing(database: Database) -> None:
    with pytest.raises(Duplicate):
        async with database.write() as connection:
            await insert_row(connection, things, {"id": "a", "version": 1})
            await insert_row(connection, things, {"id": "a", "version": 1})
    async with database.read() as connection:
        assert (await connection.execute(select(things))).all() == []


async def test_a_cancelled_transaction_leaves_nothing_and_blocks_nobody(database: Database) -> None:
    inside = asyncio.Event()

    async def hang() -> None:
        async with database.write() as connection:
            await insert_row(connection, things, {"id": "a", "version": 1})
            inside.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(hang())
    await inside.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    async with asyncio.timeout(5):
        async with database.write() as connection:
            assert await insert_if_absent(connection, things, {"id": "a", "version": 1})
            assert not await insert_if_absent(connection, things, {"id": "a", "version": 2})


async def test_cancels_at_any_moment_leave_no_lock(database: Database) -> None:
    async def write(number: int) -> None:
        async with database.write() as connection:
            await insert_row(connection, things, {"id": str(number), "version": 1})
        async with database.read() as connection:
            await connection.execute(select(things))

    for number in range(60):
        task = asyncio.create_task(write(number))
        for _ in range(number):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    async with asyncio.timeout(5):
        await write(1000)


async def test_many_writers_at_once_all_get_their_turn(database: Database) -> None:
    async def add(number: int) -> None:
        async with database.write() as connection:
            await connection.execute(insert(things).values(id=str(number), version=1))

    await asyncio.gather(*(add(number) for number in range(50)))
    async with database.read() as connection:
        assert len((await connection.execute(select(things))).all()) == 50


async def test_an_unreachable_database_is_unavailable(tmp_path: Path, database_url: str) -> None:
    if database_url.startswith("sqlite"):
        (tmp_path / "taken").write_text("not a directory")
        url = f"sqlite:///{tmp_path}/nowhere.db"
        database = Database(url)
        (tmp_path / "nowhere.db").mkdir()
    else:
        database = Database("postgresql://nobody@localhost/none?host=/nonexistent")
    with pytest.raises(StoreUnavailable):
        await database.ping()
    await database.close()
    await _driver_threads_ended()


@pytest.mark.parametrize("state", ["57P03", "53300", "57P01", "08006", "25006"])
async def test_a_server_that_is_not_ready_is_away_and_not_broken_code(
    database: Database, schema: Schema, state: str
) -> None:
    """What PostgreSQL answers while it starts, stops or is full, said by itself through RAISE."""
    if database.is_sqlite:
        pytest.skip("SQLite has no server")
    with pytest.raises(StoreUnavailable):
        async with database.read() as connection:
            await connection.execute(text(f"DO $$ BEGIN RAISE 'not now' USING ERRCODE = '{state}'; END $$"))
    await database.ping()


async def test_a_connection_left_in_the_middle_is_not_used_again(database: Database) -> None:
    if database.is_sqlite:
        pytest.skip("SQLite has no server")
    async with database.read() as connection:
        raw = (await connection.get_raw_connection()).driver_connection
        pid = await connection.scalar(text("SELECT pg_backend_pid()"))
    sleeping = asyncio.create_task(raw.execute("SELECT pg_sleep(5)"))
    await asyncio.sleep(0)
    with pytest.raises(StoreUnavailable):
        await database.ping()
    async with database.read() as connection:
        assert await connection.scalar(text("SELECT pg_backend_pid()")) != pid
    sleeping.cancel()
    await asyncio.gather(sleeping, return_exceptions=True)


@pytest.mark.parametrize("how", ["garbage", "half", "pages"])
async def test_a_damaged_file_is_named(tmp_path: Path, schema: Schema, how: str) -> None:
    path = tmp_path / "things.db"
    database = Database(f"sqlite:///{path}")
    await ensure_schema(database, schema)
    async with database.write() as connection:
        for number in range(400):
            await connection.execute(insert(things).values(id=str(number), version=1, extra="x" * 90))
    await database.close()
    good = path.read_bytes()
    damaged = {
        "garbage": b"garbage " * 1000,
        "half": good[: len(good) // 2],
        "pages": good[:4096] + b"\7" * (len(good) - 4096),
    }
    path.write_bytes(damaged[how])
    database = Database(f"sqlite:///{path}")
    with pytest.raises(StoreUnavailable, match=r"things\.db is damaged: ") as caught:
        async with database.read() as connection:
            (await connection.execute(select(things))).all()
    assert "Put back a copy" in (caught.value.hint or "")
    await database.close()


async def test_a_database_that_cannot_be_written_is_named(tmp_path: Path, schema: Schema) -> None:
    database = Database(f"sqlite:///{tmp_path}/things.db")
    await ensure_schema(database, schema)
    with pytest.raises(StoreUnavailable, match=r"things\.db cannot be used: attempt to write a readonly"):
        async with database.write() as connection:
            await connection.execute(text("PRAGMA query_only=ON"))
            await connection.execute(insert(things).values(id="1", version=1))
    await database.close()


async def _driver_threads_ended() -> None:
    """aiosqlite does not wait for the thread of a connect that failed; its last word must not meet a closed loop."""
    async with asyncio.timeout(10):
        while any("_connection_worker_thread" in thread.name for thread in threading.enumerate()):
            await asyncio.sleep(0)


async def test_a_fresh_database_equals_a_migrated_one(new_database_url, schema: Schema) -> None:
    fresh, migrated = Database(new_database_url()), Database(new_database_url())
    await ensure_schema(fresh, schema)
    async with migrated.write() as connection:
        await connection.execute(text("CREATE TABLE things (id VARCHAR(20) PRIMARY KEY)"))
        await connection.execute(text("INSERT INTO things VALUES ('old')"))
        await connection.execute(text("CREATE TABLE test_things_alembic_version (version_num VARCHAR(32))"))
        await connection.execute(text("INSERT INTO test_things_alembic_version VALUES ('0001')"))
    await ensure_schema(migrated, schema)
    await ensure_schema(migrated, schema)
    names = []
    for database in (fresh, migrated):
        async with database.read() as connection:
            names.append(
                await connection.run_sync(
                    lambda sync: [column["name"] for column in inspect(sync).get_columns("things")]
                )
            )
    assert names[0] == names[1]
    async with migrated.read() as connection:
        assert [row.id for row in (await connection.execute(select(things.c.id))).all()] == ["old"]
        assert await connection.scalar(text("SELECT version_num FROM test_things_alembic_version")) == "0002"
    for database in (fresh, migrated):
        await database.close()


async def test_a_database_of_a_newer_version_is_refused_in_words(database: Database, schema: Schema) -> None:
    async with database.write() as connection:
        await connection.execute(text("UPDATE test_things_alembic_version SET version_num = '0999'"))
    with pytest.raises(StoreUnavailable, match="'0999', which this version does not know"):
        await ensure_schema(database, schema)


async def test_several_replicas_may_start_on_a_fresh_database(database_url: str, schema: Schema) -> None:
    databases = [Database(database_url) for _ in range(4)]
    await asyncio.gather(*(ensure_schema(database, schema) for database in databases))
    for database in databases:
        await database.close()


def test_a_fresh_or_current_database_starts_quickly_without_alembic(tmp_path: Path, schema: Schema) -> None:
    script = f"""
        import asyncio, sys, time
        from pathlib import Path
        from sqlalchemy import MetaData
        from skyloom_common.store import Database, Schema, ensure_schema
        from sqlalchemy import Column, Integer, Table
        import aiosqlite
        metadata = MetaData()
        for n in range(12):
            Table(f"t{{n}}", metadata, Column("id", Integer, primary_key=True), Column("x", Integer, index=True))
        async def main():
            database = Database("sqlite:///{tmp_path}/new.db")
            began = time.perf_counter()
            await ensure_schema(database, Schema("s", metadata, Path("/none"), "1"))
            print(time.perf_counter() - began, "alembic" in sys.modules)
            await database.close()
        asyncio.run(main())
    """
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
        )
        seconds, alembic = done.stdout.split()
        assert alembic == "False"
        assert float(seconds) < 1.0
