"""What a choice may look at: the request's routing facts and the live state of each endpoint.

A policy is rebuilt when the set of eligible endpoints (or a weight) changes, which is rare, so that `pick` can be cheap.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class LbRequest:
    """`session`: value of the affinity header, cookie or API user ("" = none). `prompt`: the bytes that decide about cache hits."""

    session: str = ""
    prompt: bytes = b""
    zone: str = ""


NO_FACTS = LbRequest()


class LiveEndpoint:
    """One endpoint as this process sees it. Only the exchange of a request and the health sweep change it.

    `weight` is the configured one, `effective_weight` that times the slow-start share (0..1]. `in_flight` never goes
    below zero: `started` and `finished` of the pool are the only places that count.
    """

    __slots__ = (
        "capacity", "effective_weight", "id", "in_flight", "latency", "latency_at", "price_per_hour", "url", "version",
        "weight", "zone",
    )  # fmt: skip

    def __init__(
        self,
        id: str,
        url: str = "",
        *,
        weight: float = 1.0,
        capacity: float | None = None,
        zone: str = "",
        price_per_hour: float | None = None,
        version: str = "",
    ) -> None:
        self.id = id
        self.url = url
        self.weight = weight
        self.effective_weight = weight
        self.capacity = capacity
        self.zone = zone
        self.price_per_hour = price_per_hour
        self.version = version
        self.in_flight = 0
        self.latency = 0.0
        """Peak-sensitive moving average of the time to the first byte, seconds; 0 = unknown."""
        self.latency_at = 0.0
        """When it was observed last; 0 = never, `latency` is a guess then."""

    def __repr__(self) -> str:
        return f"<{self.id} in_flight={self.in_flight}>"


class Random(Protocol):
    def random(self) -> float: ...

    def randrange(self, stop: int, /) -> int: ...


class Policy(Protocol):
    """Chooses among the endpoints of the last `rebuild`; `None` when all of them are excluded or there are none."""

    name: str

    def rebuild(self, endpoints: Sequence[LiveEndpoint]) -> None: ...

    def pick(self, request: LbRequest, exclude: Container[str] = ()) -> LiveEndpoint | None: ...

    def changed(self, endpoint: LiveEndpoint) -> None:
        """Its in_flight, latency or effective weight is another now."""
        ...
