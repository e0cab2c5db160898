"""Answers made of contracts: encoded once by core.wire, never validated again by the framework."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from skyloom_common.core.errors import SkyloomError
from skyloom_common.core.wire import dumps

JSON = "application/json"


def wire_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return this from a route; declare `response_model` there so that OpenAPI stays complete."""
    return Response(dumps(value), status, headers, media_type=JSON)


def error_response(error: SkyloomError) -> Response:
    headers = {"WWW-Authenticate": "Bearer"} if error.http_status == 401 else None
    return Response(dumps(error.to_wire()), error.http_status, headers, media_type=JSON)
