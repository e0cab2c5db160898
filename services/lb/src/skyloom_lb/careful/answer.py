"""The answer of the careful lane: streamed to the client at its pace, through the observer when there is one."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, cast

import aiohttp
from aiohttp import web
from multidict import CIMultiDict

from skyloom_lb.exchange import Observer, Outcome, Refusal, Reply, Resume, Route, with_retry_after
from skyloom_lb.retries import Comeback
from skyloom_lb.wire.headers import HOP_BY_HOP, tokens
from skyloom_lb.wire.request import RequestHead
from skyloom_lb.wire.response import ResponseHead

if TYPE_CHECKING:
    from skyloom_lb.balancer import Balancer

_EVENTS = b"text/event-stream"
DIED = Refusal(502, "endpoint_died", "The answer broke off and no endpoint could continue it.")


class Relay:
    """Also the ClientStream of a held request."""

    def __init__(
        self, balancer: Balancer, request: web.BaseRequest, head: RequestHead, outcome: Outcome
    ) -> None:
        self._balancer = balancer
        self._request = request
        self._head = head
        self._outcome = outcome
        self._stream: web.StreamResponse | None = None
        self._observer: Observer | None = None
        self._held: list[bytes] = []
        self._holding: asyncio.Task[None] | None = None
        self.begun = False
        self.comeback = Comeback()

    def response(self) -> web.StreamResponse:
        assert self._stream is not None
        return self._stream

    async def own(self, answer: Refusal | Reply, close: bool = False) -> web.StreamResponse:
        self._outcome.status = answer.status
        if self.begun and isinstance(answer, Refusal):
            await self._settle_held()
            await self.response().write(self._balancer.front.stream_error(answer))
            await self.response().write_eof()
            return self.response()
        return own_response(self._balancer, answer, self._outcome.request_id, close)

    async def run(self, route: Route, answer: aiohttp.ClientResponse, idle: float) -> Resume | None:
        """Streams one endpoint's answer to its end; a Resume when it was not the end."""
        await self._settle_held()
        head = _head_of(answer)
        if self._observer is not None:
            if not self._observer.resumed(head):
                return await self.broken(f"ResumeRefused: {head.status}")
            self.comeback.answered()
        elif self.begun and head.status >= 300:
            words = f"The endpoint answered with status {head.status}."
            await self._end_badly("Status", Refusal(502, "endpoint_error", words))
            return None
        else:
            await self._begin(route, answer, head)
        return await self._stream_body(answer, idle)

    async def _begin(self, route: Route, answer: aiohttp.ClientResponse, head: ResponseHead) -> None:
        self._outcome.first_byte = time.monotonic()
        if route.observe and head.status < 300:
            self._observer = self._balancer.front.observer(route, head, self._outcome)
        if self.begun:
            return
        self._outcome.status = head.status
        rewrites = self._observer is not None and self._observer.rewrites
        stream = web.StreamResponse(status=head.status, reason=answer.reason)
        stream.headers.extend(self._kept(answer, head, rewrites))
        stream.headers["x-request-id"] = self._outcome.request_id.decode("latin-1")
        no_body = head.status in (204, 304) or self._head.method == b"HEAD"
        if self._head.version == "1.0" or self._balancer.draining or self._head.close:
            stream.force_close()
        elif not no_body and "Content-Length" not in stream.headers:
            stream.enable_chunked_encoding()
        await self._start(stream)

    async def _start(self, stream: web.StreamResponse) -> None:
        self._stream = stream
        self.begun = True
        await stream.prepare(self._request)

    def _kept(self, answer: aiohttp.ClientResponse, head: ResponseHead, rewrites: bool) -> CIMultiDict[str]:
        drop = set(HOP_BY_HOP) | {b"x-request-id"}
        for name, value in answer.raw_headers:
            if name.lower() == b"connection":
                drop |= set(tokens(value)) - {b"content-type", b"content-length"}
        if rewrites:
            drop.add(b"content-length")
        kept: CIMultiDict[str] = CIMultiDict()
        for name, value in answer.raw_headers:
            if name.lower() not in drop:
                kept.add(name.decode("latin-1"), value.decode("utf-8", "replace"))
        return kept

    async def _stream_body(self, answer: aiohttp.ClientResponse, idle: float) -> Resume | None:
        stream, observer = self.response(), self._observer
        while True:
            async with asyncio.timeout(idle or None):
                part = await answer.content.readany()
            if not part:
                break
            if observer is not None:
                seen = observer.feed(part)
                part = seen if observer.rewrites else part
            if part:
                self._outcome.bytes_out += len(part)
                await stream.write(part)
        if observer is not None:
            last = observer.end(self._outcome)
            if isinstance(last, Resume):
                if self.comeback.may_go_on(time.monotonic()):
                    return self._resume(last)
                await self._end_badly("EndedEarly", DIED)
                return None
            if last and observer.rewrites:
                await stream.write(last)
        await stream.write_eof()
        return None

    def _resume(self, resume: Resume) -> Resume:
        self._outcome.resumes = self.comeback.deaths
        return resume

    async def broken(self, reason: str) -> Resume | None:
        """The endpoint died in mid-answer."""
        last = self._observer.broken(reason, self._outcome) if self._observer is not None else None
        if isinstance(last, Resume) and self.comeback.may_go_on(time.monotonic()):
            return self._resume(last)
        if isinstance(last, bytes):
            self._outcome.error = reason
            await self.response().write(last)
            await self.response().write_eof()
            return None
        if self.response().headers.get("Content-Type", "").startswith(_EVENTS.decode()) and self._observer:
            await self._end_badly(reason, DIED)
            return None
        self._outcome.error = reason
        if self._request.transport is not None:
            self._request.transport.close()
        raise ConnectionAbortedError(reason)

    async def _end_badly(self, reason: str, refusal: Refusal) -> None:
        self._outcome.error = reason
        await self.response().write(self._balancer.front.stream_error(refusal))
        await self.response().write_eof()

    # --- exchange.ClientStream

    def begin_stream(self) -> None:
        if self.begun:
            return
        stream = web.StreamResponse(status=200, headers={"Content-Type": "text/event-stream"})
        stream.headers["x-request-id"] = self._outcome.request_id.decode("latin-1")
        if self._head.version == "1.0":
            stream.force_close()
        else:
            stream.enable_chunked_encoding()
        self._outcome.status = 200
        self._stream = stream
        self.begun = True
        self._holding = asyncio.get_running_loop().create_task(self._write_held(stream))

    def send_payload(self, payload: bytes) -> None:
        if self._holding is not None:
            self._held.append(payload)
            if self._holding.done():
                self._holding = asyncio.get_running_loop().create_task(self._write_held(self.response()))

    async def _write_held(self, stream: web.StreamResponse) -> None:
        if not stream.prepared:
            await stream.prepare(self._request)
        while self._held:
            await stream.write(self._held.pop(0))

    async def _settle_held(self) -> None:
        if self._holding is not None:
            holding, self._holding = self._holding, None
            await holding


def _head_of(answer: aiohttp.ClientResponse) -> ResponseHead:
    head = ResponseHead()
    head.status = answer.status
    head.block = b"\r\n" + b"".join(b"%b: %b\r\n" % pair for pair in answer.raw_headers)
    head.length = answer.content_length
    return head


def own_response(
    balancer: Balancer, answer: Refusal | Reply, request_id: bytes, close: bool = False
) -> web.StreamResponse:
    if isinstance(answer, Refusal):
        content_type, body = balancer.front.render(answer)
        headers = with_retry_after(answer)
    else:
        content_type, body, headers = answer.content_type, answer.body, answer.headers
    response = web.Response(status=answer.status, body=body)
    response.headers["Content-Type"] = content_type.decode("latin-1")
    for name, value in headers:
        response.headers.add(name.decode("latin-1"), value.decode("latin-1"))
    if request_id:
        response.headers["x-request-id"] = request_id.decode("latin-1")
    if close or balancer.draining:
        response.force_close()
    return cast(web.StreamResponse, response)
