"""The head of a response, parsed by llhttp and checked; and the balancer's own answers as bytes.

An endpoint is no more trusted than a client: a head with two readings raises BadMessage and becomes a 502.
"""

from __future__ import annotations

from http import HTTPStatus

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from skyloom_lb.wire.head import Head, Memory, Seen
from skyloom_lb.wire.headers import HOP_BY_HOP, BadMessage, as_written, content_length, tokens

_HANDLED = HOP_BY_HOP | {b"content-length", b"x-request-id"}
_REASONS = {int(status): status.phrase.encode() for status in HTTPStatus}


_NOBODY = object()
_seen: Seen = {}


class ResponseHead(Head):
    """`start` is the status line as sent (with HTTP/1.1); `until_close`: only the end of the connection ends the body."""

    __slots__ = ("_is_json", "_usual", "chunked", "keep_alive", "start", "status", "until_close")

    def __init__(self) -> None:
        super().__init__()
        self.status = 0
        self.start = b""
        self.chunked = False
        self.keep_alive = True
        self.until_close = False
        self._is_json: bool | None = None
        self._usual = b""

    @property
    def content_type(self) -> bytes:
        return self.get(b"content-type").lower()

    @property
    def usual(self) -> bytes:
        """The head as the client gets it, without what is other in each answer: length and request id."""
        if not self._usual:
            self._usual = self.start + self.onward(())
        return self._usual

    @property
    def is_json(self) -> bool:
        """JSON that is not packed; found out once for a head that is remembered."""
        if self._is_json is None:
            plain = self.get(b"content-encoding") in (b"", b"identity")
            self._is_json = plain and self.content_type.startswith(b"application/json")
        return self._is_json

    def note(self, lower: bytes, name: bytes, value: bytes) -> None:
        if lower == b"content-length":
            if self.length is not None:
                raise BadMessage("Content-Length is there twice")
            self.length, self.length_name = content_length(value), name
        elif lower == b"transfer-encoding":
            if self.chunked or value.lower() != b"chunked":
                raise BadMessage("Transfer-Encoding is there twice or is not 'chunked'")
            self.chunked = True
        else:
            self.drop += (name,)  # the client gets the balancer's request id, which the endpoint was sent
            if lower == b"connection" and value != b"keep-alive":
                named = tokens(value)
                self.keep_alive = self.keep_alive and b"close" not in named
                self.named += tuple(one for one in named if one not in (b"close", b"keep-alive"))


def read_response(
    head: bytes, method: bytes, memory: Memory[ResponseHead]
) -> tuple[ResponseHead, int | None]:
    """`parse_response` for one of many from an endpoint; and the length of its body where that is known."""
    known = memory.recall(head) if method != b"HEAD" else None
    if known is not None:
        return known
    response = parse_response(head, method)
    if method != b"HEAD" and response.status >= 200:
        memory.keep(head, response)
    return response, response.length


def parse_response(head: bytes, method: bytes) -> ResponseHead:
    """`method` is that of the request: a HEAD's answer has no body whatever its headers say."""
    if not head.endswith(b"\r\n\r\n"):
        raise BadMessage("the head is not whole")
    parser = HttpResponseParser(_NOBODY)
    try:
        parser.feed_data(head)
    except HttpParserUpgrade:
        pass
    except HttpParserError as error:
        raise BadMessage(str(error)) from None
    version = head[:8]
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise BadMessage("the endpoint speaks neither HTTP/1.1 nor HTTP/1.0")
    end = head.index(b"\r\n")
    if b"\n" in head[:end] or b"\r" in head[:end] or b"\0" in head[:end]:
        raise BadMessage("the status line does not end with CR LF")
    response = ResponseHead()
    response.status = parser.get_status_code()
    response.start = b"HTTP/1.1" + head[8:end]
    response.block = head[end:-2]
    response.read_lines(_HANDLED, _seen)
    _settle(response, method, version)
    return response


def _settle(response: ResponseHead, method: bytes, version: bytes) -> None:
    if response.chunked and (response.length is not None or version == b"HTTP/1.0"):
        raise BadMessage("Transfer-Encoding together with Content-Length or HTTP/1.0")
    if not 100 <= response.status <= 599:
        raise BadMessage("the status is not one of HTTP")
    if version == b"HTTP/1.0":
        response.keep_alive = False
    if response.named:
        response.drop += as_written(
            response.block, frozenset(response.named) - {b"content-length", b"content-type"}
        )
    if method == b"HEAD" or response.status in (204, 304) or response.status < 200:
        if response.chunked:
            response.drop += as_written(response.block, (b"transfer-encoding",))
        if response.length and response.status not in (304,) and method != b"HEAD":
            raise BadMessage("a status without a body came with one")
        response.length, response.chunked, response.length_name = 0, False, b""
    elif response.length is None and not response.chunked:
        response.until_close, response.keep_alive = True, False


def own_answer(
    status: int,
    content_type: bytes,
    body: bytes,
    *,
    request_id: bytes = b"",
    headers: tuple[tuple[bytes, bytes], ...] = (),
    close: bool = False,
    with_body: bool = True,
) -> bytes:
    """A whole response of the balancer's own."""
    lines = [
        b"HTTP/1.1 %d %b" % (status, _REASONS.get(status, b"")),
        b"content-type: " + content_type,
        b"content-length: %d" % len(body),
    ]
    if request_id:
        lines.append(b"x-request-id: " + request_id)
    lines += [name + b": " + value for name, value in headers]
    if close:
        lines.append(b"connection: close")
    return b"\r\n".join(lines) + b"\r\n\r\n" + (body if with_body else b"")
