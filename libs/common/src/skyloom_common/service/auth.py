"""Who calls. Every path of every service needs a credential, but for the open ones of `create_service_app`.

An authenticator reads headers and nothing else. Comparisons take the same time whatever was sent.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Protocol

from fastapi import Depends, Request

from skyloom_common.contracts.http import USER_HEADER
from skyloom_common.core.errors import InvalidRequest, Unauthenticated

Headers = Iterable[tuple[bytes, bytes]]
CALLER_KEY = "skyloom.caller"
_USER_HEADER = USER_HEADER.lower().encode()
_MAX_USER = 200


@dataclass(frozen=True)
class Caller:
    """`user`: on whose behalf; "" when a service asks for itself."""

    user: str = ""


class Authenticator(Protocol):
    def authenticate(self, headers: Headers) -> Caller:
        """Who sent these headers. Raises Unauthenticated. Header names are lower case."""
        ...


class ServiceTokenAuth:
    """For services behind the gateway: one shared token; only its holders may say for which user they ask."""

    def __init__(self, token: str) -> None:
        if not token:
            raise ValueError("a service needs a service token")
        self._expected = b"Bearer " + token.encode()

    def authenticate(self, headers: Headers) -> Caller:
        sent, user = b"", b""
        for name, value in headers:
            if name == b"authorization":
                sent = value
            elif name == _USER_HEADER:
                user = value
        if not hmac.compare_digest(sent, self._expected):
            raise Unauthenticated(
                "the service token is missing or wrong" if sent else "a service token is needed",
                hint="Set SKYLOOM_SERVICE_TOKEN to the same value for all services.",
            )
        return Caller(_checked_user(user))


class UserTokenAuth:
    """For the gateway: bearer tokens of users, known by their SHA-256 (hex) only."""

    def __init__(self, users_by_hash: Mapping[str, str], *, hint: str = "") -> None:
        self._users = dict(users_by_hash)
        self._hint = hint

    @classmethod
    def single(cls, token: str, user: str, *, hint: str = "") -> UserTokenAuth:
        return cls({token_hash(token): user}, hint=hint)

    def authenticate(self, headers: Headers) -> Caller:
        sent = next((value for name, value in headers if name == b"authorization"), b"")
        scheme, _, token = sent.partition(b" ")
        if not sent:
            raise Unauthenticated("a token is needed: send 'Authorization: Bearer TOKEN'", hint=self._hint)
        # The look-up is by hash: how far it gets says nothing about any token.
        user = (
            self._users.get(hashlib.sha256(token.strip()).hexdigest())
            if scheme.lower() == b"bearer"
            else None
        )
        if user is None:
            raise Unauthenticated("the token is wrong or no longer valid", hint=self._hint)
        return Caller(user)


def token_hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def current_caller(request: Request) -> Caller:
    caller: Caller = request.scope[CALLER_KEY]
    return caller


CurrentCaller = Annotated[Caller, Depends(current_caller)]
"""The type of a route's argument that wants to know who calls."""


def _checked_user(raw: bytes) -> str:
    user = raw.decode("utf-8", "replace")
    if len(user) > _MAX_USER or not (user.isprintable() or not user):
        raise InvalidRequest(
            f"{USER_HEADER}: {user[:40]!r} is not valid; use a name of at most {_MAX_USER} characters"
        )
    return user
