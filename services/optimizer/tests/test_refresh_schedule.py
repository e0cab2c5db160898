"""Refreshes by themselves: when, by whom, and what is remembered of one that failed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from skyloom_common.contracts.catalog import CatalogRefresh, CatalogRefreshRequest, CloudRefresh
from skyloom_common.service.env import SettingsError
from skyloom_common.store import Database, ensure_schema
from skyloom_common.testing.clock import FakeClock
from skyloom_optimizer.main import SCHEMA
from skyloom_optimizer.refresh.metrics import CatalogMetrics
from skyloom_optimizer.refresh.model import RefreshRunning
from skyloom_optimizer.refresh.schedule import RefreshSchedule
from skyloom_optimizer.refresh.turns import JITTER, Timetable, Turn, next_turn
from skyloom_optimizer.settings import OptimizerSettings

DAY = 86400.0
DAILY = Timetable(DAY, ("azure", "vast"))


@pytest.mark.parametrize(
    ("last", "due"),
    [
        (None, 7.0),
        (Turn("r", "done", 100.0, 200.0, jitter=50.0), 100 + DAY + 50),
        (Turn("r", "running", 100.0), 100.0),
        (Turn("r", "failed", 100.0, 200.0, 50.0, failures=1), 200 + 900),
        (Turn("r", "failed", 100.0, 200.0, 50.0, failures=3), 200 + 3600),
        (Turn("r", "failed", 100.0, 200.0, 50.0, failures=1000), 100 + DAY + 50),
    ],
)
def test_the_next_turn(last: Turn | None, due: float) -> None:
    assert next_turn(DAILY, last, 7.0) == due


class FakeRefresher:
    def __init__(self) -> None:
        self.started: list[CatalogRefreshRequest] = []
        self.end = "succeeded"
        self.busy = False
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def start(self, request: CatalogRefreshRequest) -> CatalogRefresh:
        if self.busy:
            raise RefreshRunning("one is running")
        self.started.append(request)
        return CatalogRefresh(f"run-{len(self.started)}", "running", 0.0)

    async def wait(self) -> None:
        await self.go_on.wait()

    async def report(self) -> CatalogRefresh | None:
        cloud = CloudRefresh("azure", "failed", "sorry", refused={"eastus": "not JSON"})
        return CatalogRefresh(f"run-{len(self.started)}", self.end, 0.0, clouds=(cloud,))


class World:
    def __init__(self, database: Database) -> None:
        self.database = database
        self.clock = FakeClock()
        self.refresher = FakeRefresher()
        self.registry = CollectorRegistry()

    def schedule(self, timetable: Timetable = DAILY, identity: str = "") -> RefreshSchedule:
        metrics = CatalogMetrics(self.registry if not identity else CollectorRegistry())
        return RefreshSchedule(
            self.database,
            self.refresher,
            timetable,
            self.clock,
            metrics,
            random.Random(1),
            identity or "one|1|1",
        )

    def metric(self, name: str) -> float:
        lines = generate_latest(self.registry).decode().splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith(name)))


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    database = Database(f"sqlite:///{tmp_path}/optimizer.db")
    await ensure_schema(database, SCHEMA)
    yield World(database)
    await database.close()


async def look(schedule: RefreshSchedule) -> Any:
    await schedule._keeper._register()
    await schedule.look_once()
    return await schedule.state()


async def test_once_a_day_and_not_twice(world: World) -> None:
    schedule = world.schedule()
    state = await look(schedule)
    assert world.refresher.started == [CatalogRefreshRequest(("azure", "vast"))]
    assert (state.every_seconds, state.last_status, state.failures) == (DAY, "done", 0)
    assert DAY <= state.next_at - world.clock.now() <= DAY * (1 + JITTER)
    world.clock.jump(DAY - 1)
    await look(schedule)
    assert len(world.refresher.started) == 1
    world.clock.jump(DAY * JITTER + 2)
    await look(schedule)
    assert len(world.refresher.started) == 2


async def test_after_a_restart_the_turns_go_on(world: World) -> None:
    before = await look(world.schedule())
    world.registry = CollectorRegistry()
    world.clock.jump(3600)
    after = await look(world.schedule(identity="one|2|1"))
    assert len(world.refresher.started) == 1 and after.next_at == before.next_at


async def test_a_failure_is_remembered_shown_and_tried_again_sooner(world: World) -> None:
    schedule = world.schedule()
    world.refresher.end = "failed"
    state = await look(schedule)
    assert (state.last_status, state.failures) == ("failed", 1)
    assert state.message == "azure: sorry"
    assert state.next_at == world.clock.now() + 900
    assert world.metric("skyloom_catalog_refresh_failures_in_a_row") == 1
    assert world.metric("skyloom_catalog_next_refresh_timestamp_seconds") == state.next_at
    world.clock.jump(901)
    assert (await look(schedule)).next_at == world.clock.now() + 1800
    world.clock.jump(1801)
    world.refresher.end = "partly"
    assert (await look(schedule)).failures == 0
    assert world.metric("skyloom_catalog_refresh_failures_in_a_row") == 0


async def test_one_of_two_replicas_does_it_and_the_other_takes_over(world: World) -> None:
    one, two = world.schedule(), world.schedule(identity="other|2|1")
    await one._keeper._register()
    await two._keeper._register()
    world.refresher.go_on.clear()
    running = asyncio.create_task(one.look_once())
    while (await two.state()).last_status != "running":  # type: ignore[union-attr]
        await asyncio.sleep(0)
    await two.look_once()
    assert len(world.refresher.started) == 1
    running.cancel()  # it dies in the middle; its lease runs out
    await asyncio.gather(running, return_exceptions=True)
    await world.clock.advance(61)
    world.refresher.go_on.set()
    await two.look_once()
    assert len(world.refresher.started) == 2 and (await two.state()).last_status == "done"  # type: ignore[union-attr]
    await one.look_once()
    assert len(world.refresher.started) == 2


async def test_one_that_somebody_asked_for_is_waited_for(world: World) -> None:
    schedule = world.schedule()
    world.refresher.busy = True
    assert (await look(schedule)).last_at is None
    world.refresher.busy = False
    assert (await look(schedule)).last_status == "done"


async def test_off_by_default(world: World, tmp_path: Path) -> None:
    schedule = world.schedule(Timetable())
    await schedule.run_forever()
    await schedule.close()
    assert world.refresher.started == [] and await schedule.state() is None
    environ = {"SKYLOOM_HOME": str(tmp_path), "SKYLOOM_SERVICE_TOKEN": "x" * 24}
    assert OptimizerSettings.from_env(environ).timetable == Timetable()
    daily = {"SKYLOOM_REFRESH_HOURS": "24", "SKYLOOM_REFRESH_CLOUDS": "Azure, vast"}
    assert OptimizerSettings.from_env(environ | daily).timetable == DAILY
    for bad in ({"SKYLOOM_REFRESH_HOURS": "-1"}, {"SKYLOOM_REFRESH_CLOUDS": "azur"}):
        with pytest.raises(SettingsError, match=next(iter(bad))):
            OptimizerSettings.from_env(environ | bad)
