"""The HTTP server around an app: uvicorn, told to stop by an event, with a bounded end.

It must not handle signals or read the environment: `run` does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator

import uvicorn
from fastapi import FastAPI

OnReady = Callable[[str], Awaitable[None]]
_BEFORE_CUT = 0.2


def url_of(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def serve(
    app: FastAPI,
    sock: socket.socket,
    stop: asyncio.Event,
    *,
    grace_seconds: float = 10.0,
    on_ready: OnReady | None = None,
) -> None:
    """Until `stop` is set; then answers what was asked, but no longer than `grace_seconds`.

    Answers that are still being streamed (events, followed logs) are cut at once; their readers come back.
    """
    config = uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(1, round(grace_seconds)),
    )
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    server = _Server(config, stop, sock, on_ready, app.state.streams.cut)
    await server.serve([sock])


class _Server(uvicorn.Server):
    """Waits for an event instead of looking ten times a second; leaves signals to the process's owner."""

    def __init__(
        self,
        config: uvicorn.Config,
        stop: asyncio.Event,
        sock: socket.socket,
        on_ready: OnReady | None,
        cut_streams: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._stop = stop
        self._url = url_of(sock)
        self._on_ready = on_ready
        self._cut_streams = cut_streams

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        if self._on_ready is not None:
            await self._on_ready(self._url)
        await self._stop.wait()
        self.should_exit = True
        asyncio.get_running_loop().call_later(_BEFORE_CUT, self._cut_streams)


def _is_news(record: logging.LogRecord) -> bool:
    """A torn stream was logged with its reason where it was torn."""
    return not str(record.msg).startswith("ASGI callable returned without completing response")
