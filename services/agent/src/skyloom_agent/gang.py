"""One phase of one job on several nodes: all ranks start or none, the first failure is named, the rest are stopped.

It does not know what a job is to the queue; it is given members and says how the phase ended. It can be entered again
after a crash of the head: `resumed` ranks are never started a second time.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from skyloom_agent.joblogs import file_size
from skyloom_agent.model import RankSpec, RankState
from skyloom_agent.nodes import Node
from skyloom_common.core.errors import AgentUnreachable, NotFound, SkyloomError

log = logging.getLogger(__name__)
STOP_MARGIN_SECONDS = 5.0
RETRY_SECONDS = (0.1, 0.2, 0.5, 1.0)
NO_SPACE_SECONDS = 1.0
KILLED = 137


@dataclass
class Member:
    """`node` is asked for anew at each call, because an agent may come back at another address."""

    rank: int
    node_index: int
    uid: str
    spec: Callable[[], RankSpec]
    node: Callable[[], Node]
    output: Path
    state: Optional[RankState] = None
    exit_code: Optional[int] = None

    @property
    def ended(self) -> bool:
        return self.state is not None and self.state.status in ("finished", "lost")


@dataclass(frozen=True)
class Fault:
    """The first thing that went wrong. `driver`: not the user's program but what runs it."""

    rank: int
    exit_code: Optional[int]
    reason: str
    driver: bool


@dataclass
class Gang:
    """`on_state(member)` is told of every new state, `on_output()` that some log may have grown."""

    members: list[Member]
    grace_seconds: float
    unreachable_seconds: float
    on_state: Callable[[Member], None]
    on_output: Callable[[], None]
    cancelled: asyncio.Event
    fault: Optional[Fault] = None
    _stopping: bool = False

    @property
    def all_started(self) -> bool:
        return all(member.state and (member.state.pid or member.ended) for member in self.members)

    async def prepare(self) -> bool:
        """On all nodes or on none. False: `fault` says which refused, or it was cancelled."""
        return await self._all(lambda member: member.node().prepare(member.spec()))

    async def start(self) -> bool:
        return await self._all(lambda member: member.node().start(member.uid))

    async def watch(self) -> None:
        """Returns when every rank has ended, each of its own accord or stopped after the first fault or a cancel.

        Also to be called when `prepare` or `start` failed: some ranks may run.
        """
        follows = [asyncio.ensure_future(self._follow(member)) for member in self.members]
        cancel = asyncio.ensure_future(self.cancelled.wait())
        try:
            while not all(follow.done() for follow in follows):
                if self.fault or self.cancelled.is_set():
                    await self._stop_all(follows)
                    return
                waits: list[asyncio.Future[Any]] = [follow for follow in follows if not follow.done()]
                await asyncio.wait([*waits, cancel], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (*follows, cancel):
                task.cancel()
            await asyncio.gather(*follows, cancel, return_exceptions=True)

    # --- prepare and start ---

    async def _all(self, call: Callable[[Member], Awaitable[RankState]]) -> bool:
        work = asyncio.ensure_future(self._on_each(call))
        cancel = asyncio.ensure_future(self.cancelled.wait())
        await asyncio.wait([work, cancel], return_when=asyncio.FIRST_COMPLETED)
        cancel.cancel()
        if not work.done():
            work.cancel()
        await asyncio.gather(work, cancel, return_exceptions=True)
        return self.fault is None and not self.cancelled.is_set()

    async def _on_each(self, call: Callable[[Member], Awaitable[RankState]]) -> None:
        await asyncio.gather(*(self._step(member, call) for member in self.members))

    async def _step(self, member: Member, call: Callable[[Member], Awaitable[RankState]]) -> None:
        try:
            state = await self._patiently(member, call)
            # That it has ended (before a crash of the head) is learnt by following it: first comes its output.
            if state.status in ("prepared", "running"):
                self._learn(member, state)
        except SkyloomError as error:
            self._blame(member, None, error.message, driver=True)

    async def _patiently(self, member: Member, call: Callable[[Member], Awaitable[RankState]]) -> RankState:
        """Repeats while the node is not reached, as long as it may be away."""
        began = time.monotonic()
        attempt = 0
        while True:
            try:
                return await call(member)
            except AgentUnreachable as error:
                if time.monotonic() - began > self.unreachable_seconds:
                    raise AgentUnreachable(self._gone(error)) from error
            await asyncio.sleep(RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)])
            attempt += 1

    def _gone(self, error: SkyloomError) -> str:
        return f"the node was not reached for {self.unreachable_seconds:g} s: {error.message}"

    # --- following ---

    async def _follow(self, member: Member) -> None:
        heard = time.monotonic()
        attempt = 0
        while not member.ended:
            try:
                async for item in member.node().follow(member.uid, file_size(member.output)):
                    heard, attempt = time.monotonic(), 0
                    await self._take(member, item)
            except NotFound:
                self._blame(member, None, "the node does not know the job any more", driver=True)
                return
            except SkyloomError as error:
                if time.monotonic() - heard > self.unreachable_seconds:
                    self._blame(member, None, self._gone(error), driver=True)
                    return
            except OSError as error:
                log.warning("rank %s: its output cannot be kept here: %s", member.uid, error)
                await asyncio.sleep(NO_SPACE_SECONDS)
                heard = time.monotonic()
            if not member.ended:
                await asyncio.sleep(RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)])
                attempt += 1

    async def _take(self, member: Member, item: object) -> None:
        if isinstance(item, RankState):
            self._learn(member, item)
        elif isinstance(item, bytes) and item:
            _append(member.output, item)
        self.on_output()

    def _learn(self, member: Member, state: RankState) -> None:
        if state == member.state:
            return
        member.state = state
        if member.ended:
            self._judge(member, state)
        self.on_state(member)

    def _judge(self, member: Member, state: RankState) -> None:
        member.exit_code = state.exit_code
        if self._stopping:
            if state.exit_code is None or state.exit_code > 128:
                member.exit_code = KILLED
        elif state.status == "lost" or state.error:
            self._blame(member, None, state.error, driver=True)
        elif state.stopped:
            self._blame(member, state.exit_code, "its node was shut down", driver=True)
        elif state.exit_code != 0:
            self._blame(member, state.exit_code, f"exited with {_exit_words(state.exit_code)}", driver=False)

    def _blame(self, member: Member, exit_code: Optional[int], reason: str, *, driver: bool) -> None:
        if self.fault is None:
            self.fault = Fault(member.rank, exit_code, reason, driver)
        if not member.ended:
            member.exit_code = None

    # --- stopping ---

    async def _stop_all(self, follows: list[asyncio.Task[None]]) -> None:
        bound = self.grace_seconds + STOP_MARGIN_SECONDS
        self._stopping = True
        # Who could not be reached before is not asked now; the release after the job's end goes on trying.
        asked = [m for m in self.members if not m.ended and not (self.fault and m.rank == self.fault.rank)]
        stops = asyncio.gather(*(self._ask_to_stop(member) for member in asked))
        pending: list[asyncio.Future[Any]] = [follow for follow in follows if not follow.done()]
        await asyncio.wait([stops, *pending], timeout=bound)
        stops.cancel()
        await asyncio.gather(stops, return_exceptions=True)
        for member in self.members:
            if not member.ended and self.fault and member.rank != self.fault.rank:
                member.exit_code = KILLED

    async def _ask_to_stop(self, member: Member) -> None:
        for wait in (*RETRY_SECONDS, *RETRY_SECONDS[-1:] * 3):
            try:
                await member.node().stop(member.uid)
                return
            except AgentUnreachable:
                await asyncio.sleep(wait)
            except SkyloomError as error:
                log.warning("rank %s could not be stopped: %s", member.uid, error)
                return


def _append(path: Path, data: bytes) -> None:
    """All of it or nothing: the size of this copy is where the next request for more begins."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(fd, left) :]
    finally:
        os.close(fd)


def _exit_words(code: Optional[int]) -> str:
    if code is not None and code > 128:
        return f"code {code} (signal {code - 128})"
    return f"code {code}"
