"""What the routes work with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from skyloom_common.clients.agent import AgentClient
from skyloom_common.core.errors import AgentUnreachable, ClusterNotUp
from skyloom_common.reconcile import Runner
from skyloom_provisioner.clusters.rows import ClusterState
from skyloom_provisioner.clusters.snapshot import ClusterSnapshot
from skyloom_provisioner.operations.context import Parts
from skyloom_provisioner.operations.signals import Signals

T = TypeVar("T")
AGENT_PATIENCE_SECONDS = 20.0


@dataclass(frozen=True)
class Service:
    parts: Parts
    runner: Runner
    signals: Signals
    snapshot: ClusterSnapshot

    async def up(self, name: str) -> ClusterState:
        state = await self.parts.clusters.get(name)
        if not state.cluster.is_up or state.head is None:
            raise ClusterNotUp(
                f"cluster {name!r} is {state.cluster.status}, this needs it UP",
                hint=f"Run `sky start {name}`.",
            )
        return state

    async def with_head(
        self,
        name: str,
        work: Callable[[AgentClient], Awaitable[T]],
        *,
        patience: float = AGENT_PATIENCE_SECONDS,
    ) -> T:
        """While its agent is being started again the caller waits instead of failing."""
        clock = self.parts.clock
        deadline, pause = clock.monotonic() + patience, 0.05
        while True:
            state = await self.up(name)
            assert state.head is not None
            try:
                return await work(await self.parts.agents.client(state.head))
            except AgentUnreachable:
                if clock.monotonic() > deadline:
                    raise
            self.runner.wake(name)
            await clock.sleep(pause)
            pause = min(pause * 1.5, 0.5)
