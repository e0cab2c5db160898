"""A plan as an explanation: why what was chosen was chosen, and why everything else was not. No layout, no colours.

`data` is for programs (and for whoever draws a table), `lines` for a terminal.
"""

from __future__ import annotations

from typing import Any, Optional

from skyloom_common.contracts.plan import Candidate, Offer, Plan, Rejection
from skyloom_common.core.wire import to_wire

_SHOWN = 10


def data(plan: Plan) -> dict[str, Any]:
    """Everything that was weighed, as plain JSON: chosen, later (in order), rejected, conflicts, hints, proof, breakdown."""
    ranked = [_candidate(candidate, position) for position, candidate in enumerate(plan.candidates)]
    return {
        "objective": plan.objective,
        "considered": plan.considered,
        "chosen": ranked[0] if ranked else None,
        "later": ranked[1:],
        "rejected": [to_wire(item) for item in plan.rejected],
        "conflicts": [list(item.fields) for item in plan.conflicts],
        "hints": list(plan.hints),
        "proof": to_wire(plan.proof),
        "breakdown": to_wire(plan.breakdown),
    }


def lines(plan: Plan, most: int = _SHOWN) -> tuple[str, ...]:
    """Sentences: the choice, what it costs, the next candidates and the rejected clouds, each with its reason."""
    if not plan.candidates:
        return (*plan.hints, *_rejections(plan, most))
    later = [_ranked(candidate, number + 2) for number, candidate in enumerate(plan.candidates[1:most])]
    rest = len(plan.candidates) - most
    more = [f"{rest} later candidates are not shown"] if rest > 0 else []
    return (_chosen(plan), *_cost(plan), *later, *more, *_rejections(plan, most), *plan.hints)


def place_text(offer: Offer) -> str:
    """cloud/region/zone instance type, and whether it is spot."""
    where = "/".join(part for part in (offer.cloud, offer.region, offer.zone) if part)
    return f"{where} {offer.instance_type}{' [spot]' if offer.use_spot else ''}"


def _candidate(candidate: Candidate, position: int) -> dict[str, Any]:
    return {
        "rank": position + 1,
        "place": place_text(candidate.offer),
        "price_per_hour": candidate.offer.price_per_hour,
        "cost_per_hour": candidate.cost_per_hour,
        "reason": candidate.reason,
        "reasons": [to_wire(reason) for reason in candidate.reasons],
        "expected": to_wire(candidate.expected),
    }


def _chosen(plan: Plan) -> str:
    first = plan.candidates[0]
    proof = ""
    if plan.proof is not None:
        proof = (
            "; proven the best"
            if plan.proof.optimal
            else f"; at most {100 * plan.proof.gap:.1f} % from the best"
        )
    return f"1. {place_text(first.offer)}, {_price(first.offer.price_per_hour)}: {first.reason}{proof}"


def _cost(plan: Plan) -> tuple[str, ...]:
    parts, expected = plan.breakdown, plan.candidates[0].expected
    if parts is None or expected is None or expected.cost is None or expected.cost == 0:
        return ()
    named = [
        ("compute", parts.compute),
        ("disk", parts.disk),
        ("egress", parts.egress),
        ("restarts", parts.restarts),
    ]
    shown = ", ".join(f"{name} ${value:.2f}" for name, value in named if value >= 0.005)
    nodes = plan.candidates[0].num_nodes
    on = f" on {nodes} nodes" if nodes > 1 else ""
    text = f"   expected to finish: ${parts.total:.2f} for {expected.run_hours:g} h{on}"
    return (f"{text} ({shown})" if shown else text,)


def _ranked(candidate: Candidate, number: int) -> str:
    price = candidate.offer.price_per_hour
    cost = "" if price is None else f", {_price(price)}"
    return f"{number}. {place_text(candidate.offer)}{cost}: {candidate.reason}"


def _price(price: Optional[float]) -> str:
    return "price not known" if price is None else f"${price:.2f} an hour"


def _rejections(plan: Plan, most: int) -> list[str]:
    """Clouds that are not among the candidates first: of the others it is known why some of their machines fell out."""
    shown = {candidate.offer.cloud for candidate in plan.candidates}
    ordered = sorted(plan.rejected, key=lambda item: (item.cloud in shown, item.code == "accelerator"))
    texts = [_rejection(item) for item in ordered[:most]]
    rest = len(ordered) - most
    return texts + ([f"{rest} more reasons are not shown"] if rest > 0 else [])


def _rejection(item: Rejection) -> str:
    what = f"{item.cloud}/{item.example}" if item.example else item.cloud
    count = f" ({item.count} offers)" if item.count > 1 else ""
    who = "the rest" if item.cloud == "*" else what
    return f"not {who}: {item.reason}{count}"
