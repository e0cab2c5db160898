"""What the load balancer is told and what it tells: endpoint tables in Redis, load reports out.

Redis keys, per service name S:
  skyloom:endpoints:S        hash, field = endpoint id, value = JSON of Endpoint: the table (truth of the serve controller)
  skyloom:endpoints:index    set of service names
  event `endpoint.changed`   on the bus, key = S: read the table again
  skyloom:load:S             stream (trimmed), field "report" = JSON of LoadReport: one a second from each balancer process
  event `replica.wanted`     on the bus, key = S: a request is being held and no endpoint is there
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Optional

ENDPOINT_CHANGED = "endpoint.changed"
REPLICA_WANTED = "replica.wanted"
TABLE_KEY = "skyloom:endpoints:{service}"
INDEX_KEY = "skyloom:endpoints:index"
LOAD_KEY = "skyloom:load:{service}"


class EndpointState(str, enum.Enum):
    """`draining`: finishes what it has, gets nothing new."""

    READY = "ready"
    DRAINING = "draining"


@dataclass(frozen=True)
class Endpoint:
    """One address that serves requests. `capacity`: a hint of how much it takes relative to others (e.g. its target QPS).

    `engine`: what runs there when known (vllm, sglang, tgi, transformers, ...): decides how a broken stream is continued.
    """

    id: str
    url: str
    weight: float = 1.0
    version: str = ""
    zone: str = ""
    region: str = ""
    price_per_hour: Optional[float] = None
    capacity: Optional[float] = None
    state: EndpointState = EndpointState.READY
    engine: str = ""
    models: tuple[str, ...] = ()
    """Names it serves as the engine knows them; empty = the service's name."""
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class EndpointLoad:
    """Counts over the report's interval, `in_flight` at its end; latencies in seconds."""

    id: str
    requests: int = 0
    failures: int = 0
    in_flight: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    latency_p50: Optional[float] = None
    latency_p95: Optional[float] = None
    latency_p99: Optional[float] = None
    ttft_p50: Optional[float] = None
    ttft_p95: Optional[float] = None
    state: str = "ready"
    """ready, draining, ejected, open (circuit), unhealthy (probe), warming."""


@dataclass(frozen=True)
class LoadReport:
    """What one balancer process saw of one service in `interval_seconds`. `queued`: waiting at the end; `refused`: 429 and 503."""

    service: str
    balancer: str
    at: float
    interval_seconds: float
    requests: int = 0
    in_flight: int = 0
    queued: int = 0
    refused: int = 0
    endpoints: tuple[EndpointLoad, ...] = ()
