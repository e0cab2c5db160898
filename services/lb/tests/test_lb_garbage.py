"""The collector is off while requests are served: requests must not need it, and it must run when it may."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest

from skyloom_lb import fronts, worker


@pytest.fixture
def switched_off() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def cycles(count: int) -> None:
    for _ in range(count):
        one: list[Any] = []
        one.append(one)


async def test_requests_leave_no_cycles(kit: Any, switched_off: None) -> None:
    async def engine(wire: Any) -> None:
        while True:
            await endpoint.request(wire)
            await wire.send(
                kit.answer(b'{"usage":{"prompt_tokens":1}}', extra=b"Content-Type: application/json\r\n")
            )

    endpoint = await kit.endpoint(engine)
    lb = await kit.lb(endpoint, make_front=fronts.make_front)
    client = await lb.client()

    async def ask(times: int) -> None:
        for _ in range(times):
            await client.send(kit.post(b'{"model":"m","messages":[]}'))
            assert (await client.message()).status == 200

    await ask(5)
    gc.collect()
    await ask(50)
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        left = [one for one in gc.garbage if type(one).__module__.startswith("skyloom_lb")]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
    assert left == []


def test_garbage_waits_for_a_quiet_moment(switched_off: None) -> None:
    cycles(worker._NEW_WORTH_IT + 100)
    worker.collect_garbage(busy=True)
    assert gc.get_count()[0] > worker._NEW_WORTH_IT
    worker.collect_garbage(busy=False)
    assert gc.get_count()[0] < worker._NEW_WORTH_IT


def test_garbage_is_bounded_however_busy_we_are(switched_off: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_NEW_AT_MOST", 1000)
    cycles(1100)
    worker.collect_garbage(busy=True)
    assert gc.get_count()[0] < 1000


def test_who_did_not_switch_it_off_is_left_alone() -> None:
    worker.collect_garbage(busy=False)
    assert gc.isenabled()
