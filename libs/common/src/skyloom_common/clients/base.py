"""What the typed clients share: calls, errors as classes, streams.

It must not retry: callers know what may be repeated. `http` brings address, token and transport; a client
neither opens nor closes it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any, Optional, TypeVar, Union

import httpx

from skyloom_common.contracts.http import USER_HEADER
from skyloom_common.core.errors import InvalidRequest, RemoteError, SkyloomError, Unavailable
from skyloom_common.core.wire import dumps, from_wire

T = TypeVar("T")
Headers = Mapping[str, Union[str, bytes]]
MAX_ERROR_BODY = 1 << 20


class ServiceClient:
    """`service`: its name in errors. Connection faults raise Unavailable, error answers their own class."""

    service = "service"
    unreachable: type[Unavailable] = Unavailable

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def call(
        self,
        method: str,
        path: str,
        *,
        body: Optional[bytes] = None,
        params: Any = None,
        headers: Optional[Headers] = None,
        timeout: Any = httpx.USE_CLIENT_DEFAULT,
    ) -> httpx.Response:
        """A 2xx answer, wholly read."""
        sent = {**(headers or {}), "Content-Type": "application/json"} if body is not None else headers
        request = self._request(method, path, params=params, headers=sent, content=body, timeout=timeout)
        try:
            response = await self.http.send(request)
        except httpx.HTTPError as error:
            raise self._connection_error(error) from error
        if response.status_code >= 300:
            raise self.error_of(response.status_code, response.content)
        return response

    async def get(self, kind: type[T], path: str, params: Any = None, headers: Optional[Headers] = None) -> T:
        response = await self.call("GET", path, params=params, headers=headers)
        return self.decode(kind, response.content)

    async def post(self, kind: type[T], path: str, request: Any, headers: Optional[Headers] = None) -> T:
        response = await self.call("POST", path, body=dumps(request), headers=headers)
        return self.decode(kind, response.content)

    @contextlib.asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        *,
        params: Any = None,
        headers: Optional[Headers] = None,
        body: Any = None,
    ) -> AsyncIterator[httpx.Response]:
        """A 2xx answer whose body is still to come, for as long as it takes. Leaving the block closes it."""
        request = self._request(
            method, path, params=params, headers=headers, content=body, timeout=self._patient()
        )
        try:
            response = await self.http.send(request, stream=True)
        except httpx.HTTPError as error:
            raise self._connection_error(error) from error
        try:
            if response.status_code >= 300:
                raise self.error_of(response.status_code, await _bounded(response))
            yield response
        except httpx.HTTPError as error:
            raise self._connection_error(error) from error
        finally:
            await response.aclose()

    async def pieces(
        self, path: str, params: Any = None, headers: Optional[Headers] = None
    ) -> AsyncIterator[bytes]:
        """The body's pieces as they come."""
        async with self.stream("GET", path, params=params, headers=headers) as response:
            async for piece in response.aiter_raw():
                yield piece

    def decode(self, kind: type[T], body: bytes) -> T:
        try:
            return from_wire(kind, json.loads(body))
        except (ValueError, SkyloomError) as error:
            raise RemoteError(
                f"{self.service} answered something that is not a {kind.__name__}: {error}"
            ) from error

    def error_of(self, status: int, body: bytes) -> SkyloomError:
        """The error that an answer carries, as the class its sender raised."""
        try:
            parsed = json.loads(body)
        except ValueError:
            parsed = None
        if isinstance(parsed, dict) and "code" in parsed:
            return SkyloomError.from_wire(parsed)
        words = body[:200].decode("utf-8", "replace").strip()
        kind = self.unreachable if status in (502, 503, 504) else RemoteError
        return kind(f"{self.service} answered with status {status}" + (f": {words}" if words else ""))

    def _request(self, method: str, path: str, **parts: Any) -> httpx.Request:
        try:
            return self.http.build_request(method, path, **parts)
        except httpx.InvalidURL as error:
            raise InvalidRequest(f"the address {path[:80]!r} is not valid: {error}") from error

    def _connection_error(self, error: httpx.HTTPError) -> Unavailable:
        words = str(error) or type(error).__name__
        return self.unreachable(f"{self.service} cannot be reached at {self.http.base_url}: {words}")

    def _patient(self) -> httpx.Timeout:
        """Streams may be silent for long; only connecting is bounded."""
        return httpx.Timeout(None, connect=self.http.timeout.connect)


async def _bounded(response: httpx.Response) -> bytes:
    body = b""
    async for piece in response.aiter_raw():
        body += piece
        if len(body) > MAX_ERROR_BODY:
            break
    return body


def on_behalf_of(user: str, more: Optional[Headers] = None) -> dict[str, Union[str, bytes]]:
    """Headers of a call made for `user`; names need not be ASCII."""
    return {**(more or {}), USER_HEADER: user.encode()} if user else dict(more or {})
