"""The fault-test kit: endpoints and clients that speak raw bytes and misbehave on purpose, and a balancer in this process.

Everything waits for a state with a bound; nothing sleeps to let time pass.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from skyloom_common.contracts.endpoints import Endpoint
from skyloom_lb.exchange import Outcome, PlainFront
from skyloom_lb.listener import listen
from skyloom_lb.loop import ASYNCIO, AUTO, UVLOOP, new_loop
from skyloom_lb.service import Service
from skyloom_lb.settings import DEFAULT_SERVICE, ServiceSettings, Settings
from skyloom_lb.worker import Worker

PATIENCE = 8.0


async def until(true: Callable[[], Any], seconds: float = PATIENCE) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, "the state was not reached"
        await asyncio.sleep(0.005)


@dataclass
class Message:
    """A request or a response as read from the wire."""

    start: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes = b""

    def get(self, name: bytes) -> bytes | None:
        found = [value for one, value in self.headers if one == name]
        return found[0] if found else None

    @property
    def status(self) -> int:
        return int(self.start.split(b" ")[1])


class Wire:
    """One connection, either end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> Message:
        async with asyncio.timeout(PATIENCE):
            raw = await self.reader.readuntil(b"\r\n\r\n")
        start, *lines = raw[:-4].split(b"\r\n")
        pairs = [line.partition(b":") for line in lines]
        return Message(start, [(name.lower(), value.strip()) for name, _, value in pairs])

    async def message(self, no_body: bool = False) -> Message:
        """With its body, however it is framed. Raises IncompleteReadError when it breaks off."""
        message = await self.head()
        if no_body or message.start.split(b" ")[1:2] in ([b"204"], [b"304"]):
            return message
        async with asyncio.timeout(PATIENCE):
            if message.get(b"transfer-encoding") == b"chunked":
                message.body = b"".join([part async for part in self.chunks()])
            elif message.get(b"content-length") is not None:
                message.body = await self.reader.readexactly(int(message.get(b"content-length") or b"0"))
            elif message.start.startswith(b"HTTP/"):
                message.body = await self.reader.read(-1)
        return message

    async def chunks(self) -> AsyncIterator[bytes]:
        while True:
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            part = await self.reader.readexactly(size)
            end = await self.reader.readuntil(b"\r\n")
            if size == 0:
                while end != b"\r\n":
                    end = await self.reader.readuntil(b"\r\n")
                return
            assert end == b"\r\n"
            yield part

    async def ended(self) -> bytes:
        """What still comes until the connection ends, cleanly or not."""
        rest = b""
        async with asyncio.timeout(PATIENCE):
            with contextlib.suppress(ConnectionError):
                while part := await self.reader.read(65536):
                    rest += part
        return rest

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Behaviour = Callable[[Wire], Awaitable[None]]


def answer(body: bytes = b"ok", status: bytes = b"200 OK", extra: bytes = b"") -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\n%b\r\n%b" % (status, len(body), extra, body)


class RawEndpoint:
    """A server whose every connection runs `behave`. `requests` is what `serve` has read."""

    def __init__(self, behave: Behaviour | None = None) -> None:
        self.behave = behave or self.serve
        self.requests: list[Message] = []
        self.connections = 0
        self.open: set[Wire] = set()
        self.port = 0
        self._server: asyncio.Server | None = None

    async def start(self, port: int = 0) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", port, limit=1 << 24)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            for wire in tuple(self.open):
                wire.reset()
            self._server = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = Wire(reader, writer)
        self.connections += 1
        self.open.add(wire)
        try:
            await self.behave(wire)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open.discard(wire)
            writer.close()

    async def request(self, wire: Wire) -> Message:
        wire_head = await _patient(wire)
        self.requests.append(wire_head)
        return wire_head

    async def serve(self, wire: Wire) -> None:
        """An honest endpoint with keep-alive: it says its port and how long the body was."""
        while True:
            request = await self.request(wire)
            whole = answer(b"%d %d" % (self.port, len(request.body)))
            is_head = request.start.startswith(b"HEAD ")
            await wire.send(whole.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if is_head else whole)


async def _patient(wire: Wire) -> Message:
    """A request; an idle connection may wait for it as long as the test runs."""
    raw = await wire.reader.readuntil(b"\r\n\r\n")
    start, *lines = raw[:-4].split(b"\r\n")
    pairs = [line.partition(b":") for line in lines]
    message = Message(start, [(name.lower(), value.strip()) for name, _, value in pairs])
    if message.get(b"transfer-encoding") == b"chunked":
        message.body = b"".join([part async for part in wire.chunks()])
    else:
        message.body = await wire.reader.readexactly(int(message.get(b"content-length") or b"0"))
    return message


class RecordingFront(PlainFront):
    """The plain front, with every outcome kept."""

    outcomes: list[Outcome]

    def finish(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


@dataclass
class Lb:
    worker: Worker
    port: int
    outcomes: list[Outcome] = field(default_factory=list)
    wires: list[Wire] = field(default_factory=list)

    @property
    def service(self) -> Service:
        return self.worker.balancer.services[DEFAULT_SERVICE]

    async def client(self, port: int | None = None) -> Wire:
        reader, writer = await asyncio.open_connection("127.0.0.1", port or self.port, limit=1 << 24)
        wire = Wire(reader, writer)
        self.wires.append(wire)
        return wire

    async def ask(self, request: bytes, no_body: bool = False) -> Message:
        wire = await self.client()
        await wire.send(request)
        return await wire.message(no_body)

    def set(self, *endpoints: RawEndpoint | str) -> None:
        urls = [one if isinstance(one, str) else one.url for one in endpoints]
        specs = [Endpoint(id=f"e{index}", url=url) for index, url in enumerate(urls)]
        self.worker.balancer.set_endpoints(DEFAULT_SERVICE, specs)

    def quiet(self) -> bool:
        """Nothing is running and no count is stuck, not even at an endpoint that has left meanwhile."""
        balancer = self.worker.balancer
        services = balancer.services.values()
        known = {one for service in services for one in (*service.backends.values(), *service.leaving)}
        known |= {one.backend for one in self.outcomes if hasattr(one, "backend")}
        assert all(one.in_flight >= 0 for one in known)
        return (
            not balancer.exchanges
            and all(service.active == 0 and service.waiting == 0 for service in services)
            and all(one.in_flight == 0 for one in known)
            and all(not service.leaving for service in services)
        )


def post(body: bytes = b"{}", target: bytes = b"/v1/chat/completions", extra: bytes = b"") -> bytes:
    return b"POST %b HTTP/1.1\r\nHost: lb\r\nContent-Length: %d\r\n%b\r\n%b" % (
        target,
        len(body),
        extra,
        body,
    )


def get(target: bytes = b"/", extra: bytes = b"") -> bytes:
    return b"GET %b HTTP/1.1\r\nHost: lb\r\n%b\r\n" % (target, extra)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A signal does not end what hangs in uvloop."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(method="thread"))


BOTH_LOOPS = frozenset(("test_lb_faults.py", "test_lb_upgrades.py"))
"""Files whose tests run on either event loop; the others on the one that serves."""


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    wanted = os.environ.get("SKYLOOM_LB_EVENT_LOOP", AUTO)
    names = (UVLOOP, ASYNCIO) if item.path.name in BOTH_LOOPS and wanted == AUTO else (wanted,)
    return {name: partial(new_loop, name) for name in names}


StartLb = Callable[..., Awaitable[Lb]]
StartEndpoint = Callable[..., Awaitable[RawEndpoint]]


class Kit:
    """What the tests need of this file, as one fixture."""

    until = staticmethod(until)
    answer = staticmethod(answer)
    post = staticmethod(post)
    get = staticmethod(get)
    Wire = Wire
    RawEndpoint = RawEndpoint

    def __init__(self) -> None:
        self.lbs: list[Lb] = []
        self.endpoints: list[RawEndpoint] = []
        self.held: list[socket.socket] = []

    async def lb(
        self, *endpoints: RawEndpoint | str, service: Any = None, make_front: Any = None, **fields: Any
    ) -> Lb:
        one = replace(service or ServiceSettings(), name=DEFAULT_SERVICE)
        settings = replace(
            Settings(
                host="127.0.0.1", port=0, admin_port=-1, drain_seconds=2.0, services={DEFAULT_SERVICE: one}
            ),
            **fields,
        )
        outcomes: list[Outcome] = []

        def recording(balancer: Any) -> Any:
            front = RecordingFront(balancer.services)
            front.outcomes = outcomes
            return front

        worker = Worker(settings, make_front or recording)
        listener = listen("127.0.0.1", 0, reuse_port=False)
        await worker.start(listener)
        lb = Lb(worker, listener.getsockname()[1], outcomes)
        self.lbs.append(lb)
        if endpoints:
            lb.set(*endpoints)
        return lb

    async def endpoint(self, behave: Behaviour | None = None, port: int = 0) -> RawEndpoint:
        endpoint = RawEndpoint(behave)
        await endpoint.start(port)
        self.endpoints.append(endpoint)
        return endpoint

    def closed_port(self) -> str:
        """Where nobody listens, and nobody else can: another test's server would."""
        one = socket.socket()
        self.held.append(one)
        one.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{one.getsockname()[1]}"

    async def close(self) -> None:
        for one in self.held:
            one.close()
        for lb in self.lbs:
            for wire in lb.wires:
                wire.writer.transport.abort()
        for endpoint in self.endpoints:
            await endpoint.stop()
        for lb in self.lbs:
            lb.worker.settings = replace(lb.worker.settings, drain_seconds=0.5)
            await until(lb.quiet)
            await lb.worker.stop()


@pytest.fixture
async def kit() -> AsyncIterator[Kit]:
    """Every test ends with the same question: is any counter stuck?"""
    made = Kit()
    yield made
    await made.close()
