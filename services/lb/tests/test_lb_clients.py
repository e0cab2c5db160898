"""Clients that misbehave, and what smugglers send, in both lanes."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from typing import Any

import pytest

from skyloom_lb.settings import ServiceSettings, Timeouts

pytestmark = pytest.mark.integration

SMUGGLED = {
    "both lengths": b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
    "two lengths": b"Content-Length: 4\r\nContent-Length: 4\r\n",
    "list of lengths": b"Content-Length: 4, 4\r\n",
    "signed length": b"Content-Length: +4\r\n",
    "hex length": b"Content-Length: 0x4\r\n",
    "underscore": b"Content-Length: 4_0\r\n",
    "blank before colon": b"Content-Length : 4\r\n",
    "bare lf": b"X: y\nContent-Length: 4\r\n",
    "bare cr": b"X: y\rContent-Length: 4\r\n",
    "folded": b"X: y\r\n Content-Length: 4\r\n",
    "two codings": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
    "odd coding": b"Transfer-Encoding: xchunked\r\n",
    "stacked coding": b"Transfer-Encoding: gzip, chunked\r\n",
    "two hosts": b"Host: other\r\n",
    "bad host": b"X: y\r\nHost: a/b\r\n",
    "nul": b"X: a\0b\r\n",
    "no name": b": x\r\n",
    "flood": b"".join(b"X-%d: y\r\n" % number for number in range(200)),
    "huge": b"X: " + b"y" * 70_000 + b"\r\n",
}


@pytest.mark.parametrize("lines", SMUGGLED.values(), ids=SMUGGLED)
@pytest.mark.parametrize("lane", ["fast", "careful"])
async def test_what_smugglers_send_gets_400_and_the_end(kit: Any, lines: bytes, lane: str) -> None:
    endpoint = await kit.endpoint()
    lb = await kit.lb(endpoint)
    wire = await lb.client()
    if lane == "careful":
        await wire.send(kit.get(extra=b"Connection: X-Odd\r\n"))
        assert (await wire.message()).status == 200
        assert lb.outcomes[-1].lane == "careful"
    await wire.send(
        b"POST /smuggle HTTP/1.1\r\nHost: lb\r\n" + lines + b"\r\nGET /evil HTTP/1.1\r\nHost: lb\r\n\r\n"
    )
    rest = await wire.ended()
    assert rest.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 "))
    assert rest.count(b"HTTP/1.") == 1, "one answer, and it does not repeat what was sent"
    assert not [one for one in endpoint.requests if b"smuggle" in one.start or b"evil" in one.start]


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
        b"GET / \r\n\r\n",
    ],
)
async def test_what_is_not_a_request_gets_400(kit: Any, request_: bytes) -> None:
    lb = await kit.lb(await kit.endpoint())
    wire = await lb.client()
    await wire.send(request_)
    assert (await wire.ended()).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    "chunks",
    [
        b"zz\r\nhello\r\n",
        b"+5\r\nhello\r\n",
        b"0x5\r\nhello\r\n",
        b"5\r\nhelloX\r\n0\r\n\r\n",
        b"5\nhello\r\n",
    ],
)
async def test_bad_chunks_of_a_client_never_end_well(kit: Any, chunks: bytes) -> None:
    endpoint = await kit.endpoint()
    lb = await kit.lb(endpoint)
    wire = await lb.client()
    await wire.send(b"POST / HTTP/1.1\r\nHost: lb\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)
    rest = await wire.ended()
    assert b" 200 " not in rest.partition(b"\r\n")[0]
    assert endpoint.requests == []


async def test_a_request_in_single_bytes(kit: Any) -> None:
    endpoint = await kit.endpoint()
    lb = await kit.lb(endpoint)
    wire = await lb.client()
    for byte in kit.post(b"slow") + kit.post(b"again"):
        await wire.send(bytes((byte,)))
        await asyncio.sleep(0)
    assert [(await wire.message()).body.split()[1] for _ in range(2)] == [b"4", b"5"]


async def test_a_head_or_body_that_never_comes_gets_408(kit: Any) -> None:
    lb = await kit.lb(await kit.endpoint(), header_seconds=0.2, body_seconds=0.2)
    for start in (b"POST / HTTP/1.1\r\nHo", kit.post(b"hello")[:-2]):
        wire = await lb.client()
        await wire.send(start)
        assert (await wire.ended()).startswith(b"HTTP/1.1 408 ")


async def test_an_idle_connection_is_closed(kit: Any) -> None:
    lb = await kit.lb(await kit.endpoint(), keep_alive_seconds=0.2)
    wire = await lb.client()
    await wire.send(kit.get())
    await wire.message()
    assert await wire.ended() == b""


@pytest.mark.parametrize(
    "stage", ["connected", "half head", "half body", "waiting", "headers", "body", "upload"]
)
async def test_a_client_that_goes_stops_the_endpoint(kit: Any, stage: str) -> None:
    ended = asyncio.Event()

    async def serve(wire: Any) -> None:
        await wire.reader.readuntil(b"\r\n\r\n")
        try:
            if stage in ("headers", "body"):
                await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            while stage == "body":
                await wire.send(b"400\r\n" + b"x" * 1024 + b"\r\n")
            while await wire.reader.read(65536):
                pass
        finally:
            ended.set()

    endpoint = await kit.endpoint(serve)
    lb = await kit.lb(endpoint)
    wire = await lb.client()
    request = {
        "connected": b"",
        "half head": b"POST / HTT",
        "half body": kit.post(b"hello")[:-3],
        "upload": b"POST / HTTP/1.1\r\nHost: lb\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    }.get(stage, kit.post())
    await wire.send(request)
    if stage in ("waiting", "upload"):
        await kit.until(lambda: lb.service.backends["e0"].in_flight)
        await kit.until(lambda: endpoint.connections)
    if stage in ("headers", "body"):
        await wire.head()
    wire.reset()
    if endpoint.connections:
        await asyncio.wait_for(ended.wait(), 5)
        await kit.until(lambda: lb.outcomes)
        assert lb.outcomes[-1].error == "ClientDisconnected"
    await kit.until(lb.quiet)
    await kit.until(lambda: not lb.worker.balancer.fronts)
    assert lb.service.backends["e0"].signals.consecutive == 0, "not the endpoint's fault"


async def test_a_client_that_reads_slowly_slows_the_endpoint(kit: Any) -> None:
    sent = 0

    async def flood(wire: Any) -> None:
        nonlocal sent
        await endpoint.request(wire)
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 60000000\r\n\r\n")
        while sent < 60_000_000:
            await wire.send(b"x" * 100_000)
            sent += 100_000

    endpoint = await kit.endpoint(flood)
    lb = await kit.lb(endpoint)
    wire = await lb.client()
    await wire.send(kit.get())
    await wire.head()
    wire.reader._transport.pause_reading()
    before = -1
    while before != sent:  # until nothing moves any more
        before = sent
        await asyncio.sleep(0.3)
    assert sent < 40_000_000
    front = next(iter(lb.worker.balancer.fronts))
    assert front.transport.get_write_buffer_size() < 2_000_000
    wire.reader._transport.resume_reading()
    async with asyncio.timeout(20):
        assert len(await wire.reader.readexactly(60_000_000)) == 60_000_000
    await kit.until(lb.quiet)


async def test_a_client_that_never_reads_is_cut_and_the_connection_not_leaked(kit: Any) -> None:
    async def flood(wire: Any) -> None:
        await endpoint.request(wire)
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 60000000\r\n\r\n")
        while True:
            await wire.send(b"x" * 100_000)

    endpoint = await kit.endpoint(flood)
    lb = await kit.lb(endpoint, service=ServiceSettings(timeouts=Timeouts(idle=0.3)))
    wire = await lb.client()
    await wire.send(kit.get())
    await kit.until(lambda: lb.outcomes)
    assert lb.outcomes[0].error == "ClientTooSlow"
    await kit.until(lambda: not endpoint.open)


async def test_an_upstream_paused_by_a_slow_client_reads_again_in_the_pool(kit: Any) -> None:
    """The whole answer is in the balancer's buffers while the client reads nothing; the next request must not hang."""
    big = 3_000_000

    async def serve(wire: Any) -> None:
        while True:
            await endpoint.request(wire)
            await wire.send(kit.answer(b"x" * big))

    endpoint = await kit.endpoint(serve)
    lb = await kit.lb(endpoint)
    slow = await lb.client()
    slow.reader._transport.pause_reading()  # type: ignore[attr-defined]
    await slow.send(kit.get())
    await kit.until(lambda: endpoint.requests)
    await asyncio.sleep(0.2)
    slow.reader._transport.resume_reading()  # type: ignore[attr-defined]
    assert len((await slow.message()).body) == big
    await kit.until(lambda: lb.service.backends["e0"].pool.idle_count() == 1)
    assert len((await lb.ask(kit.get())).body) == big
    assert endpoint.connections == 1


_MANY = """
import socket, sys
held = []
for number in range(10_000):
    one = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
    held.append(one)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
async def test_ten_thousand_idle_clients(kit: Any) -> None:
    lb = await kit.lb(await kit.endpoint())
    lb.worker.balancer.max_connections = 12_000
    crowd = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "import resource; h = resource.getrlimit(7)[1]; resource.setrlimit(7, (h, h))\n" + _MANY,
        str(lb.port),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert crowd.stdout is not None
    assert crowd.stdin is not None
    async with asyncio.timeout(60):
        assert await crowd.stdout.readline() == b"held\n"
    await kit.until(lambda: len(lb.worker.balancer.fronts) == 10_000)
    started = time.monotonic()
    wire = await lb.client()
    for _ in range(50):
        await wire.send(kit.post())
        assert (await wire.message()).status == 200
    assert time.monotonic() - started < 3.0
    started = time.process_time()
    lb.worker.balancer.sweep()
    assert time.process_time() - started < 0.1
    crowd.stdin.close()
    await crowd.wait()
    await kit.until(lambda: len(lb.worker.balancer.fronts) == 1)


async def test_more_connections_than_allowed_are_told_so(kit: Any) -> None:
    lb = await kit.lb(await kit.endpoint(), max_connections=3)
    wires = [await lb.client() for _ in range(3)]
    await kit.until(lambda: len(lb.worker.balancer.fronts) == 3)
    late = await lb.client()
    assert (await late.ended()).startswith(b"HTTP/1.1 503 ")
    wires[0].reset()
    await kit.until(lambda: len(lb.worker.balancer.fronts) == 2)
    assert (await lb.ask(kit.post())).status == 200


async def test_no_file_descriptors_left_is_a_503_and_not_the_endpoints_fault(kit: Any) -> None:
    endpoint = await kit.endpoint()
    lb = await kit.lb(endpoint)
    wire = await lb.client()
    await kit.until(lambda: lb.worker.balancer.fronts)
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [socket.socket() for _ in range(2)]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (taken[-1].fileno() + 1, hard))
        await wire.send(kit.post())
        got = await wire.message()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for one in taken:
            one.close()
    assert (got.status, b"out_of_sockets" in got.body) == (503, True)
    assert lb.service.backends["e0"].signals.consecutive == 0
    await wire.send(kit.post())
    assert (await wire.message()).status == 200
