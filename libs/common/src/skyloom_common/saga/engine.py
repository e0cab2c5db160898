"""Runs a saga to one of two ends: every step done, or (after a failure or a cancel) what was done undone.

The state is saved before each step begins. Killed anywhere, the same call with the same log goes on from there.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Optional, TypeVar

from skyloom_common.core.clock import Clock, SystemClock
from skyloom_common.core.errors import InternalError, OperationCancelled, SkyloomError
from skyloom_common.saga.cancel import CancelFlag
from skyloom_common.saga.model import Outputs, Saga, SagaLog, SagaState, Step

C = TypeVar("C")
_log = logging.getLogger(__name__)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 60.0


async def run_saga(
    saga: Saga[C],
    context: C,
    log: SagaLog,
    cancel: CancelFlag,
    *,
    clock: Optional[Clock] = None,
    on_undo_failure: Optional[Callable[[str, Exception, float], Awaitable[None]]] = None,
    abandon: Optional[Callable[[], bool]] = None,
    passing: tuple[type[Exception], ...] = (),
) -> Outputs:
    """The outputs of all steps. Raises the first failure (OperationCancelled for a cancel) after undoing.

    Cancelling this coroutine is not a cancel of the saga: it stops where it is, to be resumed from the log.
    So are errors of a class in `passing` (our own store is away, somebody else took over): no fault of a step.
    `on_undo_failure(step, error, pause)` is told before each repetition; `abandon()` true ends a failing undo.
    """
    state = await log.load() or SagaState()
    if not state.undoing:
        state, failure = await _forward(saga, context, log, cancel, state, passing)
        if failure is None:
            return state.outputs
        state = _turn_round(saga, state, failure)
        await log.save(state, _name(saga, state.position))
    retry = _Retry(clock or SystemClock(), on_undo_failure, abandon, passing)
    await _backward(saga, context, log, state, retry)
    raise SkyloomError.from_wire(state.error or InternalError("the operation failed").to_wire())


async def _forward(
    saga: Saga[C],
    context: C,
    log: SagaLog,
    cancel: CancelFlag,
    state: SagaState,
    passing: tuple[type[Exception], ...],
) -> tuple[SagaState, Optional[SkyloomError]]:
    while state.position < len(saga.steps):
        step = saga.steps[state.position]
        if cancel.requested:
            return state, OperationCancelled(f"cancelled before step {step.name!r}")
        await log.save(state, step.name)
        try:
            output = await _unless_cancelled(step.do(context, state.outputs), cancel, step.name)
        except passing:
            raise
        except SkyloomError as error:
            return state, error
        except Exception as error:
            _log.exception("saga %s: step %s failed", saga.name, step.name)
            return state, InternalError(f"step {step.name!r} failed: {type(error).__name__}: {error}")
        state = replace(
            state, position=state.position + 1, outputs={**state.outputs, step.name: dict(output or {})}
        )
    await log.save(state, "")
    return state, None


async def _unless_cancelled(work: Awaitable[Any], cancel: CancelFlag, name: str) -> Any:
    """The result of `work`, which is stopped as soon as the flag is set."""
    task = asyncio.ensure_future(work)
    flag = asyncio.ensure_future(cancel.wait())
    try:
        await asyncio.wait({task, flag}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        await _stop(task)
        raise OperationCancelled(f"cancelled during step {name!r}")
    finally:
        flag.cancel()
        if not task.done():
            await _stop(task)


async def _stop(task: asyncio.Future[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _turn_round(saga: Saga[C], state: SagaState, failure: SkyloomError) -> SagaState:
    names = [step.name for step in saga.steps]
    keep = names.index(saga.keep_from) if saga.keep_from else 0
    kept = not isinstance(failure, OperationCancelled) and state.position >= keep
    last = min(state.position, len(saga.steps) - 1)
    return replace(
        state, position=last, undoing=True, undo_down_to=keep if kept else 0, error=failure.to_wire()
    )


class _Retry:
    def __init__(
        self,
        clock: Clock,
        told: Optional[Callable[[str, Exception, float], Awaitable[None]]],
        abandon: Optional[Callable[[], bool]],
        passing: tuple[type[Exception], ...],
    ) -> None:
        self.clock = clock
        self.told = told
        self.abandoned = abandon or (lambda: False)
        self.passing = passing

    async def run(self, step: Step[C], context: C, outputs: Outputs) -> None:
        pause = _FIRST_PAUSE
        while step.undo is not None:
            try:
                await step.undo(context, outputs)
                return
            except self.passing:
                raise
            except Exception as error:
                if self.abandoned():
                    _log.warning("undo of step %s given up on request: %s", step.name, error)
                    return
                wait = pause * random.uniform(0.75, 1.25)
                _log.warning("undo of step %s failed, again in %.1f s: %s", step.name, wait, error)
                if self.told is not None:
                    await self.told(step.name, error, wait)
                await self.clock.sleep(wait)
                pause = min(pause * 2, _LONGEST_PAUSE)


async def _backward(saga: Saga[C], context: C, log: SagaLog, state: SagaState, retry: _Retry) -> None:
    while state.position >= state.undo_down_to:
        await retry.run(saga.steps[state.position], context, state.outputs)
        state = replace(state, position=state.position - 1)
        await log.save(state, _name(saga, state.position) if state.position >= state.undo_down_to else "")


def _name(saga: Saga[C], position: int) -> str:
    return saga.steps[position].name if 0 <= position < len(saga.steps) else ""
