"""The beginning and the end of a fast-lane request: who asks, where it goes, whether now; refusals and own answers; held streams.

Every request passes `start` once and `over` once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable
from typing import TYPE_CHECKING

from skyloom_lb.exchange import FREE, Outcome, Permit, Refusal, Reply, Route, with_retry_after
from skyloom_lb.wire.chunks import LAST_CHUNK, chunk
from skyloom_lb.wire.request import RequestHead
from skyloom_lb.wire.response import own_answer

if TYPE_CHECKING:
    from skyloom_lb.balancer import Balancer
    from skyloom_lb.fast.front import FrontConnection
    from skyloom_lb.service import Service

ADMITTING, CONNECTING, WAITING, ANSWERING, OVER = range(5)
BROKEN = Refusal(500, "internal_error", "The balancer failed at this request; its log says why.")
_log = logging.getLogger(__name__)


class Entry(Outcome, ABC):
    __slots__ = (
        "balancer", "client", "committed", "pending", "permit", "phase", "phase_since", "service",
    )  # fmt: skip

    head: RequestHead
    service: Service

    def __init__(self, balancer: Balancer, client: FrontConnection, head: RequestHead, body: bytes) -> None:
        now = time.monotonic()
        # Here and in what is made of it without `super()`, which makes an object for each call.
        request_id = head.request_id or balancer.new_request_id()
        Outcome.__init__(self, now, head, client.peer, request_id, "fast")
        self.balancer = balancer
        self.client = client
        self.body = body
        self.bytes_in = len(body)
        self.phase = ADMITTING
        self.phase_since = now
        self.permit: Permit = FREE
        self.pending: asyncio.Task[None] | None = None
        self.committed = False

    @abstractmethod
    def attempt(self) -> None: ...

    @abstractmethod
    def check(self, now: float) -> None:
        """Asked by the sweep: time-outs."""

    @abstractmethod
    def let_go(self) -> None:
        """Every endpoint still working for this request stops."""

    def start(self) -> None:
        front = self.balancer.front
        principal = front.authenticate(self.head, self.peer)
        if isinstance(principal, Refusal):
            return self.refuse(principal)
        self.principal = principal
        route = front.route(principal, self.head, self.body, True)
        if isinstance(route, Route):
            return self.use(route)
        return self.refuse(route) if isinstance(route, Refusal) else self.reply(route)

    def use(self, route: Route) -> None:
        """Also for a fallback: the permit of the route before is given back first."""
        if self.route is not None:
            self._give_back_permit()
        self.route = route
        self.service = route.service
        self.service.active += 1
        assert self.principal is not None
        permit = self.balancer.front.admit(self.principal, route, self)
        if permit is FREE:
            self.attempt()
        elif isinstance(permit, Refusal):
            self.not_admitted(permit)
        elif isinstance(permit, Awaitable):
            self.phase = ADMITTING
            self.service.waiting += 1
            self.pending = asyncio.get_running_loop().create_task(self._wait_for(permit, self.service))
        else:
            self.permit = permit
            self.attempt()

    async def _wait_for(self, permit: Awaitable[Permit | Refusal], service: Service) -> None:
        try:
            answer = await permit
        except asyncio.CancelledError:
            # Granted and cancelled in one turn of the loop: the place must not be lost.
            if isinstance(permit, asyncio.Future) and permit.done() and not permit.cancelled():
                given = permit.result()
                if not isinstance(given, Refusal):
                    given.release(self)
            raise
        except Exception:
            _log.exception("admission failed")
            answer = BROKEN
        finally:
            service.waiting -= 1
        self.pending = None
        if isinstance(answer, Refusal):
            self.not_admitted(answer)
        else:
            self.permit = answer
            self.attempt()

    def not_admitted(self, refusal: Refusal) -> None:
        route = self.route
        if route is not None and route.goes_on(refusal) and route.fallback is not None:
            self.use(route.fallback)
        else:
            self.refuse(refusal)

    def _give_back_permit(self) -> None:
        if self.route is not None:
            self.service.active -= 1
            permit, self.permit = self.permit, FREE
            if permit is not FREE:
                try:
                    permit.release(self)
                except Exception:
                    _log.exception("a permit could not be given back")

    # --- own answers

    def refuse(self, refusal: Refusal) -> None:
        self.refused = refusal.code
        front = self.balancer.front
        if self.committed:
            self.client.write(chunk(front.stream_error(refusal, self.route)) + LAST_CHUNK)
            return self.over()
        content_type, body = front.render(refusal)
        return self.reply(Reply(refusal.status, body, content_type, with_retry_after(refusal)))

    def reply(self, reply: Reply) -> None:
        self.status = reply.status
        self.client.write(
            own_answer(
                reply.status,
                reply.content_type,
                reply.body,
                request_id=self.request_id,
                headers=reply.headers,
                close=self.client.closing,
                with_body=self.head.method != b"HEAD",
            )
        )
        self.over()

    def cancel(self, reason: str) -> None:
        """The client has gone, or we go: the endpoint stops working for nobody."""
        if self.phase == OVER:
            return
        self.error = reason
        self.over()

    def fault(self) -> None:
        """A fault of ours: the request must not stay for ever."""
        if self.phase != OVER:
            self.client.close_broken()
            self.cancel("InternalError")

    def over(self) -> None:
        """Exactly once, however it ended."""
        if self.phase == OVER:
            return
        if self.pending is not None:
            self.pending.cancel()
            self.pending = None
        self.let_go()
        self.phase = OVER
        self.body = b""  # the log may keep this object for a while
        self.ended = time.monotonic()
        if self.permit is FREE:
            self.balancer.turn.over(self)
        else:
            self.settle()  # the permit goes by the counts
        self._give_back_permit()
        self.client.done(self)

    def settle(self) -> None:
        try:
            self.balancer.finish(self)
        except Exception:
            _log.exception("a request did not end well")
        self.observer = None  # it knows this object: without a cycle both are gone at once, and the collector has nothing to do

    # --- a held stream (exchange.ClientStream)

    def begin_stream(self) -> None:
        if self.committed or self.phase != ADMITTING:
            return
        self.committed = True
        self.status = 200
        self.client.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\nx-request-id: "
            + self.request_id
            + (b"\r\nconnection: close" if self.client.closing else b"")
            + b"\r\ntransfer-encoding: chunked\r\n\r\n"
        )

    def send_payload(self, payload: bytes) -> None:
        if self.committed and self.phase == ADMITTING:
            self.client.write(chunk(payload))
