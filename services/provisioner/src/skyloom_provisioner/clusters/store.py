"""Reads and writes of clusters, nodes, cached jobs and the cost ledger. Runners' writes are fenced by the cluster's lease."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from skyloom_common.contracts.jobs import Job
from skyloom_common.contracts.plan import LaunchOutcome, Offer
from skyloom_common.core.clock import Clock
from skyloom_common.core.errors import ClusterDoesNotExist
from skyloom_common.core.ids import new_id
from skyloom_common.store import Database, update_versioned
from skyloom_common.store.lease import Lease, LeaseKeeper
from skyloom_provisioner.clusters.rows import ClusterRow, ClusterState, NodeRow, NodeStatus
from skyloom_provisioner.outcomes.outbox import add_outcomes_in
from skyloom_provisioner.tables import clusters, jobs, nodes, usage


class ClusterStore:
    """`on_change(name)` is told after every commit that changes what clients see. `version` counts those commits here.

    `outcomes` of a write are added to the outbox in its transaction; `on_outcome()` is told once it is committed.
    """

    def __init__(self, database: Database, keeper: LeaseKeeper, clock: Clock) -> None:
        self.database = database
        self._keeper = keeper
        self._clock = clock
        self.version = 0
        self.on_change: Callable[[str], None] = lambda name: None
        self.on_outcome: Callable[[], None] = lambda: None

    # --- reads ---

    async def find(self, name: str) -> ClusterState | None:
        async with self.database.read() as connection:
            found = await self._states(connection, clusters.c.name == name)
        return found[0] if found else None

    async def get(self, name: str) -> ClusterState:
        state = await self.find(name)
        if state is None:
            raise ClusterDoesNotExist(
                f"cluster {name!r} does not exist", hint="Run `sky status` to see which do."
            )
        return state

    async def all(self) -> list[ClusterState]:
        async with self.database.read() as connection:
            return await self._states(connection, None)

    async def names(self) -> list[str]:
        async with self.database.read() as connection:
            return [row.name for row in (await connection.execute(select(clusters.c.name))).all()]

    async def node_ids(self) -> set[str]:
        async with self.database.read() as connection:
            return {row.id for row in (await connection.execute(select(nodes.c.id))).all()}

    async def cached_jobs(self, cluster_id: str) -> list[Job]:
        query = select(jobs.c.job).where(jobs.c.cluster_id == cluster_id).order_by(jobs.c.job_id.desc())
        async with self.database.read() as connection:
            return [row.job for row in (await connection.execute(query)).all()]

    async def usage_since(self, since: float | None) -> list[Any]:
        query = select(usage).order_by(usage.c.from_at.desc())
        if since is not None:
            query = query.where((usage.c.to_at.is_(None)) | (usage.c.to_at >= since))
        async with self.database.read() as connection:
            return list((await connection.execute(query)).all())

    async def _states(self, connection: AsyncConnection, where: Any) -> list[ClusterState]:
        """One query: clusters with their nodes."""
        query = select(clusters).order_by(clusters.c.launched_at, clusters.c.id)
        of_nodes = select(nodes).order_by(nodes.c.rank, nodes.c.created_at)
        if where is not None:
            query = query.where(where)
            of_nodes = of_nodes.where(nodes.c.cluster_id.in_(select(clusters.c.id).where(where)))
        rows = [ClusterRow.of(row) for row in (await connection.execute(query)).all()]
        by_cluster: dict[str, list[NodeRow]] = defaultdict(list)
        for row in (await connection.execute(of_nodes)).all() if rows else ():
            by_cluster[row.cluster_id].append(NodeRow.of(row))
        return [
            ClusterState(
                row,
                tuple(node for node in by_cluster[row.id] if not node.unwanted),
                tuple(node for node in by_cluster[row.id] if node.unwanted),
            )
            for row in rows
        ]

    # --- fenced writes ---

    async def add_cluster(self, lease: Lease, values: dict[str, Any]) -> None:
        async with self.database.write() as connection:
            await self._keeper.fence(connection, lease)
            await connection.execute(insert(clusters).values(**values, version=1))
        self._changed(lease)

    async def change(self, lease: Lease, cluster: ClusterRow, **values: Any) -> None:
        """Compare-and-set on the row that was read. Raises VersionConflict, LeaseLost."""
        await self.change_in_one(lease, cluster, values)

    async def change_in_one(
        self,
        lease: Lease,
        cluster: ClusterRow,
        values: dict[str, Any],
        *,
        new_nodes: Iterable[dict[str, Any]] = (),
        also: Callable[[AsyncConnection], Any] | None = None,
    ) -> None:
        """The cluster's change, new node rows and whatever `also` writes, in one transaction."""
        if "status" in values and values["status"] != cluster.status:
            values = {"status_updated_at": self._clock.now(), **values}
        async with self.database.write() as connection:
            await self._keeper.fence(connection, lease)
            await update_versioned(connection, clusters, {"id": cluster.id}, values, expected=cluster.version)
            for row in new_nodes:
                await connection.execute(insert(nodes).values(**row, version=1))
            if also is not None:
                await also(connection)
        self._changed(lease)

    async def change_node(
        self, lease: Lease, node_id: str, *, outcomes: Sequence[LaunchOutcome] = (), **values: Any
    ) -> None:
        await self.change_nodes(lease, [node_id], outcomes=outcomes, **values)

    async def change_nodes(
        self,
        lease: Lease,
        node_ids: Iterable[str],
        *,
        outcomes: Sequence[LaunchOutcome] = (),
        also: Callable[[AsyncConnection], Any] | None = None,
        **values: Any,
    ) -> None:
        statement = (
            update(nodes).where(nodes.c.id.in_(list(node_ids))).values(**values, version=nodes.c.version + 1)
        )
        async with self.database.write() as connection:
            await self._keeper.fence(connection, lease)
            await connection.execute(statement)
            await add_outcomes_in(connection, outcomes)
            if also is not None:
                await also(connection)
        self._changed(lease)
        self._told_of(outcomes)

    async def nodes_up(
        self, lease: Lease, node_ids: Iterable[str], outcomes: Sequence[LaunchOutcome]
    ) -> None:
        """They are part of the cluster now; those that were before run since then."""
        now = self._clock.now()
        await self.change_nodes(
            lease,
            node_ids,
            outcomes=outcomes,
            status=NodeStatus.UP.value,
            problem="",
            last_seen_at=now,
            running_since=func.coalesce(nodes.c.running_since, now),
        )

    async def drop_node(self, lease: Lease, node_id: str, outcomes: Sequence[LaunchOutcome] = ()) -> None:
        """Only after the absence of its instance was confirmed."""
        async with self.database.write() as connection:
            await self._keeper.fence(connection, lease)
            await connection.execute(delete(nodes).where(nodes.c.id == node_id))
            await add_outcomes_in(connection, outcomes)
        self._changed(lease)
        self._told_of(outcomes)

    async def report(self, lease: Lease, outcomes: Sequence[LaunchOutcome]) -> None:
        """Outcomes of something that changes no row."""
        async with self.database.write() as connection:
            await self._keeper.fence(connection, lease)
            await add_outcomes_in(connection, outcomes)
        self._told_of(outcomes)

    async def drop_cluster(self, lease: Lease, cluster_id: str) -> None:
        """Its ledger rows stay; they are closed."""
        async with self.database.write() as connection:
            await self._keeper.fence(connection, lease)
            await self.close_usage_in(connection, cluster_id)
            await connection.execute(delete(nodes).where(nodes.c.cluster_id == cluster_id))
            await connection.execute(delete(jobs).where(jobs.c.cluster_id == cluster_id))
            await connection.execute(delete(clusters).where(clusters.c.id == cluster_id))
        self._changed(lease)

    async def save_jobs(self, lease: Lease, cluster_id: str, changed: Iterable[Job]) -> None:
        """A job of a lower version than the stored one is late news and is dropped."""
        async with self.database.write() as connection:
            await self._keeper.fence(connection, lease)
            for job in changed:
                await self._save_job(connection, cluster_id, job)

    async def _save_job(self, connection: AsyncConnection, cluster_id: str, job: Job) -> None:
        key = (jobs.c.cluster_id == cluster_id) & (jobs.c.job_id == job.job_id)
        values = {"status": job.status.value, "version": job.version, "job": job}
        known = await connection.scalar(select(jobs.c.version).where(key))
        if known is None:
            await connection.execute(insert(jobs).values(cluster_id=cluster_id, job_id=job.job_id, **values))
        elif known < job.version:
            await connection.execute(update(jobs).where(key).values(**values))

    async def save_last_seen(self, seen: dict[str, float]) -> None:
        """Coarse and unfenced: a wrong value only shows an age."""
        async with self.database.write() as connection:
            for node_id, at in seen.items():
                await connection.execute(update(nodes).where(nodes.c.id == node_id).values(last_seen_at=at))

    # --- the ledger ---

    async def open_usage_in(
        self, connection: AsyncConnection, cluster: ClusterRow, offer: Offer, num_nodes: int, resources: str
    ) -> None:
        """The price is written down now; a bill is never made of a later catalog."""
        price = None if offer.price_per_hour is None else offer.price_per_hour * num_nodes
        await self.close_usage_in(connection, cluster.id)
        await connection.execute(
            insert(usage).values(
                id=new_id(),
                cluster_id=cluster.id,
                cluster_name=cluster.name,
                user=cluster.user,
                num_nodes=num_nodes,
                resources=resources,
                price_per_hour=price,
                from_at=self._clock.now(),
            )
        )

    async def close_usage_in(self, connection: AsyncConnection, cluster_id: str) -> None:
        open_rows = (usage.c.cluster_id == cluster_id) & usage.c.to_at.is_(None)
        await connection.execute(update(usage).where(open_rows).values(to_at=self._clock.now()))

    async def forget_usage(self, lease: Lease, cluster_id: str) -> None:
        """Nothing of this cluster was ever rented."""
        async with self.database.write() as connection:
            await self._keeper.fence(connection, lease)
            await connection.execute(delete(usage).where(usage.c.cluster_id == cluster_id))

    def _changed(self, lease: Lease) -> None:
        self.version += 1
        self.on_change(lease.key)

    def _told_of(self, outcomes: Sequence[LaunchOutcome]) -> None:
        if outcomes:
            self.on_outcome()


def new_node(cluster_id: str, rank: int, offer: Offer, operation_id: str, now: float) -> dict[str, Any]:
    """The intent: this row exists before anything is asked of the provider, and its id is the token."""
    return {
        "id": new_id(),
        "cluster_id": cluster_id,
        "rank": rank,
        "provider": offer.cloud,
        "offer": offer,
        "status": NodeStatus.PENDING.value,
        "unwanted": False,
        "created_by": operation_id,
        "created_at": now,
    }
