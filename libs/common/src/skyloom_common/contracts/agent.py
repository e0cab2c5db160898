"""The agent's API: one agent on every node, bearer token of its cluster, reached through an agent channel.

Every node
  GET  /healthz                      open; {"ok": true}
  GET  /v1/info                      NodeInfo
  PUT  /v1/cluster                   ClusterMembership (idempotent; a lower `generation` than the known one is refused)
  GET  /v1/watch                     application/x-ndjson stream of Heartbeat: one at once, one on every change, one per interval
  POST /v1/files/...                 see contracts/files.py
  POST /v1/shutdown                  ends all jobs of this node, then the agent; answers first
Head only (rank 0 owns the queue)
  POST /v1/jobs                      JobSubmit -> Job
  GET  /v1/jobs , /v1/jobs/{id}      JobList , Job
  POST /v1/jobs/cancel               CancelJobs -> CancelledJobs
  GET  /v1/jobs/{id}/logs            ?follow=0|1 &offset=BYTES &tail=LINES &rank=N|merged(default) &phase=run|setup
                                     application/octet-stream; header X-Log-Offset = where the body begins. With follow the stream
                                     ends when the job is final and everything was sent. `offset` counts bytes of that log, so that a
                                     reader whose connection broke asks again from where it stopped.
  GET  /v1/jobs/{id}/archive         application/x-tar of ~/sky_logs/<id>-<name>/
Errors: SkyloomError.to_wire() with its http_status.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Optional

from skyloom_common.contracts.jobs import Job

AGENT_PORT = 46590
"""Preferred port; an agent that finds it taken takes another and says so in its ready file and NodeInfo."""


@dataclass(frozen=True)
class AgentConfig:
    """The 0600 JSON file an agent starts from (`agent.pyz --config FILE`): nothing secret is on argv or in the environment.

    `home`: the node's HOME; the agent's own files live in `home/.sky`. `listen_host` is the node's address.
    cpus/memory/gpus: what this node may hand out (None = detect). The agent writes `home/.sky/agent.json`
    ({"pid", "port", "url", "boot_id", "started_at"}) atomically once it listens.
    """

    node_id: str
    token: str
    home: str
    listen_host: str = "127.0.0.1"
    port: int = AGENT_PORT
    cpus: Optional[float] = None
    memory_gib: Optional[float] = None
    gpus: Optional[int] = None
    heartbeat_seconds: float = 5.0
    unreachable_seconds: float = 30.0
    """Head only: a worker that does not answer for so long fails the job."""
    grace_seconds: float = 5.0
    """Between SIGTERM and SIGKILL when a job is stopped."""
    confine_to_home: bool = False
    """The node shares its machine (local provider): files are synced to places in its home only."""


@dataclass(frozen=True)
class GpuInfo:
    """`index`: the driver's number. `visible_as`: what CUDA_VISIBLE_DEVICES says for it; empty = its index."""

    index: int
    name: str
    memory_gib: float
    uuid: str = ""
    visible_as: str = ""


@dataclass(frozen=True)
class NodeInfo:
    node_id: str
    boot_id: str
    agent_version: str
    url: str
    hostname: str
    cpus: float
    memory_gib: float
    gpus: tuple[GpuInfo, ...] = ()
    python: str = ""
    pid: int = 0
    membership_generation: int = -1


@dataclass(frozen=True)
class Peer:
    """A node of the cluster as its peers reach it. `rank` is its stable index; 0 is the head."""

    rank: int
    node_id: str
    address: str
    url: str


@dataclass(frozen=True)
class ClusterMembership:
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    cluster_name: str
    cluster_id: str
    rank: int
    generation: int
    peers: tuple[Peer, ...] = ()


@dataclass(frozen=True)
class GpuUse:
    index: int
    utilization_percent: float
    memory_used_gib: float


@dataclass(frozen=True)
class Utilization:
    """A sample; None = not measurable here."""

    cpu_percent: Optional[float] = None
    memory_used_gib: Optional[float] = None
    disk_free_gib: Optional[float] = None
    load_1m: Optional[float] = None
    gpus: tuple[GpuUse, ...] = ()


@dataclass(frozen=True)
class Heartbeat:
    """Pushed over /v1/watch. `jobs` (head only): the jobs changed since the last heartbeat of this stream, all in its first one.

    idle_jobs_seconds: since when no job has been non-final (monotonic seconds; 0 while one is);
    idle_jobs_and_ssh_seconds: the same, SSH sessions counting as use. `problem`: e.g. "disk full: ...".
    """

    node_id: str
    boot_id: str
    seq: int
    at: float
    idle_jobs_seconds: float = 0.0
    idle_jobs_and_ssh_seconds: float = 0.0
    uptime_seconds: float = 0.0
    active_jobs: int = 0
    jobs: tuple[Job, ...] = ()
    utilization: Utilization = field(default_factory=Utilization)
    problem: str = ""
    interruption: Optional[str] = None
