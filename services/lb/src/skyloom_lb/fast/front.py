"""One client connection: whole ordinary requests become exchanges, one after the other; everything else is handed over.

A request that has no single reading gets 400 and a closed connection. Reading is never paused while an exchange runs, because
that would hide that the client has gone; a client that sends far ahead is cut off after its answer instead.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from skyloom_lb.exchange import Refusal, with_retry_after
from skyloom_lb.fast.entry import Entry
from skyloom_lb.fast.relay import Exchange
from skyloom_lb.fast.turn import BIG, Connection
from skyloom_lb.wire.head import Memory
from skyloom_lb.wire.headers import MAX_HEAD, BadMessage, check_partial
from skyloom_lb.wire.request import RequestHead, read_request
from skyloom_lb.wire.response import own_answer

if TYPE_CHECKING:
    from skyloom_lb.balancer import Balancer

_AHEAD = 256 * 1024
"""Bytes of later requests that are kept while one is served."""


def plain_address(address: str) -> str:
    """An IPv4 client of an IPv6 listener is an IPv4 client."""
    return address.removeprefix("::ffff:") if "." in address else address


class FrontConnection(Connection):
    __slots__ = (
        "_buffer", "_forward_host", "_forwarded", "_memory", "_need", "_parts", "_pending", "_progress", "balancer", "closing",
        "exchange", "peer", "since", "write_paused",
    )  # fmt: skip

    def __init__(self, balancer: Balancer) -> None:
        self.balancer = balancer
        self.unread = self.unsent = b""
        self.exchange: Exchange | None = None
        self.peer = ""
        self.closing = False
        """The answer being given is the last one on this connection."""
        self.write_paused = False
        self.since = time.monotonic()
        """When this connection began to wait for what it waits for now."""
        self._buffer = b""
        self._parts: list[bytes] = []
        self._need = 0
        self._memory: Memory[RequestHead] = Memory()
        self._pending: RequestHead | None = None
        self._forwarded = b""
        self._forward_host: bytes | None = b""
        self._progress = (0, 0.0)

    # --- the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        peer = transport.get_extra_info("peername")
        self.peer = plain_address(peer[0]) if isinstance(peer, tuple) else "unix"
        if not self.balancer.welcome(self):
            refusal = Refusal(503, "too_many_connections", "The balancer has no room for another connection.")
            self._refuse(refusal)

    def connection_lost(self, error: Exception | None) -> None:
        self.balancer.fronts.discard(self)
        self.unread = b""
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.cancel("ClientDisconnected")

    def pause_writing(self) -> None:
        self.write_paused = True
        exchange = self.exchange
        if exchange is not None and exchange.upstream is not None:
            exchange.upstream.pause()

    def resume_writing(self) -> None:
        self.write_paused = False
        exchange = self.exchange
        if exchange is not None and exchange.upstream is not None:
            exchange.upstream.resume()
            exchange.last_read = time.monotonic()
        elif exchange is None and not self.closing:
            self.since = time.monotonic()
            self.transport.resume_reading()
            if self._buffer:
                asyncio.get_running_loop().call_soon(self._next)

    def stalled(self, seconds: float, now: float) -> bool:
        """Whether the client took nothing for so long; asked again and again while writing is paused."""
        size, since = self._progress
        left = self.transport.get_write_buffer_size()
        if left != size or not since:
            self._progress = (left, now)
            return False
        return now - since > seconds

    # --- requests

    def data_received(self, data: bytes) -> None:
        if self.unread:
            data, self.unread = self.unread + data, b""
        elif len(data) < BIG:
            self.unread = data
            return self.balancer.turn.read(self)
        return self.received(data)

    def received(self, data: bytes) -> None:
        if self.unsent:
            self.flush()  # the answer to the request before this one
        if self.exchange is not None:
            return self._ahead(data)
        if self._pending is not None:
            return self._more_body(data)
        if self.closing:
            return None  # it was told so
        if self._buffer:
            data = self._buffer + data
        if data[:2] == b"\r\n":  # one empty line before a request is allowed
            data = data[2:]
        return self._begin(data)

    def _begin(self, data: bytes) -> None:
        end = data.find(b"\r\n\r\n") + 4
        try:
            if end < 4 or end > MAX_HEAD:
                return self._incomplete(data)
            head, length = read_request(data[:end], self._memory)
        except BadMessage as bad:
            return self._refuse(
                Refusal(400, "bad_request", f"This is not a request that can be served: {bad.reason}.")
            )
        self._buffer = b""
        if head.odd or length > self.balancer.settings.fast_body:
            return self._hand_over(data)
        total = end + length
        if len(data) < total:
            stranger = self.balancer.front.authenticate(head, self.peer)
            if isinstance(stranger, Refusal):  # nobody's memory is for strangers
                return self._refuse(stranger)
            self._pending, self._parts, self._need = head, [data[end:]], total - len(data)
            self.since = time.monotonic()
            return None
        if len(data) > total:
            self._buffer = data[total:]
        return self._serve(head, data[end:total])

    def _incomplete(self, data: bytes) -> None:
        """Garbage is refused before its line ends; the rest waits for more."""
        check_partial(data[: MAX_HEAD + 1])
        if data and not data[:1].isalpha():
            raise BadMessage("it does not look like HTTP")
        if not self._buffer:
            self.since = time.monotonic()
        self._buffer = data

    def _more_body(self, data: bytes) -> None:
        self._parts.append(data)
        self._need -= len(data)
        self.since = time.monotonic()
        if self._need > 0:
            return
        head, self._pending = self._pending, None
        body = b"".join(self._parts)
        self._parts = []
        assert head is not None
        if self._need < 0:
            body, self._buffer = body[: self._need], body[self._need :]
        self._serve(head, body)

    def _serve(self, head: RequestHead, body: bytes) -> None:
        self.closing = head.close or self.balancer.draining
        exchange = Exchange(self.balancer, self, head, body)
        self.exchange = exchange
        self.balancer.exchanges.add(exchange)
        exchange.start()

    def _ahead(self, data: bytes) -> None:
        """A request sent before the answer to the one before it."""
        self._buffer += data
        if len(self._buffer) > _AHEAD:
            self.closing = True
            self._buffer = b""

    def _refuse(self, refusal: Refusal) -> None:
        """A request without a reading, or no room: said once, then the connection is closed."""
        content_type, body = self.balancer.front.render(refusal)
        self.balancer.refused_early(refusal.code)
        self.closing = True
        self._pending, self._parts, self._buffer = None, [], b""
        headers = with_retry_after(refusal)
        self.transport.write(own_answer(refusal.status, content_type, body, headers=headers, close=True))
        self.balancer.close_gently(self.transport)

    def _hand_over(self, data: bytes) -> None:
        """To the careful lane, with everything read so far; this object is done with the connection."""
        self.balancer.fronts.discard(self)
        self.balancer.careful.take(self.transport, data, self.peer, self.write_paused)

    # --- what the exchange asks

    @property
    def busy(self) -> bool:
        """Without an exchange too: a request is half here, or an answer has not all left."""
        return self.receiving or self.transport.get_write_buffer_size() > 0

    @property
    def receiving(self) -> bool:
        """A request is half here."""
        return self._pending is not None or bool(self._buffer or self.unread)

    def forwarded(self, head: RequestHead) -> bytes:
        """The lines that tell the endpoint who asked; made anew only when the host or an incoming line is another."""
        if head.forwarded or head.host != self._forward_host:
            lines = self.balancer.forwarded_lines(self.peer, self.transport, head)
            if head.forwarded:
                return lines
            self._forwarded, self._forward_host = lines, head.host
        return self._forwarded

    @property
    def takes_chunks(self) -> bool:
        """As they come."""
        return True

    def write(self, data: bytes) -> None:
        if data and not self.transport.is_closing():
            self.transport.write(data)

    def write_last(self, data: bytes) -> None:
        """The end of an answer, after which the connection waits for another request, or is closed."""
        if self.closing or self.balancer.draining:
            self.write(data)
        elif data and not self.transport.is_closing():
            self.balancer.turn.write(self, data)

    def close_broken(self) -> None:
        """The answer cannot be finished: its framing must not look finished either."""
        self.closing = True
        self.transport.close()

    def done(self, exchange: Entry) -> None:
        """The exchange is over: the next request, if one is here, or an end."""
        self.exchange = None
        self.balancer.exchanges.discard(exchange)
        self.since = exchange.ended
        self._progress = (0, 0.0)
        if self.transport.is_closing():
            return
        if self.closing or self.balancer.draining:
            self.transport.close()
        elif self.write_paused:
            self.transport.pause_reading()  # it takes what it asked for before it asks for more
        elif self._buffer:
            # A turn of the loop between pipelined requests: thousands in one read must not nest, nor starve others.
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        if self.exchange is None and self._buffer and not self.transport.is_closing():
            data, self._buffer = self._buffer, b""
            self.received(data)

    def check(self, now: float) -> None:
        """Asked by the sweep: idle for too long, or a request that does not come to its end."""
        if self.exchange is not None or self.unread:
            return
        settings = self.balancer.settings
        if self.write_paused or self.transport.is_closing():
            if self.transport.get_write_buffer_size() and self.stalled(settings.body_seconds, now):
                self.transport.abort()
            return
        waited = now - self.since
        if self._pending is not None:
            if waited > settings.body_seconds:
                self._refuse(Refusal(408, "request_timeout", "The request's body did not come."))
        elif self._buffer:
            if waited > settings.header_seconds:
                self._refuse(Refusal(408, "request_timeout", "The request's head did not come."))
        elif waited > settings.keep_alive_seconds:
            self.transport.close()
