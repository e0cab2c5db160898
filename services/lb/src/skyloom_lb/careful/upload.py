"""One request of the careful lane: an exchange as in the fast lane, but its body may still be coming.

A body that is whole before an endpoint was found is sent like any other. Else it is streamed: once, over a connection of its
own, because a kept-alive one may turn out to be closed when it is too late; and the request is tried again only while
nothing of its body has left.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from skyloom_lb.careful.body import Body
from skyloom_lb.careful.feeder import Feeder
from skyloom_lb.exchange import Refusal, Reply, Route
from skyloom_lb.fast.entry import ANSWERING, WAITING
from skyloom_lb.fast.relay import Exchange
from skyloom_lb.retries import Failed
from skyloom_lb.wire.headers import BadMessage, as_written
from skyloom_lb.wire.request import RequestHead
from skyloom_lb.wire.response import ResponseHead

if TYPE_CHECKING:
    from skyloom_lb.balancer import Balancer
    from skyloom_lb.careful.connection import CarefulConnection
    from skyloom_lb.fast.upstream import Upstream
    from skyloom_lb.service import Backend

_HOLD = 256 * 1024
"""Bytes of a body that are kept while there is no endpoint to send them to."""
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_SILENCE = 1.0
"""Seconds an endpoint may take for its 100: then the client is told to send all the same."""


class CarefulExchange(Exchange):
    client: CarefulConnection

    def __init__(
        self, balancer: Balancer, client: CarefulConnection, head: RequestHead, upload: Body
    ) -> None:
        super().__init__(balancer, client, head, b"")
        _make_onward(head)
        self.lane = "careful"
        self.upload = upload
        self.whole = upload.over
        """All of the body is in `body`."""
        self.sent = False
        """Something of the body has left for an endpoint."""
        self.said = upload.over or head.version == "1.0" or not head.expect
        """The client does not wait to be told to send."""
        self.switched = False
        """No HTTP is spoken any more."""
        self._wanted = -1
        """How much of the body is read before the route is chosen; below 0 = not begun, or chosen."""
        self._parts: list[bytes] = []
        self._kept = 0
        self._feeder: Feeder | None = None
        self._full = False

    # --- the body comes in

    def start(self) -> None:
        front = self.balancer.front
        principal = front.authenticate(self.head, self.peer)
        if isinstance(principal, Refusal):
            return self.refuse(principal)
        self.principal = principal
        self._wanted = self.wanted()
        if self._wanted:
            self.say_continue()
        return self._choose()

    def wanted(self) -> int:
        """How much of the body the front looks at."""
        return self.balancer.front.body_wanted(self.head)

    def complete(self) -> bool:
        return self.upload.over

    def take(self, payload: bytes) -> None:
        """More of the body, or its end."""
        self.said = True
        self.bytes_in += len(payload)
        if self._feeder is not None:
            return self._feed(payload)
        if payload:
            self._parts.append(payload)
            self._kept += len(payload)
        if self._wanted >= 0:
            return self._choose()
        if self.route is not None and not self.sent:
            self._gather()
        if self._kept > _HOLD and not self.whole:
            self.client.hold()
        return None

    def _choose(self) -> None:
        """The route, once enough of the body is here."""
        if not self.upload.over and self._wanted and self._kept <= self._wanted:
            return None
        self._wanted = -1
        self._gather()
        assert self.principal is not None
        begun = self.body if self.whole else b"".join(self._parts)
        route = self.balancer.front.route(self.principal, self.head, begun, self.complete())
        if isinstance(route, Route):
            return self.use(route)
        return self.refuse(route) if isinstance(route, Refusal) else self.reply(route)

    def _gather(self) -> None:
        if self.upload.over and not self.whole:
            self.whole = True
            self.body, self._parts = b"".join(self._parts), []

    # --- and goes out

    def go_to(self, backend: Backend, fresh: bool = False) -> None:
        self._feeder = None
        super().go_to(backend, fresh or not self.whole)

    def payload(self, backend: Backend) -> bytes:
        head, route = self.head, self.route
        if self.resume is not None or route.body is not None or (self.whole and not self.upload.trailers):
            payload = super().payload(backend)
        else:
            lines = b"" if route.external else self.client.forwarded(head)
            lines += self.framing()
            if not head.request_id:
                lines += b"x-request-id: %b\r\n" % self.request_id
            body = self.upload.onward(self.body) + self.upload.end() if self.whole else b""
            payload = b"%b %b%b HTTP/1.1%b%b%b\r\n%b" % (
                head.method, backend.address.prefix, route.target or head.target, head.onward(route.drop),
                lines, route.add, body,
            )  # fmt: skip
        if head.host is None:  # HTTP/1.0 knows none, HTTP/1.1 needs one
            payload = payload.replace(b" HTTP/1.1\r\n", b" HTTP/1.1\r\nhost: %b\r\n" % _authority(backend), 1)
        return payload

    def framing(self) -> bytes:
        length = self.head.length
        line = b"transfer-encoding: chunked\r\n" if length is None else b"content-length: %d\r\n" % length
        return line if self.said else line + b"expect: 100-continue\r\n"

    def connected(self, upstream: Upstream) -> None:
        super().connected(upstream)
        if not self.whole and self.resume is None and self.upstream is upstream:
            self.feed_from(upstream)

    def feed_from(self, upstream: Upstream) -> None:
        """From here on the body goes to this endpoint as it comes, beginning with what was kept."""
        self._feeder = Feeder(upstream, self)
        parts, self._parts, self._kept = b"".join(self._parts), [], 0
        if parts or self.upload.over:
            self._feed(parts)
        if not self._full:
            self.client.flow()

    def _feed(self, payload: bytes) -> None:
        if self.upstream is None or self._feeder is None:
            return
        self.sent = True
        over = self.upload.over
        self.upstream.transport.write(self.upload.onward(payload) + (self.upload.end() if over else b""))
        if over:
            self._feeder.leave()
            self._feeder, self._full = None, False
            self.phase_since = time.monotonic()
            self.client.flow()

    def slow_down(self) -> None:
        self._full = True
        if self._feeder is not None:
            self.client.hold()

    def go_on(self) -> None:
        self._full = False
        self.client.flow()

    # --- Expect: 100-continue is for the endpoint to answer; where the balancer wants the body itself, it answers

    def say_continue(self) -> None:
        if not self.said and self.phase != ANSWERING and not self.committed:
            self.said = True
            self.client.write(_CONTINUE)
            self.client.since = time.monotonic()

    def answer(self, upstream: Upstream, data: bytes) -> None:
        if not self.said and self.phase == WAITING and data.startswith(b"HTTP/1.1 100"):
            self.say_continue()
        super().answer(upstream, data)

    # --- what is other when the body is not whole

    def waits_for_client(self) -> bool:
        """Nothing goes on before the client sends more."""
        return self.said and not self.upload.over and self.phase != ANSWERING

    def _frame(self, response: ResponseHead, length: int | None) -> None:
        super()._frame(response, length)
        if not self.upload.over:  # the answer came first: nobody can tell where the next request begins
            self.reusable = False
            self.client.closing = True

    def may_retry(self, failed: Failed) -> bool:
        return not self.sent and super().may_retry(failed)

    def _elsewhere(self, response: ResponseHead) -> bool:
        return not self.sent and super()._elsewhere(response)

    def give_up(self, refusal: Refusal) -> None:
        if self.sent:
            self.refuse(refusal)
        else:
            super().give_up(refusal)

    def hedge_now(self) -> None:
        if self.whole:
            super().hedge_now()

    def let_go(self) -> None:
        super().let_go()
        self._parts, self._feeder = [], None

    def reply(self, reply: Reply) -> None:
        if not self.upload.over:
            self.client.closing = True
        super().reply(reply)

    def fail(self, reason: str, refusal: Refusal) -> None:
        """By the client's doing: its body is not what it said, or does not come."""
        self.error = reason
        if self.phase == ANSWERING or self.committed:
            self.client.close_broken()
            self.cancel(reason)
        else:
            self.refuse(refusal)

    def check(self, now: float) -> None:
        if self.route is None:
            return
        if self._feeder is not None and not self._full:
            self._excuse(now)
        super().check(now)

    def _silent(self, idle: float, now: float) -> None:
        if not self.upload.over and now - self.client.since > idle:  # the endpoint waits for it too
            self.client.close_broken()
            self.cancel("ClientStalled")
        else:
            super()._silent(idle, now)

    def _excuse(self, now: float) -> None:
        """The endpoint owes nothing while it is the client that is waited for."""
        if self.phase == ANSWERING:
            self.last_read = max(self.last_read, self.client.since)
        elif self.said:
            self.phase_since = now
        elif self.upstream is not None and now - self.upstream.sent_at > _SILENCE:
            self.say_continue()


def _make_onward(head: RequestHead) -> None:
    """As the endpoint is to see it: without what `Connection` names, and in origin form."""
    if head.named or head.expect:
        head.drop += as_written(head.block, (*head.named, b"expect"))
    if head.transfer_encoding is not None:
        head.length_name = b"content-length"  # once it is whole it has one
    if not head.target.startswith(b"/") and head.target != b"*":
        head.target = _origin_form(head.target, head.host)


def _origin_form(target: bytes, host: bytes | None) -> bytes:
    try:
        parts = urlsplit(target)
    except ValueError:
        raise BadMessage("the request target is not a path") from None
    if parts.scheme not in (b"http", b"https") or parts.netloc.lower() != (host or b"").lower():
        raise BadMessage("the request target's host is not that of the Host header")
    return (parts.path or b"/") + (b"?" + parts.query if parts.query else b"")


def _authority(backend: Backend) -> bytes:
    address = backend.address
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"{host}:{address.port}".encode()
