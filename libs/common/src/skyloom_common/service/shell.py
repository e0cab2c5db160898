"""The outermost layer of every app, as one pure ASGI wrapper: request id, auth, body limit, metrics,
log line, and an answer for what nobody caught. One layer and not six: every hot call goes through it.

It must not read bodies or know paths beyond the open ones.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from starlette.requests import ClientDisconnect

from skyloom_common.contracts.http import REQUEST_ID
from skyloom_common.core.errors import InternalError, SkyloomError, TooLarge
from skyloom_common.service.auth import CALLER_KEY, Authenticator
from skyloom_common.service.logs import request_id
from skyloom_common.service.metrics import HttpMetrics
from skyloom_common.service.responses import error_response

Scope = dict[str, Any]
Message = dict[str, Any]
CLIENT_GONE = 499
OPEN_PATHS = frozenset({"/healthz", "/readyz"})
_REQUEST_ID = REQUEST_ID.lower().encode()
_GOOD_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class BodyLimit:
    """`limit` bytes of a request's body, or what the longest matching path prefix allows."""

    def __init__(self, limit: int, by_prefix: Mapping[str, int] | None = None) -> None:
        self._limit = limit
        self._by_prefix = sorted((by_prefix or {}).items(), key=lambda item: -len(item[0]))

    def of(self, path: str) -> int:
        return next((limit for prefix, limit in self._by_prefix if path.startswith(prefix)), self._limit)


class Streams:
    """The requests whose answer has begun and not ended."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._cut = False

    def begin(self) -> None:
        if self._cut:
            raise asyncio.CancelledError
        if (task := asyncio.current_task()) is not None:
            self._tasks.add(task)

    def end(self) -> None:
        self._tasks.discard(asyncio.current_task())

    def cut(self) -> None:
        """Ends them where they are, and those that begin later: the process is stopping."""
        self._cut = True
        for task in list(self._tasks):
            task.cancel()

    @property
    def were_cut(self) -> bool:
        return self._cut


class Shell:
    def __init__(
        self,
        app: Any,
        *,
        name: str,
        auth: Authenticator,
        metrics: HttpMetrics,
        body_limit: BodyLimit,
        streams: Streams,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._auth = auth
        self._metrics = metrics
        self._body_limit = body_limit
        self._streams = streams
        self._clock = clock
        self._log = logging.getLogger(f"skyloom.{name}")

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        await _Exchange(self, scope, receive, send).run()

    async def _serve(self, exchange: _Exchange) -> None:
        scope = exchange.scope
        if scope["path"] not in OPEN_PATHS:
            scope[CALLER_KEY] = self._auth.authenticate(scope["headers"])
        exchange.limit_body(self._body_limit.of(scope["path"]))
        await self._app(scope, exchange.receive, exchange.send)


class _Exchange:
    """One request and its response."""

    def __init__(self, shell: Shell, scope: Scope, receive: Any, send: Any) -> None:
        self.scope = scope
        self._shell = shell
        self._receive = receive
        self._send = send
        self._id = _id_of(scope)
        self._status = 0
        self._left = 0
        self._streaming = False
        self._refused: SkyloomError | None = None

    async def run(self) -> None:
        started = self._shell._clock()
        token = request_id.set(self._id.decode())
        try:
            await self._shell._serve(self)
        except SkyloomError as error:
            await self._fail(error)
        except ClientDisconnect:
            self._status = self._status or CLIENT_GONE
        except asyncio.CancelledError:
            if not (self._status and self._shell._streams.were_cut):
                self._status = self._status or CLIENT_GONE
                raise
        except Exception:
            where = (self.scope["method"], self.scope["path"])
            self._shell._log.exception("request failed method=%s path=%s", *where)
            if self._status:
                return
            await self._fail(InternalError("an internal error happened; the server's log has the details"))
        finally:
            self._shell._streams.end()
            self._account(self._shell._clock() - started)
            request_id.reset(token)

    def limit_body(self, limit: int) -> None:
        for name, value in self.scope["headers"]:
            if name == b"content-length" and value.isdigit() and int(value) > limit:
                raise _too_large(limit)
        self._left = self._limit = limit

    async def receive(self) -> Message:
        message: Message = await self._receive()
        if message["type"] == "http.request":
            self._left -= len(message.get("body", b""))
            if self._left < 0:
                self._refused = _too_large(self._limit)
                raise self._refused
        return message

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if self._refused is not None:
            # The framework made something else of our refusal while it read the body.
            await self._refuse(self._refused)
            return
        if message["type"] == "http.response.start":
            self._status = message["status"]
            message["headers"] = [*message.get("headers", ()), (_REQUEST_ID, self._id)]
        elif message.get("more_body") and not self._streaming:
            self._streaming = True
            self._shell._streams.begin()
        await self._send(message)

    async def _refuse(self, error: SkyloomError) -> None:
        if not self._status:
            self._refused = None
            await self._fail(error)
            self._refused = error

    async def _fail(self, error: SkyloomError) -> None:
        if self._status:
            # Too late to say so: a torn answer is how the client learns of it.
            self._shell._log.warning(
                "answer torn method=%s path=%s: %s", self.scope["method"], self.scope["path"], error
            )
            return
        await error_response(error)(self.scope, self._receive, self.send)

    def _account(self, seconds: float) -> None:
        route = self.scope.get("route")
        template = getattr(route, "path", None) or (
            self.scope["path"] if self.scope["path"] in OPEN_PATHS else "unmatched"
        )
        method, status = self.scope["method"], self._status
        self._shell._metrics.observe(method, template, status, seconds)
        level = logging.DEBUG if method == "GET" and status < 500 else logging.INFO
        if self._shell._log.isEnabledFor(level):
            self._shell._log.log(
                level,
                "request method=%s path=%s status=%d ms=%.1f",
                method,
                self.scope["path"],
                status,
                seconds * 1e3,
            )


def _id_of(scope: Scope) -> bytes:
    for name, value in scope["headers"]:
        if name == _REQUEST_ID and _GOOD_ID.fullmatch(value):
            return bytes(value)
    return secrets.token_hex(8).encode()


def _too_large(limit: int) -> TooLarge:
    return TooLarge(
        f"the request's body is too large; at most {limit} bytes are taken here",
        hint="Put large files into file_mounts or the workdir instead of the task itself.",
    )
