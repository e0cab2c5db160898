"""Turns the validator's findings into one InvalidRequest that names field, value and the right form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from skyloom_common.core.errors import InvalidRequest

_MAX_SHOWN = 60
_MAX_PROBLEMS = 20
_QUIET = ("secret", "token", "password", "envs")


def invalid_request(findings: Sequence[Mapping[str, Any]]) -> InvalidRequest:
    """The message tells the first problem; `details["problems"]` has them all (a bounded number)."""
    problems = [_problem(finding) for finding in findings[:_MAX_PROBLEMS]]
    first = problems[0] if problems else {"field": "body", "message": "the request is not valid"}
    more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
    return InvalidRequest(
        f"{first['field']}: {first['message']}{more}", details={"field": first["field"], "problems": problems}
    )


def _problem(finding: Mapping[str, Any]) -> dict[str, str]:
    where = [str(part) for part in finding.get("loc", ()) if part not in ("body", "query", "path", "header")]
    field = ".".join(where) or "body"
    kind = str(finding.get("type", ""))
    if kind == "missing":
        return {"field": field, "message": "missing"}
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        return {"field": field, "message": "unknown field"}
    if kind == "json_invalid":
        return {"field": "body", "message": "the body is not valid JSON"}
    message = str(finding.get("msg", "not valid"))
    message = message[:1].lower() + message[1:]
    value = finding.get("input")
    if isinstance(value, bytes):
        return {
            "field": field,
            "message": "send it as JSON, with the header 'Content-Type: application/json'",
        }
    if value is None or isinstance(value, (dict, list)) or any(word in field.lower() for word in _QUIET):
        return {"field": field, "message": message}
    return {"field": field, "message": f"{_shown(value)} is not valid: {message}"}


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."
