"""Looks after nodes that fell silent: the agent is started again where the machine lives; otherwise it is said what is lost.

Jobs run under their own runners and do not notice. Deletes nothing, except the record of a cluster of which nothing is left.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from skyloom_common.contracts.clusters import ClusterStatus
from skyloom_common.contracts.events import NODE_LOST
from skyloom_common.core.errors import AgentUnreachable, ProviderError, SkyloomError
from skyloom_common.store.lease import Lease
from skyloom_provisioner.clusters.rows import ClusterState, NodeRow, NodeStatus
from skyloom_provisioner.clusters.store import ClusterStore
from skyloom_provisioner.decide.health import ClusterHealth, NodeFinding, NodeHealth, judge_health
from skyloom_provisioner.decide.outcomes import ended
from skyloom_provisioner.nodes.lifecycle import NodeLifecycle, next_generation
from skyloom_provisioner.nodes.live import LiveView
from skyloom_provisioner.nodes.watch import NodeWatches
from skyloom_provisioner.polling import all_or_first_error
from skyloom_provisioner.providers.base import InstanceStatus

_log = logging.getLogger(__name__)
_NODE_STATUS = {
    NodeHealth.OK: NodeStatus.UP,
    NodeHealth.UNREACHABLE: NodeStatus.UNREACHABLE,
    NodeHealth.STOPPED: NodeStatus.STOPPED,
    NodeHealth.GONE: NodeStatus.TERMINATED,
}
Emit = Callable[[str, str, dict[str, Any]], Awaitable[None]]


class Reviver:
    """`emit(kind, key, data)` publishes an event."""

    def __init__(
        self,
        clusters: ClusterStore,
        lifecycle: NodeLifecycle,
        live: LiveView,
        watches: NodeWatches,
        emit: Emit,
        *,
        agent_seconds: float = 30.0,
    ) -> None:
        self._clusters = clusters
        self._lifecycle = lifecycle
        self._live = live
        self._watches = watches
        self._emit = emit
        self._agent_seconds = agent_seconds

    async def revive(self, lease: Lease, state: ClusterState) -> ClusterHealth:
        """Examines every node that is not heard, does what can be done, writes what was found."""
        findings = await all_or_first_error([self._examine(node) for node in state.nodes])
        health = judge_health(findings)
        if health.healthy:
            await self._rejoin(lease, state)
        await self._write_nodes(lease, state, findings)
        if health.vanished:
            await self._forget(lease, state)
        else:
            await self._write_cluster(lease, state.cluster.name, health)
        return health

    async def _examine(self, node: NodeRow) -> NodeFinding:
        try:
            await self._lifecycle.ask(node)
            return NodeFinding(node.rank, NodeHealth.OK)
        except AgentUnreachable:
            pass
        try:
            return await self._restart(node)
        except (AgentUnreachable, ProviderError) as error:
            return NodeFinding(node.rank, NodeHealth.UNREACHABLE, error.message)

    async def _restart(self, node: NodeRow) -> NodeFinding:
        instance = await self._lifecycle.look(node)
        if instance is None or instance.status is InstanceStatus.TERMINATING:
            return NodeFinding(node.rank, NodeHealth.GONE, f"instance {node.instance_id} is gone")
        if instance.status in (InstanceStatus.STOPPED, InstanceStatus.STOPPING):
            return NodeFinding(
                node.rank, NodeHealth.STOPPED, f"instance {node.instance_id} was stopped by somebody else"
            )
        try:
            async with asyncio.timeout(self._agent_seconds):
                await self._lifecycle.start_agent(node)
        except TimeoutError:
            return NodeFinding(node.rank, NodeHealth.UNREACHABLE, "its agent does not answer")
        _log.info("the agent of node %s (%s) was started again", node.rank, node.instance_id)
        return NodeFinding(node.rank, NodeHealth.OK)

    async def _rejoin(self, lease: Lease, state: ClusterState) -> None:
        """A restarted agent may listen elsewhere; its peers learn that by a new generation."""
        infos = await all_or_first_error([self._lifecycle.ask(node) for node in state.nodes])
        cluster = (await self._clusters.get(state.cluster.name)).cluster
        generation = next_generation(cluster, infos)
        await self._clusters.change(lease, cluster, membership_generation=generation)
        await self._lifecycle.join(cluster, state.nodes, infos, generation)

    async def _write_nodes(self, lease: Lease, state: ClusterState, findings: list[NodeFinding]) -> None:
        for node, finding in zip(state.nodes, findings, strict=True):
            status = _NODE_STATUS[finding.health].value
            if node.status == status and finding.reason == node.problem:
                continue
            if finding.health in (NodeHealth.GONE, NodeHealth.STOPPED):
                await self._write_lost(lease, state, node, finding)
            else:
                await self._clusters.change_node(lease, node.id, status=status, problem=finding.reason)

    async def _write_lost(
        self, lease: Lease, state: ClusterState, node: NodeRow, finding: NodeFinding
    ) -> None:
        """Some clouds take a spot machine by stopping it."""
        outcome = ended(node, self._live.clock.now(), taken=True)
        await self._clusters.change_node(
            lease,
            node.id,
            outcomes=[outcome] if outcome else [],
            status=_NODE_STATUS[finding.health].value,
            problem=finding.reason,
            running_since=None,
        )
        self._live.forget(node.id)
        await self._emit(NODE_LOST, node.id, {"cluster": state.cluster.name, "reason": finding.reason})

    async def _write_cluster(self, lease: Lease, name: str, health: ClusterHealth) -> None:
        cluster = (await self._clusters.get(name)).cluster
        status = cluster.status
        if not health.healthy:
            status = ClusterStatus.INIT.value
        elif not cluster.is_up:
            status = ClusterStatus.UP.value
        values = {"status": status, "unhealthy": not health.healthy, "status_message": health.message}
        if any(getattr(cluster, key) != value for key, value in values.items()):
            last_event = health.message or "healthy again"
            await self._clusters.change(lease, cluster, **values, last_event=last_event)

    async def _forget(self, lease: Lease, state: ClusterState) -> None:
        _log.warning("all nodes of cluster %s are gone; its record is removed", state.cluster.name)
        self._watches.drop(state.cluster.name)
        state = await self._clusters.get(state.cluster.name)  # their ends are written down by now
        try:
            await self._lifecycle.remove(lease, [*state.nodes, *state.leaving])
        except SkyloomError as error:
            _log.warning("cluster %s stays until its absence is confirmed: %s", state.cluster.name, error)
            return
        await self._clusters.drop_cluster(lease, state.cluster.id)
