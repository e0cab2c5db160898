"""The gateway behind a real socket: stops, clients that vanish, slow readers, torn streams."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from skyloom_common.clients.asgi import AsgiTransport
from skyloom_common.clients.optimizer import OptimizerClient
from skyloom_common.clients.provisioner import ProvisionerClient
from skyloom_common.service.auth import UserTokenAuth
from skyloom_common.service.run import bind
from skyloom_common.service.server import serve
from skyloom_common.testing.provisioner import FakeProvisioner
from skyloom_gateway.main import create_app
from skyloom_gateway.settings import GatewaySettings

pytestmark = pytest.mark.integration
SERVICE, TOKEN = "service-token-of-the-tests", "token-of-alice"


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


class Served:
    """The gateway on a port of its own, in this loop."""

    def __init__(self, home: Path, grace: float = 2.0) -> None:
        self.provisioner = FakeProvisioner(SERVICE)
        inner = httpx.AsyncClient(
            transport=AsgiTransport(self.provisioner.app),
            base_url="http://inner",
            headers={"Authorization": f"Bearer {SERVICE}"},
        )
        settings = GatewaySettings(home=home, service_token=SERVICE, database_url="sqlite:///x.db")
        self.app: FastAPI = create_app(
            settings,
            provisioner=ProvisionerClient(inner),
            optimizer=OptimizerClient(inner),
            auth=UserTokenAuth.single(TOKEN, "alice"),
        )
        self.stop = asyncio.Event()
        self._grace = grace

    async def start(self) -> str:
        ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def on_ready(url: str) -> None:
            ready.set_result(url)

        self.task = asyncio.create_task(
            serve(self.app, bind("127.0.0.1", 0), self.stop, grace_seconds=self._grace, on_ready=on_ready)
        )
        self.url = await asyncio.wait_for(ready, 10)
        return self.url

    def http(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=f"{self.url}/api/v1", headers={"Authorization": f"Bearer {TOKEN}"}, trust_env=False
        )

    async def stopped_within(self) -> float:
        began = time.monotonic()
        self.stop.set()
        await asyncio.wait_for(self.task, 15)
        return time.monotonic() - began


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    made = Served(tmp_path)
    await made.start()
    yield made
    made.stop.set()
    await asyncio.wait_for(made.task, 15)


async def _events_of_new_operation(http: httpx.AsyncClient) -> str:
    made = await http.post("/clusters/c/launch", json={"task": {}})
    return f"/operations/{made.json()['id']}/events"


async def test_a_client_that_vanishes_leaves_nothing_open(served: Served) -> None:
    async with served.http() as http:
        path = await _events_of_new_operation(http)
        async with http.stream("GET", path) as answer:
            await anext(answer.aiter_raw())
            assert served.provisioner.streams_open == 1
    await until(lambda: served.provisioner.streams_open == 0)


async def test_a_stop_cuts_streams_so_that_their_readers_notice(served: Served) -> None:
    async with served.http() as http:
        path = await _events_of_new_operation(http)
        async with http.stream("GET", path) as answer:
            pieces = answer.aiter_raw()
            await anext(pieces)
            stopping = asyncio.create_task(served.stopped_within())
            with pytest.raises(httpx.RemoteProtocolError):
                async for _ in pieces:
                    pass
            assert await stopping < 1.9
    assert served.provisioner.streams_open == 0


async def test_a_stop_lets_a_call_finish(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, release = asyncio.Event(), asyncio.Event()

    @served.app.get("/api/v1/slow")
    async def slow() -> dict[str, str]:
        entered.set()
        await release.wait()
        return {"done": "yes"}

    async with served.http() as http:
        call = asyncio.create_task(http.get("/slow"))
        await entered.wait()
        stopping = asyncio.create_task(served.stopped_within())
        await asyncio.sleep(0.3)
        release.set()
        assert (await call).json() == {"done": "yes"}
        await stopping


async def test_a_stop_waits_no_longer_than_its_grace(tmp_path: Path) -> None:
    served = Served(tmp_path, grace=1)
    await served.start()
    entered = asyncio.Event()

    @served.app.get("/api/v1/never")
    async def never() -> None:
        entered.set()
        await asyncio.Event().wait()

    async with served.http() as http:
        call = asyncio.create_task(http.get("/never", timeout=20))
        await entered.wait()
        assert await served.stopped_within() < 3
        await asyncio.gather(call, return_exceptions=True)
        assert call.exception() is not None or call.result().status_code >= 500


async def test_a_slow_reader_slows_the_sender(served: Served) -> None:
    """A log of 64 MB whose reader does not read: nothing of that size may pile up between the two."""
    sent = 0

    async def endless(offset: int, follow: bool) -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1024):
            sent += 1 << 16
            yield bytes(1 << 16)

    served.provisioner._log_from = endless  # type: ignore[method-assign]
    async with served.http() as http:
        async with http.stream("GET", "/clusters/c/jobs/1/logs?follow=1") as answer:
            await anext(answer.aiter_raw())
            seen = -1
            while seen != sent:
                seen = sent
                await asyncio.sleep(0.2)
            # What the sockets of the kernel take, and a few pieces of ours.
            assert sent < 24 << 20
            assert sent < 64 << 20


async def test_a_stream_that_breaks_behind_is_torn_here(served: Served) -> None:
    async def breaks(offset: int, follow: bool) -> AsyncIterator[bytes]:
        yield b"some"
        raise RuntimeError("the node is gone")

    served.provisioner._log_from = breaks  # type: ignore[method-assign]
    async with served.http() as http:
        with pytest.raises(httpx.RemoteProtocolError):
            async with http.stream("GET", "/clusters/c/jobs/1/logs?follow=1") as answer:
                assert answer.status_code == 200
                async for _ in answer.aiter_raw():
                    pass
        assert (await http.get("/clusters")).status_code == 200


async def test_many_followers_and_calls_share_one_server(served: Served) -> None:
    async with served.http() as http:
        path = await _events_of_new_operation(http)
        operation = path.split("/")[2]

        async def follow() -> int:
            count = 0
            async with http.stream("GET", path) as answer:
                async for piece in answer.aiter_raw():
                    count += piece.count(b"event: progress")
            return count

        followers = [asyncio.create_task(follow()) for _ in range(50)]
        await until(lambda: served.provisioner.streams_open == 50)
        assert (await http.get("/clusters")).status_code == 200
        assert served.provisioner.streams_open == 50, "it waited for none of them"
        await served.provisioner.add_event(operation, "planning")
        from skyloom_common.contracts.operations import OperationStatus

        await served.provisioner.add_event(operation, "done", OperationStatus.SUCCEEDED)
        assert await asyncio.wait_for(asyncio.gather(*followers), 10) == [2] * 50


async def test_requests_that_are_no_http_end(served: Served) -> None:
    host, port = served.url.removeprefix("http://").split(":")
    for raw in (b"\x16\x03\x01 tls?\r\n\r\n", b"GET /\x01 HTTP/1.1\r\n\r\n", b"BREW / HTTP/9\r\n\r\n"):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(raw)
        answer = await asyncio.wait_for(reader.read(1000), 5)
        assert answer == b"" or b" 4" in answer.split(b"\r\n")[0], raw
        writer.close()


def test_the_address_is_loopback_unless_told_otherwise() -> None:
    settings: Any = GatewaySettings.from_env({"SKYLOOM_SERVICE_TOKEN": SERVICE})
    assert settings.host == "127.0.0.1"
