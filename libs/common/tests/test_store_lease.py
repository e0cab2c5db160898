from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from sqlalchemy import MetaData

from skyloom_common.store import Database, Schema, ensure_schema
from skyloom_common.store.lease import LeaseKeeper, LeaseLost, LeaseTables, is_gone, process_identity
from skyloom_common.testing.clock import FakeClock

metadata = MetaData()
tables = LeaseTables.define(metadata)
ELSEWHERE = "another-machine|1|1"
Make = Callable[..., LeaseKeeper]


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    await ensure_schema(database, Schema("leases", metadata, Path("/none"), "1"))
    yield database
    await database.close()


@pytest.fixture
async def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def make(database: Database, clock: FakeClock) -> AsyncIterator[Make]:
    made: list[LeaseKeeper] = []

    def make(identity: str = ELSEWHERE) -> LeaseKeeper:
        made.append(LeaseKeeper(database, tables, clock, ttl=15, identity=identity))
        return made[-1]

    yield make
    for keeper in made:
        await keeper.stop()


async def test_a_key_has_one_holder(make: Make) -> None:
    one, two = make(), make()
    await one.start()
    await two.start()
    lease = await one.acquire("a")
    assert lease is not None and await one.acquire("a") == lease
    assert await two.acquire("a") is None
    assert await two.acquire("b") is not None
    await one.release(lease)
    assert await two.acquire("a") is not None


async def test_a_beating_holder_keeps_its_key_and_a_silent_one_loses_it(
    make: Make, clock: FakeClock, database: Database
) -> None:
    one, two = make(), make()
    await one.start()
    await two.start()
    old = await one.acquire("a")
    for _ in range(10):
        assert await two.acquire("a") is None
        await _beat_for(clock, 5, one, two)
    assert one._task is not None and old is not None
    one._task.cancel()
    assert await two.acquire("a") is None
    await _beat_for(clock, 16, two)
    new = await two.acquire("a")
    assert new is not None and new.token > old.token
    with pytest.raises(LeaseLost):
        async with database.write() as connection:
            await one.fence(connection, old)
    async with database.write() as connection:
        await two.fence(connection, new)


async def _beat_for(clock: FakeClock, seconds: int, *keepers: LeaseKeeper) -> None:
    """The beats themselves are awaited, so that no real time matters."""
    for _ in range(seconds):
        clock._move_to(clock.monotonic() + 1)
        for keeper in keepers:
            await keeper._beat()


async def test_wall_clock_jumps_change_nothing(make: Make, clock: FakeClock) -> None:
    one, two = make(), make()
    await one.start()
    await two.start()
    assert await one.acquire("a") is not None
    for jump in (86400, -3 * 86400):
        clock.jump(jump)
        assert await two.acquire("a") is None


async def test_a_dead_process_of_this_machine_is_not_waited_for(make: Make) -> None:
    machine = process_identity().split("|")[0]
    one, two = make(f"{machine}|{2**22 - 3}|1"), make()
    await one.start()
    await two.start()
    assert await one.acquire("a") is not None
    assert await two.acquire("a") is not None


async def test_a_reused_process_id_is_another_process() -> None:
    machine, pid, _ = process_identity().split("|")
    assert not is_gone(process_identity())
    assert is_gone(f"{machine}|{pid}|1")
    assert not is_gone(f"elsewhere|{pid}|1")


async def test_a_replica_that_was_declared_dead_starts_anew(make: Make, clock: FakeClock) -> None:
    one, two = make(), make()
    await one.start()
    await two.start()
    assert await one.acquire("a") is not None
    first = one.id
    assert await two.acquire("a") is None
    await _beat_for(clock, 16, two)
    assert await two.acquire("a") is not None
    assert not await one._beat()
    await one._lose_all()
    assert one.id != first
    assert await one.acquire("a") is None
