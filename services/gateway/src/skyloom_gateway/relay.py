"""Passes requests on and answers back without looking inside: bytes for small answers, streams for long ones.

A stream has back-pressure from end to end, and ends upstream as soon as the client goes away.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from skyloom_common.clients.base import ServiceClient
from skyloom_common.contracts.http import LOG_OFFSET, REQUEST_ID, USER_HEADER
from skyloom_common.core.errors import SkyloomError
from skyloom_common.service.auth import CALLER_KEY
from skyloom_common.service.logs import request_id
from skyloom_common.service.responses import JSON

_KEPT = ("content-type", "content-length", "content-disposition", LOG_OFFSET.lower())
_STREAM_HEADERS = [(b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")]


def forwarded(request: Request, **more: str) -> dict[str, bytes]:
    """Headers of the upstream call: for whom, as part of which request, and some of the caller's own."""
    own = {name: value.encode("latin-1") for name, value in more.items()}
    user = request.scope[CALLER_KEY].user
    return {USER_HEADER: user.encode(), REQUEST_ID: request_id.get().encode(), **own}


def target(request: Request, path: str) -> str:
    """`path` with the caller's own query, unchanged."""
    query = request.scope["query_string"]
    return f"{path}?{query.decode('latin-1')}" if query else path


async def small(
    client: ServiceClient,
    request: Request,
    path: str,
    *,
    headers: dict[str, bytes] | None = None,
) -> Response:
    """The upstream's answer to the same method, query and body, as bytes."""
    body = await request.body() if request.method != "GET" else None
    answer = await client.call(
        request.method,
        target(request, path),
        body=body,
        headers=headers or forwarded(request),
    )
    return Response(answer.content, answer.status_code, media_type=JSON)


async def upload(client: ServiceClient, request: Request, path: str) -> Response:
    """The body goes on while it comes in."""
    failed: list[Exception] = []

    async def pieces() -> AsyncIterator[bytes]:
        try:
            async for piece in request.stream():
                if piece:
                    yield piece
        except (SkyloomError, ClientDisconnect) as error:
            failed.append(error)
            raise

    sent = forwarded(
        request, **{"Content-Type": request.headers.get("content-type", "application/octet-stream")}
    )
    try:
        async with client.stream(
            request.method, target(request, path), headers=sent, body=pieces()
        ) as answer:
            return Response(await answer.aread(), answer.status_code, media_type=JSON)
    except (SkyloomError, ClientDisconnect):
        # What went wrong on the way in is the cause; that upstream did not like the torn body is only a consequence.
        if failed:
            raise failed[0] from None
        raise


class Stream(Response):
    """The upstream's answer, piece by piece. Errors before the first byte are answered as errors."""

    def __init__(self, client: ServiceClient, request: Request, path: str, **headers: str) -> None:
        self._client = client
        self._target = target(request, path)
        self._sent = forwarded(request, **headers)
        self.background = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async with self._client.stream("GET", self._target, headers=self._sent) as answer:
            await send(
                {
                    "type": "http.response.start",
                    "status": answer.status_code,
                    "headers": [*_kept(answer.headers), *_STREAM_HEADERS],
                }
            )
            await _either(_pump(answer, send), _gone(receive))


def _kept(headers: httpx.Headers) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), headers[name].encode("latin-1")) for name in _KEPT if name in headers]


async def _pump(answer: httpx.Response, send: Any) -> None:
    async for piece in answer.aiter_raw():
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _gone(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue


async def _either(pump: Any, gone: Any) -> None:
    """Until everything was sent or the client is gone; what the pump raised is raised while the client is there."""
    sending, watching = asyncio.ensure_future(pump), asyncio.ensure_future(gone)
    try:
        await asyncio.wait((sending, watching), return_when=asyncio.FIRST_COMPLETED)
        if sending.done() and not watching.done():
            sending.result()
    finally:
        sending.cancel()
        watching.cancel()
        await asyncio.gather(sending, watching, return_exceptions=True)
