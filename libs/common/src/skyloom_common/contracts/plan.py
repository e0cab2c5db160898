"""Plans: offers in, ordered candidates and the reasons for the rest out. Prices are USD per node-hour."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Optional

from skyloom_common.contracts.task.model import TaskSpec


@dataclass(frozen=True)
class Offer:
    """Type x placement x capacity type, with a price. `price_per_hour` None = unknown (still launchable).

    `cloud` is a catalog cloud or a provider name such as "local", "kubernetes", "ssh". `source` and `as_of`
    say where the price comes from and its date (ISO).
    """

    cloud: str
    instance_type: str
    region: str = ""
    zone: str = ""
    vcpus: Optional[float] = None
    memory_gib: Optional[float] = None
    accelerator: Optional[str] = None
    accelerator_count: float = 0.0
    accelerator_memory_gib: Optional[float] = None
    use_spot: bool = False
    price_per_hour: Optional[float] = None
    arch: str = ""
    source: str = ""
    as_of: str = ""


@dataclass(frozen=True)
class PlanRequest:
    """`enabled` None = consider every cloud of the catalog; else only these (lower-case names).

    `extra_offers`: what providers without a price list can give now (this machine, own hosts, Kubernetes).
    `blocked`: places not to be tried again in this launch, each a partial Offer as {"cloud","region","zone","instance_type","use_spot"}
    where a missing key matches anything.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    task: TaskSpec
    enabled: Optional[tuple[str, ...]] = None
    extra_offers: tuple[Offer, ...] = ()
    blocked: tuple[dict[str, Any], ...] = ()
    objective: str = "cost"
    max_candidates: int = 50


@dataclass(frozen=True)
class Candidate:
    """An offer in its place in the order. `cost_per_hour` = price x nodes (None when unknown)."""

    offer: Offer
    num_nodes: int
    cost_per_hour: Optional[float]
    alternative: int = 0
    """Index into the task's merged alternatives that this satisfies."""
    reason: str = ""
    """Why it stands where it stands, for people."""


@dataclass(frozen=True)
class Rejection:
    """Why something is not a candidate; `count` offers share this reason. `code`: price, region, feature, not_enabled,
    capacity, quota, accelerator, size, blocked."""

    cloud: str
    code: str
    reason: str
    count: int = 1
    example: Optional[str] = None


@dataclass(frozen=True)
class Plan:
    """Immutable answer: candidates[0] is chosen. Empty candidates come with rejections that explain it."""

    candidates: tuple[Candidate, ...] = ()
    rejected: tuple[Rejection, ...] = ()
    considered: int = 0
    objective: str = "cost"
    total_cost_per_hour: Optional[float] = None
    hints: tuple[str, ...] = ()
    catalog_version: str = ""
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class AcceleratorOffer:
    """One row of `sky gpus list X`."""

    accelerator: str
    count: float
    cloud: str
    instance_type: str
    region: str = ""
    vcpus: Optional[float] = None
    memory_gib: Optional[float] = None
    accelerator_memory_gib: Optional[float] = None
    price_per_hour: Optional[float] = None
    spot_price_per_hour: Optional[float] = None
    as_of: str = ""


@dataclass(frozen=True)
class AcceleratorSummary:
    """One row of the overview. `family`: common, google_tpu, other."""

    accelerator: str
    family: str
    counts: tuple[float, ...]
    clouds: tuple[str, ...] = ()


@dataclass(frozen=True)
class AcceleratorList:
    """The overview (no name asked) fills `summaries`; a name fills `offers`."""

    summaries: tuple[AcceleratorSummary, ...] = ()
    offers: tuple[AcceleratorOffer, ...] = ()
    hints: tuple[str, ...] = ()


@dataclass(frozen=True)
class LaunchOutcome:
    """What became of one attempt; feeds the availability memory. `result`: ok, or an error code (insufficient_capacity, ...)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    cloud: str
    region: str
    zone: str
    instance_type: str
    use_spot: bool
    result: str
    at: float
    seconds_to_running: Optional[float] = None
    id: str = ""
    """Idempotency: the same id is recorded once."""
