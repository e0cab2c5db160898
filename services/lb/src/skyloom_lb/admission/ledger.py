"""What the worker processes of one machine count together: places in use, who waits, and rate buckets, in memory all of them map.

Each worker writes only its own columns, so whoever started the workers gives a dead one's places back by clearing its columns.
Taking a place and filling a bucket happen under one short lock, which the system lets go when its holder dies. If the holder
was stopped, nobody waits for it long: a limit may then be passed by one, the balancer never hangs. One that merely has to wait
for a processor is waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import mmap
import os
import tempfile
import time
from array import array
from collections.abc import Callable, Sequence

ROWS = 16_384
"""Keys and services with limits; one for which there is no row is divided among the workers."""
ACTIVE, WANTS, QUEUED, HELD = range(4)
"""Columns of each worker: places in use; requests that would go on if the row's owner had a free place; requests in its queue;
requests that are held for want of an endpoint."""
REQUESTS, TOKENS = range(2)
_COLUMNS = 4
_BUCKET = 3
_HEAD = 2 + 2 * _BUCKET
"""Words before the columns: the name's digest, and two buckets of capacity, level and the time of both."""
_WORD = 8
_MINUTE = 60.0
_TRIES = 1000
_PAUSE = 0.0001
_STUCK_FOR = 5.0
"""Seconds without waiting, once the holder was waited for in vain: some 0.2 s of waiting in 5 s is what a stopped one costs."""
_NOW = fcntl.LOCK_EX | fcntl.LOCK_NB


class Lock:
    """One for the whole ledger, held for microseconds. Not to be nested: the inner end would be the outer one's too."""

    __slots__ = ("_fd", "_held", "_stuck_until", "missed")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._held = False
        self._stuck_until = 0.0
        self.missed = 0
        """How often it was not got in time."""

    def __enter__(self) -> None:
        try:
            fcntl.lockf(self._fd, _NOW)
            self._held = True
            self._stuck_until = 0.0  # its holder goes on, or has gone
        except OSError:
            self._held = self._wait()

    def __exit__(self, *_: object) -> None:
        if self._held:
            fcntl.lockf(self._fd, fcntl.LOCK_UN)

    def _wait(self) -> bool:
        if time.monotonic() >= self._stuck_until:
            for _ in range(_TRIES):
                time.sleep(_PAUSE)
                with contextlib.suppress(OSError):
                    fcntl.lockf(self._fd, _NOW)
                    return True
            self._stuck_until = time.monotonic() + _STUCK_FOR
        self.missed += 1
        return False


class Ledger:
    """`index` is this worker's column; that of the supervisor is -1: it only makes the ledger and clears columns.

    `bells`: for each worker a pipe's end that wakes it; `ear`: this worker's other end.
    """

    def __init__(self, fd: int, workers: int, index: int, bells: Sequence[int], ear: int = -1) -> None:
        self.fd = fd
        self.workers = workers
        self.index = index
        self.bells = tuple(bells)
        self.ear = ear
        self.lock = Lock(fd)
        self.stride = _HEAD + workers * _COLUMNS
        self._map = mmap.mmap(fd, self.size(workers))
        view = memoryview(self._map)
        self.words = view.cast("q")
        self.reals = view.cast("d")

    @staticmethod
    def size(workers: int) -> int:
        return ROWS * (_HEAD + workers * _COLUMNS) * _WORD

    # --- rows

    def row(self, name: str) -> Row | None:
        """That of a key or a service, for all workers the same; None when the table is full."""
        digest = hashlib.blake2b(name.encode(), digest_size=16).digest()
        first = int.from_bytes(digest[:8], "little", signed=True) or 1
        second = int.from_bytes(digest[8:], "little", signed=True)
        with self.lock:
            for turn in range(ROWS):
                at = (first + turn) % ROWS * self.stride
                if not self.words[at]:
                    self.words[at], self.words[at + 1] = first, second
                if (self.words[at], self.words[at + 1]) == (first, second):
                    return Row(self, at)
        return None

    def clear(self, index: int) -> None:
        """Worker `index` is dead: what it held is free. The others are told."""
        nothing = memoryview(array("q", bytes(ROWS * _WORD)))
        for column in range(_COLUMNS):
            self.words[_HEAD + column * self.workers + index :: self.stride] = nothing
        for worker in range(self.workers):
            if worker != index:
                self.ring(worker)

    # --- bells

    def ring(self, worker: int) -> None:
        with contextlib.suppress(BlockingIOError):  # it has not looked at those before
            os.write(self.bells[worker], b"\0")

    def listen(self, act: Callable[[], None]) -> None:
        def heard() -> None:
            with contextlib.suppress(BlockingIOError):
                os.read(self.ear, 65536)
            act()

        asyncio.get_running_loop().add_reader(self.ear, heard)


class Row:
    """The counts of one key or service."""

    __slots__ = ("_mine", "_words", "_workers", "at", "ledger")

    def __init__(self, ledger: Ledger, at: int) -> None:
        self.ledger = ledger
        self.at = at
        self._words = ledger.words
        self._workers = ledger.workers
        self._mine = at + _HEAD + ledger.index

    def _column(self, column: int) -> memoryview[int]:
        start = self.at + _HEAD + column * self._workers
        return self._words[start : start + self._workers]

    def total(self, column: int) -> int:
        return sum(self._column(column))

    def set(self, column: int, count: int) -> None:
        """This worker's own."""
        self._words[self._mine + column * self._workers] = count

    def others(self, column: int) -> int:
        return self.total(column) - self._words[self._mine + column * self._workers]

    def heir(self) -> int | None:
        """Whose turn it is to take a place that this worker leaves: the next one that wants it, itself last."""
        wants, mine = self._column(WANTS), self.ledger.index
        for step in range(1, self._workers + 1):
            worker = (mine + step) % self._workers
            if wants[worker] > 0:
                return worker
        return None

    def bucket(self, which: int, per_minute: float) -> LedgerBucket:
        return LedgerBucket(self, self.at + 2 + which * _BUCKET, per_minute)


class LedgerBucket:
    """A `Bucket` that all workers draw from. Another limit leaves it equally full, whichever worker knows of it first."""

    __slots__ = ("_at", "_ledger", "_row", "capacity", "rate")

    def __init__(self, row: Row, at: int, per_minute: float) -> None:
        self.capacity = max(1.0, per_minute)
        self.rate = per_minute / _MINUTE
        self._row = row
        self._ledger = row.ledger
        self._at = at

    def _filled(self, now: float) -> float:
        capacity, level, at = self._ledger.reals[self._at : self._at + _BUCKET]
        if not capacity:
            return self.capacity
        if capacity != self.capacity:
            level *= self.capacity / capacity
        return min(self.capacity, level + max(0.0, now - at) * self.rate)

    def _put(self, level: float, now: float) -> None:
        reals, at = self._ledger.reals, self._at
        reals[at], reals[at + 1] = self.capacity, level
        reals[at + 2] = max(now, reals[at + 2])

    def peek(self, now: float) -> float:
        return self._filled(now)

    def take(self, amount: float, now: float) -> float:
        with self._ledger.lock:
            level = self._filled(now)
            amount = min(amount, self.capacity)
            if level >= amount:
                self._put(level - amount, now)
                return 0.0
            return (amount - level) / self.rate

    def correct(self, amount: float, now: float) -> None:
        with self._ledger.lock:
            self._put(max(-self.capacity, min(self.capacity, self._filled(now) + amount)), now)

    def resized(self, per_minute: float, now: float) -> LedgerBucket:
        return LedgerBucket(self._row, self._at, per_minute)


# --- how a supervisor makes it and a worker finds it


def make_ledger(workers: int) -> tuple[Ledger, tuple[int, ...]]:
    """The supervisor's ledger, and the ears of its workers."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("skyloom-lb-ledger", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, Ledger.size(workers))
    ears, bells = [], []
    for _ in range(workers):
        ear, bell = os.pipe()
        for end in (ear, bell):
            os.set_blocking(end, False)
        ears.append(ear)
        bells.append(bell)
    return Ledger(fd, workers, -1, bells), tuple(ears)


def described(ledger: Ledger, index: int, ear: int) -> tuple[str, tuple[int, ...]]:
    """For a worker's environment, and the descriptors it inherits."""
    fds = (ledger.fd, ear, *ledger.bells)
    return " ".join(map(str, (ledger.workers, index, *fds))), fds


def inherited(text: str) -> Ledger:
    workers, index, fd, ear, *bells = map(int, text.split())
    return Ledger(fd, workers, index, bells, ear)
