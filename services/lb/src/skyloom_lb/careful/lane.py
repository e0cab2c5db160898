"""Takes over connections from the fast lane: upgrades become tunnels, the rest is served with care.

The new protocol must learn what the old one knew: the bytes read so far, and whether writing is paused.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from skyloom_lb.careful.connection import CarefulConnection
from skyloom_lb.careful.tunnel import Tunnel
from skyloom_lb.exchange import Refusal
from skyloom_lb.wire.request import RequestHead
from skyloom_lb.wire.response import own_answer

if TYPE_CHECKING:
    from skyloom_lb.balancer import Balancer


class CarefulLane:
    def __init__(self, balancer: Balancer) -> None:
        self._balancer = balancer
        self.tunnels: set[Tunnel] = set()

    @property
    def connections(self) -> int:
        """Those that are not among the balancer's fronts."""
        return len(self.tunnels)

    @property
    def running(self) -> int:
        """Requests that are not among the balancer's exchanges."""
        return len(self.tunnels)

    def take(
        self, transport: asyncio.Transport, head: RequestHead, data: bytes, peer: str, write_paused: bool
    ) -> None:
        if head.method == b"CONNECT":
            self._refuse(transport, Refusal(405, "method_not_allowed", "CONNECT is not served here."))
        elif head.upgrade and b"upgrade" in head.named and head.version == "1.1" and not head.length:
            Tunnel.begin(self._balancer, self, transport, head, data, peer, write_paused)
        else:
            connection = CarefulConnection(self._balancer, transport, peer, write_paused)
            transport.set_protocol(connection)
            self._balancer.fronts.add(connection)
            connection.serve(head, data[data.index(b"\r\n\r\n") + 4 :])

    def _refuse(self, transport: asyncio.Transport, refusal: Refusal) -> None:
        content_type, body = self._balancer.front.render(refusal)
        self._balancer.refused_early(refusal.code)
        transport.write(own_answer(refusal.status, content_type, body, close=True))
        transport.close()

    async def close(self, seconds: float) -> None:
        for tunnel in tuple(self.tunnels):
            tunnel.end("Drained")
