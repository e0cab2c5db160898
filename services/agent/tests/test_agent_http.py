"""The small HTTP server and client against each other and against rough clients. Loopback only."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import pytest

from skyloom_agent import http_server
from skyloom_agent.http_client import PeerClient
from skyloom_agent.http_server import HttpServer
from skyloom_agent.router import Request, Response, Router
from skyloom_common.contracts.jobs import CancelJobs
from skyloom_common.core.errors import AgentUnreachable, InvalidRequest, NotFound, TooLarge, Unauthenticated

HOST = "127.0.0.1"
AUTH = b"Authorization: Bearer secret\r\n"


class World:
    """A server with some routes; `closed` tells that a stream's reader went away."""

    def __init__(self) -> None:
        self.router = Router()
        self.server = HttpServer(self.router, "secret")
        self.closed = asyncio.Event()
        self.port = 0
        for method, path, handler in (
            ("GET", "/hello/{name}", self.hello),
            ("POST", "/echo", self.echo),
            ("POST", "/json", self.json),
            ("POST", "/small", self.small),
            ("GET", "/endless", self.endless),
            ("GET", "/broken", self.broken),
            ("GET", "/healthz", self.hello),
        ):
            self.router.add(method, path, handler)

    async def hello(self, request: Request) -> Response:
        return Response.of({"name": request.params.get("name"), "query": dict(request.query)})

    async def echo(self, request: Request) -> Response:
        return Response(body=request.stream(), content_type="application/octet-stream")

    async def json(self, request: Request) -> Response:
        return Response.of(await request.json(CancelJobs))

    async def small(self, request: Request) -> Response:
        return Response(body=await request.read(1000))

    async def endless(self, request: Request) -> Response:
        async def body() -> AsyncIterator[bytes]:
            try:
                yield b"first"
                await asyncio.Event().wait()
            finally:
                self.closed.set()

        return Response(body=body())

    async def broken(self, request: Request) -> Response:
        raise ZeroDivisionError("secret detail")

    def client(self, token: str = "secret") -> PeerClient:
        return PeerClient(f"http://{HOST}:{self.port}", token)

    async def raw(self, data: bytes, wait_for_end: bool = True) -> bytes:
        reader, writer = await asyncio.open_connection(HOST, self.port)
        writer.write(data)
        with contextlib.suppress(ConnectionError):
            got = await asyncio.wait_for(reader.read() if wait_for_end else reader.readuntil(b"}"), 10)
        writer.close()
        return got


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    made.port = await made.server.listen(HOST, 0)
    yield made
    await made.server.close()


async def test_a_request_and_its_answer(world):
    answer = await world.client().call("GET", "/hello/J%2F%20x?a=1&b=%26")
    assert answer == {"name": "J/ x", "query": {"a": "1", "b": "&"}}


@pytest.mark.parametrize("token", ["secre", "secret2", "Secret"])
async def test_a_wrong_token_is_refused_before_anything_else(world, token):
    for path in ("/hello/x", "/nothing", "/broken"):
        with pytest.raises(Unauthenticated):
            await world.client(token).call("GET", path)
    assert await world.client(token).call("GET", "/healthz")


async def test_errors_arrive_as_what_they_are(world):
    with pytest.raises(NotFound, match="/nothing"):
        await world.client().call("GET", "/nothing")
    with pytest.raises(InvalidRequest, match="job_idz"):
        await world.client().call("POST", "/json", {"job_idz": [1]})
    with pytest.raises(TooLarge):
        await world.client().call("POST", "/small", {"x": "y" * 2000})
    with pytest.raises(Exception, match="its log says why") as error:
        await world.client().call("GET", "/broken")
    assert "secret detail" not in str(error.value)


async def test_nobody_there_is_unreachable(world):
    await world.server.close()
    with pytest.raises(AgentUnreachable):
        await world.client().call("GET", "/hello/x")


async def test_silence_is_unreachable(world):
    got = []
    with pytest.raises(AgentUnreachable):
        async for part in world.client().stream("GET", "/endless", silence=0.05):
            got.append(part)
    assert got == [b"first"]
    await asyncio.wait_for(world.closed.wait(), 5)


async def test_a_stream_ends_when_its_reader_goes_away(world):
    stream = world.client().stream("GET", "/endless")
    async for part in stream:
        assert part == b"first"
        break
    await stream.aclose()
    await asyncio.wait_for(world.closed.wait(), 5)


async def test_a_chunked_body_streams_both_ways_and_the_connection_is_kept(world):
    head = b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n" + AUTH + b"\r\n"
    body = b"5\r\nhello\r\n4\r\n you\r\n0\r\n\r\n"
    last = b"GET /hello/again HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + AUTH + b"\r\n"
    reader, writer = await asyncio.open_connection(HOST, world.port)
    writer.write(head + body)
    first = await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), 10)
    assert b"hello" in first and b" you" in first
    writer.write(last)
    assert b'"again"' in await asyncio.wait_for(reader.read(), 10)
    writer.close()


async def test_pipelined_requests_are_answered_in_order(world):
    one = b"GET /hello/%d HTTP/1.1\r\nHost: x\r\n" + AUTH + b"%s\r\n"
    got = await world.raw(one % (1, b"") + one % (2, b"") + one % (3, b"Connection: close\r\n"))
    assert got.index(b'"1"') < got.index(b'"2"') < got.index(b'"3"')


async def test_the_client_that_asks_first_is_told_to_go_on(world):
    head = b"POST /small HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\nConnection: close\r\n"
    reader, writer = await asyncio.open_connection(HOST, world.port)
    writer.write(head + AUTH + b"\r\n")
    assert b"100" in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    writer.write(b"ok")
    assert (await asyncio.wait_for(reader.read(), 10)).endswith(b"ok")
    writer.close()


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"nonsense\r\n\r\n", b" 400 "),
        (b"GET /hello/x HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 100_000 + b"\r\n\r\n", b" 431 "),
        (b"GET /hello/x HTTP/1.1\r\n\r\n", b" 400 "),
        (
            b"POST /json HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 3\r\n"
            + AUTH
            + b"\r\n{{{",
            b" 400 ",
        ),
        (
            b"POST /small HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 9999999\r\n"
            + AUTH
            + b"\r\n",
            b" 413 ",
        ),
        (b"PATCH /json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + AUTH + b"\r\n", b" 405 "),
    ],
)
async def test_bad_requests_get_an_answer(world, request_bytes, status, monkeypatch):
    got = await world.raw(request_bytes)
    assert status in got.split(b"\r\n")[0] + b" ", got[:200]
    assert "message" in json.loads(got.partition(b"\r\n\r\n")[2])


async def test_a_client_that_never_ends_its_header_is_dropped(world, monkeypatch):
    monkeypatch.setattr(http_server, "HEADER_SECONDS", 0.05)
    assert await world.raw(b"GET /hello/x HTTP/1.1\r\n") == b""


async def test_a_taken_port_gives_another(world):
    second = HttpServer(Router(), "secret")
    port = await second.listen(HOST, world.port)
    assert port != world.port
    await second.close()
