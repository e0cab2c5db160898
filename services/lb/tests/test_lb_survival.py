"""Replicas are killed all the time and nobody notices: the small version of tests/perf/bench_lb_streams.py."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

import skyloom_testing_engine as engines
from skyloom_common.contracts.endpoints import Endpoint
from skyloom_lb.fronts import make_front
from skyloom_lb.settings import ServiceSettings, Timeouts

SECONDS = 6.0


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.parametrize("continuation", ["auto", "tokens"])
async def test_replicas_die_under_streams(kit: Any, continuation: str) -> None:
    replicas = [engines.EngineProcess(port, tokens_per_second=60) for port in engines.free_ports(3)]
    for one in replicas:
        one.start()
    try:
        for one in replicas:
            await one.ready()
        endpoints = tuple(
            Endpoint(id=f"r{index}", url=one.url, engine="skyloom-engine")
            for index, one in enumerate(replicas)
        )
        service = ServiceSettings(name="tiny", endpoints=endpoints, openai={"continuation": continuation})
        lb = await kit.lb(services={"tiny": service}, make_front=make_front)
        seen = engines.Seen()
        ends = time.monotonic() + SECONDS
        await asyncio.gather(
            _kill(replicas, ends), *(_streams(lb.port, number, seen, ends) for number in range(20))
        )
        resumes = lb.worker.snapshot()["services"]["tiny"]["stats"]["resumes"]
    finally:
        for one in replicas:
            one.kill()
    assert (seen.broken, seen.tokens_wrong, seen.usage_wrong) == (0, 0, 0), seen.wrong
    assert seen.tokens > 1000 and resumes > 20
    await kit.until(lb.quiet)


@pytest.mark.integration
@pytest.mark.parametrize("continuation", ["auto", "tokens"])
async def test_a_stream_that_falls_silent_goes_on_elsewhere(kit: Any, continuation: str) -> None:
    """Nobody says that anything is wrong: the idle time-out is all that tells it."""
    engine = engines.load()
    replicas = [engine.Engine(engine.Settings(model="tiny")) for _ in range(3)]
    servers = [await one.serve("127.0.0.1", 0) for one in replicas]
    try:
        endpoints = tuple(
            Endpoint(
                f"r{index}", f"http://127.0.0.1:{one.sockets[0].getsockname()[1]}", engine="skyloom-engine"
            )
            for index, one in enumerate(servers)
        )
        service = ServiceSettings(
            name="tiny",
            endpoints=endpoints,
            timeouts=Timeouts(idle=0.3),
            openai={"continuation": continuation},
        )
        lb = await kit.lb(services={"tiny": service}, make_front=make_front)
        for one in replicas[:2]:
            one.faults = [engine.Fault("hang_mid", 5, 1)]
        seen = engines.Seen()
        messages = [{"role": "user", "content": "do not stop"}]
        request = {"model": "tiny", "messages": messages, "max_tokens": 30}
        async with asyncio.timeout(20):
            for _ in range(3):  # each endpoint is asked first once
                await engines.check_stream(lb.port, request, seen)
        stats = lb.worker.snapshot()["services"]["tiny"]["stats"]
        failures = [one.stats.failures for one in lb.worker.balancer.services["tiny"].backends.values()]
    finally:
        for server in servers:
            server.close()
    assert (seen.broken, seen.tokens_wrong, seen.usage_wrong) == (0, 0, 0), seen.wrong
    assert (seen.streams, seen.tokens) == (3, 90)
    assert (stats["resumes"], stats["errors"]) == (2, {})
    assert sorted(len(one) for one in failures) == [0, 1, 1]


async def _streams(port: int, number: int, seen: engines.Seen, ends: float) -> None:
    turn = 0
    while time.monotonic() < ends:
        turn += 1
        messages = [{"role": "user", "content": f"stream {number}, turn {turn}"}]
        limit = {"max_tokens": 40 + number} if number % 2 else {}
        await engines.check_stream(port, {"model": "tiny", "messages": messages, **limit}, seen)


async def _kill(replicas: list[engines.EngineProcess], ends: float) -> None:
    turn = 0
    while time.monotonic() < ends - 1.5:
        await asyncio.sleep(0.5)
        victim = replicas[turn % len(replicas)]
        victim.kill()
        await asyncio.sleep(0.2)
        victim.start()
        await victim.ready()
        turn += 1
