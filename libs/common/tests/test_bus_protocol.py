"""The Redis protocol of the bus: values in any pieces, refusals, connections that break in the middle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from skyloom_common.bus.resp import Backoff, Redis, RespError, encode, pairs, parse

VALUES = [
    (b"+OK\r\n", "OK"),
    (b":-7\r\n", -7),
    (b"$5\r\nh\xc3\xa4\r\n\r\n", "hä\r\n"),
    (b"$0\r\n\r\n", ""),
    (b"$-1\r\n", None),
    (b"*-1\r\n", None),
    (b"*0\r\n", []),
    (b"*2\r\n*1\r\n:1\r\n$1\r\nx\r\n", [[1], "x"]),
]

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.mark.parametrize(("wire", "value"), VALUES)
def test_values(wire: bytes, value: Any) -> None:
    assert parse(bytearray(wire + b"+next\r\n"), 0) == (value, len(wire))


def test_words_are_encoded_by_their_bytes() -> None:
    assert encode(("SET", "ä", 5)) == b"*3\r\n$3\r\nSET\r\n$2\r\n\xc3\xa4\r\n$1\r\n5\r\n"


def test_pairs() -> None:
    assert pairs(["a", 1, "b", 2]) == {"a": 1, "b": 2}


def test_pauses_grow_and_begin_anew() -> None:
    backoff = Backoff()
    pauses = [backoff.next() for _ in range(12)]
    assert pauses == sorted(pauses)
    assert pauses[-1] == 5.0
    backoff.reset()
    assert backoff.next() == pauses[0]


@asynccontextmanager
async def server(folder: Path, handler: Handler) -> AsyncIterator[str]:
    path = folder / "s"
    listening = await asyncio.start_unix_server(handler, path)
    async with listening:
        yield f"unix://{path}"


def answering(*pieces: bytes) -> Handler:
    """One command in, these pieces out, each on its own."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        writer.close()

    return handle


async def test_an_answer_in_single_bytes(tmp_path: Path) -> None:
    wire = VALUES[-1][0]
    async with server(tmp_path, answering(*(wire[at : at + 1] for at in range(len(wire))))) as url:
        assert await Redis(url).call("X") == [[1], "x"]


async def test_a_refusal_is_raised_with_its_words(tmp_path: Path) -> None:
    async with server(tmp_path, answering(b"-NOAUTH no\r\n")) as url:
        with pytest.raises(RespError, match="NOAUTH no"):
            await Redis(url).call("X")


@pytest.mark.parametrize("wire", [b"", b"$5\r\nab", b"HTTP/1.1 400 no\r\n", b"$x\r\n"])
async def test_a_connection_that_ends_or_talks_otherwise_is_a_connection_error(
    tmp_path: Path, wire: bytes
) -> None:
    async with server(tmp_path, answering(wire)) as url:
        redis = Redis(url)
        with pytest.raises(ConnectionError):
            await redis.call("X")


async def test_silence_has_an_end(tmp_path: Path) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with server(tmp_path, silent) as url:
        redis = Redis(url)
        with pytest.raises(TimeoutError, match="no answer within"):
            await redis.call("X", seconds=0.02)
        await redis.close()


async def test_a_cancelled_call_takes_no_other_calls_answer(tmp_path: Path) -> None:
    release = asyncio.Event()

    async def numbered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"first\r\n")
        await release.wait()
        writer.write(b":1\r\n")
        await reader.readuntil(b"second\r\n")
        writer.write(b":2\r\n")
        await reader.read()
        writer.close()

    async with server(tmp_path, numbered) as url:
        redis = Redis(url)
        first = asyncio.create_task(redis.call("first"))
        await asyncio.sleep(0.01)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        release.set()
        assert await redis.call("second") == 2
        await redis.close()


async def test_a_password_and_a_database_are_told_first(tmp_path: Path) -> None:
    heard = bytearray()

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(1000):
            heard.extend(piece)
            writer.write(b"+OK\r\n")
        writer.close()

    listening = await asyncio.start_server(note, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    async with listening:
        redis = Redis(f"redis://me:p%40ss@127.0.0.1:{port}/3")
        assert await redis.call("PING") == "OK"
        await redis.close()
    assert bytes(heard) == encode(("AUTH", "me", "p@ss")) + encode(("SELECT", "3")) + encode(("PING",))


def test_it_works_on_uvloop_too(tmp_path: Path) -> None:
    async def main() -> Any:
        async with server(tmp_path, answering(b":5\r\n")) as url:
            return await Redis(url).call("X")

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(main()) == 5
