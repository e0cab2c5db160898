"""A wish to stop, set from anywhere in the process, that a running step honours at its next await."""

from __future__ import annotations

import asyncio


class CancelFlag:
    def __init__(self, requested: bool = False) -> None:
        self._event = asyncio.Event()
        if requested:
            self._event.set()

    @property
    def requested(self) -> bool:
        return self._event.is_set()

    def request(self) -> None:
        self._event.set()

    async def wait(self) -> None:
        await self._event.wait()
