"""The keyed work queue under every reconciler: dedupe, order, bound, backoff, timers, resync.

Holds no truth: a key is only a reason to look.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Optional

from skyloom_common.core.errors import SkyloomError
from skyloom_common.reconcile.backoff import Backoff

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """`after`: look again in so many seconds even if nothing wakes the key."""

    after: Optional[float] = None


DONE = Result()


class Runner:
    def __init__(
        self,
        reconcile: Callable[[str], Awaitable[Result]],
        *,
        name: str,
        workers: int = 16,
        backoff: Optional[Backoff] = None,
        list_keys: Optional[Callable[[], Awaitable[Iterable[str]]]] = None,
        resync_seconds: float = 30.0,
    ) -> None:
        self._reconcile = reconcile
        self._name = name
        self._workers = workers
        self._backoff = backoff or Backoff()
        self._list_keys = list_keys
        self._resync_seconds = resync_seconds
        self._waiting: dict[str, None] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._again: set[str] = set()
        self._failures: dict[str, int] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._resync: Optional[asyncio.Task[None]] = None
        self._open = False

    def start(self) -> None:
        """Needs a running loop. The first resync begins at once."""
        self._open = True
        if self._list_keys is not None:
            self._resync = asyncio.create_task(self._keep_resyncing(), name=f"{self._name}-resync")
        self._fill()

    async def stop(self) -> None:
        """Cancels what runs and waits for it; nothing is called after this returns."""
        self._open = False
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        tasks = [*self._running.values(), *([self._resync] if self._resync else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def wake(self, key: str) -> None:
        """Must be called on the loop's thread."""
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
        if key in self._running:
            self._again.add(key)
        else:
            self._waiting[key] = None
            self._fill()

    def is_running(self, key: str) -> bool:
        return key in self._running

    def is_idle(self) -> bool:
        return not self._waiting and not self._running

    def _fill(self) -> None:
        while self._open and self._waiting and len(self._running) < self._workers:
            key = next(iter(self._waiting))
            del self._waiting[key]
            self._running[key] = asyncio.create_task(self._call(key), name=f"{self._name}:{key}")

    async def _call(self, key: str) -> None:
        after: Optional[float] = None
        try:
            after = (await self._reconcile(key)).after
            self._failures.pop(key, None)
        except Exception as error:
            after = self._failed(key, error)
        finally:
            del self._running[key]
            self._next(key, after)

    def _failed(self, key: str, error: Exception) -> float:
        count = self._failures[key] = self._failures.get(key, 0) + 1
        pause = self._backoff.pause(count)
        known = isinstance(error, SkyloomError)
        _log.warning(
            "%s %s: %s: %s; again in %.1f s",
            self._name,
            key,
            type(error).__name__,
            error,
            pause,
            exc_info=not known,
        )
        return pause

    def _next(self, key: str, after: Optional[float]) -> None:
        if not self._open:
            return
        if key in self._again:
            self._again.discard(key)
            self._waiting[key] = None
        elif after is not None and key not in self._timers:
            self._timers[key] = asyncio.get_running_loop().call_later(after, self._due, key)
        self._fill()

    def _due(self, key: str) -> None:
        self._timers.pop(key, None)
        self.wake(key)

    async def _keep_resyncing(self) -> None:
        assert self._list_keys is not None
        while True:
            try:
                for key in await self._list_keys():
                    if key not in self._timers or key not in self._failures:
                        self.wake(key)
            except SkyloomError as error:
                _log.warning("%s: resync failed: %s", self._name, error)
            await asyncio.sleep(self._resync_seconds)
