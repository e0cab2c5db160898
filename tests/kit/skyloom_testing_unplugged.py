"""A load balancer without a network: its tests say what comes in, and in which turn of the loop."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

from skyloom_common.contracts.endpoints import Endpoint
from skyloom_lb.balancer import Balancer
from skyloom_lb.careful.lane import CarefulLane
from skyloom_lb.fast.front import FrontConnection
from skyloom_lb.fast.upstream import Pool, Upstream
from skyloom_lb.settings import DEFAULT_SERVICE, Health, ServiceSettings, Settings


class FakeTransport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1)})
        self.written: list[bytes] = []
        self.closed = False
        self.protocol: Any = None

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def get_protocol(self) -> Any:
        return self.protocol

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def can_write_eof(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        """Nobody reads here."""

    def resume_reading(self) -> None:
        """Nobody reads here."""


class FakePool(Pool):
    """Connections are there at once, and are remembered for the fuzzer to speak on."""

    made: list[Upstream]

    def connect(self, exchange: Any) -> Any:
        upstream = Upstream(self)
        upstream.connection_made(FakeTransport())
        upstream.transport.set_protocol(upstream)
        self.made.append(upstream)
        exchange.pending = None
        exchange.connected(upstream)
        return None


def unplugged() -> tuple[Balancer, list[Upstream]]:
    """A balancer with two endpoints, and the connections it has made to them."""
    health = Health(failures=10**9, min_requests=10**9)
    balancer = Balancer(
        Settings(services={DEFAULT_SERVICE: ServiceSettings(health=health)}), random=Random(1)
    )
    balancer.careful = CarefulLane(balancer)
    made: list[Upstream] = []

    def make_pool(backend: Any, service: Any) -> FakePool:
        pool = FakePool(backend, None, balancer.turn)
        pool.made = made
        return pool

    service = balancer.services[DEFAULT_SERVICE]
    service._make_pool = make_pool
    balancer.set_endpoints(
        DEFAULT_SERVICE, [Endpoint("a", "http://10.0.0.1:80"), Endpoint("b", "http://10.0.0.2:80")]
    )
    return balancer, made


def open_front(balancer: Balancer) -> FakeTransport:
    transport = FakeTransport()
    transport.set_protocol(FrontConnection(balancer))
    transport.protocol.connection_made(transport)
    return transport
