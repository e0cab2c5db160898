"""What the optimizer's catalog holds, with the age and origin of its prices."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Optional


@dataclass(frozen=True)
class CatalogCloud:
    """Counts of one cloud. `oldest`, `newest`: dates of its prices (ISO, as exact as the source has them)."""

    name: str
    offers: int
    instance_types: int
    regions: int
    priced: int
    spot_priced: int
    oldest: str = ""
    newest: str = ""
    age_days: Optional[int] = None
    """Days since the newest of its prices was seen; None where no price has a date."""
    refreshed_at: Optional[float] = None
    """When this deployment last took prices from the cloud itself, in Unix seconds."""


@dataclass(frozen=True)
class CatalogSource:
    """Where prices come from. `kind`: quoted, converted (currency or period) or computed."""

    code: str
    kind: str
    as_of: str
    licence: str
    description: str


@dataclass(frozen=True)
class CatalogChange:
    """`kind`: new, gone, or up / down for a price that moved by more than a fifth."""

    kind: str
    cloud: str
    region: str
    zone: str
    instance_type: str
    use_spot: bool = False
    before: Optional[float] = None
    after: Optional[float] = None


@dataclass(frozen=True)
class CloudRefresh:
    """One cloud of a refresh. `status`: pending, running, refreshed, failed, not_configured.

    `refused`: parts (regions) whose answer was not taken, with the reason; their earlier prices stay.
    """

    cloud: str
    status: str = "pending"
    message: str = ""
    parts: int = 0
    parts_done: int = 0
    parts_resumed: int = 0
    """Taken over from a refresh that was interrupted."""
    refused: dict[str, str] = field(default_factory=dict)
    offers: int = 0
    new: int = 0
    gone: int = 0
    up: int = 0
    down: int = 0
    held: int = 0
    """Prices that jumped too far to be believed; the earlier ones stay."""
    changes: tuple[CatalogChange, ...] = ()
    """The largest ones."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class CatalogRefresh:
    """The last refresh, or the one that runs. `status`: running, succeeded, partly, failed."""

    id: str
    status: str
    started_at: float
    ended_at: Optional[float] = None
    message: str = ""
    version: str = ""
    """Of the catalog that came out of it."""
    clouds: tuple[CloudRefresh, ...] = ()


@dataclass(frozen=True)
class CatalogRefreshRequest:
    """POST /v1/catalog/refresh. No clouds = all that have a feed. `force`: believe price jumps and short lists too."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    clouds: tuple[str, ...] = ()
    all_regions: bool = False
    force: bool = False


@dataclass(frozen=True)
class PricePoint:
    """A price as seen at `at` (Unix seconds); of a period when `seconds` is not 0: its mean, and what it ranged over."""

    at: float
    price: float
    low: float
    high: float
    seconds: float = 0.0
    samples: int = 1


@dataclass(frozen=True)
class PriceSeries:
    cloud: str
    region: str
    zone: str
    instance_type: str
    use_spot: bool
    points: tuple[PricePoint, ...] = ()


@dataclass(frozen=True)
class PriceHistory:
    """GET /v1/prices/history: one series for each machine, zone and capacity type, oldest point first.

    `step_seconds` is not 0 where points are means over even steps. `truncated`: older points were left out.
    """

    series: tuple[PriceSeries, ...] = ()
    step_seconds: float = 0.0
    truncated: bool = False


@dataclass(frozen=True)
class CatalogSchedule:
    """Refreshes that happen by themselves. No clouds = all that have a feed. Times in Unix seconds.

    `last_status`: running, done or failed; `failures`: in a row, with the last one's `message`.
    """

    every_seconds: float
    clouds: tuple[str, ...] = ()
    next_at: Optional[float] = None
    last_at: Optional[float] = None
    last_status: str = ""
    failures: int = 0
    message: str = ""


@dataclass(frozen=True)
class CatalogInfo:
    """GET /v1/catalog of the optimizer. The same content always has the same `version`."""

    version: str
    offers: int
    instance_types: int
    accelerators: int
    clouds: tuple[CatalogCloud, ...] = ()
    sources: tuple[CatalogSource, ...] = ()
    own_offers: int = 0
    """Prices and offers of this deployment's own list that are in force."""
    problems: tuple[str, ...] = ()
    """What is wrong with that list, or with a refreshed catalog that could not be loaded."""
    refresh: Optional[CatalogRefresh] = None
    schedule: Optional[CatalogSchedule] = None
    """None where prices are only refreshed when somebody asks."""
