"""Takes over connections from the fast lane, with what was read so far. What it serves is among the balancer's fronts and exchanges.

The new protocol must learn what the old one knew: the bytes read so far, and whether writing is paused.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from skyloom_lb.careful.connection import CarefulConnection
from skyloom_lb.wire.request import parse_request

if TYPE_CHECKING:
    from skyloom_lb.balancer import Balancer


class CarefulLane:
    def __init__(self, balancer: Balancer) -> None:
        self._balancer = balancer

    def take(self, transport: asyncio.Transport, data: bytes, peer: str, write_paused: bool) -> None:
        """The head is read anew: the one that was found may be that of other requests too, without this one's length."""
        connection = CarefulConnection(self._balancer, transport, peer, write_paused)
        transport.set_protocol(connection)
        self._balancer.fronts.add(connection)
        end = data.index(b"\r\n\r\n") + 4
        connection.serve(parse_request(data[:end]), data[end:])
