"""Tells the other replicas by the bus what happened here, and this one what happened there. Wakes only; carries no truth.

Equal events that wait to be sent are one event. Without a bus, or while Redis is away, others find out by looking.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from skyloom_common.bus import RESYNC, Bus
from skyloom_common.contracts.events import (
    CLUSTER_CHANGED,
    OPERATION_ADVANCED,
    OPERATION_CANCEL_REQUESTED,
    OPERATION_CREATED,
    Event,
)

KINDS = (OPERATION_CREATED, OPERATION_ADVANCED, OPERATION_CANCEL_REQUESTED)


class Announcer:
    """`on_event` gets what other replicas said, and RESYNC when something may have been missed."""

    def __init__(self, bus: Bus | None, origin: str, on_event: Callable[[Event], None]) -> None:
        self._bus = bus
        self._origin = origin
        self._on_event = on_event
        self._waiting: dict[tuple[str, str], dict[str, Any]] = {}
        self._wakened = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        if self._bus is not None:
            self._tasks = [
                asyncio.create_task(self._send(self._bus), name="announce"),
                asyncio.create_task(self._listen(self._bus), name="hear"),
            ]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def announce(self, kind: str, key: str, **data: Any) -> None:
        if self._bus is not None:
            self._waiting[kind, key] = {**data, "origin": self._origin}
            self._wakened.set()

    def cluster_changed(self, name: str) -> None:
        self.announce(CLUSTER_CHANGED, name)

    async def _send(self, bus: Bus) -> None:
        while True:
            await self._wakened.wait()
            self._wakened.clear()
            waiting, self._waiting = self._waiting, {}
            for (kind, key), data in waiting.items():
                await bus.emit(kind, key, data=data)

    async def _listen(self, bus: Bus) -> None:
        async for event in bus.listen(KINDS):
            if event.kind == RESYNC or event.data.get("origin") != self._origin:
                self._on_event(event)
