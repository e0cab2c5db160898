"""The chunked coding, read strictly: where a body ends, and what its payload is.

Own, because llhttp does not say where in the bytes a message ended, and a byte too many given to the client is a response
that nobody asked for.
"""

from __future__ import annotations

import re

from skyloom_lb.wire.headers import BadMessage

_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?\Z")
SIZES = {line % size: size for line in (b"%x", b"%X") for size in range(1, 4096)}
"""How the sizes of usual chunks are written. Looked up, not computed: no digits that mean something to `int` alone."""
_MAX_LINE = 1024
_MAX_TRAILERS = 8 * 1024
_SIZE, _DATA, _DATA_END, _TRAILER, _DONE = range(5)


class ChunkReader:
    """Fed with what comes, in pieces of any size. `done` once the last chunk and its `trailers` (raw lines) are complete.

    `feed(data, payload)` returns how many bytes of `data` belong to the body; with a list given, payload is appended to it.
    """

    __slots__ = ("_left", "_line", "_state", "trailers")

    def __init__(self) -> None:
        self._state = _SIZE
        self._left = 0
        self._line = b""
        self.trailers = b""

    @property
    def done(self) -> bool:
        return self._state == _DONE

    @property
    def between(self) -> bool:
        """Whether the last byte fed ended a chunk: something of ours can be put here."""
        return self._state == _SIZE and not self._line

    def only(self, data: bytes) -> bytes | None:
        """The payload when `data` is exactly one more chunk, as events of streams come; else None, and nothing was fed."""
        at = data.find(b"\r\n")
        if SIZES.get(data[:at].lstrip(b"0")) != len(data) - at - 4 or not data.endswith(b"\r\n"):
            return None
        return data[at + 2 : -2] if self._state == _SIZE and not self._line else None

    def feed(self, data: bytes, payload: list[bytes] | None = None) -> int:
        at, size = 0, len(data)
        while at < size and self._state != _DONE:
            if self._state == _DATA:
                end = min(size, at + self._left)
                if payload is not None:
                    payload.append(data[at:end])
                self._left -= end - at
                at = end
                if self._left == 0:
                    self._state = _DATA_END
                continue
            end = data.find(b"\r\n", at)
            if end < 0 or self._line:
                at = self._partial(data, at)
                continue
            self._take(data[at:end])
            at = end + 2
        return at

    def _partial(self, data: bytes, at: int) -> int:
        """A line that lies in two reads: byte ranges are put together until its CR LF is there."""
        held = len(self._line)
        joined = self._line + data[at : at + _MAX_LINE + 2]
        end = joined.find(b"\r\n")
        if end < 0:
            if len(joined) > _MAX_LINE:
                raise BadMessage("a chunk's line is too long")
            self._check_open(joined)
            self._line = joined
            return len(data)
        self._line = b""
        self._take(joined[:end])
        return at + end + 2 - held

    def _check_open(self, line: bytes) -> None:
        """Garbage must not wait for its line's end."""
        if self._state == _DATA_END and not b"\r\n".startswith(line):
            raise BadMessage("a chunk does not end where it said")
        if b"\n" in line or (self._state == _SIZE and _SIZE_LINE.match(line.removesuffix(b"\r")) is None):
            raise BadMessage("a chunk's size is not a hexadecimal number")

    def _take(self, line: bytes) -> None:
        if self._state == _DATA_END:
            if line:
                raise BadMessage("a chunk does not end where it said")
            self._state = _SIZE
        elif self._state == _SIZE:
            found = _SIZE_LINE.match(line)
            if found is None or len(line) > _MAX_LINE:
                raise BadMessage("a chunk's size is not a hexadecimal number")
            self._left = int(found[1], 16)
            self._state = _DATA if self._left else _TRAILER
        else:
            if len(self.trailers) + len(line) > _MAX_TRAILERS or _is_no_trailer(line):
                raise BadMessage("a trailer is malformed or too long")
            if line:
                self.trailers += line + b"\r\n"
            else:
                self._state = _DONE


def _is_no_trailer(line: bytes) -> bool:
    return b"\n" in line or b"\r" in line or b"\0" in line or line[:1] in (b" ", b"\t")


def chunk(payload: bytes) -> bytes:
    """`payload` as one chunk; nothing for nothing, because an empty chunk would end the body."""
    return b"%x\r\n%b\r\n" % (len(payload), payload) if payload else b""


LAST_CHUNK = b"0\r\n\r\n"
