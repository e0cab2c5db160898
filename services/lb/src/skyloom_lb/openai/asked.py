"""What is remembered of one API request from its route to its end, and what is read from its answer when that is no stream."""

from __future__ import annotations

from typing import Any

from skyloom_lb.exchange import Outcome, Steady
from skyloom_lb.openai.config import Price
from skyloom_lb.openai.request import Kind, estimate, generates
from skyloom_lb.openai.upstream import ApiService
from skyloom_lb.openai.usage import Tail, usage_in
from skyloom_lb.wire.response import ResponseHead


class Asked:
    """What is remembered of one request until its end; `Route.data`."""

    __slots__ = (
        "body",
        "by_ids",
        "data",
        "hides_usage",
        "kind",
        "price",
        "prompt_tokens",
        "service",
        "wants_usage",
    )

    def __init__(self, kind: Kind, service: ApiService, price: Price | None, data: dict[str, Any]) -> None:
        self.kind = kind
        self.service = service
        self.price = price
        self.data = data
        self.prompt_tokens = 0
        self.wants_usage = False
        self.hides_usage = False
        self.by_ids = False
        self.body = b""

    def tokens(self) -> int:
        """What it will probably cost; read only where somebody limits tokens."""
        return estimate(self.kind, self.data, len(self.body))

    @property
    def has_usage(self) -> bool:
        """Whether its answer tells what it cost; others may tell what another request has cost."""
        return generates(self.kind, self.data)


class JsonObserver:
    """Usage out of an answer that is no stream; the client gets the endpoint's own bytes."""

    __slots__ = ("_body", "_outcome", "_tail")
    rewrites = False
    steady: Steady | None = None
    whole = False

    def __init__(self, encoding: bytes, outcome: Outcome) -> None:
        self._body = b""
        """An answer that came in one read, unpacked: nearly all of them."""
        self._tail = Tail(encoding) if encoding else None
        self._outcome = outcome

    def feed(self, payload: bytes) -> bytes:
        if self._tail is not None:
            self._tail.add(payload)
        elif not self._body:
            self._body = payload
        else:
            self._tail = Tail(b"")
            self._tail.add(self._body)
            self._tail.add(payload)
        return b""

    def end(self, outcome: Outcome) -> bytes:
        return b""

    def broken(self, reason: str, outcome: Outcome) -> None:
        return None

    def resumed(self, head: ResponseHead) -> bool:
        return False

    def count(self) -> None:
        usage = usage_in(self._body) if self._tail is None else self._tail.usage()
        if usage is not None:
            outcome = self._outcome
            outcome.prompt_tokens, outcome.cached_tokens = usage.prompt, usage.cached
            outcome.completion_tokens = usage.completion
