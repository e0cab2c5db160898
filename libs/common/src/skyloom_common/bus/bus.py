"""Publish, subscribe in groups, listen to everything. It carries wake-ups; it must never be asked what is true.

`publish` never raises because Redis is away; readers come back by themselves and say so, so that their owner can
look at the truth once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from skyloom_common.bus.entries import decode
from skyloom_common.bus.group import GroupReader, Handler
from skyloom_common.bus.lease import BusLeases
from skyloom_common.bus.resp import FAULTS, Backoff, Redis
from skyloom_common.contracts.events import Event
from skyloom_common.core.errors import Unavailable
from skyloom_common.core.ids import new_id
from skyloom_common.core.wire import dumps

_log = logging.getLogger(__name__)
RESYNC = "bus.resynced"
"""Kind of the event that a listener gets when it begins and whenever it came back: events may have been missed."""
BLOCK_SECONDS = 60.0
_WARN_EVERY = 30.0


class Bus:
    """One per process; `close()` it at the end. `prefix` keeps deployments on one server apart."""

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "skyloom",
        max_length: int = 10_000,
        max_deliveries: int = 5,
        redeliver_after: float = 30.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.url = url
        self.prefix = prefix
        self.max_deliveries = max_deliveries
        self.redeliver_after = redeliver_after
        self.dropped = 0
        """Events that could not be published since the start."""
        self.redis = Redis(url)
        """For commands that answer at once."""
        self.leases = BusLeases(self.redis, prefix)
        self._max_length = max_length
        self._sleep = sleep
        self._warned_at = -_WARN_EVERY

    async def publish(self, event: Event) -> bool:
        """False when it could not be sent: it is logged and counted, and readers find the change by resync."""
        try:
            await self.redis.call(
                "XADD",
                self.stream(event.kind),
                "MAXLEN",
                "~",
                self._max_length,
                "*",
                "event",
                dumps(event).decode(),
            )
        except FAULTS as error:
            self.dropped += 1
            self._warn("event %s of %s was not published: %s", event.kind, event.key, _words(error))
            return False
        return True

    async def emit(
        self, kind: str, key: str, *, generation: int = 0, data: dict[str, Any] | None = None
    ) -> bool:
        """`publish` of a new event that happens now."""
        return await self.publish(Event(new_id(), kind, key, time.time(), generation, data or {}))

    async def subscribe(self, kinds: Sequence[str], group: str, handler: Handler) -> None:
        """Runs until cancelled. Each event goes to one member of `group` and is acked once `handler` returned.

        A handler that raises gets the event again after `redeliver_after` seconds; after `max_deliveries` it is put
        into the dead letter stream of the group.
        """
        redis = Redis(self.url)
        reader = GroupReader(redis, self, kinds, group, handler)
        backoff = Backoff()
        try:
            while True:
                try:
                    await reader.read_once(BLOCK_SECONDS)
                    backoff.reset()
                except FAULTS as error:
                    self._warn("group %s waits for the bus: %s", group, _words(error))
                    await self._sleep(backoff.next())
                    reader.forget()
        finally:
            await redis.close()

    async def listen(self, kinds: Sequence[str]) -> AsyncIterator[Event]:
        """Every event of these kinds from now on, to every listener; first, and after each break, one RESYNC."""
        redis = Redis(self.url)
        backoff = Backoff()
        try:
            while True:
                try:
                    async with contextlib.aclosing(self._listen_connected(redis, kinds)) as events:
                        async for event in events:
                            backoff.reset()
                            yield event
                except FAULTS as error:
                    self._warn("a listener waits for the bus: %s", _words(error))
                await self._sleep(backoff.next())
        finally:
            await redis.close()

    async def _listen_connected(self, redis: Redis, kinds: Sequence[str]) -> AsyncGenerator[Event, None]:
        positions = {self.stream(kind): await self._last_id(redis, kind) for kind in kinds}
        yield Event(new_id(), RESYNC, "", time.time())
        while True:
            words: list[str | int] = [
                "XREAD",
                "COUNT",
                500,
                "BLOCK",
                int(BLOCK_SECONDS * 1000),
                "STREAMS",
                *positions,
                *positions.values(),
            ]
            read = await redis.call_blocking(*words, seconds=BLOCK_SECONDS + 5)
            for stream, entries in read or ():
                for entry_id, fields in entries:
                    positions[stream] = entry_id
                    if (event := decode(fields)) is not None:
                        yield event

    async def _last_id(self, redis: Redis, kind: str) -> str:
        newest = await redis.call("XREVRANGE", self.stream(kind), "+", "-", "COUNT", 1)
        return str(newest[0][0]) if newest else "0-0"

    async def ping(self) -> None:
        """Raises Unavailable when Redis does not answer."""
        try:
            await self.redis.call("PING")
        except FAULTS as error:
            raise Unavailable(f"the bus does not answer: {_words(error)}") from error

    async def engine(self) -> str:
        """ "valkey 9.1.2" or "redis 7.0.15". Raises Unavailable."""
        try:
            info: str = await self.redis.call("INFO", "server")
        except FAULTS as error:
            raise Unavailable(f"the bus does not answer: {_words(error)}") from error
        known = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
        if "valkey_version" in known:
            return f"valkey {known['valkey_version']}"
        return f"redis {known.get('redis_version', '?')}"

    async def close(self) -> None:
        await self.redis.close()

    def stream(self, kind: str) -> str:
        return f"{self.prefix}:events:{kind}"

    def dead_letters(self, group: str) -> str:
        return f"{self.prefix}:dead:{group}"

    def _warn(self, message: str, *values: object) -> None:
        """At most one line per half minute while Redis is away; the others at debug level."""
        now = time.monotonic()
        level = logging.DEBUG
        if now - self._warned_at >= _WARN_EVERY:
            self._warned_at, level = now, logging.WARNING
        _log.log(level, message, *values)


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__
