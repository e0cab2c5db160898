"""Mutated bytes from both sides: no crash, no stuck counter, nothing sent on that was not understood.

SKYLOOM_TEST_FUZZ=N sets the number of inputs for each side; the default is small, 1,000,000 takes a few minutes.
"""

from __future__ import annotations

import asyncio
import json
import os
from functools import cache, partial
from random import Random
from typing import Any

import orjson
import pytest

import skyloom_testing_engine as engines
from skyloom_lb.balancer import Balancer
from skyloom_lb.careful.body import Body
from skyloom_lb.exchange import Outcome, Resume
from skyloom_lb.fast.front import FrontConnection
from skyloom_lb.fast.upstream import Upstream
from skyloom_lb.openai.request import Kind
from skyloom_lb.openai.stream import StreamObserver, StreamPlan
from skyloom_lb.settings import DEFAULT_SERVICE
from skyloom_lb.wire.chunks import ChunkReader
from skyloom_lb.wire.headers import BadMessage
from skyloom_lb.wire.request import parse_request
from skyloom_lb.wire.response import ResponseHead, parse_response
from skyloom_testing_unplugged import FakeTransport, open_front, unplugged

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


def settled(balancer: Balancer) -> None:
    balancer.turn.end()
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


async def test_what_clients_send() -> None:
    """In both lanes; whatever it is, endpoints get whole requests with one reading, one after the other."""
    random = Random(11)
    balancer, made = unplugged()
    for number in range(INPUTS):
        transport = open_front(balancer)
        for part in pieces(random, mutated(random, REQUESTS)):
            if transport.closed:
                break
            transport.protocol.data_received(part)
            if random.randrange(4):  # else more comes in the same turn
                balancer.turn.end()
            for upstream in made:
                if (
                    not upstream.transport.is_closing()
                    and upstream.exchange is not None
                    and random.randrange(2)
                ):
                    upstream.transport.get_protocol().data_received(random.choice(ANSWERS))
                    if random.randrange(2):
                        balancer.turn.end()
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
    balancer, made = unplugged()
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
        balancer.turn.end()
        speak(random, made, balancer)
        if front.exchange is not None:
            hang_up(front)
        check_written(front.transport.written)  # type: ignore[attr-defined]
        front.transport.written.clear()  # type: ignore[attr-defined]
        if number % 500 == 0:
            await asyncio.sleep(0)
    hang_up(front)
    settled(balancer)


def speak(random: Random, made: list[Upstream], balancer: Balancer) -> None:
    upstream = made[-1]
    for part in pieces(random, mutated(random, ANSWERS)):
        if upstream.transport.is_closing() or upstream.exchange is None:
            return
        upstream.data_received(part)
        if random.randrange(4):
            balancer.turn.end()
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


# --- event streams

FIELDS = (
    ("choices",), ("choices", 0), ("choices", 0, "delta"), ("choices", 0, "delta", "content"), ("choices", 0, "text"),
    ("choices", 0, "delta", "role"), ("choices", 0, "delta", "tool_calls"), ("choices", 0, "finish_reason"),
    ("choices", 0, "token_ids"), ("choices", 0, "logprobs"), ("choices", 0, "prompt_token_ids"), ("prompt_token_ids",),
    ("usage",), ("usage", "prompt_tokens"), ("usage", "completion_tokens"), ("usage", "prompt_tokens_details"),
    ("error",), ("error", "code"), ("object",), ("id",),
)  # fmt: skip
WRONG: list[Any] = [
    None, 0, -1, 1.5, True, "", "x", "stop", "error", [], {}, [None], [1], ["a"], [[]], {"a": 1}, [{}], 1 << 70,
]  # fmt: skip


def with_wrong(event: Any, path: tuple[Any, ...], wrong: Any) -> Any:
    """The event with another value at that place, as far as there is such a place."""
    if not path:
        return wrong
    if isinstance(event, list) and path[0] == 0 and event:
        return [with_wrong(event[0], path[1:], wrong), *event[1:]]
    if isinstance(event, dict):
        return {**event, path[0]: with_wrong(event.get(path[0]), path[1:], wrong)}
    return event


@cache
def engine_events(chat: bool, by_ids: bool, count: int) -> tuple[dict[str, Any], ...]:
    """What an engine streams for `count` choices, `[DONE]` aside."""
    asked: dict[str, Any] = {
        "stream_options": {"include_usage": True},
        "return_token_ids": by_ids,
        "max_tokens": 4,
    }
    asked |= {"messages": [{"role": "user", "content": "hi"}]} if chat else {"prompt": "hi"}
    made: list[dict[str, Any]] = []
    for raw in engines.events(asked, chat)[:-1]:
        event = json.loads(raw.removeprefix(b"data: "))
        made += [
            {**event, "choices": [{**choice, "index": index} for choice in event["choices"]]}
            for index in range(count if event["choices"] else 1)
        ]
    return tuple(made)


def wrong_events(random: Random, events: list[Any]) -> list[Any]:
    for _ in range(random.randrange(3)):
        at = random.randrange(len(events))
        deed = random.randrange(4)
        if deed == 0 and len(events) > 1:
            del events[at]
        elif deed == 1:
            events.insert(random.randrange(len(events)), events[at])
        else:
            events[at] = with_wrong(events[at], random.choice(FIELDS), random.choice(WRONG))
    return events


def event_stream(random: Random, chat: bool, by_ids: bool, count: int) -> bytes:
    """As an engine would send it, and then whatever is wrong with it; it may break off anywhere."""
    events = wrong_events(random, list(engine_events(chat, by_ids, count)))
    data = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)
    data += b"data: [DONE]\n\n" * (random.randrange(4) > 0)
    if random.randrange(4) == 0:
        data = data.replace(b"\n", b"\r\n")
    if random.randrange(4) == 0:
        data = mutated(random, [data])
    return data[: random.randrange(len(data) + 1)] if random.randrange(3) == 0 else data


def finished_choices(given: bytes) -> set[int]:
    """Those of which a client would say that they are complete."""
    found: set[int] = set()
    for event in given.replace(b"\r\n", b"\n").split(b"\n\n"):
        lines = [line[5:] for line in event.split(b"\n") if line.startswith(b"data:")]
        try:
            data = orjson.loads(b"\n".join(lines))
        except orjson.JSONDecodeError:
            continue
        choices = data.get("choices") if isinstance(data, dict) else None
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict) and choice.get("finish_reason"):
                found.add(choice.get("index") or 0)
    return found


def stream_head(random: Random) -> ResponseHead:
    made = ResponseHead()
    made.status = random.choice((200, 200, 200, 400, 503))
    made.block = b"\r\ncontent-type: text/event-stream\r\n"
    return made


def test_what_engines_stream() -> None:
    """It never raises, and never takes an answer for whole of which a choice has no finish."""
    random = Random(17)
    for number in range(max(1, INPUTS // 20)):
        chat, by_ids, count = bool(random.randrange(2)), random.randrange(3) == 0, random.choice((1, 1, 2))
        sent = orjson.dumps({"messages": [], "prompt": "hi", "n": count, "max_tokens": 4})
        plan = StreamPlan(
            Kind.CHAT if chat else Kind.COMPLETIONS, sent, random.randrange(3) > 0, by_ids,
            wants_usage=bool(random.randrange(2)), choices=count,
        )  # fmt: skip
        outcome = Outcome(0.0, None, "", b"", "fast")
        observer = StreamObserver(plan, outcome)
        given = streamed(random, observer, outcome, partial(event_stream, random, chat, by_ids, count))
        observer.count()
        if observer.whole:
            assert len(finished_choices(given)) >= count, (number, given)


def streamed(random: Random, observer: StreamObserver, outcome: Outcome, stream: Any) -> bytes:
    """What the client gets from one endpoint after the other."""
    given = b""
    for _ in range(4):
        for part in pieces(random, stream()):
            given += observer.feed(part)
        last = observer.end(outcome) if random.randrange(2) else observer.broken("EndpointDied", outcome)
        while isinstance(last, Resume):
            orjson.loads(last.body)
            given += last.before
            if observer.resumed(stream_head(random)):
                break
            last = observer.broken("ResumeRefused", outcome)
        else:
            return given + (last or b"")
    return given
