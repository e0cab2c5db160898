"""May a request be sent again? Pure: what happened, what the request is, and how many retries the service has left."""

from __future__ import annotations

import enum

from skyloom_lb.exchange import Refusal


class Failed(enum.Enum):
    """How an attempt ended without an answer. The names are what metrics and logs show."""

    CONNECT = "ConnectFailed"
    STALE = "StaleConnection"
    """A kept-alive connection was closed before any byte of an answer: not the endpoint's failure."""
    NO_ANSWER = "NoAnswer"
    TIMEOUT = "FirstByteTimeout"
    GARBAGE = "BadResponse"
    STATUS = "Status5xx"
    FAULT = "InternalError"
    """Ours: the endpoint is not to blame."""


_A_SECOND = 2.0


class RetryBudget:
    """Each request earns a share of a retry, each retry spends one; quiet services have a few a second."""

    __slots__ = ("_at_least", "_most", "_share", "_tokens")

    def __init__(self, share: float, at_least: float = 10.0) -> None:
        self._share = share
        self._at_least = at_least
        self._most = at_least + 100 * share
        self._tokens = at_least

    def earn(self) -> None:
        if self._tokens < self._most:
            self._tokens += self._share

    def trickle(self, seconds: float) -> None:
        """Time passed."""
        if self._tokens < self._at_least:
            self._tokens = min(self._at_least, self._tokens + _A_SECOND * seconds)

    def spend(self) -> bool:
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


MOST_DEATHS = 100
MOST_IN_VAIN = 5
"""Deaths in a row that brought the client nothing: then the request itself is what kills."""
PATIENCE_SECONDS = 30.0


class Comeback:
    """How far a broken answer is carried: through many deaths as long as it goes on between them, through few without
    (the request itself may be what kills), and through a time without an answer in which endpoints may come back."""

    __slots__ = ("_answered", "_given", "_in_vain", "_since", "deaths")

    def __init__(self) -> None:
        self.deaths = 0
        self._in_vain = 0
        self._given = 0
        self._answered = True
        self._since = 0.0

    def answered(self) -> None:
        """An endpoint goes on with the answer."""
        self._answered = True

    def may_go_on(self, now: float, given: int) -> bool:
        """The endpoint died, or (without `answered` before) another one could not go on. `given`: bytes the client has."""
        if self._answered:
            self._answered = False
            self._since = now
            self.deaths += 1
            self._in_vain = 0 if given > self._given else self._in_vain + 1
            self._given = given
        if self.deaths > MOST_DEATHS or self._in_vain > MOST_IN_VAIN:
            return False
        return now - self._since < PATIENCE_SECONDS

    def pause(self, now: float) -> float:
        """Seconds until those that were tried are tried again."""
        return min(1.0, max(0.02, (now - self._since) / 2))


def may_retry(failed: Failed, replayable: bool, retries: int, most: int, budget: RetryBudget) -> bool:
    """Refused or stale connections cost nothing and are safe for every request; the rest only when it may be replayed."""
    if retries >= most:
        return False
    if failed in (Failed.CONNECT, Failed.STALE):
        return True
    return replayable and budget.spend()


def no_answer(failed: Failed, endpoint: str) -> Refusal:
    """What the client is told when there is no attempt left."""
    if failed is Failed.TIMEOUT:
        return Refusal(504, "endpoint_timeout", f"Endpoint {endpoint} did not answer in time.")
    words = {
        Failed.CONNECT: "is not reached",
        Failed.GARBAGE: "did not answer in HTTP",
        Failed.STATUS: "answered that it cannot serve now",
        Failed.FAULT: "gave an answer that the balancer failed at; its log says why",
    }.get(failed, "closed the connection without an answer")
    return Refusal(502, "endpoint_failed", f"Endpoint {endpoint} {words}.", retry_after=1.0)
