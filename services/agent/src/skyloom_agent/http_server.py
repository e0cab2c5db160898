"""A small HTTP/1.1 server: asyncio streams, h11 for the protocol, a Router for the answers.

It checks the bearer token before anything else, streams bodies both ways with back-pressure, keeps connections alive,
bounds header size and waiting time, and turns every SkyloomError into its wire form. It knows nothing of jobs.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hmac
import logging
import socket
from collections.abc import AsyncIterator
from typing import Optional

import h11

from skyloom_agent.router import Request, Response, Router, parse_target
from skyloom_common.core.errors import InternalError, InvalidRequest, SkyloomError, Unauthenticated

log = logging.getLogger(__name__)

READ_SIZE = 256 * 1024
MAX_HEADER = 32 * 1024
HEADER_SECONDS = 20.0
IDLE_SECONDS = 120.0
OPEN_PATHS = ("/healthz",)


class HttpServer:
    def __init__(self, router: Router, token: str) -> None:
        self._router = router
        self._token = token.encode()
        self._server: Optional[asyncio.AbstractServer] = None
        self._connections: set[asyncio.Task[None]] = set()

    async def listen(self, host: str, port: int) -> int:
        """Listens on the port, or on another one when it is taken; says which."""
        sock = _bind(host, port)
        self._server = await asyncio.start_server(self._accept, sock=sock, limit=READ_SIZE, backlog=256)
        return int(sock.getsockname()[1])

    async def close(self) -> None:
        """Stops listening and breaks the open connections; readers ask again from where they stopped."""
        if self._server:
            self._server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await _Connection(self, reader, writer).serve()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError, h11.ProtocolError):
            pass  # The other side went away, or we are closing.
        finally:
            self._connections.discard(task)
            writer.close()

    def allows(self, request: Request) -> bool:
        if request.path in OPEN_PATHS:
            return True
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._token)

    async def answer(self, request: Request) -> Response:
        try:
            if not self.allows(request):
                raise Unauthenticated("the agent needs the token of its cluster (Authorization: Bearer ...)")
            return await self._router.handle(request)
        except SkyloomError as error:
            return Response.error(error)
        except (ConnectionError, h11.ProtocolError):
            raise
        except Exception:
            log.exception("%s %s failed", request.method, request.path)
            return Response.error(InternalError("the agent failed at this request; its log says why"))


class _Connection:
    """One client connection: requests one after another until either side closes."""

    def __init__(
        self, server: HttpServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._server = server
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEADER)

    async def serve(self) -> None:
        wait = HEADER_SECONDS
        while True:
            try:
                head = await asyncio.wait_for(self._next_event(), wait)
            except asyncio.TimeoutError:
                return
            except h11.RemoteProtocolError as error:
                await self._refuse(error)
                return
            if not isinstance(head, h11.Request):
                return
            request = self._request(head)
            if not _has_body(request):
                await self._next_event()  # Its end: from here on, what the client sends is the next request.
            await self._send(await self._server.answer(request))
            if not await self._ready_for_next():
                return
            wait = IDLE_SECONDS

    def _request(self, head: h11.Request) -> Request:
        path, query = parse_target(head.target)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}
        return Request(head.method.decode("ascii"), path, query, headers, self._body())

    async def _body(self) -> AsyncIterator[bytes]:
        while self._http.their_state is h11.SEND_BODY:
            event = await self._next_event()
            if isinstance(event, h11.Data):
                yield bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return
            else:
                raise ConnectionResetError("the client closed inside its request")

    async def _next_event(self) -> object:
        while True:
            event = self._http.next_event()
            if event is not h11.NEED_DATA:
                return event
            if self._http.they_are_waiting_for_100_continue:
                await self._write(h11.InformationalResponse(status_code=100, headers=[]))
            # h11 checks the size of what is not whole yet, so a header is read in small pieces.
            size = MAX_HEADER if self._http.their_state is h11.IDLE else READ_SIZE
            self._http.receive_data(await self._reader.read(size))

    async def _write(self, event: h11.Event) -> None:
        data = self._http.send(event)
        if data:
            self._writer.write(data)
            await self._writer.drain()

    async def _send(self, response: Response) -> None:
        headers = [("content-type", response.content_type), *response.headers.items()]
        if isinstance(response.body, bytes):
            headers.append(("content-length", str(len(response.body))))
        head = h11.Response(status_code=response.status, headers=headers)
        if isinstance(response.body, bytes):
            data = self._http.send(head) or b""
            data += self._http.send(h11.Data(data=response.body)) or b""
            data += self._http.send(h11.EndOfMessage()) or b""
            self._writer.write(data)
            await self._writer.drain()
        else:
            await self._write(head)
            await self._send_stream(response.body)

    async def _send_stream(self, body: AsyncIterator[bytes]) -> None:
        """Sends until the body ends or the client goes away, also while there is nothing to send."""
        sending = asyncio.ensure_future(self._pump(body))
        gone = asyncio.ensure_future(self._client_gone())
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                raise ConnectionResetError("the client went away")
            await sending
        finally:
            for task in (sending, gone):
                task.cancel()
            await asyncio.gather(sending, gone, return_exceptions=True)

    async def _pump(self, body: AsyncIterator[bytes]) -> None:
        try:
            async for chunk in body:
                if chunk:
                    await self._write(h11.Data(data=chunk))
            await self._write(h11.EndOfMessage())
        finally:
            with contextlib.suppress(AttributeError):
                await body.aclose()  # type: ignore[attr-defined]

    async def _client_gone(self) -> None:
        """Returns when the client closed. What it sends meanwhile (a pipelined request) is kept for later."""
        if self._http.their_state is h11.SEND_BODY:
            await asyncio.Event().wait()  # The handler itself is still reading the request.
        while True:
            data = await self._reader.read(READ_SIZE)
            if not data:
                return
            self._http.receive_data(data)

    async def _ready_for_next(self) -> bool:
        if self._http.our_state is not h11.DONE:
            return False
        if self._http.their_state is h11.SEND_BODY:
            await self._drop_rest()
        if self._http.their_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        return True

    async def _drop_rest(self) -> None:
        """A refused upload is read on for a moment, so that the client sees the answer and not a reset."""
        left = 4 * READ_SIZE
        with contextlib.suppress(asyncio.TimeoutError, ConnectionError):
            while left > 0 and self._http.their_state is h11.SEND_BODY:
                event = await asyncio.wait_for(self._next_event(), 2.0)
                left -= len(event.data) if isinstance(event, h11.Data) else 0

    async def _refuse(self, error: h11.RemoteProtocolError) -> None:
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        answer = Response.error(InvalidRequest(f"not a request this server understands: {error}"))
        answer.status = error.error_status_hint or 400
        answer.headers = {"connection": "close"}
        await self._send(answer)


def _has_body(request: Request) -> bool:
    return "transfer-encoding" in request.headers or request.headers.get("content-length", "0") != "0"


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in (port, 0):
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, candidate))
            # Listening here already: two processes may both bind with SO_REUSEADDR, only one may listen.
            sock.listen(256)
            sock.setblocking(False)
            return sock
        except OSError as error:
            sock.close()
            if error.errno != errno.EADDRINUSE or candidate == 0:
                raise
    raise OSError(errno.EADDRINUSE, f"no port is free on {host}")
