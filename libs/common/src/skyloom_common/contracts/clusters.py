"""Clusters as clients see and ask for them. Mutating calls answer with an Operation."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any, ClassVar, Optional

from skyloom_common.contracts.task.model import AutostopSpec, TaskSpec


class ClusterStatus(str, enum.Enum):
    INIT = "INIT"
    UP = "UP"
    STOPPED = "STOPPED"
    AUTOSTOPPING = "AUTOSTOPPING"
    PENDING = "PENDING"


@dataclass(frozen=True)
class NodeView:
    """`status`: PENDING, STARTING, UP, UNREACHABLE, STOPPED, TERMINATED. Ages in seconds; None = never heard."""

    rank: int
    id: str
    status: str
    address: str = ""
    heartbeat_age_seconds: Optional[float] = None
    cpu_percent: Optional[float] = None
    memory_used_gib: Optional[float] = None
    gpu_percent: Optional[float] = None
    problem: str = ""


@dataclass(frozen=True)
class Cluster:
    """One row of `sky status`. `unhealthy`: INIT because something broke, not because it is launching; `status_message` says why.

    `resources`: "2x(cpus=4, mem=16GB, ...)". `heartbeat_age_seconds`: the oldest of its nodes'.
    """

    id: str
    name: str
    status: ClusterStatus
    user: str
    num_nodes: int
    launched_at: float
    resources: str = ""
    status_message: str = ""
    unhealthy: bool = False
    cloud: str = ""
    region: str = ""
    zone: str = ""
    instance_type: str = ""
    use_spot: bool = False
    accelerators: dict[str, float] = field(default_factory=dict)
    cpus: Optional[float] = None
    memory_gib: Optional[float] = None
    price_per_hour: Optional[float] = None
    """Of the whole cluster."""
    autostop: Optional[AutostopSpec] = None
    idle_seconds: Optional[float] = None
    last_use: str = ""
    """The command that used it last."""
    head_ip: str = ""
    nodes: tuple[NodeView, ...] = ()
    endpoints: dict[str, str] = field(default_factory=dict)
    """Port to URL."""
    ssh: Optional[dict[str, Any]] = None
    """Where the provider has SSH: {"hosts": [{"name", "host", "port", "user"}]}."""
    status_updated_at: float = 0.0
    heartbeat_age_seconds: Optional[float] = None
    last_event: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    workspace: str = "default"
    version: int = 0


@dataclass(frozen=True)
class ClusterList:
    clusters: tuple[Cluster, ...] = ()


@dataclass(frozen=True)
class MountRef:
    """A local tree the client has put into the file store: it appears at `destination` (absolute, ~/..., or relative to the workdir).

    `kind`: workdir | file_mount. `is_file`: the tree is one file, to be placed as `destination` itself.
    """

    destination: str
    manifest_id: str
    kind: str = "file_mount"
    is_file: bool = False


@dataclass(frozen=True)
class LaunchRequest:
    """`autostop`: the CLI's -i/--down/--wait-for, else the task's own. Secrets in `task` never reach a table in clear."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    task: TaskSpec
    mounts: tuple[MountRef, ...] = ()
    autostop: Optional[AutostopSpec] = None
    retry_until_up: bool = False
    no_setup: bool = False
    fast: bool = False
    resize: bool = False
    clone_disk_from: Optional[str] = None
    command: str = ""
    """What the user typed, for `last_use`."""


@dataclass(frozen=True)
class ExecRequest:
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    task: TaskSpec
    mounts: tuple[MountRef, ...] = ()
    command: str = ""


@dataclass(frozen=True)
class StartRequest:
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    autostop: Optional[AutostopSpec] = None
    retry_until_up: bool = False
    force: bool = False


@dataclass(frozen=True)
class StopRequest:
    """For stop and down. `purge`: drop the record even if the provider's call fails (down only)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    purge: bool = False
    graceful: bool = False
    graceful_timeout_seconds: Optional[float] = None


@dataclass(frozen=True)
class AutostopRequest:
    """`autostop` None cancels."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    autostop: Optional[AutostopSpec] = None


@dataclass(frozen=True)
class InfraStatus:
    """One line of `sky check`. `capabilities`: compute, storage. `features`: the support matrix row of its provider."""

    name: str
    enabled: bool
    reason: str = ""
    hint: str = ""
    capabilities: tuple[str, ...] = ()
    features: tuple[str, ...] = ()


@dataclass(frozen=True)
class InfraList:
    infra: tuple[InfraStatus, ...] = ()


@dataclass(frozen=True)
class CostRow:
    """A cluster that ran in the period: prices as they were when it started, `cost` in USD up to now or its end."""

    name: str
    launched_at: float
    duration_seconds: float
    num_nodes: int
    resources: str
    status: str
    """A ClusterStatus or TERMINATED."""
    price_per_hour: Optional[float] = None
    cost: Optional[float] = None
    user: str = ""


@dataclass(frozen=True)
class CostReport:
    rows: tuple[CostRow, ...] = ()
    total_cost: float = 0.0
    days: Optional[int] = None


@dataclass(frozen=True)
class ServerInfo:
    """`api_version` counts incompatible changes of /api/v1. `store`: sqlite | postgresql; `bus`: the Redis engine and version."""

    version: str
    api_version: int
    status: str
    user: str = ""
    store: str = ""
    bus: str = ""
    started_at: float = 0.0
    services: dict[str, str] = field(default_factory=dict)
    """Service name to "ok" or what is wrong."""
