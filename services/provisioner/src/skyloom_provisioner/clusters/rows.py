"""Clusters and nodes as their rows."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from sqlalchemy import Row

from skyloom_common.contracts.clusters import ClusterStatus
from skyloom_common.contracts.plan import Offer
from skyloom_common.contracts.task.model import AutostopSpec, ResourcesSpec

R = TypeVar("R", bound="_Row")


class Goal(enum.StrEnum):
    """What the upkeep works towards; a launch that undoes itself leaves it to its operation."""

    UP = "up"
    STOPPED = "stopped"
    GONE = "gone"


class NodeStatus(enum.StrEnum):
    PENDING = "PENDING"
    STARTING = "STARTING"
    UP = "UP"
    UNREACHABLE = "UNREACHABLE"
    STOPPED = "STOPPED"
    TERMINATED = "TERMINATED"


class _Row:
    @classmethod
    def of(cls, row: Row[Any]) -> Self:
        known = row._mapping
        return cls(**{name: known[name] for name in cls.__dataclass_fields__})  # type: ignore[attr-defined]


@dataclass(frozen=True)
class ClusterRow(_Row):
    id: str
    name: str
    user: str
    status: str
    status_message: str
    unhealthy: bool
    goal: str
    num_nodes: int
    created_by: str
    launched_at: float
    up_since: float | None
    status_updated_at: float
    resources: ResourcesSpec | None
    offer: Offer | None
    autostop: AutostopSpec | None
    autostop_set_at: float | None
    membership_generation: int
    last_use: str
    last_event: str
    version: int

    @property
    def is_up(self) -> bool:
        return self.status in (ClusterStatus.UP.value, ClusterStatus.AUTOSTOPPING.value)


@dataclass(frozen=True)
class NodeRow(_Row):
    """`unwanted`: it is being deleted; its row goes when its absence is confirmed.

    `running_since`: when its cluster came up with it; None before that, and once its end was written down.
    """

    id: str
    cluster_id: str
    rank: int
    provider: str
    offer: Offer
    status: str
    unwanted: bool
    instance_id: str | None
    address: str
    problem: str
    created_by: str
    created_at: float
    last_seen_at: float | None
    running_since: float | None
    version: int


@dataclass(frozen=True)
class ClusterState:
    """A cluster with its wanted nodes by rank, and those on their way out."""

    cluster: ClusterRow
    nodes: tuple[NodeRow, ...]
    leaving: tuple[NodeRow, ...] = ()

    @property
    def head(self) -> NodeRow | None:
        return next((node for node in self.nodes if node.rank == 0), None)
