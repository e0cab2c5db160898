"""Short leases in Redis for what may be wrong for a moment (rate limits, leader for a sweep). Ownership of work is
fenced in SQL (store/lease.py); these must never guard truth by themselves.

A token grows with every change of hands, also across a loss of Redis: it is at least the server's time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from skyloom_common.bus.resp import FAULTS, Redis
from skyloom_common.core.errors import Unavailable
from skyloom_common.core.ids import new_id

_ACQUIRE = """
if not redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 0 end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local last = tonumber(redis.call('GET', KEYS[2]) or '0')
local token = math.max(last + 1, now)
redis.call('SET', KEYS[2], string.format('%.0f', token))
return token
"""
_RENEW = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end return 0"
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


@dataclass(frozen=True)
class BusLease:
    key: str
    owner: str
    token: int
    seconds: float


class BusLeases:
    def __init__(self, redis: Redis, prefix: str) -> None:
        self._redis = redis
        self._prefix = prefix

    async def acquire(self, key: str, seconds: float) -> BusLease | None:
        """None while somebody holds it. Raises Unavailable when Redis does not answer."""
        owner = new_id()
        token = await self._run(_ACQUIRE, key, owner, int(seconds * 1000), fence=True)
        return BusLease(key, owner, int(token), seconds) if token else None

    async def renew(self, lease: BusLease) -> bool:
        """False when it was lost: stop."""
        return bool(await self._run(_RENEW, lease.key, lease.owner, int(lease.seconds * 1000)))

    async def release(self, lease: BusLease) -> bool:
        return bool(await self._run(_RELEASE, lease.key, lease.owner))

    async def _run(self, script: str, key: str, *values: Any, fence: bool = False) -> Any:
        keys = [f"{self._prefix}:lease:{key}"] + ([f"{self._prefix}:fence:{key}"] if fence else [])
        try:
            return await self._redis.call("EVAL", script, len(keys), *keys, *values)
        except FAULTS as error:
            raise Unavailable(f"the bus does not answer: {error}") from error
