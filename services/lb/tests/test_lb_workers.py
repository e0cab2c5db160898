"""N processes on one port: limits that all of them share, one page that never goes back, deaths and reloads under load."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from skyloom_common.core.errors import Unavailable
from skyloom_lb import workers
from skyloom_lb.listener import nobody_listens
from skyloom_lb.observe.collector import render
from skyloom_lb.observe.snapshot import living, past, total
from skyloom_lb.settings import Settings
from skyloom_lb.workers import Child, Supervisor
from skyloom_testing_lb import Process, Start, balancers, free_port

pytestmark = pytest.mark.integration
REQUESTS = 'skyloom_lb_requests_total{service="default"}'


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    async with balancers() as make:
        yield make


async def wire(kit: Any, port: int) -> Any:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    return kit.Wire(reader, writer)


def config(folder: Path, endpoint: Any, key: dict[str, Any] | None = None, **service: Any) -> str:
    settings: dict[str, Any] = {"services": {"default": {"endpoints": [endpoint.url], **service}}}
    if key is not None:
        digest = hashlib.sha256(b"sk-one").hexdigest()
        keys = folder / "keys.yaml"
        keys.write_text(yaml.safe_dump({"keys": [{"name": "one", "sha256": digest, "limits": key}]}))
        settings["keys_file"] = str(keys)
    path = folder / "lb.yaml"
    path.write_text(yaml.safe_dump(settings))
    return str(path)


KEY = b"Authorization: Bearer sk-one\r\n"


async def until_two(lb: Process, without: int = 0) -> None:
    async with asyncio.timeout(20):
        while len(lb.workers) < 2 or without in lb.workers:
            await asyncio.sleep(0.02)
    await lb.ready()


class Streams:
    """An endpoint whose answers stay open until their client goes."""

    def __init__(self, kit: Any) -> None:
        self.kit = kit
        self.running = 0
        self.most = 0

    async def serve(self, one: Any) -> None:
        await self.endpoint.request(one)
        await one.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await one.reader.read(1)
        finally:
            self.running -= 1

    async def start(self) -> Any:
        self.endpoint = await self.kit.endpoint(self.serve)
        return self.endpoint


async def test_a_keys_places_are_those_of_all_workers_and_a_killed_ones_come_back(
    kit: Any, start: Start, tmp_path: Path
) -> None:
    streams = Streams(kit)
    path = config(tmp_path, await streams.start(), {"concurrency": 6}, limits={"queue_seconds": 0})
    lb = await start("--config", path, "--workers", "2", "--drain-seconds", "1")

    async def ask() -> tuple[int, Any]:
        one = await wire(kit, lb.port)
        await one.send(kit.post(target=b"/echo", extra=KEY))
        return (await one.head()).status, one

    answers = [await ask() for _ in range(30)]
    assert [status for status, _ in answers].count(200) == 6 == streams.running
    assert {status for status, _ in answers} == {200, 429}
    assert [status for status, _ in answers[:6]] == [200] * 6, "wherever the connections went"
    victim = lb.workers[0]
    os.kill(victim, signal.SIGKILL)
    await until_two(lb, victim)
    left = streams.running
    async with asyncio.timeout(10):
        while left == 6:  # none of them was the dead one's: end the other one too
            victim = lb.workers[0]
            os.kill(victim, signal.SIGKILL)
            await until_two(lb, victim)
            left = streams.running
    more = [await ask() for _ in range(12)]
    assert [status for status, _ in more].count(200) == 6 - left and streams.most == 6
    for _, one in (*answers, *more):
        one.reset()
    lb.signal(signal.SIGTERM)
    assert await asyncio.wait_for(lb.process.wait(), 15) == 0


async def test_a_place_that_comes_free_goes_to_who_waits_in_whichever_worker(
    kit: Any, start: Start, tmp_path: Path
) -> None:
    running = most = 0

    async def brief(one: Any) -> None:
        nonlocal running, most
        while True:
            await endpoint.request(one)
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.005)
            running -= 1
            await one.send(kit.answer())

    endpoint = await kit.endpoint(brief)
    path = config(tmp_path, endpoint, limits={"concurrency": 2, "queue": 1000, "queue_seconds": 20})
    lb = await start("--config", path, "--workers", "3")
    wires = [await wire(kit, lb.port) for _ in range(30)]

    async def client(one: Any) -> None:
        for _ in range(8):
            await one.send(kit.post(target=b"/echo"))
            assert (await one.message()).status == 200

    began = asyncio.get_running_loop().time()
    await asyncio.gather(*map(client, wires))
    took = asyncio.get_running_loop().time() - began
    assert most == 2
    # 240 requests of 5 ms, two at a time, are 0.6 s; a quarter second for each place that nobody was told of would be minutes.
    assert took < 8


async def test_a_rate_is_that_of_all_workers(kit: Any, start: Start, tmp_path: Path) -> None:
    path = config(tmp_path, await kit.endpoint(), {"requests_per_minute": 20})
    lb = await start("--config", path, "--workers", "2")
    heads = []
    for _ in range(40):
        one = await wire(kit, lb.port)
        await one.send(kit.post(target=b"/echo", extra=KEY))
        heads.append(await one.message())
        one.close()
    # A token comes every three seconds.
    assert 20 <= [one.status for one in heads].count(200) <= 24
    assert [one.status for one in heads[:20]] == [200] * 20
    left = [int(one.get(b"x-ratelimit-remaining-requests") or -1) for one in heads[:20]]
    assert left == sorted(left, reverse=True) and left[0] == 19
    assert 1 <= int(heads[-1].get(b"retry-after") or 0) <= 4


async def test_one_page_that_never_goes_back_and_a_worker_that_is_killed(kit: Any, start: Start) -> None:
    endpoint = await kit.endpoint()
    lb = await start("--endpoint", endpoint.url, "--workers", "2", "--drain-seconds", "1")
    stop = asyncio.Event()
    seen: list[float] = []

    async def scrape() -> None:
        while not stop.is_set():
            seen.append(await lb.counted(REQUESTS))

    async def load() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):  # the killed worker's
                one = await wire(kit, lb.port)
                await one.send(kit.post(target=b"/echo"))
                assert (await one.message()).status == 200
                one.close()

    tasks = [asyncio.ensure_future(one) for one in (scrape(), load(), load())]
    await kit.until(lambda: seen and seen[-1] > 50)
    for _ in range(2):
        victim = lb.workers[0]
        os.kill(victim, signal.SIGKILL)
        await until_two(lb, victim)
        at = len(seen)
        await kit.until(lambda at=at: len(seen) > at + 5)
    stop.set()
    await asyncio.gather(*tasks)
    assert seen == sorted(seen) and seen[-1] > seen[0]
    lb.signal(signal.SIGTERM)
    assert await asyncio.wait_for(lb.process.wait(), 15) == 0


async def test_all_workers_take_new_settings_under_load_without_a_dropped_connection(
    kit: Any, start: Start, tmp_path: Path
) -> None:
    first, second = await kit.endpoint(), await kit.endpoint()
    path = config(tmp_path, first)
    lb = await start("--config", path, "--workers", "2")
    wires = [await wire(kit, lb.port) for _ in range(16)]
    turn = stop = False
    answers = 0

    async def client(one: Any) -> bytes:
        nonlocal answers
        body = b""
        while not stop:
            await one.send(kit.post(target=b"/echo"))
            got = await one.message()
            assert got.status == 200
            body = got.body
            answers += 1
        return body

    clients = [asyncio.ensure_future(client(one)) for one in wires]
    for _ in range(6):
        turn = not turn
        config(tmp_path, second if turn else first)
        lb.signal(signal.SIGHUP)
        before = answers
        await kit.until(lambda before=before: answers > before + 100)
    config(tmp_path, second)
    lb.signal(signal.SIGHUP)
    known = len(first.requests)
    async with asyncio.timeout(10):
        while True:
            before = answers
            await kit.until(lambda before=before: answers > before + 100)
            if len(first.requests) == known:
                break
            known = len(first.requests)
    stop = True
    bodies = await asyncio.gather(*clients)
    assert {body.split()[0] for body in bodies} == {b"%d" % second.port}, "every worker"


async def test_a_reload_that_comes_while_workers_start_is_not_lost(
    kit: Any, start: Start, tmp_path: Path
) -> None:
    """And ends none of them: until its handler is there, the signal would."""
    first, second = await kit.endpoint(), await kit.endpoint()
    path = config(tmp_path, first)
    lb = await start("--config", path, "--workers", "2")
    victim = lb.workers[0]
    os.kill(victim, signal.SIGKILL)
    await kit.until(lambda: victim not in lb.workers and len(lb.workers) == 2)
    fresh = lb.workers
    config(tmp_path, second)
    for _ in range(5):
        lb.signal(signal.SIGHUP)
        await asyncio.sleep(0.02)
    await lb.ready()
    served: list[bytes] = []
    async with asyncio.timeout(10):
        while served[-20:] != [b"%d 2" % second.port] * 20:
            one = await wire(kit, lb.port)
            await one.send(kit.post(target=b"/echo"))
            served.append((await one.message()).body)
            one.close()
    assert lb.workers == fresh


async def test_a_new_worker_serves_with_the_settings_that_were_accepted_last(
    kit: Any, start: Start, tmp_path: Path
) -> None:
    """Whatever the file says by then: that it listens elsewhere and wants no keys, nothing at all, or nonsense."""
    endpoint = await kit.endpoint()
    keys, path = tmp_path / "keys.yaml", tmp_path / "lb.yaml"
    keys.write_text("keys: []")
    rest = f"services: {{default: {{endpoints: [{endpoint.url}]}}}}\n"
    path.write_text(f"host: 0.0.0.0\nkeys_file: {keys}\n{rest}")
    log = tmp_path / "log"
    lb = await start("--config", str(path), "--host", "", "--workers", "2", log=log, SKYLOOM_LB_HOST="")
    for text in (f"host: 0.0.0.0\n{rest}", f"host: 127.0.0.9\n{rest}", "", "trusted_proxies: [foo]\n"):
        path.write_text(text)
        lb.signal(signal.SIGHUP)
        victim = lb.workers[0]
        os.kill(victim, signal.SIGKILL)
        await until_two(lb, victim)
        for _ in range(12):
            one = await wire(kit, lb.port)
            await one.send(kit.post(target=b"/echo"))
            assert (await one.message()).status == 401
            one.close()
    assert "Traceback" not in log.read_text()
    assert f"{path}: is empty; write {{}} for no settings" in log.read_text()


async def test_a_new_worker_knows_the_keys_that_were_good_last(
    kit: Any, start: Start, tmp_path: Path
) -> None:
    """Those of the file as it was before it became wrong, not as it was when the balancer started."""
    endpoint = await kit.endpoint()
    path = config(tmp_path, endpoint, {})
    keys = tmp_path / "keys.yaml"
    before = keys.read_text()
    log = tmp_path / "log"
    lb = await start("--config", path, "--workers", "2", log=log)

    async def asked(secret: bytes) -> set[int]:
        """By so many connections that both workers have had one."""
        found = set()
        for _ in range(12):
            one = await wire(kit, lb.port)
            await one.send(kit.post(target=b"/echo", extra=b"Authorization: Bearer %b\r\n" % secret))
            found.add((await one.message()).status)
            one.close()
        return found

    assert (await asked(b"sk-one"), await asked(b"sk-two")) == ({200}, {401})
    one, two = (hashlib.sha256(secret).hexdigest() for secret in (b"sk-one", b"sk-two"))
    keys.write_text(before.replace(one, two))
    async with asyncio.timeout(20):
        while (await asked(b"sk-one"), await asked(b"sk-two")) != ({401}, {200}):
            await asyncio.sleep(0.05)
    async with asyncio.timeout(20):
        while log.read_text().count("1 keys read again") < 3:  # two workers and their supervisor
            await asyncio.sleep(0.05)
    for wrong in ("keys: [nonsense", None):
        keys.unlink() if wrong is None else keys.write_text(wrong)
        victim = lb.workers[0]
        os.kill(victim, signal.SIGKILL)
        await until_two(lb, victim)
        assert (await asked(b"sk-one"), await asked(b"sk-two")) == ({401}, {200})
    keys.write_text(before)
    async with asyncio.timeout(20):
        while (await asked(b"sk-one"), await asked(b"sk-two")) != ({200}, {401}):
            await asyncio.sleep(0.05)


async def test_the_supervisor_goes_by_the_new_settings_too(kit: Any, start: Start, tmp_path: Path) -> None:
    endpoint = await kit.endpoint()
    keys, path = tmp_path / "keys.yaml", tmp_path / "lb.yaml"
    keys.write_text("keys: []")
    rest = f"host: 0.0.0.0\nservices: {{default: {{endpoints: [{endpoint.url}]}}}}\n"
    path.write_text(f"keys_file: {keys}\n{rest}")
    lb = await start("--config", str(path), "--host", "", "--workers", "2", SKYLOOM_LB_HOST="")
    assert (await lb.ready())["open"] is False
    path.write_text(f"open: true\n{rest}")
    lb.signal(signal.SIGHUP)
    async with asyncio.timeout(10):
        while not (await lb.ready())["open"]:
            await asyncio.sleep(0.02)


async def test_draining_workers_have_the_time_of_the_settings_accepted_last() -> None:
    supervisor = Supervisor(Settings(workers=1, drain_seconds=-5.0), ())
    supervisor._take(Settings(workers=1, drain_seconds=60.0))
    ended = asyncio.Event()
    signals: list[signal.Signals] = []

    class Draining:
        pid = 1

        async def wait(self) -> int:
            return 0 if await ended.wait() else 1

        def send_signal(self, number: signal.Signals) -> None:
            signals.append(number)
            ended.set()

    supervisor._children[0] = Child(cast("Any", Draining()), cast("Any", None), cast("Any", None), Settings())
    waits = asyncio.ensure_future(supervisor._wait_for_all())
    for _ in range(20):
        await asyncio.sleep(0)
    assert signals == []
    ended.set()
    await waits


async def test_what_keeps_the_first_workers_from_starting_ends_the_supervisor(
    kit: Any, start: Start, tmp_path: Path
) -> None:
    log, nowhere = tmp_path / "log", tmp_path / "nowhere" / "access"
    flags = ("--endpoint", "http://127.0.0.1:1", "--workers", "2", "--access-log", str(nowhere))
    lb = await start(*flags, wait=False, log=log)
    assert await asyncio.wait_for(lb.process.wait(), 20) == 1
    said = log.read_text()
    assert f"skyloom-lb: access_log: {nowhere} cannot be written: No such file or directory\n" in said
    assert "Traceback" not in said and said.count("access_log") == 1


async def test_a_worker_that_dies_without_a_word_ends_only_a_supervisor_that_never_served() -> None:
    class Process:
        pid = 1

    class Writer:
        def close(self) -> None:
            """Nobody reads it."""

    def child(last: dict[str, Any] | None) -> Child:
        return Child(cast("Any", Process()), cast("Any", None), cast("Any", Writer()), Settings(), last=last)

    served: dict[str, Any] = {"services": {}}
    for other, failed in ((None, "a worker ended with -9 before it served"), (served, "None")):
        supervisor = Supervisor(Settings(workers=2), ())
        supervisor._children = {0: child(None), 1: child(other)}
        supervisor._bury(0, supervisor._children[0], -9)
        assert str(supervisor._failed) == failed
        assert supervisor._stopping.is_set() == (other is None)


async def test_two_balancers_do_not_share_a_port_unknown_to_anybody(
    kit: Any, start: Start, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    first = await start("--endpoint", "http://127.0.0.1:1", "--workers", "2")
    flags = ("--endpoint", "http://127.0.0.1:1", "--workers", "2", "--port", str(first.port))
    second = await start(*flags, wait=False, log=log)
    assert await asyncio.wait_for(second.process.wait(), 20) == 1
    words = f"host, port: 127.0.0.1:{first.port} cannot be listened on: is used by another process"
    assert log.read_text().strip() == f"skyloom-lb: {words}"


def is_free(port: int) -> bool:
    with contextlib.suppress(Unavailable):
        nobody_listens("127.0.0.1", port)
        return True
    return False


async def test_nor_when_they_start_in_one_instant(kit: Any, start: Start, tmp_path: Path) -> None:
    """Before the first one's workers listen; once it has ended, in whatever way, the port is free."""
    port = str(free_port())
    flags = ("--endpoint", "http://127.0.0.1:1", "--workers", "2", "--port", port)
    for _ in range(2):
        logs = [tmp_path / str(number) for number in range(3)]
        all_of_them = await asyncio.gather(*(start(*flags, wait=False, log=log) for log in logs))
        async with asyncio.timeout(30):
            while sum(one.process.returncode is not None for one in all_of_them) < 2:
                await asyncio.sleep(0.02)
        ended = [one.process.returncode for one in all_of_them if one.process.returncode is not None]
        assert ended == [1, 1]
        said = [log.read_text().strip() for log in logs]
        words = f"skyloom-lb: host, port: 127.0.0.1:{port} cannot be listened on: is used by another process"
        assert said.count(words) == 2
        (left,) = (one for one in all_of_them if one.process.returncode is None)
        await left.ready()
        left.process.kill()
        await left.process.wait()
        await kit.until(lambda: is_free(int(port)))


async def test_an_endpoint_that_only_a_dead_worker_had_is_no_endpoint(
    kit: Any, start: Start, tmp_path: Path
) -> None:
    first, second = await kit.endpoint(), await kit.endpoint()
    path = config(tmp_path, first)
    lb = await start("--config", path, "--workers", "2")
    one = await wire(kit, lb.port)
    await one.send(kit.post(target=b"/echo"))
    assert (await one.message()).status == 200
    await lb.until_counted(REQUESTS, 1.0)
    victims = lb.workers
    os.kill(victims[0], signal.SIGKILL)
    await until_two(lb, victims[0])
    os.kill(victims[1], signal.SIGKILL)
    await until_two(lb, victims[1])
    config(tmp_path, second)
    lb.signal(signal.SIGHUP)
    name = f"127.0.0.1:{second.port}"
    async with asyncio.timeout(10):
        while list(json.loads((await lb.get("/debug/endpoints"))[1])["default"]) != [name]:
            await asyncio.sleep(0.02)
    page = (await lb.get("/metrics"))[1]
    of_state = {line for line in page.splitlines() if line.startswith("skyloom_lb_endpoint_state{")}
    assert of_state and all(f'endpoint="{name}"' in line for line in of_state)
    gone = f'{{endpoint="127.0.0.1:{first.port}",service="default"}}'
    assert await lb.counted(f"skyloom_lb_endpoint_attempts_total{gone}") == 1
    assert await lb.counted(REQUESTS) == 1


async def test_a_dead_workers_counts_stay_and_its_states_do_not(kit: Any) -> None:
    lb = await kit.lb(await kit.endpoint())
    await lb.ask(kit.post())
    dead, alive_one = lb.worker.snapshot(), lb.worker.snapshot()
    alone = total([past(dead)])
    assert living(alone["services"]["default"]) == {} and b"endpoint_state{" not in render(lambda: alone)
    both = total([alive_one, past(dead)])
    assert living(both["services"]["default"])["e0"]["state"] == "ready"
    assert both["services"]["default"]["endpoints"]["e0"]["stats"]["attempts"] == 2


@pytest.mark.parametrize("cut", [b'{"ask": 1, "serv', b"[]nonsense\n", b""])
async def test_half_a_line_is_no_answer(cut: bytes) -> None:
    class Process:
        pid = 1

    class Writer:
        def write(self, data: bytes) -> None:
            """Nobody reads it."""

    reader = asyncio.StreamReader()
    child = Child(cast("Any", Process()), reader, cast("Any", Writer()), Settings())
    reader.feed_data(b'{"ask": 1, "services": {}}\n')
    assert await child.ask() == {"ask": 1, "services": {}}
    reader.feed_data(cut)
    reader.feed_eof()
    assert await child.ask() is None
    assert child.last == {"ask": 1, "services": {}}


async def test_sigterm_lets_the_streams_of_all_workers_finish(kit: Any, start: Start) -> None:
    go, running = asyncio.Event(), 0

    async def stream(one: Any) -> None:
        nonlocal running
        await endpoint.request(one)
        await one.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        running += 1
        await go.wait()
        await one.send(b"1\r\nb\r\n0\r\n\r\n")

    endpoint = await kit.endpoint(stream)
    lb = await start("--endpoint", endpoint.url, "--workers", "2", "--drain-seconds", "20")
    wires = [await wire(kit, lb.port) for _ in range(60)]
    for one in wires:
        await one.send(kit.post(target=b"/echo"))
    await kit.until(lambda: running == 60)
    lb.signal(signal.SIGTERM)
    async with asyncio.timeout(10):
        while True:
            try:
                (await wire(kit, lb.port)).reset()
            except OSError:
                break
            await asyncio.sleep(0.02)
    go.set()
    for one in wires:
        assert (await one.message()).body == b"ab"
    assert await asyncio.wait_for(lb.process.wait(), 10) == 0


async def test_workers_without_a_supervisor_finish_and_end(kit: Any, start: Start) -> None:
    streams = Streams(kit)
    lb = await start("--endpoint", (await streams.start()).url, "--workers", "2", "--drain-seconds", "1")
    one = await wire(kit, lb.port)
    await one.send(kit.post(target=b"/echo"))
    await one.head()
    orphans = lb.workers
    lb.process.kill()
    await lb.process.wait()
    await kit.until(lambda: not any(alive(pid) for pid in orphans))
    assert streams.running == 0


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.parametrize("unread", [True, False])
async def test_a_worker_hears_that_its_supervisor_is_gone(unread: bool) -> None:
    """A socket that is closed with something unread ends in a reset, not in an end."""

    class Quiet:
        def snapshot(self) -> dict[str, Any]:
            return {}

    ours, theirs = socket.socketpair()
    stop = asyncio.Event()
    reader, writer = await asyncio.open_connection(sock=theirs)
    talk = asyncio.ensure_future(workers._talk(cast("Any", Quiet()), reader, writer, stop))
    if unread:
        ours.send(b'{"ask": 1}\n')
        await asyncio.to_thread(ours.recv, 1, socket.MSG_PEEK)
    ours.close()
    await asyncio.wait_for(stop.wait(), 5)
    await talk
    writer.close()
