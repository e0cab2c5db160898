"""The body of a request as it comes in: its payload, where it ends, and which of its trailers go on. No I/O."""

from __future__ import annotations

from skyloom_lb.wire.chunks import ChunkReader, chunk
from skyloom_lb.wire.headers import trailers_onward
from skyloom_lb.wire.request import RequestHead


class Body:
    __slots__ = ("_chunks", "_left")

    def __init__(self, head: RequestHead) -> None:
        self._chunks = ChunkReader() if head.transfer_encoding is not None else None
        self._left = head.length or 0

    @property
    def over(self) -> bool:
        return self._left == 0 if self._chunks is None else self._chunks.done

    @property
    def trailers(self) -> bytes:
        """Raw lines, once the body is over."""
        return trailers_onward(self._chunks.trailers) if self._chunks is not None else b""

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """The payload in `data`, and the bytes past the body's end. Raises BadMessage."""
        if self._chunks is not None:
            parts: list[bytes] = []
            end = self._chunks.feed(data, parts)
            return b"".join(parts), data[end:]
        payload = data[: self._left]
        self._left -= len(payload)
        return payload, data[len(payload) :]

    def onward(self, payload: bytes) -> bytes:
        """A part of the payload as the endpoint gets it: chunks are made anew, without the client's extensions."""
        return chunk(payload) if self._chunks is not None else payload

    def end(self) -> bytes:
        """What follows the last part."""
        return b"0\r\n%b\r\n" % self.trailers if self._chunks is not None else b""
