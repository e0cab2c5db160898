"""The answer of one request, from the endpoint's first byte to the client's last.

After the first byte there are three ends: the endpoint's own; a broken answer that the observer continues (Resume) or ends with
an error event; and the client's connection closed in the middle. A broken answer never ends as if it were whole.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from skyloom_lb.exchange import FREE, Refusal, Resume
from skyloom_lb.fast.attempts import Attempts
from skyloom_lb.fast.entry import ADMITTING, ANSWERING, CONNECTING, WAITING
from skyloom_lb.fast.flow import Flow
from skyloom_lb.fast.upstream import Upstream
from skyloom_lb.retries import Comeback, Failed
from skyloom_lb.wire.chunks import LAST_CHUNK, ChunkReader, chunk
from skyloom_lb.wire.headers import MAX_HEAD, BadMessage, check_partial
from skyloom_lb.wire.request import RequestHead
from skyloom_lb.wire.response import ResponseHead, read_response

if TYPE_CHECKING:
    from skyloom_lb.balancer import Balancer
    from skyloom_lb.fast.front import FrontConnection

FRAMING = (b"content-length", b"transfer-encoding")
RATE_LIMITS = tuple(
    b"x-ratelimit-%b-%b" % (one, what)
    for one in (b"limit", b"remaining", b"reset")
    for what in (b"requests", b"tokens")
)
DIED = Refusal(502, "endpoint_died", "The answer broke off and no endpoint could continue it.")
TOO_LONG = Refusal(504, "timeout", "The request took longer than its service allows.")
_USUAL_HEAD = b"%bcontent-length: %d\r\nx-request-id: %b\r\n\r\n"
_log = logging.getLogger(__name__)


class Exchange(Attempts):
    """`framed`: the client gets our chunks; otherwise the endpoint's own bytes, cut where its answer ends. `reusable`: the endpoint's
    connection, after this answer. `mute`: the head of a stream is here and nothing else."""

    __slots__ = ("_comeback", "answered_at", "framed", "last_read", "left", "mute", "reader", "reusable")

    def __init__(self, balancer: Balancer, client: FrontConnection, head: RequestHead, body: bytes) -> None:
        Attempts.__init__(self, balancer, client, head, body)
        self.answered_at = 0.0
        self.last_read = 0.0
        self.framed = False
        self.left = 0
        self.reusable = True
        self.reader: ChunkReader | None = None
        self.mute = False
        self._comeback: Comeback | None = None

    @property
    def comeback(self) -> Comeback:
        """Made at the first death."""
        if self._comeback is None:
            self._comeback = Comeback()
        return self._comeback

    def answer(self, upstream: Upstream, data: bytes) -> None:
        now = time.monotonic()
        try:
            if self.phase == ANSWERING:
                if self.mute:
                    self._first_payload(now)
                elif self.route.stream:
                    self.service.stats.gaps.add(now - self.last_read)
                self.last_read = now
                flow, upstream.flow = upstream.flow, None
                payload = self.reader.only(data) if self.reader is not None else None
                if payload is None:
                    self._body(data)
                else:
                    self._one_chunk(data, payload)
                    self._flow(upstream, flow)
            else:
                if upstream is self.hedge:
                    data = self.hedge_answer(data, now)
                    if not data:
                        return
                self.last_read = now
                self._head(upstream, data)
        except BadMessage as bad:
            self._bad_answer(f"BadResponse: {bad.reason}", Failed.GARBAGE)
        except Exception:
            _log.exception("an answer could not be passed on")
            self._bad_answer(Failed.FAULT.value, Failed.FAULT)

    def _one_chunk(self, data: bytes, payload: bytes) -> None:
        """What `_body` does, for the usual read of a stream: what nobody changes is not framed anew."""
        observer = self.observer
        if observer is not None:
            seen = observer.feed(payload)
            if seen is not payload and observer.rewrites:
                data = chunk(seen)
        self.bytes_out += len(data)
        self.client.write(data)

    def _flow(self, upstream: Upstream, before: Flow | None) -> None:
        """The next events need no look if they are like this one."""
        steady = self.observer.steady if self.observer is not None else None
        if (
            steady is None
            or self.upstream is not upstream
            or not self.route.stream
            or not self.client.takes_chunks
        ):
            return
        if before is None or before.steady is not steady:
            before = Flow(self, steady, self.service.stats.gaps, self.client.transport)
        upstream.flow = before

    def _first_payload(self, now: float) -> None:
        """Of a stream: engines send its head long before its first token."""
        self.mute = False
        self.first_byte = self.answered_at = now

    def _bad_answer(self, reason: str, failed: Failed) -> None:
        if self.phase == ANSWERING:
            self.broken(reason)
        elif self.phase == WAITING:
            self.attempt_failed(failed)
        else:
            self.fault()

    def _head(self, upstream: Upstream, data: bytes) -> None:
        if self.buffer:
            data = self.buffer + data
        while True:
            end = data.find(b"\r\n\r\n") + 4
            if end < 4 or end > MAX_HEAD:
                check_partial(data[: MAX_HEAD + 1])
                if not data.startswith(b"HTTP/1."[: len(data)]):
                    raise BadMessage("the answer is not HTTP")
                self.buffer = data
                return None
            response, length = read_response(data[:end], self.head.method, upstream.pool.heads)
            if response.status >= 200:
                return self._begin(response, length, data[end:])
            if response.status == 101:
                raise BadMessage("an upgrade that nobody asked for")
            if response.status != 100 and not self.committed:
                self.client.write(b"%b%b\r\n" % (response.start, response.onward(())))
            upstream.used = (
                False  # it has begun with this request: its end would not be that of an idle connection
            )
            data = data[end:]
            if not data:
                self.buffer = b""
                return None

    def _begin(self, response: ResponseHead, length: int | None, data: bytes) -> None:
        if self.hedge is not None:
            self.drop_hedge()
        if self.resume is not None:
            return self._resumed(response, length, data)
        status = response.status
        retried = status in self.service.settings.retries.statuses
        if (retried or (status == 429 and self.route.fallback is not None)) and self._elsewhere(response):
            return None
        self.phase = ANSWERING
        self.response = response
        self.first_byte = self.answered_at = self.last_read
        if self.committed and status >= 300:
            return self._held_stream_failed(status)
        try:
            if self.route.observe and status < 300:
                self.observer = self.balancer.front.observer(self.route, response, self)
            self._frame(response, length)
            prefix = b""
            if not self.committed:
                self.status = status
                prefix = self._client_head(response)
            if self.left and self.left == len(data) and self.reader is None and not self.framed:
                return self._whole(prefix, data)
            if self.client.write_paused and self.upstream is not None:
                self.upstream.pause()
            if self.route.stream and not data:
                self.mute = True
            return self._body(data, prefix)
        except Exception:
            if self.phase == ANSWERING and not (self.bytes_out or self.committed):
                self._take_back()
            raise

    def _take_back(self) -> None:
        """Nothing of this answer has reached the client: another endpoint may give one."""
        self.phase = WAITING
        self.response = self.observer = self.reader = None
        self.framed = False
        self.status, self.first_byte = 0, 0.0

    def _frame(self, response: ResponseHead, length: int | None) -> None:
        self.reader = ChunkReader() if response.chunked else None
        self.reusable = response.keep_alive
        self.left = length or 0
        if not self.framed:
            rewrites = self.observer is not None and self.observer.rewrites
            self.framed = self.committed or response.until_close or (rewrites and length != 0)

    def _client_head(self, response: ResponseHead) -> bytes:
        if self.permit is FREE and not (self.framed or self.client.closing) and response.length_name:
            return _USUAL_HEAD % (response.usual, self.left, self.request_id)
        length = b""
        extra = b"" if self.permit is FREE else self.permit.headers
        drop = RATE_LIMITS if extra else ()  # the endpoint's own are not the client's
        if self.framed:
            block, length = response.onward(FRAMING + drop), b"transfer-encoding: chunked\r\n"
        else:
            block = response.onward(drop)
            if response.length_name:
                length = b"content-length: %d\r\n" % self.left
        if self.client.closing:
            extra += b"connection: close\r\n"
        parts = (response.start, block, length, extra, b"x-request-id: ", self.request_id, b"\r\n\r\n")
        return b"".join(parts)

    def _body(self, data: bytes, prefix: bytes = b"") -> None:
        response, observer = self.response, self.observer
        assert response is not None
        over = False
        payload: list[bytes] | None = [] if self.framed or observer is not None else None
        if self.reader is not None:
            end = self.reader.feed(data, payload)
            over = self.reader.done
        elif response.until_close:
            end = len(data)
        else:
            end = min(self.left, len(data))
            self.left -= end
            over = self.left == 0
        if end < len(data):
            self.reusable = False  # more than an answer: this connection is not to be trusted again
            data = data[:end]
        if payload is not None:
            # Chunk by chunk: two events that came in one read must not reach the client as one.
            parts = payload if self.reader is not None else [data]
            if observer is not None:
                seen = [observer.feed(part) for part in parts if part]
                parts = seen if observer.rewrites else parts
            if self.framed:
                data = b"".join(map(chunk, parts))
        if over:
            self._ended(prefix + data)
        elif prefix or data:
            self.bytes_out += len(data)
            self.client.write(prefix + data)

    def _whole(self, head: bytes, body: bytes) -> None:
        """What `_body` does, for the usual answer: its length is known, all of it is here, and nobody rewrites it."""
        self.left = 0
        if self.observer is not None:
            self.observer.feed(body)
        self._ended(head + body)

    def _ended(self, data: bytes) -> None:
        """The endpoint's answer is complete."""
        if self.observer is not None:
            last = self.observer.end(self)
            if isinstance(last, Resume):
                data += chunk(last.before)
                self.bytes_out += len(data)
                self.client.write(data)
                self._release()
                if self.comeback.may_go_on(time.monotonic(), self.bytes_out):
                    return self._carry_on(last, "EndedEarly")
                return self._end_badly("EndedEarly", self.balancer.front.stream_error(DIED, self.route))
            if self.framed:
                data += chunk(last)
        if self.framed:
            data += LAST_CHUNK
        self.bytes_out += len(data)
        self.client.write_last(data)
        self._release()
        return self.over()

    def end_of_answer(self) -> None:
        self._ended(b"")

    def _release(self) -> None:
        upstream, self.upstream = self.upstream, None
        response = self.response
        if upstream is not None and response is not None:
            upstream.release(self.reusable, self.last_read)
            waited = self.answered_at - upstream.sent_at
            self.service.finished(self.backend, response.status, waited, self.last_read)

    def _elsewhere(self, response: ResponseHead) -> bool:
        """Whether this answer is dropped and the request tried on another endpoint."""
        upstream, tried = self.upstream, (*self.tried, self.backend.id)
        nobody = all(one.id in tried for one in self.service.eligible) or not self.may_retry(Failed.STATUS)
        if nobody and self.route.fallback is None:
            return False
        assert upstream is not None
        self.upstream = None
        upstream.close()
        waited = self.last_read - upstream.sent_at
        self.service.finished(self.backend, response.status, waited, self.last_read)
        self.tried = tried
        self.phase = WAITING
        if nobody:
            words = f"Endpoint {self.backend.id} answered with status {response.status}."
            self.give_up(Refusal(502, "endpoint_failed", words))
        else:
            self.again()
        return True

    # --- broken answers

    def broken(self, reason: str) -> None:
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            upstream.close()
            self.tried += (self.backend.id,)
            waited = self.answered_at - upstream.sent_at
            if reason == Failed.FAULT.value:
                self.service.abandoned(self.backend, time.monotonic(), waited)
            else:
                self.service.failed(self.backend, "EndpointDied", time.monotonic(), waited)
        try:
            last = self.observer.broken(reason, self) if self.observer is not None else None
        except Exception:
            _log.exception("a broken answer could not be continued")
            last = None
        if isinstance(last, Resume) and self.comeback.may_go_on(time.monotonic(), self.bytes_out):
            return self._carry_on(last, reason)
        if isinstance(last, bytes) and self.framed:
            return self._end_badly(reason, last)
        if self.observer is not None or self.committed:
            return self._end_badly(reason, self.balancer.front.stream_error(DIED, self.route))
        return self._end_badly(reason, None)

    def _end_badly(self, reason: str, last: bytes | None) -> None:
        """A well-formed error event where events are understood; otherwise the connection ends in the middle."""
        self.error = reason
        if last is not None and self.framed and self._in_events():
            self.client.write(chunk(last) + LAST_CHUNK)
        else:
            self.client.close_broken()
        self.over()

    def _in_events(self) -> bool:
        """Whether what the client gets are events, so that an error can be one of them."""
        response = self.response
        return self.committed or response is None or response.content_type.startswith(b"text/event-stream")

    def _carry_on(self, resume: Resume, reason: str) -> None:
        """The answer goes on from another endpoint; the client sees one stream."""
        self.resume = resume
        self.response = None
        self.service.stats.resumes += self.comeback.deaths - self.resumes
        self.resumes = self.comeback.deaths
        self.phase = WAITING
        self.phase_since = time.monotonic()
        if self.backend.id not in self.tried:
            self.tried += (self.backend.id,)
        backend = self.service.pick(self.route.facts, self.tried)
        if backend is not None:
            self.go_to(backend)
        else:
            self.tried = ()
            self.phase = ADMITTING  # nobody works for it now
            self.pending = asyncio.get_running_loop().create_task(self._carry_on_later(resume, reason))

    async def _carry_on_later(self, resume: Resume, reason: str) -> None:
        """All were tried: they get a moment to come back, a longer one each time."""
        await asyncio.sleep(self.comeback.pause(time.monotonic()))
        self.pending = None
        backend = self.service.pick(self.route.facts)
        if backend is not None:
            self.go_to(backend)
        elif self.comeback.may_go_on(time.monotonic(), self.bytes_out):
            self._carry_on(resume, reason)
        else:
            self._end_badly(reason, self.balancer.front.stream_error(DIED, self.route))

    def _resumed(self, response: ResponseHead, length: int | None, data: bytes) -> None:
        assert self.observer is not None
        self.phase = ANSWERING
        self.response = response
        self.answered_at = self.last_read
        self._frame(response, length)
        if self.observer.resumed(response):
            self.comeback.answered()
            self.tried = ()
            if self.client.write_paused and self.upstream is not None:
                self.upstream.pause()
        else:
            return self.broken(f"ResumeRefused: {response.status}")
        return self._body(data)

    def _held_stream_failed(self, status: int) -> None:
        self.framed = True
        self.reusable = False
        self._release()
        words = f"The endpoint answered with status {status}."
        self._end_badly(
            "Status", self.balancer.front.stream_error(Refusal(502, "endpoint_error", words), self.route)
        )

    # --- asked by the sweep

    def check(self, now: float) -> None:
        """Time-outs by phase, and the hedge of a slow attempt."""
        timeouts = self.service.settings.timeouts
        waited = now - self.phase_since
        if timeouts.total and now - self.started > timeouts.total:
            self._too_long()
        elif self.phase == CONNECTING and timeouts.connect and waited > timeouts.connect:
            assert self.pending is not None
            self.pending.cancel()
            self.pending = None
            self.attempt_failed(Failed.CONNECT)
        elif self.phase == WAITING:
            if timeouts.first_byte and waited > timeouts.first_byte:
                self.attempt_failed(Failed.TIMEOUT)
            elif self.hedge is None and 0 < self.service.settings.retries.hedge_after < waited:
                self.hedge_now()
        elif self.phase == ANSWERING and timeouts.idle and now - self.last_read > timeouts.idle:
            self._silent(timeouts.idle, now)

    def _silent(self, idle: float, now: float) -> None:
        """No byte for long: the client's fault while it does not read, else the endpoint's."""
        if not self.client.write_paused:
            self.broken("IdleTimeout")
        elif self.client.stalled(idle, now):
            self.client.close_broken()
            self.cancel("ClientTooSlow")

    def _too_long(self) -> None:
        if self.observer is not None or self.phase == ANSWERING:
            last = self.balancer.front.stream_error(TOO_LONG, self.route) if self.framed else None
            self._end_badly("TotalTimeout", last)
        else:
            self.refuse(TOO_LONG)
