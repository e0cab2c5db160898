"""Takes over connections from the fast lane: upgrades become tunnels, the rest is served by aiohttp for as long as it lasts.

The new protocol must learn what the old one knew: the bytes read so far, and whether writing is paused.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from skyloom_lb.careful.answer import own_response
from skyloom_lb.careful.handler import Handler
from skyloom_lb.careful.tunnel import Tunnel
from skyloom_lb.exchange import Refusal
from skyloom_lb.fast.entry import BROKEN
from skyloom_lb.wire.headers import MAX_HEAD, MAX_HEADERS
from skyloom_lb.wire.request import RequestHead
from skyloom_lb.wire.response import own_answer

if TYPE_CHECKING:
    from skyloom_lb.balancer import Balancer

_log = logging.getLogger(__name__)


class _Protocol(RequestHandler):
    """aiohttp's own error page repeats what the client sent; ours does not, and a stranger's garbage is no log line."""

    balancer: Balancer

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun")
        if status >= 500:
            _log.error("a request of the careful lane failed", exc_info=exc)
            refusal = BROKEN
        else:
            self.balancer.refused_early("bad_request")
            refusal = Refusal(status, "bad_request", "This is not a request that can be served.")
        return own_response(self.balancer, refusal, b"", close=True)


class _Server(web.Server):
    def __init__(self, balancer: Balancer, handler: Any, **options: Any) -> None:
        super().__init__(handler, **options)
        self._balancer = balancer

    def __call__(self) -> RequestHandler:
        protocol = _Protocol(self, loop=self._loop, **self._kwargs)
        protocol.balancer = self._balancer
        return protocol


class CarefulLane:
    def __init__(self, balancer: Balancer) -> None:
        self._balancer = balancer
        self._handler = Handler(balancer)
        self.tunnels: set[Tunnel] = set()
        self._server = _Server(
            balancer,
            self._handler.handle,
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=balancer.settings.keep_alive_seconds,
            auto_decompress=False,
            lingering_time=1.0,
            max_line_size=MAX_HEAD,
            max_field_size=MAX_HEAD,
            max_headers=MAX_HEADERS,
        )

    @property
    def connections(self) -> int:
        return len(self._server.connections) + len(self.tunnels)

    @property
    def running(self) -> int:
        return self._handler.running + len(self.tunnels)

    def take(
        self, transport: asyncio.Transport, head: RequestHead, data: bytes, peer: str, write_paused: bool
    ) -> None:
        if head.method == b"CONNECT":
            self._refuse(transport, Refusal(405, "method_not_allowed", "CONNECT is not served here."))
        elif head.upgrade and b"upgrade" in head.named and head.version == "1.1" and not head.length:
            Tunnel.begin(self._balancer, self, transport, head, data, peer, write_paused)
        else:
            protocol = self._server()
            transport.set_protocol(protocol)
            protocol.connection_made(transport)
            if write_paused:
                protocol.pause_writing()
            protocol.data_received(data)

    def _refuse(self, transport: asyncio.Transport, refusal: Refusal) -> None:
        content_type, body = self._balancer.front.render(refusal)
        self._balancer.refused_early(refusal.code)
        transport.write(own_answer(refusal.status, content_type, body, close=True))
        transport.close()

    async def close(self, seconds: float) -> None:
        for tunnel in tuple(self.tunnels):
            tunnel.end("Drained")
        await self._server.shutdown(seconds)
        await self._handler.close()


def client_session(connect: float) -> aiohttp.ClientSession:
    """No cookies, no redirects, no compression of its own, no limits: what goes through is the client's."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, limit_per_host=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect or None),
        max_line_size=MAX_HEAD,
        max_field_size=MAX_HEAD,
    )
