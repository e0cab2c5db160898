"""The bus against a real server: ack, redelivery, dead letters, fan-out, leases, and a server that dies."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from skyloom_common.bus import RESYNC, Bus
from skyloom_common.bus.embedded import EmbeddedRedis, find_server
from skyloom_common.bus.resp import pairs
from skyloom_common.contracts.events import Event
from skyloom_common.core.errors import Unavailable

pytestmark = pytest.mark.integration


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def _programs() -> list[Any]:
    """The server that an installation brings along, and Debian's where there is one."""
    installed = shutil.which("redis-server")
    missing = pytest.mark.skipif(installed is None, reason="no redis-server on PATH (Debian: redis-server)")
    return [pytest.param(None, id="wheel"), pytest.param(installed, id="redis-server", marks=missing)]


@pytest.fixture(params=_programs())
async def server(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[EmbeddedRedis]:
    program = request.param or find_server({"PATH": ""})
    redis = EmbeddedRedis(tmp_path / "run", program=program, log_file=tmp_path / "redis.log")
    await redis.start()
    yield redis
    await redis.stop()


@pytest.fixture
async def bus(server: EmbeddedRedis) -> AsyncIterator[Bus]:
    made = Bus(server.url, redeliver_after=0.1, max_deliveries=3)
    yield made
    await made.close()


class Running:
    """A subscription in the background that ends with the block."""

    def __init__(self, bus: Bus, kinds: list[str], group: str, handler: Callable[[Event], object]) -> None:
        async def call(event: Event) -> None:
            handler(event)

        self._run = bus.subscribe(kinds, group, call)

    async def __aenter__(self) -> None:
        self._task = asyncio.create_task(self._run)

    async def __aexit__(self, *error: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def test_each_event_reaches_one_member_of_a_group_and_is_acked(bus: Bus) -> None:
    first: list[str] = []
    second: list[str] = []
    async with Running(bus, ["a.done", "b.done"], "g", lambda e: first.append(e.key)):
        async with Running(bus, ["a.done", "b.done"], "g", lambda e: second.append(e.key)):
            for number in range(20):
                assert await bus.emit("a.done" if number % 2 else "b.done", str(number))
            await until(lambda: len(first) + len(second) == 20)
    assert sorted(first + second, key=int) == [str(number) for number in range(20)]
    for kind in ("a.done", "b.done"):
        assert (await bus.redis.call("XPENDING", bus.stream(kind), "g"))[0] == 0


async def test_an_event_keeps_its_content(bus: Bus) -> None:
    seen: list[Event] = []
    sent = Event("1", "node.lost", "n-1", 5.0, 7, {"why": "Überlast"})
    async with Running(bus, ["node.lost"], "g", seen.append):
        await bus.publish(sent)
        await until(lambda: bool(seen))
    assert seen == [sent]


async def test_a_failed_event_comes_again(bus: Bus) -> None:
    tries: list[str] = []

    def handler(event: Event) -> None:
        tries.append(event.key)
        if len(tries) == 1:
            raise RuntimeError("not yet")

    async with Running(bus, ["x.done"], "g", handler):
        await bus.emit("x.done", "k")
        await until(lambda: len(tries) == 2)
    assert await bus.redis.call("XLEN", bus.dead_letters("g")) == 0


async def test_what_nobody_can_handle_becomes_a_dead_letter(bus: Bus) -> None:
    tries: list[str] = []

    def handler(event: Event) -> None:
        tries.append(event.key)
        raise RuntimeError("never")

    async with Running(bus, ["x.done"], "g", handler):
        await bus.emit("x.done", "k")
        async with asyncio.timeout(10):
            while not await bus.redis.call("XLEN", bus.dead_letters("g")):
                await asyncio.sleep(0.02)
    assert len(tries) == 3
    assert (await bus.redis.call("XPENDING", bus.stream("x.done"), "g"))[0] == 0
    [(_, fields)] = await bus.redis.call("XRANGE", bus.dead_letters("g"), "-", "+")
    letter = pairs(fields)
    assert '"key":"k"' in letter["event"] and letter["stream"] == bus.stream("x.done")


async def test_a_member_that_died_in_the_middle_loses_nothing(bus: Bus) -> None:
    stuck = asyncio.Event()

    async def hangs(event: Event) -> None:
        stuck.set()
        await asyncio.Event().wait()

    first = asyncio.create_task(bus.subscribe(["x.done"], "g", hangs))
    await bus.emit("x.done", "k")
    await asyncio.wait_for(stuck.wait(), 10)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    seen: list[str] = []
    async with Running(bus, ["x.done"], "g", lambda e: seen.append(e.key)):
        await until(lambda: seen == ["k"])


async def test_an_unreadable_entry_stops_nobody(bus: Bus) -> None:
    seen: list[str] = []
    await bus.redis.call("XADD", bus.stream("x.done"), "*", "event", "{not json")
    async with Running(bus, ["x.done"], "g", lambda e: seen.append(e.key)):
        await bus.emit("x.done", "k")
        await until(lambda: seen == ["k"])


async def test_a_stream_is_trimmed(server: EmbeddedRedis) -> None:
    bus = Bus(server.url, max_length=100)
    for number in range(400):
        await bus.emit("x.done", str(number))
    assert await bus.redis.call("XLEN", bus.stream("x.done")) <= 200
    await bus.close()


async def test_every_listener_gets_every_event_from_now_on(bus: Bus) -> None:
    await bus.emit("x.done", "before")
    seen: list[list[str]] = [[], []]

    async def collect(into: list[str]) -> None:
        async for event in bus.listen(["x.done", "y.done"]):
            into.append(event.kind if event.kind == RESYNC else event.key)

    tasks = [asyncio.create_task(collect(into)) for into in seen]
    await until(lambda: all(into == [RESYNC] for into in seen))
    for number in range(3):
        await bus.emit("x.done", f"x{number}")
        await bus.emit("y.done", f"y{number}")
    await until(lambda: all(len(into) == 7 for into in seen))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for into in seen:
        assert sorted(into[1:]) == ["x0", "x1", "x2", "y0", "y1", "y2"]


async def test_a_lease_has_one_holder_and_a_growing_token(bus: Bus) -> None:
    first = await bus.leases.acquire("sweep", 30)
    assert first is not None
    assert await bus.leases.acquire("sweep", 30) is None
    assert await bus.leases.renew(first)
    assert await bus.leases.release(first)
    second = await bus.leases.acquire("sweep", 30)
    assert second is not None and second.token > first.token
    assert not await bus.leases.renew(first)
    assert not await bus.leases.release(first)


async def test_a_token_grows_when_all_of_redis_was_lost(bus: Bus) -> None:
    first = await bus.leases.acquire("sweep", 30)
    await bus.redis.call("FLUSHALL")
    await asyncio.sleep(0.002)
    second = await bus.leases.acquire("sweep", 30)
    assert first is not None and second is not None and second.token > first.token


async def test_a_killed_server_comes_back_and_everything_works_again(server: EmbeddedRedis, bus: Bus) -> None:
    seen: list[str] = []
    heard: list[str] = []

    async def listen() -> None:
        async for event in bus.listen(["x.done"]):
            heard.append(event.kind if event.kind == RESYNC else event.key)

    listener = asyncio.create_task(listen())
    async with Running(bus, ["x.done"], "g", lambda e: seen.append(e.key)):
        await until(lambda: heard == [RESYNC])
        await bus.emit("x.done", "one")
        await until(lambda: seen == ["one"] and heard == [RESYNC, "one"])
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        await until(lambda: server.restarts == 1)
        await until(lambda: heard.count(RESYNC) == 2)
        assert await bus.emit("x.done", "two")
        await until(lambda: seen == ["one", "two"] and heard[-1] == "two")
    listener.cancel()
    await asyncio.gather(listener, return_exceptions=True)


async def test_publishing_without_a_server_answers_false_and_does_not_raise(tmp_path: Path) -> None:
    bus = Bus(f"unix://{tmp_path}/none.sock")
    assert await bus.emit("x.done", "k") is False
    assert bus.dropped == 1
    with pytest.raises(Unavailable, match="the bus does not answer"):
        await bus.ping()
    with pytest.raises(Unavailable):
        await bus.leases.acquire("k", 1)
    await bus.close()


async def test_the_server_is_private_and_named(server: EmbeddedRedis, bus: Bus) -> None:
    socket = Path(server.url.removeprefix("unix://"))
    assert socket.stat().st_mode & 0o077 == 0
    assert socket.parent.stat().st_mode & 0o777 == 0o700
    engine = await bus.engine()
    assert engine.split()[0] in ("valkey", "redis") and engine.split()[1][0].isdigit()
    assert await bus.redis.call("CONFIG", "GET", "port") == ["port", "0"]


async def test_a_long_directory_still_gets_a_socket(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path / ("long" * 40) / "run")
    await server.start()
    bus = Bus(server.url)
    await bus.ping()
    await bus.close()
    await server.stop()


async def test_a_server_that_cannot_start_says_so(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path / "run", program="/bin/false")
    with pytest.raises(Unavailable, match="/bin/false"):
        await server.start()


HOLDER = """
    import asyncio, sys
    from pathlib import Path
    from skyloom_common.bus.embedded import EmbeddedRedis

    async def main():
        server = EmbeddedRedis(Path(sys.argv[1]), pipe_watch=sys.argv[2] == "pipe")
        await server.start()
        print(server.pid, flush=True)
        await asyncio.Event().wait()

    asyncio.run(main())
"""


def _children_using(socket: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if socket.encode() in command:
                found.append(int(entry.name))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("watch", ["pdeathsig", "pipe"])
async def test_no_server_survives_a_killed_parent(tmp_path: Path, watch: str) -> None:
    directory = tmp_path / "run"
    holder = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", textwrap.dedent(HOLDER), str(directory), watch],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        assert int(await asyncio.to_thread(holder.stdout.readline)) > 0
        socket = str(directory / "bus.sock")
        assert [pid for pid in _children_using(socket) if pid != holder.pid]
    finally:
        holder.kill()
        holder.wait()
    await until(lambda: not _children_using(socket))
