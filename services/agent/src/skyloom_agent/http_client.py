"""A small HTTP/1.1 client for calls from the head to its peers: asyncio streams and h11, one connection per call.

It raises the error class that the peer meant, and AgentUnreachable when there is no answer; it never retries.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any, Optional
from urllib.parse import urlsplit

import h11

from skyloom_common.core import wire
from skyloom_common.core.errors import AgentUnreachable, RemoteError, SkyloomError

READ_SIZE = 256 * 1024
CONNECT_SECONDS = 5.0


class PeerClient:
    def __init__(self, url: str, token: str) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or "127.0.0.1"
        self._port = parts.port or 80
        self._token = token

    async def call(self, method: str, path: str, body: Any = None, timeout: float = 20.0) -> Any:
        """The JSON answer of one request."""
        try:
            return json.loads(await asyncio.wait_for(self._whole(method, path, body), timeout) or b"null")
        except asyncio.TimeoutError:
            raise AgentUnreachable(f"{self._host}:{self._port} did not answer within {timeout:g} s") from None

    async def _whole(self, method: str, path: str, body: Any) -> bytes:
        return b"".join([part async for part in self.stream(method, path, body)])

    async def stream(
        self, method: str, path: str, body: Any = None, silence: Optional[float] = None
    ) -> AsyncIterator[bytes]:
        """The body as it comes. `silence`: so many seconds without a byte count as unreachable."""
        try:
            reader, writer = await asyncio.wait_for(
                asyncio.open_connection(self._host, self._port, limit=READ_SIZE), CONNECT_SECONDS
            )
        except (OSError, asyncio.TimeoutError) as error:
            raise AgentUnreachable(f"{self._host}:{self._port} is not reached: {_words(error)}") from error
        try:
            async for part in self._exchange(reader, writer, method, path, body, silence):
                yield part
        except (OSError, asyncio.TimeoutError, h11.ProtocolError) as error:
            raise AgentUnreachable(f"{self._host}:{self._port} broke off: {_words(error)}") from error
        finally:
            writer.close()

    async def _exchange(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        method: str,
        path: str,
        body: Any,
        silence: Optional[float],
    ) -> AsyncIterator[bytes]:
        http = h11.Connection(h11.CLIENT)
        writer.write(self._head(http, method, path, b"" if body is None else wire.dumps(body)))
        await writer.drain()
        failed: Optional[int] = None
        error_body = b""
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(await asyncio.wait_for(reader.read(READ_SIZE), silence))
            elif isinstance(event, h11.Response):
                failed = event.status_code if event.status_code >= 400 else None
            elif isinstance(event, h11.Data) and failed is None:
                yield bytes(event.data)
            elif isinstance(event, h11.Data):
                error_body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                break
        if failed is not None:
            raise _meant(failed, error_body)

    def _head(self, http: h11.Connection, method: str, path: str, payload: bytes) -> bytes:
        headers = [
            ("host", f"{self._host}:{self._port}"),
            ("authorization", f"Bearer {self._token}"),
            ("content-length", str(len(payload))),
            ("connection", "close"),
        ]
        data = http.send(h11.Request(method=method, target=path, headers=headers)) or b""
        if payload:
            data += http.send(h11.Data(data=payload)) or b""
        return data + (http.send(h11.EndOfMessage()) or b"")


def _meant(status: int, body: bytes) -> SkyloomError:
    with contextlib.suppress(ValueError):
        parsed = json.loads(body)
        if isinstance(parsed, dict):
            return SkyloomError.from_wire(parsed)
    return RemoteError(f"the peer answered {status}: {body[:200]!r}")


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__
