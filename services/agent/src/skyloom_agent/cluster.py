"""Which nodes the cluster has, how each is reached and what each hands out. Kept in home/.sky/cluster.json."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Optional

from skyloom_agent.nodes import LocalNode, Node, RemoteNode
from skyloom_agent.paths import Paths, write_atomic
from skyloom_agent.schedule import NodeCapacity
from skyloom_common.contracts.agent import ClusterMembership, NodeInfo, Peer
from skyloom_common.core import wire
from skyloom_common.core.errors import Conflict, InvalidRequest, SkyloomError, Unavailable

log = logging.getLogger(__name__)
ASK_AGAIN_SECONDS = 1.0


@dataclass(frozen=True)
class _Kept:
    membership: ClusterMembership
    capacities: tuple[NodeCapacity, ...] = ()


class Cluster:
    """`on_change` is called when the membership changed or a node's capacity became known."""

    def __init__(self, paths: Paths, token: str, local: LocalNode, on_change: Callable[[], None]) -> None:
        self._paths = paths
        self._token = token
        self._local = local
        self._on_change = on_change
        self._asking: Optional[asyncio.Task[None]] = None
        self.membership: Optional[ClusterMembership] = None
        self.capacities: dict[int, NodeCapacity] = {}

    def load(self) -> None:
        if self._paths.cluster.exists():
            kept = wire.loads(_Kept, self._paths.cluster.read_bytes())
            self.membership = kept.membership
            self.capacities = {capacity.rank: capacity for capacity in kept.capacities}
            self._ask()

    @property
    def is_head(self) -> bool:
        return self.membership is not None and self.membership.rank == 0

    @property
    def size(self) -> int:
        return len(self.membership.peers) if self.membership else 0

    def require_head(self) -> ClusterMembership:
        if self.membership is None:
            raise Conflict("this node belongs to no cluster yet")
        if self.membership.rank != 0:
            raise Conflict(f"this node has rank {self.membership.rank}; jobs are the head's (rank 0)")
        return self.membership

    def join(self, membership: ClusterMembership) -> ClusterMembership:
        known = self.membership
        if known and known.cluster_id == membership.cluster_id and membership.generation < known.generation:
            raise Conflict(f"generation: {membership.generation} is older than the known {known.generation}")
        _check(membership)
        if known != membership:
            self._forget_changed(known, membership)
            try:
                self._save(membership)
            except OSError as error:
                raise Unavailable(f"the membership cannot be kept: {error.strerror}") from error
            self.membership = membership
            self._ask()
            self._on_change()
        return membership

    def node(self, rank: int) -> Node:
        """The node as it is reached now: its address may have changed since the last call."""
        if self.membership is None:
            raise Conflict("this node belongs to no cluster yet")
        if rank == self.membership.rank:
            return self._local
        return RemoteNode(self.peer(rank).url, self._token)

    def peer(self, rank: int) -> Peer:
        for peer in self.membership.peers if self.membership else ():
            if peer.rank == rank:
                return peer
        raise Conflict(f"the cluster has no node {rank} any more")

    def addresses(self) -> list[str]:
        peers = self.membership.peers if self.membership else ()
        return [peer.address for peer in sorted(peers, key=lambda peer: peer.rank)]

    def close(self) -> None:
        if self._asking:
            self._asking.cancel()

    def _forget_changed(self, old: Optional[ClusterMembership], new: ClusterMembership) -> None:
        before = {peer.rank: peer.node_id for peer in old.peers} if old else {}
        now = {peer.rank: peer.node_id for peer in new.peers}
        for rank in list(self.capacities):
            if before.get(rank) != now.get(rank):
                del self.capacities[rank]

    def _save(self, membership: ClusterMembership) -> None:
        kept = _Kept(membership, tuple(self.capacities.values()))
        write_atomic(self._paths.cluster, wire.dumps(kept))

    def _ask(self) -> None:
        self.close()
        if self.is_head:
            self._asking = asyncio.get_running_loop().create_task(self._ask_all())

    async def _ask_all(self) -> None:
        """Every node is asked what it has until it answers."""
        assert self.membership is not None
        await asyncio.gather(*(self._ask_one(peer.rank) for peer in self.membership.peers))

    async def _ask_one(self, rank: int) -> None:
        while True:
            try:
                info = await self.node(rank).info()
                break
            except SkyloomError as error:
                log.info("node %s: %s", rank, error)
                await asyncio.sleep(ASK_AGAIN_SECONDS)
        capacity = capacity_of(rank, info)
        if self.capacities.get(rank) != capacity and self.membership is not None:
            self.capacities[rank] = capacity
            try:
                self._save(self.membership)
            except OSError as error:
                log.warning("the cluster file cannot be written: %s", error)
            self._on_change()


def capacity_of(rank: int, info: NodeInfo) -> NodeCapacity:
    names = tuple(gpu.visible_as or str(gpu.index) for gpu in info.gpus)
    return NodeCapacity(rank, info.cpus, info.memory_gib, len(info.gpus), names)


def _check(membership: ClusterMembership) -> None:
    ranks = sorted(peer.rank for peer in membership.peers)
    if ranks != list(range(len(ranks))) or membership.rank not in ranks:
        raise InvalidRequest(
            f"peers: ranks {ranks} with own rank {membership.rank}; they count from 0 without a gap and include the own one",
            details={"field": "peers"},
        )
