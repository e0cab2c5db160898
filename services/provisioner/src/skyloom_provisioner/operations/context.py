"""What a running operation works with: the parts of the service, its row, its lease, its voice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from skyloom_common.clients.optimizer import OptimizerClient
from skyloom_common.contracts.task.model import TaskSpec
from skyloom_common.core.clock import Clock
from skyloom_common.core.wire import from_wire
from skyloom_common.store.lease import Lease
from skyloom_provisioner.clusters.rows import ClusterState
from skyloom_provisioner.clusters.store import ClusterStore
from skyloom_provisioner.deployment import Deployment
from skyloom_provisioner.nodes.agents import AgentPool
from skyloom_provisioner.nodes.lifecycle import NodeLifecycle
from skyloom_provisioner.nodes.live import LiveView
from skyloom_provisioner.operations.rows import OperationRow
from skyloom_provisioner.operations.store import OperationStore
from skyloom_provisioner.providers.registry import Providers

if TYPE_CHECKING:
    from skyloom_provisioner.clusters.revive import Reviver
    from skyloom_provisioner.files.store import FileStore
    from skyloom_provisioner.nodes.watch import NodeWatches


@dataclass(frozen=True)
class Parts:
    """The service's parts, made in `main`."""

    clock: Clock
    deployment: Deployment
    providers: Providers
    clusters: ClusterStore
    operations: OperationStore
    lifecycle: NodeLifecycle
    agents: AgentPool
    live: LiveView
    watches: NodeWatches
    reviver: Reviver
    optimizer: OptimizerClient
    files: FileStore
    retry_seconds: float = 30.0
    checkpoint: Callable[[str], None] = field(default=lambda name: None)
    """Told the name of every point at which a crash is interesting; failure tests end the process there."""


@dataclass
class OperationContext:
    parts: Parts
    row: OperationRow
    lease: Lease
    abandoned: Callable[[], bool]

    @property
    def request(self) -> dict[str, Any]:
        return self.row.request or {}

    def decode(self, kind: type[Any]) -> Any:
        """The request as its contract, with its secrets."""
        request = dict(self.request)
        if self.row.sealed_secrets:
            request["task"] = {
                **request["task"],
                "secrets": self.parts.deployment.open(self.row.sealed_secrets),
            }
        return from_wire(kind, request)

    def task_in_clear(self) -> TaskSpec:
        """Without secrets; for everybody but the agent."""
        return from_wire(TaskSpec, self.request["task"])

    async def say(
        self, phase: str, message: str, *, level: str = "info", data: Mapping[str, Any] | None = None
    ) -> None:
        await self.parts.operations.say(self.lease, self.row.id, phase, message, level=level, data=data)

    async def cluster(self) -> ClusterState:
        return await self.parts.clusters.get(self.row.target)

    async def find_cluster(self) -> ClusterState | None:
        return await self.parts.clusters.find(self.row.target)

    def checkpoint(self, name: str) -> None:
        self.parts.checkpoint(f"{self.row.kind}.{name}")
