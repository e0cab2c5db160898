"""What the SDK's reading calls return: records that are dicts and have attributes, with the field names that users know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skyloom_common.contracts.clusters import Cluster, CostRow, ServerInfo
    from skyloom_common.contracts.jobs import Job
    from skyloom_common.contracts.operations import Operation


class Record(dict[str, Any]):
    """record["name"] and record.name are the same."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no field {name!r}") from None


class StatusResponse(Record):
    """One cluster of sky.status()."""


class ClusterJobRecord(Record):
    """One job of sky.queue()."""


class RequestRecord(Record):
    """One row of sky.api_status()."""


class APIHealthResponse(Record):
    """sky.api_info()."""


class InstanceTypeInfo(Record):
    """One offer of sky.list_accelerators()."""


class ClusterHandle:
    """What launch, start and status give to reach a cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.cluster_name = cluster.name
        self.cluster_name_on_cloud = cluster.id
        self.launched_nodes = cluster.num_nodes
        self.head_ip: str | None = cluster.head_ip or None
        hosts = (cluster.ssh or {}).get("hosts") or [{}]
        self.head_ssh_port: int | None = hosts[0].get("port")
        self.stable_internal_external_ips = [(node.address, node.address) for node in cluster.nodes]

    @property
    def launched_resources(self) -> Any:
        from sky.resources import Resources

        row = self._cluster
        count = {name: value for name, value in row.accelerators.items() if value}
        known: dict[str, Any] = {
            "cloud": row.cloud or None, "region": row.region or None, "zone": row.zone or None,
            "instance_type": row.instance_type or None, "accelerators": count or None, "use_spot": row.use_spot or None,
        }  # fmt: skip
        return Resources(**{name: value for name, value in known.items() if value is not None})

    def internal_ips(self) -> list[str]:
        return [internal for internal, _ in self.stable_internal_external_ips]

    def external_ips(self) -> list[str]:
        return [external for _, external in self.stable_internal_external_ips]

    def get_cluster_name(self) -> str:
        return self.cluster_name

    def __repr__(self) -> str:
        return f"ClusterHandle({self.cluster_name!r}, {self.launched_nodes} nodes, head {self.head_ip})"


def status_record(row: Cluster) -> StatusResponse:
    spec = row.autostop if row.autostop is not None and row.autostop.enabled else None
    return StatusResponse(
        name=row.name, launched_at=int(row.launched_at), handle=ClusterHandle(row), last_use=row.last_use,
        status=row.status, autostop=spec.idle_minutes if spec else -1, to_down=bool(spec and spec.down), owner=None,
        metadata={}, cluster_hash=row.id, cluster_ever_up=row.status.value in ("UP", "STOPPED", "AUTOSTOPPING"),
        status_updated_at=row.status_updated_at, user_hash=row.user, user_name=row.user, config_hash=None,
        workspace=row.workspace, last_creation_yaml=None, last_creation_command=row.last_use, is_managed=False,
        last_event=row.last_event, init_kind=_init_kind(row), init_status_reason=row.status_message or None,
        resources_str=row.resources, resources_str_full=row.resources, credentials=row.ssh, nodes=row.num_nodes,
        cloud=row.cloud, region=row.region, cpus=row.cpus, memory=row.memory_gib, accelerators=row.accelerators,
        labels=row.labels, cluster_name_on_cloud=row.id, node_names=[node.id for node in row.nodes], priority=None,
        priority_class=None, links={}, endpoints=row.endpoints, heartbeat_age_seconds=row.heartbeat_age_seconds,
    )  # fmt: skip


def _init_kind(row: Cluster) -> str | None:
    if row.unhealthy:
        return "unhealthy"
    return "launching" if row.status.value == "INIT" else None


def job_record(job: Job) -> ClusterJobRecord:
    return ClusterJobRecord(
        job_id=job.job_id, job_name=job.name, username=job.user, user_hash=job.user, submitted_at=job.submitted_at,
        start_at=job.started_at, end_at=job.ended_at, resources=job.resources, status=job.status,
        log_path=job.log_path, metadata=dict(job.metadata), links={}, exit_codes=job.exit_codes, reason=job.reason,
    )  # fmt: skip


def cost_record(row: CostRow) -> dict[str, Any]:
    from skyloom_common.contracts.clusters import ClusterStatus

    status = ClusterStatus(row.status) if row.status in ClusterStatus.__members__ else None
    return {
        "name": row.name, "launched_at": int(row.launched_at), "duration": row.duration_seconds,
        "num_nodes": row.num_nodes, "resources": row.resources, "resources_str": row.resources, "status": status,
        "cost_per_hour": row.price_per_hour, "total_cost": row.cost or 0.0, "user_name": row.user,
    }  # fmt: skip


def request_record(row: Operation) -> RequestRecord:
    return RequestRecord(
        request_id=row.id, name=f"sky.{row.kind}", cluster_name=row.target, user_name=row.user, user_id=row.user,
        created_at=row.created_at, finished_at=row.finished_at, status=row.status.value, status_msg=row.phase,
        error=row.error.message if row.error else None,
    )  # fmt: skip


def health_record(info: ServerInfo) -> APIHealthResponse:
    return APIHealthResponse(
        status="healthy" if info.status in ("ok", "healthy") else info.status, api_version=str(info.api_version),
        version=info.version, version_on_disk=info.version, commit="", user={"id": info.user, "name": info.user},
        basic_auth_enabled=False, service_account_token_enabled=True, latest_version=None, services=dict(info.services),
    )  # fmt: skip
