"""What the agent keeps and what head and workers say to each other. Data only.

A *rank* is one process of a job phase on one node; its uid is `<job uid>.<phase>.<rank>`. Agents of one cluster may
differ in version for a while, so unknown fields are ignored between them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Optional

from skyloom_common.contracts.jobs import Job, JobDemand, JobSubmit
from skyloom_common.core.errors import InvalidRequest

SETUP = "setup"
RUN = "run"

# How far a job is. `..._STARTING`: nothing has started anywhere yet; SETTING_UP, RUNNING: some rank may have.
QUEUED = "queued"
SETUP_STARTING = "setup_starting"
SETTING_UP = "setting_up"
RUN_STARTING = "run_starting"
RUNNING = "running"
ENDED = "ended"

_UID = re.compile(r"[0-9]{1,12}-[0-9a-z]{1,40}\.(setup|run)\.[0-9]{1,6}")
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class RankSpec:
    """Everything a node needs to run one rank. `log` is relative to the node's home."""

    uid: str
    job_id: int
    job_uid: str
    phase: str
    rank: int
    script: str
    log: str
    env: dict[str, str] = field(default_factory=dict)
    grace_seconds: float = 5.0


@dataclass(frozen=True)
class RankState:
    """status: prepared | running | finished | lost. `error`: why it could not start, or what became of its runner."""

    uid: str
    status: str
    pid: int = 0
    exit_code: Optional[int] = None
    stopped: bool = False
    error: str = ""
    lost_bytes: int = 0


@dataclass(frozen=True)
class RankId:
    uid: str


@dataclass(frozen=True)
class Place:
    """Where a rank runs: the stable index of its node, and the GPUs of that node that are its own."""

    node: int
    gpus: tuple[int, ...] = ()


@dataclass(frozen=True)
class JobRecord:
    """A job as the head keeps it: the public part, what was asked (secrets left out), and how far it is.

    `began` is monotonic and means something within the machine's `boot` only.
    `cancel`: why it is to end, empty while it is not. `released`: no node keeps anything of it any more.
    """

    uid: str
    job: Job
    submit: JobSubmit
    places: tuple[Place, ...] = ()
    cluster_size: int = 1
    stage: str = QUEUED
    began: float = 0.0
    boot: str = ""
    cancel: str = ""
    released: bool = False

    @property
    def demand(self) -> JobDemand:
        return self.submit.demand


def check_uid(uid: str) -> str:
    """It becomes a directory name."""
    if not _UID.fullmatch(uid):
        raise InvalidRequest(f"uid: {uid[:60]!r} is not a rank", details={"field": "uid"})
    return uid


def rank_uid(job_uid: str, phase: str, rank: int) -> str:
    return f"{job_uid}.{phase}.{rank}"


def log_dir_name(job_id: int, name: str) -> str:
    """`<id>-<name>` that is one harmless path segment, whatever the name."""
    safe = _UNSAFE.sub("_", name).strip(".") or "job"
    return f"{job_id}-{safe[:100]}"
