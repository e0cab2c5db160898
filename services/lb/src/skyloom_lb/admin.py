"""The admin port: /healthz, /readyz, /metrics, /debug/endpoints. Loopback unless told otherwise; never on the data port.

With a token, /metrics and /debug ask for `Authorization: Bearer TOKEN`. Without one, only loopback peers get them.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from aiohttp import web

from skyloom_lb.observe.collector import render
from skyloom_lb.observe.snapshot import living

Read = Callable[[], Awaitable[dict[str, Any]]]
Ready = Callable[[], Awaitable[tuple[bool, dict[str, Any]]]]


def admin_app(read: Read, ready: Ready, token: str) -> web.Application:
    app = web.Application(middlewares=[_guard(token)])

    async def healthz(request: web.Request) -> web.Response:
        return _json({"ok": True})

    async def readyz(request: web.Request) -> web.Response:
        yes, detail = await ready()
        return _json({"ready": yes, **detail}, 200 if yes else 503)

    async def metrics(request: web.Request) -> web.Response:
        data = await read()
        return web.Response(body=render(lambda: data), headers={"Content-Type": "text/plain; version=0.0.4"})

    async def endpoints(request: web.Request) -> web.Response:
        data = await read()
        return _json({name: living(service) for name, service in data["services"].items()})

    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/debug/endpoints", endpoints)
    return app


def _guard(token: str) -> Any:
    @web.middleware
    async def guard(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if request.path.startswith(("/metrics", "/debug")) and not _may(request, token):
            return _json(
                {"error": {"code": "unauthorized", "message": "Give the admin token as Bearer."}}, 401
            )
        return await handler(request)

    return guard


def _may(request: web.Request, token: str) -> bool:
    if token:
        given = request.headers.get("Authorization", "")
        return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), f"Bearer {token}".encode())
    try:
        return ipaddress.ip_address(request.remote or "").is_loopback
    except ValueError:
        return False


def _json(data: Any, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(data), status=status, content_type="application/json")
