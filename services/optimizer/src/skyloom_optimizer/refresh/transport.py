"""HTTP for feeds: JSON in, JSON out, with patience where a cloud asks for it. It must not interpret a body."""

from __future__ import annotations

import contextlib
import email.utils
import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpx

from skyloom_optimizer.refresh.model import FeedError, FeedNotConfigured, FeedNotFound, FeedUnavailable

ATTEMPTS = 5
LONGEST_WAIT = 60.0
MAX_BODY = 256 << 20
MAX_TEXT = 4 << 30
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})


class FeedHttp:
    """`sleep` and `now` are arguments so that tests do not wait. Answers cut short count as failed attempts."""

    def __init__(
        self,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float = 60.0,
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._http = httpx.Client(headers=dict(headers or {}), timeout=timeout, follow_redirects=True)
        self._sleep = sleep
        self._now = now

    def close(self) -> None:
        self._http.close()

    def get(self, url: str, params: Mapping[str, str] | None = None) -> dict[str, Any]:
        return self._json("GET", url, params=dict(params) if params else None)

    def post(self, url: str, body: Any) -> dict[str, Any]:
        return self._json("POST", url, json=body)

    def lines(self, url: str) -> Iterator[str]:
        """A large text, line by line as it comes. One that is cut short raises FeedUnavailable, after whatever it gave."""
        count = 0
        with self._streamed(url) as response:
            try:
                for line in response.iter_lines():
                    count += len(line) + 1
                    if count > MAX_TEXT:
                        raise FeedError(f"{shown(url)} does not end after {MAX_TEXT} bytes")
                    yield line
            except httpx.HTTPError as error:
                raise FeedUnavailable(f"{shown(url)} was cut short: {error}") from error

    @contextlib.contextmanager
    def _streamed(self, url: str) -> Iterator[httpx.Response]:
        request = self._http.build_request("GET", url)
        response = self._patiently(url, lambda: self._http.send(request, stream=True))
        try:
            yield response
        finally:
            response.close()

    def _json(self, method: str, url: str, **parts: Any) -> dict[str, Any]:
        response = self._patiently(url, lambda: self._http.request(method, url, **parts))
        try:
            value = json.loads(response.content)
        except ValueError as error:
            raise FeedError(f"{shown(url)} answered something that is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise FeedError(f"{shown(url)} answered a {type(value).__name__}; an object was expected")
        return value

    def _patiently(self, url: str, ask: Callable[[], httpx.Response]) -> httpx.Response:
        trouble = ""
        for attempt in range(ATTEMPTS):
            wait = min(2.0**attempt, LONGEST_WAIT)
            try:
                response = ask()
            except httpx.HTTPError as error:
                trouble = str(error) or type(error).__name__
            else:
                if response.status_code not in _AGAIN:
                    return _usable(response, url)
                response.close()
                trouble = f"status {response.status_code}"
                asked = self._retry_after(response)
                if asked is not None and asked > LONGEST_WAIT:
                    raise FeedUnavailable(f"{shown(url)} asks to come back in {asked:.0f} seconds")
                wait = wait if asked is None else asked
            if attempt < ATTEMPTS - 1:
                self._sleep(wait)
        raise FeedUnavailable(f"{shown(url)} gave no answer in {ATTEMPTS} attempts: {trouble}")

    def _retry_after(self, response: httpx.Response) -> float | None:
        """Seconds; the header holds them, or a date."""
        text = response.headers.get("retry-after", "").strip()
        if text.isdigit():
            return float(text)
        if not text:
            return None
        try:
            return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - self._now())
        except ValueError:
            return None


def _usable(response: httpx.Response, url: str) -> httpx.Response:
    if response.status_code in (401, 403):
        raise FeedNotConfigured(
            f"{shown(url)} refuses these credentials (status {response.status_code})",
            hint="Check the key of this cloud: docs/catalog-refresh.md.",
        )
    if response.status_code >= 300:
        words = response.read()[:200].decode("utf-8", "replace").strip()
        kind = FeedNotFound if response.status_code == 404 else FeedError
        raise kind(f"{shown(url)} answered with status {response.status_code}: {words}")
    if response.is_closed and len(response.content) > MAX_BODY:
        raise FeedError(f"{shown(url)} answered {len(response.content)} bytes, which is not plausible")
    return response


def shown(url: str) -> str:
    """Without the query: it may hold a key."""
    return url.split("?", 1)[0]


def field(item: Any, name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """`item[name]`, or a FeedError that names what is missing."""
    value = item.get(name) if isinstance(item, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise FeedError(f"{where}: {name!r} is {value!r}, which is not what this interface promises")
    return value
