"""Requests, responses and the table of who answers what. Knows no socket and no job.

A handler is `async def handler(request: Request) -> Response`. Patterns hold `{name}` parts, one path segment each:
`router.add("GET", "/v1/jobs/{job_id}", handler)`; what matched lies in `request.params`.
A request body is read once: by `stream()` (any size, back-pressured), `read()` or `json()` (bounded).
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Mapping
from dataclasses import dataclass, field
from typing import Any, Callable, Optional, TypeVar, Union
from urllib.parse import parse_qsl, unquote

from skyloom_common.core import wire
from skyloom_common.core.errors import InvalidRequest, NotFound, SkyloomError, TooLarge

T = TypeVar("T")
MAX_JSON = 16 * 1024 * 1024


@dataclass
class Request:
    """`headers` and `query` hold the last value of each name; header names are lower case."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: AsyncIterator[bytes]
    params: Mapping[str, str] = field(default_factory=dict)

    def stream(self) -> AsyncIterator[bytes]:
        return self.body

    async def read(self, limit: int = MAX_JSON) -> bytes:
        """The whole body, or TooLarge as soon as it is known to be longer than `limit`."""
        declared = self.headers.get("content-length", "0")
        if declared.isdigit() and int(declared) > limit:
            raise TooLarge(f"the body has {declared} bytes; at most {limit} are taken here")
        parts, size = [], 0
        async for part in self.body:
            size += len(part)
            if size > limit:
                raise TooLarge(f"the body is longer than {limit} bytes")
            parts.append(part)
        return b"".join(parts)

    async def json(self, kind: type[T]) -> T:
        """The body as a contract; unknown fields are refused."""
        return wire.loads(kind, await self.read(), strict=True)

    def int_query(self, name: str) -> Optional[int]:
        """A non-negative number of the query, None when it is not there."""
        text = self.query.get(name)
        if text is None:
            return None
        if not text.isascii() or not text.isdigit() or len(text) > 18:
            raise InvalidRequest(
                f"{name}: {text[:40]!r} is not a whole number from 0 on", details={"field": name}
            )
        return int(text)

    def flag_query(self, name: str) -> bool:
        return self.query.get(name, "0") not in ("", "0", "false")


@dataclass
class Response:
    """`body` is bytes, or an async iterator that is sent chunk by chunk as it yields."""

    status: int = 200
    body: Union[bytes, AsyncIterator[bytes]] = b""
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def of(value: Any, status: int = 200) -> Response:
        """A contract (or containers of contracts) as JSON."""
        return Response(status, wire.dumps(value))

    @staticmethod
    def error(error: SkyloomError) -> Response:
        return Response(error.http_status, json.dumps(error.to_wire()).encode())


Handler = Callable[[Request], Awaitable[Response]]


class Router:
    def __init__(self) -> None:
        self._routes: list[tuple[str, tuple[str, ...], Handler]] = []

    def add(self, method: str, pattern: str, handler: Handler) -> None:
        self._routes.append((method, tuple(pattern.split("/")), handler))

    async def handle(self, request: Request) -> Response:
        """The answer of the route that matches; NotFound or 405 when none does."""
        parts = request.path.split("/")
        other_method = False
        for method, pattern, handler in self._routes:
            params = _match(pattern, parts)
            if params is None:
                continue
            if method == request.method:
                request.params = params
                return await handler(request)
            other_method = True
        if other_method:
            return Response(
                405, b'{"code":"invalid_request","message":"this path does not take that method"}'
            )
        raise NotFound(f"the agent has no {request.path[:200]!r}")


def _match(pattern: tuple[str, ...], parts: list[str]) -> Optional[dict[str, str]]:
    if len(pattern) != len(parts):
        return None
    params: dict[str, str] = {}
    for want, have in zip(pattern, parts):
        if want.startswith("{"):
            params[want[1:-1]] = unquote(have)
        elif want != have:
            return None
    return params


def parse_target(target: bytes) -> tuple[str, dict[str, str]]:
    """(path, query) of a request target. The path stays percent-encoded, so an encoded slash never splits a segment."""
    text = target.decode("ascii", "replace")
    path, _, query = text.partition("?")
    return path, dict(parse_qsl(query, keep_blank_values=True))
