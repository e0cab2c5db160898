"""Attempts of one request: an endpoint is picked, a connection taken or made, the request sent; when that fails, what next.

Retries end with the first byte given to the client; see `retries` for what may be sent again. A hedge is a second attempt
beside a slow first one: whichever answers first is the attempt, the other one is dropped.
"""

from __future__ import annotations

import errno
import time
from abc import abstractmethod
from typing import TYPE_CHECKING

from skyloom_lb.exchange import Refusal, Resume, Route
from skyloom_lb.fast.entry import ANSWERING, CONNECTING, WAITING, Entry
from skyloom_lb.retries import Failed, may_retry, no_answer
from skyloom_lb.wire.headers import MAX_HEAD
from skyloom_lb.wire.request import RequestHead
from skyloom_lb.wire.response import ResponseHead

if TYPE_CHECKING:
    from skyloom_lb.balancer import Balancer
    from skyloom_lb.fast.front import FrontConnection
    from skyloom_lb.fast.upstream import Pool, Upstream
    from skyloom_lb.service import Backend

OURS = frozenset((errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM))
NO_SOCKETS = Refusal(503, "out_of_sockets", "The balancer has no more connections to give.", retry_after=1.0)
_STALE_WITHIN = 1.0
"""Seconds: a kept-alive connection that ends later than this after the request was sent died of something else."""
_STALE_AT_ONCE = 0.1
"""The same for a request that must not be served twice: an endpoint that closes an idle connection does not take longer."""


_AGAIN = b"%bcontent-length: %d\r\nx-request-id: %b\r\n\r\n%b"
_HTTP = b"HTTP/1."
_INTERIM = b"HTTP/1.1 1"
_STATUS_LINE = len(b"HTTP/1.1 200")


def _final(data: bytes) -> bytes:
    """Without the interim answers before the final one."""
    while data.startswith(_INTERIM) and (end := data.find(b"\r\n\r\n")) >= 0:
        data = data[end + 4 :]
    return data


def _is_open(data: bytes) -> bool:
    """Whether it is too early to say what the final answer is."""
    begins = len(data) < _STATUS_LINE and _HTTP.startswith(data[: len(_HTTP)])
    return begins or (data.startswith(_INTERIM) and len(data) <= MAX_HEAD)


class Attempts(Entry):
    """`hedge_said`: the hedge has, and it is not enough to know whether it has won. `failure`: what the last failed attempt would
    be called, when nobody is left to try."""

    __slots__ = (
        "backend", "buffer", "failure", "hedge", "hedge_said", "response", "resume", "tried", "upstream",
    )  # fmt: skip

    route: Route
    backend: Backend

    def __init__(self, balancer: Balancer, client: FrontConnection, head: RequestHead, body: bytes) -> None:
        Entry.__init__(self, balancer, client, head, body)
        self.upstream: Upstream | None = None
        self.hedge: Upstream | None = None
        self.response: ResponseHead | None = None
        self.resume: Resume | None = None
        self.tried: tuple[str, ...] = ()
        self.hedge_said = b""
        self.failure: Refusal | None = None
        self.buffer = b""

    @abstractmethod
    def answer(self, upstream: Upstream, data: bytes) -> None: ...

    @abstractmethod
    def broken(self, reason: str) -> None:
        """The client's answer has begun and cannot go on from here."""

    @abstractmethod
    def end_of_answer(self) -> None:
        """The end of the connection is the end of the answer."""

    def attempt(self) -> None:
        backend = self.service.pick(self.route.facts, self.tried)
        if backend is None:
            nobody = Refusal(503, "no_endpoint", self.service.why_none(), retry_after=1.0)
            return self.give_up(self.failure or nobody)
        if not self.retries:  # a retry earns no other one
            self.service.budget.earn()
        return self.go_to(backend)

    def go_to(self, backend: Backend, fresh: bool = False) -> None:
        """`fresh`: not on a kept-alive connection."""
        self.service.started(backend)
        self.backend = backend
        self.endpoint = backend.id
        pool: Pool = backend.pool  # type: ignore[assignment]
        upstream = None if fresh else pool.take()
        if upstream is not None:
            backend.stats.reused += 1
            self._send(upstream)
        else:
            self.phase = CONNECTING
            self.phase_since = time.monotonic()
            self.pending = pool.connect(self)

    def connected(self, upstream: Upstream) -> None:
        self.pending = None
        self._send(upstream)

    def _send(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.phase = WAITING
        self.buffer = b""
        upstream.send(self, self.payload(self.backend))
        self.phase_since = upstream.sent_at

    def payload(self, backend: Backend) -> bytes:
        """The request as it goes to the endpoint: raw lines, less those that end here, with ours added."""
        head, route, resume = self.head, self.route, self.resume
        known = head.start
        if known is not None and known[0] is route and known[1] == backend.address.prefix and resume is None:
            return _AGAIN % (known[2], len(self.body), self.request_id, self.body)
        drop, add = route.drop, route.add
        target = route.target or head.target
        body = self.body if route.body is None else route.body
        if resume is not None:
            drop, add, body = drop + resume.drop, add + resume.add, resume.body
            target = resume.target or target
        if head.length_name or body is not self.body:
            add = b"%bcontent-length: %d\r\n" % (add, len(body))
        if not head.request_id:
            add = b"%bx-request-id: %b\r\n" % (add, self.request_id)
        forwarded = b"" if route.external else self.client.forwarded(head)
        prefix = backend.address.prefix if target.startswith(b"/") else b""  # OPTIONS * is about the server
        parts = (head.method, b" ", prefix, target, b" HTTP/1.1", head.onward(drop), forwarded)
        if route.usual and head.length_name and not head.request_id:
            head.start = (route, prefix, b"".join((*parts, route.add)))
        return b"".join((*parts, add, b"\r\n", body))  # joining takes half as long as formatting

    # --- what goes wrong before the first byte

    def connect_failed(self, error: OSError | UnicodeError) -> None:
        self.pending = None
        if isinstance(error, OSError) and error.errno in OURS:
            self.service.abandoned(self.backend)
            self.phase = WAITING
            self.give_up(NO_SOCKETS)
        else:
            self.attempt_failed(Failed.CONNECT)

    def upstream_lost(self, upstream: Upstream, error: Exception | None) -> None:
        if upstream is self.hedge:
            self.hedge = None
            backend = upstream.pool.backend
            if self._is_stale(upstream):
                backend.stats.stale += 1
                self.service.abandoned(backend)
            else:
                now = time.monotonic()
                self.service.failed(backend, Failed.NO_ANSWER.value, now, now - upstream.sent_at)
        elif self.phase == WAITING:
            stale = not self.buffer and self._is_stale(upstream)
            self.attempt_failed(Failed.STALE if stale else Failed.NO_ANSWER)
        elif self.phase == ANSWERING and self.response is not None:
            if self.response.until_close and error is None:
                self.end_of_answer()
            else:
                self.broken("EndpointDied")

    def _is_stale(self, upstream: Upstream) -> bool:
        within = _STALE_WITHIN if self.route.may_replay(self.head) else _STALE_AT_ONCE
        return upstream.used and time.monotonic() - upstream.sent_at < within

    def attempt_failed(self, failed: Failed) -> None:
        """No byte of this attempt has reached the client."""
        backend = self.backend
        upstream, self.upstream = self.upstream, None
        self.phase = WAITING
        if upstream is not None:
            upstream.close()
        if failed is Failed.STALE:
            backend.stats.stale += 1
            self.service.abandoned(backend)
            return self.go_to(backend, fresh=True) if self.hedge is None else self.take_hedge()
        now = time.monotonic()
        if failed is Failed.FAULT:
            self.service.abandoned(backend, now, now - self.phase_since)
        else:
            self.service.failed(backend, failed.value, now, now - self.phase_since)
        self.tried += (backend.id,)
        if self.hedge is not None:
            return self.take_hedge()
        if self.observer is not None:
            return self.broken(failed.value)
        self.failure = no_answer(failed, backend.id)
        if self.may_retry(failed):
            return self.again()
        self.service.stats.retries_denied += 1
        return self.give_up(self.failure)

    def may_retry(self, failed: Failed) -> bool:
        service = self.service
        most = service.settings.retries.attempts - 1
        return may_retry(failed, self.route.may_replay(self.head), self.retries, most, service.budget)

    def again(self) -> None:
        self.retries += 1
        self.service.stats.retries += 1
        self.attempt()

    def give_up(self, refusal: Refusal) -> None:
        """This service gave no answer: the fallback, or the refusal."""
        fallback = self.route.fallback
        if fallback is None or not self.route.goes_on(refusal):
            return self.refuse(refusal)
        self.tried, self.retries, self.failure = (), 0, None
        return self.use(fallback)

    def let_go(self) -> None:
        if self.phase == CONNECTING:
            now = time.monotonic()
            self.service.abandoned(self.backend, now, now - self.phase_since)
        if self.upstream is not None or self.hedge is not None:
            now = time.monotonic()
            for upstream in (self.upstream, self.hedge):
                if upstream is not None:
                    upstream.close()
                    waited = now - upstream.sent_at if self.phase == WAITING else 0.0
                    self.service.abandoned(upstream.pool.backend, now, waited)
            self.upstream = self.hedge = None

    # --- hedging

    def hedge_now(self) -> None:
        """A second attempt on a kept-alive connection of another endpoint, for a request that may be replayed."""
        if not self.route.may_replay(self.head):
            return
        other = self.service.pick(self.route.facts, (*self.tried, self.backend.id))
        if other is None:
            return
        pool: Pool = other.pool  # type: ignore[assignment]
        upstream = pool.take()
        if upstream is None:
            return
        if not self.service.budget.spend():
            pool.put(upstream)
            return
        self.service.started(other)
        self.service.stats.hedges += 1
        self.hedge, self.hedge_said = upstream, b""
        upstream.send(self, self.payload(other))

    def take_hedge(self) -> None:
        """The hedge is the attempt now; the first one has ended."""
        upstream, self.hedge = self.hedge, None
        assert upstream is not None
        self.upstream = upstream
        self.backend = upstream.pool.backend
        self.endpoint = self.backend.id
        self.phase = WAITING
        self.phase_since = upstream.sent_at
        self.buffer = self.hedge_said

    def hedge_answer(self, data: bytes, now: float) -> bytes:
        """What it says once it has won; nothing while that is not clear. One that says no must not end an attempt that may still
        answer, and is not asked again."""
        hedge = self.hedge
        assert hedge is not None
        hedge.used = False  # its end would not be that of an idle connection
        data = _final(self.hedge_said + data)
        if _is_open(data):
            self.hedge_said = data
            return b""
        status = int(data[9:12]) if data[9:12].isdigit() and data.startswith(_HTTP) else 502
        if status >= 500 or status in self.service.settings.retries.statuses:
            self.hedge = None
            hedge.close()
            self.tried += (hedge.pool.backend.id,)
            self.service.finished(hedge.pool.backend, status, now - hedge.sent_at, now)
            return b""
        first = self.upstream
        if first is not None:
            first.close()
            self.service.abandoned(first.pool.backend, now, now - first.sent_at)
        self.hedge_said = b""
        self.take_hedge()
        return data

    def drop_hedge(self) -> None:
        upstream, self.hedge = self.hedge, None
        if upstream is not None:
            upstream.close()
            now = time.monotonic()
            self.service.abandoned(upstream.pool.backend, now, now - upstream.sent_at)
