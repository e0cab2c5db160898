"""One request of the careful lane: read by aiohttp, checked by our own rules, sent on by aiohttp's client, streamed both ways.

The same order of hooks and the same counts as in the fast lane. A body is streamed and therefore sent once; a request is
tried again only while nothing of its body has left.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import aiohttp
import yarl
from aiohttp import web
from multidict import CIMultiDict

from skyloom_lb.careful.answer import Relay, own_response
from skyloom_lb.exchange import FREE, Outcome, Permit, Principal, Refusal, Resume, Route
from skyloom_lb.retries import Failed, may_retry, no_answer
from skyloom_lb.wire.headers import FORWARDED, HOP_BY_HOP, BadMessage
from skyloom_lb.wire.request import RequestHead, request_from_pairs

if TYPE_CHECKING:
    from skyloom_lb.balancer import Balancer
    from skyloom_lb.service import Backend

_log = logging.getLogger(__name__)
_NOT_ON = HOP_BY_HOP | FORWARDED | {b"expect", b"content-length"}
_AUTO = ("Accept", "Accept-Encoding", "User-Agent", "Content-Type")
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class ClientFailed(Exception):
    """The client's body stopped or was malformed while it was being sent on."""


class Handler:
    def __init__(self, balancer: Balancer) -> None:
        self._balancer = balancer
        self._session: aiohttp.ClientSession | None = None
        self.running = 0

    def session(self) -> aiohttp.ClientSession:
        if self._session is None:
            from skyloom_lb.careful.lane import client_session

            self._session = client_session(self._balancer.settings.header_seconds)
        return self._session

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        peer = request.transport.get_extra_info("peername") if request.transport is not None else None
        address = peer[0] if isinstance(peer, tuple) else "unix"
        try:
            head = head_of(request)
        except BadMessage as bad:
            self._balancer.refused_early("bad_request")
            words = f"This is not a request that can be served: {bad.reason}."
            return own_response(self._balancer, Refusal(400, "bad_request", words), b"", close=True)
        call = Call(self._balancer, self.session(), request, head, address)
        self.running += 1
        try:
            return await call.run()
        except ClientFailed as failed:
            words = f"The request's body did not come as announced ({failed})."
            return own_response(self._balancer, Refusal(400, "bad_body", words), b"", close=True)
        except (asyncio.CancelledError, ConnectionError):
            call.outcome.error = call.outcome.error or "ClientDisconnected"
            raise
        finally:
            self.running -= 1
            call.over()


def head_of(request: web.BaseRequest) -> RequestHead:
    """The same facts and the same refusals as in the fast lane."""
    version = f"{request.version.major}.{request.version.minor}"
    target = request._message.path.encode("utf-8", "surrogateescape")
    pairs = [(bytes(name), bytes(value)) for name, value in request.raw_headers]
    head = request_from_pairs(request.method.encode("latin-1"), target, version, pairs)
    if not target.startswith(b"/") and target != b"*":
        head.target = _origin_form(target, head.host)
    if any(not _is_text(value) for _, value in pairs):
        raise BadMessage("a header's value is not UTF-8")
    return head


def _origin_form(target: bytes, host: bytes | None) -> bytes:
    try:
        parts = urlsplit(target)
    except ValueError:
        raise BadMessage("the request target is not a path") from None
    if parts.scheme not in (b"http", b"https") or parts.netloc.lower() != (host or b"").lower():
        raise BadMessage("the request target's host is not that of the Host header")
    return (parts.path or b"/") + (b"?" + parts.query if parts.query else b"")


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


class Call:
    """One request; `over` is called exactly once."""

    def __init__(
        self,
        balancer: Balancer,
        session: aiohttp.ClientSession,
        request: web.BaseRequest,
        head: RequestHead,
        peer: str,
    ) -> None:
        self.balancer = balancer
        self.session = session
        self.request = request
        self.head = head
        request_id = head.request_id or balancer.new_request_id()
        self.outcome = Outcome(time.monotonic(), head, peer, request_id, "careful")
        self.permit: Permit = FREE
        self.read = b""
        self.complete = not request.body_exists
        self.sent_body = False
        self.client_failed = ""
        self.first_byte: asyncio.Timeout | None = None
        self.relay = Relay(balancer, request, head, self.outcome)

    async def run(self) -> web.StreamResponse:
        front = self.balancer.front
        principal = front.authenticate(self.head, self.outcome.peer)
        if isinstance(principal, Refusal):
            return await self.refuse(principal)
        self.outcome.principal = principal
        if not self.complete:
            await self._read_ahead(front.body_wanted(self.head))
        route = front.route(principal, self.head, self.read, self.complete)
        while isinstance(route, Route):
            answer = await self._through(principal, route)
            if not isinstance(answer, Refusal):
                return answer
            if route.fallback is None or not route.goes_on(answer) or self.sent_body or self.relay.begun:
                return await self.refuse(answer)
            self._give_back_permit()
            route = route.fallback
        return await self.refuse(route) if isinstance(route, Refusal) else await self.relay.own(route)

    async def refuse(self, refusal: Refusal) -> web.StreamResponse:
        self.outcome.refused = refusal.code
        return await self.relay.own(refusal, close=not self.complete)

    async def _read_ahead(self, wanted: int) -> None:
        if wanted <= 0:
            return
        await self._say_continue()
        parts, size = [], 0
        while size <= wanted:
            part = await self.request.content.readany()
            if not part:
                self.complete = True
                break
            parts.append(part)
            size += len(part)
        self.read = b"".join(parts)

    async def _say_continue(self) -> None:
        """Only now, when the body is really wanted: that is what the client asked to be told."""
        if self.head.expect == b"100-continue":
            self.head.expect = b""
            await self.request.writer.write(_CONTINUE)
            self.request.writer.output_size = 0

    async def _through(self, principal: Principal, route: Route) -> web.StreamResponse | Refusal:
        self.outcome.route = route
        route.service.active += 1
        permit = self.balancer.front.admit(principal, route, self.relay)
        if isinstance(permit, Awaitable):
            route.service.waiting += 1
            try:
                permit = await permit
            finally:
                route.service.waiting -= 1
        if isinstance(permit, Refusal):
            return permit
        self.permit = permit
        return await self._attempts(route)

    async def _attempts(self, route: Route) -> web.StreamResponse | Refusal:
        service = route.service
        tried: tuple[str, ...] = ()
        resume: Resume | None = None
        refusal = Refusal(503, "no_endpoint", service.why_none(), retry_after=1.0)
        while True:
            backend = service.pick(route.facts, tried)
            if backend is None:
                return refusal
            failed, resume = await self._attempt(route, backend, resume)
            if failed is None and resume is None:
                return self.relay.response()
            tried = (*tried, backend.id)
            if resume is not None:
                if set(tried) >= {one.id for one in service.eligible}:
                    tried = ()
                    await asyncio.sleep(self.relay.comeback.pause(time.monotonic()))
                continue
            assert failed is not None
            refusal = no_answer(failed, backend.id)
            replay = route.may_replay(self.head) and not self.sent_body
            most = service.settings.retries.attempts - 1
            safe = failed is not Failed.CONNECT or not self.sent_body
            if not safe or not may_retry(failed, replay, self.outcome.retries, most, service.budget):
                return refusal
            self.outcome.retries += 1
            service.stats.retries += 1

    async def _attempt(
        self, route: Route, backend: Backend, resume: Resume | None
    ) -> tuple[Failed | None, Resume | None]:
        """One endpoint. (None, None) = answered to the end; a Failed = nothing was given to the client."""
        service, limits = route.service, route.service.settings.timeouts
        self.outcome.endpoint = backend.id
        service.started(backend)
        counted = False
        sent_at = time.monotonic()
        try:
            async with asyncio.timeout(limits.first_byte or None) as first_byte:
                self.first_byte = first_byte
                async with self._ask(route, backend, resume) as answer:
                    if self._is_retried(route, answer.status) and self._elsewhere(route, backend):
                        return Failed.STATUS, None
                    first_byte.reschedule(None)
                    waited = time.monotonic() - sent_at
                    result = await self.relay.run(route, answer, limits.idle)
                    counted = True
                    service.finished(backend, answer.status, waited, time.monotonic())
                    return None, result
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            if self.client_failed:
                self.outcome.error = self.client_failed
                raise ClientFailed(self.client_failed) from error
            failed = _kind(error)
            counted = True
            service.failed(backend, failed.value, time.monotonic())
            if self.relay.begun:
                return None, await self.relay.broken(failed.value)
            return failed, None
        finally:
            if not counted:
                service.abandoned(backend)

    @staticmethod
    def _is_retried(route: Route, status: int) -> bool:
        statuses = route.service.settings.retries.statuses
        return status in statuses or (status == 429 and route.fallback is not None)

    def _elsewhere(self, route: Route, backend: Backend) -> bool:
        if route.fallback is not None and not self.sent_body and not self.relay.begun:
            return True
        others = any(one.id != backend.id for one in route.service.eligible)
        return others and not self.sent_body and route.may_replay(self.head) and not self.outcome.retries

    def _ask(
        self, route: Route, backend: Backend, resume: Resume | None
    ) -> aiohttp.client._RequestContextManager:
        address = backend.address
        target = (resume.target if resume is not None else None) or route.target or self.head.target
        host = f"[{address.host}]" if ":" in address.host else address.host
        scheme = "https" if address.tls else "http"
        path = (address.prefix + target).decode("latin-1")
        return self.session.request(
            self.head.method.decode("latin-1"),
            yarl.URL(f"{scheme}://{host}:{address.port}{path}", encoded=True),
            headers=self._headers(route, resume),
            data=self._body(route, resume),
            skip_auto_headers=_AUTO,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=route.service.settings.timeouts.connect or None
            ),
        )

    def _headers(self, route: Route, resume: Resume | None) -> CIMultiDict[str]:
        head = self.head
        drop = _NOT_ON | set(head.named) | set(route.drop) | set(resume.drop if resume is not None else ())
        headers: CIMultiDict[str] = CIMultiDict()
        for name, value in head.headers:
            if name not in drop:
                headers.add(name.decode("latin-1"), value.decode())
        transport = self.request.transport
        assert transport is not None
        lines = route.add
        if not route.external:
            lines = self.balancer.forwarded_lines(self.outcome.peer, transport, head) + lines
        if resume is not None:
            lines += resume.add
        for line in lines.split(b"\r\n"):
            if line:
                name, _, value = line.partition(b":")
                headers.add(name.decode("latin-1"), value.strip().decode())
        headers["x-request-id"] = self.outcome.request_id.decode("latin-1")
        if head.length is not None and route.body is None and resume is None:
            headers["Content-Length"] = str(head.length)
        return headers

    def _body(self, route: Route, resume: Resume | None) -> bytes | AsyncIterator[bytes] | None:
        if resume is not None:
            return resume.body
        if route.body is not None:
            return route.body
        if self.complete:
            return self.read or None
        return self._upload()

    async def _upload(self) -> AsyncIterator[bytes]:
        """Goes at the endpoint's pace: nothing is read before the part before it was taken."""
        self.sent_body = True
        await self._say_continue()
        if self.read:
            self.outcome.bytes_in += len(self.read)
            yield self.read
        while part := await self._next_part():
            self.outcome.bytes_in += len(part)
            yield part
            self._wait_on()
        self.complete = True

    async def _next_part(self) -> bytes:
        """What goes wrong here is the client's doing; aiohttp's client would report it as if it were the endpoint's."""
        try:
            async with asyncio.timeout(self.balancer.settings.body_seconds or None):
                return await self.request.content.readany()
        except TimeoutError:
            self.client_failed = "ClientStalled"
            raise
        except (aiohttp.ClientError, web.RequestPayloadError, ConnectionError):
            self.client_failed = "ClientDisconnected"
            raise

    def _wait_on(self) -> None:
        """The time to the first byte counts from the last byte sent."""
        assert self.outcome.route is not None
        seconds = self.outcome.route.service.settings.timeouts.first_byte
        if self.first_byte is not None and seconds and self.first_byte.when() is not None:
            self.first_byte.reschedule(asyncio.get_running_loop().time() + seconds)

    def _give_back_permit(self) -> None:
        if self.outcome.route is not None:
            self.outcome.route.service.active -= 1
            permit, self.permit = self.permit, FREE
            permit.release(self.outcome)

    def over(self) -> None:
        self.outcome.ended = time.monotonic()
        self._give_back_permit()
        self.balancer.finish(self.outcome)


def _kind(error: Exception) -> Failed:
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        return Failed.CONNECT
    if isinstance(error, TimeoutError):
        return Failed.TIMEOUT
    if isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError):
        return Failed.NO_ANSWER
    return Failed.GARBAGE
