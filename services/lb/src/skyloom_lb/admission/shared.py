"""Rate limits that several processes share through Redis, without a question to Redis on each request's way.

A process draws an advance from the common bucket and spends it by itself; only when that is used up does a request wait for
Redis, a few milliseconds at most. When Redis is away or slow, each balancer goes on with a bucket of its own, at once; what it
gave out in that time it owes to the common bucket when Redis is back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

from skyloom_common.bus.resp import FAULTS, RespError
from skyloom_lb.admission.buckets import Bucket, Fills

PATIENCE = 0.1
"""Seconds that a request may wait for Redis."""
_AWAY = 1.0
_PROBE_EARLY = 0.5
_ADVANCE = 0.1
"""An advance lasts about so many seconds at the current use."""
_MOST = 0.1
"""No process holds more than this share of a bucket in advance."""
_IDLE = 1.0
_PROBED = "skyloom:limits:probe"
_NOTHING = ["1", "1", "0", "0", "1000", "0"]
"""What a probe asks for."""
_log = logging.getLogger(__name__)

# ARGV: capacity, tokens per ms, wanted, at least, time to live (ms), owed. Answers {granted, ms until "at least" is there, level}.
# Its own clock: those of the balancers may jump; when it jumps itself, it costs one pause back or gives one bucket forward.
# `wanted` below 0 gives back; `owed` was spent already.
SCRIPT = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local capacity, rate, want, least = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local state = redis.call('HMGET', KEYS[1], 'level', 'at')
local level, at = tonumber(state[1]) or capacity, tonumber(state[2]) or now
if now > at then level = math.min(capacity, level + (now - at) * rate) end
level = level - tonumber(ARGV[6])
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
return {tostring(granted), wait, tostring(level)}
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
        self._probing = False
        self.trouble = ""
        """Why the limits are this balancer's own now; empty when they are common."""
        self.failures = 0

    @property
    def away(self) -> bool:
        return self._clock() < self._away_until

    async def probe(self) -> None:
        """While Redis is away it is this that asks for it, so that no request does. By the script: one that is out of memory
        or only a replica answers a PING as ever."""
        if not self.trouble or self._probing or self._clock() < self._away_until - _PROBE_EARLY:
            return
        self._probing = True
        try:
            async with asyncio.timeout(PATIENCE):
                await self._run(_PROBED, _NOTHING)
            self._back()
        except FAULTS:
            self._away_until = self._clock() + _AWAY
        finally:
            self._probing = False

    def _back(self) -> None:
        if self.trouble:
            _log.info("limits are common again: Redis is back")
            self.trouble = ""
        self._away_until = 0.0

    def _gone(self, error: Exception) -> None:
        if not self.trouble:
            words = str(error) or type(error).__name__
            _log.warning("limits are this balancer's own for now, Redis is away: %s", words)
            self.trouble = f"Redis is away ({words}); this balancer counts by itself"
        self.failures += 1
        self._away_until = self._clock() + _AWAY

    async def run(self, key: str, *arguments: float) -> list[Any] | None:
        """None: Redis is away, or too slow."""
        if self.away:
            return None
        words = [str(one) if isinstance(one, int) else f"{one:.6f}" for one in arguments]
        try:
            async with asyncio.timeout(PATIENCE):
                answer = await self._run(key, words)
        except FAULTS as error:
            self._gone(error)
            return None
        if self.trouble:
            self._back()
        return answer

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

    def __init__(
        self, name: str, per_minute: float, script: RedisScript | None, now: float, local: Fills | None = None
    ) -> None:
        self.name = name
        self.local: Fills = local or Bucket(per_minute, now)
        """This balancer's own: it follows what is taken from the common one, and rules while Redis is away."""
        self._script = script
        self._credit = 0.0
        self._owed = 0.0
        self._owed_at = now
        self._common = self.local.capacity
        self._common_at = now
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
        if self._script is None:
            return self.local.take(amount, now)
        if self._script.away:
            return self._take_alone(amount, now)
        if self._credit >= amount:
            self._credit -= amount
            self._spent(amount, now)
            return 0.0
        return None

    def _take_alone(self, amount: float, now: float) -> float:
        wait = self.local.take(amount, now)
        if not wait:
            self._owed = min(self.local.capacity, self._owes(now) + amount)
            self._owed_at = now
        return wait

    def _owes(self, now: float) -> float:
        """What the common bucket would still lack of what was taken while it was away."""
        return max(0.0, self._owed - max(0.0, now - self._owed_at) * self.local.rate)

    def left(self, now: float) -> float:
        """About how much could be taken now: what others take from the common bucket is known from the last question."""
        here = self.local.peek(now)
        if self._script is None or self._script.away:
            return here
        common = self._common + max(0.0, now - self._common_at) * self.local.rate
        return min(here, common + self._credit)

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
            answer = await self._ask(want, least, clock())
            if answer is None:
                return self._take_alone(amount, clock())
            granted, wait = answer
            self._credit += granted
            if granted < least:
                return max(wait, 0.001)
            self._credit -= amount
            self._spent(amount, clock())
            return 0.0

    async def _ask(self, want: float, least: float, now: float) -> tuple[float, float] | None:
        assert self._script is not None
        owed = self._owes(now)
        key = f"skyloom:limits:{self.name}"
        capacity, rate = self.local.capacity, self.local.rate / 1000
        keep = 2 * capacity / rate + 1000
        answer = await self._script.run(key, capacity, rate, want, least, int(keep), owed)
        if answer is None:
            return None
        self._owed, self._owed_at = max(0.0, self._owes(now) - owed), now
        self._common, self._common_at = float(answer[2]), now
        return float(answer[0]), float(answer[1]) / 1000

    def correct(self, amount: float, now: float) -> None:
        """What was estimated too much (above 0) or too little. A debt is paid with the next question to Redis."""
        self.local.correct(amount, now)
        limit = self.local.capacity
        if self._script is None:
            return
        if self._script.away:
            self._owed, self._owed_at = max(0.0, min(limit, self._owes(now) - amount)), now
        else:
            self._credit = max(-limit, min(limit, self._credit + amount))

    def idle_credit(self, now: float) -> float:
        """An advance that nobody needed for a while."""
        return self._credit if self._credit > 0 and now - self._used_at > _IDLE else 0.0

    async def give_back(self, now: float) -> None:
        amount = self.idle_credit(now)
        if amount:
            self._credit -= amount
            if await self._ask(-amount, 0, now) is None:
                self._credit = 0.0  # Redis refills by itself
