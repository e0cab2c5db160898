"""Requests to the gateway: token, pool, retries, errors as classes. It must not know what the paths mean.

A call is repeated only when repeating cannot do it twice: GET and PUT, or a POST with an idempotency key.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from sky.net.http1 import Address, Connection, ConnectionLost, Response
from skyloom_common.contracts.http import IDEMPOTENCY_KEY

API_PREFIX = "/api/v1"
ATTEMPTS = 4
ATTEMPTS_IF_IT_WAS_THERE = 8
"""For a server that answered before, or lost a connection just now: it is starting again, which takes some seconds."""
MAX_ERROR_BODY = 1 << 20
RETRY_STATUS = (502, 503, 504)

Query = Mapping[str, Any] | None
Body = bytes | Iterable[bytes] | None
Locate = Callable[[], tuple[str, str | None]]


class Transport:
    """Talks to one endpoint. `locate` (optional) says the endpoint and token anew after a connection failed.

    Several threads may use one: each call takes its own connection from the pool.
    """

    def __init__(
        self,
        endpoint: str,
        token: str | None = None,
        *,
        timeout: float = 60.0,
        locate: Locate | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._set(endpoint, token)
        self.timeout = timeout
        self._locate = locate
        self._sleep = sleep
        self._was_there = locate is not None  # who finds a local stack has seen it listen
        self._idle: list[Connection] = []

    def _set(self, endpoint: str, token: str | None) -> None:
        self.endpoint = endpoint.rstrip("/")
        self._address = Address(self.endpoint)
        self._token = token

    @property
    def shown(self) -> str:
        """The endpoint for people: without a password."""
        return without_password(self.endpoint)

    # --- calls with a small answer ---

    def call(
        self,
        method: str,
        path: str,
        *,
        query: Query = None,
        body: bytes | None = None,
        key: str | None = None,
        timeout: float | None = None,
        attempts: int | None = None,
    ) -> bytes:
        """The body of a 2xx answer. Other answers raise the class that the error's code names."""
        response = self.open(
            method, path, query=query, body=body, key=key, timeout=timeout or self.timeout, attempts=attempts
        )
        data = response.read()
        self.release(response)
        return data

    def get_json(self, path: str, query: Query = None) -> Any:
        return json.loads(self.call("GET", path, query=query))

    # --- calls with a long answer ---

    def open(
        self,
        method: str,
        path: str,
        *,
        query: Query = None,
        body: Body = None,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        attempts: int | None = None,
    ) -> Response:
        """A 2xx answer whose body is still to be read; `timeout` None waits for its bytes without end."""
        limit = attempts or ATTEMPTS
        target = API_PREFIX + path + encode_query(query)
        repeatable = method in ("GET", "PUT", "HEAD", "DELETE") or key is not None
        if body is not None and not isinstance(body, bytes):
            repeatable = False
        for attempt in itertools.count(1):
            if self._lacks_token:
                self.relocate()
            try:
                response = self._send(method, target, self._headers(key, body, headers), body, timeout)
            except TimeoutError as error:
                raise _unreachable(self.shown, f"no answer within {timeout or 5:.0f} s") from error
            except OSError as error:
                # Where not even a connection was made, nothing was sent that could happen twice.
                never_sent = not isinstance(error, ConnectionLost) and isinstance(body, (bytes, type(None)))
                if attempts is None and self._was_there:
                    limit = ATTEMPTS_IF_IT_WAS_THERE
                if attempt >= limit or not (repeatable or never_sent):
                    raise _unreachable(self.shown, str(error) or type(error).__name__) from error
            else:
                if response.status < 300:
                    return response
                self._raise_unless_passing(response, repeatable, last=attempt >= limit)
            self._sleep(min(2.0, 0.1 * 2 ** (attempt - 1)))
            self.relocate()
        raise AssertionError("unreachable")

    def _raise_unless_passing(self, response: Response, repeatable: bool, *, last: bool) -> None:
        if response.status == 401 and self._lacks_token:
            # A local stack that starts again answers a moment before it says that it is there.
            response.close()
            if last:
                raise _unreachable(self.shown, "it is starting")
        elif last or not repeatable or response.status not in RETRY_STATUS:
            raise self._error(response)
        else:
            response.close()

    def release(self, response: Response) -> None:
        """Gives the connection of a wholly read answer back to the pool; closes any other."""
        connection = response.connection
        if response.complete and connection.reusable and len(self._idle) < 8:
            self._idle.append(connection)
        else:
            connection.close()

    def relocate(self) -> None:
        """After a failure: is the server somewhere else now (a restarted local stack)?"""
        if self._locate is not None:
            endpoint, token = self._locate()
            if (endpoint.rstrip("/"), token) != (self.endpoint, self._token):
                self.close()
                self._set(endpoint, token)

    @property
    def _lacks_token(self) -> bool:
        """The local stack's process was dead when it was last looked for, so that nobody was to get its token."""
        return self._locate is not None and self._token is None

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    # --- inside ---

    def _headers(self, key: str | None, body: Body, extra: Mapping[str, str] | None) -> dict[str, str]:
        headers = {"Accept-Encoding": "identity", "User-Agent": "sky"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        elif self._address.user_info:
            from base64 import b64encode

            headers["Authorization"] = "Basic " + b64encode(self._address.user_info.encode()).decode()
        if isinstance(body, bytes):
            headers["Content-Type"] = "application/json"
        if key:
            headers[IDEMPOTENCY_KEY] = key
        headers.update(extra or {})
        return headers

    def _send(
        self, method: str, target: str, headers: Mapping[str, str], body: Body, timeout: float | None
    ) -> Response:
        while True:
            connection = self._take()
            fresh = not connection.used
            try:
                response = connection.request(method, target, headers, body, timeout=timeout)
                self._was_there = True
                return response
            except ConnectionLost:
                self._was_there = True
                # A pooled connection may have been closed by the server since: that says nothing about this call.
                if fresh or not (body is None or isinstance(body, bytes)) or not _repeatable(method, headers):
                    raise

    def _take(self) -> Connection:
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return Connection(self._address)
            if not connection.is_stale():
                return connection
            connection.close()

    def _error(self, response: Response) -> Exception:
        body = b""
        try:
            while len(body) < MAX_ERROR_BODY and (piece := response.read1()):
                body += piece
        except OSError:
            pass  # what has arrived of the sentence is enough
        if response.complete:
            self.release(response)
        else:
            response.close()
        return error_from(response.status, body, self.shown)


def without_password(endpoint: str) -> str:
    scheme, sep, rest = endpoint.partition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}{sep}{authority.rpartition('@')[2]}{slash}{path}"


def _repeatable(method: str, headers: Mapping[str, str]) -> bool:
    return method in ("GET", "PUT", "HEAD", "DELETE") or IDEMPOTENCY_KEY in headers


def error_from(status: int, body: bytes, endpoint: str) -> Exception:
    """The error class that an answer's body names, with the sender's words."""
    from sky import exceptions

    try:
        parsed = json.loads(body)
    except ValueError:
        parsed = None
    if isinstance(parsed, dict) and "code" in parsed:
        return exceptions.from_wire(parsed)
    if status in (401, 403):
        return exceptions.ApiServerAuthenticationError(
            f"The API server at {endpoint} refuses this client's token (HTTP {status}).",
            hint="sky api login -e URL -t TOKEN",
        )
    words = body.decode("utf-8", "replace").strip().splitlines()
    detail = f": {words[0][:200]}" if words else ""
    if isinstance(parsed, dict) and "detail" in parsed:
        detail = f": {parsed['detail']}"
    return exceptions.ApiServerError(f"The API server at {endpoint} answered HTTP {status}{detail}")


def _unreachable(endpoint: str, why: str) -> Exception:
    from sky import exceptions

    return exceptions.ApiServerConnectionError(
        f"The API server at {endpoint} cannot be reached: {why}.",
        hint="sky api info shows which server is used and why; sky api start starts the local one",
    )


_SAFE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


def quote(text: str) -> str:
    """Percent-encodes everything but unreserved characters (urllib.parse costs more to import than to write)."""
    if _SAFE.issuperset(text):
        return text
    return "".join(chr(byte) if chr(byte) in _SAFE else f"%{byte:02X}" for byte in text.encode("utf-8"))


def encode_query(query: Query) -> str:
    """ "?a=1&b=2"; None is left out, booleans are 0|1, lists repeat their name."""
    pairs: list[str] = []
    for name, value in (query or {}).items():
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if item is None:
                continue
            text = str(int(item)) if isinstance(item, bool) else str(item)
            pairs.append(f"{quote(name)}={quote(text)}")
    return "?" + "&".join(pairs) if pairs else ""


def new_key() -> str:
    """An idempotency key."""
    return os.urandom(16).hex()


def read_pieces(response: Response) -> Iterator[bytes]:
    """The body's pieces as they come."""
    while piece := response.read1():
        yield piece
