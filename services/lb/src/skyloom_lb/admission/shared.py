"""Rate limits that several processes share through Redis, without a question to Redis on each request's way.

A process draws an advance from the common bucket and spends it by itself; only when that is used up does a request wait for
Redis, a few milliseconds at most. When Redis is away or slow, each process goes on with a bucket of its own, at once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

from skyloom_common.bus.resp import FAULTS, RespError
from skyloom_lb.admission.buckets import Bucket

PATIENCE = 0.1
"""Seconds that a request may wait for Redis."""
_AWAY = 1.0
_ADVANCE = 0.1
"""An advance lasts about so many seconds at the current use."""
_MOST = 0.1
"""No process holds more than this share of a bucket in advance."""
_IDLE = 1.0
_log = logging.getLogger(__name__)

# ARGV: capacity, tokens per ms, wanted, at least, time to live (ms). Answers {granted, ms until "at least" is there}.
# Its own clock: those of the balancers may jump. `wanted` below 0 gives back.
SCRIPT = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local capacity, rate, want, least = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local state = redis.call('HMGET', KEYS[1], 'level', 'at')
local level, at = tonumber(state[1]) or capacity, tonumber(state[2]) or now
if now > at then level = math.min(capacity, level + (now - at) * rate) end
local granted, wait = 0, 0
if want < 0 then
  granted = want
elseif level >= least then
  granted = math.min(want, level)
else
  wait = math.ceil((least - level) / rate)
end
level = math.max(-capacity, math.min(capacity, level - granted))
redis.call('HSET', KEYS[1], 'level', tostring(level), 'at', tostring(now))
redis.call('PEXPIRE', KEYS[1], ARGV[5])
return {tostring(granted), wait}
"""


class Calls(Protocol):
    async def call(self, *words: str | float, seconds: float = ...) -> Any: ...


class RedisScript:
    """The script by its hash; loaded again after a restart of Redis. Remembers for a second that Redis is away."""

    def __init__(self, redis: Calls, clock: Callable[[], float] = time.monotonic) -> None:
        self._redis = redis
        self._clock = clock
        self._sha = ""
        self._away_until = 0.0
        self.failures = 0

    @property
    def away(self) -> bool:
        return self._clock() < self._away_until

    async def run(self, key: str, *arguments: float) -> list[Any] | None:
        """None: Redis is away, or too slow."""
        if self.away:
            return None
        words = [str(one) if isinstance(one, int) else f"{one:.6f}" for one in arguments]
        try:
            async with asyncio.timeout(PATIENCE):
                return await self._run(key, words)
        except FAULTS as error:
            if not self.failures or self._clock() - self._away_until > 30:
                _log.warning(
                    "limits are local for now, Redis is away: %s", str(error) or type(error).__name__
                )
            self.failures += 1
            self._away_until = self._clock() + _AWAY
            return None

    async def _run(self, key: str, words: list[str]) -> list[Any]:
        if self._sha:
            try:
                return list(await self._redis.call("EVALSHA", self._sha, 1, key, *words))
            except RespError as error:
                if not str(error).startswith("NOSCRIPT"):
                    raise
        self._sha = str(await self._redis.call("SCRIPT", "LOAD", SCRIPT))
        return list(await self._redis.call("EVALSHA", self._sha, 1, key, *words))


class SharedBucket:
    """One limit. `take_now` answers at once or not at all; `take` may ask Redis."""

    def __init__(self, name: str, per_minute: float, script: RedisScript | None, now: float) -> None:
        self.name = name
        self.local = Bucket(per_minute, now)
        self._script = script
        self._credit = 0.0
        self._used_at = now
        self._pace = 0.0
        self._pace_at = now
        self._asking: asyncio.Lock | None = None

    def resized(self, per_minute: float, now: float) -> None:
        if per_minute != self.local.rate * 60:
            self.local = self.local.resized(per_minute, now)

    @property
    def credit(self) -> float:
        return self._credit

    def take_now(self, amount: float, now: float) -> float | None:
        """0.0 = taken, above 0 = refused for so many seconds, None = only Redis knows."""
        amount = min(amount, self.local.capacity)
        if self._script is None or self._script.away:
            return self.local.take(amount, now)
        if self._credit >= amount:
            self._credit -= amount
            self._spent(amount, now)
            return 0.0
        return None

    def _spent(self, amount: float, now: float) -> None:
        """The local bucket follows, so that it is right at once when Redis goes away."""
        self.local.correct(-amount, now)
        self._used_at = now
        past = now - self._pace_at
        if past > 0.5:
            self._pace, self._pace_at = amount / past, now
        else:
            self._pace += amount / 0.5

    async def take(self, amount: float, clock: Callable[[], float]) -> float:
        """0.0 = taken, else the seconds until it could be."""
        if self._asking is None:
            self._asking = asyncio.Lock()
        async with self._asking:  # one question at a time: the next one may find that the advance covers it
            known = self.take_now(amount, clock())
            if known is not None:
                return known
            amount = min(amount, self.local.capacity)
            least = amount - self._credit
            want = max(least, least + min(self._pace * _ADVANCE, self.local.capacity * _MOST))
            answer = await self._ask(want, least)
            if answer is None:
                return self.local.take(amount, clock())
            granted, wait = answer
            self._credit += granted
            if granted < least:
                return max(wait, 0.001)
            self._credit -= amount
            self._spent(amount, clock())
            return 0.0

    async def _ask(self, want: float, least: float) -> tuple[float, float] | None:
        assert self._script is not None
        key = f"skyloom:limits:{self.name}"
        capacity, rate = self.local.capacity, self.local.rate / 1000
        keep = 2 * capacity / rate + 1000
        answer = await self._script.run(key, capacity, rate, want, least, int(keep))
        return None if answer is None else (float(answer[0]), float(answer[1]) / 1000)

    def correct(self, amount: float, now: float) -> None:
        """What was estimated too much (above 0) or too little. A debt is paid with the next question to Redis."""
        self.local.correct(amount, now)
        if self._script is not None and not self._script.away:
            limit = self.local.capacity
            self._credit = max(-limit, min(limit, self._credit + amount))

    def idle_credit(self, now: float) -> float:
        """An advance that nobody needed for a while."""
        return self._credit if self._credit > 0 and now - self._used_at > _IDLE else 0.0

    async def give_back(self, now: float) -> None:
        amount = self.idle_credit(now)
        if amount:
            self._credit -= amount
            if await self._ask(-amount, 0) is None:
                self._credit = 0.0  # Redis refills by itself
