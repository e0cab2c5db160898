"""What the optimizer is told about places: attempts that worked or failed, nodes that were taken or given back. Pure.

The id is made of what happened, never of when it was noticed: whoever notices the same thing again tells it with the same id.
"""

from __future__ import annotations

from typing import Protocol

from skyloom_common.contracts.plan import LaunchOutcome, Offer
from skyloom_common.core.errors import SkyloomError, Throttled
from skyloom_provisioner.decide.failover import reach

STARTED, INTERRUPTED, ENDED = "ok", "interrupted", "ended"


class RentedNode(Protocol):
    """A node as far as its end concerns others."""

    @property
    def id(self) -> str: ...

    @property
    def offer(self) -> Offer: ...

    @property
    def running_since(self) -> float | None: ...


def started(operation_id: str, offer: Offer, now: float, seconds: float | None) -> LaunchOutcome:
    """Every node runs and is part of the cluster. `seconds`: from the first call to the provider to agents that answer."""
    return _outcome(f"{operation_id}-{STARTED}", offer, STARTED, now, seconds_to_running=seconds)


def failed(
    operation_id: str, number: int, offer: Offer, error: SkyloomError, now: float
) -> LaunchOutcome | None:
    """Of one attempt; None when the place is not to blame. A place without its zone means all of its zones."""
    if isinstance(error, Throttled):
        return None
    blocks = reach(error)
    region = "" if blocks == "cloud" else offer.region
    zone = offer.zone if blocks == "zone" else ""
    return _outcome(f"{operation_id}-{number}-{error.code}", offer, error.code, now, region=region, zone=zone)


def ended(node: RentedNode, now: float, *, taken: bool) -> LaunchOutcome | None:
    """`taken`: the cloud took it while it was wanted; else we gave it back. None when it never was part of a cluster.

    Only spot machines are sold with the warning that they may be taken: of others a fault says nothing about the place.
    """
    if node.running_since is None:
        return None
    result = INTERRUPTED if taken and node.offer.use_spot else ENDED
    id = f"{node.id}-end-{node.running_since * 1000:.0f}"
    return _outcome(id, node.offer, result, now, ran_seconds=max(0.0, now - node.running_since))


def _outcome(
    id: str,
    offer: Offer,
    result: str,
    now: float,
    *,
    region: str | None = None,
    zone: str | None = None,
    seconds_to_running: float | None = None,
    ran_seconds: float | None = None,
) -> LaunchOutcome:
    return LaunchOutcome(
        cloud=offer.cloud,
        region=offer.region if region is None else region,
        zone=offer.zone if zone is None else zone,
        instance_type=offer.instance_type,
        use_spot=offer.use_spot,
        result=result,
        at=now,
        seconds_to_running=seconds_to_running,
        id=id[:64],
        ran_seconds=ran_seconds,
    )
