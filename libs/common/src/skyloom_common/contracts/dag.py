"""Plans for several tasks that pass data on: a graph of tasks in, one place for each out. Dollars, hours, GiB."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Optional

from skyloom_common.contracts.plan import (
    Breakdown,
    Candidate,
    Conflict,
    DeniedPlace,
    Offer,
    Proof,
    QuotaPool,
    Rejection,
    RunEstimate,
)
from skyloom_common.contracts.task.model import TaskSpec


@dataclass(frozen=True)
class DagTask:
    """A node of the graph. Its task's `inputs` and `outputs` (bucket URI to GB) are data that stays where the bucket is."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    name: str
    task: TaskSpec
    run: RunEstimate = field(default_factory=RunEstimate)


@dataclass(frozen=True)
class DagEdge:
    """`target` starts after `source` ended and reads `gib` from it."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    source: str
    target: str
    gib: float = 0.0


@dataclass(frozen=True)
class Bucket:
    """Where a bucket that tasks name is. A region may be empty: then only its cloud is known."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    uri: str
    cloud: str
    region: str = ""


@dataclass(frozen=True)
class DagPlanRequest:
    """`objective`: cost, time, both (an even compromise between the cheapest and the fastest), or weighted, where an hour
    of the whole graph's time is worth `usd_per_hour`. `quotas` hold for each task by itself. See PlanRequest for the rest."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    tasks: tuple[DagTask, ...]
    edges: tuple[DagEdge, ...] = ()
    buckets: tuple[Bucket, ...] = ()
    objective: str = "cost"
    usd_per_hour: float = 0.0
    gbits_per_second: float = 10.0
    """Between regions; inside a region data is there at once."""
    enabled: Optional[tuple[str, ...]] = None
    extra_offers: tuple[Offer, ...] = ()
    blocked: tuple[dict[str, Any], ...] = ()
    denied: tuple[DeniedPlace, ...] = ()
    quotas: tuple[QuotaPool, ...] = ()
    lacks: dict[str, tuple[str, ...]] = field(default_factory=dict)
    disk_usd_per_gib_month: dict[str, float] = field(default_factory=dict)
    time_limit_seconds: float = 10.0


@dataclass(frozen=True)
class Placement:
    """A task in its place. `start_hours`: from the beginning of the graph, its data having arrived."""

    task: str
    candidate: Candidate
    breakdown: Breakdown
    start_hours: float = 0.0
    end_hours: float = 0.0
    reason: str = ""


@dataclass(frozen=True)
class Transfer:
    """Data that moves between two places; a bucket's URI stands where one end is a bucket."""

    source: str
    target: str
    gib: float
    usd: float
    hours: float = 0.0


@dataclass(frozen=True)
class DagPoint:
    """The ends that "both" weighs: what the cheapest and the fastest plan would give."""

    objective: str
    usd: float
    hours: float


@dataclass(frozen=True)
class DagPlan:
    """`placements` in an order in which the tasks can run. Empty: the hints say which task has no place, and why."""

    placements: tuple[Placement, ...] = ()
    transfers: tuple[Transfer, ...] = ()
    objective: str = "cost"
    usd: Optional[float] = None
    hours: Optional[float] = None
    breakdown: Optional[Breakdown] = None
    proof: Optional[Proof] = None
    points: tuple[DagPoint, ...] = ()
    rejected: dict[str, tuple[Rejection, ...]] = field(default_factory=dict)
    """By task; of the tasks without a place."""
    conflicts: tuple[Conflict, ...] = ()
    hints: tuple[str, ...] = ()
    considered: int = 0
    catalog_version: str = ""
