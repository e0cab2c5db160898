"""Takes over connections from the fast lane, with what was read so far. What it serves is among the balancer's fronts and exchanges.

The new protocol must learn what the old one knew: the bytes read so far, and whether writing is paused.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from skyloom_lb.careful.connection import CarefulConnection
from skyloom_lb.exchange import Refusal
from skyloom_lb.wire.request import RequestHead, parse_request
from skyloom_lb.wire.response import own_answer

if TYPE_CHECKING:
    from skyloom_lb.balancer import Balancer


class CarefulLane:
    def __init__(self, balancer: Balancer) -> None:
        self._balancer = balancer

    def take(
        self, transport: asyncio.Transport, head: RequestHead, data: bytes, peer: str, write_paused: bool
    ) -> None:
        if head.method == b"CONNECT":
            self._refuse(transport, Refusal(405, "method_not_allowed", "CONNECT is not served here."))
        else:
            self._serve(CarefulConnection(self._balancer, transport, peer, write_paused), data)

    def _serve(self, connection: CarefulConnection, data: bytes) -> None:
        """The head is read anew: the one that was found may be that of other requests too, without this one's length."""
        connection.transport.set_protocol(connection)
        self._balancer.fronts.add(connection)
        end = data.index(b"\r\n\r\n") + 4
        connection.serve(parse_request(data[:end]), data[end:])

    def _refuse(self, transport: asyncio.Transport, refusal: Refusal) -> None:
        content_type, body = self._balancer.front.render(refusal)
        self._balancer.refused_early(refusal.code)
        transport.write(own_answer(refusal.status, content_type, body, close=True))
        self._balancer.close_gently(transport)
