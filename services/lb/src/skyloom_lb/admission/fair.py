"""Who is next: classes of priority share by weight, keys of a class by deficit round robin. Pure.

A class of a higher priority gets more turns, never all of them: nobody starves. Within a class each key gets the same share
of *cost* (estimated tokens), so that a key with huge requests does not push the others aside.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")
QUANTUM = 64.0
"""The least that a request costs: small ones take turns one by one."""
MAX_COST = 512 * QUANTUM
_CLASS_FACTOR = 4.0


class _Flow(Generic[T]):
    __slots__ = ("deficit", "items")

    def __init__(self) -> None:
        self.items: OrderedDict[T, float] = OrderedDict()
        self.deficit = 0.0


class _Class(Generic[T]):
    """Keys of one priority, round robin."""

    __slots__ = ("flows", "passed", "ring", "weight")

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.passed = 0.0
        self.flows: dict[str, _Flow[T]] = {}
        self.ring: deque[str] = deque()

    def pop(self, may: Callable[[str], bool]) -> tuple[T, float] | None:
        for _ in range(2):
            found, rounds = self._round(may)
            if found is not None or rounds is None:
                return found
            # As many rounds as it takes until the nearest one can pay, at once.
            for key, flow in self.flows.items():
                if may(key):
                    flow.deficit += rounds * QUANTUM
        return self._round(may)[0]

    def _round(self, may: Callable[[str], bool]) -> tuple[tuple[T, float] | None, int | None]:
        """One visit to each key that may: whoever can pay is served and stays in front, the others get a quantum."""
        rounds: int | None = None
        for _ in range(len(self.ring)):
            key = self.ring[0]
            if may(key):
                flow = self.flows[key]
                item, cost = next(iter(flow.items.items()))
                if flow.deficit >= cost:
                    flow.deficit -= cost
                    del flow.items[item]
                    if not flow.items:
                        self.drop(key)
                    return (item, cost), 0
                flow.deficit += QUANTUM
                missing = max(0, math.ceil((cost - flow.deficit) / QUANTUM))
                rounds = missing if rounds is None else min(rounds, missing)
            self.ring.rotate(-1)
        return None, rounds

    def drop(self, key: str) -> None:
        del self.flows[key]
        self.ring.remove(key)


class FairQueue(Generic[T]):
    """Items must be hashable and are in the queue at most once."""

    def __init__(self) -> None:
        self._classes: dict[int, _Class[T]] = {}
        self._where: dict[T, tuple[int, str]] = {}
        self._passed = 0.0

    def __len__(self) -> int:
        return len(self._where)

    def push(self, item: T, key: str, priority: int = 0, cost: float = 1.0) -> None:
        one = self._classes.get(priority)
        if one is None:
            one = self._classes[priority] = _Class(_CLASS_FACTOR ** max(-8, min(8, priority)))
        if not one.flows:
            one.passed = max(one.passed, self._passed)  # what it did not use while away is gone
        flow = one.flows.get(key)
        if flow is None:
            flow = one.flows[key] = _Flow()
            one.ring.append(key)
        flow.items[item] = max(QUANTUM, min(cost, MAX_COST))
        self._where[item] = (priority, key)

    def pop(self, may: Callable[[str], bool] = lambda key: True) -> T | None:
        """The next item of a key that may; None when there is none."""
        waiting = [one for one in self._classes.values() if one.flows]
        waiting.sort(key=lambda one: (one.passed, -one.weight))
        for turn, one in enumerate(waiting):
            found = one.pop(may)
            if found is not None:
                item, cost = found
                for held in waiting[:turn]:
                    held.passed = one.passed  # what it could not use now it does not save up
                self._passed = one.passed
                one.passed += cost / one.weight
                del self._where[item]
                return item
        return None

    def remove(self, item: T) -> bool:
        """It does not wait any more. False: it was not here."""
        where = self._where.pop(item, None)
        if where is None:
            return False
        one = self._classes[where[0]]
        flow = one.flows[where[1]]
        del flow.items[item]
        if not flow.items:
            one.drop(where[1])
        return True

    def shed(self, key: str, priority: int) -> T | None:
        """Takes out the newest item of the key that has most in the lowest class, in favour of one more of `key`; None when that
        key would not be left with at least as many."""
        lowest = min((number for number, one in self._classes.items() if one.flows), default=None)
        if lowest is None:
            return None
        flow = max(self._classes[lowest].flows.values(), key=lambda one: len(one.items))
        if len(flow.items) < self.waiting(key, priority) + 2:
            return None
        item = next(reversed(flow.items))
        self.remove(item)
        return item

    def waiting(self, key: str, priority: int) -> int:
        one = self._classes.get(priority)
        flow = one.flows.get(key) if one is not None else None
        return len(flow.items) if flow is not None else 0
