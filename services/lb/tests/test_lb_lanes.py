"""Both lanes, one behaviour: every case of these tables runs through the fast lane and through the careful one.

A request is made odd, and so handed to the careful lane, by a header that `Connection` names.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

pytestmark = pytest.mark.integration

ODD = b"Connection: X-Odd\r\nX-Odd: 1\r\n"
LATIN = b"caf\xe9 \xff\x80"


async def _after_an_odd_request(kit: Any, lb: Any) -> Any:
    """A connection that the careful lane has."""
    wire = await lb.client()
    await wire.send(kit.get(extra=ODD))
    assert (await wire.message()).status == 200
    assert lb.outcomes[-1].lane == "careful"
    return wire


# --- what smugglers send

HOST = b"Host: lb\r\n"
BAD_HEADS = {
    "both lengths": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "both, the other way": b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "two equal lengths": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "two lengths": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\ncontent-length: 6\r\n\r\nhello!",
    "list of lengths": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 5, 5\r\n\r\nhello",
    "length +5": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: +5\r\n\r\nhello",
    "length -5": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: -5\r\n\r\nhello",
    "length 5_0": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 5_0\r\n\r\n" + b"x" * 50,
    "length 0x5": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 0x5\r\n\r\nhello",
    "no length at all": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: \r\n\r\n",
    "length too long": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n",
    "blank before the colon": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length : 5\r\n\r\nhello",
    "other coding": b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "coding twice": b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "odd coding": b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "coding with a tab": b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "coding in HTTP/1.0": b"POST / HTTP/1.0\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "bare LF": b"GET / HTTP/1.1\n" + b"Host: lb\n\n",
    "one bare LF": b"GET / HTTP/1.1\r\nHost: lb\r\nX-A: b\nX-B: c\r\n\r\n",
    "bare CR": b"GET / HTTP/1.1\r\nHost: lb\r\nX-A: b\rX-B: c\r\n\r\n",
    "NUL": b"GET / HTTP/1.1\r\nHost: lb\r\nX-A: b\0c\r\n\r\n",
    "folded line": b"GET / HTTP/1.1\r\nHost: lb\r\nX-A: b\r\n c\r\n\r\n",
    "folded first line": b"GET / HTTP/1.1\r\n X-A: b\r\nHost: lb\r\n\r\n",
    "no colon": b"GET / HTTP/1.1\r\nHost: lb\r\nnonsense\r\n\r\n",
    "no name": b"GET / HTTP/1.1\r\nHost: lb\r\n: x\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\nX-A: b\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: lb\r\nHost: lb\r\n\r\n",
    "two names in a host": b"GET / HTTP/1.1\r\nHost: lb, evil\r\n\r\n",
    "a path in the host": b"GET / HTTP/1.1\r\nHost: lb/evil\r\n\r\n",
    "another host in the target": b"GET http://evil/ HTTP/1.1\r\nHost: lb\r\n\r\n",
    "fragment": b"GET /a#b HTTP/1.1\r\nHost: lb\r\n\r\n",
    "two blanks": b"GET  / HTTP/1.1\r\nHost: lb\r\n\r\n",
    "HTTP/1.2": b"GET / HTTP/1.2\r\nHost: lb\r\n\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "header flood": b"GET / HTTP/1.1\r\nHost: lb\r\n" + b"X-A: b\r\n" * 101 + b"\r\n",
    "1 MB head": b"GET / HTTP/1.1\r\nHost: lb\r\nX-A: " + b"a" * 1_000_000 + b"\r\n\r\n",
    "1 MB line": b"GET /" + b"a" * 1_000_000,
}  # fmt: skip


@pytest.mark.parametrize("lane", ["fast", "careful"])
@pytest.mark.parametrize("case", BAD_HEADS)
async def test_a_head_with_two_readings_is_400_and_the_end(kit: Any, case: str, lane: str) -> None:
    endpoint = await kit.endpoint()
    lb = await kit.lb(endpoint)
    wire = await lb.client() if lane == "fast" else await _after_an_odd_request(kit, lb)
    seen = len(endpoint.requests)
    wire.writer.write(BAD_HEADS[case] + kit.get(b"/smuggled"))
    got = await wire.message()
    assert (got.status, got.get(b"connection")) == (400, b"close")
    assert await wire.ended() == b""
    assert len(endpoint.requests) == seen
    assert lb.worker.balancer.early == {"bad_request": 1}


BAD_CHUNKS = {
    "0x5": b"0x5\r\nhello\r\n0\r\n\r\n",
    "5_0": b"5_0\r\n" + b"x" * 80 + b"\r\n0\r\n\r\n",
    "+5": b"+5\r\nhello\r\n0\r\n\r\n",
    "-5": b"-5\r\nhello\r\n0\r\n\r\n",
    "blank first": b" 5\r\nhello\r\n0\r\n\r\n",
    "no size": b"\r\nhello\r\n0\r\n\r\n",
    "only an extension": b";a=b\r\nhello\r\n0\r\n\r\n",
    "not hexadecimal": b"g\r\nhello\r\n0\r\n\r\n",
    "bare LF": b"5\nhello\n0\n\n",
    "bare LF in an extension": b"5;a\nb\r\nhello\r\n0\r\n\r\n",
    "CR in an extension": b"5;a\rb\r\nhello\r\n0\r\n\r\n",
    "endless extension": b"5;" + b"a" * 5000 + b"\r\nhello\r\n0\r\n\r\n",
    "too big a size": b"fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
    "longer than said": b"5\r\nhello!\r\n0\r\n\r\n",
    "shorter than said": b"6\r\nhello\r\n0\r\n\r\n",
    "folded trailer": b"5\r\nhello\r\n0\r\nX-T: a\r\n b\r\n\r\n",
    "bare LF in a trailer": b"5\r\nhello\r\n0\r\nX-T: a\nX-U: b\r\n\r\n",
    "endless trailers": b"5\r\nhello\r\n0\r\n" + b"X-T: a\r\n" * 2000 + b"\r\n",
}


@pytest.mark.parametrize("before", [False, True], ids=["at once", "after an ordinary one"])
@pytest.mark.parametrize("in_parts", [False, True], ids=["whole", "in parts"])
@pytest.mark.parametrize("case", BAD_CHUNKS)
async def test_a_bad_chunk_is_400_and_the_end(kit: Any, case: str, in_parts: bool, before: bool) -> None:
    endpoint = await kit.endpoint()
    lb = await kit.lb(endpoint)
    wire = await lb.client()
    if before:
        await wire.send(kit.post())
        assert (await wire.message()).status == 200
    seen = len(endpoint.requests)
    head = b"POST / HTTP/1.1\r\nHost: lb\r\nTransfer-Encoding: chunked\r\n\r\n"
    if in_parts:
        wire.writer.write(head)
        await kit.until(lambda: endpoint.connections > before)
    wire.writer.write((b"" if in_parts else head) + BAD_CHUNKS[case] + kit.get(b"/smuggled"))
    got = await wire.message()
    assert (got.status, got.get(b"connection")) == (400, b"close")
    assert await wire.ended() == b""
    await kit.until(lambda: lb.outcomes[-1].error == "BadBody" and len(endpoint.open) <= before)
    assert len(endpoint.requests) == seen, "it was never whole"
    assert lb.service.backends["e0"].stats.failures == {}


# --- what endpoints are told

CLAIMS = b"X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: a\r\nForwarded: for=6.6.6.6\r\n"
HOPS = (
    b"Keep-Alive: 5\r\nProxy-Authorization: a\r\nProxy-Connection: b\r\nTE: trailers\r\nTrailer: X-T\r\nUpgrade: x\r\n"
    b"HTTP2-Settings: y\r\n"
)
REQUESTS = {
    "plain": (b"", ()),
    "values in latin-1": (b"X-Name: " + LATIN + b"\r\n", ()),
    "values in UTF-8": ("X-Name: é€\r\n".encode(), ()),
    "spelling and blanks": (b"x-NaMe:  a  b \r\n", ()),
    "a header again and again": (b"X-Name: 1\r\nX-Name: 2\r\nx-name: 3\r\n", ()),
    "an empty value": (b"X-Name:\r\n", ()),
    "trace context": (b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\ntracestate: a=b\r\n", ()),
    "its own request id": (b"X-Request-Id: mine-1\r\n", ()),
    "a request id that is none": (b"X-Request-Id: a b\r\n", ()),
    "two request ids": (b"X-Request-Id: one\r\nX-Request-Id: two\r\n", ()),
    "a stranger's claims": (CLAIMS, ()),
    "a trusted proxy's claims": (CLAIMS, ("127.0.0.0/8",)),
    "hop by hop": (HOPS, ()),
    "a cookie and a key": (b"Cookie: a=b\r\nAuthorization: Bearer k\r\n", ()),
    "HTTP/2 wanted": (b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n", ()),
}  # fmt: skip


@pytest.mark.parametrize("case", REQUESTS)
@pytest.mark.parametrize("body", [None, b"", b"hello"], ids=["no body", "empty body", "body"])
async def test_endpoints_are_told_the_same(kit: Any, case: str, body: bytes | None) -> None:
    extra, trusted = REQUESTS[case]
    endpoint = await kit.endpoint()
    lb = await kit.lb(endpoint, trusted_proxies=trusted)
    for odd in (b"", ODD):
        request = (
            kit.get(b"/a?b=%20c", extra + odd) if body is None else kit.post(body, b"/a?b=%20c", extra + odd)
        )
        wire = await lb.client()
        await wire.send(request)
        assert (await wire.message()).status == 200
    one, other = (_known(request, lb) for request in endpoint.requests)
    assert [outcome.lane for outcome in lb.outcomes] == ["fast", "careful"]
    assert one == other
    assert b"x-odd" not in dict(one[1])


def _known(request: Any, lb: Any) -> tuple[Any, ...]:
    """All of it; request ids that the balancer made are not compared."""
    ids = {outcome.request_id for outcome in lb.outcomes} - {b"mine-1"}
    pairs = [
        (name, b"*" if name == b"x-request-id" and value in ids else value) for name, value in request.headers
    ]
    return request.start, sorted(pairs), request.body


# --- what clients are told

OK = b"HTTP/1.1 200 OK\r\n"
HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </b>\r\n\r\n"
ANSWERS = {
    "length": OK + b"Content-Length: 2\r\n\r\nok",
    "chunks, extensions and trailers": OK + b"Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2;a=b\r\nok\r\n0\r\nX-Sum: 7\r\n\r\n",
    "until the end": OK + b"Content-Type: text/plain\r\n\r\nok",
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "early hints": HINTS + OK + b"Content-Length: 2\r\n\r\nok",
    "100 that nobody wanted": b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 2\r\n\r\nok",
    "processing": b"HTTP/1.1 102 Processing\r\n\r\n" + OK + b"Content-Length: 2\r\n\r\nok",
    "values in latin-1": OK + b"X-Name: " + LATIN + b"\r\nContent-Length: 2\r\n\r\nok",
    "a reason in latin-1": b"HTTP/1.1 200 " + LATIN[:4] + b"\r\nContent-Length: 2\r\n\r\nok",
    "no reason": b"HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\nok",
    "spelling and order": OK + b"x-B: 1\r\nX-a:  2 \r\nX-B: 3\r\nContent-Length: 2\r\n\r\nok",
    "cookies": OK + b"Set-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Length: 2\r\n\r\nok",
    "hop by hop": OK + b"Connection: X-Hop, keep-alive\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nProxy-Authenticate: x\r\nContent-Length: 2\r\n\r\nok",
    "its own request id": OK + b"X-Request-Id: theirs\r\nContent-Length: 2\r\n\r\nok",
    "204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "304": b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\nETag: a\r\n\r\n",
    "404": b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno",
    "unknown status": b"HTTP/1.1 299 Odd\r\nContent-Length: 2\r\n\r\nok",
    "503": b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\nContent-Length: 2\r\n\r\nno",
    "empty": OK + b"Content-Length: 0\r\n\r\n",
    "closes": OK + b"Connection: close\r\nContent-Length: 2\r\n\r\nok",
    "bytes past the end": OK + b"Content-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\r\n",
    "bytes past the last chunk": OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nmore",
    "half a body": OK + b"Content-Length: 5\r\n\r\nok",
    "half a chunk": OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nok",
    "no last chunk": OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
    "a bad chunk": OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0x2\r\nok\r\n0\r\n\r\n",
    "both lengths": OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "two lengths": OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nokk",
    "length +2": OK + b"Content-Length: +2\r\n\r\nok",
    "bare LF": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
    "folded line": OK + b"X-A: b\r\n c\r\nContent-Length: 2\r\n\r\nok",
    "not HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
    "an upgrade nobody wanted": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n",
    "nothing": b"",
    "1 MB head": OK + b"X-A: " + b"a" * 1_000_000 + b"\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("case", ANSWERS)
async def test_clients_are_told_the_same(kit: Any, case: str) -> None:
    async def says(wire: Any) -> None:
        await endpoint.request(wire)
        await wire.send(ANSWERS[case])

    endpoint = await kit.endpoint(says)
    lb = await kit.lb(endpoint)
    got = []
    for odd in (b"", ODD):
        wire = await lb.client()
        await wire.send(kit.post(extra=b"Connection: close\r\n" + odd))
        got.append(_without_id(await wire.ended()))
    assert got[0] == got[1]
    assert [outcome.lane for outcome in lb.outcomes] == ["fast", "careful"]
    assert lb.outcomes[0].error == lb.outcomes[1].error
    assert lb.outcomes[0].status == lb.outcomes[1].status
    assert all(part in got[0] for part in PASSES.get(case, ()))


PASSES = {
    "chunks, extensions and trailers": (b"\r\n\r\n2;a=b\r\nok\r\n0\r\nX-Sum: 7\r\n\r\n",),
    "values in latin-1": (b"\r\nX-Name: " + LATIN + b"\r\n", b"\r\n\r\nok"),
    "early hints": (ANSWERS["early hints"].partition(OK)[0] + OK,),
    "spelling and order": (b"x-B: 1\r\nX-a:  2 \r\nX-B: 3\r\n",),
    "304": (b"Content-Length: 7\r\nETag: a\r\n",),
    "unknown status": (b"HTTP/1.1 299 Odd\r\n",),
}
"""What must be in an answer byte for byte."""


def _without_id(data: bytes) -> bytes:
    return re.sub(rb"x-request-id: [0-9a-f]+", b"x-request-id: *", data)


async def test_a_client_that_stays_is_served_by_both_lanes_in_turn(kit: Any) -> None:
    endpoint = await kit.endpoint()
    lb = await kit.lb(endpoint)
    wire = await lb.client()
    chunked = b"POST / HTTP/1.1\r\nHost: lb\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nyou\r\n0\r\n\r\n"
    for _ in range(3):
        await wire.send(kit.post(b"hello") + kit.get(extra=ODD) + chunked + kit.post(b"a"))
        sizes = [int((await wire.message()).body.split()[1]) for _ in range(4)]
        assert sizes == [5, 0, 3, 1]
    assert [outcome.lane for outcome in lb.outcomes] == ["fast", "careful", "careful", "fast"] * 3
    assert endpoint.connections == 1, "both lanes use the same kept-alive connections"


@pytest.mark.parametrize("odd", [b"", ODD], ids=["fast", "careful"])
async def test_a_stale_connection_never_shows_in_either_lane(kit: Any, odd: bytes) -> None:
    async def once(wire: Any) -> None:
        await endpoint.request(wire)
        await wire.send(kit.answer())
        await endpoint.request(wire)
        wire.reset()

    endpoint = await kit.endpoint(once)
    lb = await kit.lb(endpoint)
    for _ in range(4):
        assert (await lb.ask(kit.post(extra=odd))).status == 200
    assert lb.service.backends["e0"].stats.failures == {}


@pytest.mark.parametrize("odd", [b"", ODD], ids=["fast", "careful"])
@pytest.mark.parametrize(
    "stage", ["half a head", "before the body", "in the body", "waiting", "in the answer"]
)
async def test_a_client_that_goes_leaves_nothing_behind(kit: Any, stage: str, odd: bytes) -> None:
    async def slow(wire: Any) -> None:
        await endpoint.request(wire)
        if stage == "in the answer":
            await wire.send(OK + b"Content-Length: 9\r\n\r\nok")
        await wire.reader.read()

    endpoint = await kit.endpoint(slow)
    lb = await kit.lb(endpoint)
    wire = await lb.client()
    whole = kit.post(b"x" * 1000, extra=odd)
    head = whole.index(b"\r\n\r\n") + 4
    cut = {"half a head": head - 9, "before the body": head, "in the body": head + 500}.get(stage, len(whole))
    await wire.send(whole[:cut])
    if stage == "waiting":
        await kit.until(lambda: endpoint.requests)
    elif stage == "in the answer":
        await wire.head()
    else:
        await kit.until(lambda: len(lb.worker.balancer.fronts) == 1)
        await asyncio.sleep(0)
    wire.reset()
    await kit.until(lambda: not endpoint.open and not lb.worker.balancer.fronts)
    await kit.until(lb.quiet)
    assert lb.service.backends["e0"].stats.failures == {}
