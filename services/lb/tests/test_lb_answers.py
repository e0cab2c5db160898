"""Answers that end badly, that go on elsewhere, and the events in them: what the client sees, and what is counted."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import time
from typing import Any

import pytest

from skyloom_common.contracts.endpoints import Endpoint
from skyloom_lb.exchange import Outcome, PlainFront, Resume, Route
from skyloom_lb.fast.front import FrontConnection
from skyloom_lb.fast.relay import Exchange
from skyloom_lb.fronts import make_front
from skyloom_lb.openai.request import Kind
from skyloom_lb.openai.stream import StreamObserver, StreamPlan
from skyloom_lb.settings import Health, ServiceSettings, Timeouts
from skyloom_lb.wire.response import ResponseHead

pytestmark = pytest.mark.integration

OK = b"HTTP/1.1 200 OK\r\n"
EVENTS = OK + b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"
DONE = b"data: [DONE]\n\n"
MEGABYTE = 1024 * 1024
ASK = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "say it"}]}
PATIENT = Health(failures=10_000, min_requests=10_000, slow_start_seconds=0)


def body(request: Any) -> bytes:
    return json.dumps(request).encode()


def chunk(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def event(choice: Any, **fields: Any) -> bytes:
    """An event with one choice."""
    told = {"id": "a", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return b"data: %b\n\n" % body({**told, **fields})


def says(text: str, **fields: Any) -> bytes:
    return event({"index": 0, "delta": {"content": text}, "finish_reason": None, **fields})


STOP = event({"index": 0, "delta": {}, "finish_reason": "stop"})


async def api(kit: Any, *endpoints: Any, timeouts: Timeouts | None = None, **fields: Any) -> Any:
    """A balancer with the front for APIs, and one service."""
    specs = tuple(Endpoint(id=f"e{number}", url=one.url) for number, one in enumerate(endpoints))
    service = ServiceSettings(
        name="default", endpoints=specs, timeouts=timeouts or Timeouts(), health=PATIENT, **fields
    )
    return await kit.lb(services={"default": service}, make_front=make_front)


async def parts_of(wire: Any) -> list[bytes]:
    return [part async for part in wire.chunks()]


async def until_swept(kit: Any, lb: Any, true: Any) -> None:
    await kit.until(lambda: lb.worker.balancer.sweep() or true())


# --- an answer that does not come to its end never looks as if it had


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_a_file_that_takes_too_long_ends_in_the_middle(kit: Any, version: bytes) -> None:
    async def endless(wire: Any) -> None:
        await endpoint.request(wire)
        await wire.send(OK + b"Content-Type: application/octet-stream\r\n\r\nDATA")
        await wire.reader.read()

    endpoint = await kit.endpoint(endless)
    lb = await kit.lb(endpoint, service=ServiceSettings(timeouts=Timeouts(total=0.2)))
    wire = await lb.client()
    await wire.send(b"GET /file HTTP/%b\r\nHost: lb\r\n\r\n" % version)
    rest = await cut_off(kit, lb, wire, reset=version == b"1.0")
    assert rest.startswith(b"HTTP/1.1 200 OK\r\n")
    assert rest.endswith(b"\r\n\r\n4\r\nDATA\r\n" if version == b"1.1" else b"\r\n\r\nDATA")
    await kit.until(lambda: lb.outcomes)
    assert lb.outcomes[0].error == "TotalTimeout"


async def cut_off(kit: Any, lb: Any, wire: Any, reset: bool) -> bytes:
    """What came until the connection ended, and that it ended as it should."""
    rest: bytes = b""

    async def read() -> str:
        nonlocal rest
        try:
            while part := await wire.reader.read(65536):
                rest += part
        except ConnectionResetError:
            return "reset"
        return "end"

    reading = asyncio.create_task(read())
    await until_swept(kit, lb, reading.done)
    assert not reset or await reading == "reset"
    return rest


async def test_half_of_a_json_answer_is_not_made_whole(kit: Any) -> None:
    half = b'{"id":"x","choices":[{"index":0,"message":{"content":"half'

    async def hangs(wire: Any) -> None:
        await endpoint.request(wire)
        await wire.send(OK + b"Content-Type: application/json\r\n\r\n" + half)
        await wire.reader.read()

    endpoint = await kit.endpoint(hangs)
    lb = await api(kit, endpoint, timeouts=Timeouts(idle=0.2))
    wire = await lb.client()
    await wire.send(kit.post(body({"model": "m", "messages": []})))
    rest = await cut_off(kit, lb, wire, reset=False)
    assert rest.startswith(OK) and rest.endswith(b"\r\n" + chunk(half))


@pytest.mark.parametrize("death", ["close", "reset", "bad chunk"])
async def test_a_broken_answer_is_a_reset_for_one_who_knows_no_chunks(kit: Any, death: str) -> None:
    """Where the end of the connection is the end of the answer, only a reset says that it is not."""
    go = asyncio.Event()

    async def dies(wire: Any) -> None:
        await endpoint.request(wire)
        await wire.send(OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        await go.wait()
        if death == "reset":
            wire.reset()
        elif death == "bad chunk":
            await wire.send(b"zz\r\n")

    endpoint = await kit.endpoint(dies)
    lb = await kit.lb(endpoint)
    wire = await lb.client()
    await wire.send(b"GET /file HTTP/1.0\r\n\r\n")
    head = await wire.head()
    assert (head.status, head.get(b"transfer-encoding"), head.get(b"content-length")) == (200, None, None)
    assert await wire.reader.readexactly(5) == b"hello"
    go.set()
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(wire.reader.read(), 2.0)


async def test_a_stream_that_takes_too_long_is_told_so_in_an_event(kit: Any) -> None:
    """What is wrong in a file is right here."""

    async def endless(wire: Any) -> None:
        await endpoint.request(wire)
        await wire.send(EVENTS + chunk(says("a")))
        await wire.reader.read()

    endpoint = await kit.endpoint(endless)
    lb = await api(kit, endpoint, timeouts=Timeouts(total=0.2))
    wire = await lb.client()
    await wire.send(kit.post(body(ASK)))
    reading = asyncio.create_task(wire.message())
    await until_swept(kit, lb, reading.done)
    got = (await reading).body
    assert got.startswith(says("a")) and got.endswith(DONE)
    assert b'"code":"timeout"' in got


@pytest.mark.parametrize("odd", [b"", b"Connection: X-Odd\r\n"], ids=["fast", "careful"])
async def test_hop_by_hop_headers_of_a_hint_stay_here(kit: Any, odd: bytes) -> None:
    hint = (
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nConnection: X-Hop, keep-alive\r\nX-Hop: 1\r\n"
        b"Keep-Alive: timeout=5\r\nProxy-Authenticate: x\r\nX-Request-Id: theirs\r\n\r\n"
    )

    async def hints(wire: Any) -> None:
        await endpoint.request(wire)
        await wire.send(hint + kit.answer())

    endpoint = await kit.endpoint(hints)
    lb = await kit.lb(endpoint)
    wire = await lb.client()
    await wire.send(kit.get(extra=odd))
    first = await wire.head()
    assert (first.status, first.headers) == (103, [(b"link", b"</a>")])
    assert (await wire.message()).body == b"ok"


# --- an answer that goes on elsewhere


async def test_a_stream_that_goes_on_elsewhere_waits_for_a_client_that_does_not_read(kit: Any) -> None:
    """The client takes nothing from the moment on at which the first endpoint ends too early."""
    asked: list[Any] = []
    sent = 0
    whole = asyncio.Event()
    piece = says("x" * 4000)

    async def serve(endpoint: Any, wire: Any) -> None:
        nonlocal sent
        while True:
            await endpoint.request(wire)
            asked.append(endpoint)
            if len(asked) == 1:
                await wire.send(EVENTS + chunk(piece) * 12 + LAST)
                continue
            await wire.send(EVENTS)
            for _ in range(4000):  # 16 MB
                await wire.send(chunk(piece))
                sent += len(piece)
            await wire.send(chunk(STOP + DONE) + LAST)
            whole.set()

    endpoints = []
    for _ in range(2):
        endpoint = await kit.endpoint()
        endpoint.behave = lambda wire, endpoint=endpoint: serve(endpoint, wire)
        endpoints.append(endpoint)
    lb = await api(kit, *endpoints, openai={"continuation": "on"})
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.setblocking(False)
    await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", lb.port))
    balancer = lb.worker.balancer
    await kit.until(lambda: balancer.fronts)
    (front,) = balancer.fronts
    front.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    front.transport.set_write_buffer_limits(high=1)
    raw.send(kit.post(body(ASK)))
    await kit.until(lambda: len(asked) == 2)
    (exchange,) = balancer.exchanges
    assert front.write_paused
    await kit.until(lambda: exchange.upstream is not None and exchange.upstream.paused)
    assert exchange.bytes_out < MEGABYTE
    reader, writer = await asyncio.open_connection(sock=raw)
    wire = kit.Wire(reader, writer)
    lb.wires.append(wire)
    got = await asyncio.wait_for(wire.message(), 20.0)
    assert got.body.count(b"[DONE]") == 1 and got.body.endswith(DONE)
    assert got.body.count(b"x" * 4000) == 4012
    assert whole.is_set()


# --- when an answer begins


async def test_a_stream_begins_with_its_first_payload(kit: Any) -> None:
    """Engines send the head of a stream long before its first token."""
    headed, go = asyncio.Event(), asyncio.Event()

    async def serve(wire: Any) -> None:
        await endpoint.request(wire)
        await wire.send(EVENTS)
        headed.set()
        await go.wait()
        await wire.send(chunk(says("a") + STOP + DONE) + LAST)
        await wire.reader.read()

    endpoint = await kit.endpoint(serve)
    lb = await api(kit, endpoint)
    wire = await lb.client()
    await wire.send(kit.post(body(ASK)))
    await wire.head()
    (exchange,) = lb.worker.balancer.exchanges
    told = time.monotonic()
    go.set()
    assert b"".join(await parts_of(wire)).endswith(DONE)
    await kit.until(lb.quiet)
    assert exchange.first_byte >= told
    assert sum(lb.service.stats.gaps.counts) == 0
    assert sum(lb.service.backends["e0"].stats.first_byte.counts) == 1


async def test_a_stream_whose_head_brings_its_first_token_has_begun_with_it(kit: Any) -> None:
    go = asyncio.Event()

    async def serve(wire: Any) -> None:
        await endpoint.request(wire)
        await wire.send(EVENTS + chunk(says("a")))
        await go.wait()
        await wire.send(chunk(STOP + DONE) + LAST)
        await wire.reader.read()

    endpoint = await kit.endpoint(serve)
    lb = await api(kit, endpoint)
    wire = await lb.client()
    await wire.send(kit.post(body(ASK)))
    await wire.head()
    (exchange,) = lb.worker.balancer.exchanges
    begun = exchange.first_byte
    assert begun > 0
    go.set()
    assert b"".join(await parts_of(wire)).endswith(DONE)
    await kit.until(lb.quiet)
    assert exchange.first_byte == begun
    assert sum(lb.service.stats.gaps.counts) == 1


# --- events


class Stream:
    """One stream of a pure observer."""

    def __init__(self, request: Any = ASK, kind: Kind = Kind.CHAT, **plan: Any) -> None:
        self.outcome = Outcome(0.0, None, "", b"", "fast")
        self.observer = StreamObserver(StreamPlan(kind, body(request), True, **plan), self.outcome)
        self.given = b""

    def feed(self, *payloads: bytes) -> Stream:
        for payload in payloads:
            self.given += self.observer.feed(payload)
        return self

    def ends(self) -> bytes | Resume:
        return self.observer.end(self.outcome)

    def dies(self) -> bytes | Resume | None:
        return self.observer.broken("EndpointDied", self.outcome)

    def goes_on(self) -> Any:
        """The request that another endpoint gets, which begins to answer it."""
        found = self.dies()
        assert isinstance(found, Resume)
        head = ResponseHead()
        head.status, head.block = 200, b"\r\ncontent-type: text/event-stream\r\n"
        assert self.observer.resumed(head)
        return json.loads(found.body)

    def counted(self) -> int:
        self.observer.count()
        return self.outcome.completion_tokens

    def is_told(self) -> None:
        """The end is an error event, and the answer not whole."""
        last = self.dies()
        assert isinstance(last, bytes) and last.endswith(DONE) and b'"error"' in last
        assert not self.observer.whole and self.outcome.error == "EndpointDied"


def of_choice(index: int, text: str, finish: str | None = None) -> bytes:
    return event({"index": index, "delta": {"content": text} if text else {}, "finish_reason": finish})


@pytest.mark.parametrize("cleanly", [False, True], ids=["dies", "ends"])
def test_one_of_two_choices_is_not_the_whole(cleanly: bool) -> None:
    stream = Stream({**ASK, "n": 2}, choices=2)
    stream.feed(of_choice(0, "a"), of_choice(1, "b"), of_choice(0, "", "stop"))
    last = stream.ends() if cleanly else stream.dies()
    assert isinstance(last, bytes) and b"there are several choices" in last
    assert not stream.observer.whole and stream.outcome.error


def test_all_of_two_choices_are() -> None:
    stream = Stream({**ASK, "n": 2}, choices=2)
    stream.feed(of_choice(0, "a"), of_choice(1, "b"), of_choice(1, "", "stop"), of_choice(0, "", "stop"))
    assert stream.dies() == DONE
    assert stream.observer.whole


ODD_EVENTS = {
    "choice is null": b'{"choices":[null]}',
    "choice is a word": b'{"choices":["x"]}',
    "delta is a word": b'{"choices":[{"index":0,"delta":"x"}]}',
    "content is a list": b'{"choices":[{"index":0,"delta":{"content":["x"]}}]}',
    "text is a number": b'{"choices":[{"index":0,"text":5}]}',
    "token ids are a number": b'{"choices":[{"index":0,"delta":{"content":"x"},"token_ids":5}]}',
    "token ids are words": b'{"choices":[{"index":0,"delta":{"content":"x"},"token_ids":["x"]}]}',
    "choices are a word": b'{"choices":"x"}',
    "choices are a mapping": b'{"choices":{"x":1}}',
    "index is a word": b'{"choices":[{"index":"x","delta":{"content":"x"}}]}',
    "finish is a list": b'{"choices":[{"index":0,"delta":{},"finish_reason":["x"]}]}',
    "a list": b"[]",
    "a number": b"5",
    "no JSON": b"{",
}


PLANS = list(itertools.product((Kind.CHAT, Kind.COMPLETIONS), (False, True), (False, True)))


@pytest.mark.parametrize("case", ODD_EVENTS)
def test_an_event_of_any_shape_goes_on(case: str) -> None:
    odd = b"data: %b\n\n" % ODD_EVENTS[case]
    for kind, resumed, by_ids in PLANS:
        chat = kind is Kind.CHAT
        stream = Stream(ASK if chat else {"model": "m", "prompt": "say it"}, kind, by_ids=by_ids)
        stream.feed(says("a") if chat else event({"index": 0, "text": "a", "finish_reason": None}))
        if resumed:
            stream.goes_on()
        stream.feed(odd, says("b"))
        assert odd in stream.given
        stream.is_told()


@pytest.mark.parametrize("usage", [5, True, "x", [1]])
@pytest.mark.parametrize("alone", [False, True])
def test_a_usage_of_any_shape_goes_on(usage: Any, alone: bool) -> None:
    """Also when one before it was sound."""
    stream = Stream().feed(says("a"))
    stream.goes_on()
    odd = event({"index": 0, "delta": {"content": "c"}}, usage=usage, **({"choices": []} if alone else {}))
    stream.feed(
        event({"index": 0, "delta": {"content": "b"}}, usage={"prompt_tokens": 3, "completion_tokens": 1})
    )
    stream.feed(odd, STOP + DONE)
    assert stream.given.endswith(DONE) and stream.observer.whole


@pytest.mark.parametrize("kind", [Kind.CHAT, Kind.RESPONSES])
def test_an_event_of_more_than_8_mb_goes_on_unread(kind: Kind) -> None:
    stream, held = Stream(kind=kind), 0
    stream.feed(says("a") if kind is Kind.CHAT else b'data: {"type":"x"}\n\n')
    long = b'data: {"long":"%b"}\n\n' % (b"x" * 9 * MEGABYTE)
    given = []
    for at in range(0, len(long), 1024):
        given.append(stream.observer.feed(long[at : at + 1024]))
        held = max(held, stream.observer._held)
    whole = b"".join(given) == long
    assert whole
    assert held <= 8 * MEGABYTE
    last = stream.dies()
    assert isinstance(last, bytes) and b"error" in last


def test_an_event_of_more_than_8_mb_goes_on_in_a_resumed_stream_too() -> None:
    """Its last piece has no `data:`, and is no comment."""
    stream = Stream().feed(says("a"))
    stream.goes_on()
    stream.given = b""
    long = b'data: {"long":"%b"}\n\n' % (b"x" * 9 * MEGABYTE)
    stream.feed(*(long[at : at + MEGABYTE] for at in range(0, len(long), MEGABYTE)))
    assert len(stream.given) == len(long)


@pytest.mark.parametrize("missing", [1, 2])
@pytest.mark.parametrize("last", [STOP, DONE], ids=["finish", "done"])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"], ids=["LF", "CR LF"])
def test_the_last_event_needs_no_empty_line(last: bytes, missing: int, line_end: bytes) -> None:
    whole = says("a") + (STOP if last == DONE else b"") + last
    stream = Stream().feed(whole[:-missing].replace(b"\n", line_end))
    found = stream.ends()
    assert isinstance(found, bytes)
    assert stream.given + found == whole + (DONE if last == STOP else b"")
    assert stream.observer.whole


def test_the_last_event_before_an_end_that_is_none_is_given_too() -> None:
    stream = Stream().feed(says("a")[:-1])
    found = stream.ends()
    assert isinstance(found, Resume)
    assert stream.given + found.before == says("a")
    assert json.loads(found.body)["messages"][-1]["content"] == "a"


def test_half_an_event_at_the_end_is_none() -> None:
    stream = Stream().feed(says("a"), says("b")[:40])
    found = stream.ends()
    assert isinstance(found, Resume)
    assert (stream.given, found.before) == (says("a"), b"")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b": data: is no data\n", b""),
        (b":data:\n", b""),
        (b"event: message\n", b""),
        (b"id: 5\n", b""),
        (b"", b"event: message\n"),
        (b"", b"id: 5\n"),
        (b"event: message\nid: 5\n", b"retry: 7\n: data: no\n"),
    ],
)
def test_lines_around_data_do_not_hide_it(before: bytes, after: bytes) -> None:
    def dressed(plain: bytes) -> bytes:
        return before + plain[:-1] + after + b"\n"

    stream = Stream().feed(dressed(says("a")), dressed(says("b")), dressed(says("c")))
    assert stream.given == dressed(says("a")) + dressed(says("b")) + dressed(says("c"))
    assert stream.counted() == 3
    assert stream.goes_on()["messages"][-1]["content"] == "abc"


# --- tokens whose text the engine holds back

LIMITED = {**ASK, "max_tokens": 9}


def token(text: str, *ids: int, **fields: Any) -> bytes:
    return says(text, token_ids=list(ids), **fields)


def test_tokens_without_text_are_not_given_yet() -> None:
    stream = Stream(LIMITED, by_ids=True)
    stream.feed(event({"index": 0, "delta": {"role": "assistant"}}, prompt_token_ids=[1, 2]))
    stream.feed(token("a", 10), token("", 11))
    assert b"11" not in stream.given
    request = stream.goes_on()
    assert (request["prompt"], request["max_tokens"]) == ([1, 2, 10], 8)


def test_tokens_whose_text_comes_later_are_given_with_it() -> None:
    stream = Stream(LIMITED, by_ids=True)
    stream.feed(event({"index": 0, "delta": {"role": "assistant"}}, prompt_token_ids=[1, 2]))
    stream.feed(token("a", 10), token("", 11), token("é", 12))
    assert stream.counted() == 3
    request = stream.goes_on()
    assert (request["prompt"], request["max_tokens"]) == ([1, 2, 10, 11, 12], 6)


def test_tokens_that_were_held_back_at_a_death_are_not_counted_twice() -> None:
    """The next endpoint makes them anew."""
    stream = Stream(LIMITED, by_ids=True)
    stream.feed(event({"index": 0, "delta": {"role": "assistant"}}, prompt_token_ids=[1, 2]))
    stream.feed(token("a", 10), token("", 11))
    assert stream.goes_on()["prompt"] == [1, 2, 10]
    for text, one in (("", 11), ("é", 12)):
        stream.feed(event({"index": 0, "text": text, "token_ids": [one], "finish_reason": None}))
    assert stream.counted() == 3
    request = stream.goes_on()
    assert (request["prompt"], request["max_tokens"]) == ([1, 2, 10, 11, 12], 6)


# --- faults of our own


class Raises:
    """An observer that fails where it is told to."""

    rewrites = True

    def __init__(self, where: str) -> None:
        self.where = where

    def _at(self, where: str) -> None:
        if where in self.where:
            raise ZeroDivisionError(where)

    def feed(self, payload: bytes) -> bytes:
        if b"second" in payload:
            self._at("feed")
        return payload

    def end(self, outcome: Any) -> bytes:
        self._at("end")
        return b""

    def broken(self, reason: str, outcome: Any) -> None:
        self._at("broken")


class RaisingFront(PlainFront):
    where = ""

    def route(self, principal: Any, head: Any, body: bytes, complete: bool) -> Any:
        found = super().route(principal, head, body, complete)
        assert isinstance(found, Route)
        observed = head.target != b"/plain"
        return Route(found.service, observe=observed)

    def observer(self, route: Any, response: Any, outcome: Any) -> Any:
        return Raises(self.where)


@pytest.mark.parametrize("odd", [b"", b"Connection: X-Odd\r\n"], ids=["fast", "careful"])
@pytest.mark.parametrize("where", ["feed", "feed broken", "end", "end broken", "broken"])
async def test_a_fault_of_ours_ends_one_request_alone(kit: Any, where: str, odd: bytes) -> None:
    go = asyncio.Event()

    async def serve(wire: Any) -> None:
        request = await endpoint.request(wire)
        await wire.send(EVENTS + chunk(b"data: first\n\n"))
        if request.start.startswith(b"GET /plain "):
            await wire.reader.read()
        await go.wait()
        await wire.send(chunk(b"data: second\n\n") + (b"" if where == "broken" else LAST))

    class Front(RaisingFront):
        pass

    Front.where = where
    endpoint = await kit.endpoint(serve)
    service = ServiceSettings(timeouts=Timeouts(idle=0.2), health=PATIENT)
    lb = await kit.lb(endpoint, service=service, make_front=lambda balancer: Front(balancer.services))
    wire, other = await lb.client(), await lb.client()
    await wire.send(kit.get(b"/observed", odd))
    assert (await wire.head()).status == 200
    await other.send(kit.get(b"/plain", odd))
    assert (await other.head()).status == 200
    go.set()
    rest = b"".join(await asyncio.wait_for(parts_of(wire), 2.0))
    assert rest.startswith(b"data: first\n\n") and b'"code":"endpoint_died"' in rest
    assert not (await cut_off(kit, lb, other, reset=False)).endswith(LAST), "its time-out still works"
    await kit.until(lb.quiet)
    assert lb.service.stats.errors.get("IdleTimeout", 0) >= 1
    if "broken" not in where:  # else the endpoint has fallen silent
        assert lb.service.stats.errors["InternalError"] == 1
        (backend,) = lb.service.backends.values()
        assert backend.stats.failures == {"EndpointDied": 1}, (
            "the silent stream is all that it is to blame for"
        )


async def test_a_fault_of_ours_at_a_head_is_tried_elsewhere_and_blames_nobody(kit: Any) -> None:
    class Front(RaisingFront):
        def observer(self, route: Any, response: Any, outcome: Any) -> Any:
            raise ZeroDivisionError

    endpoints = [await kit.endpoint() for _ in range(2)]
    lb = await kit.lb(*endpoints, make_front=lambda balancer: Front(balancer.services))
    wire = await lb.client()
    await wire.send(kit.get(b"/observed"))
    answer = await wire.message()
    assert answer.status == 502 and b"the balancer failed at" in answer.body
    assert [len(one.requests) for one in endpoints] == [1, 1]
    assert all(one.stats.failures == {} for one in lb.service.backends.values())
    await kit.until(lb.quiet)


async def test_a_fault_in_the_sweep_ends_one_request_alone(kit: Any) -> None:
    async def hangs(wire: Any) -> None:
        await endpoint.request(wire)
        await wire.reader.read()

    endpoint = await kit.endpoint(hangs)
    lb = await kit.lb(endpoint, service=ServiceSettings(timeouts=Timeouts(first_byte=0.2), health=PATIENT))
    wires = [await lb.client() for _ in range(3)]
    for wire in wires:
        await wire.send(kit.post())
    await kit.until(lambda: len(endpoint.requests) == 3)

    class Fails(Exchange):
        __slots__ = ()

        def check(self, now: float) -> None:
            raise ZeroDivisionError

    exchanges = sorted(lb.worker.balancer.exchanges, key=lambda one: one.started)
    exchanges[0].__class__ = Fails
    assert await wires[0].ended() == b""
    assert [(await wire.message()).status for wire in wires[1:]] == [504, 504]
    await kit.until(lb.quiet)
    assert [one.error for one in exchanges] == ["InternalError", "", ""]


async def test_a_fault_at_one_connection_does_not_end_the_sweep(
    kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every time-out of the process hangs on it."""

    async def hangs(wire: Any) -> None:
        await endpoint.request(wire)
        await wire.reader.read()

    failed = asyncio.Event()

    def fails(front: Any, now: float) -> None:
        failed.set()
        raise ZeroDivisionError

    endpoint = await kit.endpoint(hangs)
    lb = await kit.lb(endpoint, service=ServiceSettings(timeouts=Timeouts(first_byte=0.1), health=PATIENT))
    wire = await lb.client()
    monkeypatch.setattr(FrontConnection, "check", fails)
    await asyncio.wait_for(failed.wait(), 4.0)
    await wire.send(kit.post())
    assert (await asyncio.wait_for(wire.message(), 2.0)).status == 504
