"""What the agents said last, in memory: ages, use, idleness. Gone with the process; heard again within a heartbeat."""

from __future__ import annotations

from dataclasses import dataclass, field

from skyloom_common.contracts.agent import Heartbeat
from skyloom_common.core.clock import Clock


@dataclass(frozen=True)
class LiveNode:
    heartbeat: Heartbeat
    received: float
    """Monotonic."""


@dataclass
class LiveView:
    clock: Clock
    nodes: dict[str, LiveNode] = field(default_factory=dict)
    _awaited: dict[str, int] = field(default_factory=dict)

    def hear(self, node_id: str, heartbeat: Heartbeat) -> None:
        self.nodes[node_id] = LiveNode(heartbeat, self.clock.monotonic())
        awaited = self._awaited.get(node_id)
        if awaited is not None and any(job.job_id >= awaited for job in heartbeat.jobs):
            del self._awaited[node_id]

    def submitted(self, head_id: str, job_id: int) -> None:
        """Until a heartbeat tells of this job, the head is not idle, whatever older heartbeats said."""
        self._awaited[head_id] = job_id

    def forget(self, node_id: str) -> None:
        self.nodes.pop(node_id, None)
        self._awaited.pop(node_id, None)

    def is_being_taken(self, node_id: str) -> bool:
        """The cloud has announced that it takes the machine back."""
        live = self.nodes.get(node_id)
        return live is not None and live.heartbeat.interruption is not None

    def age(self, node_id: str) -> float | None:
        live = self.nodes.get(node_id)
        return None if live is None else max(0.0, self.clock.monotonic() - live.received)

    def idle(self, head_id: str, *, stale_after: float) -> tuple[float, float] | None:
        """(without jobs, without jobs and SSH) in seconds, as of now; None when the head was not heard lately."""
        live, age = self.nodes.get(head_id), self.age(head_id)
        if live is None or age is None or age > stale_after:
            return None
        if live.heartbeat.active_jobs or head_id in self._awaited:
            return 0.0, 0.0
        ssh = live.heartbeat.idle_jobs_and_ssh_seconds
        return live.heartbeat.idle_jobs_seconds + age, ssh + age if ssh else 0.0
