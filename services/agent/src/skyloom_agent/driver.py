"""Takes one job from its places to its end: setup on every node, then run on its ranks. Resumable at every stage.

It writes the stage before it acts on it, so that a head that died finds out what may be running; it decides nothing
about the queue.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Optional

from skyloom_agent import joblogs, model
from skyloom_agent.clock import AgentClock
from skyloom_agent.gang import Gang, Member
from skyloom_agent.joblogs import JobLogs
from skyloom_agent.model import RUN, SETUP, JobRecord
from skyloom_agent.roster import Board, Roster
from skyloom_common.contracts.jobs import JobStatus, RankFailure

MERGE_SECONDS = 5.0


class JobDriver:
    def __init__(
        self,
        roster: Roster,
        board: Board,
        logs: JobLogs,
        clock: AgentClock,
        grace_seconds: float,
        unreachable_seconds: float,
    ) -> None:
        self._roster = roster
        self._board = board
        self._clock = clock
        self._grace = grace_seconds
        self._unreachable = unreachable_seconds
        self._cancelled = asyncio.Event()
        self._failure: Optional[RankFailure] = None
        self.logs = logs

    @property
    def _record(self) -> JobRecord:
        return self._roster.record

    def cancel(self) -> None:
        self._cancelled.set()

    async def drive(self) -> None:
        """Returns when the job is final and its logs are merged (but for a full disk)."""
        record = self._record
        if record.cancel:
            self._cancelled.set()
        status = JobStatus.SUCCEEDED
        if record.submit.setup and record.stage in (model.QUEUED, model.SETUP_STARTING, model.SETTING_UP):
            status = await self._phase(SETUP)
        if record.submit.run and status is JobStatus.SUCCEEDED:
            status = await self._phase(RUN)
        await self._end(status)

    # --- phases ---

    async def _phase(self, phase: str) -> JobStatus:
        gang = Gang(
            self._roster.members(phase),
            grace_seconds=self._grace,
            unreachable_seconds=self._unreachable,
            on_state=lambda member: self._on_state(phase, gang, member),
            on_output=self.logs.poke,
            cancelled=self._cancelled,
        )
        starting, going = _STAGES[phase]
        if self._record.stage != going:
            self._enter(starting)
        await self._get_ready(gang, going)
        await gang.watch()
        return self._outcome(phase, gang)

    async def _get_ready(self, gang: Gang, going: str) -> None:
        """Everything is prepared before anything starts; what may have started before a crash is not prepared again."""
        if self._record.stage != going:
            if not await gang.prepare():
                return
            self._set(stage=going)
        await gang.start()

    def _enter(self, stage: str) -> None:
        job = self._record.job
        status = _SHOWN.get(stage, job.status)
        if (stage, status) == (self._record.stage, job.status):
            return
        started_at = (
            self._clock.now()
            if job.started_at is None and status is not JobStatus.PENDING
            else job.started_at
        )
        self._set(stage=stage, status=status, started_at=started_at)

    def _set(self, stage: Optional[str] = None, **changes: object) -> None:
        record = self._record
        job = replace(record.job, **changes) if changes else record.job  # type: ignore[arg-type]
        self._board.change(replace(record, job=job, stage=stage or record.stage))

    def _on_state(self, phase: str, gang: Gang, member: Member) -> None:
        state = member.state
        assert state is not None
        if state.pid:
            address = self._roster.address(member.node_index)
            text = joblogs.prefix(self._record, phase, member.rank, member.node_index, address, state.pid)
            self.logs.name_source(phase, member.rank, text)
        if gang.all_started:
            self._enter(_STAGES[phase][1])
        if not member.ended:
            return
        self.logs.end_source(phase, member.rank)
        if phase == RUN and state.exit_code is not None:
            codes = list(self._record.job.exit_codes)
            codes[member.rank] = member.exit_code
            self._set(exit_codes=tuple(codes))

    def _outcome(self, phase: str, gang: Gang) -> JobStatus:
        if phase == RUN:
            self._set(exit_codes=tuple(member.exit_code for member in gang.members))
        if gang.fault is None:
            return JobStatus.CANCELLED if self._cancelled.is_set() else JobStatus.SUCCEEDED
        if self._cancelled.is_set():
            return JobStatus.CANCELLED
        fault = gang.fault
        member = next(member for member in gang.members if member.rank == fault.rank)
        self._failure = RankFailure(
            rank=fault.rank,
            node=joblogs.node_name(member.node_index),
            phase="driver" if fault.driver else phase,
            exit_code=fault.exit_code,
            reason=fault.reason,
            last_lines=joblogs.last_lines(member.output),
        )
        if fault.driver:
            return JobStatus.FAILED_DRIVER
        return JobStatus.FAILED_SETUP if phase == SETUP else JobStatus.FAILED

    # --- the end ---

    async def _end(self, status: JobStatus) -> None:
        await self.logs.finish(MERGE_SECONDS)
        record = self._record
        self._board.change(
            replace(
                record,
                stage=model.ENDED,
                job=replace(
                    record.job,
                    status=status,
                    ended_at=self._clock.now(),
                    duration_seconds=self._duration(),
                    failure=self._failure,
                    reason=self._reason(record, status),
                ),
            )
        )
        self.logs.wake_readers()

    def _duration(self) -> float:
        """By the monotonic clock; after a reboot of the machine only the wall clock is left."""
        record = self._record
        if record.boot == self._clock.boot:
            return self._clock.monotonic() - record.began
        return max(0.0, self._clock.now() - (record.job.started_at or self._clock.now()))

    def _reason(self, record: JobRecord, status: JobStatus) -> str:
        failure = self._failure
        if status is JobStatus.CANCELLED:
            return record.cancel
        if failure is None:
            return ""
        return f"rank {failure.rank} on {failure.node}: {failure.reason}"


# RUN_STARTING shows what was shown before: PENDING without a setup, else SETTING_UP.
_SHOWN = {
    model.SETUP_STARTING: JobStatus.SETTING_UP,
    model.SETTING_UP: JobStatus.SETTING_UP,
    model.RUNNING: JobStatus.RUNNING,
}
_STAGES = {SETUP: (model.SETUP_STARTING, model.SETTING_UP), RUN: (model.RUN_STARTING, model.RUNNING)}
