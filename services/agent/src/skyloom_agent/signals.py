"""Telling many waiting coroutines that something changed, without losing a change between looking and waiting."""

from __future__ import annotations

import asyncio
from typing import Optional


class Signal:
    """`seen = signal.version; look; await signal.wait(seen)` returns at once when it fired in between."""

    def __init__(self) -> None:
        self.version = 0
        self._waiters: set[asyncio.Future[None]] = set()

    def fire(self) -> None:
        self.version += 1
        waiters, self._waiters = self._waiters, set()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self, seen: int, timeout: Optional[float] = None) -> bool:
        """True when it fired since `seen`, False when the time passed first."""
        if self.version != seen:
            return True
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        self._waiters.add(waiter)
        timer = loop.call_later(timeout, _release, waiter) if timeout is not None else None
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)
            if timer:
                timer.cancel()
        return self.version != seen


def _release(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
