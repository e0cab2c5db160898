"""Upgrades: WebSocket both ways, its ends, and that nothing passes unseen when the endpoint declines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import WSCloseCode, WSMsgType, web

from skyloom_lb.settings import ServiceSettings, Timeouts

pytestmark = pytest.mark.integration

ASK = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x\r\n"
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


class Endpoint:
    """A real WebSocket server."""

    def __init__(self) -> None:
        self.closed: list[int | None] = []
        self.seen: list[Any] = []

    async def echo(self, request: web.Request) -> web.WebSocketResponse:
        self.seen.append(request.headers)
        socket = web.WebSocketResponse(protocols=("chat",), max_msg_size=0)
        await socket.prepare(request)
        async for message in socket:
            if message.data == "close me":
                await socket.close(code=4001, message=b"as you wish")
            elif message.data == "die":
                assert request.transport is not None
                request.transport.abort()
            elif message.type is WSMsgType.BINARY:
                await socket.send_bytes(message.data)
            else:
                await socket.send_str(f"echo {message.data}")
        self.closed.append(socket.close_code)
        return socket


@pytest.fixture
async def there(kit: Any) -> AsyncIterator[tuple[Any, Endpoint, str]]:
    endpoint = Endpoint()
    app = web.Application()
    app.router.add_get("/ws", endpoint.echo)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    lb = await kit.lb(f"http://127.0.0.1:{runner.addresses[0][1]}")
    yield lb, endpoint, f"http://127.0.0.1:{lb.port}/ws"
    await kit.until(lb.quiet)
    await runner.cleanup()


async def test_both_ways(kit: Any, there: Any) -> None:
    lb, endpoint, url = there
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(url, protocols=("chat",), max_msg_size=0, headers={"X-Mine": "1"}) as socket,
    ):
        assert socket.protocol == "chat"
        assert (lb.service.backends["e0"].in_flight, lb.service.active) == (1, 1)
        for words in ("hello", "", "x" * 300_000):
            await socket.send_str(words)
            assert (await socket.receive(5)).data == f"echo {words}"
        assert await socket.ping() is None
        big = bytes(range(256)) * 40_000
        await asyncio.gather(*(socket.send_bytes(big) for _ in range(3)))
        for _ in range(3):
            assert (await socket.receive(10)).data == big
    await kit.until(lambda: lb.outcomes)
    outcome = lb.outcomes[0]
    assert (outcome.lane, outcome.status, outcome.error) == ("tunnel", 101, "")
    assert outcome.bytes_in > 3 * len(big) < outcome.bytes_out
    seen = endpoint.seen[0]
    assert (seen["X-Mine"], seen["X-Forwarded-For"]) == ("1", "127.0.0.1")
    assert seen["X-Request-Id"] == outcome.request_id.decode()


async def test_close_codes_pass_from_the_client(kit: Any, there: Any) -> None:
    _, endpoint, url = there
    async with aiohttp.ClientSession() as session:
        socket = await session.ws_connect(url)
        await socket.close(code=4002, message=b"enough")
    await kit.until(lambda: endpoint.closed == [4002])


async def test_close_codes_pass_from_the_endpoint(kit: Any, there: Any) -> None:
    _, _, url = there
    async with aiohttp.ClientSession() as session, session.ws_connect(url) as socket:
        await socket.send_str("close me")
        message = await socket.receive(5)
        assert (message.type, message.data, message.extra) == (WSMsgType.CLOSE, 4001, "as you wish")


async def test_an_endpoint_that_dies_is_an_abnormal_end(kit: Any, there: Any) -> None:
    lb, _, url = there
    async with aiohttp.ClientSession() as session, session.ws_connect(url) as socket:
        await socket.send_str("die")
        assert (await socket.receive(5)).type in (WSMsgType.CLOSED, WSMsgType.ERROR)
        assert socket.close_code == WSCloseCode.ABNORMAL_CLOSURE
    await kit.until(lb.quiet)


async def test_a_client_that_dies_is_noticed(kit: Any, there: Any) -> None:
    lb, endpoint, url = there
    async with aiohttp.ClientSession() as session:
        socket = await session.ws_connect(url)
        socket._response.connection.transport.abort()  # type: ignore[union-attr]
        await kit.until(lambda: endpoint.closed and lb.quiet())
        await socket.close()


async def test_who_does_not_switch_says_so(kit: Any, there: Any) -> None:
    lb, _, url = there
    headers = {"Connection": "upgrade", "Upgrade": "websocket"}
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as answer:
        assert answer.status == 400
        assert await answer.read()
    await kit.until(lambda: lb.outcomes)
    assert lb.outcomes[0].status == 400


# --- on the wire


async def test_heads_of_an_upgrade(kit: Any) -> None:
    async def switches(wire: Any) -> None:
        await endpoint.request(wire)
        await wire.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
        await wire.send(
            SWITCHED[:-2] + b"X-Name: caf\xe9\r\nX-Request-Id: theirs\r\nKeep-Alive: 5\r\n\r\nfirst"
        )
        assert await wire.reader.readexactly(10) == b"early late"
        await wire.send(b" last")

    endpoint = await kit.endpoint(switches)
    lb = await kit.lb(endpoint)
    wire = await lb.client()
    hop = (
        ASK.replace(b": Upgrade", b": keep-alive, Upgrade, X-Hop") + b"X-Hop: 1\r\nKeep-Alive: 5\r\nTE: x\r\n"
    )
    await wire.send(kit.get(extra=hop + b"X-Name: caf\xe9\r\nX-Forwarded-For: 6.6.6.6\r\n") + b"early")
    assert (await wire.head()).status == 103
    head = await wire.head()
    assert (head.status, head.get(b"upgrade"), head.get(b"x-name")) == (101, b"websocket", b"caf\xe9")
    ours = next(iter(lb.worker.balancer.exchanges)).request_id
    assert (head.get(b"keep-alive"), head.get(b"x-request-id")) == (None, ours)
    await wire.send(b" late")
    assert await wire.ended() == b"first last"
    seen = endpoint.requests[0]
    assert (seen.get(b"connection"), seen.get(b"upgrade")) == (b"Upgrade", b"websocket")
    assert (seen.get(b"x-hop"), seen.get(b"te"), seen.get(b"keep-alive")) == (None, None, None)
    assert (seen.get(b"x-name"), seen.get(b"x-forwarded-for")) == (b"caf\xe9", b"127.0.0.1")


async def test_nothing_follows_an_upgrade_that_was_declined(kit: Any) -> None:
    """What comes behind it would be read by the endpoint as requests that nobody has checked."""

    async def declines(wire: Any) -> None:
        await endpoint.request(wire)
        await wire.send(kit.answer(b"no", b"426 Upgrade Required"))
        await endpoint.serve(wire)

    endpoint = await kit.endpoint(declines)
    lb = await kit.lb(endpoint)
    wire = await lb.client()
    await wire.send(kit.get(extra=ASK) + kit.get(b"/smuggled"))
    got = await wire.message()
    assert (got.status, got.body, got.get(b"connection")) == (426, b"no", b"close")
    await wire.send(kit.get(b"/smuggled-too"))
    assert await wire.ended() == b""
    await kit.until(lambda: not endpoint.open)
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize(
    "extra",
    [
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
        b"Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n",
        b"Upgrade: websocket\r\n",
        b"Connection: Upgrade\r\n",
    ],
)
async def test_what_is_no_upgrade_is_a_request(kit: Any, extra: bytes) -> None:
    endpoint = await kit.endpoint()
    lb = await kit.lb(endpoint)
    wire = await lb.client()
    for _ in range(2):
        await wire.send(kit.get(extra=extra))
        assert (await wire.message()).status == 200
    seen = endpoint.requests[0]
    assert (seen.get(b"connection"), seen.get(b"upgrade"), seen.get(b"http2-settings")) == (None, None, None)


@pytest.mark.parametrize("framing", [b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"])
async def test_a_body_and_an_upgrade_is_a_request(kit: Any, framing: bytes) -> None:
    endpoint = await kit.endpoint()
    lb = await kit.lb(endpoint)
    body = b"hello" if b"Length" in framing else b"5\r\nhello\r\n0\r\n\r\n"
    got = await lb.ask(b"POST / HTTP/1.1\r\nHost: lb\r\n" + ASK + framing + b"\r\n" + body)
    assert got.body == b"%d 5" % endpoint.port
    assert endpoint.requests[0].get(b"upgrade") is None


@pytest.mark.parametrize(
    "garbage", [b"SSH-2.0\r\n", SWITCHED.replace(b"\r\n", b"\n"), SWITCHED[:-2] + b" a: b\r\n\r\n"]
)
async def test_garbage_is_a_502(kit: Any, garbage: bytes) -> None:
    async def babbles(wire: Any) -> None:
        await endpoint.request(wire)
        await wire.send(garbage)
        await wire.reader.read()

    endpoint = await kit.endpoint(babbles)
    lb = await kit.lb(endpoint)
    wire = await lb.client()
    await wire.send(kit.get(extra=ASK))
    assert (await wire.message()).status == 502
    assert lb.service.backends["e0"].stats.failures == {"BadResponse": 1}


async def test_it_is_tried_elsewhere_until_it_has_switched(kit: Any) -> None:
    async def switches(wire: Any) -> None:
        await good.request(wire)
        await wire.send(SWITCHED)
        await wire.reader.read()

    good = await kit.endpoint(switches)
    lb = await kit.lb(kit.closed_port(), good)
    for _ in range(4):
        wire = await lb.client()
        await wire.send(kit.get(extra=ASK))
        assert (await wire.head()).status == 101
        wire.close()
        await kit.until(lb.quiet)


async def test_nobody_there(kit: Any) -> None:
    lb = await kit.lb(kit.closed_port())
    assert (await lb.ask(kit.get(extra=ASK))).status == 502


async def test_a_client_that_goes_while_the_endpoint_thinks(kit: Any) -> None:
    async def thinks(wire: Any) -> None:
        await endpoint.request(wire)
        await wire.reader.read()

    endpoint = await kit.endpoint(thinks)
    lb = await kit.lb(endpoint)
    wire = await lb.client()
    await wire.send(kit.get(extra=ASK))
    await kit.until(lambda: endpoint.requests)
    wire.reset()
    await kit.until(lambda: not endpoint.open)
    await kit.until(lb.quiet)


@pytest.mark.parametrize("reader", ["client", "endpoint"])
async def test_a_slow_reader_slows_the_other_side(kit: Any, reader: str) -> None:
    size = 12_000_000

    async def switches(wire: Any) -> None:
        await endpoint.request(wire)
        await wire.send(SWITCHED)
        if reader == "client":
            wire.writer.write(b"x" * size)
            await kit.until(lambda: wire.writer.transport.get_write_buffer_size() == 0 or go.is_set())
            await wire.writer.drain()
        else:
            wire.writer.transport.pause_reading()
            await go.wait()
            wire.writer.transport.resume_reading()
            got = 0
            while got < size:
                got += len(await wire.reader.read(1 << 20))

    go = asyncio.Event()
    endpoint = await kit.endpoint(switches)
    lb = await kit.lb(endpoint)
    wire = await lb.client()
    await wire.send(kit.get(extra=ASK))
    assert (await wire.head()).status == 101
    exchange = next(iter(lb.worker.balancer.exchanges))
    if reader == "client":
        wire.writer.transport.pause_reading()
        await kit.until(lambda: exchange.upstream.paused)
        assert exchange.client.transport.get_write_buffer_size() < 1_000_000
        go.set()
        wire.writer.transport.resume_reading()
        await wire.reader.readexactly(size)
        assert await wire.ended() == b""
    else:
        wire.writer.write(b"x" * size)
        await kit.until(lambda: exchange.client._held)
        assert exchange.upstream.transport.get_write_buffer_size() < 1_000_000
        go.set()
        assert await wire.ended() == b""
    await kit.until(lb.quiet)


@pytest.mark.parametrize("who", ["client", "endpoint"])
async def test_a_tunnel_in_which_nobody_says_anything_ends(kit: Any, who: str) -> None:
    go = asyncio.Event()

    async def switches(wire: Any) -> None:
        await endpoint.request(wire)
        await wire.send(SWITCHED)
        await go.wait()
        await wire.send(b"a word")
        await wire.reader.read()

    endpoint = await kit.endpoint(switches)
    lb = await kit.lb(endpoint, service=ServiceSettings(timeouts=Timeouts(tunnel=600.0)))
    wire = await lb.client()
    await wire.send(kit.get(extra=ASK))
    await wire.head()
    (exchange,) = lb.worker.balancer.exchanges
    before = exchange.last_read
    exchange.check(before + 599.0)
    assert not exchange.ended
    if who == "client":
        await wire.send(b"a word")
    else:
        go.set()
    await kit.until(lambda: exchange.last_read > before)
    exchange.check(before + 600.0)
    assert not exchange.ended
    exchange.check(exchange.last_read + 601.0)
    assert (await wire.ended())[-6:] in (b"", b"a word")
    go.set()
    await kit.until(lambda: not endpoint.open and lb.quiet())
    assert lb.outcomes[0].error == "IdleTimeout"


async def test_a_drain_ends_it(kit: Any) -> None:
    async def switches(wire: Any) -> None:
        await endpoint.request(wire)
        await wire.send(SWITCHED)
        await wire.reader.read()

    endpoint = await kit.endpoint(switches)
    lb = await kit.lb(endpoint)
    wire = await lb.client()
    await wire.send(kit.get(extra=ASK))
    await wire.head()
    await lb.worker.balancer.drain(0.1)
    assert await wire.ended() == b""
    await kit.until(lambda: not endpoint.open and lb.outcomes[0].error == "Drained")
