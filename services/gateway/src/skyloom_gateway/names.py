"""Checks what callers put into paths before any of it becomes part of another address."""

from __future__ import annotations

import re
from urllib.parse import quote

from starlette.requests import Request

from skyloom_common.contracts.http import IDEMPOTENCY_KEY
from skyloom_common.core.errors import InvalidRequest
from skyloom_common.core.ids import new_id
from skyloom_common.core.names import check_cluster_name

_OPERATION = re.compile(r"[0-9A-Za-z][0-9A-Za-z-]{0,63}")
_JOB = re.compile(r"[0-9]{1,18}|latest")
_KEY = re.compile(r"[!-~]{1,200}")


def cluster(request: Request) -> str:
    """The cluster's part of an upstream path."""
    return quote(check_cluster_name(request.path_params["name"]), safe="")


def operation(request: Request) -> str:
    return _checked(
        request, "operation", _OPERATION, "an id, or its first letters, as `sky api status` shows them"
    )


def job(request: Request) -> str:
    return _checked(request, "job", _JOB, "a number as `sky queue` shows it, or latest")


def _checked(request: Request, name: str, form: re.Pattern[str], right: str) -> str:
    value: str = request.path_params[name]
    if not form.fullmatch(value):
        raise InvalidRequest(f"{name}: {value[:60]!r} is not valid; use {right}", details={"field": name})
    return value


def idempotency_key(request: Request) -> str:
    """The caller's, or a new one: between our services a call may then be repeated in any case."""
    key = request.headers.get(IDEMPOTENCY_KEY)
    if key is None:
        return new_id()
    if not _KEY.fullmatch(key):
        raise InvalidRequest(
            f"{IDEMPOTENCY_KEY}: not valid; use up to 200 visible ASCII characters without spaces"
        )
    return key
