"""Waiting for a state of the outside world, with a bound, by asking ever less often."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from skyloom_common.core.clock import Clock

T = TypeVar("T")


async def poll(
    look: Callable[[], Awaitable[T | None]],
    *,
    clock: Clock,
    timeout: float,
    first: float = 0.02,
    longest: float = 2.0,
) -> T | None:
    """What `look` gives once it is not None; None after `timeout` seconds."""
    pause, deadline = first, clock.monotonic() + timeout
    while (found := await look()) is None:
        if clock.monotonic() >= deadline:
            return None
        await clock.sleep(pause)
        pause = min(pause * 1.5, longest)
    return found


async def all_or_first_error(work: list[Awaitable[T]]) -> list[T]:
    """Waits for every one, also when one fails: nobody is left half-way. Then raises the first failure."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]


async def finish_even_if_cancelled(work: Awaitable[T]) -> T:
    """For calls that must not be left running: a cancel takes effect once they have ended."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise
