"""What a feed delivers and how it can fail. Data only; no cloud's format is known here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from skyloom_common.core.errors import SkyloomError

WHOLE_CLOUD = ""


@dataclass(frozen=True)
class FeedRow:
    """An offer as a cloud lists it now. None = the feed does not say; what was known before is kept then."""

    region: str
    instance_type: str
    zone: str = ""
    vcpus: float | None = None
    memory_gib: float | None = None
    accelerator: str | None = None
    """"" = has none; None = not said."""
    accelerator_count: float | None = None
    accelerator_memory_gib: float | None = None
    arch: str = ""
    price: float | None = None
    spot_price: float | None = None
    currency: str = "USD"


@dataclass(frozen=True)
class FeedInfo:
    """About a feed as a whole. `market`: offers come and go with demand, so a shorter list is no sign of a fault.

    `stays`: types (shell patterns) that it need not list: unlisted they stay as they were known. `stays_where_none`: those
    that stay in a zone of which it lists nothing like them.
    """

    cloud: str
    source: str
    description: str
    licence: str = ""
    market: bool = False
    stays: tuple[str, ...] = ()
    stays_where_none: tuple[str, ...] = ()


@dataclass(frozen=True)
class Known:
    """What the catalog knows of a cloud before: regions open to everybody, and all of them. `zones`: by region and type."""

    regions: Sequence[str] = ()
    every_region: Sequence[str] = field(default_factory=tuple)
    zones: Mapping[tuple[str, str], Sequence[str]] = field(default_factory=dict)

    def zones_of(self, region: str, instance_type: str) -> Sequence[str]:
        """Empty for what is not known there. "" in it: a price for the whole region."""
        return self.zones.get((region, instance_type), ())


class Feed(Protocol):
    info: FeedInfo

    def parts(self, known: Known, all_regions: bool) -> Sequence[str]:
        """What can be fetched on its own, and resumed: regions, or WHOLE_CLOUD alone."""
        ...

    def fetch(self, part: str) -> Sequence[FeedRow]:
        """Everything that is sold in this part: what is not listed is gone. Raises FeedError."""
        ...

    def close(self) -> None: ...


class FeedError(SkyloomError):
    """The answer cannot be used; the sentence names the address and what is wrong with it."""

    code = "feed_error"
    http_status = 502


class FeedUnavailable(FeedError):
    """No usable answer after several attempts, or the cloud asks to come back later."""

    code = "feed_unavailable"
    http_status = 503


class FeedNotConfigured(FeedError):
    """Credentials or a library are missing; the hint says which."""

    code = "feed_not_configured"
    http_status = 409


class FeedNotFound(FeedError):
    """There is nothing at this address."""

    code = "feed_not_found"
    http_status = 404


class RefreshRunning(SkyloomError):
    code = "refresh_running"
    http_status = 409
