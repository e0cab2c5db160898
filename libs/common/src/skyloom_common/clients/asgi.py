"""httpx straight into an ASGI app of the same process, streaming both ways with back-pressure.

The app gets one piece of room: it cannot run ahead of its reader. Closing a response that has begun cancels
the app's task; a call that has not answered yet runs on, as it does behind a socket, so that no write is cut
in two. httpx's own ASGI transport buffers the whole answer, so that no stream would ever begin.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any, Optional

import httpx

App = Callable[[Any, Any, Any], Awaitable[None]]
_CLOSE_GRACE = 5.0


class AsgiTransport(httpx.AsyncBaseTransport):
    """`name` is the host that the app sees. The app's lifespan is run by whoever made the app."""

    def __init__(self, app: App, name: str = "app") -> None:
        self._app = app
        self._server = (name, 80)
        self._running: set[asyncio.Task[None]] = set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        call = _Call(request)
        task = call.task = asyncio.create_task(_run(self._app, self._scope(request), call))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        try:
            await call.begin()
        except BaseException:
            await call.aclose()
            raise
        return httpx.Response(call.status, headers=call.headers, stream=call)

    async def aclose(self) -> None:
        for task in list(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def _scope(self, request: httpx.Request) -> dict[str, Any]:
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": request.method,
            "scheme": "http",
            "path": request.url.path,
            "raw_path": request.url.raw_path.split(b"?", 1)[0],
            "query_string": request.url.query,
            "root_path": "",
            "headers": [(name.lower(), value) for name, value in request.headers.raw],
            "client": ("127.0.0.1", 0),
            "server": self._server,
            "extensions": {},
        }


async def _run(app: App, scope: dict[str, Any], call: _Call) -> None:
    try:
        await app(scope, call.receive, call.send)
    except Exception as error:
        call.error = error
    finally:
        call.finish()


class _Call(httpx.AsyncByteStream):
    """One request: the app's `receive` and `send`, and the response's body."""

    def __init__(self, request: httpx.Request) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.task: Optional[asyncio.Task[None]] = None
        self.error: Optional[Exception] = None
        assert isinstance(request.stream, httpx.AsyncByteStream)
        self._body = request.stream.__aiter__()
        self._sent_all = False
        self._closed = asyncio.Event()
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._piece = b""
        self._complete = False
        self._over = False

    # --- the app's side ---

    async def receive(self) -> dict[str, Any]:
        if self._sent_all:
            await self._closed.wait()
            return {"type": "http.disconnect"}
        try:
            piece = await self._body.__anext__()
        except StopAsyncIteration:
            self._sent_all = True
            piece = b""
        except Exception:
            # The sender broke off: to the app that is a client that went away.
            self._sent_all = True
            self._closed.set()
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": piece, "more_body": not self._sent_all}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = list(message.get("headers", ()))
            self._changed.set()
        elif message["type"] == "http.response.body":
            await self._send_body(message.get("body", b""), message.get("more_body", False))

    async def _send_body(self, body: bytes, more: bool) -> None:
        if body:
            await self._room.wait()
            if self._closed.is_set():
                raise OSError("the reader went away")
            self._piece = body
            self._room.clear()
        if not more:
            self._complete = True
            self._closed.set()
        self._changed.set()

    def finish(self) -> None:
        self._over = True
        self._changed.set()

    # --- the client's side ---

    async def begin(self) -> None:
        """Until the status is known."""
        while not (self.status or self._over):
            await self._wait()
        if not self.status:
            raise httpx.ReadError(f"the app did not answer: {self.error!r}") from self.error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            if self._piece:
                piece, self._piece = self._piece, b""
                self._room.set()
                yield piece
            elif self._complete:
                return
            elif self._over:
                raise httpx.ReadError(f"the app ended in the middle of its answer: {self.error!r}")
            else:
                await self._wait()

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    async def aclose(self) -> None:
        self._closed.set()
        self._room.set()
        task = self.task
        if task is not None and not task.done() and self.status and not self._complete:
            task.cancel()
            await asyncio.wait([task], timeout=_CLOSE_GRACE)
