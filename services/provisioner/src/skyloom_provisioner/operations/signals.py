"""In-process wake-ups of those who follow an operation. Losing one costs a second: followers also look by themselves."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Self


class Signals:
    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Event]] = defaultdict(set)

    def notify(self, key: str) -> None:
        for event in self._waiting.get(key, ()):
            event.set()

    def subscribe(self, key: str) -> Subscription:
        return Subscription(self._waiting, key)


class Subscription:
    """`with signals.subscribe(id) as changed: await changed.wait(1.0)`; what comes between two waits is not lost."""

    def __init__(self, waiting: dict[str, set[asyncio.Event]], key: str) -> None:
        self._waiting = waiting
        self._key = key
        self._event = asyncio.Event()

    def __enter__(self) -> Self:
        self._waiting[self._key].add(self._event)
        return self

    def __exit__(self, *exc: object) -> None:
        self._waiting[self._key].discard(self._event)
        if not self._waiting[self._key]:
            del self._waiting[self._key]

    async def wait(self, seconds: float) -> bool:
        """True when woken, False after `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                await self._event.wait()
        except TimeoutError:
            return False
        self._event.clear()
        return True
