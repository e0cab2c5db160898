"""The head's side of the cluster: takes jobs, queues them, starts what the schedule says, and tells what became of them.

It holds no process; the ranks' nodes do. Every change of a job goes through `change`, which keeps it, counts its version
and wakes whoever watches.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets as random
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Optional

from skyloom_agent import joblogs, model
from skyloom_agent.clock import AgentClock
from skyloom_agent.cluster import Cluster
from skyloom_agent.driver import JobDriver
from skyloom_agent.idle import IdleMeter
from skyloom_agent.joblogs import JobLogs, LogView, file_size
from skyloom_agent.merge import Merge
from skyloom_agent.model import RUN, SETUP, JobRecord
from skyloom_agent.paths import Paths, read_json, write_atomic
from skyloom_agent.roster import Roster, slim
from skyloom_agent.schedule import RunningJob, Schedule, Snapshot, WaitingJob, behind_others, schedule
from skyloom_agent.signals import Signal
from skyloom_agent.store import JobStore
from skyloom_common.contracts.jobs import CancelJobs, Job, JobStatus, JobSubmit
from skyloom_common.core.errors import InvalidRequest, NotFound, Unavailable

log = logging.getLogger(__name__)

CANCELLED_BY_USER = "cancelled by the user"


class Head:
    def __init__(
        self,
        paths: Paths,
        store: JobStore,
        cluster: Cluster,
        clock: AgentClock,
        idle: IdleMeter,
        grace_seconds: float,
        unreachable_seconds: float,
    ) -> None:
        self._paths = paths
        self._store = store
        self._cluster = cluster
        self._clock = clock
        self._idle = idle
        self._grace = grace_seconds
        self._unreachable = unreachable_seconds
        self._drivers: dict[int, JobDriver] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._changes: dict[int, int] = {}
        self._closing = False
        self._resumed = False
        self.changed = Signal()

    # --- life ---

    def resume(self) -> None:
        """Once this node is the head: goes on with every job where it was."""
        if self._resumed:
            return
        self._resumed = True
        self._idle.observe(self._store.active_count)
        for record in self._store.all():
            if record.stage not in (model.QUEUED, model.ENDED):
                self._drive(record)
            elif record.stage == model.ENDED and not record.released:
                self._background(self._release(record.job.job_id))
        self.reschedule()

    async def close(self) -> None:
        """Jobs go on; the next agent finds them."""
        self._closing = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._store.close()

    async def wait_until_quiet(self, seconds: float) -> None:
        """Returns when no job is being driven any more, or when the time is up."""
        deadline = self._clock.monotonic() + seconds
        while self._drivers and self._clock.monotonic() < deadline:
            await self.changed.wait(self.changed.version, deadline - self._clock.monotonic())

    @property
    def problem(self) -> str:
        problems = [self._store.problem] + [driver.logs.problem for driver in self._drivers.values()]
        return next((problem for problem in problems if problem), "")

    def tick(self) -> None:
        """Now and then: what the disk refused is written again."""
        self._store.flush()

    # --- what callers ask ---

    def submit(self, request: JobSubmit) -> Job:
        self._cluster.require_head()
        known = self._store.by_key(request.key)
        if known:
            return known.job
        _check(request)
        job_id = self._store.next_id()
        record = self._new_record(job_id, request)
        if request.secrets:
            self._write_secrets(record, request.secrets)
        others_wait = self._store.newest_active_is(model.QUEUED)
        self._store.insert(record)
        self._note(record)
        if others_wait:
            self._enqueue(record)
        else:
            self.reschedule()
        return self._store.get(job_id).job

    def jobs(self) -> list[Job]:
        self._cluster.require_head()
        return [record.job for record in self._store.all()]

    def job(self, job_id: int) -> Job:
        self._cluster.require_head()
        return self._store.get(job_id).job

    def cancel(self, request: CancelJobs, reason: str = CANCELLED_BY_USER) -> list[int]:
        self._cluster.require_head()
        cancelled = []
        for record in self._to_cancel(request):
            if record.job.status.is_final or record.cancel:
                continue
            cancelled.append(record.job.job_id)
            self.change(replace(record, cancel=reason))
            driver = self._drivers.get(record.job.job_id)
            if driver:
                driver.cancel()
            else:
                self._end_waiting(record.job.job_id, JobStatus.CANCELLED, reason)
        if cancelled:
            self.reschedule()
        return cancelled

    @property
    def active(self) -> int:
        return self._store.active_count

    def changes_since(self, mark: Optional[int]) -> tuple[list[Job], int]:
        """The jobs that changed after `mark` (None: all there are), and the new mark."""
        if mark is None:
            jobs = [record.job for record in self._store.all()]
        else:
            jobs = [self._store.get(job_id).job for job_id, at in self._changes.items() if at > mark]
        return jobs, self.changed.version

    def log_view(self, job_id: int, phase: str, rank: Optional[int]) -> LogView:
        """The log as it is now and as it grows. A job that still waits has an empty one."""
        self.job(job_id)
        if phase not in (RUN, SETUP):
            raise InvalidRequest(f"phase: {phase[:40]!r} is not run or setup", details={"field": "phase"})
        return self._view(job_id, phase, rank)

    async def begun(self, job_id: int) -> None:
        """Returns when the job has logs that grow, or has ended."""
        while not self.job(job_id).status.is_final and job_id not in self._drivers:
            await self.changed.wait(self.changed.version)

    def log_dir(self, job_id: int) -> Path:
        self.job(job_id)
        return self._paths.home / joblogs.job_dir(self._store.get(job_id))

    def _view(self, job_id: int, phase: str, rank: Optional[int]) -> LogView:
        record = self._store.get(job_id)
        driver = self._drivers.get(job_id)
        path = self._log_path(record, phase, rank)
        merge = driver.logs.merges.get(phase) if driver else None
        size, grown = partial(file_size, path), self.changed
        if merge and rank is None:
            size, grown = partial(_committed, merge), merge.grown
        elif driver:
            grown = driver.logs.merges[RUN].poke
        return LogView(path, size, grown, lambda: self._store.get(job_id).job.status.is_final)

    def _log_path(self, record: JobRecord, phase: str, rank: Optional[int]) -> Path:
        if rank is None:
            name = "run.log" if phase == RUN else "tasks/setup.log"
            return self._paths.home / joblogs.job_dir(record) / name
        ranks = record.cluster_size if phase == SETUP else record.job.num_nodes
        if rank >= ranks:
            raise NotFound(f"rank: job {record.job.job_id} has ranks 0 to {ranks - 1}, not {rank}")
        node = record.places[rank].node if phase == RUN and record.places else rank
        return self._paths.home / joblogs.rank_log(record, phase, rank, node)

    # --- Board: what a driver uses ---

    def get(self, job_id: int) -> JobRecord:
        return self._store.get(job_id)

    def change(self, record: JobRecord, soon: bool = False) -> None:
        """`soon`: on disk with the next tick is early enough."""
        known = self._store.get(record.job.job_id)
        if record == known:
            return
        if record.job != known.job:
            record = replace(record, job=replace(record.job, version=known.job.version + 1))
        self._store.update(record, soon)
        if record.job != known.job:
            self._note(record)

    def secrets(self, record: JobRecord) -> dict[str, str]:
        kept = read_json(self._secrets_path(record))
        return {str(name): str(value) for name, value in (kept or {}).items()}

    # --- the queue ---

    def reschedule(self) -> None:
        """Starts what fits now, in order; says why the rest waits; fails what can never run."""
        if not self._cluster.is_head or self._closing:
            return
        self._apply(schedule(self._snapshot()))

    def _enqueue(self, record: JobRecord) -> None:
        """Without a look at the whole queue, which may be long."""
        snapshot = Snapshot(tuple(self._cluster.capacities.values()), self._cluster.size, (), ())
        self._apply(behind_others(_waiting(record), snapshot))

    def _apply(self, decision: Schedule) -> None:
        for job_id, reason in decision.never:
            self._end_waiting(job_id, JobStatus.FAILED, reason)
        for start in decision.starts:
            record = self._store.get(start.job_id)
            self.change(
                replace(
                    record,
                    places=start.places,
                    cluster_size=self._cluster.size,
                    began=self._clock.monotonic(),
                    boot=self._clock.boot,
                    stage=_first_stage(record),
                    job=replace(record.job, reason=""),
                )
            )
            self._drive(self._store.get(start.job_id))
        for job_id, reason in decision.waits:
            record = self._store.get(job_id)
            if record.job.reason != reason:
                self.change(replace(record, job=replace(record.job, reason=reason)), soon=True)

    def _snapshot(self) -> Snapshot:
        active = self._store.active()
        return Snapshot(
            nodes=tuple(self._cluster.capacities[rank] for rank in sorted(self._cluster.capacities)),
            cluster_size=self._cluster.size,
            running=tuple(
                RunningJob(record.job.job_id, record.demand, record.places)
                for record in active
                if record.stage != model.QUEUED
            ),
            waiting=tuple(_waiting(record) for record in active if record.stage == model.QUEUED),
        )

    def _drive(self, record: JobRecord) -> None:
        job_id = record.job.job_id
        try:
            logs = JobLogs(self._paths, record)
        except OSError as error:
            reason = f"its logs cannot be kept on the head: {error.strerror}"
            self._end_waiting(job_id, JobStatus.FAILED_DRIVER, reason, released=False)
            self._background(self._release(job_id))
            return
        driver = JobDriver(self._roster(job_id), self, logs, self._clock, self._grace, self._unreachable)
        self._drivers[job_id] = driver
        self.changed.fire()
        self._background(self._drive_to_end(job_id, driver))

    async def _drive_to_end(self, job_id: int, driver: JobDriver) -> None:
        try:
            await driver.drive()
        except Exception:
            log.exception("job %s: its driver failed", job_id)
            self._end_waiting(
                job_id, JobStatus.FAILED_DRIVER, "the agent failed at this job; its log says why", False
            )
        self._drivers.pop(job_id, None)
        self._secrets_path(self._store.get(job_id)).unlink(missing_ok=True)
        self.changed.fire()
        self.reschedule()
        self._background(driver.logs.close_when_merged())
        await self._release(job_id)

    async def _release(self, job_id: int) -> None:
        """Only once the end is on disk: a node that forgot the job would run it again."""
        while not self._store.written(job_id):
            await asyncio.sleep(1.0)
        await self._roster(job_id).release()

    def _roster(self, job_id: int) -> Roster:
        return Roster(job_id, self, self._cluster, self._paths, self._grace)

    def _end_waiting(self, job_id: int, status: JobStatus, reason: str, released: bool = True) -> None:
        record = self._store.get(job_id)
        job = replace(
            record.job, status=status, reason=reason, ended_at=self._clock.now(), duration_seconds=0.0
        )
        ended = replace(record, job=job, stage=model.ENDED)
        self.change(slim(ended) if released else ended)
        self._secrets_path(record).unlink(missing_ok=True)

    def _to_cancel(self, request: CancelJobs) -> list[JobRecord]:
        if request.job_ids is not None:
            return [self._store.get(job_id) for job_id in request.job_ids]
        active = self._store.active()
        if request.all:
            return [record for record in active if request.user in (None, record.job.user)]
        running = [record for record in active if record.stage != model.QUEUED]
        return (running or active)[-1:]

    # --- records ---

    def _new_record(self, job_id: int, request: JobSubmit) -> JobRecord:
        job = Job(
            job_id=job_id,
            name=request.name,
            user=request.user,
            status=JobStatus.PENDING,
            submitted_at=self._clock.now(),
            num_nodes=request.num_nodes,
            resources=request.resources,
            demand=request.demand,
            exit_codes=(None,) * request.num_nodes,
            log_path=f"~/sky_logs/{model.log_dir_name(job_id, request.name)}",
            metadata=request.metadata,
            key=request.key,
            version=1,
        )
        uid = f"{job_id}-{random.token_hex(6)}"
        return JobRecord(uid, job, replace(request, secrets={}), cluster_size=self._cluster.size)

    def _secrets_path(self, record: JobRecord) -> Path:
        return self._paths.jobs / f"{record.uid}.secrets"

    def _write_secrets(self, record: JobRecord, values: dict[str, str]) -> None:
        try:
            write_atomic(self._secrets_path(record), json.dumps(values).encode())
        except OSError as error:
            raise Unavailable(
                f"the job was not accepted: its secrets cannot be kept: {error.strerror}"
            ) from error

    def _note(self, record: JobRecord) -> None:
        self._idle.observe(self._store.active_count)
        self.changed.fire()
        self._changes[record.job.job_id] = self.changed.version

    def _background(self, work: object) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception():
            log.error("a job's driver failed", exc_info=task.exception())


def _committed(merge: Merge) -> int:
    return merge.committed


def _waiting(record: JobRecord) -> WaitingJob:
    return WaitingJob(record.job.job_id, record.demand, record.job.num_nodes)


def _first_stage(record: JobRecord) -> str:
    return model.SETUP_STARTING if record.submit.setup else model.RUN_STARTING


def _check(request: JobSubmit) -> None:
    if request.num_nodes < 1:
        raise InvalidRequest(f"num_nodes: {request.num_nodes} is not a whole number from 1 on")
    if not request.key:
        raise InvalidRequest("key: an idempotency key is needed")
    demand = request.demand
    for field, amount in (("cpus", demand.cpus), ("memory_gib", demand.memory_gib), ("gpus", demand.gpus)):
        if not 0 <= amount < 1e9:
            raise InvalidRequest(f"demand.{field}: {amount} is not a number from 0 on")
    for kind, values in (("envs", request.envs), ("secrets", request.secrets)):
        for name, value in values.items():
            if "\0" in value:
                raise InvalidRequest(f"{kind}.{name}: the value holds a zero byte, which no variable can")
            if not name.isidentifier() or not name.isascii():
                raise InvalidRequest(
                    f"{kind}: {name[:60]!r} is not a variable name (letters, digits, underscores)"
                )
