"""Clients that speak HTTP/1.0: what was written for HTTP/1.1 becomes what they understand.

They know neither chunks nor 1xx; their answer ends with its length or with the connection.
"""

from __future__ import annotations

from skyloom_lb.wire.chunks import ChunkReader
from skyloom_lb.wire.headers import without_any


class Plain:
    """Fed with whole heads, each with or without the beginning of its body, then with the rest of the body."""

    __slots__ = ("_begun", "_chunks")

    def __init__(self) -> None:
        self._begun = False
        self._chunks: ChunkReader | None = None

    def feed(self, data: bytes) -> bytes:
        if self._begun:
            return self._body(data)
        while data.startswith(b"HTTP/1.1 1"):
            data = data[data.index(b"\r\n\r\n") + 4 :]
        if not data:
            return b""
        self._begun = True
        end = data.index(b"\r\n\r\n") + 2
        head = without_any(data[:end], (b"transfer-encoding",))
        if len(head) != end:
            self._chunks = ChunkReader()
        return head + b"\r\n" + self._body(data[end + 2 :])

    def _body(self, data: bytes) -> bytes:
        if self._chunks is None:
            return data
        parts: list[bytes] = []
        self._chunks.feed(data, parts)
        return b"".join(parts)
