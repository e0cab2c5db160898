"""Events that look like the one before are not parsed: nothing but time may differ from parsing all of them."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from skyloom_lb.exchange import Outcome, Resume, Steady
from skyloom_lb.fast.flow import Flow
from skyloom_lb.observe.stats import Histogram
from skyloom_lb.openai.request import Kind
from skyloom_lb.openai.shape import Shapes, shape_of
from skyloom_lb.openai.stream import StreamObserver, StreamPlan
from skyloom_lb.wire.chunks import ChunkReader
from skyloom_lb.wire.chunks import chunk as framed
from skyloom_lb.wire.response import ResponseHead

TEXTS = [
    "a",
    " b",
    "",
    'say "hi"',
    "line\nend",
    "back\\slash",
    "naïve",
    "云",
    "\0",
    "content",
    "m",
    "😀",
    "},{",
    "stop",
]
CHAT = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "x"}]}


def unframed(data: bytes) -> bytes:
    reader, parts = ChunkReader(), list[bytes]()
    assert reader.feed(data, parts) == len(data) and reader.between
    return b"".join(parts)


class Deaf(Shapes):
    """Never learns, so that every event is parsed."""

    def learn(self, raw: bytes, given: bytes, text: str, tokens: int) -> None:
        """Nothing."""


class Stream:
    """What an exchange is to a flow: events that look like the one before are not fed to the observer."""

    def __init__(self, observer: StreamObserver) -> None:
        self.observer = observer
        self.flow: Flow | None = None
        self.last_read = 0.0
        self.bytes_out = 0
        self.fed: list[bytes] = []
        self.passed = b""
        self.gaps = Histogram()

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes) -> None:
        self.passed = data

    def take(self, payload: bytes) -> bytes:
        """What the client gets, without the framing."""
        if self.flow is not None and self.flow.passes(framed(payload)):
            return unframed(self.passed)
        self.fed.append(payload)
        given = self.observer.feed(payload)
        steady: Steady | None = self.observer.steady
        self.flow = Flow(self, steady, self.gaps, self) if steady is not None else None  # type: ignore[arg-type]
        return given


def observer(kind: Kind, deaf: bool, **plan: Any) -> StreamObserver:
    made = StreamObserver(
        StreamPlan(kind, json.dumps(CHAT).encode(), True, **plan), Outcome(0.0, None, "", b"", "fast")
    )
    if deaf:
        made._shapes = Deaf()
    return made


def event(kind: Kind, chance: random.Random, created: int) -> bytes:
    text = chance.choice(TEXTS)
    choice: dict[str, Any] = {"index": 0}
    if kind is Kind.CHAT:
        choice["delta"] = {"content": text}
        if chance.random() < 0.05:
            choice["delta"] = chance.choice(
                [{"role": "assistant", "content": ""}, {"tool_calls": [{}]}, {}, {"content": None}]
            )
    else:
        choice["text"] = text
    choice["finish_reason"] = "stop" if chance.random() < 0.02 else None
    if chance.random() < 0.03:
        choice["index"] = 1
    if chance.random() < 0.03:
        choice["logprobs"] = {"tokens": [text]}
    if chance.random() < 0.03:
        choice["token_ids"] = [1, 2]
    data: dict[str, Any] = {"id": "c", "created": created, "model": "m", "choices": [choice]}
    if chance.random() < 0.04:
        data["usage"] = {"prompt_tokens": 3, "completion_tokens": chance.randrange(9), "total_tokens": 5}
    if chance.random() < 0.02:
        data["choices"] = []
    if chance.random() < 0.01:
        data = {"error": {"message": "oh", "code": 500}}
    compact = (",", ":") if created % 2 else (", ", ": ")
    made = json.dumps(data, separators=compact, ensure_ascii=chance.random() < 0.3).encode()
    if chance.random() < 0.02:
        return chance.choice(
            [b": comment\n\n", b"data: [DONE]\n\n", b"data: {half\n\n", b"id: 4\ndata: " + made + b"\n\n"]
        )
    return b"data: " + made + (b"\r\n\r\n" if chance.random() < 0.02 else b"\n\n")


def payloads(kind: Kind, chance: random.Random) -> list[bytes]:
    """Mostly an event each; some hold several, some only a part of one."""
    created, made = chance.randrange(2), []
    for _ in range(chance.randrange(60)):
        if chance.random() < 0.02:
            created += 1
        made.append(event(kind, chance, created))
    if chance.random() < 0.5:
        at = chance.randrange(len(made) + 1)
        made[at : at + 2] = [b"".join(made[at : at + 2])]
    if made and chance.random() < 0.5:
        at = chance.randrange(len(made))
        cut = chance.randrange(len(made[at]) + 1)
        made[at : at + 1] = [made[at][:cut], made[at][cut:]]
    return [one for one in made if one]


def understood(raw: bytes) -> list[Any]:
    """What a client reads; how a text is escaped is nobody's business."""
    found: list[Any] = []
    for one in raw.split(b"\n\n"):
        try:
            found.append(json.loads(one.removeprefix(b"data: ")))
        except ValueError:
            found.append(one)
    return found


def state(one: StreamObserver) -> tuple[Any, ...]:
    one.count()
    so_far, outcome = one._so_far, one._outcome
    return (
        so_far.text, so_far.tokens, so_far.token_ids, so_far.obstacle, so_far.finish, one._done, one.whole, one._usage,
        one._rest, outcome.completion_tokens, outcome.prompt_tokens,
    )  # fmt: skip


@pytest.mark.parametrize("kind", [Kind.CHAT, Kind.COMPLETIONS])
@pytest.mark.parametrize("seed", range(150))
def test_nothing_but_time_differs(kind: Kind, seed: int) -> None:
    chance = random.Random(seed)
    plan = {"by_ids": chance.random() < 0.1, "hides_usage": chance.random() < 0.5}
    quick, slow = observer(kind, False, **plan), observer(kind, True, **plan)
    for _ in range(3):
        stream = Stream(quick)
        for payload in payloads(kind, chance):
            assert understood(stream.take(payload)) == understood(slow.feed(payload))
            if chance.random() < 0.3:
                assert state(quick) == state(slow)
        ends = [one.broken("EndpointDied", one._outcome) for one in (quick, slow)]
        assert ends[0] == ends[1]
        if not isinstance(ends[0], Resume):
            break
        head = ResponseHead()
        head.status, head.block = 200, b"\r\ncontent-type: text/event-stream\r\n"
        assert quick.resumed(head) and slow.resumed(head)


def chunk(text: str, **more: Any) -> bytes:
    data = {
        "id": "c",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "delta": {"content": text}, **more}],
    }
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def test_the_second_event_is_not_parsed() -> None:
    stream = Stream(observer(Kind.CHAT, False))
    events = [chunk(text) for text in ("a", " b", "naïve", "a\nb", "云" * 300)]
    assert [stream.take(one) for one in events] == events
    assert stream.fed == events[:1]
    assert sum(stream.gaps.counts) == 4
    so_far = stream.observer._so_far
    stream.observer.count()
    assert (so_far.text, so_far.tokens) == ("a bnaïvea\nb" + "云" * 300, 5)


@pytest.mark.parametrize("resumed", [False, True])
def test_several_events_of_one_read_pass_together_and_stay_apart(resumed: bool) -> None:
    stream = Stream(observer(Kind.CHAT, False))
    stream.take(chunk("first"))
    if resumed:
        assert isinstance(stream.observer.broken("EndpointDied", stream.observer._outcome), Resume)
        stream.take(chunk("next").replace(b'"id": "c"', b'"id": "another"'))
    assert stream.flow is not None
    texts = [" a", " b", " c"]
    events = [chunk(text).replace(b'"c"', b'"another"' if resumed else b'"c"') for text in texts]
    read = b"".join(map(framed, events))
    stop = framed(chunk("", finish_reason="stop"))
    for end in (b"", stop, read[:40]):  # nothing; another event; a part of one
        assert stream.flow.passes(read + end) == len(read)
        reader, parts = ChunkReader(), list[bytes]()
        reader.feed(stream.passed, parts)
        given = [json.loads(one.removeprefix(b"data: ")) for one in parts]
        assert [one["choices"][0]["delta"]["content"] for one in given] == texts
        assert {one["id"] for one in given} == {"c"}
    assert stream.flow.passes(b"no line") == stream.flow.passes(b"5data: x") == 0


def test_nothing_overtakes_half_an_event() -> None:
    stream = Stream(observer(Kind.CHAT, False))
    stream.take(chunk("a"))
    half = chunk("b")[:20]
    assert stream.take(half) == b""
    assert stream.flow is None
    assert stream.take(chunk("c")) == half + chunk("c")


def test_a_long_stream_keeps_little() -> None:
    stream = Stream(observer(Kind.CHAT, False))
    for _ in range(5000):
        stream.take(chunk(" x"))
    steady = stream.observer.steady
    assert steady is not None and len(steady._texts) <= 257
    stream.observer.count()
    assert stream.observer._so_far.text == " x" * 5000


@pytest.mark.parametrize(
    "payload",
    [
        chunk("a") + chunk("b"),
        chunk('x"},"finish_reason":"stop","y":{"z":"').replace(b'\\"', b'"'),
        chunk("a", finish_reason="stop"),
        chunk('say "a"'),
        chunk("a").replace(b'"a"', b"null"),
        chunk("a").replace(b'"a"', b'"'),
        chunk("a").replace(b'"a"', b'"a" \n\n'),
        chunk("a\\"),
        chunk(""),
    ],
)
def test_what_only_looks_alike_is_parsed(payload: bytes) -> None:
    stream = Stream(observer(Kind.CHAT, False))
    stream.take(chunk("first"))
    assert stream.flow is not None
    stream.take(payload)
    assert stream.fed == [chunk("first"), payload]


@pytest.mark.parametrize("text", [b"\xff", b"\\x", b"a\nb"])
def test_a_text_that_is_none_ends_the_hope_to_continue(text: bytes) -> None:
    """It went by unseen, and is found out when it is needed."""
    stream = Stream(observer(Kind.CHAT, False))
    stream.take(chunk("first"))
    payload = chunk("a").replace(b'"a"', b'"%b"' % text)
    assert stream.take(payload) == payload
    assert isinstance(stream.observer.broken("EndpointDied", stream.observer._outcome), bytes)


def test_a_shape_is_believed_only_after_a_trial() -> None:
    assert shape_of(chunk("word"), "word") is not None
    assert shape_of(chunk("m"), "m") is None  # the first "m" is the model's name
    assert shape_of(chunk('"'), '"') is None  # written in another way than it is read
    assert shape_of(b"id: 1\n" + chunk("word"), "word") is None


def test_an_engine_whose_events_always_differ_is_not_asked_for_ever() -> None:
    one = observer(Kind.CHAT, False)
    for number in range(50):
        one.feed(chunk("a", obfuscation="x" * number))
    learnt = one.steady
    one.feed(chunk("a", obfuscation="another"))
    assert one.steady is learnt
