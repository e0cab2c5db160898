"""One task per node that holds the agent's heartbeat stream, feeds the live view and writes down what matters.

Nothing is written for a heartbeat that brings nothing new. When a stream ends, the task ends and the cluster is woken:
whether the node is lost is not decided here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from skyloom_common.contracts.agent import Heartbeat
from skyloom_common.core.clock import Clock
from skyloom_common.core.errors import SkyloomError
from skyloom_common.store.lease import Lease, LeaseLost
from skyloom_provisioner.clusters.rows import ClusterState, NodeRow
from skyloom_provisioner.clusters.store import ClusterStore
from skyloom_provisioner.nodes.agents import AgentPool
from skyloom_provisioner.nodes.live import LiveView

_log = logging.getLogger(__name__)
SILENCE_SECONDS = 30.0
"""A stream without a heartbeat for so long is as good as broken."""
LAST_SEEN_SECONDS = 30.0


class NodeWatches:
    def __init__(
        self,
        agents: AgentPool,
        clusters: ClusterStore,
        live: LiveView,
        clock: Clock,
        wake: Callable[[str], None],
        *,
        heartbeat_seconds: float = 5.0,
    ) -> None:
        self._agents = agents
        self._clusters = clusters
        self._live = live
        self._clock = clock
        self._wake = wake
        self._silence = max(SILENCE_SECONDS, 4 * heartbeat_seconds)
        self._tasks: dict[str, dict[str, asyncio.Task[None]]] = {}
        self._seen: set[str] = set()
        self._flush: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._flush = asyncio.create_task(self._keep_last_seen(), name="last-seen")

    def watch(self, state: ClusterState, lease: Lease) -> None:
        """Every wanted node is watched, and no other of this cluster."""
        tasks = self._tasks.setdefault(state.cluster.name, {})
        wanted = {node.id: node for node in state.nodes}
        for node_id in [id for id in tasks if id not in wanted]:
            tasks.pop(node_id).cancel()
        for node in state.nodes:
            task = tasks.get(node.id)
            if task is None or task.done():
                tasks[node.id] = asyncio.create_task(
                    self._watch(state.cluster.name, state.cluster.id, node, lease), name=f"watch:{node.id}"
                )

    def silent(self, state: ClusterState) -> list[NodeRow]:
        """Nodes whose stream is not open now."""
        tasks = self._tasks.get(state.cluster.name, {})
        return [node for node in state.nodes if node.id not in tasks or tasks[node.id].done()]

    def drop(self, cluster: str) -> None:
        for task in self._tasks.pop(cluster, {}).values():
            task.cancel()

    def drop_all(self) -> None:
        for cluster in list(self._tasks):
            self.drop(cluster)

    async def stop(self) -> None:
        tasks = [task for of_cluster in self._tasks.values() for task in of_cluster.values()]
        if self._flush is not None:
            tasks.append(self._flush)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks.clear()

    async def _watch(self, cluster: str, cluster_id: str, node: NodeRow, lease: Lease) -> None:
        try:
            client = await self._agents.client(node)
            async with contextlib.aclosing(client.watch()) as heartbeats:  # type: ignore[type-var]
                while True:
                    async with asyncio.timeout(self._silence):
                        heartbeat = await anext(heartbeats)
                    await self._hear(cluster, cluster_id, node, lease, heartbeat)
        except (SkyloomError, TimeoutError, StopAsyncIteration) as error:
            if not isinstance(error, LeaseLost):
                _log.info("the heartbeats of node %s of %s ended: %s", node.rank, cluster, error)
            asyncio.get_running_loop().call_soon(self._wake, cluster)

    async def _hear(
        self, cluster: str, cluster_id: str, node: NodeRow, lease: Lease, heartbeat: Heartbeat
    ) -> None:
        if heartbeat.node_id != node.id:
            raise SkyloomError(
                f"a heartbeat of node {heartbeat.node_id} came from the address of node {node.id}"
            )
        known = self._live.nodes.get(node.id)
        before = known.heartbeat if known else None
        self._live.hear(node.id, heartbeat)
        self._seen.add(node.id)
        if heartbeat.jobs:
            await self._clusters.save_jobs(lease, cluster_id, heartbeat.jobs)
        problem = heartbeat.problem or (heartbeat.interruption or "")
        if problem != (node.problem if before is None else before.problem or (before.interruption or "")):
            await self._clusters.change_node(lease, node.id, problem=problem)
        if node.rank == 0 and (before is None or before.active_jobs != heartbeat.active_jobs):
            self._wake(cluster)

    async def _keep_last_seen(self) -> None:
        while True:
            await self._clock.sleep(LAST_SEEN_SECONDS)
            seen, self._seen = self._seen, set()
            ages = {id: self._live.age(id) for id in seen}
            now = self._clock.now()
            if seen:
                try:
                    await self._clusters.save_last_seen(
                        {id: now - age for id, age in ages.items() if age is not None}
                    )
                except SkyloomError as error:
                    _log.warning("last-seen times were not saved: %s", error)
