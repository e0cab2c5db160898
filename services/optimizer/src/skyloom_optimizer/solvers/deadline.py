"""How long a search may still take. The clock is an argument; nothing here waits."""

from __future__ import annotations

import time
from collections.abc import Callable

Clock = Callable[[], float]


class Deadline:
    """A moment on a monotonic clock. What is below it may only shorten it."""

    def __init__(self, seconds: float, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._until = clock() + seconds

    def left(self) -> float:
        return max(0.0, self._until - self._clock())

    def passed(self) -> bool:
        return self.left() <= 0

    def earlier(self, seconds: float) -> Deadline:
        """With so much time in reserve."""
        return Deadline(self.left() - seconds, self._clock)

    def part(self, share: float) -> Deadline:
        """That share of what is left."""
        return Deadline(share * self.left(), self._clock)
