"""A client connection in the careful lane: a request whose body is streamed, an upgrade, or what else is odd.

Ordinary requests that follow on it are served as in the fast lane, which this is built on. Reading is paused while neither
an endpoint nor the memory kept for it takes more; that hides the client's end, so the sweep looks for it.
"""

from __future__ import annotations

import asyncio
import select
import socket
import struct
import time
from typing import TYPE_CHECKING

from skyloom_lb.careful.body import Body
from skyloom_lb.careful.old import Plain
from skyloom_lb.careful.upgrade import Endless, Upgrade, is_upgrade
from skyloom_lb.careful.upload import CarefulExchange
from skyloom_lb.exchange import Refusal
from skyloom_lb.fast.entry import Entry
from skyloom_lb.fast.front import FrontConnection
from skyloom_lb.wire.headers import BadMessage
from skyloom_lb.wire.request import RequestHead

if TYPE_CHECKING:
    from skyloom_lb.balancer import Balancer

_STALLED = Refusal(408, "request_timeout", "The request's body did not come.")
_NO_TUNNEL = Refusal(
    405, "method_not_allowed", "CONNECT is not served here.", headers=((b"allow", b"GET, HEAD, POST"),)
)
_EXPECTATION = Refusal(
    417, "expectation_failed", "Of the header Expect only 100-continue is understood here."
)
_RESET = struct.pack("ii", 1, 0)
"""Linger no second."""
_HANG_UP = getattr(select, "POLLRDHUP", 0)


class CarefulConnection(FrontConnection):
    __slots__ = ("_body", "_held", "_plain")

    def __init__(
        self, balancer: Balancer, transport: asyncio.Transport, peer: str, write_paused: bool
    ) -> None:
        super().__init__(balancer)
        self.transport = transport
        self.peer = peer
        self.write_paused = write_paused
        self._body: Body | None = None
        self._held = False
        self._plain: Plain | None = None

    @property
    def _receiving(self) -> bool:
        return self._body is not None and not self._body.over

    def serve(self, head: RequestHead, data: bytes) -> None:
        """`data`: what was read after the head."""
        if head.method == b"CONNECT":
            return self._refuse(_NO_TUNNEL)
        if head.expect not in (b"", b"100-continue"):
            return self._refuse(_EXPECTATION)
        self.closing = head.close or head.version == "1.0" or self.balancer.draining
        self._plain = Plain() if head.version == "1.0" else None
        make, self._body = (Upgrade, Endless(head)) if is_upgrade(head) else (CarefulExchange, Body(head))
        try:
            exchange = make(self.balancer, self, head, self._body)
        except BadMessage as bad:
            words = f"This is not a request that can be served: {bad.reason}."
            return self._refuse(Refusal(400, "bad_request", words))
        self.exchange = exchange
        self.balancer.exchanges.add(exchange)
        self._receive(exchange, data)
        if self.exchange is exchange:
            exchange.start()
        return None

    def data_received(self, data: bytes) -> None:
        if not self._receiving:
            self.received(data)
        elif isinstance(self.exchange, CarefulExchange):
            self.since = time.monotonic()
            self._receive(self.exchange, data)
        # else it was answered before its body was read, and the connection is closed

    def _receive(self, exchange: CarefulExchange, data: bytes) -> None:
        assert self._body is not None
        try:
            payload, rest = self._body.feed(data)
        except BadMessage as bad:
            words = f"The request's body did not come as announced: {bad.reason}."
            return exchange.fail("BadBody", Refusal(400, "bad_body", words))
        self._buffer += rest
        if data:
            exchange.take(payload)
        return None

    @property
    def takes_chunks(self) -> bool:
        return self._plain is None

    def write(self, data: bytes) -> None:
        super().write(data if self._plain is None else self._plain.feed(data))

    def close_broken(self) -> None:
        if (
            self._plain is not None
        ):  # its answer ends with the connection: only a reset says that this is not the end
            connection = self.transport.get_extra_info("socket")
            if connection is not None:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        super().close_broken()

    def hold(self) -> None:
        if not self._held:
            self._held = True
            self.transport.pause_reading()

    def flow(self) -> None:
        if self._held:
            self._held = False
            self.since = time.monotonic()
            self.transport.resume_reading()

    def done(self, exchange: Entry) -> None:
        self.flow()
        if not self._receiving:
            return super().done(exchange)
        self.exchange = None
        self.balancer.exchanges.discard(exchange)
        self.closing = True
        if self.transport.get_write_buffer_size():
            self.transport.close()
        elif not self.transport.is_closing():
            self.balancer.close_gently(self.transport)
        return None

    def check(self, now: float) -> None:
        exchange = self.exchange
        if not self._receiving or not isinstance(exchange, CarefulExchange):
            super().check(now)
        elif self._held:
            if not exchange.switched and _hung_up(self.transport):
                self.transport.abort()
        elif exchange.waits_for_client() and now - self.since > self.balancer.settings.body_seconds:
            exchange.fail("ClientStalled", _STALLED)


def _hung_up(transport: asyncio.Transport) -> bool:
    """Whether the other side has ended a connection that nobody reads from now."""
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), _HANG_UP)
    return bool(poll.poll(0))
