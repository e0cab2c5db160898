"""Stands between a connection to an endpoint and its `Upstream` while a body goes through it.

The client is read at the endpoint's pace; and an answer that came before the endpoint closed its side is not lost because
sending failed first.
"""

from __future__ import annotations

import asyncio
import os
from typing import Protocol

from skyloom_lb.fast.upstream import Upstream

_READ = 64 * 1024


class Source(Protocol):
    def slow_down(self) -> None:
        """The endpoint takes no more for now."""

    def go_on(self) -> None:
        """It takes more again."""


class Feeder(asyncio.Protocol):
    def __init__(self, upstream: Upstream, source: Source) -> None:
        self._upstream = upstream
        self._source = source
        upstream.flush()  # the head, if it was sent in this turn: the body must not overtake it
        upstream.transport.set_protocol(self)

    def leave(self) -> None:
        """The body is sent: the upstream has its connection for itself."""
        self._upstream.transport.set_protocol(self._upstream)

    def data_received(self, data: bytes) -> None:
        self._upstream.data_received(data)

    def pause_writing(self) -> None:
        self._source.slow_down()

    def resume_writing(self) -> None:
        self._source.go_on()

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None:
            self._rescue()
        self._upstream.connection_lost(error)

    def _rescue(self) -> None:
        """A failed write ends the transport at once, with an early answer still unread in the socket. TLS cannot be read here."""
        transport = self._upstream.transport
        if transport.get_extra_info("sslcontext") is not None:
            return
        number = transport.get_extra_info("socket").fileno()
        while self._upstream.exchange is not None:
            try:
                data = os.read(number, _READ)
            except OSError:  # nothing more is there
                return
            if not data:
                return
            self._upstream.data_received(data)
