"""A request for another protocol (WebSocket and the like): the endpoint decides. Once it has switched, bytes go both ways untouched.

Until then, and when it declines, this is a request like any other: what the client sent after its head goes nowhere, because an
endpoint would read it as requests that nobody has checked. The permit is held as long as the connection lasts.
"""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

from skyloom_lb.careful.body import Body
from skyloom_lb.careful.upload import CarefulExchange
from skyloom_lb.fast.entry import ANSWERING, WAITING
from skyloom_lb.retries import Failed
from skyloom_lb.wire.headers import HOP_BY_HOP, BadMessage, as_written, tokens, without
from skyloom_lb.wire.request import RequestHead
from skyloom_lb.wire.response import parse_response

if TYPE_CHECKING:
    from skyloom_lb.balancer import Balancer
    from skyloom_lb.careful.connection import CarefulConnection
    from skyloom_lb.fast.upstream import Upstream

_NOT_BACK = (HOP_BY_HOP - {b"connection", b"upgrade"}) | {b"x-request-id"}


def is_upgrade(head: RequestHead) -> bool:
    """Not for one with a body, and not to HTTP/2: its requests would pass unseen. Without its hop-by-hop headers, that is an
    ordinary request."""
    return (
        head.version == "1.1"
        and head.upgrade != b""
        and b"upgrade" in head.named
        and not head.length
        and head.transfer_encoding is None
        and b"h2c" not in tokens(head.upgrade)
    )


class Endless(Body):
    """What the client sends from here on."""

    __slots__ = ()

    @property
    def over(self) -> bool:
        return False

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        return data, b""

    def onward(self, payload: bytes) -> bytes:
        return payload


class Upgrade(CarefulExchange):
    def __init__(
        self, balancer: Balancer, client: CarefulConnection, head: RequestHead, upload: Body
    ) -> None:
        super().__init__(balancer, client, head, upload)
        self.lane = "tunnel"
        self.said = True

    def wanted(self) -> int:
        return 0

    def complete(self) -> bool:
        return True

    def framing(self) -> bytes:
        return b"connection: Upgrade\r\nupgrade: %b\r\n" % self.head.upgrade

    def waits_for_client(self) -> bool:
        return False

    def feed_from(self, upstream: Upstream) -> None:
        """Not before it has switched."""

    # --- both ways

    def answer(self, upstream: Upstream, data: bytes) -> None:
        if self.switched:
            self.last_read = time.monotonic()
            self.bytes_out += len(data)
            return self.client.write(data)
        begun = self.buffer + data
        end = begun.find(b"\r\n\r\n") + 4
        if self.phase != WAITING or end < 4 or not begun.startswith(b"HTTP/1.1 1"):
            return super().answer(upstream, data)
        if begun.startswith(b"HTTP/1.1 101 "):
            return self._switch(upstream, begun[:end], begun[end:])
        super().answer(upstream, data[: end - len(self.buffer)])
        if len(begun) > end and self.upstream is upstream:
            self.answer(upstream, begun[end:])
        return None

    def _switch(self, upstream: Upstream, head: bytes, data: bytes) -> None:
        try:
            response = parse_response(head, self.head.method)
        except BadMessage:
            return self.attempt_failed(Failed.GARBAGE)
        self.switched = True
        self.phase = ANSWERING
        self.response = response
        self.status = 101
        self.first_byte = self.answered_at = self.last_read = time.monotonic()
        self.reusable = False
        named = [one for one in response.named if one != b"upgrade"]
        block = without(response.block, as_written(response.block, (*_NOT_BACK, *named)))
        self.client.write(b"%b%bx-request-id: %b\r\n\r\n%b" % (response.start, block, self.request_id, data))
        for transport in (
            self.client.transport,
            upstream.transport,
        ):  # nothing else ends one whose peer has vanished
            connection = transport.get_extra_info("socket")
            if connection is not None:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if self.client.write_paused:
            upstream.pause()
        return super().feed_from(upstream)

    # --- the end

    def take(self, payload: bytes) -> None:
        if self.switched:
            self.last_read = time.monotonic()
        super().take(payload)

    def check(self, now: float) -> None:
        if not self.switched:
            return super().check(now)
        silent = self.service.settings.timeouts.tunnel
        if silent and now - self.last_read > silent:
            self.client.close_broken()
            self.cancel("IdleTimeout")
        return None

    def upstream_lost(self, upstream: Upstream, error: Exception | None) -> None:
        if not self.switched:
            return super().upstream_lost(upstream, error)
        self._release()
        self.client.close_broken()
        return self.over()

    def cancel(self, reason: str) -> None:
        """The client's last words still go to the endpoint."""
        if self.switched and self.upstream is not None:
            upstream, self.upstream = self.upstream, None
            upstream.exchange = None
            upstream.transport.close()
            waited = self.answered_at - upstream.sent_at
            self.service.finished(self.backend, self.status, waited, time.monotonic())
            reason = "" if reason == "ClientDisconnected" else reason
        super().cancel(reason)
