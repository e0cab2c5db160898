"""Broken streams, without a socket: where an answer breaks off must not be seen in what the client gets."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

import skyloom_testing_engine as engines
from skyloom_lb.exchange import Outcome, Resume
from skyloom_lb.openai.continuation import Cannot, Complete, GoOn, SoFar, go_on
from skyloom_lb.openai.request import Kind
from skyloom_lb.openai.stream import StreamObserver, StreamPlan
from skyloom_lb.wire.response import ResponseHead

CHAT = {"model": "tiny", "stream": True, "messages": [{"role": "user", "content": "say it"}]}
COMPLETION = {"model": "tiny", "stream": True, "prompt": "once upon"}
USAGE = {"stream_options": {"include_usage": True}}
IDS = {"return_token_ids": True}


def so_far(*texts: str, **fields: Any) -> SoFar:
    return SoFar(list(texts), tokens=len(texts), **fields)


def body(request: dict[str, Any]) -> bytes:
    return json.dumps(request).encode()


@pytest.mark.parametrize(
    ("kind", "request_", "given", "expected"),
    [
        (Kind.CHAT, CHAT, so_far(), GoOn(body(CHAT))),
        (Kind.CHAT, {**CHAT, "n": 2}, so_far(), GoOn(body({**CHAT, "n": 2}))),
        (Kind.CHAT, {**CHAT, "n": 2}, so_far("a"), Cannot("n is 2")),
        (Kind.CHAT, {**CHAT, "logprobs": True}, so_far("a"), Cannot("log probabilities were asked for")),
        (Kind.CHAT, CHAT, so_far(obstacle="a tool call has begun"), Cannot("a tool call has begun")),
        (Kind.CHAT, {**CHAT, "max_tokens": 2}, so_far("a", "b"), Complete("length")),
        (Kind.CHAT, CHAT, so_far("a", finish="stop"), Complete("stop")),
        (Kind.CHAT, {**CHAT, "response_format": {"type": "json_object"}}, so_far("{"),
         Cannot("response_format is json_object")),
        (Kind.CHAT, {**CHAT, "guided_regex": "a+"}, so_far("a"), Cannot("guided_regex was asked for")),
        (Kind.COMPLETIONS, {**COMPLETION, "echo": True}, so_far("a"), Cannot("echo is on")),
        (Kind.COMPLETIONS, {**COMPLETION, "suffix": "x"}, so_far("a"), Cannot("suffix was given")),
        (Kind.COMPLETIONS, {**COMPLETION, "prompt": ["a", "b"]}, so_far("a"), Cannot("there are 2 prompts")),
        (Kind.COMPLETIONS, {**COMPLETION, "prompt": [1, 2]}, so_far("a"),
         Cannot("the prompt is token ids and the engine did not tell those of its answer")),
        (Kind.RESPONSES, {"input": "x"}, so_far("a"), Cannot("answers of responses cannot be continued")),
    ],
)  # fmt: skip
def test_what_can_be_continued(
    kind: Kind, request_: dict[str, Any], given: SoFar, expected: GoOn | Complete | Cannot
) -> None:
    assert go_on(kind, body(request_), given) == expected


def continued(kind: Kind, request: dict[str, Any], given: SoFar, **flags: Any) -> tuple[GoOn, dict[str, Any]]:
    found = go_on(kind, body(request), given, **flags)
    assert isinstance(found, GoOn)
    return found, json.loads(found.body)


def test_a_chat_goes_on_with_an_open_assistant_message() -> None:
    found, sent = continued(Kind.CHAT, {**CHAT, "max_tokens": 9, "min_tokens": 3}, so_far(" a", " b"))
    assert sent["messages"] == [*CHAT["messages"], {"role": "assistant", "content": " a b"}]  # type: ignore[misc]
    assert (sent["continue_final_message"], sent["add_generation_prompt"]) == (True, False)
    assert (sent["max_tokens"], sent["min_tokens"], found.given, found.target) == (7, 1, 2, None)


def test_an_open_message_of_the_client_is_carried_on() -> None:
    request = {
        **CHAT,
        "continue_final_message": True,
        "messages": [{"role": "assistant", "content": "It is"}],
    }
    _, sent = continued(Kind.CHAT, request, so_far(" a"))
    assert sent["messages"] == [{"role": "assistant", "content": "It is a"}]


def test_a_completion_goes_on_from_prompt_and_text() -> None:
    _, sent = continued(Kind.COMPLETIONS, COMPLETION, so_far(" a", " b"))
    assert (sent["prompt"], sent["max_tokens"]) == ("once upon a b", 14)


def test_token_ids_are_used_when_the_engine_told_all_of_them() -> None:
    given = so_far(" a", token_ids=[7], prompt_ids=[1, 2])
    found, sent = continued(Kind.CHAT, {**CHAT, "max_tokens": 5}, given)
    assert found.target == b"/v1/completions" and found.as_completion
    assert (sent["prompt"], sent["max_tokens"], "messages" in sent) == ([1, 2, 7], 4, False)
    # Without a limit of its own a chat answer is bounded by the context, a completion by 16 tokens.
    assert continued(Kind.CHAT, CHAT, given)[0].target is None
    assert (
        continued(Kind.CHAT, {**CHAT, "max_tokens": 5}, so_far(" a", " b", token_ids=[7]))[0].target is None
    )
    _, sent = continued(Kind.COMPLETIONS, {**COMPLETION, "prompt": [3]}, so_far(" a", token_ids=[7]))
    assert sent["prompt"] == [3, 7]


# --- whole streams


class Client:
    """What came out, checked as a client would."""

    def __init__(self) -> None:
        self.raw = b""

    def chunks(self) -> list[dict[str, Any]]:
        assert self.raw.endswith(b"data: [DONE]\n\n") and self.raw.count(b"[DONE]") == 1
        parts = self.raw.split(b"\n\n")[:-2]
        return [json.loads(part.removeprefix(b"data: ")) for part in parts]

    def check(self, request: dict[str, Any], chat: bool) -> None:
        chunks = self.chunks()
        wanted = engines.answer(request, chat)
        usage = [one["usage"] for one in chunks if not one["choices"]]
        choices = [one["choices"][0] for one in chunks if one["choices"]]
        texts = [one["delta"].get("content", "") if chat else one["text"] for one in choices]
        assert [text for text in texts if text] == [text for _, text in wanted]
        assert sum("role" in one.get("delta", ()) for one in choices) == chat
        assert [one["finish_reason"] for one in choices if one["finish_reason"]] == [
            "length" if request.get("max_tokens") or not chat else "stop"
        ]
        assert choices[-1]["finish_reason"]
        assert len({(one["id"], one["created"], one["model"], one["object"]) for one in chunks}) == 1
        assert not any("token_ids" in choice or "prompt_token_ids" in choice for choice in choices)
        assert not any("prompt_token_ids" in one for one in chunks)
        if request.get("stream_options", {}).get("include_usage"):
            engine = engines.load()
            prompt = engine.prompt_tokens(engine._Job.of(request, chat, "tiny").prompt)
            told = {name: usage[0][name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
            assert len(usage) == 1 and told == {
                "prompt_tokens": prompt, "completion_tokens": len(wanted), "total_tokens": prompt + len(wanted),
            }  # fmt: skip
        else:
            assert not usage


def head(status: int = 200) -> ResponseHead:
    made = ResponseHead()
    made.status, made.block = status, b"\r\ncontent-type: text/event-stream\r\n"
    return made


def run(
    request: dict[str, Any],
    chat: bool,
    cuts: list[int],
    seed: int = 0,
    *,
    by_ids: bool = False,
    clean: bool = False,
) -> tuple[Client, Outcome]:
    """Serves a request whose endpoints die after so many bytes each; the last one lives."""
    chance = random.Random(seed)
    wants = bool(request.get("stream_options"))
    sent = {**request, **USAGE, **(IDS if by_ids else {})}
    kind = Kind.CHAT if chat else Kind.COMPLETIONS
    plan = StreamPlan(kind, body(sent), True, by_ids, wants, not wants)
    outcome = Outcome(0.0, None, "", b"", "fast")
    observer, client = StreamObserver(plan, outcome), Client()
    asked: dict[str, Any] = sent
    as_chat = chat
    for cut in [*cuts, -1]:
        stream = b"".join(engines.events(asked, as_chat))
        whole = cut < 0 or cut >= len(stream)
        stream = stream if whole else stream[:cut]
        while stream:
            size = chance.choice((1, 3, 50, 300, 100_000))
            client.raw += observer.feed(stream[:size])
            stream = stream[size:]
        last = observer.end(outcome) if whole or clean else observer.broken("EndpointDied", outcome)
        if not isinstance(last, Resume):
            assert last is not None
            client.raw += last
            break
        client.raw += last.before
        assert observer.resumed(head())
        asked = json.loads(last.body)
        as_chat = chat and last.target is None
    observer.count()
    return client, outcome


SHAPES = [
    pytest.param({**CHAT, "max_tokens": 6}, True, False, id="chat"),
    pytest.param({**CHAT, **USAGE, "max_tokens": 6}, True, False, id="chat with usage"),
    pytest.param({**CHAT, **USAGE}, True, False, id="chat until it stops"),
    pytest.param({**CHAT, **USAGE, "max_tokens": 6}, True, True, id="chat by token ids"),
    pytest.param({**COMPLETION, **USAGE, "max_tokens": 5}, False, False, id="completion"),
    pytest.param({**COMPLETION, **USAGE}, False, True, id="completion by token ids"),
]


@pytest.mark.parametrize(("request_", "chat", "by_ids"), SHAPES)
def test_a_death_after_any_byte_is_not_seen(request_: dict[str, Any], chat: bool, by_ids: bool) -> None:
    length = len(b"".join(engines.events({**request_, **USAGE, **(IDS if by_ids else {})}, chat)))
    for cut in range(0, length, 1 if by_ids else 3):
        client, outcome = run(request_, chat, [cut], seed=cut, by_ids=by_ids)
        client.check(request_, chat)
        assert outcome.completion_tokens == len(engines.answer(request_, chat))


@pytest.mark.parametrize(("request_", "chat", "by_ids"), SHAPES)
def test_many_deaths_of_one_stream_are_not_seen(request_: dict[str, Any], chat: bool, by_ids: bool) -> None:
    chance = random.Random(7)
    for seed in range(100):
        cuts = [chance.randrange(1200) for _ in range(chance.randrange(1, 6))]
        client, outcome = run(request_, chat, cuts, seed, by_ids=by_ids, clean=bool(seed % 3 == 0))
        client.check(request_, chat)
        assert outcome.completion_tokens == len(engines.answer(request_, chat))


def test_events_with_other_line_ends_are_understood() -> None:
    plan = StreamPlan(Kind.CHAT, body({**CHAT, **USAGE}), True, hides_usage=True)
    outcome = Outcome(0.0, None, "", b"", "fast")
    observer, client = StreamObserver(plan, outcome), Client()
    for byte in b"".join(engines.events({**CHAT, **USAGE}, True)).replace(b"\n", b"\r\n"):
        client.raw += observer.feed(bytes([byte]))
    assert observer.end(outcome) == b""
    client.check(CHAT, True)


# --- what cannot go on ends with an error event


def broken(request: dict[str, Any], stream: bytes, kind: Kind = Kind.CHAT, continues: bool = True) -> bytes:
    outcome = Outcome(0.0, None, "", b"", "fast")
    observer = StreamObserver(StreamPlan(kind, body(request), continues), outcome)
    given = observer.feed(stream)
    last = observer.broken("EndpointDied", outcome)
    assert isinstance(last, bytes) and outcome.error == "EndpointDied" and not observer.whole
    return given + last


@pytest.mark.parametrize(
    ("request_", "delta", "why"),
    [
        (
            CHAT,
            {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": ""}}]},
            "a tool call",
        ),
        (CHAT, {"reasoning_content": "hm"}, "the model was thinking"),
        ({**CHAT, "n": 2}, {"content": "x"}, "n is 2"),
    ],
)
def test_the_end_is_an_error_event(request_: dict[str, Any], delta: dict[str, Any], why: str) -> None:
    event = b"data: " + body({"id": "a", "choices": [{"index": 0, "delta": delta}]}) + b"\n\n"
    raw = broken(request_, event + b'data: {"half')
    assert raw.startswith(event) and raw.endswith(b"data: [DONE]\n\n")
    error = json.loads(raw[len(event) :].split(b"\n\n")[0].removeprefix(b"data: "))["error"]
    assert error["code"] == "endpoint_died" and why in error["message"]


def test_a_response_ends_with_an_error_event_of_its_own_kind() -> None:
    raw = broken(
        {"input": "x"}, b'event: response.created\ndata: {"type":"response.created"}\n\n', Kind.RESPONSES
    )
    assert b'event: error\ndata: {"type":"error"' in raw


def test_a_service_that_does_not_continue_tells_so() -> None:
    event = b'data: {"id":"a","choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
    assert b"does not continue streams" in broken(CHAT, event, continues=False)


def test_an_engine_that_says_it_failed_is_replaced() -> None:
    outcome = Outcome(0.0, None, "", b"", "fast")
    observer = StreamObserver(StreamPlan(Kind.CHAT, body(CHAT), True), outcome)
    observer.feed(b'data: {"id":"a","choices":[{"index":0,"delta":{"content":" x"}}]}\n\n')
    assert observer.feed(b'data: {"error":{"message":"oh","code":500}}\n\ndata: [DONE]\n\n') == b""
    assert isinstance(observer.end(outcome), Resume)


def test_an_engine_that_refuses_the_request_is_believed() -> None:
    outcome = Outcome(0.0, None, "", b"", "fast")
    observer = StreamObserver(StreamPlan(Kind.CHAT, body(CHAT), True), outcome)
    failure = b'data: {"error":{"message":"too long","code":400}}\n\n'
    assert observer.feed(failure) == b""
    assert observer.end(outcome) == failure + b"data: [DONE]\n\n"


def test_a_refused_continuation_ends_the_stream() -> None:
    outcome = Outcome(0.0, None, "", b"", "fast")
    observer = StreamObserver(StreamPlan(Kind.CHAT, body(CHAT), True), outcome)
    observer.feed(b'data: {"id":"a","choices":[{"index":0,"delta":{"content":" x"}}]}\n\n')
    assert isinstance(observer.broken("EndpointDied", outcome), Resume)
    assert not observer.resumed(head(503))  # away: another one may do it
    assert isinstance(observer.broken("EndpointDied", outcome), Resume)
    assert not observer.resumed(head(400))
    last = observer.broken("EndpointDied", outcome)
    assert isinstance(last, bytes) and b"status 400" in last
