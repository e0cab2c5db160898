"""Endpoints that misbehave: what the client sees, and that no count is left behind (the kit asks that at the end of each test)."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest

from skyloom_lb.exchange import PlainFront, Route
from skyloom_lb.settings import Health, Retries, ServiceSettings, Timeouts

pytestmark = pytest.mark.integration

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
NO_SLOW_START = Health(slow_start_seconds=0)


async def test_a_request_goes_through_with_its_headers_and_ours(kit: Any) -> None:
    endpoint = await kit.endpoint()
    lb = await kit.lb(endpoint)
    got = await lb.ask(
        kit.post(b'{"a":1}', extra=b"Connection: keep-alive\r\nX-Mine: 1\r\nKeep-Alive: 5\r\n")
    )
    seen = endpoint.requests[0]
    assert got.status == 200
    assert got.body == b"%d 7" % endpoint.port
    assert seen.start == b"POST /v1/chat/completions HTTP/1.1"
    assert seen.get(b"x-mine") == b"1"
    assert seen.get(b"connection") is None
    assert seen.get(b"keep-alive") is None
    assert seen.get(b"host") == b"lb"
    assert seen.get(b"x-forwarded-for") == b"127.0.0.1"
    assert seen.get(b"x-forwarded-proto") == b"http"
    assert seen.get(b"x-forwarded-host") == b"lb"
    assert seen.get(b"x-request-id") == got.get(b"x-request-id")


async def test_both_sides_keep_their_connections(kit: Any) -> None:
    endpoint = await kit.endpoint()
    lb = await kit.lb(endpoint)
    wire = await lb.client()
    for size in range(5):
        await wire.send(kit.post(b"x" * size))
        assert (await wire.message()).body == b"%d %d" % (endpoint.port, size)
    assert endpoint.connections == 1


async def test_pipelined_requests_are_answered_in_order(kit: Any) -> None:
    endpoint = await kit.endpoint()
    lb = await kit.lb(endpoint)
    wire = await lb.client()
    await wire.send(b"".join(kit.post(b"x" * size) for size in range(20)))
    assert [int((await wire.message()).body.split()[1]) for _ in range(20)] == list(range(20))


async def test_refused_connection_is_tried_elsewhere_even_for_a_post(kit: Any) -> None:
    endpoint = await kit.endpoint()
    lb = await kit.lb(kit.closed_port(), endpoint)
    assert [(await lb.ask(kit.post())).status for _ in range(6)] == [200] * 6


async def test_nobody_there_is_a_502_that_says_who(kit: Any) -> None:
    lb = await kit.lb(kit.closed_port())
    got = await lb.ask(kit.post())
    assert got.status == 502
    assert b"e0 is not reached" in got.body
    lb.set()
    got = await lb.ask(kit.post())
    assert got.status == 503
    assert got.get(b"retry-after") == b"1"


async def test_stale_keep_alive_never_shows(kit: Any) -> None:
    async def once(wire: Any) -> None:
        await endpoint.request(wire)
        await wire.send(kit.answer())
        await endpoint.request(wire)  # reads the next request and dies without a word
        wire.reset()

    endpoint = await kit.endpoint(once)
    lb = await kit.lb(endpoint)
    wire = await lb.client()
    for _ in range(4):
        await wire.send(kit.post())
        assert (await wire.message()).status == 200
    backend = lb.service.backends["e0"]
    assert backend.stats.stale == 3
    assert backend.stats.failures == {}
    assert backend.signals.consecutive == 0


async def test_a_post_that_may_have_begun_is_not_sent_again(kit: Any) -> None:
    async def dies(wire: Any) -> None:
        await bad.request(wire)
        wire.reset()

    bad = await kit.endpoint(dies)
    lb = await kit.lb(bad)
    assert (await lb.ask(kit.post())).status == 502
    assert len(bad.requests) == 1
    good = await kit.endpoint()
    lb.set(bad, good)
    got = {(await lb.ask(kit.get())).status for _ in range(6)}
    assert got == {200}, "a GET is idempotent: it goes to the next endpoint"


async def test_hangs_before_headers(kit: Any) -> None:
    async def hangs(wire: Any) -> None:
        await endpoint.request(wire)
        await wire.reader.read()

    endpoint = await kit.endpoint(hangs)
    lb = await kit.lb(endpoint, service=ServiceSettings(timeouts=Timeouts(first_byte=0.3)))
    got = await lb.ask(kit.post())
    assert got.status == 504
    await kit.until(lambda: not endpoint.open)


@pytest.mark.parametrize(("first_byte", "at_least"), [(0.3, 0.3), (60.0, 0.0)])
async def test_waiting_in_vain_counts_as_latency(kit: Any, first_byte: float, at_least: float) -> None:
    """Until the time-out, or until the client had enough."""

    async def hangs(wire: Any) -> None:
        await endpoint.request(wire)
        await wire.reader.read()

    endpoint = await kit.endpoint(hangs)
    service = ServiceSettings(policy="latency", timeouts=Timeouts(first_byte=first_byte))
    lb = await kit.lb(endpoint, service=service)
    wire = await lb.client()
    await wire.send(kit.post())
    await kit.until(lambda: endpoint.requests)
    if not at_least:
        wire.close()
    await kit.until(lambda: lb.outcomes)
    assert lb.service.backends["e0"].latency > at_least


@pytest.mark.parametrize(
    "framing", [CHUNKED + b"5\r\nhello\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello"]
)
@pytest.mark.parametrize("death", ["hang", "reset", "close", "half chunk"])
async def test_a_death_in_the_middle_closes_the_client_and_never_looks_whole(
    kit: Any, framing: bytes, death: str
) -> None:
    async def dies(wire: Any) -> None:
        await endpoint.request(wire)
        await wire.send(framing)
        if death == "hang":
            await wire.reader.read()
        elif death == "reset":
            await kit.until(
                lambda: lb.worker.balancer.exchanges and next(iter(lb.worker.balancer.exchanges)).status
            )
            wire.reset()
        elif death == "half chunk":
            await wire.send(b"ff")

    endpoint = await kit.endpoint(dies)
    lb = await kit.lb(endpoint, service=ServiceSettings(timeouts=Timeouts(idle=0.3)))
    wire = await lb.client()
    await wire.send(kit.post())
    rest = await wire.ended()
    assert rest.startswith(b"HTTP/1.1 200 OK")
    assert b"hello" in rest
    assert b"\r\n0\r\n" not in rest
    await kit.until(lambda: lb.outcomes)
    assert lb.outcomes[0].error in ("EndpointDied", "IdleTimeout")


@pytest.mark.parametrize(
    "garbage",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0x5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello",
        b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X-Long: " + b"a" * 1_000_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X-Many: a\r\n" * 5000 + b"\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    ],
    ids=lambda value: value[:40],
)
async def test_garbage_is_a_502(kit: Any, garbage: bytes) -> None:
    async def babbles(wire: Any) -> None:
        await endpoint.request(wire)
        await wire.send(garbage)
        await wire.reader.read()

    endpoint = await kit.endpoint(babbles)
    lb = await kit.lb(endpoint)
    got = await lb.ask(kit.post())
    assert got.status == 502
    assert lb.outcomes[0].endpoint == "e0"
    assert "BadResponse" in lb.service.backends["e0"].stats.failures


@pytest.mark.parametrize(
    "bad", [b"zz\r\nhello\r\n", b"-5\r\n", b"0x5\r\nhello\r\n", b"5\r\nhelloXX\r\n", b"5 \n"]
)
@pytest.mark.parametrize("at_once", [False, True])
async def test_bad_chunks_close_the_client(kit: Any, bad: bytes, at_once: bool) -> None:
    """Unless they came with the head: then nothing was given yet, and the client can be told."""
    begun = asyncio.Event()

    async def babbles(wire: Any) -> None:
        await endpoint.request(wire)
        if not at_once:
            await wire.send(CHUNKED + b"2\r\nok\r\n")
            await begun.wait()
        await wire.send(bad if not at_once else CHUNKED + b"2\r\nok\r\n" + bad)
        await wire.reader.read()

    endpoint = await kit.endpoint(babbles)
    lb = await kit.lb(endpoint)
    wire = await lb.client()
    await wire.send(kit.post())
    if at_once:
        assert (await wire.message()).status == 502
    else:
        assert await wire.reader.readuntil(b"2\r\nok\r\n")
        begun.set()
        assert b"\r\n0\r\n" not in await wire.ended()
    await kit.until(lambda: not endpoint.open)


async def test_bytes_past_the_end_are_for_nobody(kit: Any) -> None:
    async def talks_on(wire: Any) -> None:
        await endpoint.request(wire)
        await wire.send(kit.answer(b"ok") + kit.answer(b"evil"))
        await wire.reader.read()

    endpoint = await kit.endpoint(talks_on)
    lb = await kit.lb(endpoint)
    wire = await lb.client()
    for _ in range(3):
        await wire.send(kit.post())
        assert (await wire.message()).body == b"ok"
    assert endpoint.connections == 3, "no connection with a byte too many is used again"


async def test_bytes_past_the_last_chunk_are_cut(kit: Any) -> None:
    async def talks_on(wire: Any) -> None:
        await endpoint.request(wire)
        await wire.send(CHUNKED + b"2\r\nok\r\n0\r\nX-Trailer: 1\r\n\r\n" + kit.answer(b"evil"))
        await wire.reader.read()

    endpoint = await kit.endpoint(talks_on)
    lb = await kit.lb(endpoint)
    wire = await lb.client()
    await wire.send(kit.post() + kit.post())
    assert (await wire.message()).body == b"ok"
    assert (await wire.message()).body == b"ok"
    assert endpoint.connections == 2


async def test_bytes_on_an_idle_connection_close_it(kit: Any) -> None:
    async def speaks_unasked(wire: Any) -> None:
        await endpoint.request(wire)
        await wire.send(kit.answer())
        await kit.until(lambda: lb.service.backends["e0"].pool.idle_count() == 1)
        await wire.send(kit.answer(b"evil"))
        await wire.reader.read()

    endpoint = await kit.endpoint(speaks_unasked)
    lb = await kit.lb(endpoint)
    assert (await lb.ask(kit.post())).body == b"ok"
    await kit.until(lambda: lb.service.backends["e0"].pool.idle_count() == 0 and not endpoint.open)
    assert (await lb.ask(kit.post())).body == b"ok"


async def test_an_early_answer_is_given_and_the_connection_not_used_again(kit: Any) -> None:
    async def early(wire: Any) -> None:
        await wire.head()
        await wire.send(kit.answer(b"too big", b"413 Too Large", b"Connection: close\r\n"))

    endpoint = await kit.endpoint(early)
    lb = await kit.lb(endpoint)
    for _ in range(3):
        got = await lb.ask(kit.post(b"x" * 900_000))
        assert (got.status, got.body) == (413, b"too big")
    assert endpoint.connections == 3


async def test_1xx_may_share_a_read_with_the_answer(kit: Any) -> None:
    async def hints(wire: Any) -> None:
        while True:
            await endpoint.request(wire)
            await wire.send(
                b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + kit.answer()
            )

    endpoint = await kit.endpoint(hints)
    lb = await kit.lb(endpoint)
    wire = await lb.client()
    for _ in range(3):
        await wire.send(kit.get())
        assert (await wire.head()).status == 103
        assert (await wire.message()).body == b"ok"
    assert endpoint.connections == 1


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
async def test_statuses_without_a_body(kit: Any, status: bytes) -> None:
    async def serve(wire: Any) -> None:
        while True:
            await endpoint.request(wire)
            await wire.send(
                b"HTTP/1.1 "
                + status
                + b"\r\n"
                + (b"Content-Length: 5\r\n" if b"304" in status else b"")
                + b"\r\n"
            )

    endpoint = await kit.endpoint(serve)
    lb = await kit.lb(endpoint)
    wire = await lb.client()
    for _ in range(3):
        await wire.send(kit.get())
        assert (await wire.message()).status == int(status[:3])
    assert endpoint.connections == 1


async def test_an_answer_that_ends_with_its_connection(kit: Any) -> None:
    async def old(wire: Any) -> None:
        await endpoint.request(wire)
        await wire.send(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nhello ")
        await wire.send(b"world")

    endpoint = await kit.endpoint(old)
    lb = await kit.lb(endpoint)
    wire = await lb.client()
    for _ in range(2):
        await wire.send(kit.get())
        got = await wire.message()
        assert (got.start, got.body) == (b"HTTP/1.1 200 OK", b"hello world")


class Shouts:
    """An observer that rewrites: what it is given comes out in capitals."""

    rewrites = True

    def feed(self, payload: bytes) -> bytes:
        return payload.upper()

    def end(self, outcome: Any) -> bytes:
        return b"!"


class ShoutingFront(PlainFront):
    def route(self, principal: Any, head: Any, body: bytes, complete: bool) -> Any:
        found = super().route(principal, head, body, complete)
        return replace(found, observe=True) if isinstance(found, Route) else found

    def observer(self, route: Any, response: Any, outcome: Any) -> Any:
        return Shouts()


@pytest.mark.parametrize("lane", [b"", b"Connection: X-Odd\r\n"])
async def test_a_rewriting_observer_merges_no_chunks(kit: Any, lane: bytes) -> None:
    async def serve(wire: Any) -> None:
        await endpoint.request(wire)
        await wire.send(CHUNKED + b"1\r\na\r\n1\r\nb\r\n1\r\nc\r\n0\r\n\r\n")

    endpoint = await kit.endpoint(serve)
    lb = await kit.lb(endpoint, make_front=lambda balancer: ShoutingFront(balancer.services))
    wire = await lb.client()
    await wire.send(kit.get(extra=lane))
    await wire.head()
    parts = [part async for part in wire.chunks()]
    assert b"".join(parts) == b"ABC!"
    if not lane:
        assert parts == [b"A", b"B", b"C", b"!"]


async def test_hop_by_hop_headers_of_an_answer_stay_here(kit: Any) -> None:
    async def serve(wire: Any) -> None:
        await endpoint.request(wire)
        extra = b"Connection: X-Secret, close\r\nX-Secret: 1\r\nKeep-Alive: 5\r\nX-Kept: 2\r\nX-Request-Id: theirs\r\n"
        await wire.send(kit.answer(b"ok", b"200 OK", extra))

    endpoint = await kit.endpoint(serve)
    lb = await kit.lb(endpoint)
    got = await lb.ask(kit.get())
    names = [name for name, _ in got.headers]
    assert names.count(b"x-request-id") == 1
    assert b"x-kept" in names
    assert not {b"x-secret", b"keep-alive", b"connection"} & set(names)


async def test_5xx_is_tried_elsewhere_when_that_is_safe(kit: Any) -> None:
    async def broken(wire: Any) -> None:
        while True:
            await bad.request(wire)
            await wire.send(kit.answer(b"no", b"503 Service Unavailable"))

    bad = await kit.endpoint(broken)
    good = await kit.endpoint()
    lb = await kit.lb(bad, good, service=ServiceSettings(health=Health(failures=1000)))  # it stays in
    assert {(await lb.ask(kit.get())).status for _ in range(6)} == {200}
    assert {(await lb.ask(kit.post())).status for _ in range(4)} == {200, 503}


async def test_an_open_circuit_is_heeded_at_once(kit: Any) -> None:
    """Not at the next sweep: a burst of requests is over by then."""
    dead = [kit.closed_port() for _ in range(3)]
    good = await kit.endpoint()
    service = ServiceSettings(health=Health(failures=1, floor=0.1), retries=Retries(attempts=1))
    lb = await kit.lb(*dead, good, service=service)
    lb.worker.balancer.parts_of_sweep = lambda all_fronts, size: iter(())  # none may help
    statuses = [(await lb.ask(kit.post())).status for _ in range(20)]
    assert statuses.count(502) <= 3 and statuses[-10:] == [200] * 10


async def test_a_probe_that_hangs_is_not_followed_by_others(kit: Any) -> None:
    async def hangs(wire: Any) -> None:
        await wire.reader.read()

    endpoint = await kit.endpoint(hangs)
    health = Health(probe_path="/health", probe_seconds=0.0)
    lb = await kit.lb(endpoint, service=ServiceSettings(health=health))
    for _ in range(5):
        lb.worker.prober._begin_due(time.monotonic())
    assert len(lb.worker.prober._running) == 1


async def test_the_circuit_opens_and_closes_again(kit: Any) -> None:
    ill = True

    async def moody(wire: Any) -> None:
        while True:
            await bad.request(wire)
            await wire.send(kit.answer(b"bad", b"500 Internal Server Error") if ill else kit.answer(b"bad"))

    bad = await kit.endpoint(moody)
    good = await kit.endpoint()
    health = Health(failures=3, open_seconds=0.4, slow_start_seconds=0)
    lb = await kit.lb(bad, good, service=ServiceSettings(health=health))
    for _ in range(10):
        await lb.ask(kit.post())
    await kit.until(lambda: lb.service.backends["e0"].state == "open")
    before = len(bad.requests)
    assert {(await lb.ask(kit.post())).status for _ in range(10)} == {200}
    assert len(bad.requests) == before
    assert "circuit open" in lb.service.backends["e0"].reason
    ill = False
    await kit.until(lambda: lb.service.backends["e0"].state == "ready")
    assert b"bad" in {(await lb.ask(kit.post())).body for _ in range(10)}


async def test_the_floor_keeps_some_in(kit: Any) -> None:
    lb = await kit.lb(
        kit.closed_port(), kit.closed_port(), service=ServiceSettings(health=Health(failures=1))
    )
    for _ in range(4):
        await lb.ask(kit.get())
    await kit.until(lambda: all(one.state == "open" for one in lb.service.backends.values()))
    assert len(lb.service.eligible) == 1
    assert (await lb.ask(kit.get())).status == 502


async def test_all_endpoints_gone_and_back(kit: Any) -> None:
    endpoint = await kit.endpoint()
    port = endpoint.port
    lb = await kit.lb(
        endpoint, service=ServiceSettings(health=Health(open_seconds=0.2, slow_start_seconds=0))
    )
    assert (await lb.ask(kit.post())).status == 200
    await endpoint.stop()
    assert {(await lb.ask(kit.post())).status for _ in range(8)} == {502}
    await endpoint.start(port)
    statuses: list[int] = []
    ends = time.monotonic() + 8
    while 200 not in statuses and time.monotonic() < ends:
        statuses.append((await lb.ask(kit.post())).status)
    assert statuses[-1] == 200


async def test_endpoints_changed_a_hundred_times_a_second_lose_nothing(kit: Any) -> None:
    endpoints = [await kit.endpoint() for _ in range(3)]
    lb = await kit.lb(*endpoints)

    async def change() -> None:
        for turn in range(150):
            lb.set(*(endpoints[: 1 + turn % 3]))
            await asyncio.sleep(0.007)

    async def ask() -> int:
        wire, count = await lb.client(), 0
        while not changing.done():
            await wire.send(kit.post())
            assert (await wire.message()).status == 200
            count += 1
        return count

    changing = asyncio.create_task(change())
    counts = await asyncio.gather(*(ask() for _ in range(8)))
    await changing
    assert min(counts) > 10
    await kit.until(lb.quiet)


async def test_a_drained_endpoint_finishes_and_gets_nothing_new(kit: Any) -> None:
    go = asyncio.Event()

    async def slow(wire: Any) -> None:
        await first.request(wire)
        await wire.send(CHUNKED + b"1\r\na\r\n")
        await go.wait()
        await wire.send(b"1\r\nb\r\n0\r\n\r\n")

    first = await kit.endpoint(slow)
    lb = await kit.lb(first)
    wire = await lb.client()
    await wire.send(kit.post())
    await kit.until(lambda: first.requests)
    second = await kit.endpoint()
    lb.worker.balancer.set_endpoints("default", [])
    lb.set(second)
    assert (await lb.ask(kit.post())).body.startswith(b"%d" % second.port)
    go.set()
    assert (await wire.message()).body == b"ab"
    assert len(first.requests) == 1


async def test_a_slow_one_is_hedged(kit: Any) -> None:
    async def slow(wire: Any) -> None:
        first = True
        while True:
            await bad.request(wire)
            if first:
                first = False
                await wire.send(kit.answer(b"slow"))
            else:
                await wire.reader.read()

    bad = await kit.endpoint(slow)
    good = await kit.endpoint()
    service = ServiceSettings(policy="round_robin", retries=Retries(hedge_after=0.2), health=NO_SLOW_START)
    lb = await kit.lb(bad, good, service=service)
    wire = await lb.client()
    for _ in range(2):  # warm connections to both
        await wire.send(kit.get())
        await wire.message()
    for _ in range(2):
        await wire.send(kit.get())
        assert (await wire.message()).body.startswith(b"%d" % good.port)
    assert lb.service.stats.hedges == 1


async def test_the_retry_budget_ends_a_retry_storm(kit: Any) -> None:
    async def dies(wire: Any) -> None:
        await bad.request(wire)
        wire.reset()

    bad = await kit.endpoint(dies)
    other = await kit.endpoint(dies)
    service = ServiceSettings(
        health=Health(failures=10_000, min_requests=10_000), retries=Retries(budget=0.1)
    )
    lb = await kit.lb(bad, other, service=service)
    for _ in range(100):
        await lb.ask(kit.get())
    assert lb.service.stats.retries <= 10 + 0.1 * 130
    assert lb.service.stats.retries_denied >= 70
