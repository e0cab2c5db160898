"""Connections to one endpoint: kept alive, last used first. A connection serves one exchange at a time and guesses nothing.

Bytes or an end on an idle connection close it; so does everything that leaves doubt about where the next answer begins.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from typing import TYPE_CHECKING, Protocol

from skyloom_lb.fast.turn import BIG, Connection, Turn
from skyloom_lb.wire.head import Memory
from skyloom_lb.wire.response import ResponseHead

if TYPE_CHECKING:
    from skyloom_lb.fast.flow import Flow
    from skyloom_lb.service import Backend

MAX_IDLE = 1024
IDLE_SECONDS = 60.0


class User(Protocol):
    """Who a connection works for: one exchange."""

    def connected(self, upstream: Upstream) -> None: ...

    def connect_failed(self, error: OSError | UnicodeError) -> None:
        """`UnicodeError`: a host that is no name."""

    def answer(self, upstream: Upstream, data: bytes) -> None: ...

    def upstream_lost(self, upstream: Upstream, error: Exception | None) -> None: ...


class Upstream(Connection):
    __slots__ = ("exchange", "flow", "idle_since", "paused", "pool", "sent_at", "used")

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.unread = self.unsent = b""
        self.exchange: User | None = None
        self.flow: Flow | None = None
        """What passes the events of its stream on that need no look."""
        self.used = False
        """An exchange was completed on it: an end before the next answer may be the keep-alive's end."""
        self.paused = False
        self.sent_at = 0.0
        self.idle_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def send(self, exchange: User, payload: bytes) -> None:
        self.exchange = exchange
        self.sent_at = time.monotonic()
        self.pool.turn.write(self, payload)

    def data_received(self, data: bytes) -> None:
        flow = self.flow
        if flow is not None:  # then nothing is unread
            passed = flow.passes(data)
            if passed < len(data):
                self.received(data[passed:])
        elif self.unread:
            data, self.unread = self.unread + data, b""
            self.received(data)
        elif self.exchange is not None and len(data) < BIG:
            # An idle one is looked at at once: by the end of the turn it may have a user, and this is not the answer to it.
            self.unread = data
            self.pool.turn.read(self)
        else:
            self.received(data)

    def received(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is None:
            self.close()
        else:
            exchange.answer(self, data)

    def connection_lost(self, error: Exception | None) -> None:
        self.look()
        exchange, self.exchange, self.flow = self.exchange, None, None
        if exchange is not None:
            exchange.upstream_lost(self, error)
        else:
            self.pool.forget(self)

    def pause(self) -> None:
        if not self.paused:
            self.paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        if self.paused:
            self.paused = False
            self.transport.resume_reading()

    def close(self) -> None:
        """At once: what the endpoint still wants to say is for nobody."""
        self.exchange = self.flow = None
        self.transport.abort()

    def release(self, reusable: bool, now: float) -> None:
        """Back to the pool when the answer ended cleanly and our own request has left."""
        self.exchange = self.flow = None
        if self.paused:
            self.resume()  # it would never notice its end
        if reusable and not self.transport.is_closing() and not self.transport.get_write_buffer_size():
            self.used = True
            self.idle_since = now
            self.pool.put(self)
        else:
            self.transport.abort()


class Pool:
    def __init__(self, backend: Backend, tls: ssl.SSLContext | None, turn: Turn) -> None:
        self.backend = backend
        self.turn = turn
        self.heads: Memory[ResponseHead] = Memory()
        self._tls = tls
        self._idle: list[Upstream] = []

    def take(self) -> Upstream | None:
        while self._idle:
            upstream = self._idle.pop()
            if not upstream.transport.is_closing():
                return upstream
        return None

    def put(self, upstream: Upstream) -> None:
        if self.backend.state == "draining" or len(self._idle) >= MAX_IDLE:
            upstream.transport.abort()
            return
        self._idle.append(upstream)

    def forget(self, upstream: Upstream) -> None:
        if upstream in self._idle:
            self._idle.remove(upstream)

    def connect(self, exchange: User) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(self._connect(exchange))

    async def _connect(self, exchange: User) -> None:
        address = self.backend.address
        loop = asyncio.get_running_loop()
        try:
            _, upstream = await loop.create_connection(
                lambda: Upstream(self),
                address.host,
                address.port,
                ssl=self._tls,
                server_hostname=address.host if self._tls else None,
            )
        except (OSError, UnicodeError) as error:
            exchange.connect_failed(error)
        else:
            exchange.connected(upstream)

    def close_old(self, now: float) -> None:
        """The oldest are at the front, because the last used is taken first."""
        while self._idle and now - self._idle[0].idle_since > IDLE_SECONDS:
            self._idle.pop(0).transport.abort()

    def close_idle(self) -> None:
        for upstream in self._idle:
            upstream.transport.abort()
        self._idle.clear()

    def idle_count(self) -> int:
        return len(self._idle)
