"""Tokens a minute, through a whole balancer: what a request really used is what its key is charged, in both lanes, on every path."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from skyloom_lb.exchange import Outcome
from skyloom_lb.fronts import make_front
from skyloom_lb.observe.accesslog import AccessLog
from skyloom_lb.settings import ServiceSettings

pytestmark = pytest.mark.integration
LIMIT = 1000
KEY = b"Authorization: Bearer k\r\n"
JSON = b"Content-Type: application/json\r\n"


def keys_file(folder: Path, **fields: Any) -> str:
    """One key, whose secret is `k`."""
    row = {"name": "k", "sha256": hashlib.sha256(b"k").hexdigest(), **fields}
    (folder / "keys.yaml").write_text(yaml.safe_dump({"keys": [row]}))
    return str(folder / "keys.yaml")


def usage(total: int) -> dict[str, Any]:
    return {"prompt_tokens": 7, "completion_tokens": total - 7, "total_tokens": total}


def stream(total: int) -> bytes:
    """A stream with its usage in the last chunk; some engines give it to whoever asks or not."""
    start = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    choice = {"index": 0, "delta": {"content": "a"}, "finish_reason": None}
    rows: list[Any] = [
        {**start, "choices": [choice]},
        {**start, "choices": [{**choice, "delta": {}, "finish_reason": "stop"}]},
        {**start, "choices": [], "usage": usage(total)},
    ]
    return b"".join(b"data: %b\n\n" % orjson.dumps(row) for row in rows) + b"data: [DONE]\n\n"


class World:
    """One endpoint that says how many tokens it used, one balancer, one key with a bucket of `LIMIT` tokens."""

    def __init__(self, kit: Any) -> None:
        self.kit = kit
        self.uses = 0
        self.engine: Any = None
        self.lb: Any = None

    async def start(self, folder: Path, **fields: Any) -> None:
        self.engine = await self.kit.endpoint(self.behave)
        entry = {"limits": {"tokens_per_minute": LIMIT}} | fields.pop("key", {})
        self.lb = await self.kit.lb(make_front=make_front, keys_file=keys_file(folder, **entry), **fields)
        self.lb.set(self.engine)

    async def behave(self, wire: Any) -> None:
        while True:
            request = await self.engine.request(wire)
            if b'"stream":true' in request.body.replace(b" ", b""):
                answer = self.kit.answer(stream(self.uses), extra=b"Content-Type: text/event-stream\r\n")
            else:
                answer = self.kit.answer(orjson.dumps({"usage": usage(self.uses)}), extra=JSON)
            await wire.send(answer)

    async def ask(self, uses: int, target: bytes = b"/v1/chat/completions", **fields: Any) -> int:
        self.uses = uses
        body = json.dumps({"model": "m", "messages": [], **fields}).encode()
        return int((await self.lb.ask(self.kit.post(body, target, KEY + JSON))).status)

    async def ask_carefully(self, uses: int, target: bytes = b"/v1/chat/completions", **fields: Any) -> int:
        """Its body comes after its head, in chunks."""
        self.uses = uses
        body = json.dumps({"model": "m", "messages": [], **fields}).encode()
        wire = await self.lb.client()
        await wire.send(
            b"POST %b HTTP/1.1\r\nHost: lb\r\n%bTransfer-Encoding: chunked\r\n\r\n" % (target, KEY + JSON)
        )
        await wire.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        return int((await wire.message()).status)

    @property
    def bucket(self) -> Any:
        (key,) = self.lb.worker.balancer.front.state.admission._keys.values()
        return key.tokens.local

    async def charged(self) -> float:
        """What is missing in the bucket: it fills by a sixtieth a second while the test runs."""
        await self.kit.until(self.lb.quiet)
        return float(LIMIT - self.bucket.level)


@pytest.fixture
def world(kit: Any) -> World:
    return World(kit)


@pytest.mark.parametrize("lane", ["fast", "careful"])
@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize(("estimate", "uses"), [(800, 100), (20, 600), (100_000, 300)])
async def test_what_was_used_is_charged(
    world: World, tmp_path: Path, lane: str, streams: bool, estimate: int, uses: int
) -> None:
    await world.start(tmp_path)
    ask = world.ask if lane == "fast" else world.ask_carefully
    assert await ask(uses, max_tokens=estimate, stream=streams) == 200
    # It fills by 17 a second; the whole test takes a fraction of one.
    assert uses - 60 <= await world.charged() <= uses


async def test_a_huge_estimate_buys_nothing(world: World, tmp_path: Path) -> None:
    await world.start(tmp_path)
    assert await world.ask(900, max_tokens=10**9) == 200
    await world.charged()
    assert await world.ask(900, max_tokens=10**9) == 429
    assert await world.ask(900, max_tokens=900) == 429


@pytest.mark.parametrize(
    "target",
    [
        b"/v1/chat/completions/",
        b"/%76%31/chat/completions",
        b"//v1/chat/completions",
        b"/x/../v1/chat/completions",
        b"/v1/messages",
        b"/v1/messages?beta=true",
    ],
)
@pytest.mark.parametrize("lane", ["fast", "careful"])
async def test_no_spelling_and_no_path_below_v1_is_free(
    world: World, tmp_path: Path, lane: str, target: bytes
) -> None:
    await world.start(tmp_path)
    ask = world.ask if lane == "fast" else world.ask_carefully
    assert await ask(700, target, max_tokens=20) == 200
    assert await world.charged() >= 640
    assert await ask(700, target, max_tokens=900) == 429


@pytest.mark.parametrize(
    "claims", [b"text/plain", b"application/x-www-form-urlencoded", b"multipart/x; boundary=b"]
)
async def test_a_body_that_claims_to_be_something_else_is_not_free(
    world: World, tmp_path: Path, claims: bytes
) -> None:
    await world.start(tmp_path)
    world.uses = 700
    extra = KEY + b"Content-Type: %b\r\n" % claims
    body = b'{"model": "m", "messages": [], "max_tokens": 20}'
    status = (await world.lb.ask(world.kit.post(body, b"/v1/messages", extra))).status
    assert status == 400 or (status == 200 and await world.charged() >= 640)


@pytest.mark.parametrize("target", [b"/v1/chat/completions", b"/v1/messages"])
async def test_a_body_that_is_too_long_to_be_read_is_refused_where_tokens_count(
    world: World, tmp_path: Path, target: bytes
) -> None:
    await world.start(tmp_path, front={"max_body_mb": 1})
    assert await world.ask(900, target, pad=" " * (3 << 20)) == 413
    assert not world.engine.requests


async def test_a_services_own_token_limit_is_not_evaded_by_a_long_body(world: World, tmp_path: Path) -> None:
    service = ServiceSettings(limits={"tokens_per_minute": 10_000})
    await world.start(tmp_path, front={"max_body_mb": 1}, key={"limits": {}}, service=service)
    assert await world.ask(10) == 200
    assert await world.ask(900, pad=" " * (3 << 20)) == 413
    assert len(world.engine.requests) == 1


async def test_without_a_token_limit_a_long_body_goes_on(world: World, tmp_path: Path) -> None:
    await world.start(tmp_path, front={"max_body_mb": 1}, key={"limits": {"concurrency": 3}})
    assert await world.ask(900, pad=" " * (3 << 20)) == 200


@pytest.mark.parametrize(
    ("start", "charged"),
    [
        (b'{"input_tokens":7,"output_tokens":1}', 37),
        (b'{"input_tokens":7,"cache_read_input_tokens":100,"cache_creation_input_tokens":50}', 187),
        (b"{}", None),
    ],
    ids=["told", "with a cache", "not told"],
)
async def test_a_stream_of_another_kind_is_charged_with_its_prompt(
    world: World, tmp_path: Path, start: bytes, charged: int | None
) -> None:
    """Its beginning tells of the prompt, its end of the answer; a prompt that is not told is estimated."""
    await world.start(tmp_path)
    events = (
        b'event: message_start\ndata: {"type":"message_start","message":{"usage":%b}}\n\n'
        b'event: message_delta\ndata: {"type":"message_delta","usage":{"output_tokens":30}}\n\n'
    ) % start

    async def behave(wire: Any) -> None:
        await world.engine.request(wire)
        await wire.send(world.kit.answer(events, extra=b"Content-Type: text/event-stream\r\n"))

    world.engine.behave = behave
    body = json.dumps({"model": "m", "messages": ["x" * 2000], "max_tokens": 300, "stream": True}).encode()
    answer = await world.lb.ask(world.kit.post(body, b"/v1/messages", KEY + JSON))
    assert answer.body == events
    low, high = (480, 580) if charged is None else (charged - 20, charged)
    assert low <= await world.charged() <= high


async def test_what_reads_no_text_costs_nothing(world: World, tmp_path: Path) -> None:
    """Its answer may tell the usage of another request, which was counted."""
    await world.start(tmp_path)
    body = b'{"model": "m"}'
    answer = await world.lb.ask(world.kit.post(body, b"/v1/responses/r1/cancel", KEY + JSON))
    assert answer.status == 200 and await world.charged() == 0


@pytest.mark.parametrize("absurd", [18446744073709551615, 10**30, -5, True, 1.5, "9", None])
async def test_an_absurd_usage_hurts_nobody(world: World, tmp_path: Path, absurd: Any) -> None:
    log = tmp_path / "access.log"
    await world.start(tmp_path, access_log=str(log))

    async def behave(wire: Any) -> None:
        while True:
            await world.engine.request(wire)
            told = json.dumps({"usage": {"prompt_tokens": absurd, "completion_tokens": absurd}}).encode()
            await wire.send(world.kit.answer(told, extra=JSON))

    world.engine.behave = behave
    assert await world.ask(0, max_tokens=20) == 200
    assert 0 <= await world.charged() <= 40
    snapshot = world.lb.worker.snapshot()
    assert snapshot["keys"]["k"]["prompt_tokens"] == 0
    await world.kit.until(lambda: log.exists() and log.read_bytes().count(b"\n") == 1)


def test_a_line_that_cannot_be_written_stops_no_other(tmp_path: Path) -> None:
    log = AccessLog(str(tmp_path / "log"))
    for tokens in (1, 1 << 70, 3):
        outcome = Outcome(0.0, None, "", b"", "fast")
        outcome.prompt_tokens = tokens
        log.add(outcome)
    log.sweep(0.0)
    log.close()
    rows = [json.loads(row) for row in (tmp_path / "log").read_text().splitlines()]
    assert [row["prompt_tokens"] for row in rows] == [1, 3] and log.dropped == 1


@pytest.mark.parametrize(("fields", "whole"), [({}, True), ({"n": 2}, False)])
async def test_the_observer_knows_how_many_answers_were_asked_for(
    world: World, tmp_path: Path, fields: dict[str, Any], whole: bool
) -> None:
    """One finish is the end of one answer."""
    await world.start(tmp_path)
    events = stream(50).replace(b"data: [DONE]\n\n", b"")

    async def behave(wire: Any) -> None:
        await world.engine.request(wire)
        await wire.send(world.kit.answer(events, extra=b"Content-Type: text/event-stream\r\n"))

    world.engine.behave = behave
    body = json.dumps({"model": "m", "messages": [], "stream": True, **fields}).encode()
    answer = await world.lb.ask(world.kit.post(body, extra=KEY + JSON))
    assert (b'"error"' in answer.body) is not whole
