"""Header rules both lanes share: which headers end at the next hop, what is refused, which facts of a request are kept.

Names are compared in lower case, values are raw bytes. Nothing here copies a whole header list.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

MAX_HEAD = 64 * 1024
MAX_HEADERS = 100

HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te",
     b"transfer-encoding", b"upgrade", b"http2-settings")
)  # fmt: skip
OURS = (b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"forwarded")
"""Who asked: said by us, whatever was claimed."""
_CLAIMS = (*OURS, b"x-real-ip", b"x-forwarded-port", b"x-forwarded-prefix", b"x-forwarded-server")
FORWARDED = frozenset((*_CLAIMS, *(name.replace(b"-", b"_") for name in _CLAIMS)))
"""CGI and WSGI cannot tell `_` from `-` in a name."""
# What a `Connection` header may not name, whoever asks: without them the message means something else.
END_TO_END = frozenset(
    (b"host", b"content-length", b"content-type", b"authorization", b"cookie", b"x-request-id")
)
_NOT_IN_TRAILERS = (
    HOP_BY_HOP
    | FORWARDED
    | END_TO_END
    | frozenset(
        (
            b"expect",
            b"content-encoding",
            b"content-range",
            b"max-forwards",
            b"range",
            b"set-cookie",
            b"trailer",
        )
    )
)

_HOST = re.compile(rb"(?:[A-Za-z0-9._~%!$&'()*+;=-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?\Z")
_TRAILER_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:")
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}\Z")


class BadMessage(Exception):
    """What came in is not a message we are sure about; the connection it came on must be closed."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def content_length(value: bytes) -> int:
    """Digits only: `int()` alone would take `+5`, `5_0` and blanks as well."""
    if not value.isdigit() or len(value) > 18:
        raise BadMessage("Content-Length is not a number of at most 18 digits")
    return int(value)


def tokens(value: bytes) -> list[bytes]:
    return [part.strip().lower() for part in value.split(b",") if part.strip()]


def is_host(value: bytes) -> bool:
    return _HOST.match(value) is not None


def is_request_id(value: bytes) -> bool:
    return _REQUEST_ID.match(value) is not None


def check_partial(head: bytes) -> None:
    """A head that is not whole yet: garbage is refused now, it must not wait for an end that may never come."""
    if len(head) > MAX_HEAD:
        raise BadMessage("the head is too long")
    if head.count(b"\n") != head.count(b"\r\n"):
        raise BadMessage("a line does not end with CR LF")


def without(block: bytes, names: Iterable[bytes]) -> bytes:
    """The header block (CR LF first, CR LF last) without every line of these names, written exactly as they came."""
    for name in names:
        at = block.find(b"\r\n" + name + b":")
        while at >= 0:
            block = block[:at] + block[block.index(b"\r\n", at + 2) :]
            at = block.find(b"\r\n" + name + b":", at)
    return block


def without_any(block: bytes, names: Iterable[bytes]) -> bytes:
    """As `without`, for names in lower case however they are written in the block."""
    lower = block.lower()
    for name in names:
        at = lower.find(b"\r\n" + name + b":")
        while at >= 0:
            end = lower.index(b"\r\n", at + 2)
            block, lower = block[:at] + block[end:], lower[:at] + lower[end:]
            at = lower.find(b"\r\n" + name + b":", at)
    return block


def as_written(block: bytes, names: Iterable[bytes]) -> tuple[bytes, ...]:
    """The spellings under which these lower-case names are in the block."""
    wanted = frozenset(names)
    found = (line.partition(b":")[0] for line in block.split(b"\r\n"))
    return tuple(dict.fromkeys(name for name in found if name.lower() in wanted))


def trailers_onward(lines: bytes) -> bytes:
    """Of raw trailer lines those that may follow a body: some receivers read trailers as if they had been headers."""
    kept = [
        line
        for line in lines.split(b"\r\n")
        if _TRAILER_NAME.match(line) and line.partition(b":")[0].lower() not in _NOT_IN_TRAILERS
    ]
    return b"".join(line + b"\r\n" for line in kept)
