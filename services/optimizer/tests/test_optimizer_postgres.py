"""Outcomes and price history on PostgreSQL, and two optimizer processes that share it: what one is told, the other knows."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from skyloom_common.clients.optimizer import OptimizerClient
from skyloom_common.contracts.plan import LaunchOutcome, Offer, PlanRequest
from skyloom_common.contracts.task.model import ResourcesSpec, TaskSpec
from skyloom_common.store import Database, ensure_schema
from skyloom_common.testing.clock import FakeClock
from skyloom_common.testing.databases import fresh_database, postgres_server
from skyloom_optimizer.history.query import HistoryQuery
from skyloom_optimizer.history.store import DAY, KEEP_DAYS, KEEP_RAW, PriceHistoryStore
from skyloom_optimizer.main import SCHEMA
from skyloom_optimizer.outcomes import MemoryKeeper, OutcomeStore

pytestmark = [pytest.mark.integration, pytest.mark.slow]
TOKEN = "postgres-test-token-0123456789"
NOW = 1_794_960_000.0
P5 = HistoryQuery([("aws", "p5.48xlarge")])
FAILED = LaunchOutcome("toy", "east", "east-a", "box", False, "insufficient_capacity", NOW, id="one")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with postgres_server(tmp_path_factory.mktemp("postgres")) as url:
        yield url


@pytest.fixture
def url(server: str) -> str:
    return fresh_database(server)


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    database = Database(url)
    await ensure_schema(database, SCHEMA)
    yield database
    await database.close()


# --- the tables ---


async def test_an_outcome_is_recorded_once_also_by_two_at_once(database: Database) -> None:
    store = OutcomeStore(database)
    news = await asyncio.gather(*(store.record(FAILED) for _ in range(8)))
    assert sorted(news) == [False] * 7 + [True]
    assert await store.since(NOW - 1) == [FAILED] and await store.since(NOW + 1) == []
    assert await store.prune(NOW + 1) == 1 and await store.since(0) == []


async def test_older_outcomes_are_summed_by_place_result_and_hour(database: Database) -> None:
    store = OutcomeStore(database)
    hour = NOW - NOW % 3600
    for number, ran in enumerate((60.0, 120.0)):
        taken = replace(FAILED, result="interrupted", at=hour + number, id=f"i{number}", ran_seconds=ran)
        await store.record(taken)
    await store.record(replace(FAILED, result="quota_exceeded", at=hour, id="q"))
    await store.record(replace(FAILED, result="ok", at=hour - 1, id="ok", seconds_to_running=30.0))
    seen = {item.result: item for item in await store.summed(hour - 10, hour + 100)}
    assert set(seen) == {"interrupted", "ok"}
    assert (seen["interrupted"].count, seen["interrupted"].seconds, seen["interrupted"].at) == (
        2,
        180.0,
        hour + 1,
    )
    assert seen["ok"].seconds == 30.0


async def test_a_restart_keeps_the_memory(database: Database) -> None:
    clock = FakeClock(NOW + 1)
    await MemoryKeeper(OutcomeStore(database), clock).record(FAILED)
    fresh = await MemoryKeeper(OutcomeStore(database), clock).current()
    assert fresh.penalty("toy", "east", "east-a", "box", False) == pytest.approx(0.5, abs=0.01)
    assert fresh.chance("toy", "east", "east-a", "box", False) < 0.5


async def test_price_history_is_recorded_once_thinned_and_served(database: Database) -> None:
    store = PriceHistoryStore(database, FakeClock(NOW))
    rows = [
        ["aws", "us-east-1", zone, "p5.48xlarge", True, price] for zone, price in (("a", 20.0), ("b", 21.0))
    ]
    assert sum(await asyncio.gather(*(store.record(NOW, rows) for _ in range(3)))) >= 2
    await store.record(NOW + 60, [[*rows[0][:5], 19.0]])
    found = await store.history(P5)
    assert [[point.price for point in series.points] for series in found.series] == [[20.0, 19.0], [21.0]]
    await store.thin(NOW + KEEP_RAW + 2 * DAY)
    (series, _) = (await store.history(P5)).series
    (point,) = series.points
    assert (point.price, point.low, point.high, point.samples, point.seconds) == (19.5, 19.0, 20.0, 2, DAY)
    await store.thin(NOW + KEEP_DAYS + 2 * DAY)
    assert (await store.history(P5)).series == ()


# --- processes ---


class Optimizer:
    """A process of its own with its own home; only the database is shared."""

    def __init__(self, home: Path, url: str) -> None:
        home.mkdir()
        self._log = home / "log"
        self._env = {
            "PATH": os.environ["PATH"], "HOME": str(home), "SKYLOOM_HOME": str(home), "DATABASE_URL": url,
            "SKYLOOM_SERVICE_TOKEN": TOKEN, "SKYLOOM_PORT": "0",
        }  # fmt: skip
        self.start()

    def start(self) -> None:
        with open(self._log, "wb") as output:
            program = Path(sys.executable).with_name("skyloom-optimizer")
            self._process = subprocess.Popen([program], env=self._env, stdout=output, stderr=output)
        end = time.monotonic() + 60
        while "ready at http" not in (text := self._log.read_text()):
            assert self._process.poll() is None and time.monotonic() < end, text
            time.sleep(0.05)
        self.url = text.split("ready at ")[1].split()[0]

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def pair(tmp_path: Path, url: str) -> Iterator[list[Optimizer]]:
    found = [Optimizer(tmp_path / name, url) for name in ("one", "two")]
    yield found
    for optimizer in found:
        optimizer.kill()


def offers() -> tuple[Offer, ...]:
    places = {"east-a": 1.0, "east-b": 1.1}
    return tuple(
        Offer("toy", "box", "east", zone, vcpus=8, memory_gib=32, price_per_hour=price)
        for zone, price in places.items()
    )


async def first(http: httpx.AsyncClient) -> str:
    task = TaskSpec(run="x", resources=ResourcesSpec(cloud="toy"))
    plan = await OptimizerClient(http).plan(PlanRequest(task, enabled=("toy",), extra_offers=offers()))
    return plan.candidates[0].offer.zone


async def until(right: Callable[[], Any], seconds: float = 10) -> float:
    began = time.monotonic()
    while not await right():
        assert time.monotonic() - began < seconds
        await asyncio.sleep(0.05)
    return time.monotonic() - began


async def test_what_one_process_is_told_the_other_knows_and_a_restarted_one_too(
    pair: list[Optimizer],
) -> None:
    def client(optimizer: Optimizer) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        return httpx.AsyncClient(base_url=optimizer.url, headers=headers, timeout=30, trust_env=False)

    async with client(pair[0]) as one, client(pair[1]) as two:
        assert await first(one) == await first(two) == "east-a"
        outcome = replace(FAILED, at=time.time())
        await OptimizerClient(one).record_outcome(outcome)
        assert await first(one) == "east-b"

        async def known() -> bool:
            return await first(two) == "east-b"

        seconds = await until(known)
        print(f"the other process knew after {seconds:.2f} s")
        again = await two.post("/v1/outcomes", json={**vars(outcome)})
        assert again.json() == {"recorded": False}
    for optimizer in pair:
        optimizer.kill()
        optimizer.start()
    async with client(pair[0]) as one, client(pair[1]) as two:
        assert await first(one) == await first(two) == "east-b"
