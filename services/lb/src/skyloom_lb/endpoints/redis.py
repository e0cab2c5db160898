"""Endpoint tables in Redis, read again on `endpoint.changed` and every few seconds. Redis away: what was known stays.

Many changes in a row are one reading; a table that cannot be read never empties a service, nor keeps others from being read.
An index that is gone while tables are known is a loss of Redis's memory, not the end of every service.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Sequence
from typing import cast

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from skyloom_common.bus import Bus
from skyloom_common.contracts.endpoints import ENDPOINT_CHANGED, INDEX_KEY, TABLE_KEY, Endpoint
from skyloom_common.core.errors import InvalidRequest
from skyloom_common.core.text import few
from skyloom_common.core.wire import loads
from skyloom_lb.endpoints.check import check_endpoint
from skyloom_lb.endpoints.file import Apply

RESYNC_SECONDS = 5.0
_QUIET_SECONDS = 0.02
_AWAY = (RedisError, OSError, TimeoutError)
_log = logging.getLogger(__name__)


class _Trouble(Exception):
    """Redis answers, but what it says cannot be so."""


class RedisSource:
    def __init__(self, redis: Redis, bus: Bus, services: Sequence[str], apply: Apply) -> None:
        self.trouble = "not read yet"
        self._redis = redis
        self._bus = bus
        self._services = tuple(services)
        self._apply = apply
        self.was_read = False
        """At least once, and then nothing was wrong."""
        self._index: set[str] = set()
        self._known: dict[str, dict[bytes, bytes]] = {}
        self._wrong: dict[str, str] = {}
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
            # Not `wait_for`: before Python 3.12 it can swallow a cancel that comes together with the event.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RESYNC_SECONDS):
                    await self._wake.wait()
                await asyncio.sleep(_QUIET_SECONDS)
            self._wake.clear()
            await self.read()

    async def read(self) -> None:
        """Never raises: what is wrong is told by `trouble`."""
        try:
            names = await self._names()
            wrong = [words for name in names if (words := await self._read_table(name))]
        except _AWAY as error:
            self._tell(f"Redis is away: {type(error).__name__}")
        except _Trouble as error:
            self._tell(str(error))
        else:
            self._tell("; ".join(wrong))
            self.was_read = self.was_read or not wrong

    def _tell(self, words: str) -> None:
        if words and words != self.trouble:
            _log.warning("the endpoints stay what they were: %s", words)
        self.trouble = words

    async def _names(self) -> Sequence[str]:
        """A service that left the index is read once more: its table says what is left of it."""
        if self._services:
            return self._services
        try:
            names = await cast("Awaitable[set[bytes]]", self._redis.smembers(INDEX_KEY))
        except ResponseError as error:
            raise _Trouble(f"{INDEX_KEY}: {error}") from error
        if not names and any(self._known.values()):
            raise _Trouble(f"{INDEX_KEY} is gone")
        self._index = {name.decode("utf-8", "replace") for name in names}
        return sorted(self._index | set(self._known))

    async def _read_table(self, service: str) -> str:
        """What is wrong with it, or nothing."""
        key = TABLE_KEY.format(service=service)
        try:
            rows = await cast("Awaitable[dict[bytes, bytes]]", self._redis.hgetall(key))
        except ResponseError as error:
            return f"{key}: {error}"
        if not rows and not self._services and service not in self._index:
            self._known.pop(service, None)
            self._wrong.pop(service, None)
            self._apply(service, None)
        elif rows != self._known.get(service):
            self._take(service, rows)
        return self._wrong.get(service, "")

    def _take(self, service: str, rows: dict[bytes, bytes]) -> None:
        """One bad row must not take the others with it."""
        endpoints, wrong = [], []
        for id, row in rows.items():
            try:
                endpoints.append(_parse(id, row))
            except (InvalidRequest, ValueError) as error:
                wrong.append(f"{service}: {id!r} is left out: {error}")
        self._known[service] = rows
        self._wrong[service] = few(wrong)
        self._apply(service, endpoints)


def _parse(id: bytes, row: bytes) -> Endpoint:
    endpoint = loads(Endpoint, row)
    if endpoint.id != id.decode():
        raise InvalidRequest(f"its id {endpoint.id!r} is not the field's name")
    check_endpoint(endpoint, "row")
    return endpoint
