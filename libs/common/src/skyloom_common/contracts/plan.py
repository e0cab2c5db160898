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
class RunEstimate:
    """What is known of the work. Nothing given: one hour that starts anew after an interruption.

    `hours_on`: other run times by accelerator or instance type ({"H100": 2, "A100": 5}).
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    hours: Optional[float] = None
    hours_on: dict[str, float] = field(default_factory=dict)
    checkpoint_minutes: Optional[float] = None
    restart_minutes: float = 6.0
    """From an interruption to the point where lost work begins to be done again."""


@dataclass(frozen=True)
class DeniedPlace:
    """What a policy forbids: a partial place as in `blocked`, and the policy's own words."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    reason: str
    cloud: str = ""
    region: str = ""
    zone: str = ""
    instance_type: str = ""
    use_spot: Optional[bool] = None


@dataclass(frozen=True)
class QuotaPool:
    """At most `limit` units at once in the offers it matches (empty = any). `unit`: nodes, vcpus, memory_gib or accelerators.

    A cloud's quota, the free capacity of a Kubernetes cluster, an administrator's limit.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    name: str
    limit: float
    unit: str = "nodes"
    cloud: str = ""
    region: str = ""
    zone: str = ""
    instance_type: str = ""
    accelerator: str = ""
    use_spot: Optional[bool] = None


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
    run: RunEstimate = field(default_factory=RunEstimate)
    denied: tuple[DeniedPlace, ...] = ()
    quotas: tuple[QuotaPool, ...] = ()
    lacks: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Cloud to features that its provider cannot give: ports, image, docker, volumes, local_disk, disk_tier_ultra, ..."""
    disk_usd_per_gib_month: dict[str, float] = field(default_factory=dict)
    """By cloud, or cloud/tier ("aws/high"); what is not named costs nothing extra."""


@dataclass(frozen=True)
class Reason:
    """Part of an explanation: a code for programs, a sentence for people, and the numbers in it."""

    code: str
    text: str
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Breakdown:
    """Dollars to finish. `restarts`: work done twice and starting again after interruptions, as expected."""

    compute: float = 0.0
    disk: float = 0.0
    egress: float = 0.0
    restarts: float = 0.0

    @property
    def total(self) -> float:
        return self.compute + self.disk + self.egress + self.restarts


@dataclass(frozen=True)
class Expectation:
    """What is to be expected of a candidate. `chance`: that a launch there succeeds now."""

    cost: Optional[float] = None
    """Dollars to finish, all nodes: price x (run + lost work + restarts) + disk; None when the price is not known."""
    run_hours: float = 1.0
    lost_hours: float = 0.0
    restart_hours: float = 0.0
    interruptions: float = 0.0
    chance: float = 1.0
    seconds_to_running: float = 0.0


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
    reasons: tuple[Reason, ...] = ()
    """The same with numbers, for programs; the first one decides."""
    expected: Optional[Expectation] = None


@dataclass(frozen=True)
class Rejection:
    """Why something is not a candidate; `count` offers share this reason. `code`: price, region, feature, not_enabled,
    capacity, quota, policy, accelerator, size, blocked."""

    cloud: str
    code: str
    reason: str
    count: int = 1
    example: Optional[str] = None
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Conflict:
    """Requirements that cannot hold together; without any one of them the rest can. `fields` as a user writes them."""

    fields: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Proof:
    """How good an answer is: `value` is its objective, nothing better than `bound` exists. gap = (value - bound) / value."""

    value: float
    bound: float
    gap: float = 0.0
    method: str = ""

    @property
    def optimal(self) -> bool:
        return self.gap <= 1e-6


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
    conflicts: tuple[Conflict, ...] = ()
    """Of a plan without candidates: minimal sets of requirements that contradict each other, smallest first."""
    proof: Optional[Proof] = None
    breakdown: Optional[Breakdown] = None
    """Expected dollars to finish on the first candidate."""


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
    source: str = ""
    """Where the price comes from; "own" for this deployment's own list."""
    age_days: Optional[int] = None


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
    """What became of one attempt; feeds the availability memory. `result`: ok, or an error code (insufficient_capacity, ...);
    later "interrupted" or "ended" when the node is gone."""

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
    ran_seconds: Optional[float] = None
    """With result "interrupted" or "ended": how long the node ran until the cloud took it, or we gave it back."""
