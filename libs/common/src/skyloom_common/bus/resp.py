"""A small asyncio client of the Redis protocol (RESP2): one pipelined connection, opened when it is needed.

It neither retries nor pools: whoever blocks on a read opens a connection for that. A cancelled call is over at once,
and what the server still answers to it is dropped. No library: importing one costs more than starting the server.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from typing import Any, cast
from urllib.parse import unquote, urlsplit

COMMAND_SECONDS = 2.0
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 5.0
DEFAULT_PORT = 6379


class RespError(Exception):
    """The server refused a command; its own words."""


class _Incomplete(Exception):
    """More bytes are needed."""


FAULTS = (RespError, OSError)
"""All that `call` may raise. OSError (ConnectionError, TimeoutError): it does not answer now."""


class Redis:
    """`url`: unix:///PATH, redis:// or rediss://[USER:PASSWORD@]HOST[:PORT][/DB]."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._parts = urlsplit(url)
        self._link: _Link | None = None
        self._opening = asyncio.Lock()
        self._closed = False

    async def call(self, *words: str | float, seconds: float = COMMAND_SECONDS) -> Any:
        """The answer: str, int, None or a list of those. Raises RespError, or OSError while it is away."""
        link = self._link
        if link is None or link.broken:
            link = await self._connected()
        return await _within(link, link.send(words), seconds)

    async def call_blocking(self, *words: str | float, seconds: float) -> Any:
        """For a command that waits on the server. Cancelling it closes the connection: the server is still waiting."""
        try:
            return await self.call(*words, seconds=seconds)
        except asyncio.CancelledError:
            self._drop()
            raise

    async def close(self) -> None:
        self._closed = True
        self._drop()

    def _drop(self) -> None:
        if self._link is not None:
            self._link.abort()
            self._link = None

    async def _connected(self) -> _Link:
        async with self._opening:
            if self._link is not None and not self._link.broken:
                return self._link
            if self._closed:
                raise ConnectionError("the connection was closed")
            async with asyncio.timeout(COMMAND_SECONDS):
                link = await self._open()
                try:
                    for words in self._greeting():
                        await link.send(words)
                except BaseException:
                    link.abort()
                    raise
            self._link = link
            return link

    async def _open(self) -> _Link:
        loop, parts = asyncio.get_running_loop(), self._parts
        if parts.scheme == "unix":
            _, link = await loop.create_unix_connection(_Link, unquote(parts.path))
        else:
            context = ssl.create_default_context() if parts.scheme == "rediss" else None
            host, port = parts.hostname or "127.0.0.1", parts.port or DEFAULT_PORT
            _, link = await loop.create_connection(_Link, host, port, ssl=context)
        return link

    def _greeting(self) -> list[tuple[str, ...]]:
        words: list[tuple[str, ...]] = []
        if self._parts.password is not None:
            user = [unquote(self._parts.username)] if self._parts.username else []
            words.append(("AUTH", *user, unquote(self._parts.password)))
        database = self._parts.path.strip("/") if self._parts.scheme != "unix" else ""
        if database and database != "0":
            words.append(("SELECT", database))
        return words


async def _within(link: _Link, answer: asyncio.Future[Any], seconds: float) -> Any:
    try:
        async with asyncio.timeout(seconds):
            return await answer
    except TimeoutError:
        link.abort()
        raise TimeoutError(f"no answer within {seconds:g} s") from None


class _Link(asyncio.Protocol):
    """One connection; answers come in the order of the commands."""

    def __init__(self) -> None:
        self.broken = False
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._buffer = bytearray()

    def send(self, words: tuple[str | int | float, ...]) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self.broken or self._transport is None:
            future.set_exception(ConnectionError("the connection is closed"))
            return future
        self._waiting.append(future)
        self._transport.write(encode(words))
        return future

    def abort(self) -> None:
        self.broken = True
        if self._transport is not None:
            self._transport.abort()
        self._fail(ConnectionError("the connection was closed"))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        position = 0
        try:
            while position < len(self._buffer):
                answer, position = parse(self._buffer, position)
                self._answer(answer)
        except _Incomplete:
            pass
        except ValueError:
            self.abort()
            return
        del self._buffer[:position]

    def connection_lost(self, error: Exception | None) -> None:
        self.broken = True
        self._fail(ConnectionError(str(error) if error else "the server closed the connection"))

    def _answer(self, answer: Any) -> None:
        if not self._waiting:
            raise ValueError("an answer without a question")
        future = self._waiting.popleft()
        if future.done():
            return
        if isinstance(answer, RespError):
            future.set_exception(answer)
        else:
            future.set_result(answer)

    def _fail(self, error: Exception) -> None:
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_exception(error)


def encode(words: tuple[str | int | float, ...]) -> bytes:
    pieces = [b"*%d\r\n" % len(words)]
    for word in words:
        raw = str(word).encode()
        pieces.append(b"$%d\r\n%b\r\n" % (len(raw), raw))
    return b"".join(pieces)


def parse(buffer: bytearray, position: int) -> tuple[Any, int]:
    """The value that begins at `position` and where the next one begins. A refusal is a RespError, as a value."""
    end = buffer.find(b"\r\n", position)
    if end < 0:
        raise _Incomplete
    kind, rest, after = buffer[position], bytes(buffer[position + 1 : end]), end + 2
    if kind == ord("+"):
        return rest.decode(), after
    if kind == ord("-"):
        return RespError(rest.decode("utf-8", "replace")), after
    if kind == ord(":"):
        return int(rest), after
    if kind == ord("$"):
        return _parse_text(buffer, int(rest), after)
    if kind == ord("*"):
        return _parse_list(buffer, int(rest), after)
    raise ValueError(f"not an answer of Redis: {bytes(buffer[position:end])[:40]!r}")


def _parse_text(buffer: bytearray, length: int, position: int) -> tuple[str | None, int]:
    if length < 0:
        return None, position
    if len(buffer) < position + length + 2:
        raise _Incomplete
    return bytes(buffer[position : position + length]).decode("utf-8", "replace"), position + length + 2


def _parse_list(buffer: bytearray, length: int, position: int) -> tuple[list[Any] | None, int]:
    if length < 0:
        return None, position
    items: list[Any] = []
    for _ in range(length):
        item, position = parse(buffer, position)
        items.append(item)
    return items, position


def pairs(flat: list[Any]) -> dict[str, Any]:
    """["a", 1, "b", 2] as a mapping."""
    return dict(zip(flat[::2], flat[1::2], strict=False))


class Backoff:
    """How long to wait before the next try; `reset` after one that worked."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._pause = FIRST_PAUSE

    def next(self) -> float:
        pause, self._pause = self._pause, min(LONGEST_PAUSE, self._pause * 2)
        return pause
