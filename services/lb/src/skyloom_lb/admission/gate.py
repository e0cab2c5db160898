"""Concurrency of one service and its queue: who may start now, who waits, who is next. No I/O, no timers."""

from __future__ import annotations

import asyncio

from skyloom_lb.admission.fair import FairQueue


class Slots:
    """How many requests run in this process for one key or one service; `limit` 0 = any number."""

    __slots__ = ("active", "limit", "name")

    def __init__(self, name: str, limit: int = 0) -> None:
        self.name = name
        self.limit = limit
        self.active = 0

    @property
    def free(self) -> bool:
        return not self.limit or self.active < self.limit


class Waiter:
    """`entered` is done once it has its place; until then `Gate.give_up` takes it out of the queue."""

    __slots__ = ("entered", "granted", "key")

    def __init__(self, key: Slots) -> None:
        self.key = key
        self.granted = False
        self.entered: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Gate:
    """`enter` (or a granted waiter) and `leave` come in pairs."""

    def __init__(self, limit: int = 0) -> None:
        self.slots = Slots("", limit)
        self._queue: FairQueue[Waiter] = FairQueue()
        self._waiting: dict[str, tuple[Slots, int]] = {}
        """Keys that wait, and how many requests of each."""

    def __len__(self) -> int:
        return len(self._queue)

    def enter(self, key: Slots) -> bool:
        """False: no place now, or somebody who could go was here first."""
        if not self.slots.free or not key.free:
            return False
        if self._waiting and any(one.free for one, _ in self._waiting.values()):
            return False
        self.slots.active += 1
        key.active += 1
        return True

    def leave(self, key: Slots) -> None:
        self.slots.active -= 1
        key.active -= 1

    def join(self, key: Slots, priority: int, cost: float) -> Waiter:
        waiter = Waiter(key)
        self._queue.push(waiter, key.name, priority, cost)
        self._waiting[key.name] = (key, self._waiting.get(key.name, (key, 0))[1] + 1)
        return waiter

    def give_up(self, waiter: Waiter) -> bool:
        """True: it was still waiting. False: it had entered, and has to leave."""
        if waiter.granted:
            return False
        if self._queue.remove(waiter):
            self._one_less(waiter.key)
        return True

    def _one_less(self, key: Slots) -> None:
        count = self._waiting[key.name][1] - 1
        if count:
            self._waiting[key.name] = (key, count)
        else:
            del self._waiting[key.name]

    def grant(self) -> None:
        """As many as may start now, in their order."""
        while self._waiting and self.slots.free:
            waiter = self._queue.pop(self._may)
            if waiter is None:
                return
            self._one_less(waiter.key)
            if waiter.entered.done():
                continue  # cancelled in this very turn of the loop: it will give up next
            waiter.granted = True
            self.slots.active += 1
            waiter.key.active += 1
            waiter.entered.set_result(None)

    def _may(self, name: str) -> bool:
        return self._waiting[name][0].free
