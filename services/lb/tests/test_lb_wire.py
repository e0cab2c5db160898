"""Heads and chunks as bytes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyloom_lb.wire.chunks import LAST_CHUNK, ChunkReader, chunk
from skyloom_lb.wire.forwarded import forwarded_lines
from skyloom_lb.wire.head import Memory
from skyloom_lb.wire.headers import BadMessage, as_written, content_length, without
from skyloom_lb.wire.request import RequestHead, parse_request, read_request, request_from_pairs
from skyloom_lb.wire.response import ResponseHead, own_answer, parse_response, read_response

HOST = b"GET /a?b HTTP/1.1\r\nHost: lb\r\n"


@pytest.mark.parametrize(
    "value", [b"", b"+5", b"-1", b"0x5", b"5_0", b" 5", b"5 ", b"5,5", b"\xd9\xa5", b"9" * 19, b"1e3"]
)
def test_a_length_is_digits(value: bytes) -> None:
    with pytest.raises(BadMessage):
        content_length(value)


def test_a_length() -> None:
    assert content_length(b"007") == 7


@pytest.mark.parametrize(
    ("lines", "odd"),
    [
        (b"", ""),
        (b"Connection: keep-alive\r\n", ""),
        (b"Connection: close\r\n", ""),
        (b"Content-Length: 5\r\n", ""),
        (b"Transfer-Encoding: chunked\r\n", "transfer-encoding"),
        (b"Expect: 100-continue\r\n", "expect or connection options"),
        (b"Connection: Upgrade\r\nUpgrade: websocket\r\n", "expect or connection options"),
        (b"Upgrade: h2c\r\n", ""),
        (b"Connection: X-Mine\r\nX-Mine: 1\r\n", "expect or connection options"),
    ],
)
def test_what_is_for_the_fast_lane(lines: bytes, odd: str) -> None:
    assert parse_request(HOST + lines + b"\r\n").odd == odd


def test_the_block_is_raw_and_hop_by_hop_lines_are_cut_as_they_were_written() -> None:
    head = parse_request(
        HOST + b"CoNNection: close\r\nX-A:  spaced  \r\nkeep-ALIVE: 5\r\nX-B: Keep-Alive: no\r\n\r\n"
    )
    assert head.close
    assert without(head.block, head.drop) == b"\r\nHost: lb\r\nX-A:  spaced  \r\nX-B: Keep-Alive: no\r\n"


def test_a_repeated_line_is_cut_everywhere() -> None:
    block = b"\r\nA: 1\r\na: 2\r\nB: A: 3\r\nA: 4\r\n"
    assert without(block, as_written(block, [b"a"])) == b"\r\nB: A: 3\r\n"
    assert without(b"\r\nA: 1\r\nA: 2\r\n", [b"A"]) == b"\r\n"


def test_connection_cannot_name_what_a_message_needs() -> None:
    head = parse_request(HOST + b"Connection: Host, Content-Length, Authorization, X-Mine\r\n\r\n")
    assert head.named == (b"x-mine",)


def test_both_ways_to_a_head_agree() -> None:
    raw = HOST + b"Connection: X-Mine\r\nX-Mine: 1\r\nX-Request-Id: a b\r\nAuthorization: Bearer k\r\n\r\n"
    one = parse_request(raw)
    pairs = [(b"Host", b"lb"), (b"Connection", b"X-Mine"), (b"X-Mine", b"1"), (b"X-Request-Id", b"a b")]
    other = request_from_pairs(b"GET", b"/a?b", "1.1", [*pairs, (b"Authorization", b"Bearer k")])
    for name in (
        "method",
        "target",
        "host",
        "named",
        "odd",
        "request_id",
        "authorization",
        "close",
        "length",
    ):
        assert getattr(one, name) == getattr(other, name), name


@pytest.mark.parametrize(
    ("raw", "method", "length", "chunked", "until_close", "keep_alive"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"GET", 5, False, False, True),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"GET", None, True, False, True),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"GET", None, False, True, False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", b"GET", 5, False, False, False),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n",
            b"GET",
            5,
            False,
            False,
            False,
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"HEAD", 0, False, False, True),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b"GET", 0, False, False, True),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", b"GET", 0, False, False, True),
    ],
)
def test_where_an_answer_ends(
    raw: bytes, method: bytes, length: Any, chunked: bool, until_close: bool, keep_alive: bool
) -> None:
    head = parse_response(raw, method)
    assert (head.length, head.chunked, head.until_close, head.keep_alive) == (
        length,
        chunked,
        until_close,
        keep_alive,
    )


@given(
    payloads=st.lists(st.binary(min_size=1, max_size=40), max_size=6),
    cuts=st.lists(st.integers(1, 7), min_size=1, max_size=40),
    rest=st.binary(max_size=10),
)
def test_chunks_read_the_same_however_they_are_cut(
    payloads: list[bytes], cuts: list[int], rest: bytes
) -> None:
    whole = b"".join(chunk(one) for one in payloads) + LAST_CHUNK
    data, reader, found, used = whole + rest, ChunkReader(), [], 0
    number = 0
    while used < len(data) and not reader.done:
        size = cuts[number % len(cuts)]
        number += 1
        part = data[used : used + size]
        taken = reader.feed(part, found)
        assert taken == len(part) or reader.done
        used += taken
    assert reader.done
    assert used == len(whole)
    assert b"".join(found) == b"".join(payloads)


@pytest.mark.parametrize(
    "bad", [b"g\r\n", b"-1\r\n", b"+1\r\n", b"0x1\r\n", b" 1\r\n", b"1 \r \n", b"1\n", b"\r\n", b"1" * 16 + b"\r\n",
            b"1\r\nab\r\n", b"1\r\na\n", b"0\r\nA: b\n\r\n", b"0\r\n A: b\r\n\r\n", b"1;\x00\r\n", b"1;" + b"a" * 2000],
)  # fmt: skip
@pytest.mark.parametrize("single", [True, False])
def test_bad_chunks_are_refused_however_they_are_cut(bad: bytes, single: bool) -> None:
    reader = ChunkReader()
    with pytest.raises(BadMessage):
        for part in [bad[at : at + 1] for at in range(len(bad))] if single else [bad]:
            reader.feed(part)
        reader.feed(b"\r\n")


def test_forwarded_lines() -> None:
    head = parse_request(
        b"GET / HTTP/1.1\r\nHost: lb:80\r\nX-Forwarded-For: 1.1.1.1\r\nForwarded: for=1.1.1.1\r\n\r\n"
    )
    lines = forwarded_lines("::1", True, head, trusted=False)
    assert lines == (
        b'x-forwarded-for: ::1\r\nx-forwarded-proto: https\r\nforwarded: for="[::1]";proto=https;host="lb:80"\r\n'
        b"x-forwarded-host: lb:80\r\n"
    )
    assert b"x-forwarded-for: 1.1.1.1, ::1\r\n" in forwarded_lines("::1", True, head, trusted=True)
    assert b"forwarded: for=1.1.1.1, for=" in forwarded_lines("::1", True, head, trusted=True)


def test_own_answers() -> None:
    raw = own_answer(
        429, b"text/plain", b"no", request_id=b"r", headers=((b"retry-after", b"1"),), close=True
    )
    head, _, body = raw.partition(b"\r\n\r\n")
    assert parse_response(head + b"\r\n\r\n", b"GET").status == 429
    assert body == b"no"


KNOWN = b"POST /v1/x HTTP/1.1\r\nHost: lb\r\nContent-Length: 7\r\nConnection: X-A\r\nX-A: 1\r\nAuthorization: a\r\n\r\n"
LINES = [
    b"\r\n",
    b"0",
    b"12",
    b"+5",
    b" 7 ",
    b"\r\nContent-Length: 3",
    b"\r\nX-B: 2",
    b"\n",
    b"\0",
    b",8",
    b"9" * 19,
]


def facts(found: RequestHead | tuple[RequestHead, int]) -> object:
    """What a head means: of a remembered one everything but its length, which is told beside it."""
    head, length = found if isinstance(found, tuple) else (found, found.length or 0)
    names = [name for one in type(head).__mro__ for name in getattr(one, "__slots__", ())]
    return length, {
        name: getattr(head, name) for name in names if name[0] != "_" and name not in ("length", "block")
    }


def read(parse: Any, *arguments: Any) -> object:
    try:
        return facts(parse(*arguments))
    except BadMessage:
        return "refused"


@given(st.integers(0, len(KNOWN)), st.integers(0, 12), st.sampled_from(LINES) | st.binary(max_size=4))
def test_a_head_that_is_remembered_reads_as_if_it_were_new(at: int, gone: int, new: bytes) -> None:
    memory: Memory[RequestHead] = Memory()
    memory.keep(KNOWN, parse_request(KNOWN))
    raw = KNOWN[:at] + new + KNOWN[at + gone :]
    assert read(read_request, raw, memory) == read(parse_request, raw)


def test_only_the_length_may_be_new() -> None:
    memory: Memory[RequestHead] = Memory()
    memory.keep(KNOWN, parse_request(KNOWN))
    longer = KNOWN.replace(b"Length: 7", b"Length: 1234")
    found = memory.recall(longer)
    assert found is not None
    assert found[1] == 1234
    assert found[0].onward((b"authorization",)) == b"\r\nHost: lb\r\nX-A: 1\r\n"
    for other in (b"7, 8", b"0x7", b"", b"7\r\nContent-Length: 8", b"7\nA: b"):
        assert memory.recall(KNOWN.replace(b"Length: 7", b"Length: " + other)) is None


def test_a_remembered_answer_with_another_length() -> None:
    memory: Memory[ResponseHead] = Memory()
    raw = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\n"
    first, length = read_response(raw, b"GET", memory)
    again = read_response(raw.replace(b"5", b"66"), b"GET", memory)
    assert (length, again) == (5, (first, 66))
    assert read_response(raw, b"HEAD", memory)[1] == 0
    assert read_response(raw, b"GET", memory)[1] == 5


@pytest.mark.parametrize("data", [b"5\r\nhello\r\n", b"009\r\nhello\r\n\r\n\r\n"])
def test_one_whole_chunk(data: bytes) -> None:
    reader, payload = ChunkReader(), list[bytes]()
    only = reader.only(data)
    assert reader.feed(data, payload) == len(data)
    assert [only] == payload


@pytest.mark.parametrize(
    "data",
    [
        b"0\r\n\r\n", b"5\r\nhell", b"5\r\nhello\r\n0\r\n\r\n", b"5\r\nhelloxx", b"+5\r\nhello\r\n", b"5;a\r\nhello\r\n",
        b"0x5\r\nhello\r\n", b"4\r\nhello\r\n",
    ],
)  # fmt: skip
def test_what_is_not_one_whole_chunk_is_read_in_full(data: bytes) -> None:
    assert ChunkReader().only(data) is None
    begun = ChunkReader()
    begun.feed(b"f\r\n")
    assert begun.only(b"5\r\nhello\r\n") is None
