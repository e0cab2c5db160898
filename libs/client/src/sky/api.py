"""The gateway as typed calls: contracts in, contracts out. One method per path; it must not print, ask or decide."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from sky.net.transport import Transport, new_key, quote

if TYPE_CHECKING:
    from skyloom_common.contracts.catalog import CatalogInfo, CatalogRefresh, CatalogRefreshRequest
    from skyloom_common.contracts.clusters import (
        AutostopRequest,
        Cluster,
        CostReport,
        ExecRequest,
        InfraStatus,
        LaunchRequest,
        ServerInfo,
        StartRequest,
        StopRequest,
    )
    from skyloom_common.contracts.dag import DagPlan, DagPlanRequest
    from skyloom_common.contracts.jobs import CancelJobs, Job
    from skyloom_common.contracts.operations import Operation
    from skyloom_common.contracts.plan import AcceleratorList, Plan, PlanRequest

T = TypeVar("T")


class Gateway:
    """What the commands and the SDK call. Clusters are named; an operation is what mutating calls answer with."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport

    # --- reading ---

    def info(self, *, timeout: float = 5.0, attempts: int = 2) -> ServerInfo:
        from skyloom_common.contracts.clusters import ServerInfo

        body = self.transport.call("GET", "/info", timeout=timeout, attempts=attempts)
        return _decoded(ServerInfo, json.loads(body))

    def clusters(
        self, names: Sequence[str] = (), *, all_users: bool = False, refresh: bool = False
    ) -> tuple[Cluster, ...]:
        from skyloom_common.contracts.clusters import ClusterList

        query = {"name": list(names), "all_users": all_users or None, "refresh": refresh or None}
        return self._get(ClusterList, "/clusters", query).clusters

    def clusters_wire(
        self, names: Sequence[str] = (), *, all_users: bool = False, refresh: bool = False
    ) -> list[dict[str, Any]]:
        """The same as they came: for the one command that is typed all day."""
        query = {"name": list(names), "all_users": all_users or None, "refresh": refresh or None}
        rows: list[dict[str, Any]] = self.transport.get_json("/clusters", query).get("clusters", [])
        return rows

    def cluster(self, name: str) -> Cluster | None:
        """The one cluster of this very name (names are not globs here)."""
        return next((c for c in self.clusters([name]) if c.name == name), None)

    def jobs(self, cluster: str) -> tuple[Job, ...]:
        from skyloom_common.contracts.jobs import JobList

        return self._get(JobList, f"/clusters/{quote(cluster)}/jobs").jobs

    def infra(self, names: Iterable[str] = ()) -> tuple[InfraStatus, ...]:
        from skyloom_common.contracts.clusters import InfraList

        return self._get(InfraList, "/infra", {"name": list(names)}).infra

    def accelerators(self, **query: Any) -> AcceleratorList:
        from skyloom_common.contracts.plan import AcceleratorList

        return self._get(AcceleratorList, "/accelerators", query)

    def catalog(self) -> CatalogInfo:
        from skyloom_common.contracts.catalog import CatalogInfo

        return self._get(CatalogInfo, "/catalog")

    def refresh_catalog(self, request: CatalogRefreshRequest) -> CatalogRefresh:
        """Starts it; `catalog().refresh` shows how it goes."""
        from skyloom_common.contracts.catalog import CatalogRefresh

        body = self.transport.call("POST", "/catalog/refresh", body=_encoded(request), key=new_key())
        return _decoded(CatalogRefresh, json.loads(body))

    def cost_report(self, days: int | None = None) -> CostReport:
        from skyloom_common.contracts.clusters import CostReport

        return self._get(CostReport, "/cost-report", {"days": days})

    def plan(self, request: PlanRequest) -> Plan:
        from skyloom_common.contracts.plan import Plan

        body = self.transport.call("POST", "/plans", body=_encoded(request), key=new_key())
        return _decoded(Plan, json.loads(body))

    def plan_dag(self, request: DagPlanRequest) -> DagPlan:
        from skyloom_common.contracts.dag import DagPlan

        body = self.transport.call("POST", "/plans/dag", body=_encoded(request), key=new_key())
        return _decoded(DagPlan, json.loads(body))

    # --- operations ---

    def operations(
        self, *, all_status: bool = False, limit: int | None = None, cluster: str | None = None
    ) -> tuple[Operation, ...]:
        from skyloom_common.contracts.operations import OperationList

        query = {"all": all_status or None, "limit": limit, "cluster": cluster}
        return self._get(OperationList, "/operations", query).operations

    def operation(self, operation_id: str) -> Operation:
        from skyloom_common.contracts.operations import Operation

        return self._get(Operation, f"/operations/{quote(operation_id)}")

    def cancel_operation(self, operation_id: str) -> Operation:
        return self._operation(f"/operations/{quote(operation_id)}/cancel", None, new_key())

    # --- changing clusters ---

    def launch(self, cluster: str, request: LaunchRequest, *, key: str | None = None) -> Operation:
        return self._on_cluster(cluster, "launch", request, key)

    def exec(self, cluster: str, request: ExecRequest, *, key: str | None = None) -> Operation:
        return self._on_cluster(cluster, "exec", request, key)

    def exec_wire(self, cluster: str, request: dict[str, Any], *, key: str | None = None) -> Operation:
        """The same with an ExecRequest that is in its wire form already."""
        return self._on_cluster(cluster, "exec", request, key)

    def start(self, cluster: str, request: StartRequest, *, key: str | None = None) -> Operation:
        return self._on_cluster(cluster, "start", request, key)

    def stop(self, cluster: str, request: StopRequest, *, key: str | None = None) -> Operation:
        return self._on_cluster(cluster, "stop", request, key)

    def down(self, cluster: str, request: StopRequest, *, key: str | None = None) -> Operation:
        return self._on_cluster(cluster, "down", request, key)

    def autostop(self, cluster: str, request: AutostopRequest, *, key: str | None = None) -> Operation:
        return self._on_cluster(cluster, "autostop", request, key)

    def cancel_jobs(self, cluster: str, request: CancelJobs) -> tuple[int, ...]:
        from skyloom_common.contracts.jobs import CancelledJobs

        path = f"/clusters/{quote(cluster)}/jobs/cancel"
        body = self.transport.call("POST", path, body=_encoded(request), key=new_key())
        return _decoded(CancelledJobs, json.loads(body)).job_ids

    # --- inside ---

    def _get(self, kind: type[T], path: str, query: dict[str, Any] | None = None) -> T:
        return _decoded(kind, self.transport.get_json(path, query))

    def _on_cluster(self, cluster: str, verb: str, request: Any, key: str | None) -> Operation:
        return self._operation(f"/clusters/{quote(cluster)}/{verb}", _encoded(request), key or new_key())

    def _operation(self, path: str, body: bytes | None, key: str) -> Operation:
        from skyloom_common.contracts.operations import Operation

        return _decoded(Operation, json.loads(self.transport.call("POST", path, body=body, key=key)))


def _decoded(kind: type[T], data: Any) -> T:
    from skyloom_common.core.wire import from_wire

    return from_wire(kind, data)


def _encoded(value: Any) -> bytes:
    from skyloom_common.core.wire import dumps

    return dumps(value)
