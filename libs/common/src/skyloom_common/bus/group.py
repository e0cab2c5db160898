"""One member of a consumer group: takes new events, takes over what others left, buries what nobody can handle.

It must not decide when to retry a broken connection; `Bus.subscribe` does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from skyloom_common.bus.entries import decode
from skyloom_common.bus.resp import Redis, RespError, pairs
from skyloom_common.contracts.events import Event
from skyloom_common.core.ids import new_id

if TYPE_CHECKING:
    from skyloom_common.bus.bus import Bus

_log = logging.getLogger(__name__)
Handler = Callable[[Event], Awaitable[None]]
BATCH = 100
_DEAD_LENGTH = 1000
_GONE_AFTER_MS = 3_600_000


class GroupReader:
    """`redis` is its own connection: it waits on it."""

    def __init__(self, redis: Redis, bus: Bus, kinds: Sequence[str], group: str, handler: Handler) -> None:
        self._redis = redis
        self._bus = bus
        self._streams = [bus.stream(kind) for kind in kinds]
        self._group = group
        self._handler = handler
        self._me = new_id()
        self._prepared = False
        self._took_over_at = float("-inf")

    def forget(self) -> None:
        """The server may have lost everything: make the groups again."""
        self._prepared = False

    async def read_once(self, longest: float) -> None:
        """One round: what others left when it is time, then new events (waits for them up to `longest`)."""
        if not self._prepared:
            await self._prepare()
        wait = self._bus.redeliver_after - (time.monotonic() - self._took_over_at)
        if wait <= 0:
            await self._take_over()
            wait = self._bus.redeliver_after
        wait = min(wait, longest)
        words: list[str | int] = [
            "XREADGROUP",
            "GROUP",
            self._group,
            self._me,
            "COUNT",
            BATCH,
            "BLOCK",
            max(1, int(wait * 1000)),
        ]
        streams = ["STREAMS", *self._streams, *[">"] * len(self._streams)]
        read = await self._redis.call_blocking(*words, *streams, seconds=wait + 5)
        for stream, entries in read or ():
            for entry_id, fields in entries:
                await self._deliver(stream, entry_id, fields)

    async def _prepare(self) -> None:
        for stream in self._streams:
            try:
                await self._redis.call("XGROUP", "CREATE", stream, self._group, "0", "MKSTREAM")
            except RespError as error:
                if "BUSYGROUP" not in str(error):
                    raise
        self._prepared = True

    async def _take_over(self) -> None:
        self._took_over_at = time.monotonic()
        idle = int(self._bus.redeliver_after * 1000)
        for stream in self._streams:
            pending = await self._redis.call("XPENDING", stream, self._group, "IDLE", idle, "-", "+", BATCH)
            tired = {
                entry_id for entry_id, _, _, deliveries in pending if deliveries >= self._bus.max_deliveries
            }
            claimed = await self._redis.call(
                "XAUTOCLAIM", stream, self._group, self._me, idle, "0-0", "COUNT", BATCH
            )
            for entry_id, fields in claimed[1]:
                if entry_id in tired:
                    await self._bury(stream, entry_id, fields)
                else:
                    await self._deliver(stream, entry_id, fields)
            await self._drop_old_members(stream)

    async def _drop_old_members(self, stream: str) -> None:
        """Members have fresh names at every start; those without work that were silent for an hour are gone."""
        members = await self._redis.call("XINFO", "CONSUMERS", stream, self._group)
        for member in map(pairs, members):
            if member["name"] != self._me and not member["pending"] and member["idle"] > _GONE_AFTER_MS:
                await self._redis.call("XGROUP", "DELCONSUMER", stream, self._group, member["name"])

    async def _deliver(self, stream: str, entry_id: str, fields: list[str] | None) -> None:
        event = decode(fields)
        if event is None:
            await self._bury(stream, entry_id, fields)
            return
        try:
            await self._handler(event)
        except Exception:
            _log.exception(
                "group %s: handling %s of %s failed; it comes again", self._group, event.kind, event.key
            )
            return
        await self._redis.call("XACK", stream, self._group, entry_id)

    async def _bury(self, stream: str, entry_id: str, fields: list[str] | None) -> None:
        _log.error("group %s: %s of %s cannot be handled; now a dead letter", self._group, entry_id, stream)
        letter: list[Any] = [*(fields or []), "stream", stream, "entry", entry_id]
        grave = self._bus.dead_letters(self._group)
        await self._redis.call("XADD", grave, "MAXLEN", "~", _DEAD_LENGTH, "*", *letter)
        await self._redis.call("XACK", stream, self._group, entry_id)
