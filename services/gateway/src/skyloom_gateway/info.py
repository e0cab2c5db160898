"""What the server says about itself: version, store, bus, and how its services are."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from importlib.metadata import version

import httpx

from skyloom_common.bus import Bus
from skyloom_common.clients.base import ServiceClient
from skyloom_common.contracts.clusters import ServerInfo
from skyloom_common.contracts.http import API_VERSION
from skyloom_common.core.errors import Unavailable
from skyloom_common.service.app import OK

VERSION = version("skyloom-gateway")
_PATIENCE = 3.0


class About:
    """`services`: name to client. `bus` None = this gateway was told of none."""

    def __init__(self, services: Mapping[str, ServiceClient], store: str, bus: Bus | None) -> None:
        self._services = services
        self._store = store
        self._bus = bus
        self._started_at = time.time()

    async def readiness(self) -> dict[str, str]:
        states = await asyncio.gather(*map(_state, self._services.values()))
        return dict(zip(self._services, states, strict=True))

    async def info(self, user: str) -> ServerInfo:
        services, bus = await asyncio.gather(self.readiness(), self._engine())
        healthy = all(state == OK for state in services.values())
        return ServerInfo(
            version=VERSION,
            api_version=API_VERSION,
            status="healthy" if healthy else "unhealthy",
            user=user,
            store=self._store,
            bus=bus,
            started_at=self._started_at,
            services={"gateway": OK, **services},
        )

    async def _engine(self) -> str:
        if self._bus is None:
            return ""
        try:
            return await self._bus.engine()
        except Unavailable as error:
            return str(error)


async def _state(client: ServiceClient) -> str:
    """ "ok", or the parts of that service which are not, or why it cannot be asked."""
    try:
        async with asyncio.timeout(_PATIENCE):
            answer = await client.http.get("/readyz")
    except TimeoutError:
        return f"no answer within {_PATIENCE:.0f} s"
    except httpx.HTTPError as error:
        return f"cannot be reached: {error or type(error).__name__}"
    if answer.status_code == 200:
        return OK
    return _unready(answer.content)


def _unready(body: bytes) -> str:
    try:
        checks = json.loads(body)["checks"].items()
    except (ValueError, KeyError, TypeError, AttributeError):
        return "not ready"
    return "not ready: " + ", ".join(f"{part} {state}" for part, state in checks if state != OK)
