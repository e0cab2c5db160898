"""The arithmetic of rate limits: a bucket that fills at a rate and may be overdrawn by corrections. Pure: time is an argument."""

from __future__ import annotations

from typing import Protocol

_MINUTE = 60.0


class Fills(Protocol):
    """What `Bucket` does, wherever its level is kept."""

    capacity: float
    rate: float

    def peek(self, now: float) -> float: ...

    def take(self, amount: float, now: float) -> float: ...

    def correct(self, amount: float, now: float) -> None: ...

    def resized(self, per_minute: float, now: float) -> Fills: ...


class Bucket:
    """Holds one minute's worth. `now` never runs backwards for it: an earlier time counts as no time at all."""

    __slots__ = ("_at", "capacity", "level", "rate")

    def __init__(self, per_minute: float, now: float) -> None:
        self.capacity = max(1.0, per_minute)
        self.rate = per_minute / _MINUTE
        self.level = self.capacity
        self._at = now

    def _fill(self, now: float) -> None:
        if now > self._at:
            self.level = min(self.capacity, self.level + (now - self._at) * self.rate)
            self._at = now

    def peek(self, now: float) -> float:
        """What is in it now; below 0 after corrections."""
        self._fill(now)
        return self.level

    def take(self, amount: float, now: float) -> float:
        """0.0 = taken; else the seconds until it could be. What is more than a full bucket costs a full one."""
        self._fill(now)
        amount = min(amount, self.capacity)
        if self.level >= amount:
            self.level -= amount
            return 0.0
        return (amount - self.level) / self.rate

    def correct(self, amount: float, now: float) -> None:
        """Gives back (above 0) or takes what was not estimated (below 0), even if that overdraws the bucket."""
        self._fill(now)
        self.level = max(-self.capacity, min(self.capacity, self.level + amount))

    def resized(self, per_minute: float, now: float) -> Bucket:
        """The same bucket under another limit: equally full."""
        made = Bucket(per_minute, now)
        self._fill(now)
        made.level = made.capacity * self.level / self.capacity
        return made
