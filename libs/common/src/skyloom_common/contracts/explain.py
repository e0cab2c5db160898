"""A plan as an explanation: why what was chosen was chosen, and why everything else was not. No layout, no colours.

`data` is for programs (and for whoever draws a table), `lines` for a terminal.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Optional

from skyloom_common.contracts.plan import Candidate, Offer, Plan, Rejection
from skyloom_common.core.text import few

_SHOWN = 5
_OFFER = (
    "cloud",
    "region",
    "zone",
    "instance_type",
    "use_spot",
    "accelerator",
    "accelerator_count",
    "price_per_hour",
)
_ORDER = ("not_enabled", "policy", "quota", "blocked", "price", "region", "size", "feature", "accelerator")
_ALL = "*"
_ASKS = "the task asks for "
_INSTEAD = ("accelerator", "region")
_BECAUSE = {
    "not_enabled": "that are not enabled",
    "policy": "by policy",
    "quota": "by quota",
    "price": "for their prices",
    "region": "for their regions",
    "size": "for the sizes of their machines",
    "feature": "for what they cannot do",
    "accelerator": "for their accelerators",
}


def data(plan: Plan) -> dict[str, Any]:
    """Everything that was weighed, as plain JSON: chosen, later (in order), rejected, conflicts, hints, proof, breakdown."""
    ranked = [_candidate(candidate, position) for position, candidate in enumerate(plan.candidates)]
    return {
        "objective": plan.objective,
        "considered": plan.considered,
        "chosen": ranked[0] if ranked else None,
        "later": ranked[1:],
        "rejected": [asdict(item) for item in plan.rejected],
        "conflicts": [list(item.fields) for item in plan.conflicts],
        "hints": list(plan.hints),
        "proof": None if plan.proof is None else asdict(plan.proof),
        "breakdown": None if plan.breakdown is None else asdict(plan.breakdown),
    }


def lines(plan: Plan, *, every: bool = False) -> tuple[str, ...]:
    """Sentences: the choice, what it costs, the next candidates, and what was rejected, each with its reason.

    Equal candidates in several regions are one line, and so are clouds that were rejected alike; `every` tells each apart.
    """
    rejected = _rejections(plan) if every else _summary(plan)
    if not plan.candidates:
        return (*plan.hints, *rejected)
    return (_chosen(plan), *_cost(plan), *_later(plan, every), *rejected, *plan.hints)


def place_text(offer: Offer) -> str:
    """cloud/region/zone instance type, and whether it is spot."""
    where = "/".join(part for part in (offer.cloud, offer.region, offer.zone) if part)
    return f"{where} {offer.instance_type}{' [spot]' if offer.use_spot else ''}"


def _candidate(candidate: Candidate, position: int) -> dict[str, Any]:
    return {
        "rank": position + 1,
        "place": place_text(candidate.offer),
        **{name: getattr(candidate.offer, name) for name in _OFFER},
        "cost_per_hour": candidate.cost_per_hour,
        "reason": candidate.reason,
        "reasons": [asdict(reason) for reason in candidate.reasons],
        "expected": None if candidate.expected is None else asdict(candidate.expected),
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
    price = first.offer.price_per_hour
    cost = "" if price is None else f", {_price(price)}"
    return f"1. {place_text(first.offer)}{cost}: {first.reason}{proof}"


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


def _later(plan: Plan, every: bool) -> list[str]:
    """What comes behind the first. Neighbours that differ only in where they are stand on one line."""
    groups: list[list[int]] = []
    for number, candidate in enumerate(plan.candidates[1:], 2):
        if not every and groups and _alike(plan.candidates[groups[-1][0] - 1], candidate):
            groups[-1].append(number)
        else:
            groups.append([number])
    shown = groups if every else groups[:_SHOWN]
    rest = sum(len(group) for group in groups[len(shown) :])
    more = [f"{rest} later candidates are not shown"] if rest else []
    return [_ranked(plan, group) for group in shown] + more


def _alike(one: Candidate, other: Candidate) -> bool:
    return _but_place(one) == _but_place(other)


def _but_place(candidate: Candidate) -> tuple[object, ...]:
    offer = candidate.offer
    return offer.cloud, offer.instance_type, offer.use_spot, _price(offer.price_per_hour), candidate.reason


def _ranked(plan: Plan, numbers: list[int]) -> str:
    first, *others = [plan.candidates[number - 1] for number in numbers]
    price = first.offer.price_per_hour
    cost = "" if price is None else f", {_price(price)}"
    rank = f"{numbers[0]}-{numbers[-1]}" if others else f"{numbers[0]}"
    also = f"; also in {few([one.offer.zone or one.offer.region for one in others])}" if others else ""
    return f"{rank}. {place_text(first.offer)}{cost}: {first.reason}{also}"


def _price(price: Optional[float]) -> str:
    return "price not known" if price is None else f"${price:.2f} an hour"


def _rejections(plan: Plan) -> list[str]:
    """Clouds that are not among the candidates first: of the others it is known why some of their machines fell out."""
    shown = {candidate.offer.cloud for candidate in plan.candidates}
    ordered = sorted(plan.rejected, key=lambda item: (item.cloud in shown, item.code == "accelerator"))
    return [_rejection(item) for item in ordered]


def _rejection(item: Rejection) -> str:
    what = f"{item.cloud}/{item.example}" if item.example else item.cloud
    who = "the rest" if item.cloud == _ALL else what
    return f"not {who}: {item.reason}{_offers(item.count)}"


def _summary(plan: Plan) -> list[str]:
    """One line for each reason that several clouds share, and one for each kind of reason that is different everywhere."""
    shown = {candidate.offer.cloud for candidate in plan.candidates}
    groups: list[list[Rejection]] = []
    for code in dict.fromkeys([*_ORDER, *(item.code for item in plan.rejected)]):
        found = [item for item in plan.rejected if item.code == code]
        named = [item for item in found if item.cloud != _ALL]
        # Too dear for the request, or only dearer than what is chosen of the same cloud: two different things.
        parts = [[item for item in named if (item.cloud in shown) is ours] for ours in (False, True)]
        groups += [group for part in (parts if code == "price" else [named]) for group in _by_reason(part)]
    # Of clouds that have a candidate it matters least why other machines of theirs have not become one.
    groups.sort(key=lambda group: all(item.cloud in shown for item in group))
    return [*_excluded(plan), *(_group(group) for group in groups)]


def _excluded(plan: Plan) -> list[str]:
    """What the task itself excluded; alternatives exclude different things."""
    found = [item for item in plan.rejected if item.cloud == _ALL]
    if len(found) < 2:
        return [_rejection(item) for item in found]
    asks = [item.reason[len(_ASKS) :] for item in found if item.reason.startswith(_ASKS)]
    others = [item.reason for item in found if not item.reason.startswith(_ASKS)]
    return [f"not the rest: {'; '.join([*([_ASKS + ', or '.join(asks)] if asks else []), *others])}"]


def _by_reason(items: Sequence[Rejection]) -> list[list[Rejection]]:
    alike: dict[str, list[Rejection]] = {}
    for item in items:
        alike.setdefault(_gist(item), []).append(item)
    shared = [group for group in alike.values() if len({item.cloud for item in group}) > 1]
    own = [item for group in alike.values() if group not in shared for item in group]
    return shared + ([own] if own else [])


def _gist(item: Rejection) -> str:
    """The reason without what each cloud has instead."""
    return re.split("[:;] ", item.reason, maxsplit=1)[0] if item.code in _INSTEAD else item.reason


def _group(items: Sequence[Rejection]) -> str:
    if len(items) == 1:
        return _rejection(items[0])
    clouds = list(dict.fromkeys(item.cloud for item in items))
    count = _offers(sum(item.count for item in items))
    who = clouds[0] if len(clouds) == 1 else f"{len(clouds)} clouds ({few(clouds)})"
    if len({item.reason for item in items}) == 1:
        return f"not {who}: {items[0].reason}{count}"
    if len({_gist(item) for item in items}) == 1:
        return f"not {who}: {_gist(items[0])}{count}"
    because = _BECAUSE.get(items[0].code, f"for {items[0].code}")
    if len(clouds) == 1:
        because = because.replace("their", "its").replace("they", "it").replace("are", "is")
    near = min(items, key=_distance)
    what = f"{near.cloud}/{near.example}" if near.example else near.cloud
    return f"not {who} {because}{count}; nearest is {what}: {near.reason}"


def _distance(item: Rejection) -> tuple[float, int]:
    """What came nearest to being a candidate: the cheapest, or the least difference of sizes."""
    numbers = item.numbers
    if "price" in numbers:
        return numbers["price"], -item.count
    if "nearest" in numbers and "asked" in numbers:
        return abs(numbers["nearest"] - numbers["asked"]), -item.count
    return float("inf"), -item.count


def _offers(count: int) -> str:
    return f" ({count:,} offers)" if count > 1 else ""
