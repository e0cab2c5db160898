"""Typed calls to the provisioner. `user` is who asks; `key` makes a mutating call repeatable."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any, Optional
from urllib.parse import quote

from skyloom_common.clients.base import ServiceClient, on_behalf_of
from skyloom_common.contracts.clusters import (
    AutostopRequest,
    Cluster,
    ClusterList,
    CostReport,
    ExecRequest,
    InfraList,
    LaunchRequest,
    StartRequest,
    StopRequest,
)
from skyloom_common.contracts.http import IDEMPOTENCY_KEY
from skyloom_common.contracts.jobs import CancelJobs, CancelledJobs, JobList
from skyloom_common.contracts.operations import Operation, OperationEvent, OperationList
from skyloom_common.contracts.plan import Plan, PlanRequest
from skyloom_common.core.ids import new_id
from skyloom_common.core.names import check_cluster_name
from skyloom_common.core.sse import SseReader
from skyloom_common.core.wire import from_wire


class ProvisionerClient(ServiceClient):
    service = "the provisioner"

    async def plan(self, request: PlanRequest, *, user: str = "") -> Plan:
        return await self.post(Plan, "/v1/plans", request, on_behalf_of(user))

    async def clusters(
        self, names: Sequence[str] = (), *, all_users: bool = False, refresh: bool = False, user: str = ""
    ) -> tuple[Cluster, ...]:
        """Of these names (globs), or all."""
        query = {"name": list(names), "all_users": int(all_users), "refresh": int(refresh)}
        return (await self.get(ClusterList, "/v1/clusters", query, on_behalf_of(user))).clusters

    async def infra(self, names: Sequence[str] = (), *, user: str = "") -> InfraList:
        return await self.get(InfraList, "/v1/infra", {"name": list(names)}, on_behalf_of(user))

    async def cost_report(self, days: Optional[int] = None, *, user: str = "") -> CostReport:
        query = {} if days is None else {"days": days}
        return await self.get(CostReport, "/v1/cost-report", query, on_behalf_of(user))

    async def launch(
        self, cluster: str, request: LaunchRequest, *, user: str = "", key: Optional[str] = None
    ) -> Operation:
        return await self._act(cluster, "launch", request, user, key)

    async def exec(
        self, cluster: str, request: ExecRequest, *, user: str = "", key: Optional[str] = None
    ) -> Operation:
        return await self._act(cluster, "exec", request, user, key)

    async def start(
        self, cluster: str, request: StartRequest, *, user: str = "", key: Optional[str] = None
    ) -> Operation:
        return await self._act(cluster, "start", request, user, key)

    async def stop(
        self, cluster: str, request: StopRequest, *, user: str = "", key: Optional[str] = None
    ) -> Operation:
        return await self._act(cluster, "stop", request, user, key)

    async def down(
        self, cluster: str, request: StopRequest, *, user: str = "", key: Optional[str] = None
    ) -> Operation:
        return await self._act(cluster, "down", request, user, key)

    async def autostop(
        self, cluster: str, request: AutostopRequest, *, user: str = "", key: Optional[str] = None
    ) -> Operation:
        return await self._act(cluster, "autostop", request, user, key)

    async def jobs(self, cluster: str, *, user: str = "") -> JobList:
        return await self.get(JobList, f"{_at(cluster)}/jobs", None, on_behalf_of(user))

    async def cancel_jobs(self, cluster: str, request: CancelJobs, *, user: str = "") -> tuple[int, ...]:
        answer = await self.post(CancelledJobs, f"{_at(cluster)}/jobs/cancel", request, on_behalf_of(user))
        return answer.job_ids

    def job_logs(
        self, cluster: str, job: str, query: Optional[dict[str, Any]] = None, *, user: str = ""
    ) -> AsyncIterator[bytes]:
        """`job`: an id or "latest"; `query` as the agent's."""
        return self.pieces(f"{_at(cluster)}/jobs/{quote(job, safe='')}/logs", query, on_behalf_of(user))

    def job_archive(self, cluster: str, job: str, *, user: str = "") -> AsyncIterator[bytes]:
        return self.pieces(f"{_at(cluster)}/jobs/{quote(job, safe='')}/archive", None, on_behalf_of(user))

    def provision_logs(self, cluster: str, *, follow: bool = False, user: str = "") -> AsyncIterator[bytes]:
        return self.pieces(f"{_at(cluster)}/provision-logs", {"follow": int(follow)}, on_behalf_of(user))

    async def operations(
        self, *, all: bool = False, limit: Optional[int] = None, cluster: Optional[str] = None, user: str = ""
    ) -> tuple[Operation, ...]:
        asked: dict[str, Any] = {"all": int(all), "limit": limit, "cluster": cluster}
        query = {name: value for name, value in asked.items() if value is not None}
        return (await self.get(OperationList, "/v1/operations", query, on_behalf_of(user))).operations

    async def operation(self, operation_id: str, *, user: str = "") -> Operation:
        return await self.get(Operation, _operation(operation_id), None, on_behalf_of(user))

    async def cancel_operation(self, operation_id: str, *, user: str = "") -> Operation:
        response = await self.call("POST", f"{_operation(operation_id)}/cancel", headers=on_behalf_of(user))
        return self.decode(Operation, response.content)

    async def operation_events(
        self, operation_id: str, *, after: int = 0, user: str = ""
    ) -> AsyncIterator[OperationEvent]:
        """Events after `after` until the operation's last one or the connection's end."""
        path, reader = f"{_operation(operation_id)}/events", SseReader()
        pieces = self.pieces(path, {"after": after}, on_behalf_of(user))
        async with contextlib.aclosing(pieces):  # type: ignore[type-var]
            async for piece in pieces:
                for event in reader.feed(piece):
                    yield from_wire(OperationEvent, json.loads(event.data))

    async def _act(self, cluster: str, verb: str, request: Any, user: str, key: Optional[str]) -> Operation:
        headers = on_behalf_of(user, {IDEMPOTENCY_KEY: key or new_id()})
        return await self.post(Operation, f"{_at(cluster)}/{verb}", request, headers)


def _at(cluster: str) -> str:
    return f"/v1/clusters/{quote(check_cluster_name(cluster), safe='')}"


def _operation(operation_id: str) -> str:
    return f"/v1/operations/{quote(operation_id, safe='')}"
