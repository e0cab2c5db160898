"""Concurrency of one service and its queue: who may start now, who waits, who is next. No timers, and no I/O but the ledger's.

With a ledger the places are those of all workers of the machine, while each worker keeps a queue of its own: it tells the others
what it would start if there was a place, a newcomer gives way to that, and a place that comes free goes to the workers in turn.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager, nullcontext

from skyloom_lb.admission.fair import FairQueue
from skyloom_lb.admission.ledger import ACTIVE, QUEUED, WANTS, Ledger, Row

_ALONE = nullcontext()


class Slots:
    """How many requests run for one key or one service; `limit` 0 = any number. `active` and `wants` are this process's."""

    __slots__ = ("active", "limit", "name", "row", "wants")

    def __init__(self, name: str, limit: int = 0) -> None:
        self.name = name
        self.limit = limit
        self.active = 0
        self.wants = 0
        self.row: Row | None = None

    def share(self, row: Row | None) -> None:
        self.row = row
        if row is not None:
            row.set(ACTIVE, self.active)
            row.set(WANTS, self.wants)

    @property
    def free(self) -> bool:
        limit = self.limit
        if not limit:
            return True
        row = self.row
        return (self.active if row is None else row.total(ACTIVE)) < limit

    @property
    def wanted_elsewhere(self) -> bool:
        return self.row is not None and self.row.others(WANTS) > 0

    def add(self, change: int) -> None:
        self.active += change
        if self.row is not None:
            self.row.set(ACTIVE, self.active)

    def want(self, change: int) -> None:
        self.wants += change
        if self.row is not None:
            self.row.set(WANTS, self.wants)

    def heir(self) -> int | None:
        """The worker whose turn it is, when it is another one than this."""
        if self.row is None:
            return None
        worker = self.row.heir()
        return None if worker == self.row.ledger.index else worker


class Waiter:
    """`entered` is done once it has its place (`granted`), or had to make room for another one; until then `Gate.give_up` takes
    it out of the queue."""

    __slots__ = ("entered", "granted", "key")

    def __init__(self, key: Slots) -> None:
        self.key = key
        self.granted = False
        self.entered: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Gate:
    """`enter` (or a granted waiter) and `leave` come in pairs."""

    def __init__(self, slots: Slots, ledger: Ledger | None = None) -> None:
        self.slots = slots
        self._ledger = ledger
        self._queue: FairQueue[Waiter] = FairQueue()
        self._waiting: dict[str, tuple[Slots, int]] = {}
        """Keys that wait, and how many requests of each."""
        self._told: dict[str, tuple[Slots, int]] = {}
        """What the other workers know of them: whose place they want."""

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def queued(self) -> int:
        """In all workers."""
        row = self.slots.row
        return len(self._queue) if row is None else row.total(QUEUED)

    def _guard(self, key: Slots | None = None) -> AbstractContextManager[None]:
        if self._ledger is None or not (self.slots.limit or key is None or key.limit):
            return _ALONE
        return self._ledger.lock

    def enter(self, key: Slots) -> bool:
        """False: no place now, or somebody who could go was here first."""
        if self._ledger is None:
            return self._enter(key)
        with self._guard(key):
            if self.slots.wanted_elsewhere or key.wanted_elsewhere:
                return False
            return self._enter(key)

    def _enter(self, key: Slots) -> bool:
        if not self.slots.free or not key.free:
            return False
        if self._waiting and any(one.free for one, _ in self._waiting.values()):
            return False
        self.slots.add(1)
        key.add(1)
        return True

    def leave(self, key: Slots) -> None:
        if self._ledger is None:
            self.slots.active -= 1
            key.active -= 1
            return
        with self._guard(key):
            self.slots.add(-1)
            key.add(-1)

    def join(self, key: Slots, priority: int, cost: float) -> Waiter:
        waiter = Waiter(key)
        self._queue.push(waiter, key.name, priority, cost)
        self._waiting[key.name] = (key, self._waiting.get(key.name, (key, 0))[1] + 1)
        if self._ledger is not None:
            with self._ledger.lock:
                self._tell()
                if not (self.slots.wanted_elsewhere or key.wanted_elsewhere):
                    self._grant()  # a place may have come free since `enter`
        return waiter

    def make_room(self, key: Slots, priority: int) -> bool:
        """Of a queue that is full: whoever has filled it gives up a place in it to a key that has fewer. To be followed by `join`."""
        waiter = self._queue.shed(key.name, priority)
        if waiter is None:
            return False
        self._one_less(waiter.key)
        if not waiter.entered.done():
            waiter.entered.set_result(None)
        return True

    def give_up(self, waiter: Waiter) -> bool:
        """True: it was still waiting. False: it had entered, and has to leave."""
        if waiter.granted:
            return False
        if self._queue.remove(waiter):
            self._one_less(waiter.key)
            with self._guard():
                self._tell()
        return True

    def _one_less(self, key: Slots) -> None:
        count = self._waiting[key.name][1] - 1
        if count:
            self._waiting[key.name] = (key, count)
        else:
            del self._waiting[key.name]

    def grant(self) -> None:
        """As many as may start now, in their order."""
        with self._guard():
            self._grant()

    def _grant(self) -> None:
        while self._waiting and self.slots.free:
            waiter = self._queue.pop(self._may)
            if waiter is None:
                break
            self._one_less(waiter.key)
            if waiter.entered.done():
                continue  # cancelled in this very turn of the loop: it will give up next
            waiter.granted = True
            self.slots.add(1)
            waiter.key.add(1)
            waiter.entered.set_result(None)
        self._tell()

    def _may(self, name: str) -> bool:
        return self._waiting[name][0].free

    # --- what the other workers are told

    def _tell(self) -> None:
        """A key that is at its own limit wants a place of the key, any other one a place of the service."""
        if self._ledger is None:
            return
        told = {
            name: (self.slots if key.free else key, count) for name, (key, count) in self._waiting.items()
        }
        for slots, count in self._told.values():
            slots.wants -= count
        for slots, count in told.values():
            slots.wants += count
        for slots, _ in (*self._told.values(), *told.values()):
            slots.want(0)
        self._told = told
        if self.slots.row is not None:
            self.slots.row.set(QUEUED, len(self._queue))

    def heirs(self) -> set[int]:
        """Workers that could use what is free and not used here: places of the service, and of keys that wait here too."""
        if self._ledger is None:
            return set()
        freed = [self.slots, *(key for key, _ in self._waiting.values())]
        found = {one.heir() for one in freed if one.free}
        return {one for one in found if one is not None}
