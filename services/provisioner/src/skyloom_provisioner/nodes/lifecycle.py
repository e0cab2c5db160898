"""Rents nodes, starts their agents, makes them one cluster, and gives them back. Every call may be repeated.

It writes node rows under the caller's lease; which node is wanted and why is the caller's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from skyloom_common.contracts.agent import AgentConfig, ClusterMembership, NodeInfo, Peer
from skyloom_common.contracts.task.model import ResourcesSpec
from skyloom_common.core.clock import Clock
from skyloom_common.core.errors import AgentUnreachable, InstanceNotFound, ProviderError
from skyloom_common.reconcile import Backoff
from skyloom_common.store.lease import Lease
from skyloom_provisioner.clusters.rows import ClusterRow, NodeRow, NodeStatus
from skyloom_provisioner.clusters.store import ClusterStore
from skyloom_provisioner.decide.outcomes import ended
from skyloom_provisioner.deployment import Deployment
from skyloom_provisioner.nodes.agents import AgentPool, instance_of
from skyloom_provisioner.nodes.live import LiveView
from skyloom_provisioner.polling import all_or_first_error, finish_even_if_cancelled, poll
from skyloom_provisioner.providers.base import (
    CLUSTER_TAG,
    DEPLOYMENT_TAG,
    NODE_TAG,
    Instance,
    InstanceRequest,
    InstanceStatus,
)
from skyloom_provisioner.providers.registry import Providers


@dataclass(frozen=True)
class Limits:
    """Seconds. `agent_again`: the first pause after which an agent that does not answer is started again."""

    running: float = 900.0
    agent: float = 120.0
    agent_again: float = 2.0
    gone: float = 900.0
    stopped: float = 600.0


def next_generation(cluster: ClusterRow, infos: Sequence[NodeInfo]) -> int:
    """Later than what any of its agents was told, also by a process that died before it wrote that down."""
    return max(cluster.membership_generation, *(info.membership_generation for info in infos)) + 1


class NodeLifecycle:
    def __init__(
        self,
        providers: Providers,
        agents: AgentPool,
        store: ClusterStore,
        deployment: Deployment,
        clock: Clock,
        live: LiveView,
        *,
        heartbeat_seconds: float = 5.0,
        limits: Limits | None = None,
    ) -> None:
        self._providers = providers
        self._agents = agents
        self._store = store
        self._deployment = deployment
        self._clock = clock
        self._live = live
        self._heartbeat_seconds = heartbeat_seconds
        self._limits = limits or Limits()

    async def rent(self, lease: Lease, cluster: ClusterRow, node: NodeRow) -> NodeRow:
        """Creates the node's instance (the same for the same row) and waits until it runs."""
        provider = self._providers.get(node.provider)
        request = InstanceRequest(
            token=node.id,
            name=f"{cluster.name}-{node.rank}",
            offer=node.offer,
            tags=self._tags(cluster, node),
            resources=cluster.resources or ResourcesSpec(),
        )
        instance = await finish_even_if_cancelled(provider.create(request))
        await self._store.change_node(
            lease,
            node.id,
            instance_id=instance.id,
            address=instance.address,
            status=NodeStatus.STARTING.value,
        )
        node = replace(
            node, instance_id=instance.id, address=instance.address, status=NodeStatus.STARTING.value
        )
        return await self._wait_running(lease, node)

    async def resume(self, lease: Lease, node: NodeRow) -> NodeRow:
        """Starts a stopped instance and waits until it runs."""
        provider = self._providers.get(node.provider)
        await finish_even_if_cancelled(provider.start(node.instance_id))  # type: ignore[attr-defined]
        await self._store.change_node(lease, node.id, status=NodeStatus.STARTING.value)
        return await self._wait_running(lease, node)

    async def stop(self, lease: Lease, node: NodeRow) -> None:
        provider = self._providers.get(node.provider)
        assert node.instance_id
        await finish_even_if_cancelled(provider.stop(node.instance_id))  # type: ignore[attr-defined]

        async def stopped() -> bool | None:
            status = (await provider.get(node.instance_id or "")).status
            return True if status is InstanceStatus.STOPPED else None

        if await poll(stopped, clock=self._clock, timeout=self._limits.stopped) is None:
            raise ProviderError(f"node {node.rank}: {node.instance_id} did not stop in time")
        outcome = ended(node, self._clock.now(), taken=False)
        await self._store.change_node(
            lease,
            node.id,
            outcomes=[outcome] if outcome else [],
            status=NodeStatus.STOPPED.value,
            problem="",
            running_since=None,
        )

    async def start_agent(self, node: NodeRow) -> NodeInfo:
        """Until the agent answers; one that ends meanwhile is started again. Raises AgentUnreachable with what its log says."""
        provider, instance = self._providers.get(node.provider), instance_of(node)
        config = AgentConfig(
            node_id=node.id,
            token=self._deployment.agent_token(node.cluster_id),
            home="",
            heartbeat_seconds=self._heartbeat_seconds,
        )
        again, starts, start_at = Backoff(self._limits.agent_again, 30.0), 0, self._clock.monotonic()
        failure = AgentUnreachable(f"node {node.rank}: its agent did not answer")

        async def answers() -> NodeInfo | None:
            nonlocal failure, starts, start_at
            if self._clock.monotonic() >= start_at:
                await finish_even_if_cancelled(provider.bootstrap(instance, config))
                starts += 1
                start_at = self._clock.monotonic() + again.pause(starts)
            try:
                return await self.ask(node)
            except AgentUnreachable as error:
                failure = error
                return None

        info = await poll(answers, clock=self._clock, timeout=self._limits.agent, longest=0.5)
        if info is None:
            last_words = str(failure.details.get("log", "")).splitlines()[-1:]
            ending = f"; its log ends: {last_words[0]}" if last_words else ""
            raise AgentUnreachable(f"{failure.message}{ending}", details=failure.details)
        return info

    async def ask(self, node: NodeRow) -> NodeInfo:
        """Raises AgentUnreachable, also when something else answers there."""
        info = await (await self._agents.client(node)).info()
        if info.node_id != node.id:
            raise AgentUnreachable(
                f"node {node.rank}: the agent of another node ({info.node_id}) answers at its address"
            )
        return info

    async def join(
        self, cluster: ClusterRow, nodes: Sequence[NodeRow], infos: Sequence[NodeInfo], generation: int
    ) -> None:
        """Tells every agent who its peers are."""
        peers = tuple(
            Peer(rank=node.rank, node_id=node.id, address=node.address, url=info.url)
            for node, info in zip(nodes, infos, strict=True)
        )
        await all_or_first_error([self._tell(cluster, node, generation, peers) for node in nodes])

    async def _tell(
        self, cluster: ClusterRow, node: NodeRow, generation: int, peers: tuple[Peer, ...]
    ) -> None:
        client = await self._agents.client(node)
        await client.set_cluster(
            ClusterMembership(
                cluster_name=cluster.name,
                cluster_id=cluster.id,
                rank=node.rank,
                generation=generation,
                peers=peers,
            )
        )

    async def remove(self, lease: Lease, nodes: Sequence[NodeRow]) -> None:
        """Deletes their instances; each row goes once its absence is confirmed. All are tried before a failure is raised."""
        if not nodes:
            return
        await self._store.change_nodes(lease, [node.id for node in nodes], unwanted=True)
        await all_or_first_error([self._remove(lease, node) for node in nodes])

    async def _remove(self, lease: Lease, node: NodeRow) -> None:
        asked_at, taken = self._clock.now(), self._live.is_being_taken(node.id)
        for id in await self._instances_of(node):
            was_gone = await self._delete(node, id)
            taken = taken or (was_gone and not node.unwanted)
        outcome = ended(node, asked_at, taken=taken)
        await self._store.drop_node(lease, node.id, [outcome] if outcome else [])

    async def _delete(self, node: NodeRow, id: str) -> bool:
        """Until its absence is confirmed. True when it was absent at the first call."""
        provider = self._providers.get(node.provider)
        calls = 0

        async def gone() -> bool | None:
            nonlocal calls
            calls += 1
            try:
                await finish_even_if_cancelled(provider.delete(id))
            except InstanceNotFound:
                return True
            return None

        if await poll(gone, clock=self._clock, timeout=self._limits.gone) is None:
            raise ProviderError(f"node {node.rank}: {id} is still there after its deletion was asked for")
        return calls == 1

    async def _instances_of(self, node: NodeRow) -> list[str]:
        """Known by its row; else (we died between create and writing it down) looked for by its tag,
        until the provider's list must show it."""
        if node.instance_id:
            return [node.instance_id]
        provider = self._providers.get(node.provider)

        async def find() -> list[str] | None:
            listed = await provider.list(self._deployment.id)
            return [instance.id for instance in listed if instance.tags.get(NODE_TAG) == node.id] or None

        return await poll(find, clock=self._clock, timeout=provider.listing_delay_seconds) or []

    async def look(self, node: NodeRow) -> Instance | None:
        """The instance as the provider sees it; None once it is gone."""
        if not node.instance_id:
            return None
        try:
            return await self._providers.get(node.provider).get(node.instance_id)
        except InstanceNotFound:
            return None

    async def _wait_running(self, lease: Lease, node: NodeRow) -> NodeRow:
        provider = self._providers.get(node.provider)

        async def running() -> Instance | None:
            instance = await provider.get(node.instance_id or "")
            return instance if instance.status is InstanceStatus.RUNNING else None

        instance = await poll(running, clock=self._clock, timeout=self._limits.running)
        if instance is None:
            raise ProviderError(
                f"node {node.rank}: {node.instance_id} was not running after {self._limits.running:g} s"
            )
        if instance.address != node.address:
            await self._store.change_node(lease, node.id, address=instance.address)
        return replace(node, address=instance.address)

    def _tags(self, cluster: ClusterRow, node: NodeRow) -> dict[str, str]:
        labels = cluster.resources.labels if cluster.resources else {}
        own = {DEPLOYMENT_TAG: self._deployment.id, CLUSTER_TAG: cluster.id, NODE_TAG: node.id}
        return {**labels, **own}
