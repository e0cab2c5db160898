"""Attempts of one request: hedges beside slow ones, connections that were closed meanwhile, what is sent again and what that costs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from skyloom_common.contracts.endpoints import Endpoint, EndpointState
from skyloom_lb.exchange import PlainFront, Route
from skyloom_lb.fast.relay import Exchange
from skyloom_lb.retries import RetryBudget
from skyloom_lb.settings import DEFAULT_SERVICE, Health, Retries, ServiceSettings

pytestmark = pytest.mark.integration

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
PATIENT = Health(failures=10_000, min_requests=10_000, slow_start_seconds=0)


class Counted(RetryBudget):
    """Says what was earned and spent."""

    def __init__(self, share: float = 1.0, at_least: float = 100.0) -> None:
        super().__init__(share, at_least)
        self.earned = self.spent = 0

    def earn(self) -> None:
        self.earned += 1
        super().earn()

    def spend(self) -> bool:
        self.spent += 1
        return super().spend()


class Pair:
    """Two endpoints with a kept-alive connection each. Of the next request, `first` gets the first attempt and `second` the hedge."""

    def __init__(self, kit: Any) -> None:
        self.kit = kit
        self.asked: list[Any] = []

    async def start(self, first: Callable[[Any], Any], second: Callable[[Any], Any]) -> Any:
        self.ends = (first, second)
        service = ServiceSettings(
            policy="round_robin", retries=Retries(hedge_after=0.01, attempts=3), health=PATIENT
        )
        self.lb = await self.kit.lb(await self._endpoint(), await self._endpoint(), service=service)
        self.lb.service.budget = Counted()
        wire = await self.lb.client()
        for _ in range(2):
            await wire.send(self.kit.get(b"/warm"))
            assert (await wire.message()).body == b"warm"
        await self.kit.until(self.warm)
        return self.lb

    def warm(self) -> bool:
        return all(one.pool.idle_count() == 1 for one in self.lb.service.backends.values())

    async def _endpoint(self) -> Any:
        async def behave(wire: Any) -> None:
            while True:
                request = await endpoint.request(wire)
                if request.start.startswith(b"GET /warm ") or len(self.asked) == 2:
                    await wire.send(self.kit.answer(b"warm"))
                else:
                    self.asked.append(endpoint)
                    await self.ends[len(self.asked) - 1](wire)

        endpoint = await self.kit.endpoint(behave)
        return endpoint

    def backend(self, number: int) -> Any:
        """Of the first attempt or the hedge."""
        url = self.asked[number].url
        return next(one for one in self.lb.service.backends.values() if one.url == url)

    async def until_hedged(self) -> None:
        balancer = self.lb.worker.balancer
        await self.kit.until(lambda: balancer.sweep() or len(self.asked) == 2)

    def never_connects(self) -> None:
        """From now on."""

        async def hang() -> None:
            await asyncio.Event().wait()

        for backend in self.lb.service.backends.values():
            backend.pool.connect = lambda exchange: asyncio.create_task(hang())


# --- hedges


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_hedge_is_not_hurt_by_a_stale_first_connection(kit: Any, streamed: bool) -> None:
    """A new connection to the first endpoint would never come: the hedge alone is the attempt then."""
    drop, go, more = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def first(wire: Any) -> None:
        await drop.wait()
        wire.reset()

    async def second(wire: Any) -> None:
        await go.wait()
        if streamed:
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhedge")
            await more.wait()
            await wire.send(b"hedge")
        else:
            await wire.send(kit.answer(b"hedgehedge"))

    pair = Pair(kit)
    lb = await pair.start(first, second)
    wire = await lb.client()
    await wire.send(kit.get(b"/slow"))
    await pair.until_hedged()
    pair.never_connects()
    drop.set()
    await kit.until(lambda: not pair.asked[0].open)
    lb.worker.balancer.sweep()
    go.set()
    if streamed:
        assert (await wire.head()).status == 200
        assert await wire.reader.readexactly(5) == b"hedge"
        lb.worker.balancer.sweep()
        more.set()
        assert await wire.reader.readexactly(5) == b"hedge"
    else:
        assert (await wire.message()).body == b"hedgehedge"
    await kit.until(lb.quiet)
    assert [one.in_flight for one in lb.service.backends.values()] == [0, 0]
    assert all(one.stats.failures == {} for one in lb.service.backends.values())
    assert (pair.backend(0).stats.stale, lb.outcomes[-1].endpoint) == (1, pair.backend(1).id)


NO = [b"503 Service Unavailable", b"429 Too Many Requests", b"103 Early Hints"]


async def says_no(kit: Any, no: bytes, cut: int) -> None:
    refused = asyncio.Event()

    async def first(wire: Any) -> None:
        await refused.wait()
        await wire.send(kit.answer(b"first"))

    async def second(wire: Any) -> None:
        said = b"HTTP/1.1 %b\r\n%b\r\n" % (no, b"" if no.startswith(b"1") else b"Content-Length: 0\r\n")
        exchange = next(iter(lb.worker.balancer.exchanges))
        if cut:
            await wire.send(said[:cut])
            await asyncio.wait_for(seen.wait(), 2.0)
        await wire.send(said[cut:])
        await asyncio.wait_for(seen.wait(), 2.0)
        # The hedge that only said that it has begun goes on.
        await kit.until(lambda: exchange.hedge is None or no.startswith(b"103"))
        refused.set()

    pair = Pair(kit)
    lb = await pair.start(first, second)
    wire = await lb.client()
    await wire.send(kit.get(b"/slow"))
    await kit.until(lambda: lb.worker.balancer.exchanges)
    seen = watched(next(iter(lb.worker.balancer.exchanges)))
    await pair.until_hedged()
    got = await wire.message()
    assert (got.status, got.body) == (200, b"first")
    assert lb.outcomes[-1].endpoint == pair.backend(0).id
    assert lb.service.stats.retries == 0
    assert pair.backend(0).stats.failures == {}


def watched(exchange: Any) -> asyncio.Event:
    """Set once something of an answer has come."""
    seen = asyncio.Event()

    class Watched(Exchange):
        __slots__ = ()

        def answer(self, upstream: Any, data: bytes) -> None:
            seen.set()
            super().answer(upstream, data)

    exchange.__class__ = Watched
    return seen


@pytest.mark.parametrize("no", NO, ids=lambda value: value[:3])
async def test_a_hedge_that_says_no_ends_nothing(kit: Any, no: bytes) -> None:
    await says_no(kit, no, 0)


@pytest.mark.parametrize("no", NO, ids=lambda value: value[:3])
async def test_a_hedge_that_says_no_in_two_reads_ends_nothing(kit: Any, no: bytes) -> None:
    """The first read is shorter than a status line."""
    await says_no(kit, no, 7)


async def test_a_hedge_that_said_no_is_not_asked_again_and_again(kit: Any) -> None:
    """The sweep would ask a full endpoint four times a second, each time out of the retry budget."""
    go = asyncio.Event()
    asked: list[Any] = []
    warm = asyncio.Semaphore(0)

    async def serve(endpoint: Any, wire: Any) -> None:
        while True:
            request = await endpoint.request(wire)
            if request.start.startswith(b"GET /warm "):
                await warm.acquire()
                await wire.send(kit.answer(b"warm"))
                continue
            asked.append(endpoint)
            if endpoint is asked[0]:
                await go.wait()
                await wire.send(kit.answer(b"first"))
            else:
                await wire.send(kit.answer(b"no", b"503 Service Unavailable"))

    endpoints = [await kit.endpoint() for _ in range(2)]
    for endpoint in endpoints:
        endpoint.behave = lambda wire, endpoint=endpoint: serve(endpoint, wire)
    service = ServiceSettings(policy="round_robin", retries=Retries(hedge_after=0.01), health=PATIENT)
    lb = await kit.lb(*endpoints, service=service)
    lb.service.budget = Counted()
    wires = [await lb.client() for _ in range(12)]
    for wire in wires:
        await wire.send(kit.get(b"/warm"))
    await kit.until(lambda: sum(len(one.requests) for one in endpoints) == len(wires))
    for _ in wires:
        warm.release()
    for wire in wires:
        assert (await wire.message()).status == 200
    await wires[0].send(kit.get(b"/slow"))
    await kit.until(lambda: lb.worker.balancer.sweep() or len(asked) > 1)
    for _ in range(30):
        lb.worker.balancer.sweep()
        await asyncio.sleep(0.001)
    go.set()
    got = await wires[0].message()
    assert (got.status, got.body) == (200, b"first")
    assert (len(asked), lb.service.budget.spent) == (2, 1)


async def test_a_stale_connection_of_a_hedge_is_nobodys_failure(kit: Any) -> None:
    gone = asyncio.Event()

    async def first(wire: Any) -> None:
        await gone.wait()
        await wire.send(kit.answer(b"first"))

    async def second(wire: Any) -> None:
        wire.reset()

    pair = Pair(kit)
    lb = await pair.start(first, second)
    wire = await lb.client()
    await wire.send(kit.get(b"/slow"))
    await pair.until_hedged()
    await kit.until(lambda: pair.backend(1).in_flight == 0)
    assert pair.backend(1).stats.failures == {}
    assert pair.backend(1).signals.consecutive == 0
    assert pair.backend(1).stats.stale == 1
    gone.set()
    assert (await wire.message()).body == b"first"


async def test_a_hedge_that_cannot_be_costs_nothing(kit: Any) -> None:
    """Without a kept-alive connection there is none."""
    go = asyncio.Event()

    async def first(wire: Any) -> None:
        await go.wait()
        await wire.send(kit.answer(b"first"))

    pair = Pair(kit)
    lb = await pair.start(first, first)
    for backend in lb.service.backends.values():
        backend.pool.close_idle()
    wire = await lb.client()
    await wire.send(kit.get(b"/slow"))
    await kit.until(lambda: pair.asked)
    exchange = next(iter(lb.worker.balancer.exchanges))
    wanted = []

    class Hedging(Exchange):
        __slots__ = ()

        def hedge_now(self) -> None:
            wanted.append(super().hedge_now())

    exchange.__class__ = Hedging
    await kit.until(lambda: lb.worker.balancer.sweep() or len(wanted) > 5)
    go.set()
    assert (await wire.message()).body == b"first"
    assert (lb.service.stats.hedges, lb.service.budget.spent) == (0, 0)


async def test_a_hedge_without_a_budget_keeps_the_connection(kit: Any) -> None:
    go = asyncio.Event()

    async def first(wire: Any) -> None:
        await go.wait()
        await wire.send(kit.answer(b"first"))

    pair = Pair(kit)
    lb = await pair.start(first, first)
    lb.service.budget = Counted(0.0, 0.0)
    wire = await lb.client()
    await wire.send(kit.get(b"/slow"))
    await kit.until(lambda: lb.worker.balancer.sweep() or lb.service.budget.spent > 5)
    assert sum(one.pool.idle_count() for one in lb.service.backends.values()) == 1
    go.set()
    assert (await wire.message()).body == b"first"
    assert (lb.service.stats.hedges, len(pair.asked)) == (0, 1)


# --- a POST is executed once


@pytest.mark.parametrize("odd", [b"", b"Connection: X-Odd\r\n"], ids=["fast", "careful"])
@pytest.mark.parametrize("death", ["after a hint", "late"])
async def test_a_post_that_an_endpoint_has_begun_with_is_not_sent_again(
    kit: Any, death: str, odd: bytes
) -> None:
    async def once(wire: Any) -> None:
        await endpoint.request(wire)
        await wire.send(kit.answer())
        await endpoint.request(wire)
        if death == "late":
            backdate(lb, 0.4)
        else:
            await wire.send(HINTS)
            await kit.until(lambda: hinted.is_set())

    hinted = asyncio.Event()
    endpoint = await kit.endpoint(once)
    lb = await kit.lb(endpoint)
    wire = await lb.client()
    await wire.send(kit.get())
    assert (await wire.message()).status == 200
    await wire.send(kit.post(extra=odd))
    if death == "after a hint":
        assert (await wire.head()).status == 103
        hinted.set()
    got = await wire.message()
    assert got.status == 502
    assert [request.start[:4] for request in endpoint.requests] == [b"GET ", b"POST"]
    backend = lb.service.backends["e0"]
    assert (backend.stats.stale, backend.stats.failures) == (0, {"NoAnswer": 1})


def backdate(lb: Any, seconds: float) -> None:
    """As if the running requests had been sent so long ago."""
    for exchange in lb.worker.balancer.exchanges:
        exchange.upstream.sent_at -= seconds


async def test_a_get_that_dies_a_while_after_it_was_sent_is_sent_again(kit: Any) -> None:
    async def once(wire: Any) -> None:
        await endpoint.request(wire)
        await wire.send(kit.answer())
        await endpoint.request(wire)
        backdate(lb, 0.4)

    endpoint = await kit.endpoint(once)
    lb = await kit.lb(endpoint)
    for _ in range(2):
        assert (await lb.ask(kit.get())).status == 200
    assert len(endpoint.requests) == 3
    assert lb.service.backends["e0"].stats.stale == 1


# --- connections


async def test_an_endpoint_that_is_ready_again_keeps_its_connections_again(kit: Any) -> None:
    endpoint = await kit.endpoint()
    lb = await kit.lb(endpoint)
    wire = await lb.client()
    for state in (EndpointState.READY, EndpointState.DRAINING, EndpointState.READY):
        lb.worker.balancer.set_endpoints(DEFAULT_SERVICE, [Endpoint(id="e0", url=endpoint.url, state=state)])
        await kit.until(lambda: not endpoint.open or endpoint.connections == 1)
        if state is EndpointState.READY:
            for _ in range(5):
                await wire.send(kit.post())
                assert (await wire.message()).status == 200
    assert endpoint.connections == 2


async def test_a_connection_of_a_draining_endpoint_is_not_kept(kit: Any) -> None:
    go = asyncio.Event()

    async def slow(wire: Any) -> None:
        while True:
            await endpoint.request(wire)
            await go.wait()
            await wire.send(kit.answer())

    endpoint = await kit.endpoint(slow)
    lb = await kit.lb(endpoint)
    wire = await lb.client()
    await wire.send(kit.post())
    await kit.until(lambda: endpoint.requests)
    draining = Endpoint(id="e0", url=endpoint.url, state=EndpointState.DRAINING)
    lb.worker.balancer.set_endpoints(DEFAULT_SERVICE, [draining])
    go.set()
    assert (await wire.message()).status == 200
    await kit.until(lambda: not endpoint.open)


# --- the budget


async def test_a_retry_earns_no_other_one(kit: Any) -> None:
    async def full(wire: Any) -> None:
        while True:
            await wire.message()
            await wire.send(kit.answer(b"no", b"503 Service Unavailable"))

    endpoints = [await kit.endpoint(full) for _ in range(3)]
    lb = await kit.lb(*endpoints, service=ServiceSettings(retries=Retries(attempts=3), health=PATIENT))
    lb.service.budget = budget = Counted()
    wire = await lb.client()
    for _ in range(4):
        await wire.send(kit.get())
        assert (await wire.message()).status == 503
    assert lb.service.stats.retries == 8
    assert (budget.earned, budget.spent) == (4, 8)


async def test_a_quiet_service_has_its_budget_back(kit: Any) -> None:
    lb = await kit.lb(await kit.endpoint(), service=ServiceSettings(retries=Retries(budget=0.0)))
    budget = lb.service.budget
    while budget.spend():
        pass
    for _ in range(1000):
        lb.worker.balancer.sweep()
    assert [budget.spend() for _ in range(11)] == [True] * 10 + [False]


def test_a_budget_fills_with_time_up_to_what_quiet_services_have() -> None:
    budget = RetryBudget(0.0, at_least=3.0)
    assert [budget.spend() for _ in range(4)] == [True, True, True, False]
    budget.trickle(0.25)
    assert not budget.spend()
    budget.trickle(0.25)
    assert budget.spend()
    busy = RetryBudget(1.0, at_least=1.0)
    for _ in range(50):
        busy.earn()
    busy.trickle(1000.0)
    assert [busy.spend() for _ in range(52)] == [True] * 51 + [False]


# --- a bad chunk in the same read as the head: the client has nothing yet


async def _babbles(kit: Any, endpoint: Any, wire: Any) -> None:
    await endpoint.request(wire)
    await wire.send(CHUNKED + b"2\r\nok\r\nzz\r\n")
    await wire.reader.read()


async def test_garbage_behind_a_head_is_made_good_elsewhere(kit: Any) -> None:
    async def babbles(wire: Any) -> None:
        await _babbles(kit, bad, wire)

    bad = await kit.endpoint(babbles)
    good = await kit.endpoint()
    lb = await kit.lb(bad, good, service=ServiceSettings(policy="round_robin", health=PATIENT))
    for _ in range(4):
        got = await lb.ask(kit.get())
        assert (got.status, got.body) == (200, b"%d 0" % good.port)
    assert len(bad.requests) >= 2
    assert lb.service.backends["e0"].stats.failures == {"BadResponse": len(bad.requests)}
    assert {(one.status, one.endpoint, one.error) for one in lb.outcomes} == {(200, "e1", "")}


@pytest.mark.parametrize("whole", ["get", "post"])
async def test_garbage_behind_a_head_is_a_502_when_nobody_else_is_there(kit: Any, whole: str) -> None:
    async def babbles(wire: Any) -> None:
        await _babbles(kit, bad, wire)

    bad = await kit.endpoint(babbles)
    lb = await kit.lb(bad)
    wire = await lb.client()
    await wire.send(getattr(kit, whole)())
    got = await wire.message()
    assert (got.start, got.get(b"content-type")) == (b"HTTP/1.1 502 Bad Gateway", b"application/json")
    assert b"did not answer in HTTP" in got.body
    assert (lb.outcomes[0].status, lb.outcomes[0].first_byte) == (502, 0.0)
    await wire.send(getattr(kit, whole)())
    assert (await wire.message()).status == 502, "its connection goes on"


async def test_garbage_behind_a_head_goes_to_the_fallback(kit: Any) -> None:
    class Falls(PlainFront):
        def route(self, principal: Any, head: Any, body: bytes, complete: bool) -> Any:
            found = Route(self.services["other"])
            return replace(Route(self.services[DEFAULT_SERVICE]), fallback=found)

    async def babbles(wire: Any) -> None:
        await _babbles(kit, bad, wire)

    bad, good = await kit.endpoint(babbles), await kit.endpoint()
    other = ServiceSettings(name="other", endpoints=(Endpoint(id="o0", url=good.url),))
    lb = await kit.lb(
        bad,
        services={DEFAULT_SERVICE: ServiceSettings(), "other": other},
        make_front=lambda balancer: Falls(balancer.services),
    )
    got = await lb.ask(kit.post(b"hello"))
    assert (got.status, got.body) == (200, b"%d 5" % good.port)
