"""The app that every service starts from: health, readiness, metrics, errors as contracts, closed by default.

It must not know what a service does; services add routes to what `create_service_app` returns.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException
from starlette.responses import Response

from skyloom_common.core.errors import (
    InternalError,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    SkyloomError,
    TooLarge,
)
from skyloom_common.service.auth import Authenticator
from skyloom_common.service.metrics import CONTENT_TYPE, HttpMetrics
from skyloom_common.service.problems import invalid_request
from skyloom_common.service.responses import error_response, wire_response
from skyloom_common.service.shell import BodyLimit, Shell, Streams

Readiness = Callable[[], Awaitable[Mapping[str, str]]]
"""Name of each thing that is needed to "ok" or to what is wrong with it (shown to nobody without a token)."""
Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]
MAX_BODY = 8 << 20
OK = "ok"


def create_service_app(
    *,
    name: str,
    version: str,
    auth: Authenticator,
    readiness: Readiness,
    lifespan: Lifespan | None = None,
    registry: CollectorRegistry | None = None,
    body_limit: BodyLimit | None = None,
) -> FastAPI:
    """`app.state.metrics.registry` is the registry; `app.state.streams.cut()` ends endless answers at a stop.

    A path without a route is a JSON 404, behind the same auth."""
    metrics = HttpMetrics(registry or CollectorRegistry())
    app = FastAPI(
        title=f"skyloom-{name}",
        version=version,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.metrics = metrics
    app.state.streams = streams = Streams()
    app.add_middleware(
        Shell,
        name=name,
        auth=auth,
        metrics=metrics,
        body_limit=body_limit or BodyLimit(MAX_BODY),
        streams=streams,
    )
    app.add_exception_handler(SkyloomError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    _add_probes(app, name, readiness, metrics)
    return app


def _add_probes(app: FastAPI, name: str, readiness: Readiness, metrics: HttpMetrics) -> None:
    async def healthz(request: Request) -> Response:
        return wire_response({"status": OK, "service": name})

    async def readyz(request: Request) -> Response:
        parts = {part: OK if state == OK else "unavailable" for part, state in (await readiness()).items()}
        ready = all(state == OK for state in parts.values())
        body = {"status": OK if ready else "unavailable", "service": name, "checks": parts}
        return wire_response(body, 200 if ready else 503)

    async def prometheus(request: Request) -> Response:
        return Response(metrics.exposition(), headers={"Content-Type": CONTENT_TYPE})

    app.add_route("/healthz", healthz, include_in_schema=False)
    app.add_route("/readyz", readyz, include_in_schema=False)
    app.add_route("/metrics", prometheus, include_in_schema=False)


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, SkyloomError)
    return error_response(error)


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_response(invalid_request(error.errors()))


class _MethodNotAllowed(InvalidRequest):
    code = "method_not_allowed"
    http_status = 405


_BY_STATUS: dict[int, type[SkyloomError]] = {
    400: InvalidRequest,
    403: PermissionDenied,
    404: NotFound,
    405: _MethodNotAllowed,
    413: TooLarge,
}


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = _BY_STATUS.get(error.status_code, InvalidRequest if error.status_code < 500 else InternalError)
    response = error_response(kind(_sentence(request, error)))
    response.status_code = error.status_code
    return response


def _sentence(request: Request, error: HTTPException) -> str:
    where = f"{request.method} {request.url.path[:200]!r}"
    if error.status_code == 404:
        return f"{where}: there is no such path"
    if error.status_code == 405:
        return f"{where}: this path does not take {request.method}"
    detail: Any = error.detail
    return f"{where}: {detail}"
