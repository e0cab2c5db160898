"""All services in one event loop, calling each other without a socket; only the gateway listens.

It must not hold logic of its own: whatever a service needs here, it needs apart as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import socket
import sys
import time
from collections.abc import AsyncIterator
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from skyloom_common.bus.embedded import EmbeddedRedis
from skyloom_standalone.reserve import take
from skyloom_standalone.settings import StandaloneSettings
from skyloom_standalone.state import Ready, remove_api_file, write_api_file

if TYPE_CHECKING:
    import httpx
    from fastapi import FastAPI

    from skyloom_common.bus import Bus

_log = logging.getLogger("skyloom.standalone")
VERSION = version("skyloom-standalone")


class Stack:
    def __init__(self, settings: StandaloneSettings, sock: socket.socket, ready: Ready) -> None:
        self._settings = settings
        self._sock = sock
        self._ready = ready
        self._began = time.monotonic()

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set. Whatever was started is ended, in the reverse order, however this ends."""
        async with contextlib.AsyncExitStack() as stack:
            redis_url = await stack.enter_async_context(self._redis())
            gateway = await self._services(stack, redis_url)
            from skyloom_common.service.server import serve

            stack.callback(remove_api_file, self._settings.home)
            await serve(
                gateway, self._sock, stop, grace_seconds=self._settings.grace_seconds, on_ready=self._on_ready
            )
            _log.info("stopping")

    @contextlib.asynccontextmanager
    async def _redis(self) -> AsyncIterator[str]:
        if self._settings.redis_url:
            yield self._settings.redis_url
            return
        home = self._settings.home
        server = EmbeddedRedis(home / "run", log_file=home / "logs" / "redis.log")
        starting = asyncio.create_task(server.start())
        try:
            # One turn of the loop starts the process; it comes up while we import the rest.
            await asyncio.sleep(0)
            _import_services()
            await starting
            yield server.url
        finally:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            await server.stop()

    async def _services(self, stack: contextlib.AsyncExitStack, redis_url: str) -> FastAPI:
        """Starts the services that others need first; the gateway's own life is the server's business."""
        from skyloom_common.bus import Bus
        from skyloom_common.clients.optimizer import OptimizerClient
        from skyloom_common.clients.provisioner import ProvisionerClient
        from skyloom_common.service.run import lifespan_of
        from skyloom_gateway.main import create_app as create_gateway
        from skyloom_gateway.settings import GatewaySettings
        from skyloom_optimizer.main import create_app as create_optimizer
        from skyloom_optimizer.settings import OptimizerSettings
        from skyloom_provisioner.main import create_app as create_provisioner
        from skyloom_provisioner.settings import ProvisionerSettings

        known: dict[str, Any] = {
            "home": self._settings.home,
            "service_token": self._settings.service_token,
            "redis_url": redis_url,
            "log_level": self._settings.log_level,
        }
        if self._settings.database_url:
            known["database_url"] = self._settings.database_url
        bus: Bus = Bus(redis_url)
        stack.push_async_callback(bus.close)

        optimizer_app = create_optimizer(OptimizerSettings.from_env(**known))
        optimizer = OptimizerClient(await self._inside(stack, optimizer_app, "optimizer"))
        await stack.enter_async_context(lifespan_of(optimizer_app))

        provisioner_app = create_provisioner(
            ProvisionerSettings.from_env(**known), optimizer=optimizer, bus=bus
        )
        provisioner = ProvisionerClient(await self._inside(stack, provisioner_app, "provisioner"))
        await stack.enter_async_context(lifespan_of(provisioner_app))

        settings = GatewaySettings.from_env(**known, server_log=self._settings.log_file)
        return create_gateway(settings, provisioner=provisioner, optimizer=optimizer, bus=bus)

    async def _inside(self, stack: contextlib.AsyncExitStack, app: FastAPI, name: str) -> httpx.AsyncClient:
        """How the others call `app`: the same client and the same token as over a network."""
        import httpx

        from skyloom_common.clients.asgi import AsgiTransport

        client = httpx.AsyncClient(
            transport=AsgiTransport(app, name),
            base_url=f"http://{name}",
            headers={
                "Authorization": f"Bearer {self._settings.service_token}",
                "Accept-Encoding": "identity",
            },
            trust_env=False,
        )
        return await stack.enter_async_context(client)

    async def _on_ready(self, url: str) -> None:
        write_api_file(self._settings.home, url, VERSION)
        self._ready.ready(url)
        _log.info("ready at %s after %.2f s", url, time.monotonic() - self._began)
        sys.stderr.write(f"skyloom-standalone: ready at {url}\n")
        sys.stderr.flush()
        asyncio.get_running_loop().call_later(1.0, self._settle)

    def _settle(self) -> None:
        """What was loaded stays loaded: keep the collector away from it and give start-up memory back to the system."""
        gc.collect()
        gc.freeze()
        if sys.platform == "linux":
            trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
            if trim is not None:
                trim(0)
        take(self._settings.home)


def _import_services() -> None:
    # httpx loads its command line (click, rich, pygments) where it finds them: time and memory that nobody here uses.
    sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
    import skyloom_provisioner.main  # noqa: F401
