"""One streamed answer as the client sees it: whole events only, usage read and hidden, broken answers continued unseen.

A stream has one identity (id, created, model) whatever number of endpoints it came from, one role, one finish and one usage.
No I/O: bytes in, bytes out. What cannot be continued ends with an error event, never with silence.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import orjson

from skyloom_lb.exchange import Outcome, Resume, Steady
from skyloom_lb.openai.config import Price
from skyloom_lb.openai.continuation import Cannot, Complete, GoOn, SoFar, go_on, only_usage
from skyloom_lb.openai.errors import DONE, broken_stream
from skyloom_lb.openai.request import Kind
from skyloom_lb.openai.shape import Shapes
from skyloom_lb.openai.usage import Usage, usage_of
from skyloom_lb.wire.response import ResponseHead

_IDENTITY = ("id", "created", "model", "system_fingerprint", "service_tier")
_USAGE_ATTEMPTS = 5
_SHORT = 64
"""Bytes: no `[DONE]` is longer, whatever blanks are around it."""
_EVENT_ENDS = (b"\n\n", b"\n\r\n")
_LONGEST_EVENT = 8 * 1024 * 1024
"""Bytes. A longer one goes on unread, and its stream is not continued."""
_THINKING = ("reasoning_content", "reasoning", "thinking")


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """What is known before the first byte. `sent`: the body the endpoint got. `continues`: may be continued elsewhere."""

    kind: Kind
    sent: bytes
    continues: bool = False
    by_ids: bool = False
    """Token ids were asked for by us and are hidden from the client."""
    wants_usage: bool = False
    """The client asked for the usage chunk itself."""
    hides_usage: bool = False
    """We asked for it and the client did not."""
    prompt_estimate: int = 0
    price: Price | None = None
    choices: int = 1
    """How many answers were asked for; each has a finish of its own."""


def _data_of(raw: bytes) -> bytes | None:
    """What the `data` lines of an event hold; None when it has none."""
    if raw.startswith(b"data:") and raw.find(b"\n") == len(raw) - 2:  # nearly every event
        return raw[5:-2]
    lines = [line[5:] for line in raw.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


def _is_sound(data: dict[str, Any]) -> bool:
    """Whether everything that is looked at in an event is what it should be."""
    choices = data.get("choices") or []
    return isinstance(choices, list) and all(map(_is_choice, choices))


def _is_choice(choice: Any) -> bool:
    if not isinstance(choice, dict):
        return False
    delta, ids = choice.get("delta"), choice.get("token_ids")
    texts = (choice.get("text"), delta.get("content") if isinstance(delta, dict) else None)
    return (
        (delta is None or isinstance(delta, dict))
        and all(text is None or isinstance(text, str) for text in texts)
        and (ids is None or (isinstance(ids, list) and all(isinstance(one, int) for one in ids)))
        and isinstance(choice.get("finish_reason") or "", str)
        and isinstance(choice.get("index") or 0, int)
    )


class StreamObserver:
    rewrites = True

    def __init__(self, plan: StreamPlan, outcome: Outcome) -> None:
        self._plan = plan
        self._outcome = outcome
        self._completion = plan.kind in (Kind.CHAT, Kind.COMPLETIONS)
        self._continues = plan.continues and self._completion
        self._rest: list[bytes] = []
        """An event whose end is not here yet."""
        self._held = 0
        """Bytes of it."""
        self._unread = False
        """The beginning of a very long event has gone on; its end does too."""
        self._tail = b""
        """Its last three: an event's end may come in parts."""
        self._shapes = Shapes()
        self._steady: Steady | None = None
        self._so_far = SoFar(token_ids=[] if plan.continues else None)
        self._identity: dict[str, Any] | None = None
        self._textless: list[int] = []
        """Tokens whose text the engine holds back, for it may be half a character: not given yet."""
        self._finished: set[int] = set()
        """The choices that are complete."""
        self._usage: Usage | None = None
        self._usage_given = False
        self._usage_asked = 0
        self._role_given = False
        self._done = False
        self.whole = False
        """The client got all of the answer, whatever happened to endpoints."""
        self._failure: bytes | None = None
        """The engine's own error event, held back until it is clear that nobody else can go on."""
        self._refused = ""
        self._resumed = False
        self._given = 0
        """Tokens of the answer that the current endpoint has in its prompt."""
        self._as_completion = False
        self._closing = ""
        """The finish reason of an answer that is complete; the current endpoint is asked for its usage only."""

    # --- exchange.Observer

    @property
    def steady(self) -> Steady | None:
        """None while a part of an event is held: nothing may overtake it."""
        return self._steady if not self._rest and not self._unread else None

    def feed(self, payload: bytes) -> bytes:
        self._take_over()
        return self._feed(payload)

    def _take_over(self) -> None:
        """The tokens that went by unseen."""
        if self._steady is None or not self._steady.count:
            return
        tokens, quoted = self._steady.taken()
        self._so_far.tokens += tokens
        if self._continues:
            try:
                self._so_far.keep(orjson.loads(b'"%b"' % quoted))
            except orjson.JSONDecodeError:
                self._so_far.obstacle = "the endpoint sent an event that is not JSON"

    def _feed(self, payload: bytes) -> bytes:
        """Looks for an event's end only where it can be new: a long one comes in thousands of pieces."""
        if self._unread:
            return self._rest_unread(payload)
        new = self._tail + payload
        if not any(end in new for end in _EVENT_ENDS):
            return self._hold(payload, new[-3:])
        data = b"".join((*self._rest, payload)).replace(b"\r\n", b"\n")
        end_of_last = data.rfind(b"\n\n") + 2
        self._keep_rest(data[end_of_last:])
        if data.find(b"\n\n") == end_of_last - 2:
            return self._event(data[:end_of_last])
        return b"".join([self._event(one + b"\n\n") for one in data[: end_of_last - 2].split(b"\n\n")])

    def _keep_rest(self, rest: bytes) -> None:
        self._rest, self._held, self._tail = [rest] if rest else [], len(rest), rest[-3:]

    def _hold(self, payload: bytes, tail: bytes) -> bytes:
        self._rest.append(payload)
        self._held += len(payload)
        self._tail = tail
        if self._held <= _LONGEST_EVENT:
            return b""
        data = b"".join(self._rest)
        self._keep_rest(b"")
        self._so_far.obstacle = "the endpoint sent an event of more than 8 MB"
        self._unread, self._tail = True, tail
        return data

    def _rest_unread(self, payload: bytes) -> bytes:
        """Of an event whose beginning has gone on."""
        new, before = self._tail + payload, len(self._tail)
        ends = [at + len(end) for end in _EVENT_ENDS if (at := new.find(end)) >= 0]
        if not ends:
            self._tail = new[-3:]
            return payload
        self._unread, self._tail = False, b""
        cut = min(ends) - before
        return payload[:cut] + (self._feed(payload[cut:]) if payload[cut:] else b"")

    def end(self, outcome: Outcome) -> bytes | Resume:
        self._take_over()
        missing = b"\n" if self._tail.endswith(b"\n") else b"\n\n"
        last = self._feed(missing) if self._rest and self._only_line_ends_miss() else b""
        found = self._end(outcome)
        return replace(found, before=last) if isinstance(found, Resume) else last + found

    def _only_line_ends_miss(self) -> bool:
        """Some engines save them at the end; half an event is none."""
        text = _data_of(b"".join((*self._rest, b"\n\n")).replace(b"\r\n", b"\n"))
        if text is None or not self._completion:
            return False
        with suppress(orjson.JSONDecodeError):
            return text.strip() == b"[DONE]" or isinstance(orjson.loads(text), dict)
        return False

    def _end(self, outcome: Outcome) -> bytes | Resume:
        if self._closing:
            return self._complete(self._closing)
        if self._failure is not None:
            return self._go_on("EngineError", outcome)
        if self._done or not self._completion:
            rest = b"".join(self._rest)
            self._keep_rest(b"")
            return rest
        if self._so_far.finish:
            if self._continues and self._plan.wants_usage and self._usage is None:
                return self._complete(self._so_far.finish)
            self.whole = True
            return DONE if self._resumed or self._continues else b""  # not every engine says [DONE]
        return self._go_on("EndedEarly", outcome)

    def broken(self, reason: str, outcome: Outcome) -> Resume | bytes | None:
        self._take_over()
        return b"" if self._done else self._go_on(reason, outcome)

    def resumed(self, head: ResponseHead) -> bool:
        self._keep_rest(b"")
        if head.status == 200 and head.content_type.startswith(b"text/event-stream"):
            return True
        if 400 <= head.status < 500 and head.status not in (408, 409, 425, 429):
            self._refused = f"the next endpoint refused to go on with it (status {head.status})"
        return False

    # --- events

    def _event(self, raw: bytes) -> bytes:
        if self._failure is not None or self._done:
            return b""
        text = _data_of(raw)
        if text is None:
            return b"" if self._resumed else raw  # a comment, or an event without data
        if len(text) < _SHORT and text.strip() == b"[DONE]":
            return self._last()
        if not self._completion:
            return self._other(raw, text)
        try:
            data = orjson.loads(text)
        except orjson.JSONDecodeError:
            self._so_far.obstacle = "the endpoint sent an event that is not JSON"
            return raw
        if not isinstance(data, dict) or not _is_sound(data):
            self._so_far.obstacle = "the endpoint sent an event of an unknown shape"
            return raw
        return self._completion_event(raw, data)

    def _completion_event(self, raw: bytes, data: dict[str, Any]) -> bytes:
        if data.get("error") is not None or data.get("object") == "error":
            return self._failed(raw, data)
        if self._identity is None:
            self._identity = {name: data[name] for name in _IDENTITY if name in data}
        if self._plan.by_ids and "prompt_token_ids" in data:
            self._prompt_ids(data.pop("prompt_token_ids"))
        usage = data.get("usage")
        choices = data.get("choices")
        if not choices or self._closing:
            if usage is None:
                return b"" if self._closing else self._rewritten(raw, data)
            self._take_usage(usage)
            return b"" if self._closing else self._usage_event(raw, data)
        substance = False
        for choice in choices:
            substance = self._choice(choice) or substance
        if usage is not None:
            self._take_usage(usage)
            if self._resumed:
                self._fill_usage(usage, self._usage)
        given = self._rewritten(raw, data) if substance or not (self._resumed or self._plan.by_ids) else b""
        if usage is None and len(choices) == 1:
            self._remember(raw, given, choices[0])
        return given

    def _remember(self, raw: bytes, given: bytes, choice: dict[str, Any]) -> None:
        """The next event will probably differ from this one in its text alone."""
        delta = choice.get("delta")
        text = choice.get("text") if delta is None else delta.get("content")
        bare = delta is None or len(delta) == 1
        special = any(choice.get(name) for name in ("index", "logprobs", "finish_reason", "token_ids"))
        if text and bare and not special and not self._plan.by_ids:
            self._steady = self._shapes.learn(raw, given, text, self._so_far.tokens) or self._steady

    def _failed(self, raw: bytes, data: dict[str, Any]) -> bytes:
        error = data.get("error")
        code = (error if isinstance(error, dict) else data).get("code")
        if isinstance(code, int) and 400 <= code < 500 and code != 429:
            self._refused = "the endpoint refused the request"
        self._failure = raw
        self._steady = None
        return b""

    def _choice(self, choice: dict[str, Any]) -> bool:
        """Notes what a choice brings. False: nothing that the client does not have."""
        so_far = self._so_far
        if choice.get("index"):
            so_far.obstacle = "there are several choices"
        if choice.get("logprobs"):
            so_far.obstacle = "log probabilities were given"
        finish = choice.get("finish_reason")
        if finish:
            self._finished.add(choice.get("index") or 0)
            if len(self._finished) >= self._plan.choices:
                so_far.finish = finish
        if self._plan.kind is Kind.CHAT and not self._as_completion:
            text, substance = self._delta(choice)
        else:
            text = choice.get("text")
            substance = bool(text)
            if self._as_completion:
                choice["delta"] = {"content": choice.pop("text", "") or ""} if text else {}
        self._count(choice, text)
        return substance or bool(finish)

    def _delta(self, choice: dict[str, Any]) -> tuple[str | None, bool]:
        delta = choice.get("delta") or {}
        if len(delta) == 1 and "content" in delta:  # nearly every event
            text = delta["content"]
            return text, bool(text)
        if delta.get("tool_calls") or delta.get("function_call"):
            self._so_far.obstacle = "a tool call has begun"
        elif delta.get("refusal"):
            self._so_far.obstacle = "a refusal has begun"
        elif any(delta.get(name) for name in _THINKING):
            self._so_far.obstacle = "the model was thinking"
        if self._so_far.obstacle and not delta.get("content") and "token_ids" not in choice:
            self._so_far.tokens += any(value for name, value in delta.items() if name != "role")
        substance = any(value for name, value in delta.items() if name != "role")
        if "role" in delta:
            if self._role_given:
                del delta["role"]
            else:
                self._role_given = substance = True
        return delta.get("content"), substance

    def _count(self, choice: dict[str, Any], text: str | None) -> None:
        so_far = self._so_far
        if self._plan.by_ids and "prompt_token_ids" in choice:
            self._prompt_ids(choice.pop("prompt_token_ids"))
        ids = choice.pop("token_ids", None) if self._plan.by_ids else choice.get("token_ids")
        if ids is None:
            if text:
                so_far.token_ids = None
                so_far.tokens += 1
                if self._continues:
                    so_far.keep(text)
            return
        self._textless += ids
        if text:
            so_far.tokens += len(self._textless)
            if so_far.token_ids is not None:
                so_far.token_ids += self._textless
            self._textless = []
            if self._continues:
                so_far.keep(text)

    def _prompt_ids(self, ids: Any) -> None:
        if isinstance(ids, list) and self._so_far.prompt_ids is None and not self._resumed:
            self._so_far.prompt_ids = ids

    def _rewritten(self, raw: bytes, data: dict[str, Any]) -> bytes:
        if not self._resumed and not self._plan.by_ids:
            return raw
        if self._identity is not None:
            data.update(self._identity)
        if self._as_completion:
            data["object"] = "chat.completion.chunk"
        return b"data: " + orjson.dumps(data) + b"\n\n"

    def _other(self, raw: bytes, text: bytes) -> bytes:
        """Responses and whatever else is streamed: passed on. The usage is in the event that ends it, of Anthropic's messages that
        of the prompt in the first one."""
        if b'"usage"' in text:
            try:
                data = orjson.loads(text)
            except orjson.JSONDecodeError:
                return raw
            if isinstance(data, dict):
                inner = data.get("response") or data.get("message")
                self._add_usage(inner.get("usage") if isinstance(inner, dict) else data.get("usage"))
        if (
            text.find(b'"response.completed"', 0, 200) >= 0
            or text.find(b'"response.incomplete"', 0, 200) >= 0
        ):
            self._so_far.finish = "completed"
        return raw

    # --- usage

    def _take_usage(self, value: Any) -> None:
        """Counts of the current endpoint, less what its prompt held of the answer already."""
        usage = usage_of(value)
        if usage is None:
            return
        prompt = max(0, usage.prompt - self._given)
        completion = self._so_far.tokens if self._closing else self._given + usage.completion
        self._usage = Usage(prompt, completion, min(usage.cached, prompt))
        if not self._closing and self._continues and self._so_far.tokens < completion:
            self._so_far.tokens = completion  # the engine counts better than we do

    def _add_usage(self, value: Any) -> None:
        """What an event does not tell stays what an earlier one told."""
        usage, before = usage_of(value), self._usage or Usage()
        if usage is not None:
            self._usage = Usage(
                usage.prompt or before.prompt,
                usage.completion or before.completion,
                usage.cached or before.cached,
            )

    def _usage_event(self, raw: bytes, data: dict[str, Any]) -> bytes:
        if self._plan.hides_usage:
            return b""
        self._usage_given = True
        if self._resumed:
            self._fill_usage(data["usage"], self._usage)
        return self._rewritten(raw, data)

    def _fill_usage(self, into: Any, usage: Usage | None) -> None:
        if usage is None or not isinstance(into, dict):
            return
        into["prompt_tokens"], into["completion_tokens"] = usage.prompt, usage.completion
        into["total_tokens"] = usage.prompt + usage.completion
        details = into.get("prompt_tokens_details")
        if isinstance(details, dict) and "cached_tokens" in details:
            details["cached_tokens"] = usage.cached

    def _own_usage_event(self, usage: Usage) -> bytes:
        told: dict[str, Any] = {}
        self._fill_usage(told, usage)
        return self._own_event({"choices": [], "usage": told})

    def _own_event(self, fields: dict[str, Any]) -> bytes:
        kind = "chat.completion.chunk" if self._plan.kind is Kind.CHAT else "text_completion"
        return b"data: " + orjson.dumps({**(self._identity or {}), "object": kind, **fields}) + b"\n\n"

    # --- ends

    def _last(self) -> bytes:
        if self._closing:
            return b""
        self._done = True
        self.whole = bool(self._so_far.finish)
        self._steady = None
        return DONE

    def _go_on(self, reason: str, outcome: Outcome) -> Resume | bytes:
        self._keep_rest(b"")
        self._unread, self._textless = False, []
        self._steady = None
        if self._closing:
            return self._complete(self._closing)  # only the exact usage was missing
        if not self._completion and self._so_far.finish:
            return b""
        if not self._continues or self._refused:
            found: GoOn | Complete | Cannot = Cannot(self._refused or "its service does not continue streams")
            if self._completion and self._so_far.finish:
                found = Complete(self._so_far.finish)
        else:
            found = go_on(self._plan.kind, self._plan.sent, self._so_far, by_ids=self._plan.by_ids)
        if isinstance(found, GoOn):
            self._failure = None
            return self._resume(found)
        if isinstance(found, Complete):
            return self._complete(found.finish)
        return self._cannot(reason, found.why, outcome)

    def _resume(self, found: GoOn) -> Resume:
        self._resumed = True
        self._given = found.given
        self._as_completion = found.as_completion
        return Resume(found.body, found.target)

    def _complete(self, finish: str) -> Resume | bytes:
        """Everything is there but the end. Who wants the usage gets the true one, which only an engine can tell."""
        self._failure = None
        self._closing = finish
        wanted = self._plan.wants_usage and self._usage is None and self._usage_asked < _USAGE_ATTEMPTS
        if wanted and self._continues and not self._refused:
            self._usage_asked += 1
            found = only_usage(self._plan.kind, self._plan.sent, self._so_far)
            if isinstance(found, GoOn):
                return self._resume(found)
        return self._close()

    def _close(self) -> bytes:
        """The end as an engine would write it."""
        parts = []
        if not self._so_far.finish:
            shape: dict[str, Any] = {"delta": {}} if self._plan.kind is Kind.CHAT else {"text": ""}
            choice = {"index": 0, **shape, "finish_reason": self._closing}
            parts.append(self._own_event({"choices": [choice]}))
        if self._plan.wants_usage and not self._usage_given and self._usage is not None:
            parts.append(self._own_usage_event(self._usage))
        parts.append(DONE)
        self._done = self.whole = True
        return b"".join(parts)

    def _cannot(self, reason: str, why: str, outcome: Outcome) -> bytes:
        outcome.error = outcome.error or reason
        if self._failure is not None:
            last = self._failure + DONE
        else:
            last = broken_stream(
                self._plan.kind, "endpoint_died", f"The answer broke off and cannot be continued: {why}."
            )
        self._done = True
        return last

    def count(self) -> None:
        """The best counts known now; also asked when the client has left in the middle."""
        self._take_over()
        outcome, usage = self._outcome, self._usage
        if usage is not None:
            outcome.prompt_tokens, outcome.cached_tokens = usage.prompt, usage.cached
            outcome.completion_tokens = max(usage.completion, self._so_far.tokens)
        elif self._so_far.tokens or self._done:
            outcome.prompt_tokens, outcome.completion_tokens = self._plan.prompt_estimate, self._so_far.tokens
