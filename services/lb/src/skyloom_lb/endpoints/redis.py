"""Endpoint tables in Redis, read again on `endpoint.changed` and every few seconds. Redis away: what was known stays.

Many changes in a row are one reading; a table that cannot be read never empties a service.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Sequence
from typing import cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from skyloom_common.bus import Bus
from skyloom_common.contracts.endpoints import ENDPOINT_CHANGED, INDEX_KEY, TABLE_KEY, Endpoint
from skyloom_common.core.errors import InvalidRequest
from skyloom_common.core.wire import loads
from skyloom_lb.endpoints.file import Apply
from skyloom_lb.endpoints.url import parse_url

RESYNC_SECONDS = 5.0
_QUIET_SECONDS = 0.02
_log = logging.getLogger(__name__)


class RedisSource:
    def __init__(self, redis: Redis, bus: Bus, services: Sequence[str], apply: Apply) -> None:
        self.trouble = "not read yet"
        self._redis = redis
        self._bus = bus
        self._services = tuple(services)
        self._apply = apply
        self._known: dict[str, dict[str, bytes]] = {}
        self._wake = asyncio.Event()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen())
            tasks.create_task(self._read_forever())

    async def _listen(self) -> None:
        async for _ in self._bus.listen([ENDPOINT_CHANGED]):
            self._wake.set()

    async def _read_forever(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), RESYNC_SECONDS)
                await asyncio.sleep(_QUIET_SECONDS)
            self._wake.clear()
            await self.read()

    async def read(self) -> None:
        try:
            for service in await self._names():
                rows = await cast(
                    "Awaitable[dict[bytes, bytes]]", self._redis.hgetall(TABLE_KEY.format(service=service))
                )
                self._take(service, {id.decode(): row for id, row in rows.items()})
            self.trouble = ""
        except (RedisError, OSError, TimeoutError) as error:
            if not self.trouble:
                _log.warning("the endpoints stay what they were: Redis is away: %s", error)
            self.trouble = f"Redis is away: {type(error).__name__}"

    async def _names(self) -> Sequence[str]:
        if self._services:
            return self._services
        names = await cast("Awaitable[set[bytes]]", self._redis.smembers(INDEX_KEY))
        # A service that left the index has an empty table by now.
        return sorted({name.decode() for name in names} | set(self._known))

    def _take(self, service: str, rows: dict[str, bytes]) -> None:
        if rows == self._known.get(service):
            return
        endpoints = [one for one in (self._parse(id, row) for id, row in rows.items()) if one is not None]
        self._known[service] = rows
        self._apply(service, endpoints)

    def _parse(self, id: str, row: bytes) -> Endpoint | None:
        """One bad row must not take the others with it."""
        try:
            endpoint = loads(Endpoint, row)
            parse_url(endpoint.url)
            if endpoint.weight <= 0:
                raise InvalidRequest(f"weight {endpoint.weight:g} is not above 0")
        except (InvalidRequest, UnicodeDecodeError) as error:
            _log.warning("endpoint %s is left out: %s", id, error)
            return None
        return endpoint
