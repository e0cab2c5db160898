"""What a limit set (a key's or a service's) counts, the permit of a request that counts somewhere, and what its client is told.

The headers are those that OpenAI's clients know. Only answers to keys with rate limits carry them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from skyloom_lb.admission.config import Limits
from skyloom_lb.admission.gate import Gate, Slots
from skyloom_lb.admission.ledger import REQUESTS, TOKENS, Ledger, Row
from skyloom_lb.admission.shared import RedisScript, SharedBucket
from skyloom_lb.exchange import Outcome, Refusal

if TYPE_CHECKING:
    from skyloom_lb.admission.admission import Admission

Took = list[tuple[SharedBucket, float]]
"""What a request got, and where."""
_WHAT = ((REQUESTS, "requests"), (TOKENS, "tokens"))


class Taken:
    """What one limit set counts: rates and places. With a ledger, all workers count the same."""

    __slots__ = ("_always", "_row", "limited", "limits", "name", "requests", "slots", "tokens")

    def __init__(self, name: str, always: bool = False) -> None:
        """`always`: shared although it has no limits, for the sake of its queue."""
        self._always = always
        self.name = name
        self.limits = Limits()
        self.limited = False
        self.slots = Slots(name)
        self.requests: SharedBucket | None = None
        self.tokens: SharedBucket | None = None
        self._row: Row | None = None

    def configure(
        self, limits: Limits, workers: int, script: RedisScript | None, ledger: Ledger | None, now: float
    ) -> None:
        self.limits = limits
        self.limited = limits.any
        if self._row is None and ledger is not None and (limits.any or self._always):
            self._row = ledger.row(self.name)
            self.slots.share(self._row)
        share = 1 if self._row is not None else workers
        self.slots.limit = -(-limits.concurrency // share)
        share = 1 if script is not None else share
        self.requests = self._bucket(REQUESTS, self.requests, limits.requests_per_minute / share, script, now)
        self.tokens = self._bucket(TOKENS, self.tokens, limits.tokens_per_minute / share, script, now)

    def _bucket(
        self, which: int, old: SharedBucket | None, per_minute: float, script: RedisScript | None, now: float
    ) -> SharedBucket | None:
        if not per_minute:
            return None
        if old is not None:
            old.resized(per_minute, now)
            return old
        local = self._row.bucket(which, per_minute) if self._row is not None else None
        return SharedBucket(f"{self.name}:{_WHAT[which][1]}", per_minute, script, now, local)

    def told(self, now: float) -> tuple[tuple[bytes, bytes], ...]:
        """Headers that say what is left of the rates; none where there is no rate."""
        lines: list[tuple[bytes, bytes]] = []
        for bucket, what, limit in (
            (self.requests, b"requests", self.limits.requests_per_minute),
            (self.tokens, b"tokens", self.limits.tokens_per_minute),
        ):
            if bucket is not None:
                left = bucket.left(now)
                full_in = (bucket.local.capacity - left) / bucket.local.rate
                lines.append((b"x-ratelimit-limit-" + what, b"%d" % limit))
                lines.append((b"x-ratelimit-remaining-" + what, b"%d" % max(0, math.floor(left))))
                lines.append((b"x-ratelimit-reset-" + what, duration(full_in)))
        return tuple(lines)


def duration(seconds: float) -> bytes:
    """As in these headers elsewhere: `120ms`, `1.5s`, `6m0s`."""
    milliseconds = max(0, math.ceil(seconds * 1000))
    if milliseconds < 1000:
        return b"%dms" % milliseconds
    if milliseconds < 60_000:
        return f"{milliseconds / 1000:g}s".encode()
    minutes, rest = divmod(math.ceil(milliseconds / 1000), 60)
    return b"%dm%ds" % (minutes, rest)


class Place:
    """The permit of a request that counts somewhere. `took`: what it got of which bucket, for no more may go back."""

    __slots__ = ("_admission", "_gate", "_key", "_service", "_took")

    def __init__(self, admission: Admission, gate: Gate, service: Taken, key: Taken, took: Took) -> None:
        self._admission = admission
        self._gate = gate
        self._service = service
        self._key = key
        self._took = took

    @property
    def headers(self) -> bytes:
        key = self._key
        if key.requests is None and key.tokens is None:
            return b""
        return b"".join(b"%b: %b\r\n" % line for line in key.told(self._admission.clock()))

    def release(self, outcome: Outcome) -> None:
        self._gate.leave(self._key.slots)
        if not outcome.ended:  # it goes on elsewhere, and is admitted there anew
            give_back(self._took, self._admission.clock())
        elif self._took:
            self._settle(outcome)
        self._admission.left(self._gate, self._key.slots)

    def _settle(self, outcome: Outcome) -> None:
        """What was really used is what counts, whatever was estimated."""
        used = outcome.prompt_tokens + outcome.completion_tokens
        if not (used or outcome.status >= 400 or not outcome.first_byte):
            return
        now = self._admission.clock()
        for bucket, amount in self._took:
            if bucket is self._key.tokens or bucket is self._service.tokens:
                bucket.correct(amount - used, now)


def give_back(took: Took, now: float) -> None:
    for bucket, amount in took:
        bucket.correct(amount, now)


def rates(key: Taken, service: Taken, estimate: float) -> list[tuple[SharedBucket, float, str]]:
    """What a request has to get, whose, and what is said when it does not. Nothing costs more than a full bucket."""
    found: list[tuple[SharedBucket, float, str]] = []
    for taken, whose in ((key, "This API key"), (service, "This service")):
        if taken.requests is not None:
            words = f"{whose} may have {taken.limits.requests_per_minute:g} requests a minute."
            found.append((taken.requests, 1.0, words))
        if taken.tokens is not None and estimate:
            words = f"{whose} may have {taken.limits.tokens_per_minute:g} tokens a minute."
            found.append((taken.tokens, min(estimate, taken.tokens.local.capacity), words))
    return found


def too_many(words: str, wait: float, key: Taken, now: float) -> Refusal:
    return Refusal(429, "rate_limit_exceeded", words, wait, key.told(now))
