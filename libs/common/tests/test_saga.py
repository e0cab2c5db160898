from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skyloom_common.core.errors import Conflict, InternalError, OperationCancelled, Unavailable
from skyloom_common.saga import CancelFlag, MemoryLog, Outputs, Saga, SagaState, Step, run_saga
from skyloom_common.testing.clock import EagerClock

NAMES = ("one", "two", "three", "four")


class Crash(BaseException):
    """The process dies here."""


@dataclass
class World:
    """What the steps change; outlives crashes. Every await position asks `at` what happens there."""

    made: set[str] = field(default_factory=set)
    plan: dict[int, BaseException] = field(default_factory=dict)
    position: int = 0
    events: list[str] = field(default_factory=list)
    cancel: CancelFlag = field(default_factory=CancelFlag)

    async def at(self, what: str) -> None:
        self.position += 1
        self.events.append(what)
        await asyncio.sleep(0)
        fault = self.plan.pop(self.position, None)
        if fault is not None:
            raise fault


def saga(keep_from: str | None = None) -> Saga[World]:
    def step(name: str) -> Step[World]:
        async def do(world: World, outputs: Outputs) -> dict[str, Any]:
            await world.at(f"before {name}")
            world.made.add(name)
            await world.at(f"after {name}")
            return {"of": name, "seen": sorted(outputs)}

        async def undo(world: World, outputs: Outputs) -> None:
            await world.at(f"before undo {name}")
            world.made.discard(name)
            await world.at(f"after undo {name}")

        return Step(name, do, undo)

    return Saga("test", tuple(step(name) for name in NAMES), keep_from)


class SavingLog(MemoryLog):
    """Saving is a position where a process may die too: before it is written, or just after."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    async def save(self, state: SagaState, step: str) -> None:
        await self.world.at("before save")
        await super().save(state, step)
        await self.world.at("after save")


async def run_to_the_end(world: World, which: Saga[World]) -> Outputs | Exception:
    """Starts again after every crash, as a new process would."""
    log = SavingLog(world)
    for _ in range(100):
        try:
            return await run_saga(which, world, log, world.cancel, clock=EagerClock())
        except Crash:
            continue
        except Exception as error:
            return error
    raise AssertionError("the saga never ended")


async def test_outputs_are_handed_on() -> None:
    outputs = await run_to_the_end(World(), saga())
    assert isinstance(outputs, dict)
    assert outputs["three"] == {"of": "three", "seen": ["one", "two"]}


async def test_a_failure_undoes_in_reverse_order() -> None:
    world = World(plan={11: Conflict("no")})
    assert isinstance(await run_to_the_end(world, saga()), Conflict)
    undone = [event for event in world.events if event.startswith("after undo")]
    assert undone == [f"after undo {name}" for name in ("three", "two", "one")]
    assert world.made == set()


FAULTS = st.sampled_from([Crash, Conflict, ValueError, Unavailable])


@settings(max_examples=150)
@given(plan=st.dictionaries(st.integers(1, 60), FAULTS, max_size=4), cancel_at=st.none() | st.integers(1, 20))
async def test_after_any_faults_everything_is_done_or_nothing_is_left(
    plan: dict[int, type[BaseException]], cancel_at: int | None
) -> None:
    """Faults while the log saves are crashes: a store that fails stops the run, which is then resumed."""
    world = World(plan={position: kind("fault") for position, kind in plan.items()})
    log = _ResumingLog(world)
    result = await _run_with_cancel(world, log, cancel_at)
    if isinstance(result, dict):
        assert world.made == set(NAMES)
    else:
        assert world.made == set()
        assert isinstance(result, (Conflict, InternalError, Unavailable, OperationCancelled))


class _ResumingLog(SavingLog):
    async def save(self, state: SagaState, step: str) -> None:
        try:
            await super().save(state, step)
        except Exception as error:
            raise Crash from error


async def _run_with_cancel(world: World, log: SavingLog, cancel_at: int | None) -> Outputs | Exception:
    async def cancel_later() -> None:
        while cancel_at is not None and world.position < cancel_at:
            await asyncio.sleep(0)
        if cancel_at is not None:
            world.cancel.request()

    watcher = asyncio.create_task(cancel_later())
    try:
        for _ in range(100):
            try:
                return await run_saga(saga(), world, log, world.cancel, clock=EagerClock())
            except Crash:
                continue
            except Exception as error:
                return error
        raise AssertionError("the saga never ended")
    finally:
        watcher.cancel()


@pytest.mark.parametrize("position", range(1, 33))
async def test_a_crash_at_every_await_position_is_resumed(position: int) -> None:
    world = World(plan={position: Crash()})
    result = await run_to_the_end(world, saga())
    assert isinstance(result, dict) and world.made == set(NAMES)


@pytest.mark.parametrize("crash", range(1, 30))
async def test_a_crash_while_undoing_is_resumed(crash: int) -> None:
    """Only a crash before the failure was written down gives the step another chance."""
    world = World(plan={15: Conflict("no"), 15 + crash: Crash()})
    result = await run_to_the_end(world, saga())
    assert isinstance(result, dict if crash == 1 else Conflict)
    assert world.made == (set(NAMES) if crash == 1 else set())


async def test_undo_failures_are_repeated_until_they_succeed() -> None:
    world = World(plan={3: Conflict("no"), **{position: ValueError("away") for position in range(6, 30, 1)}})
    told: list[str] = []

    async def tell(step: str, error: Exception, pause: float) -> None:
        told.append(step)

    with pytest.raises(Conflict):
        await run_saga(saga(), world, MemoryLog(), world.cancel, clock=EagerClock(), on_undo_failure=tell)
    assert world.made == set()
    assert len(told) > 5


async def test_undo_can_be_abandoned_by_who_may() -> None:
    async def never(world: World, outputs: Outputs) -> None:
        raise ValueError("the provider is away for good")

    async def fail(world: World, outputs: Outputs) -> None:
        raise Conflict("no")

    world = World()
    which = Saga("stuck", (Step("one", fail, never),))
    with pytest.raises(Conflict):
        await run_saga(which, world, MemoryLog(), world.cancel, clock=EagerClock(), abandon=lambda: True)


async def test_a_cancel_stops_a_step_that_hangs_and_undoes_it() -> None:
    world, begun = World(), asyncio.Event()

    async def hang(world: World, outputs: Outputs) -> None:
        world.made.add("one")
        begun.set()
        await asyncio.sleep(3600)

    async def undo(world: World, outputs: Outputs) -> None:
        world.made.discard("one")

    running = asyncio.create_task(
        run_saga(Saga("s", (Step("one", hang, undo),)), world, MemoryLog(), world.cancel)
    )
    await begun.wait()
    world.cancel.request()
    with pytest.raises(OperationCancelled, match="during step 'one'"):
        await asyncio.wait_for(running, 5)
    assert world.made == set()


async def test_ending_the_process_is_no_cancel() -> None:
    world, log, begun = World(), MemoryLog(), asyncio.Event()

    async def hang(world: World, outputs: Outputs) -> None:
        begun.set()
        await asyncio.sleep(3600 if not log.steps[1:] else 0)

    async def undo(world: World, outputs: Outputs) -> None:
        raise AssertionError("must not be undone")

    which = Saga("s", (Step("one", hang, undo),))
    running = asyncio.create_task(run_saga(which, world, log, world.cancel))
    await begun.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert log.state is not None and not log.state.undoing
    assert await run_saga(which, world, log, world.cancel) == {"one": {}}


@pytest.mark.parametrize(("fault", "left"), [(Conflict("no"), {"one", "two"}), (None, set())])
async def test_past_the_keep_point_a_failure_keeps_and_a_cancel_does_not(
    fault: Exception | None, left: set[str]
) -> None:
    world = World()

    async def late(world: World, outputs: Outputs) -> None:
        if fault is not None:
            raise fault
        world.cancel.request()
        await asyncio.sleep(3600)

    base = saga().steps[:2]
    which = Saga("s", (*base, Step("late", late)), keep_from="late")
    with pytest.raises((Conflict, OperationCancelled)):
        await run_saga(which, world, MemoryLog(), world.cancel)
    assert world.made == left


async def test_faults_of_our_own_store_pass_through_and_the_saga_stays_where_it_is() -> None:
    world, log = World(plan={2: Unavailable("store")}), MemoryLog()
    with pytest.raises(Unavailable):
        await run_saga(saga(), world, log, world.cancel, passing=(Unavailable,))
    assert log.state is not None and not log.state.undoing
    assert set(await run_saga(saga(), world, log, world.cancel)) == set(NAMES)


def test_a_saga_must_make_sense() -> None:
    async def do(world: World, outputs: Outputs) -> None: ...

    with pytest.raises(ValueError, match="unique"):
        Saga("s", (Step("one", do), Step("one", do)))
    with pytest.raises(ValueError, match="keep_from"):
        Saga("s", (Step("one", do),), keep_from="two")
