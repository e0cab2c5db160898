"""Jobs on one cluster: what the head agent queues, runs on N ranks and reports."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any, ClassVar, Optional


class JobStatus(str, enum.Enum):
    INIT = "INIT"
    PENDING = "PENDING"
    SETTING_UP = "SETTING_UP"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    FAILED_SETUP = "FAILED_SETUP"
    FAILED_DRIVER = "FAILED_DRIVER"
    CANCELLED = "CANCELLED"

    @property
    def is_final(self) -> bool:
        return self not in (JobStatus.INIT, JobStatus.PENDING, JobStatus.SETTING_UP, JobStatus.RUNNING)


class JobExitCode(enum.IntEnum):
    """What `sky launch|exec|logs` exit with (compat: CLI §7)."""

    SUCCEEDED = 0
    FAILED = 100
    NOT_FINISHED = 101
    NOT_FOUND = 102
    CANCELLED = 103

    @classmethod
    def of(cls, status: Optional[JobStatus]) -> JobExitCode:
        if status is None:
            return cls.NOT_FOUND
        if not status.is_final:
            return cls.NOT_FINISHED
        if status is JobStatus.SUCCEEDED:
            return cls.SUCCEEDED
        return cls.CANCELLED if status is JobStatus.CANCELLED else cls.FAILED


@dataclass(frozen=True)
class JobDemand:
    """What one rank takes from its node's account while it runs. Fractions allowed."""

    cpus: float = 0.5
    memory_gib: float = 0.0
    gpus: float = 0.0


@dataclass(frozen=True)
class JobSubmit:
    """`key` is the idempotency key: the same key gives the same job. Secrets are kept in a 0600 file until the job ends.

    `setup` None = no setup (exec, --no-setup). `run` None = nothing to run: the job succeeds after setup.
    `envs`: user variables plus SKYPILOT_TASK_ID, SKYPILOT_USER, SKYPILOT_CLUSTER_INFO set by the sender; the agent adds the
    per-rank ones. Setup runs on every node of the cluster, run on `num_nodes` of them.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    key: str
    name: str
    user: str
    num_nodes: int = 1
    setup: Optional[str] = None
    run: Optional[str] = None
    envs: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    demand: JobDemand = field(default_factory=JobDemand)
    resources: str = ""
    """For the queue's RESOURCES column, e.g. "2x[CPU:0.5]" or "1x[A100:1]"."""
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RankFailure:
    """The first thing that went wrong: which rank, on which node, and what it last said."""

    rank: int
    node: str
    phase: str
    """setup | run | driver"""
    exit_code: Optional[int]
    reason: str
    last_lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """`version` grows with every change. Times are unix seconds on the node's clock; `duration_seconds` is monotonic."""

    job_id: int
    name: str
    user: str
    status: JobStatus
    submitted_at: float
    started_at: Optional[float] = None
    ended_at: Optional[float] = None
    duration_seconds: Optional[float] = None
    num_nodes: int = 1
    resources: str = ""
    demand: JobDemand = field(default_factory=JobDemand)
    exit_codes: tuple[Optional[int], ...] = ()
    """By rank; None = has none (yet)."""
    failure: Optional[RankFailure] = None
    reason: str = ""
    """Why it waits or why it ended so, for people."""
    log_path: str = ""
    """On the head node, e.g. ~/sky_logs/1-train"""
    metadata: dict[str, str] = field(default_factory=dict)
    key: str = ""
    version: int = 0


@dataclass(frozen=True)
class JobList:
    jobs: tuple[Job, ...] = ()


@dataclass(frozen=True)
class CancelJobs:
    """`job_ids` None and not `all` = the latest running job. `user` limits `all` to that user's jobs."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    job_ids: Optional[tuple[int, ...]] = None
    all: bool = False
    user: Optional[str] = None


@dataclass(frozen=True)
class CancelledJobs:
    job_ids: tuple[int, ...] = ()
