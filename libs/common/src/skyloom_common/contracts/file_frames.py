"""How chunks travel: a stream of frames, each a chunk with its sha256, plain or deflated.

  4 bytes "SKCH" | 1 byte flags (1 = deflated) | 3 zero bytes | 32 bytes sha256 | 4 bytes length (big-endian) | that many bytes
The hash is of the plain bytes. A decoder holds at most one frame.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from skyloom_common.contracts.files import CorruptChunk
from skyloom_common.core.chunks import CHUNK_SIZE
from skyloom_common.core.errors import InvalidRequest

_HEAD = struct.Struct(">4sB3s32sI")
_MAGIC = b"SKCH"
_NO_BYTES = b"\0\0\0"
HEAD_SIZE = _HEAD.size
DEFLATED = 1
_WORTH_TRYING = 512
_SAMPLE = 8192
MAX_PAYLOAD = CHUNK_SIZE + 1024


class Frame(NamedTuple):
    name: str
    flags: int
    payload: bytes

    def chunk(self) -> bytes:
        """The plain bytes, checked against the name. CPU-bound: call it in a thread where a loop must go on."""
        data = _inflated(self) if self.flags & DEFLATED else self.payload
        if len(data) > CHUNK_SIZE or hashlib.sha256(data).hexdigest() != self.name:
            raise CorruptChunk(
                f"chunk {self.name[:12]}: its content does not have that hash; it was not kept"
            )
        return data


def _inflated(frame: Frame) -> bytes:
    inflate = zlib.decompressobj()
    try:
        data = inflate.decompress(frame.payload, CHUNK_SIZE + 1)
    except zlib.error as error:
        raise CorruptChunk(f"chunk {frame.name[:12]}: not deflated data ({error})") from error
    if not inflate.eof:
        raise CorruptChunk(f"chunk {frame.name[:12]}: cut off, or longer than {CHUNK_SIZE} bytes")
    return data


def frame_head(name: str, length: int, flags: int = 0) -> bytes:
    return _HEAD.pack(_MAGIC, flags, _NO_BYTES, bytes.fromhex(name), length)


def encode_frame(name: str, data: bytes, *, deflate: bool = False) -> bytes:
    """One frame. With `deflate`, deflated when a sample says that it pays."""
    if (
        deflate
        and len(data) >= _WORTH_TRYING
        and len(zlib.compress(data[:_SAMPLE], 1)) < 0.8 * min(len(data), _SAMPLE)
    ):
        small = zlib.compress(data, 1)
        if len(small) < len(data):
            return frame_head(name, len(small), DEFLATED) + small
    return frame_head(name, len(data)) + data


class FrameDecoder:
    """Bytes in, whole frames out: `for frame in decoder.feed(data)`, and `finish()` when the stream is over."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        buffer = self._buffer
        buffer += data
        at = 0
        try:
            while len(buffer) - at >= HEAD_SIZE:
                magic, flags, zeros, digest, length = _HEAD.unpack_from(buffer, at)
                if magic != _MAGIC or zeros != _NO_BYTES or flags & ~DEFLATED or length > MAX_PAYLOAD:
                    raise InvalidRequest(
                        "the chunk stream has something that is not a frame where one should begin"
                    )
                begin = at + HEAD_SIZE
                if len(buffer) - begin < length:
                    break
                at = begin + length
                with memoryview(buffer) as view:
                    payload = bytes(view[begin:at])
                yield Frame(digest.hex(), flags, payload)
        finally:
            del buffer[:at]

    def finish(self) -> None:
        if self._buffer:
            raise InvalidRequest("the chunk stream ends inside a frame; what came whole before it was kept")
