"""The head of a request, parsed by llhttp and then checked again for what proxies must not let through.

`parse_request` takes one whole head (request line to empty line) and knows nothing about connections. A head that is well
formed but not for the fast lane has a reason in `odd`; it must be handed over, not refused.
"""

from __future__ import annotations

from typing import Any

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from skyloom_lb.wire.head import Head, Memory, Seen
from skyloom_lb.wire.headers import (
    END_TO_END,
    FORWARDED,
    HOP_BY_HOP,
    BadMessage,
    as_written,
    content_length,
    is_host,
    is_request_id,
    tokens,
)

ORDINARY = frozenset((b"GET", b"POST", b"PUT", b"DELETE", b"PATCH", b"OPTIONS"))
IDEMPOTENT = frozenset((b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"TRACE"))
_HANDLED = HOP_BY_HOP | FORWARDED | {b"host", b"content-length", b"expect", b"authorization", b"x-request-id"}

_VERSIONS = {b"HTTP/1.1": "1.1", b"HTTP/1.0": "1.0"}
_USUAL = (b"close", b"keep-alive")
_NOBODY = object()
_seen: Seen = {}


class RequestHead(Head):
    """`odd` says why this is not for the fast lane; `forwarded` is what the client claims about who asked before it.

    Kept for the next request with this head: `asker` is who that is, and by which keys this was found out; `way` where the front
    sent the last one; `start` what its endpoint was sent before what is other in each request, and for which way.
    """

    __slots__ = (
        "asker", "authorization", "close", "expect", "forwarded", "host", "method", "odd", "request_id", "start", "target",
        "transfer_encoding", "upgrade", "version", "way",
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.method = b""
        self.target = b""
        self.version = "1.1"
        self.forwarded: tuple[tuple[bytes, bytes], ...] = ()
        self.host: bytes | None = None
        self.authorization = b""
        self.request_id = b""
        self.transfer_encoding: bytes | None = None
        self.upgrade = b""
        self.expect = b""
        self.close = False
        self.odd = ""
        self.asker: tuple[object, Any] | None = None
        self.way: Any = None
        self.start: tuple[object, bytes, bytes] | None = None

    @property
    def path(self) -> bytes:
        return self.target.partition(b"?")[0]

    def note(self, lower: bytes, name: bytes, value: bytes) -> None:
        if lower == b"host":
            if self.host is not None or not is_host(value):
                raise BadMessage("Host is there twice or is not a host name")
            self.host = value
        elif lower == b"content-length":
            if self.length is not None:
                raise BadMessage("Content-Length is there twice")
            self.length, self.length_name = content_length(value), name
        elif lower == b"authorization":
            if self.authorization:
                raise BadMessage("Authorization is there twice")
            self.authorization = value
        elif lower == b"x-request-id":
            if (
                is_request_id(value)
                and not self.request_id
                and b"x-request-id" not in map(bytes.lower, self.drop)
            ):
                self.request_id = value
            else:  # of two, none: each could be taken for the one
                self.drop += as_written(self.block, (b"x-request-id",))
                self.request_id = b""
        elif lower == b"expect":
            self.expect = value.lower()
        elif lower in FORWARDED:
            self.forwarded += ((lower, value),)
            self.drop += (name,)
        else:
            self.drop += (name,)
            self._note_hop(lower, value)

    def _note_hop(self, lower: bytes, value: bytes) -> None:
        if lower == b"connection":
            if value == b"keep-alive":
                return
            named = tokens(value)
            self.close = self.close or b"close" in named
            self.named += tuple(one for one in named if one not in _USUAL and one not in END_TO_END)
        elif lower == b"transfer-encoding":
            if self.transfer_encoding is not None or value.lower() != b"chunked":
                raise BadMessage("Transfer-Encoding is there twice or is not 'chunked'")
            self.transfer_encoding = value
        elif lower == b"upgrade":
            self.upgrade = value

    def settle(self) -> None:
        """Once all headers are known: contradictions, and whether this is for the fast lane."""
        if self.transfer_encoding is not None and (self.length is not None or self.version == "1.0"):
            raise BadMessage("Transfer-Encoding together with Content-Length or HTTP/1.0")
        if self.host is None and self.version != "1.0":
            raise BadMessage("Host is missing")
        if not self.target.isascii() or b"#" in self.target:
            raise BadMessage("the request target is not a path")
        if self.method not in ORDINARY or self.version != "1.1" or not self.target.startswith(b"/"):
            self.odd = "method, version or target"
        elif self.transfer_encoding is not None:
            self.odd = "transfer-encoding"
        elif self.expect or self.named:
            self.odd = "expect or connection options"


def read_request(head: bytes, memory: Memory[RequestHead]) -> tuple[RequestHead, int]:
    """`parse_request` for one of many on a connection; and the length of its body."""
    known = memory.recall(head)
    if known is not None:
        return known[0], known[1] or 0
    request = parse_request(head)
    if not request.odd:
        memory.keep(head, request)
    return request, request.length or 0


def parse_request(head: bytes) -> RequestHead:
    if not head.endswith(b"\r\n\r\n"):
        raise BadMessage("the head is not whole")
    start = head[: head.index(b"\r\n")]
    parser = HttpRequestParser(_NOBODY)
    try:
        parser.feed_data(head)
    except HttpParserUpgrade:
        pass  # ours to decide, by the headers
    except HttpParserError as error:
        raise BadMessage(str(error)) from None
    words = start.split(b" ")
    if len(words) != 3 or b"\n" in start or b"\r" in start or b"\0" in start:
        raise BadMessage("the request line is not METHOD TARGET VERSION")
    request = RequestHead()
    request.method, request.target, version = words
    if version not in _VERSIONS:
        raise BadMessage("only HTTP/1.1 and HTTP/1.0 are spoken here")
    request.version = _VERSIONS[version]
    request.block = head[len(start) : -2]
    request.read_lines(_HANDLED, _seen)
    request.settle()
    return request


def request_from_pairs(
    method: bytes, target: bytes, version: str, pairs: list[tuple[bytes, bytes]]
) -> RequestHead:
    """The same head from what another parser read: the same checks and the same facts."""
    request = RequestHead()
    request.method, request.target, request.version = method, target, version
    request.block = b"\r\n" + b"".join(b"%b: %b\r\n" % pair for pair in pairs)
    request.read_lines(_HANDLED, _seen)
    request.settle()
    return request
