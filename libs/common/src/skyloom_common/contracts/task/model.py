"""The task spec as contracts. Nothing here parses YAML text (see `parse`) or decides anything.

Units: memory and disk in GiB/GB as users write them, prices in USD per hour, times in seconds or as the name says.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any, Optional, Union


@dataclass(frozen=True)
class Quantity:
    """`4` exact, `4+` at least, `2x` per vCPU (memory only), a fraction where the field allows it."""

    value: float
    at_least: bool = False
    per_cpu: bool = False


@dataclass(frozen=True)
class AcceleratorSpec:
    """One alternative: by name (`H100:8`) or by device memory (`nvidia:80GB+:4`). Exactly one of name / memory_gib is set."""

    name: Optional[str] = None
    count: float = 1.0
    memory_gib: Optional[float] = None
    memory_at_least: bool = False
    vendor: Optional[str] = None


class WaitFor(str, enum.Enum):
    """What keeps a cluster from being idle."""

    JOBS_AND_SSH = "jobs_and_ssh"
    JOBS = "jobs"
    NONE = "none"


@dataclass(frozen=True)
class AutostopSpec:
    """`enabled=False` is an explicit "never". idle_minutes 0 = as soon as idle."""

    enabled: bool = True
    idle_minutes: int = 0
    down: bool = False
    wait_for: WaitFor = WaitFor.JOBS_AND_SSH
    max_lifetime_minutes: Optional[int] = None
    """Wall-clock limit since the cluster came up, busy or not; our extension (`max_lifetime: 8h`)."""
    hook: Optional[str] = None
    hook_timeout: Optional[int] = None


@dataclass(frozen=True)
class JobRecoverySpec:
    strategy: Optional[str] = None
    max_restarts_on_errors: int = 0
    recover_on_exit_codes: tuple[int, ...] = ()


@dataclass(frozen=True)
class ResourcesSpec:
    """One set of requirements for each node. None or empty = no requirement.

    `cloud`, `region` and `zone` may each be several names with commas between them, any of which will do (see `places`).
    `any_of` (cheapest wins) and `ordered` (first that works) hold overrides of the other fields; `alternatives()`
    in `expand` merges them. In `accelerators`, several entries are alternatives: any (cheapest) or, with
    `accelerators_ordered`, in the order given.
    """

    cloud: Optional[str] = None
    region: Optional[str] = None
    zone: Optional[str] = None
    instance_type: Optional[str] = None
    cpus: Optional[Quantity] = None
    memory: Optional[Quantity] = None
    accelerators: tuple[AcceleratorSpec, ...] = ()
    accelerators_ordered: bool = False
    accelerator_args: dict[str, Any] = field(default_factory=dict)
    use_spot: Optional[bool] = None
    disk_size: Optional[Quantity] = None
    disk_tier: Optional[str] = None
    network_tier: Optional[str] = None
    local_disk: Optional[str] = None
    max_hourly_cost: Optional[float] = None
    ports: tuple[str, ...] = ()
    """Single ports or ranges "8000-8010", de-duplicated and sorted."""
    image_id: Optional[Union[str, dict[str, str]]] = None
    labels: dict[str, str] = field(default_factory=dict)
    volumes: tuple[dict[str, Any], ...] = ()
    autostop: Optional[AutostopSpec] = None
    priority: Optional[int] = None
    priority_class: Optional[str] = None
    job_recovery: Optional[JobRecoverySpec] = None
    infra: tuple[str, ...] = ()
    """Places of different clouds, any of which will do, each as `cloud/region/zone`; then the other three are None."""
    any_of: tuple[ResourcesSpec, ...] = ()
    ordered: tuple[ResourcesSpec, ...] = ()
    internal: dict[str, Any] = field(default_factory=dict)
    """Fields that begin with an underscore: kept on round trips, never interpreted."""


@dataclass(frozen=True)
class GitWorkdir:
    url: str
    ref: Optional[str] = None


@dataclass(frozen=True)
class EncryptionSpec:
    type: str = "AES256"
    key_id: Optional[str] = None


@dataclass(frozen=True)
class StorageSpec:
    """A bucket-backed mount or copy (compat: storage object)."""

    name: Optional[str] = None
    source: Optional[Union[str, tuple[str, ...]]] = None
    store: Optional[str] = None
    persistent: bool = True
    mode: str = "MOUNT"
    type: Optional[str] = None
    config: dict[str, Any] = field(default_factory=dict)
    encryption: Optional[EncryptionSpec] = None
    internal: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class VolumeSpec:
    """One entry of the task's `volumes`: a named volume, an ephemeral one (size) or a host path."""

    name: Optional[str] = None
    sub_path: Optional[str] = None
    size: Optional[str] = None
    type: Optional[str] = None
    labels: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    host_path: Optional[str] = None
    mode: Optional[str] = None


@dataclass(frozen=True)
class ReadinessProbe:
    path: str = "/"
    initial_delay_seconds: float = 1200
    timeout_seconds: float = 15
    endpoint_probe_interval_seconds: float = 10
    consecutive_failure_threshold_timeout: float = 180
    post_data: Optional[Union[str, dict[str, Any]]] = None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ReplicaPolicy:
    min_replicas: int
    max_replicas: Optional[int] = None
    num_overprovision: Optional[int] = None
    target_qps_per_replica: Optional[Union[float, dict[str, float]]] = None
    upscale_delay_seconds: float = 300
    downscale_delay_seconds: float = 1200
    base_ondemand_fallback_replicas: int = 0
    dynamic_ondemand_fallback: bool = False
    spot_placer: Optional[str] = None


@dataclass(frozen=True)
class ServiceSpec:
    readiness_probe: ReadinessProbe = field(default_factory=ReadinessProbe)
    replicas: Optional[int] = None
    replica_policy: Optional[ReplicaPolicy] = None
    load_balancing_policy: Optional[str] = None
    stream_timeout_seconds: Optional[float] = None
    ports: Optional[int] = None
    tls_keyfile: Optional[str] = None
    tls_certfile: Optional[str] = None


@dataclass(frozen=True)
class PoolSpec:
    workers: Optional[int] = None
    min_workers: Optional[int] = None
    max_workers: Optional[int] = None
    queue_length_threshold: Optional[int] = None
    upscale_delay_seconds: Optional[float] = None
    downscale_delay_seconds: Optional[float] = None


@dataclass(frozen=True)
class SyncSpec:
    """Filters and mode for what is copied to the nodes (patterns as in .skyignore)."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    mode: str = "incremental"
    git: bool = False
    """True copies the .git directory too."""


@dataclass(frozen=True)
class NetworkingSpec:
    vpc_name: Optional[str] = None
    subnet_name: Optional[str] = None
    security_groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class ManagedSecret:
    name: str
    mount_path: Optional[str] = None


@dataclass(frozen=True)
class TaskSpec:
    """One task. Empty text and empty mappings mean "not given"."""

    name: Optional[str] = None
    workdir: Optional[Union[str, GitWorkdir]] = None
    num_nodes: int = 1
    resources: ResourcesSpec = field(default_factory=ResourcesSpec)
    envs: dict[str, Optional[str]] = field(default_factory=dict)
    """None = to be given by the client; refused at validation when still None."""
    secrets: dict[str, Optional[str]] = field(default_factory=dict, repr=False)
    """As envs, but never shown, logged or stored in clear. None = reference to a managed secret."""
    managed_secrets: tuple[ManagedSecret, ...] = ()
    setup: Optional[str] = None
    run: Optional[str] = None
    file_mounts: dict[str, Union[str, StorageSpec]] = field(default_factory=dict)
    """Remote path to a local path, a bucket URI or a storage object."""
    volumes: dict[str, VolumeSpec] = field(default_factory=dict)
    service: Optional[ServiceSpec] = None
    pool: Optional[PoolSpec] = None
    config: dict[str, Any] = field(default_factory=dict)
    event_callback: Optional[str] = None
    inputs: dict[str, float] = field(default_factory=dict)
    """At most one: bucket URI to size in GB."""
    outputs: dict[str, float] = field(default_factory=dict)
    api_server_access: bool = True
    sync: Optional[SyncSpec] = None
    networking: Optional[NetworkingSpec] = None
    internal: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskFile:
    """A whole file: one task, a pipeline (serial) or a job group (parallel)."""

    tasks: tuple[TaskSpec, ...]
    name: Optional[str] = None
    execution: str = "serial"
    primary_tasks: tuple[str, ...] = ()
    termination_delay: dict[str, float] = field(default_factory=dict)
    """Task name (or "default") to seconds."""
    inter_connection: Optional[bool] = None
    notices: tuple[str, ...] = field(default=(), compare=False)
    """What was read and ignored, for people."""
    filename: Optional[str] = field(default=None, compare=False, repr=False)
    lines: tuple[dict[str, int], ...] = field(default=(), compare=False, repr=False)
    """For each task: field to line of the file, so that later checks can point at it too."""
