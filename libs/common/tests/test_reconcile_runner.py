from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from skyloom_common.core.errors import Unavailable
from skyloom_common.reconcile import DONE, Backoff, Result, Runner

Make = Callable[..., Runner]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    made: list[Runner] = []

    def make(reconcile: Callable[[str], Awaitable[Result]], **options: Any) -> Runner:
        made.append(Runner(reconcile, name="test", **options))
        return made[-1]

    yield make
    for runner in made:
        await runner.stop()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


async def test_many_wakes_before_a_call_are_one_call(make: Make) -> None:
    calls: Counter[str] = Counter()

    async def reconcile(key: str) -> Result:
        calls[key] += 1
        return DONE

    runner = make(reconcile)
    for _ in range(10):
        runner.wake("a")
    runner.start()
    await until(runner.is_idle)
    assert calls == {"a": 1}


async def test_a_wake_during_a_call_is_one_more_call_and_never_two_at_once(make: Make) -> None:
    running, most, calls, gate = 0, 0, 0, asyncio.Event()

    async def reconcile(key: str) -> Result:
        nonlocal running, most, calls
        running, calls = running + 1, calls + 1
        most = max(most, running)
        await gate.wait()
        running -= 1
        return DONE

    runner = make(reconcile)
    runner.start()
    runner.wake("a")
    await until(lambda: calls == 1)
    for _ in range(5):
        runner.wake("a")
    gate.set()
    await until(lambda: runner.is_idle() and calls == 2)
    assert most == 1


async def test_many_keys_run_side_by_side_within_the_bound(make: Make) -> None:
    running, most, done = 0, 0, 0

    async def reconcile(key: str) -> Result:
        nonlocal running, most, done
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.002)
        running, done = running - 1, done + 1
        return DONE

    runner = make(reconcile, workers=3)
    runner.start()
    for number in range(12):
        runner.wake(str(number))
    await until(lambda: done == 12)
    assert most == 3


async def test_failures_are_repeated_and_a_wake_does_not_wait_for_the_pause(make: Make) -> None:
    calls = 0

    async def reconcile(key: str) -> Result:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise Unavailable("not yet")
        return DONE

    runner = make(reconcile, backoff=Backoff(first=0.001))
    runner.start()
    runner.wake("a")
    await until(lambda: calls == 3)
    slow = make(_always_failing := _Failing(), backoff=Backoff(first=1000, longest=1000))
    slow.start()
    slow.wake("a")
    await until(lambda: _always_failing.calls == 1)
    slow.wake("a")
    await until(lambda: _always_failing.calls == 2)


class _Failing:
    calls = 0

    async def __call__(self, key: str) -> Result:
        self.calls += 1
        raise ValueError("never")


async def test_a_result_can_ask_for_another_look(make: Make) -> None:
    calls = 0

    async def reconcile(key: str) -> Result:
        nonlocal calls
        calls += 1
        return Result(after=0.001) if calls < 4 else DONE

    runner = make(reconcile)
    runner.start()
    runner.wake("a")
    await until(lambda: calls == 4)


async def test_the_resync_finds_keys_that_nobody_woke_and_survives_a_store_that_is_away(make: Make) -> None:
    seen: set[str] = set()
    rounds = 0

    async def list_keys() -> list[str]:
        nonlocal rounds
        rounds += 1
        if rounds == 1:
            raise Unavailable("the store is away")
        return ["a", "b"]

    async def reconcile(key: str) -> Result:
        seen.add(key)
        return DONE

    make(reconcile, list_keys=list_keys, resync_seconds=0.001).start()
    await until(lambda: seen == {"a", "b"})


async def test_nothing_runs_after_stop(make: Make) -> None:
    cancelled = asyncio.Event()

    async def reconcile(key: str) -> Result:
        try:
            await asyncio.sleep(3600)
        finally:
            cancelled.set()
        return DONE

    runner = make(reconcile)
    runner.start()
    runner.wake("a")
    await asyncio.sleep(0)
    await runner.stop()
    runner.wake("b")
    await asyncio.sleep(0)
    assert cancelled.is_set() and not runner._running


def test_backoff_grows_to_its_limit_with_jitter() -> None:
    backoff = Backoff(first=1, longest=60, rng=random.Random(1))
    pauses = [backoff.pause(failures) for failures in range(1, 40)]
    for failures, pause in enumerate(pauses, 1):
        ceiling = min(60, 2 ** (failures - 1))
        assert ceiling / 2 <= pause <= ceiling
    assert len(set(pauses)) == len(pauses)
