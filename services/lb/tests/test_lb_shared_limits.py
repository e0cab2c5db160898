"""Limits shared through Redis: never more than the limit together, never a stall when Redis is away, slow or new."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from skyloom_common.bus import Bus
from skyloom_common.bus.embedded import EmbeddedRedis
from skyloom_common.bus.resp import Redis, RespError
from skyloom_common.contracts.endpoints import REPLICA_WANTED
from skyloom_lb.admission.admission import Admission
from skyloom_lb.admission.config import Limits, ServiceLimits
from skyloom_lb.admission.shared import RedisScript, SharedBucket
from skyloom_lb.exchange import Outcome, Refusal

pytestmark = pytest.mark.integration


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[EmbeddedRedis]:
    async with contextlib.AsyncExitStack() as stack:
        server = EmbeddedRedis(tmp_path / "redis")
        await server.start()
        stack.push_async_callback(server.stop)
        yield server


@pytest.fixture
async def redis(server: EmbeddedRedis) -> AsyncIterator[Redis]:
    made = Redis(server.url)
    yield made
    await made.close()


async def take(bucket: SharedBucket, amount: float) -> float:
    known = bucket.take_now(amount, time.monotonic())
    return await bucket.take(amount, time.monotonic) if known is None else known


async def test_processes_together_stay_within_the_limit(redis: Redis) -> None:
    buckets = [SharedBucket("k", 120, RedisScript(redis), time.monotonic()) for _ in range(4)]
    started = time.monotonic()
    given = 0
    for _ in range(100):
        answers = await asyncio.gather(*(take(bucket, 1) for bucket in buckets))
        given += answers.count(0.0)
    spare = sum(bucket.credit for bucket in buckets)
    most = 120 + 2 * (time.monotonic() - started)
    assert 100 <= given <= most + 1 and given + spare <= most + 1


async def test_few_questions_are_asked(redis: Redis) -> None:
    calls = 0

    class Counting:
        async def call(self, *words: Any, **fields: Any) -> Any:
            nonlocal calls
            calls += 1
            return await redis.call(*words, **fields)

    bucket = SharedBucket("k", 10**6, RedisScript(Counting()), time.monotonic())
    for _ in range(5000):
        assert await take(bucket, 1) == 0.0
    assert calls < 100


async def test_an_advance_that_nobody_uses_is_given_back(redis: Redis) -> None:
    script = RedisScript(redis)
    one, other = (SharedBucket("k", 1000, script, time.monotonic()) for _ in range(2))
    for _ in range(30):
        await take(one, 20)
    assert one.credit > 0
    await one.give_back(time.monotonic() + 5)
    assert one.credit == 0
    assert await take(other, 380) == 0.0 and await take(other, 100) > 0


async def test_refusals_say_when(redis: Redis) -> None:
    bucket = SharedBucket("k", 60, RedisScript(redis), time.monotonic())
    assert await take(bucket, 60) == 0.0
    assert 8.0 < await take(bucket, 10) <= 10.0


async def test_a_debt_is_paid(redis: Redis) -> None:
    bucket = SharedBucket("k", 60, RedisScript(redis), time.monotonic())
    assert await take(bucket, 30) == 0.0
    bucket.correct(-60, time.monotonic())
    assert await take(bucket, 1) > 25


async def test_redis_away_and_back(server: EmbeddedRedis, redis: Redis) -> None:
    script = RedisScript(redis)
    buckets = [SharedBucket("k", 60, script, time.monotonic()) for _ in range(2)]
    assert [await take(bucket, 20) for bucket in buckets] == [0.0, 0.0]
    await server.stop()
    answers = [await take(bucket, 1) for bucket in buckets for _ in range(100)]
    assert 1 <= script.failures < 20, "once a second it is asked for, not by each"
    # Each by itself now: what it took before counts, what the other one took is not known.
    assert answers[:100].count(0.0) == pytest.approx(40, abs=2)
    assert answers[100:].count(0.0) == pytest.approx(40, abs=2)
    await server.start()
    fresh = SharedBucket("other", 60, script, time.monotonic())
    async with asyncio.timeout(10):
        while script.away or await take(fresh, 1) or script.away:
            await asyncio.sleep(0.05)
    assert await take(fresh, 1) == 0.0 and not script.away


@pytest.mark.parametrize(
    "says", ["OOM command not allowed when used memory > 'maxmemory'", "READONLY You can't write"]
)
async def test_a_redis_that_answers_but_takes_nothing_is_away_all_the_time(says: str) -> None:
    class Full:
        async def call(self, *words: Any, **fields: Any) -> Any:
            if words[0] == "EVALSHA":
                raise RespError(says)
            return "PONG" if words[0] == "PING" else "sha"

    now = [0.0]
    script = RedisScript(Full(), lambda: now[0])
    assert await script.run("k", 1) is None and script.trouble
    for _ in range(5):
        now[0] += 0.6
        await script.probe()
        assert script.trouble and script.away


async def test_a_probe_brings_a_redis_back(redis: Redis) -> None:
    script = RedisScript(redis, lambda: 100.0)
    script.trouble = "Redis is away"
    await script.probe()
    assert not script.trouble and not script.away


async def test_a_slow_redis_stalls_nobody_twice() -> None:
    """Whoever asks while nobody knows yet waits for that one question; whoever comes after it asks none."""
    asked = 0

    class Slow:
        async def call(self, *words: Any, **fields: Any) -> Any:
            nonlocal asked
            asked += 1
            await asyncio.sleep(60)

    now = time.monotonic()  # it stands: Redis is not tried again
    bucket = SharedBucket("k", 6000, RedisScript(Slow(), lambda: now), now)
    for _ in range(2):
        answers = await asyncio.gather(*(take(bucket, 1) for _ in range(200)))
        assert answers == [0.0] * 200
    assert asked == 1


async def test_a_cancelled_question_leaves_nothing_behind(redis: Redis) -> None:
    one = Admission(RedisScript(redis))
    one.configure({"s": ServiceLimits()})
    key = one.key("k", Limits(requests_per_minute=100, tokens_per_minute=1000, concurrency=3))

    class Service:
        name, eligible = "s", ("e",)

    async def ask() -> None:
        answer: Any = one.admit(Service(), key, 0, 10, None)
        permit = answer if isinstance(answer, Refusal) or hasattr(answer, "release") else await answer
        if not isinstance(permit, Refusal):
            done = Outcome(0.0, None, "", b"", "fast")
            done.ended, done.prompt_tokens = 1.0, 10
            permit.release(done)

    tasks = [asyncio.ensure_future(ask()) for _ in range(30)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert set(one.counts().values()) == {0}


async def test_a_sleeping_service_is_asked_for_on_the_bus(server: EmbeddedRedis, kit: Any) -> None:
    from skyloom_lb.fronts import make_front
    from skyloom_lb.settings import ServiceSettings

    bus = Bus(server.url)
    heard: list[str] = []

    async def listen() -> None:
        async for event in bus.listen([REPLICA_WANTED]):
            heard.append(event.key)

    listening = asyncio.ensure_future(listen())
    await kit.until(lambda: heard)  # the first one says that it listens
    service = ServiceSettings(name="tiny", limits={"hold_seconds": 1})
    lb = await kit.lb(services={"tiny": service}, make_front=make_front, redis_url=server.url)
    answer = await lb.ask(kit.post(b'{"model": "tiny", "messages": []}'))
    assert answer.status == 503 and "tiny" in heard
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
    await bus.close()
