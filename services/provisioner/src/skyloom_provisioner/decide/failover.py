"""What a failed attempt means for the next one: leave a zone, a region or a cloud, wait, or stop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from skyloom_common.contracts.plan import Offer
from skyloom_common.core.errors import (
    AccessDenied,
    AgentUnreachable,
    CredentialsInvalid,
    InsufficientCapacity,
    PriceLimitExceeded,
    ProviderError,
    ProviderInvalidRequest,
    QuotaExceeded,
    SkyloomError,
    Throttled,
)


@dataclass(frozen=True)
class Verdict:
    """`blocked`: what must not be tried again in this launch; None with `stop` false = wait and try the same again."""

    stop: bool = False
    blocked: dict[str, Any] | None = None
    sentence: str = ""


def judge(error: SkyloomError, offer: Offer) -> Verdict:
    if isinstance(error, ProviderInvalidRequest):
        return Verdict(stop=True, sentence="no other place would accept this request either")
    if isinstance(error, Throttled):
        return Verdict(sentence=f"{offer.cloud} asks to wait")
    if isinstance(error, CredentialsInvalid):
        return Verdict(
            blocked=_cloud(offer), sentence=f"{offer.cloud} is left out: its credentials were refused"
        )
    if isinstance(error, QuotaExceeded):
        return Verdict(
            blocked=_region(offer), sentence=f"{_place(offer, 'region')} is left out: quota exceeded"
        )
    if isinstance(error, AccessDenied):
        blocks = reach(error)
        return Verdict(
            blocked=_SCOPES[blocks](offer),
            sentence=f"{_place(offer, blocks)} is left out: this account may not use it",
        )
    if isinstance(error, InsufficientCapacity):
        return _sold_out(error, offer)
    if isinstance(error, PriceLimitExceeded):
        return Verdict(blocked=_zone(offer), sentence=f"{_place(offer, 'zone')}: dearer than the price limit")
    if isinstance(error, (ProviderError, AgentUnreachable)):
        return Verdict(
            blocked=_zone(offer), sentence=f"{_place(offer, 'zone')} is left out after this failure"
        )
    return Verdict(stop=True, sentence="this is no fault of the place")


def reach(error: SkyloomError) -> str:
    """How far the provider's answer reaches: zone, region or cloud."""
    usual = "region" if isinstance(error, AccessDenied) else "zone"
    said = str(error.details.get("blocks", usual))
    return said if said in _SCOPES else usual


def is_blocked(offer: Offer, blocked: tuple[dict[str, Any], ...]) -> bool:
    """A missing key matches anything."""
    return any(all(getattr(offer, key) == value for key, value in entry.items()) for entry in blocked)


def describe_attempt(error: SkyloomError, offer: Offer, at: float) -> dict[str, Any]:
    """For `details["attempts"]`: the provider's own words are kept beside ours."""
    return {
        "cloud": offer.cloud,
        "region": offer.region,
        "zone": offer.zone,
        "instance_type": offer.instance_type,
        "use_spot": offer.use_spot,
        "error": error.code,
        "message": error.message,
        "provider_message": str(error.details.get("provider_message", error.message)),
        "at": at,
    }


def summarize(attempts: list[dict[str, Any]], rejections: list[str]) -> str:
    """One sentence for people about a launch that found no place."""
    if not attempts:
        why = "; ".join(rejections[:3])
        return f"no offer can run this task: {why}" if why else "no offer can run this task"
    places = "; ".join(
        f"{entry['cloud']}{'/' + entry['region'] if entry['region'] else ''}: {entry['provider_message']}"
        for entry in attempts[:5]
    )
    more = f"; and {len(attempts) - 5} more" if len(attempts) > 5 else ""
    return f"all {len(attempts)} attempts failed: {places}{more}"


def _sold_out(error: SkyloomError, offer: Offer) -> Verdict:
    blocks = reach(error)
    return Verdict(
        blocked=_typed(_SCOPES[blocks](offer), offer), sentence=f"{_place(offer, blocks)}: sold out"
    )


def _typed(scope: dict[str, Any], offer: Offer) -> dict[str, Any]:
    """Sold out concerns one type and one way of buying it only."""
    return {**scope, "instance_type": offer.instance_type, "use_spot": offer.use_spot}


def _cloud(offer: Offer) -> dict[str, Any]:
    return {"cloud": offer.cloud}


def _region(offer: Offer) -> dict[str, Any]:
    return {"cloud": offer.cloud, "region": offer.region}


def _zone(offer: Offer) -> dict[str, Any]:
    return _typed({"cloud": offer.cloud, "region": offer.region, "zone": offer.zone}, offer)


def _place(offer: Offer, blocks: str) -> str:
    parts = {"cloud": [offer.cloud], "region": [offer.cloud, offer.region]}.get(
        blocks, [offer.cloud, offer.region, offer.zone]
    )
    return "/".join(part for part in parts if part)


_SCOPES = {"cloud": _cloud, "region": _region, "zone": _zone}
