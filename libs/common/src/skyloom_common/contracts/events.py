"""Events on the bus: `noun.past_participle`. They wake; they never carry truth (readers go to the store or the service)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

OPERATION_CREATED = "operation.created"
OPERATION_ADVANCED = "operation.advanced"
OPERATION_CANCEL_REQUESTED = "operation.cancel_requested"
CLUSTER_CHANGED = "cluster.changed"
NODE_LOST = "node.lost"
NODE_INTERRUPTED = "node.interrupted"
LAUNCH_ATTEMPTED = "launch.attempted"


@dataclass(frozen=True)
class Event:
    """`key` is what changed (operation id, cluster id, node id); `generation` its version when known."""

    id: str
    kind: str
    key: str
    at: float
    generation: int = 0
    data: dict[str, Any] = field(default_factory=dict)
