"""Takes client connections off a listening socket, one turn of the loop at a time.

Own, instead of the loop's server, for the moment when no file descriptor is left: clients then wait in the kernel's queue until
there is one again, where uvloop's server would take them only to close them.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
import sys
from collections.abc import Callable

from skyloom_common.core.errors import InvalidRequest, Unavailable

_BACKLOG = 4096
_AT_ONCE = 64
"""Connections taken before others get their turn."""
_NO_ROOM = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
_log = logging.getLogger(__name__)


def listen(host: str, port: int, reuse_port: bool) -> socket.socket:
    """Raises SkyloomError that names the address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise Unavailable(no_port("host, port", host, port, error)) from error
    except UnicodeError:
        listener.close()
        raise InvalidRequest(f"host: {host!r} is not the name or address of a host") from None
    listener.setblocking(False)
    return listener


def nobody_listens(host: str, port: int) -> None:
    """Two balancers whose workers share a port would share it with each other too, and nobody would know."""
    if port:
        listen(host, port, reuse_port=False).close()


def hold(host: str, port: int) -> socket.socket | None:
    """Of two that are started in one instant, before anybody listens, one gets this. It is held until the port is given up, and goes
    with its process. Raises SkyloomError that names the address; None where the system has no such names (all but Linux)."""
    if sys.platform != "linux":
        return None
    held = socket.socket(socket.AF_UNIX)
    try:
        held.bind(f"\0skyloom-lb {host} {port}")
    except OSError as error:
        held.close()
        raise Unavailable(no_port("host, port", host, port, error)) from error
    return held


def no_port(field: str, host: str, port: int, error: OSError) -> str:
    what = "is used by another process" if error.errno == errno.EADDRINUSE else error.strerror or error
    return f"{field}: {host}:{port} cannot be listened on: {what}"


class Listener:
    def __init__(
        self,
        listening: socket.socket,
        make: Callable[[], asyncio.Protocol],
        tls: Callable[[], ssl.SSLContext | None] = lambda: None,
        handshake_seconds: float = 15.0,
    ) -> None:
        self._socket = listening
        self._make = make
        self._tls = tls
        self._handshake_seconds = handshake_seconds
        self._loop = asyncio.get_running_loop()
        self._coming: set[asyncio.Task[None]] = set()
        self._resting = False

    def start(self) -> None:
        self._socket.listen(_BACKLOG)
        self._loop.add_reader(self._socket, self._accept)

    def sweep(self) -> None:
        """Looks again whether there is room."""
        if self._resting:
            self._resting = False
            self._loop.add_reader(self._socket, self._accept)

    def close(self) -> None:
        self._loop.remove_reader(self._socket)
        self._resting = False
        self._socket.close()
        for task in self._coming:
            task.cancel()

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                connection, _ = self._socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _NO_ROOM:
                    self._rest(error)
                    return
                continue  # that one client has gone already
            connection.setblocking(False)
            task = self._loop.create_task(self._begin(connection))
            self._coming.add(task)
            task.add_done_callback(self._coming.discard)

    def _rest(self, error: OSError) -> None:
        _log.warning("no room for another connection (%s): clients wait", error.strerror)
        self._loop.remove_reader(self._socket)
        self._resting = True

    async def _begin(self, connection: socket.socket) -> None:
        """`OSError`: the client went, or its handshake failed; that is its own business."""
        try:
            tls = self._tls()
            patience = self._handshake_seconds if tls is not None else None
            await self._loop.connect_accepted_socket(
                self._make, connection, ssl=tls, ssl_handshake_timeout=patience or None
            )
        except OSError as error:
            _log.debug("a connection did not begin: %s", error)
            connection.close()
