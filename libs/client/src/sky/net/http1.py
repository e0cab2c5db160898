"""HTTP/1.1 over one socket: just what a client of our own gateway needs.

The standard library's http.client pulls in the e-mail parser and TLS at import, which costs a `sky status`
a third of its time; here TLS is imported only for https. It must not retry, pool or know about tokens.
"""

from __future__ import annotations

import io
import socket
from collections.abc import Iterable, Mapping

MAX_LINE = 65536
MAX_HEADERS = 200
CHUNK = 65536


class ConnectionLost(OSError):
    """The peer closed, reset or spoke something else before the answer was complete."""


class Address:
    """A parsed endpoint: http://host:port/base, https://..., unix:///path/to.sock"""

    def __init__(self, endpoint: str) -> None:
        scheme, sep, rest = endpoint.partition("://")
        self.scheme = scheme.lower()
        if not sep or self.scheme not in ("http", "https", "unix") or not rest:
            raise ValueError(
                f"API server endpoint {endpoint!r} is not a URL; use http://host:port, https://host or unix:///path"
            )
        self.user_info = ""
        self.base = ""
        if self.scheme == "unix":
            self.host, self.port, self.path = "localhost", 0, "/" + rest.lstrip("/")
            return
        authority, slash, base = rest.partition("/")
        self.base = ("/" + base).rstrip("/") if slash else ""
        if "@" in authority:
            self.user_info, _, authority = authority.rpartition("@")
        self.path = ""
        self.host, self.port = _split_authority(authority, 443 if self.scheme == "https" else 80, endpoint)

    @property
    def host_header(self) -> str:
        default = {"http": 80, "https": 443}.get(self.scheme, 0)
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == default else f"{host}:{self.port}"


def _split_authority(authority: str, default_port: int, endpoint: str) -> tuple[str, int]:
    if authority.startswith("["):
        host, _, tail = authority[1:].partition("]")
        port = tail.lstrip(":")
    else:
        host, _, port = authority.partition(":")
    if not host or (port and not port.isdigit()):
        raise ValueError(f"API server endpoint {endpoint!r} has no valid host and port; use http://host:port")
    return host, int(port) if port else default_port


class Connection:
    """One socket, one request at a time. `reusable` says whether another request may follow."""

    def __init__(self, address: Address, *, connect_timeout: float = 5.0) -> None:
        self._address = address
        self._socket = _open(address, connect_timeout)
        self._file: io.BufferedReader = self._socket.makefile("rb", CHUNK)  # type: ignore[assignment]
        self.reusable = True
        self.used = False

    def request(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes | Iterable[bytes] | None = None,
        *,
        timeout: float | None = None,
    ) -> Response:
        """Sends a request and reads the answer's head. A non-bytes body is sent chunked."""
        self._socket.settimeout(timeout)
        lines = [f"{method} {self._address.base}{target} HTTP/1.1", f"Host: {self._address.host_header}"]
        lines += [f"{_clean(name)}: {_clean(value)}" for name, value in headers.items()]
        try:
            if body is None or isinstance(body, bytes):
                if body is not None or method in ("POST", "PUT"):
                    lines.append(f"Content-Length: {len(body or b'')}")
                self._socket.sendall(_head(lines) + (body or b""))
            else:
                lines.append("Transfer-Encoding: chunked")
                self._socket.sendall(_head(lines))
                for piece in body:
                    if piece:
                        self._socket.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
                self._socket.sendall(b"0\r\n\r\n")
            self.used = True
            return self._read_head()
        except TimeoutError:
            self.close()
            raise
        except OSError as error:
            self.close()
            raise error if isinstance(error, ConnectionLost) else ConnectionLost(str(error)) from error

    def _read_head(self) -> Response:
        while True:
            status_line = self._line()
            parts = status_line.split(None, 2)
            if len(parts) < 2 or not parts[0].startswith("HTTP/1.") or not parts[1].isdigit():
                raise ConnectionLost(f"the answer is not HTTP: {status_line[:40]!r}")
            headers: dict[str, str] = {}
            for _ in range(MAX_HEADERS):
                line = self._line()
                if not line:
                    break
                name, _, value = line.partition(":")
                headers[name.strip().lower()] = value.strip()
            else:
                raise ConnectionLost("the answer has too many headers")
            status = int(parts[1])
            if status >= 200:
                return Response(self, status, headers, parts[0])

    def _line(self) -> str:
        line = self._file.readline(MAX_LINE + 1)
        if not line.endswith(b"\n"):
            raise ConnectionLost(
                "the connection closed in the middle of an answer" if line else "the connection closed"
            )
        return line.rstrip(b"\r\n").decode("latin-1")

    def close(self) -> None:
        self.reusable = False
        for part in (self._file, self._socket):
            try:
                part.close()
            except OSError:
                continue

    def is_stale(self) -> bool:
        """Idle, but there is something to read: the server has closed it."""
        import select

        try:
            return bool(select.select([self._socket], [], [], 0)[0])
        except (OSError, ValueError):
            return True

    def set_timeout(self, timeout: float | None) -> None:
        self._socket.settimeout(timeout)


class Response:
    """Status, lower-case headers, and the body as it comes. The connection is free again once `complete`."""

    def __init__(self, connection: Connection, status: int, headers: dict[str, str], version: str) -> None:
        self._connection = connection
        self._file = connection._file
        self.status = status
        self.headers = headers
        self._chunked = "chunked" in headers.get("transfer-encoding", "").lower()
        length = headers.get("content-length", "")
        self._left: int | None = int(length) if length.isdigit() and not self._chunked else None
        if status in (204, 304):
            self._chunked, self._left = False, 0
        self._chunk_left = 0
        if headers.get("connection", "").lower() == "close" or version == "HTTP/1.0":
            connection.reusable = False
        self.complete = self._left == 0

    @property
    def ends_by_close(self) -> bool:
        """The length is unknown: a clean end cannot be told from a broken connection."""
        return not self._chunked and self._left is None

    def read1(self, limit: int = CHUNK) -> bytes:
        """The next bytes as soon as there are some; b"" at the end. Raises ConnectionLost when it broke off."""
        if self.complete:
            return b""
        try:
            data = self._read_chunked(limit) if self._chunked else self._read_plain(limit)
        except TimeoutError:
            raise
        except (OSError, ValueError) as error:
            self.close()
            raise error if isinstance(error, ConnectionLost) else ConnectionLost(str(error)) from error
        return data

    def _read_plain(self, limit: int) -> bytes:
        data = self._file.read1(limit if self._left is None else min(limit, self._left))
        if self._left is None:
            if not data:
                self._connection.reusable = False
                self.complete = True
        elif not data:
            raise ConnectionLost("the connection closed in the middle of an answer")
        else:
            self._left -= len(data)
            self.complete = self._left == 0
        return data

    def _read_chunked(self, limit: int) -> bytes:
        if self._chunk_left == 0:
            size = int(self._connection._line().partition(";")[0].strip(), 16)
            if size == 0:
                while self._connection._line():
                    pass
                self.complete = True
                return b""
            self._chunk_left = size
        data = self._file.read1(min(limit, self._chunk_left))
        if not data:
            raise ConnectionLost("the connection closed in the middle of an answer")
        self._chunk_left -= len(data)
        if self._chunk_left == 0 and self._connection._line():
            raise ConnectionLost("a chunk is longer than it said")
        return data

    def read(self) -> bytes:
        """The whole rest of the body."""
        parts = []
        while data := self.read1(1 << 20):
            parts.append(data)
        return b"".join(parts)

    def close(self) -> None:
        self._connection.close()

    @property
    def connection(self) -> Connection:
        return self._connection


def _head(lines: list[str]) -> bytes:
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _clean(text: str) -> str:
    if "\r" in text or "\n" in text:
        raise ValueError("a header may not contain a line break")
    return text


def _open(address: Address, timeout: float) -> socket.socket:
    if address.scheme == "unix":
        plain = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        plain.settimeout(timeout)
        plain.connect(address.path)
        return plain
    # As bytes, so that the socket module need not load the IDNA tables for a plain name.
    host = address.host.encode("ascii") if address.host.isascii() else address.host
    plain = socket.create_connection((host, address.port), timeout)  # type: ignore[arg-type]
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    _keep_alive(plain)
    if address.scheme == "http":
        return plain
    import ssl

    return ssl.create_default_context().wrap_socket(plain, server_hostname=address.host)


def _keep_alive(plain: socket.socket) -> None:
    """A follower of a silent job notices a vanished server within about a minute."""
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        option = getattr(socket, name, None)
        if option is not None:
            plain.setsockopt(socket.IPPROTO_TCP, option, value)
