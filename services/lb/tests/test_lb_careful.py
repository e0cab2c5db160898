"""The careful lane: uploads, Expect, HEAD, HTTP/1.0, upgrades; and that both lanes treat a request alike."""

from __future__ import annotations

import asyncio
import resource
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from skyloom_lb.settings import ServiceSettings, Timeouts

pytestmark = pytest.mark.integration

FACTS = (
    b"x-forwarded-for",
    b"x-forwarded-proto",
    b"x-forwarded-host",
    b"forwarded",
    b"host",
    b"traceparent",
    b"x-mine",
)


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"])
async def test_every_method(kit: Any, method: str) -> None:
    endpoint = await kit.endpoint()
    lb = await kit.lb(endpoint)
    wire = await lb.client()
    for _ in range(2):
        await wire.send(b"%b /x?y=1 HTTP/1.1\r\nHost: lb\r\n\r\n" % method.encode())
        got = await wire.message(no_body=method == "HEAD")
        assert got.status == 200
        assert endpoint.requests[-1].start == b"%b /x?y=1 HTTP/1.1" % method.encode()
    if method == "HEAD":
        assert got.get(b"content-length") is not None


async def test_both_lanes_send_the_same_facts(kit: Any) -> None:
    endpoint = await kit.endpoint()
    lb = await kit.lb(endpoint)
    lines = (
        b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\nX-Mine: a\r\n"
        b"X-Forwarded-For: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\nX-Request-Id: mine-1\r\n"
    )
    fast = await lb.ask(kit.post(extra=lines))
    careful = await lb.ask(kit.post(extra=lines + b"Connection: X-Odd\r\n"))
    one, other = endpoint.requests
    assert [one.get(name) for name in FACTS] == [other.get(name) for name in FACTS]
    assert one.get(b"x-forwarded-for") == b"127.0.0.1", "a stranger's claims are dropped"
    assert {one.get(b"x-request-id"), other.get(b"x-request-id"), fast.get(b"x-request-id")} == {b"mine-1"}
    assert careful.get(b"x-request-id") == b"mine-1"
    assert [outcome.lane for outcome in lb.outcomes] == ["fast", "careful"]


async def test_a_trusted_proxys_claims_are_kept(kit: Any) -> None:
    endpoint = await kit.endpoint()
    lb = await kit.lb(endpoint, trusted_proxies=("127.0.0.0/8",))
    await lb.ask(kit.post(extra=b"X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\n"))
    assert endpoint.requests[0].get(b"x-forwarded-for") == b"6.6.6.6, 127.0.0.1"
    assert endpoint.requests[0].get(b"x-forwarded-proto") == b"https"


async def test_expect_is_answered_before_the_body(kit: Any) -> None:
    endpoint = await kit.endpoint()
    lb = await kit.lb(endpoint)
    wire = await lb.client()
    await wire.send(b"POST / HTTP/1.1\r\nHost: lb\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
    assert (await wire.head()).status == 100
    await wire.send(b"hello")
    got = await wire.message()
    assert got.body == b"%d 5" % endpoint.port
    assert endpoint.requests[0].get(b"expect") is None
    await wire.send(kit.post(b"next"))
    assert (await wire.message()).body == b"%d 4" % endpoint.port


async def test_a_chunked_upload_with_trailers(kit: Any) -> None:
    endpoint = await kit.endpoint()
    lb = await kit.lb(endpoint)
    wire = await lb.client()
    await wire.send(
        b"POST / HTTP/1.1\r\nHost: lb\r\nTransfer-Encoding: chunked\r\n\r\n5;ext=1\r\nhello\r\n3\r\nyou\r\n0\r\nX-T: 1\r\n\r\n"
    )
    assert (await wire.message()).body == b"%d 8" % endpoint.port


async def test_response_trailers_go_through(kit: Any) -> None:
    async def serve(wire: Any) -> None:
        await endpoint.request(wire)
        await wire.send(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 7\r\n\r\n"
        )
        await wire.reader.read()

    endpoint = await kit.endpoint(serve)
    lb = await kit.lb(endpoint)
    wire = await lb.client()
    await wire.send(kit.get())
    await wire.head()
    assert await wire.reader.readuntil(b"\r\n\r\n") == b"2\r\nok\r\n0\r\nX-Sum: 7\r\n\r\n"


async def test_an_old_client(kit: Any) -> None:
    lb = await kit.lb(await kit.endpoint())
    wire = await lb.client()
    await wire.send(b"GET /old HTTP/1.0\r\n\r\n")
    rest = await wire.ended()
    assert rest.startswith((b"HTTP/1.0 200", b"HTTP/1.1 200"))
    assert b"chunked" not in rest.lower()


async def test_connect_and_foreign_targets_are_refused(kit: Any) -> None:
    endpoint = await kit.endpoint()
    lb = await kit.lb(endpoint)
    assert (await lb.ask(b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n")).status == 405
    assert (await lb.ask(b"GET http://evil/ HTTP/1.1\r\nHost: lb\r\n\r\n")).status == 400
    assert (await lb.ask(b"GET http://lb/x HTTP/1.1\r\nHost: lb\r\n\r\n")).status == 200
    assert endpoint.requests[-1].start == b"GET /x HTTP/1.1"


async def test_a_careful_answer_that_breaks_never_looks_whole(kit: Any) -> None:
    async def dies(wire: Any) -> None:
        await wire.reader.readuntil(b"0\r\n\r\n")
        await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        await asyncio.sleep(0.1)
        wire.reset()

    lb = await kit.lb(await kit.endpoint(dies))
    wire = await lb.client()
    await wire.send(b"POST / HTTP/1.1\r\nHost: lb\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n")
    rest = await wire.ended()
    assert b"hello" in rest
    assert b"\r\n0\r\n" not in rest


@pytest.mark.parametrize("fault", [b"zz\r\n", b""])
async def test_an_upload_that_fails_is_not_the_endpoints_fault(kit: Any, fault: bytes) -> None:
    endpoint = await kit.endpoint()
    lb = await kit.lb(endpoint, body_seconds=0.3)
    wire = await lb.client()
    await wire.send(b"POST /up HTTP/1.1\r\nHost: lb\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
    await kit.until(lambda: endpoint.connections)
    await wire.send(fault)
    assert b" 200 " not in await wire.ended()
    await kit.until(lambda: lb.outcomes)
    assert lb.outcomes[0].error in ("ClientStalled", "ClientDisconnected")
    assert lb.service.backends["e0"].stats.failures == {}
    await kit.until(lambda: not endpoint.open)


async def test_a_long_upload_is_not_a_slow_answer(kit: Any) -> None:
    endpoint = await kit.endpoint()
    lb = await kit.lb(endpoint, service=ServiceSettings(timeouts=Timeouts(first_byte=0.5)))
    wire = await lb.client()
    await wire.send(b"POST /up HTTP/1.1\r\nHost: lb\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(8):
        await wire.send(b"5\r\nhello\r\n")
        await asyncio.sleep(0.1)
    await wire.send(b"0\r\n\r\n")
    assert (await wire.message()).body == b"%d 40" % endpoint.port


async def test_a_refused_endpoint_is_retried_in_the_careful_lane_too(kit: Any) -> None:
    good = await kit.endpoint()
    lb = await kit.lb(kit.closed_port(), good)
    for _ in range(4):
        assert (await lb.ask(kit.get(extra=b"Connection: X-Odd\r\n"))).status == 200
    lb.set(kit.closed_port())
    got = await lb.ask(kit.get(extra=b"Connection: X-Odd\r\n"))
    assert (got.status, b"is not reached" in got.body) == (502, True)


async def test_hand_over_while_write_paused(kit: Any) -> None:
    """A pipelined odd request follows an answer that the client does not read: the new protocol must know."""
    big = 8_000_000

    async def serve(wire: Any) -> None:
        while True:
            request = await endpoint.request(wire)
            await wire.send(kit.answer(b"x" * (big if b"big" in request.start else 2)))

    endpoint = await kit.endpoint(serve)
    lb = await kit.lb(endpoint)
    wire = await lb.client()
    await wire.send(kit.get(b"/big") + kit.get(b"/odd", extra=b"Connection: X-Odd\r\n") + kit.get(b"/big"))
    await asyncio.sleep(0.2)
    assert [len((await wire.message()).body) for _ in range(3)] == [big, 2, big]


@pytest.mark.slow
async def test_a_big_upload_and_answer_in_constant_memory(kit: Any) -> None:
    """400 MB each way; the code path does not know whether it is 400 MB or 10 GB."""
    size, part = 400_000_000, b"x" * 1_000_000

    async def serve(wire: Any) -> None:
        head = await wire.reader.readuntil(b"\r\n\r\n")
        assert b"POST" in head
        left = size
        while left:
            left -= len(await wire.reader.read(min(left, 1 << 20)))
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size // len(part)):
            await wire.send(part)

    endpoint = await kit.endpoint(serve)
    lb = await kit.lb(endpoint)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wire = await lb.client()

    async def upload() -> None:
        await wire.send(b"POST / HTTP/1.1\r\nHost: lb\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size // len(part)):
            await wire.send(part)

    async with asyncio.timeout(60):
        _, head = await asyncio.gather(upload(), _head_late(wire))
        left = int(head.get(b"content-length"))
        while left:
            left -= len(await wire.reader.read(1 << 20))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 120_000, f"{grown} kB more"


async def _head_late(wire: Any) -> Any:
    raw = await wire.reader.readuntil(b"\r\n\r\n")
    start, *lines = raw[:-4].split(b"\r\n")
    pairs = [line.partition(b":") for line in lines]
    from types import SimpleNamespace

    found = {name.lower(): value.strip() for name, _, value in pairs}
    return SimpleNamespace(start=start, get=found.get)


async def _echo(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    async for message in socket:
        await socket.send_str(f"echo {message.data}")
    return socket


async def test_websocket(kit: Any) -> None:
    app = web.Application()
    app.router.add_get("/ws", _echo)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    lb = await kit.lb(f"http://127.0.0.1:{port}")
    async with aiohttp.ClientSession() as session:
        async with session.ws_connect(f"http://127.0.0.1:{lb.port}/ws") as socket:
            for words in ("hello", "x" * 300_000):
                await socket.send_str(words)
                assert (await socket.receive(5)).data == f"echo {words}"
            assert lb.service.backends["e0"].in_flight == 1
            assert lb.service.active == 1
        async with session.get(
            f"http://127.0.0.1:{lb.port}/ws", headers={"Connection": "upgrade", "Upgrade": "x"}
        ) as answer:
            assert answer.status == 400
            await answer.read()
    await kit.until(lb.quiet)
    assert lb.outcomes[0].lane == "tunnel"
    await runner.cleanup()


async def test_an_upgrade_with_nobody_there(kit: Any) -> None:
    lb = await kit.lb(kit.closed_port())
    got = await lb.ask(kit.get(extra=b"Connection: Upgrade\r\nUpgrade: websocket\r\n"))
    assert got.status == 502


async def test_an_upgrade_whose_client_goes_while_the_endpoint_thinks(kit: Any) -> None:
    async def thinks(wire: Any) -> None:
        await endpoint.request(wire)
        await wire.reader.read()

    endpoint = await kit.endpoint(thinks)
    lb = await kit.lb(endpoint)
    wire = await lb.client()
    await wire.send(kit.get(extra=b"Connection: Upgrade\r\nUpgrade: websocket\r\n"))
    await kit.until(lambda: endpoint.requests)
    wire.reset()
    await kit.until(lambda: not endpoint.open)
    await kit.until(lb.quiet)
