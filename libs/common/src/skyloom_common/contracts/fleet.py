"""Plans for many tasks at once under shared limits: quotas, reservations, budgets, spread. Dollars to finish, dollars per hour."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Optional

from skyloom_common.contracts.plan import (
    Breakdown,
    Candidate,
    DeniedPlace,
    Offer,
    Proof,
    QuotaPool,
    Reason,
    RunEstimate,
)
from skyloom_common.contracts.task.model import TaskSpec


@dataclass(frozen=True)
class Spread:
    """Not all in one place. `by`: cloud, region or zone. `max_share` of the copies in one place, in at least `min_places`."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    by: str = "region"
    max_share: float = 1.0
    min_places: int = 1


@dataclass(frozen=True)
class FleetTask:
    """`count` equal tasks. When not all fit, those with the higher `priority` are placed first."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    name: str
    task: TaskSpec
    count: int = 1
    run: RunEstimate = field(default_factory=RunEstimate)
    spread: Optional[Spread] = None
    priority: int = 0


@dataclass(frozen=True)
class Reservation:
    """Nodes that are paid for already, or cost `price_per_hour` when used. An empty zone: any of the region."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    name: str
    cloud: str
    region: str
    instance_type: str
    nodes: int
    zone: str = ""
    price_per_hour: float = 0.0


@dataclass(frozen=True)
class FleetPlanRequest:
    """Places all tasks at the same time, at the least expected cost. Kubernetes clusters come as `extra_offers` with quota pools
    for what they have free. `max_usd_per_hour`, `max_usd`: budgets of the whole fleet."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    tasks: tuple[FleetTask, ...]
    quotas: tuple[QuotaPool, ...] = ()
    reservations: tuple[Reservation, ...] = ()
    max_usd_per_hour: Optional[float] = None
    max_usd: Optional[float] = None
    enabled: Optional[tuple[str, ...]] = None
    extra_offers: tuple[Offer, ...] = ()
    blocked: tuple[dict[str, Any], ...] = ()
    denied: tuple[DeniedPlace, ...] = ()
    lacks: dict[str, tuple[str, ...]] = field(default_factory=dict)
    disk_usd_per_gib_month: dict[str, float] = field(default_factory=dict)
    max_gap: float = 0.005
    time_limit_seconds: float = 4.5


@dataclass(frozen=True)
class FleetGroup:
    """`count` copies of a task in one place; `reservation` names the one that carries them."""

    task: str
    count: int
    candidate: Candidate
    breakdown: Breakdown
    reservation: str = ""


@dataclass(frozen=True)
class Unplaced:
    task: str
    count: int
    reasons: tuple[Reason, ...] = ()


@dataclass(frozen=True)
class UnplacedProof:
    """Of a priority: `count` copies are unplaced for want of room; no plan leaves fewer than `bound`, those of higher priorities
    being as many as here."""

    priority: int
    count: int
    bound: int


@dataclass(frozen=True)
class PoolUse:
    """How much of a quota pool, reservation or budget the plan takes. `price`: dollars that one unit more would save."""

    name: str
    used: float
    limit: float
    price: Optional[float] = None


@dataclass(frozen=True)
class FleetPlan:
    """`groups` by task, cheapest first. What could not be placed is in `unplaced`, with the reason.

    `proof` is about cost, among plans that place as much; `unplaced_proof`, by priority, about how much can be placed.
    """

    groups: tuple[FleetGroup, ...] = ()
    unplaced: tuple[Unplaced, ...] = ()
    pools: tuple[PoolUse, ...] = ()
    usd: float = 0.0
    usd_per_hour: float = 0.0
    breakdown: Optional[Breakdown] = None
    proof: Optional[Proof] = None
    unplaced_proof: tuple[UnplacedProof, ...] = ()
    hints: tuple[str, ...] = ()
    considered: int = 0
    catalog_version: str = ""
