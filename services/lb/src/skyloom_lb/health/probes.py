"""Active probes: a GET to each endpoint now and then, beside the signals of real requests. 2xx and 3xx are healthy."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING

import aiohttp

if TYPE_CHECKING:
    from skyloom_lb.balancer import Balancer
    from skyloom_lb.service import Backend, Service

_AT_ONCE = 256


class Prober:
    def __init__(self, balancer: Balancer) -> None:
        self._balancer = balancer
        self._session: aiohttp.ClientSession | None = None
        self._due: dict[tuple[str, str], float] = {}
        self._limit = asyncio.Semaphore(_AT_ONCE)
        self._running: dict[tuple[str, str], asyncio.Task[None]] = {}

    async def run(self) -> None:
        while True:
            self._begin_due(time.monotonic())
            await asyncio.sleep(0.1)

    def _begin_due(self, now: float) -> None:
        wanted: set[tuple[str, str]] = set()
        for service in self._balancer.services.values():
            if not service.settings.health.probe_path:
                continue
            for backend in service.backends.values():
                key = (service.name, backend.id)
                wanted.add(key)
                if self._due.get(key, 0.0) <= now and key not in self._running:
                    self._due[key] = now + service.settings.health.probe_seconds
                    task = asyncio.get_running_loop().create_task(self._probe(service, backend))
                    self._running[key] = task
                    task.add_done_callback(partial(self._ended, key))
        self._due = {key: due for key, due in self._due.items() if key in wanted}

    def _ended(self, key: tuple[str, str], task: asyncio.Task[None]) -> None:
        del self._running[key]

    async def _probe(self, service: Service, backend: Backend) -> None:
        health = service.settings.health
        url = backend.url.rstrip("/") + health.probe_path
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True))
        try:
            async with self._limit, asyncio.timeout(health.probe_timeout):
                async with self._session.get(url, allow_redirects=False) as answer:
                    ok, reason = answer.status < 400, f"status {answer.status}"
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            ok, reason = False, type(error).__name__
        backend.signals.probed(ok, f"probe: {reason}")

    async def close(self) -> None:
        for task in tuple(self._running.values()):
            task.cancel()
        if self._session is not None:
            await self._session.close()
