"""Two balancers whose limits are common through Redis, and a network between them and it that fails in its ways."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from skyloom_common.bus.embedded import EmbeddedRedis
from skyloom_lb.fronts import make_front
from skyloom_lb.main import readiness

pytestmark = pytest.mark.integration
LIMIT = 600
"""A minute: ten a second."""


class Network:
    """A way to Redis that may be cut (`reset`), swallow everything (`silent`) or be well."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._mode = "well"
        self._wires: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.url = ""

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def become(self, mode: str) -> None:
        self._mode = mode
        if mode != "silent":
            for one in tuple(self._wires):
                one.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._mode == "reset":
            writer.transport.abort()
            return
        there, back = await asyncio.open_unix_connection(self._path)
        self._wires |= {writer, back}
        await asyncio.gather(self._pump(reader, back), self._pump(there, writer))
        self._wires -= {writer, back}

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while part := await reader.read(65536):
                if self._mode == "well":
                    writer.write(part)
        writer.close()

    async def stop(self) -> None:
        self.become("reset")
        if self._server is not None:
            self._server.close()


class Pair:
    def __init__(self, kit: Any, lbs: list[Any], networks: list[Network]) -> None:
        self.kit, self.lbs, self.networks = kit, lbs, networks
        self.asked = 0

    async def ask(self, number: int, count: int = 1) -> int:
        """How many of so many requests, one after the other, were served."""
        wire = await self.lbs[number].client()
        served = 0
        for _ in range(count):
            await wire.send(self.kit.post(target=b"/echo", extra=b"Authorization: Bearer one\r\n"))
            status = (await wire.message()).status
            assert status in (200, 429), "a request is served or told to wait; no other way out"
            served += status == 200
        wire.reset()
        return served

    def alone(self, number: int) -> bool:
        worker = self.lbs[number].worker
        snapshot = worker.snapshot()
        ready, detail = readiness([snapshot], 1, worker.settings)
        assert ready, "it serves"
        assert bool(detail["limits"]) == bool(snapshot["extra"]["now_limits_alone"])
        return bool(detail["limits"])

    def admission(self, number: int) -> Any:
        return self.lbs[number].worker.balancer.front.state.admission


@pytest.fixture
async def pair(kit: Any, tmp_path: Path) -> AsyncIterator[Pair]:
    async with contextlib.AsyncExitStack() as stack:
        server = EmbeddedRedis(tmp_path / "redis")
        await server.start()
        stack.push_async_callback(server.stop)
        keys = tmp_path / "keys.yaml"
        digest = hashlib.sha256(b"one").hexdigest()
        limits = {"requests_per_minute": LIMIT}
        keys.write_text(yaml.safe_dump({"keys": [{"name": "one", "sha256": digest, "limits": limits}]}))
        endpoint = await kit.endpoint()
        lbs, networks = [], []
        for _ in range(2):
            network = Network(server.url.removeprefix("unix://"))
            await network.start()
            stack.push_async_callback(network.stop)
            networks.append(network)
            lb = await kit.lb(endpoint, make_front=make_front, keys_file=str(keys), redis_url=network.url)
            lb.set(endpoint)
            lbs.append(lb)
        yield Pair(kit, lbs, networks)


@pytest.mark.parametrize("how", ["reset", "silent"])
async def test_a_partition_costs_no_request_stays_in_its_bound_and_heals(pair: Pair, how: str) -> None:
    began = time.monotonic()
    served = await pair.ask(0, 150) + await pair.ask(1, 150)
    assert served == 300 and not pair.alone(0) and not pair.alone(1)

    pair.networks[0].become(how)
    first = await pair.ask(0, 700)
    assert pair.alone(0) and not pair.alone(1)
    second = await pair.ask(1, 700)
    # What the cut one knows of is its own; the other one knows what was common until then.
    grown = (time.monotonic() - began) * LIMIT / 60
    assert first <= LIMIT - 150 + grown + 1 and second <= LIMIT - 300 + grown + 1 + 0.1 * LIMIT
    assert first >= LIMIT - 150 - 0.1 * LIMIT, "it goes on by itself"
    assert served + first + second <= 2 * LIMIT + grown, "the bound: the limit, for each balancer"
    assert 1 <= pair.admission(0).redis_failures < 50, "not each of them waited for Redis"

    pair.networks[0].become("well")
    async with asyncio.timeout(15):
        while pair.alone(0):
            await asyncio.sleep(0.05)
    assert await pair.ask(0, 5) + await pair.ask(1, 5) <= 2 + 0.1 * LIMIT, "what is left is common again"
    assert not pair.alone(0) and not pair.alone(1)


async def test_what_a_balancer_gave_out_alone_it_owes_to_all(pair: Pair) -> None:
    assert await pair.ask(0, 50) == 50
    pair.networks[0].become("reset")
    began = time.monotonic()
    assert await pair.ask(0, 540) >= 500
    pair.networks[0].become("well")
    async with asyncio.timeout(15):
        while pair.alone(0):
            await asyncio.sleep(0.05)
    await pair.ask(0)  # the first question to Redis tells it
    # The other one would have had 550 without that debt.
    assert await pair.ask(1, 300) <= (time.monotonic() - began) * LIMIT / 60 + 0.1 * LIMIT + 1


async def test_while_redis_is_silent_no_request_waits_for_it_but_the_first(pair: Pair) -> None:
    assert await pair.ask(0, 5) == 5
    pair.networks[0].become("silent")
    slow = []
    ends = time.monotonic() + 2.5  # longer than the second after which Redis would be asked again
    while time.monotonic() < ends:
        began = time.monotonic()
        await pair.ask(0)
        slow.append(time.monotonic() - began)
        await asyncio.sleep(0.02)
    assert sum(one > 0.08 for one in slow) <= 2, "the sweep asks whether it is back, not the requests"
