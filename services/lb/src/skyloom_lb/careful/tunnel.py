"""An upgraded connection (WebSocket and the like): the endpoint decides, then bytes go both ways untouched.

Authentication, routing and admission are the same as for any request; the permit is held as long as the tunnel lasts.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable
from typing import TYPE_CHECKING

from skyloom_lb.exchange import FREE, Outcome, Permit, Refusal, Reply, Route, with_retry_after
from skyloom_lb.retries import Failed, no_answer
from skyloom_lb.wire.headers import MAX_HEAD, BadMessage, as_written, without
from skyloom_lb.wire.request import RequestHead
from skyloom_lb.wire.response import own_answer, parse_response

if TYPE_CHECKING:
    from skyloom_lb.balancer import Balancer
    from skyloom_lb.careful.lane import CarefulLane
    from skyloom_lb.service import Backend

_log = logging.getLogger(__name__)
_HOP = (b"keep-alive", b"proxy-connection", b"te", b"trailer", b"http2-settings")


class Side(asyncio.Protocol):
    """One end; what it reads goes to `other`, and it slows its reading to the other's pace."""

    transport: asyncio.Transport

    def __init__(self, tunnel: Tunnel) -> None:
        self.tunnel = tunnel
        self.other: Side | None = None
        self.held = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if self.other is None:
            self.tunnel.early(self, data)
        elif not self.other.transport.is_closing():
            self.other.transport.write(data)
            self.tunnel.outcome.bytes_out += len(data)

    def pause_writing(self) -> None:
        if self.other is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None:
            self.other.transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        self.tunnel.lost(self)


class Tunnel:
    def __init__(self, balancer: Balancer, lane: CarefulLane, head: RequestHead, peer: str) -> None:
        self.balancer = balancer
        self.lane = lane
        self.head = head
        request_id = head.request_id or balancer.new_request_id()
        self.outcome = Outcome(time.monotonic(), head, peer, request_id, "tunnel")
        self.permit: Permit = FREE
        self.backend: Backend | None = None
        self.client = Side(self)
        self.endpoint = Side(self)
        self.task: asyncio.Task[None] | None = None
        self._answered: asyncio.Future[bytes] | None = None
        self._over = False

    @classmethod
    def begin(
        cls,
        balancer: Balancer,
        lane: CarefulLane,
        transport: asyncio.Transport,
        head: RequestHead,
        data: bytes,
        peer: str,
        write_paused: bool,
    ) -> None:
        tunnel = cls(balancer, lane, head, peer)
        tunnel.client.transport = transport
        tunnel.client.held = data[data.index(b"\r\n\r\n") + 4 :]
        transport.set_protocol(tunnel.client)
        if write_paused:
            transport.set_write_buffer_limits()
        lane.tunnels.add(tunnel)
        tunnel.task = asyncio.get_running_loop().create_task(tunnel.run())

    async def run(self) -> None:
        try:
            refusal = await self._open()
        except asyncio.CancelledError:
            raise
        except Exception:
            _log.exception("a tunnel failed")
            refusal = Refusal(500, "internal_error", "The balancer failed at this request; its log says why.")
        if refusal is not None:
            self._answer(refusal)

    async def _open(self) -> Refusal | Reply | None:
        front, outcome = self.balancer.front, self.outcome
        principal = front.authenticate(self.head, outcome.peer)
        if isinstance(principal, Refusal):
            return principal
        outcome.principal = principal
        route = front.route(principal, self.head, b"", True)
        if not isinstance(route, Route):
            return route
        outcome.route = route
        route.service.active += 1
        permit = front.admit(principal, route, self)
        if isinstance(permit, Awaitable):
            permit = await permit
        if isinstance(permit, Refusal):
            return permit
        self.permit = permit
        return await self._attempts(route)

    async def _attempts(self, route: Route) -> Refusal | None:
        """Connecting may be tried elsewhere; what follows may not."""
        service = route.service
        tried: tuple[str, ...] = ()
        for _ in range(service.settings.retries.attempts):
            backend = service.pick(route.facts, tried)
            if backend is None:
                break
            service.started(backend)
            self.backend = backend
            self.outcome.endpoint = backend.id
            address, limits = backend.address, service.settings.timeouts
            try:
                async with asyncio.timeout(limits.connect or None):
                    await asyncio.get_running_loop().create_connection(
                        lambda: self.endpoint,
                        address.host,
                        address.port,
                        ssl=self.balancer.client_tls() if address.tls else None,
                    )
            except OSError:
                self.backend = None
                service.failed(backend, Failed.CONNECT.value, time.monotonic())
                tried = (*tried, backend.id)
                continue
            return await self._ask(route, backend, limits.first_byte)
        if tried:
            return no_answer(Failed.CONNECT, tried[-1])
        return Refusal(503, "no_endpoint", service.why_none(), retry_after=1.0)

    async def _ask(self, route: Route, backend: Backend, seconds: float) -> Refusal | None:
        head = self.head
        drop = (
            *_HOP,
            b"x-forwarded-for",
            b"x-forwarded-proto",
            b"x-forwarded-host",
            b"forwarded",
            *route.drop,
        )
        block = without(head.block, as_written(head.block, drop))
        ours = self.balancer.forwarded_lines(self.outcome.peer, self.client.transport, head) + route.add
        if not head.request_id:
            ours += b"x-request-id: %b\r\n" % self.outcome.request_id
        target = backend.address.prefix + (route.target or head.target)
        loop = asyncio.get_running_loop()
        self._answered = loop.create_future()
        self.endpoint.transport.write(b"%b %b HTTP/1.1%b%b\r\n" % (head.method, target, block, ours))
        try:
            async with asyncio.timeout(seconds or None):
                answer = await self._answered
            response = parse_response(answer[: answer.index(b"\r\n\r\n") + 4], head.method)
        except (TimeoutError, BadMessage, ConnectionError) as error:
            service = route.service
            failed = {TimeoutError: Failed.TIMEOUT, BadMessage: Failed.GARBAGE}.get(
                type(error), Failed.NO_ANSWER
            )
            self.backend = None
            self.endpoint.transport.abort()
            service.failed(backend, failed.value, time.monotonic())
            return no_answer(failed, backend.id)
        self.outcome.status = response.status
        self.outcome.first_byte = time.monotonic()
        self._join(answer)
        return None

    def _join(self, answer: bytes) -> None:
        """From here on the two ends talk to each other. An answer that is no upgrade ends with its connection."""
        self.client.other, self.endpoint.other = self.endpoint, self.client
        if self.outcome.status != 101:
            at = answer.index(b"\r\n\r\n")
            block = without(answer[:at], as_written(answer[:at], (b"connection", b"keep-alive")))
            answer = block + b"\r\nconnection: close" + answer[at:]
        self.client.transport.write(answer)
        if self.client.held:
            self.endpoint.transport.write(self.client.held)
            self.client.held = b""

    def early(self, side: Side, data: bytes) -> None:
        """Bytes before the two ends are joined."""
        side.held += data
        if side is self.client:
            if len(side.held) > MAX_HEAD:
                self.end("ClientTooFast")
        elif b"\r\n\r\n" in side.held or len(side.held) > MAX_HEAD:
            self._finish_head(side)

    def _finish_head(self, side: Side) -> None:
        if self._answered is None or self._answered.done():
            return
        if b"\r\n\r\n" not in side.held:
            self._answered.set_exception(BadMessage("the head is too long"))
        else:
            side.transport.pause_reading()
            self._answered.set_result(side.held)
            asyncio.get_running_loop().call_soon(self._resume, side)

    def _resume(self, side: Side) -> None:
        if not side.transport.is_closing():
            if side.other is None and not self._over:
                asyncio.get_running_loop().call_soon(self._resume, side)
            else:
                side.transport.resume_reading()

    def lost(self, side: Side) -> None:
        if side is self.endpoint and self._answered is not None and not self._answered.done():
            self._answered.set_exception(ConnectionResetError())
        elif side is self.client and side.other is None:
            self.end("ClientDisconnected")
        else:
            self.end("")

    def _answer(self, answer: Refusal | Reply) -> None:
        if isinstance(answer, Refusal):
            self.outcome.refused = answer.code
            content_type, body = self.balancer.front.render(answer)
            headers = with_retry_after(answer)
        else:
            content_type, body, headers = answer.content_type, answer.body, answer.headers
        self.outcome.status = answer.status
        self.client.transport.write(
            own_answer(
                answer.status,
                content_type,
                body,
                request_id=self.outcome.request_id,
                headers=headers,
                close=True,
            )
        )
        self.end("")

    def end(self, error: str) -> None:
        if self._over:
            return
        self._over = True
        self.outcome.error = error
        self.outcome.ended = time.monotonic()
        if self.task is not None and self.task is not asyncio.current_task():
            self.task.cancel()
        for side in (self.client, self.endpoint):
            if hasattr(side, "transport"):
                side.transport.close()
        route = self.outcome.route
        if route is not None:
            route.service.active -= 1
            if self.backend is not None:
                self._leave(route, self.backend)
        self.permit.release(self.outcome)
        self.lane.tunnels.discard(self)
        self.balancer.finish(self.outcome)

    def _leave(self, route: Route, backend: Backend) -> None:
        if self.outcome.first_byte:
            waited = self.outcome.first_byte - self.outcome.started
            route.service.finished(backend, self.outcome.status, waited, self.outcome.ended)
        else:
            route.service.abandoned(backend)

    # --- exchange.ClientStream: an upgrade cannot be held by events

    def begin_stream(self) -> None:
        """Not for upgrades."""

    def send_payload(self, payload: bytes) -> None:
        """Not for upgrades."""
