"""The reconciler of one cluster: first what users asked for, in their order; then health; then autostop.

It is called when something happened, when a deadline comes, and now and then; it never relies on being told what happened.
"""

from __future__ import annotations

from typing import Any

from skyloom_common.contracts.clusters import ClusterStatus
from skyloom_common.core.errors import AgentUnreachable
from skyloom_common.reconcile import DONE, Result
from skyloom_common.store.lease import Lease, LeaseKeeper
from skyloom_provisioner.clusters.idle import autostop_now
from skyloom_provisioner.clusters.rows import ClusterState, Goal
from skyloom_provisioner.operations.context import Parts
from skyloom_provisioner.operations.executor import Executor
from skyloom_provisioner.operations.rows import DOWN, STOP
from skyloom_provisioner.operations.store import NewOperation

LEASE_RETRY_SECONDS = 2.0
WORK_LOOK_SECONDS = 2.0
"""How long an operation that another replica took in may wait while no bus tells of it."""


class ClusterReconciler:
    def __init__(self, parts: Parts, executor: Executor, keeper: LeaseKeeper) -> None:
        self._parts = parts
        self._executor = executor
        self._keeper = keeper

    async def keys(self) -> set[str]:
        return {*await self._parts.clusters.names(), *await self._parts.operations.unfinished_targets()}

    async def reconcile(self, name: str) -> Result:
        lease = await self._keeper.acquire(name)
        if lease is None:
            self._parts.watches.drop(name)
            return Result(after=LEASE_RETRY_SECONDS)
        while (row := await self._parts.operations.next_for(name)) is not None:
            await self._executor.run(row, lease)
        state = await self._parts.clusters.find(name)
        if state is None:
            self._parts.watches.drop(name)
            await self._keeper.release(lease)
            return DONE
        if state.cluster.goal != Goal.UP.value:
            return DONE
        return await self._keep_up(lease, state)

    async def _keep_up(self, lease: Lease, state: ClusterState) -> Result:
        silent = self._parts.watches.silent(state)
        if silent or not state.cluster.is_up:
            state = await self._recover(lease, state, silent_before=bool(silent))
        decision = autostop_now(self._parts.clock, self._parts.live, state)
        if decision.action is not None:
            await self._begin_autostop(lease, state, decision.action, decision.reason)
            return Result(after=0)
        return Result(after=decision.check_after)

    async def _recover(self, lease: Lease, state: ClusterState, *, silent_before: bool) -> ClusterState:
        """Raises AgentUnreachable while something is wrong, so that the runner looks again, ever less often."""
        health = await self._parts.reviver.revive(lease, state)
        current = await self._parts.clusters.find(state.cluster.name)
        if current is None or not health.healthy:
            raise AgentUnreachable(f"cluster {state.cluster.name}: {health.message}")
        self._parts.watches.watch(current, lease)
        return current

    async def _begin_autostop(self, lease: Lease, state: ClusterState, action: str, reason: str) -> None:
        """An operation like any other: durable, in line behind what users asked for before, with events."""
        cluster = state.cluster
        sentence = f"autostop: {reason}"
        await self._parts.clusters.change(
            lease, cluster, status=ClusterStatus.AUTOSTOPPING.value, last_event=sentence
        )
        request: dict[str, Any] = {"automatic": sentence}
        kind = DOWN if action == "down" else STOP
        fingerprint = self._parts.deployment.fingerprint([kind, cluster.name, request])
        await self._parts.operations.create(
            NewOperation(kind, cluster.name, cluster.user, request, fingerprint=fingerprint)
        )
