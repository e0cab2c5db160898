"""Bodies of requests that are streamed: in order, at the endpoint's pace, in bounded memory, and given up by whoever fails."""

from __future__ import annotations

import asyncio
import os
import resource
from typing import Any

import pytest

from skyloom_lb.exchange import PlainFront, Route
from skyloom_lb.settings import Health, Retries, ServiceSettings, Timeouts

pytestmark = pytest.mark.integration

CHUNKED = b"POST /up HTTP/1.1\r\nHost: lb\r\nTransfer-Encoding: chunked\r\n"
EXPECT = b"Expect: 100-continue\r\n"
BIG = 8_000_000


def sized(size: int, extra: bytes = b"", method: bytes = b"POST") -> bytes:
    return b"%b /up HTTP/1.1\r\nHost: lb\r\nContent-Length: %d\r\n%b\r\n" % (method, size, extra)


def held(lb: Any) -> bool:
    """Whether a client is not read from because nobody takes more."""
    return any(getattr(front, "_held", False) for front in lb.worker.balancer.fronts)


async def test_a_streamed_body_arrives_as_it_was_sent(kit: Any) -> None:
    endpoint = await kit.endpoint()
    lb = await kit.lb(endpoint)
    wire = await lb.client()
    body = os.urandom(3_000_000)
    for _ in range(2):
        await wire.send(sized(len(body)) + body)
        assert (await wire.message()).status == 200
        await wire.send(CHUNKED + b"\r\n")
        for at in range(0, len(body), 700_001):
            part = body[at : at + 700_001]
            await wire.send(b"%x;ext=1\r\n%b\r\n" % (len(part), part))
        await wire.send(b"0\r\n\r\n")
        assert (await wire.message()).status == 200
    assert all(one.body == body for one in endpoint.requests)
    assert [one.get(b"transfer-encoding") for one in endpoint.requests] == [None, b"chunked"] * 2
    assert lb.outcomes[0].bytes_in == len(body)


@pytest.mark.parametrize("streamed", [False, True], ids=["at once", "streamed"])
async def test_trailers_of_requests_pass_but_none_that_could_be_taken_for_headers(
    kit: Any, streamed: bool
) -> None:
    async def keeps_all(wire: Any) -> None:
        raw.append(await wire.reader.readuntil(b"\r\n\r\n"))
        while not raw[-1].endswith(b"\r\n\r\n") or len(raw) == 1:
            raw.append(await wire.reader.readuntil(b"\r\n"))
            if raw[-1] == b"\r\n":
                break
        await wire.send(kit.answer())
        await wire.reader.read()

    raw: list[bytes] = []
    endpoint = await kit.endpoint(keeps_all)
    lb = await kit.lb(endpoint)
    wire = await lb.client()
    parts = [
        CHUNKED + b"\r\n",
        b"5;ext=1\r\nhello\r\n",
        b"0\r\nX-Sum: 1\r\nHost: evil\r\nX-Forwarded-For: 6\r\n",
    ]
    parts += [b"Content-Length: 7\r\nX Y: 1\r\nAuthorization: Bearer k\r\nX-More: 2\r\n\r\n"]
    if streamed:
        await wire.send(parts.pop(0))
        await kit.until(lambda: raw)
    await wire.send(b"".join(parts))
    assert (await wire.message()).status == 200
    head, body = raw[0], b"".join(raw[1:])
    assert b"transfer-encoding: chunked\r\n" in head
    assert body == b"5\r\nhello\r\n0\r\nX-Sum: 1\r\nX-More: 2\r\n\r\n"


# --- Expect


async def test_expect_is_for_the_endpoint_to_answer(kit: Any) -> None:
    async def patient(wire: Any) -> None:
        head = await wire.head()
        assert head.get(b"expect") == b"100-continue"
        asked.set()
        await told.wait()
        await wire.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert await wire.reader.readexactly(5) == b"hello"
        await wire.send(kit.answer(b"got it"))
        await endpoint.serve(wire)

    asked, told = asyncio.Event(), asyncio.Event()
    endpoint = await kit.endpoint(patient)
    lb = await kit.lb(endpoint)
    wire = await lb.client()
    await wire.send(sized(5, EXPECT))
    await asked.wait()
    told.set()
    assert (await wire.head()).status == 100
    await wire.send(b"hello")
    assert (await wire.message()).body == b"got it"
    await wire.send(kit.post(b"next"))
    assert (await wire.message()).body == b"%d 4" % endpoint.port
    assert endpoint.connections == 1


async def test_an_endpoint_that_does_not_know_expect_is_waited_for_a_second(kit: Any) -> None:
    endpoint = await kit.endpoint()
    lb = await kit.lb(endpoint)
    wire = await lb.client()
    await wire.send(sized(5, EXPECT))
    assert (await wire.head()).status == 100
    await wire.send(b"hello")
    assert (await wire.message()).body == b"%d 5" % endpoint.port


async def test_who_does_not_wait_for_the_100_need_not(kit: Any) -> None:
    endpoint = await kit.endpoint()
    lb = await kit.lb(endpoint)
    wire = await lb.client()
    await wire.send(sized(5, EXPECT) + b"hello")
    assert (await wire.message()).body == b"%d 5" % endpoint.port
    assert endpoint.requests[0].get(b"expect") is None


@pytest.mark.parametrize("status", [b"413 Too Large", b"401 Unauthorized"])
async def test_a_refusal_instead_of_100_spares_the_body(kit: Any, status: bytes) -> None:
    async def refuses(wire: Any) -> None:
        await wire.head()
        await wire.send(kit.answer(b"no", status))
        rest.append(await wire.reader.read())

    rest: list[bytes] = []
    lb = await kit.lb(await kit.endpoint(refuses))
    wire = await lb.client()
    await wire.send(sized(BIG, EXPECT))
    got = await wire.message()
    assert (got.status, got.body, got.get(b"connection")) == (int(status[:3]), b"no", b"close")
    assert await wire.ended() == b""
    await kit.until(lambda: rest)
    assert rest == [b""]


# --- answers that come first


@pytest.mark.parametrize("reads", [0, 100_000], ids=["reads nothing", "reads a part"])
@pytest.mark.parametrize("goes_on", [False, True], ids=["client waits", "client sends on"])
async def test_an_answer_before_the_body_is_read(kit: Any, reads: int, goes_on: bool) -> None:
    async def early(wire: Any) -> None:
        await wire.head()
        if reads:
            await wire.reader.readexactly(reads)
        await wire.send(kit.answer(b"too big", b"413 Too Large", b"Connection: close\r\n"))

    lb = await kit.lb(await kit.endpoint(early))
    for _ in range(5):
        wire = await lb.client()
        await wire.send(sized(BIG) + b"x" * reads)
        sending = asyncio.create_task(_send_all(wire, BIG - reads)) if goes_on else None
        got = await wire.message()
        assert (got.status, got.body, got.get(b"connection")) == (413, b"too big", b"close")
        if sending is not None:
            await sending
        assert await wire.ended() == b""
    await kit.until(lambda: not lb.worker.balancer.fronts)
    assert lb.service.backends["e0"].stats.failures == {}


async def _send_all(wire: Any, size: int) -> None:
    """Until all is sent or nobody takes it."""
    try:
        for _ in range(size // 100_000):
            await wire.send(b"x" * 100_000)
    except ConnectionError:
        pass


async def test_both_directions_at_once(kit: Any) -> None:
    async def echoes(wire: Any) -> None:
        await wire.head()
        await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        async for part in wire.chunks():
            await wire.send(b"%x\r\n%b\r\n" % (len(part), part))
        await wire.send(b"0\r\n\r\n")

    lb = await kit.lb(await kit.endpoint(echoes), service=ServiceSettings(timeouts=Timeouts(idle=30)))
    wire = await lb.client()
    await wire.send(CHUNKED + b"\r\n")
    assert (await wire.head()).status == 200
    for words in (b"one", b"two", b"three"):
        await wire.send(b"%x\r\n%b\r\n" % (len(words), words))
        size = int(await wire.reader.readuntil(b"\r\n"), 16)
        assert await wire.reader.readexactly(size + 2) == words + b"\r\n"
    await wire.send(b"0\r\n\r\n")
    assert await wire.ended() == b"0\r\n\r\n"


# --- who is slow, who goes


async def test_a_slow_endpoint_slows_the_client_and_memory_is_bounded(kit: Any) -> None:
    async def reads_later(wire: Any) -> None:
        raw = wire.writer.get_extra_info("socket")
        await wire.reader.readuntil(b"\r\n\r\n")
        wire.writer.transport.pause_reading()
        paused.append(raw)
        await go.wait()
        wire.writer.transport.resume_reading()
        left = size - len(wire.reader._buffer)
        await wire.reader.readexactly(len(wire.reader._buffer))
        while left:
            left -= len(await wire.reader.read(1 << 20))
        await wire.send(kit.answer())

    size, go, paused = 64_000_000, asyncio.Event(), list[Any]()
    lb = await kit.lb(await kit.endpoint(reads_later))
    wire = await lb.client()
    sending = asyncio.create_task(wire.send(sized(size) + b"x" * size))
    await kit.until(lambda: held(lb))
    exchange = next(iter(lb.worker.balancer.exchanges))
    taken = exchange.bytes_in
    assert exchange.upstream.transport.get_write_buffer_size() < 1_000_000
    assert not sending.done()
    await asyncio.sleep(0.05)
    assert exchange.bytes_in == taken < size / 2, "nothing was read meanwhile"
    go.set()
    assert (await wire.message()).status == 200
    await sending


async def test_a_client_that_goes_while_the_endpoint_takes_nothing_is_noticed(kit: Any) -> None:
    async def never_reads(wire: Any) -> None:
        wire.writer.transport.pause_reading()
        await gone.wait()

    gone = asyncio.Event()
    endpoint = await kit.endpoint(never_reads)
    lb = await kit.lb(endpoint)
    wire = await lb.client()
    wire.writer.write(sized(64_000_000) + b"x" * 32_000_000)
    await kit.until(lambda: held(lb))
    wire.reset()
    await kit.until(lambda: lb.outcomes)
    assert lb.outcomes[0].error == "ClientDisconnected"
    assert lb.service.backends["e0"].stats.failures == {}
    gone.set()


@pytest.mark.parametrize("fault", [b"zz\r\n", b"ff\r\nhalf", b""], ids=["garbage", "half a chunk", "silence"])
async def test_an_upload_that_fails_is_not_the_endpoints_fault(kit: Any, fault: bytes) -> None:
    endpoint = await kit.endpoint()
    lb = await kit.lb(endpoint, body_seconds=0.3)
    wire = await lb.client()
    await wire.send(CHUNKED + b"\r\n5\r\nhello\r\n")
    await kit.until(lambda: endpoint.connections)
    await wire.send(fault)
    got = await wire.message()
    assert got.status == (400 if b"zz" in fault else 408)
    assert await wire.ended() == b""
    assert lb.outcomes[0].error == ("BadBody" if b"zz" in fault else "ClientStalled")
    assert lb.service.backends["e0"].stats.failures == {}
    await kit.until(lambda: not endpoint.open)


@pytest.mark.parametrize("sent", [0, 1, 2_000_000])
async def test_a_client_that_lies_about_its_length_and_goes(kit: Any, sent: int) -> None:
    endpoint = await kit.endpoint()
    lb = await kit.lb(endpoint)
    wire = await lb.client()
    await wire.send(sized(BIG) + b"x" * sent)
    await kit.until(lambda: endpoint.open)
    wire.close()
    await kit.until(lambda: lb.outcomes and not endpoint.open)
    assert lb.outcomes[0].error == "ClientDisconnected"
    assert endpoint.requests == [], "nobody took it for whole"


async def test_what_follows_a_body_is_the_next_request(kit: Any) -> None:
    endpoint = await kit.endpoint()
    lb = await kit.lb(endpoint)
    wire = await lb.client()
    await wire.send(sized(2_000_000) + b"x" * 2_000_000 + b"four too many")
    assert (await wire.message()).body == b"%d 2000000" % endpoint.port
    wire.writer.write(b"\r\n\r\n")
    assert (await wire.message()).status == 400
    assert await wire.ended() == b""


async def test_a_long_upload_is_not_a_slow_answer(kit: Any) -> None:
    endpoint = await kit.endpoint()
    lb = await kit.lb(endpoint, service=ServiceSettings(timeouts=Timeouts(first_byte=0.5)))
    wire = await lb.client()
    await wire.send(CHUNKED + b"\r\n")
    for _ in range(8):
        await wire.send(b"5\r\nhello\r\n")
        await asyncio.sleep(0.1)
    await wire.send(b"0\r\n\r\n")
    assert (await wire.message()).body == b"%d 40" % endpoint.port


async def test_an_endpoint_that_takes_no_more_is_a_slow_answer(kit: Any) -> None:
    async def never_reads(wire: Any) -> None:
        wire.writer.transport.pause_reading()
        await gone.wait()

    gone = asyncio.Event()
    lb = await kit.lb(
        await kit.endpoint(never_reads), service=ServiceSettings(timeouts=Timeouts(first_byte=0.4))
    )
    wire = await lb.client()
    sending = asyncio.create_task(_send_all(wire, 64_000_000))
    wire.writer.write(sized(64_000_000))
    assert (await wire.message()).status == 504
    await sending
    gone.set()


@pytest.mark.parametrize("death", ["at once", "in the body", "after it", "half an answer"])
async def test_an_endpoint_that_dies_in_an_upload(kit: Any, death: str) -> None:
    async def dies(wire: Any) -> None:
        if death != "at once":
            await wire.head()
            await wire.reader.readexactly(BIG if "a" in death[:4] else 100_000)
        if death == "half an answer":
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
            await asyncio.sleep(0.05)
        wire.reset()

    lb = await kit.lb(await kit.endpoint(dies))
    wire = await lb.client()
    sending = asyncio.create_task(_send_all(wire, BIG))
    wire.writer.write(sized(BIG))
    status, broken = (await wire.head()).status, b""
    if death == "half an answer":
        broken = await wire.ended()
    await sending
    assert (status, broken) == ((200, b"half") if death == "half an answer" else (502, b""))
    assert len(lb.outcomes) == 1
    assert sum(lb.service.backends["e0"].stats.failures.values()) == 1


# --- tried again, only while nothing has left


async def test_an_upload_is_tried_elsewhere_before_its_body_left(kit: Any) -> None:
    good = await kit.endpoint()
    lb = await kit.lb(kit.closed_port(), good)
    for _ in range(4):
        wire = await lb.client()
        await wire.send(sized(BIG) + b"x" * BIG)
        assert (await wire.message()).body == b"%d %d" % (good.port, BIG)


async def test_an_upload_that_has_begun_is_not_sent_again(kit: Any) -> None:
    async def busy(wire: Any) -> None:
        await endpoint.request(wire)
        await wire.send(kit.answer(b"busy", b"503 Busy"))

    endpoint, good = await kit.endpoint(busy), await kit.endpoint()
    service = ServiceSettings(policy="round_robin", health=Health(slow_start_seconds=0))
    lb = await kit.lb(endpoint, good, service=service)
    got = set()
    for _ in range(4):
        wire = await lb.client()
        await wire.send(sized(2_000_000, method=b"PUT") + b"x" * 2_000_000)
        got.add((await wire.message()).status)
    assert got == {200, 503}
    assert lb.service.stats.retries == 0


async def test_an_upload_never_meets_a_stale_connection(kit: Any) -> None:
    async def once(wire: Any) -> None:
        await endpoint.request(wire)
        await wire.send(kit.answer())
        await wire.reader.readuntil(b"\r\n\r\n")
        wire.reset()

    endpoint = await kit.endpoint(once)
    lb = await kit.lb(endpoint)
    for _ in range(3):
        wire = await lb.client()
        await wire.send(sized(2_000_000) + b"x" * 2_000_000)
        assert (await wire.message()).status == 200
    assert endpoint.connections == 3


async def test_a_short_chunked_body_that_is_whole_is_like_any_other(kit: Any) -> None:
    """It has a length then, a kept-alive connection serves it, and where that is safe it is sent again."""

    async def busy(wire: Any) -> None:
        await bad.request(wire)
        await wire.send(kit.answer(b"busy", b"503 Busy"))

    bad, good = await kit.endpoint(busy), await kit.endpoint()
    service = ServiceSettings(retries=Retries(budget=1.0), health=Health(slow_start_seconds=0))
    lb = await kit.lb(bad, good, service=service)
    for _ in range(4):
        wire = await lb.client()
        await wire.send(CHUNKED.replace(b"POST", b"PUT") + b"\r\n3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n")
        assert (await wire.message()).status == 200
    assert {one.get(b"content-length") for one in good.requests} == {b"6"}
    assert {one.body for one in good.requests} == {b"abcdef"}
    assert good.connections == 1


# --- the front reads first


class Reads(PlainFront):
    """Looks at up to 1000 bytes, and shouts what is whole."""

    def body_wanted(self, head: Any) -> int:
        return 1000

    def route(self, principal: Any, head: Any, body: bytes, complete: bool) -> Any:
        found = super().route(principal, head, body, complete)
        assert isinstance(found, Route)
        return Route(found.service, body=body.upper()) if complete else found


@pytest.mark.parametrize("size", [10, 1000, 2_000_000])
async def test_a_front_may_look_at_the_body_first(kit: Any, size: int) -> None:
    endpoint = await kit.endpoint()
    lb = await kit.lb(endpoint, make_front=lambda balancer: Reads(balancer.services), fast_body=1)
    wire = await lb.client()
    for expect in (EXPECT, b""):
        await wire.send(sized(size, expect))
        if expect:
            assert (await wire.head()).status == 100, "it wants the body itself"
        for at in range(0, size, 400_000):
            await wire.send(b"x" * min(400_000, size - at))
        assert (await wire.message()).status == 200
    assert [one.body for one in endpoint.requests] == [b"X" * size if size <= 1000 else b"x" * size] * 2


# --- as big as they come


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("lane", ["fast", "careful"])
async def test_big_bodies_in_constant_memory(kit: Any, lane: str, framing: str) -> None:
    """Down in both lanes, up in the careful one, which every big upload takes. SKYLOOM_TEST_BODY=10000000000 for 10 GB each
    way; what is bounded does not depend on it."""
    body = Stream(int(os.environ.get("SKYLOOM_TEST_BODY", "300000000")), framing == "chunked")

    async def serve(wire: Any) -> None:
        await wire.reader.readuntil(b"\r\n\r\n")
        if lane == "careful":
            await body.read(wire)
        await wire.send(b"HTTP/1.1 200 OK\r\n")
        await body.write(wire)

    lb = await kit.lb(await kit.endpoint(serve))
    wire = await lb.client()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if lane == "careful":
        await wire.send(b"POST /up HTTP/1.1\r\nHost: lb\r\n")
        await body.write(wire)
    else:
        await wire.send(kit.get())
    assert (await wire.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    await body.read(wire)
    await kit.until(lambda: lb.outcomes)
    assert lb.outcomes[0].lane == lane
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 60_000, f"{grown} kB more, client and endpoint included"


class Stream:
    def __init__(self, size: int, chunked: bool) -> None:
        part = b"x" * 1_000_000
        self._count = size // len(part)
        self._size = self._count * len(part)
        self._head = b"Transfer-Encoding: chunked\r\n" if chunked else b"Content-Length: %d\r\n" % self._size
        self._piece = b"%x\r\n%b\r\n" % (len(part), part) if chunked else part
        self._end = b"0\r\n\r\n" if chunked else b""

    async def write(self, wire: Any) -> None:
        await wire.send(self._head + b"\r\n")
        for _ in range(self._count):
            await wire.send(self._piece)
        await wire.send(self._end)

    async def read(self, wire: Any) -> None:
        size, last = 0, b""
        while size < self._size or not last.endswith(self._end):
            data = await wire.reader.read(1 << 20)
            assert data, f"it ended after {size} bytes"
            size, last = size + len(data), (last + data)[-5:]
