"""An endpoint's address, taken apart once."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from skyloom_common.core.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Address:
    host: str
    port: int
    tls: bool
    prefix: bytes
    """Path before every request's own, without a slash at its end."""


def parse_url(url: str) -> Address:
    shown = url.rpartition("@")[2] if "@" in url else url  # what is before it may be a password
    wrong = InvalidRequest(f"endpoint {shown!r}: the form is http://HOST:PORT or https://HOST[:PORT][/PATH]")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise wrong from None
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or parts.query
        or parts.fragment
        or parts.username
    ):
        raise wrong
    if not parts.path.isascii() or any(one in parts.path for one in " \r\n\t"):
        raise wrong
    tls = parts.scheme == "https"
    return Address(parts.hostname, port or (443 if tls else 80), tls, parts.path.rstrip("/").encode())
