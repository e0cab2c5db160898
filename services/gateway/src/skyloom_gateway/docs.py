"""What OpenAPI says of routes that pass their request on as it came: parameters and kinds of answers."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

_NUMBERS = {"count", "days", "limit", "offset", "tail", "rank", "after", "since"}
_FLAGS = {"all", "all_regions", "all_users", "refresh", "follow"}


def parameters(*query: str, path: str = "") -> dict[str, Any]:
    """`query` names (a trailing * = may be repeated) and the names in `path`, separated by spaces."""
    found: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in path.split()
    ]
    found += [_query(name) for name in query]
    return {"parameters": found}


def _query(name: str) -> dict[str, Any]:
    plain = name.rstrip("*")
    kind = "number" if plain in _NUMBERS else "string"
    schema: dict[str, Any] = {"type": kind}
    if plain in _FLAGS:
        schema = {"type": "integer", "enum": [0, 1]}
    if name.endswith("*"):
        schema = {"type": "array", "items": schema}
    return {"name": plain, "in": "query", "required": False, "schema": schema}


def octets(
    extra: dict[str, Any] | None = None, media_type: str = "application/octet-stream"
) -> dict[str, Any]:
    """Arguments of a route that answers with a stream of bytes."""
    content = {media_type: {"schema": {"type": "string", "format": "binary"}}}
    return {
        "response_class": Response,
        "responses": {200: {"description": "A stream", "content": content}},
        "openapi_extra": extra or {},
    }


def text(extra: dict[str, Any] | None = None) -> dict[str, Any]:
    return octets(extra, "text/plain")
