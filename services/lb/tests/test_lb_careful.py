"""The careful lane: methods, targets, HTTP/1.0, retries, hand-over. Uploads, upgrades and what both lanes share have their own files."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytestmark = pytest.mark.integration


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
        await endpoint.request(wire)
        await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        await asyncio.sleep(0.1)
        wire.reset()

    endpoint = await kit.endpoint(dies)
    lb = await kit.lb(endpoint)
    wire = await lb.client()
    await wire.send(b"POST / HTTP/1.1\r\nHost: lb\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n")
    rest = await wire.ended()
    assert b"hello" in rest
    assert b"\r\n0\r\n" not in rest


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


async def test_an_old_client_gets_neither_chunks_nor_hints(kit: Any) -> None:
    async def serve(wire: Any) -> None:
        await endpoint.request(wire)
        await wire.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
        await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n")
        await wire.send(b"2;x=y\r\ncd\r\n0\r\nX-Sum: 4\r\n\r\n")

    endpoint = await kit.endpoint(serve)
    lb = await kit.lb(endpoint)
    wire = await lb.client()
    await wire.send(b"GET / HTTP/1.0\r\n\r\n")
    got = await wire.message()
    assert (got.status, got.body, got.get(b"transfer-encoding")) == (200, b"abcd", None)
    assert endpoint.requests[0].get(b"host") == b"127.0.0.1:%d" % endpoint.port


async def test_a_head_request_that_is_refused_gets_no_body(kit: Any) -> None:
    lb = await kit.lb(kit.closed_port(), fast_body=1)
    wire = await lb.client()
    for _ in range(2):
        await wire.send(b"HEAD / HTTP/1.1\r\nHost: lb\r\n\r\n")
        got = await wire.message(no_body=True)
        assert (got.status, got.get(b"content-length") is not None) == (502, True)


async def test_an_expectation_nobody_knows(kit: Any) -> None:
    lb = await kit.lb(await kit.endpoint())
    wire = await lb.client()
    await wire.send(kit.post(extra=b"Expect: a-miracle\r\n"))
    assert (await wire.message()).status == 417
    assert await wire.ended() == b""
