"""How a worker's rank reaches the head: frames of one kind byte, four length bytes and the payload."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from skyloom_common.core.errors import RemoteError

DATA = b"D"
STATE = b"S"
ALIVE = b"A"
MAX_FRAME = 16 * 1024 * 1024
_HEAD = struct.Struct("!cI")


def encode(kind: bytes, payload: bytes = b"") -> bytes:
    return _HEAD.pack(kind, len(payload)) + payload


class Decoder:
    """Bytes in, whole frames out, however the bytes were cut."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        self._buffer += data
        at = 0
        while len(self._buffer) - at >= _HEAD.size:
            kind, size = _HEAD.unpack_from(self._buffer, at)
            if kind not in (DATA, STATE, ALIVE) or size > MAX_FRAME:
                raise RemoteError(f"the peer sent a frame of kind {kind!r} and {size} bytes")
            if len(self._buffer) - at - _HEAD.size < size:
                break
            at += _HEAD.size
            yield kind, bytes(self._buffer[at : at + size])
            at += size
        del self._buffer[:at]
