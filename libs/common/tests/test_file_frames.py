"""Frames of chunks: any cut of the stream gives the same frames, and no wrong byte gets through."""

from __future__ import annotations

import hashlib
import os
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyloom_common.contracts.file_frames import (
    DEFLATED,
    HEAD_SIZE,
    FrameDecoder,
    encode_frame,
    frame_head,
)
from skyloom_common.contracts.files import CorruptChunk
from skyloom_common.core.chunks import CHUNK_SIZE
from skyloom_common.core.errors import InvalidRequest


def name_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def decode(stream: bytes, step: int = 1 << 16) -> list[bytes]:
    decoder = FrameDecoder()
    out = [
        frame.chunk() for at in range(0, len(stream), step) for frame in decoder.feed(stream[at : at + step])
    ]
    decoder.finish()
    return out


@given(st.lists(st.binary(max_size=2000)), st.booleans(), st.integers(1, 700))
def test_frames_survive_any_cut_of_the_stream(chunks: list[bytes], deflate: bool, step: int) -> None:
    stream = b"".join(encode_frame(name_of(data), data, deflate=deflate) for data in chunks)
    assert decode(stream, step) == chunks


def test_only_what_shrinks_is_deflated() -> None:
    text, noise = b"text " * 10_000, os.urandom(50_000)
    assert len(encode_frame(name_of(text), text, deflate=True)) < 5_000
    assert len(encode_frame(name_of(noise), noise, deflate=True)) == HEAD_SIZE + len(noise)
    assert decode(encode_frame(name_of(text), text, deflate=True)) == [text]


def test_a_changed_byte_is_refused() -> None:
    stream = bytearray(encode_frame(name_of(b"hello"), b"hello"))
    stream[-1] ^= 1
    with pytest.raises(CorruptChunk):
        decode(bytes(stream))


@pytest.mark.parametrize(
    "payload", [b"not deflated", zlib.compress(b"x" * 100)[:-4], zlib.compress(bytes(CHUNK_SIZE + 1))]
)
def test_bad_deflated_data_is_refused_and_a_bomb_is_not_inflated(payload: bytes) -> None:
    with pytest.raises(CorruptChunk):
        decode(frame_head(name_of(b"x"), len(payload), DEFLATED) + payload)


def test_whole_frames_before_a_cut_are_given_and_the_cut_is_told() -> None:
    stream = encode_frame(name_of(b"one"), b"one") + encode_frame(name_of(b"two"), b"two")[:-1]
    decoder = FrameDecoder()
    assert [frame.chunk() for frame in decoder.feed(stream)] == [b"one"]
    with pytest.raises(InvalidRequest, match="inside a frame"):
        decoder.finish()


@pytest.mark.parametrize(
    "head", [b"NOPE" + bytes(40), b"SKCH\x02" + bytes(39), b"SKCH\x00" + bytes(35) + b"\xff\xff\xff\xff"]
)
def test_what_is_not_a_frame_is_refused_before_its_payload_is_read(head: bytes) -> None:
    with pytest.raises(InvalidRequest, match="not a frame"):
        list(FrameDecoder().feed(head))
