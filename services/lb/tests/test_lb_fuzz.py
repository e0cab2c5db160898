"""Mutated bytes from both sides: no crash, no stuck counter, nothing sent on that was not understood.

SKYLOOM_TEST_FUZZ=N sets the number of inputs for each side; the default is small, 1,000,000 takes a few minutes.
"""

from __future__ import annotations

import asyncio
import os
from random import Random
from typing import Any

import pytest

from skyloom_common.contracts.endpoints import Endpoint
from skyloom_lb.balancer import Balancer
from skyloom_lb.careful.body import Body
from skyloom_lb.careful.lane import CarefulLane
from skyloom_lb.fast.front import FrontConnection
from skyloom_lb.fast.upstream import Pool, Upstream
from skyloom_lb.settings import DEFAULT_SERVICE, Health, ServiceSettings, Settings
from skyloom_lb.wire.chunks import ChunkReader
from skyloom_lb.wire.headers import BadMessage
from skyloom_lb.wire.request import parse_request
from skyloom_lb.wire.response import parse_response

pytestmark = [pytest.mark.slow, pytest.mark.integration, pytest.mark.timeout(1200)]
INPUTS = int(os.environ.get("SKYLOOM_TEST_FUZZ", "60000"))

REQUESTS = [
    b'POST /v1/chat/completions HTTP/1.1\r\nHost: lb\r\nContent-Type: application/json\r\nContent-Length: 7\r\n\r\n{"a":1}',
    b"GET /x?y=1 HTTP/1.1\r\nHost: lb:80\r\nConnection: keep-alive, X-A\r\nX-A: 1\r\nX-Request-Id: abc\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: lb\r\nTransfer-Encoding: chunked\r\nTrailer: T\r\n\r\n5\r\nhello\r\n0\r\nT: 1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: lb\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc",
    b"GET /ws HTTP/1.1\r\nHost: lb\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nframes",
    b"HEAD / HTTP/1.0\r\n\r\n",
]
ANSWERS = [
    b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 7\r\n\r\n{"a":1}',
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n3;x=y\r\nyou\r\n0\r\nT: 1\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.0 200 OK\r\nConnection: close\r\n\r\nuntil the end",
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nframes",
]
SPICE = [b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b"0", b"-", b"+", b"\xff", b"Content-Length: 5\r\n", b"Host: b\r\n",
         b"Transfer-Encoding: chunked\r\n", b"HTTP/1.1", b"\r\n\r\n", b"99999999999999999999", b"A" * 300, b"0\r\n\r\n"]  # fmt: skip


def mutated(random: Random, seeds: list[bytes]) -> bytes:
    data = bytearray(random.choice(seeds))
    for _ in range(random.randrange(4)):
        at = random.randrange(len(data) + 1)
        deed = random.randrange(5)
        if deed == 0 and data:
            data[at % len(data)] = random.randrange(256)
        elif deed == 1:
            data[at:at] = random.choice(SPICE)
        elif deed == 2:
            del data[at : at + random.randrange(1, 12)]
        elif deed == 3:
            data[at:at] = data[: random.randrange(len(data) + 1)]
        else:
            del data[at:]
    return bytes(data)


def pieces(random: Random, data: bytes) -> list[bytes]:
    if random.randrange(3):
        return [data] if data else []
    cuts = sorted(random.randrange(len(data) + 1) for _ in range(random.randrange(1, 4)))
    return [
        part
        for part in (data[one:other] for one, other in zip([0, *cuts], [*cuts, len(data)], strict=True))
        if part
    ]


class FakeTransport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1)})
        self.written: list[bytes] = []
        self.closed = False
        self.protocol: Any = None

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def get_protocol(self) -> Any:
        return self.protocol

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def can_write_eof(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        """Nobody reads here."""

    def resume_reading(self) -> None:
        """Nobody reads here."""


class FakePool(Pool):
    """Connections are there at once, and are remembered for the fuzzer to speak on."""

    made: list[Upstream]

    def connect(self, exchange: Any) -> Any:
        upstream = Upstream(self)
        upstream.connection_made(FakeTransport())
        upstream.transport.set_protocol(upstream)
        self.made.append(upstream)
        asyncio.get_running_loop().call_soon(lambda: None)
        exchange.pending = None
        exchange.connected(upstream)
        return None


def make() -> tuple[Balancer, list[Upstream]]:
    health = Health(failures=10**9, min_requests=10**9)
    balancer = Balancer(
        Settings(services={DEFAULT_SERVICE: ServiceSettings(health=health)}), random=Random(1)
    )
    balancer.careful = CarefulLane(balancer)
    made: list[Upstream] = []

    def make_pool(backend: Any, service: Any) -> FakePool:
        pool = FakePool(backend, None)
        pool.made = made
        return pool

    service = balancer.services[DEFAULT_SERVICE]
    service._make_pool = make_pool
    balancer.set_endpoints(
        DEFAULT_SERVICE, [Endpoint("a", "http://10.0.0.1:80"), Endpoint("b", "http://10.0.0.2:80")]
    )
    return balancer, made


def settled(balancer: Balancer) -> None:
    service = balancer.services[DEFAULT_SERVICE]
    assert not balancer.exchanges
    assert service.active == 0
    assert all(one.in_flight == 0 for one in service.backends.values())


def hang_up(protocol: Any) -> None:
    protocol.transport.close()
    protocol.connection_lost(None)


async def test_parsers_raise_only_bad_message() -> None:
    random = Random(7)
    for _ in range(INPUTS):
        data = mutated(random, REQUESTS)
        for parse in (parse_request, lambda head: parse_response(head, b"GET")):
            try:
                parse(data[: data.find(b"\r\n\r\n") + 4])
            except BadMessage:
                pass
        reader = ChunkReader()
        try:
            for part in pieces(random, mutated(random, [b"5\r\nhello\r\n0\r\nT: 1\r\n\r\n"])):
                assert 0 <= reader.feed(part) <= len(part)
        except BadMessage:
            pass


def open_front(balancer: Balancer) -> FakeTransport:
    transport = FakeTransport()
    transport.set_protocol(FrontConnection(balancer))
    transport.protocol.connection_made(transport)
    return transport


async def test_what_clients_send() -> None:
    """In both lanes; whatever it is, endpoints get whole requests with one reading, one after the other."""
    random = Random(11)
    balancer, made = make()
    for number in range(INPUTS):
        transport = open_front(balancer)
        for part in pieces(random, mutated(random, REQUESTS)):
            if transport.closed:
                break
            transport.protocol.data_received(part)
            for upstream in made:
                if (
                    not upstream.transport.is_closing()
                    and upstream.exchange is not None
                    and random.randrange(2)
                ):
                    upstream.transport.get_protocol().data_received(random.choice(ANSWERS))
        hang_up(transport.protocol)
        if number % 500 == 0:
            await asyncio.sleep(0)
            for upstream in made:
                check_sent(b"".join(upstream.transport.written))  # type: ignore[attr-defined]
            made.clear()
            for backend in balancer.services[DEFAULT_SERVICE].backends.values():
                backend.pool.close_idle()
    balancer._closing.clear()
    settled(balancer)


def check_sent(data: bytes) -> None:
    while data:
        end = data.index(b"\r\n\r\n") + 4
        head = parse_request(data[:end])
        if head.upgrade:
            return
        body = Body(head)
        _, data = body.feed(data[end:])
        assert body.over or not data


async def test_what_endpoints_send() -> None:
    random = Random(13)
    balancer, made = make()
    front = FrontConnection(balancer)
    front.connection_made(FakeTransport())
    for number in range(INPUTS):
        if front.transport.is_closing():
            hang_up(front)
            front = FrontConnection(balancer)
            front.connection_made(FakeTransport())
        made.clear()
        for backend in balancer.services[DEFAULT_SERVICE].backends.values():
            backend.pool.close_idle()
        front.data_received(REQUESTS[0])
        speak(random, made)
        if front.exchange is not None:
            hang_up(front)
        check_written(front.transport.written)  # type: ignore[attr-defined]
        front.transport.written.clear()  # type: ignore[attr-defined]
        if number % 500 == 0:
            await asyncio.sleep(0)
    hang_up(front)
    settled(balancer)


def speak(random: Random, made: list[Upstream]) -> None:
    upstream = made[-1]
    for part in pieces(random, mutated(random, ANSWERS)):
        if upstream.transport.is_closing() or upstream.exchange is None:
            return
        upstream.data_received(part)
    if upstream.exchange is not None and random.randrange(2):
        hang_up(upstream)


def check_written(written: list[bytes]) -> None:
    """Whatever the endpoint said, the client got final heads that are unmistakable, and one of them at most."""
    data = b"".join(written)
    while data.startswith(b"HTTP/1.1 10"):
        data = data[data.index(b"\r\n\r\n") + 4 :]
    if data:
        head = parse_response(data[: data.index(b"\r\n\r\n") + 4], b"POST")
        assert not head.until_close
