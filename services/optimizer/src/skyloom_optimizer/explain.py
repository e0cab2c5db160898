"""Sentences about a plan: why a candidate stands where it does, and what would make a request possible.

Pure. Relaxations are tried smallest first: one requirement dropped, then two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np

from skyloom_common.contracts.explain import data, lines
from skyloom_common.contracts.plan import Conflict, Expectation, Offer, Plan, Reason
from skyloom_common.contracts.task.places import clouds_of
from skyloom_common.core.errors import ResourcesUnavailable
from skyloom_optimizer.conflicts import field_text
from skyloom_optimizer.feasible import device_numbers, feasible_only
from skyloom_optimizer.gate import Gate
from skyloom_optimizer.names import number_text
from skyloom_optimizer.needs import Need, describe, placed, wholes, without
from skyloom_optimizer.snapshot import OfferSnapshot

_RELAXABLE = (
    "infra",
    "region",
    "zone",
    "cloud",
    "instance_type",
    "cpus",
    "memory",
    "max_hourly_cost",
    "use_spot",
    "image_id",
    "ports",
    "disk_tier",
    "local_disk",
    "volumes",
)
_MOST_HINTS = 4
# Interruptions are worth a word where they cost this share of the run.
_NOTABLE_SHARE = 0.02

Worlds = Sequence[OfferSnapshot]


@dataclass(frozen=True)
class Standing:
    """A candidate with what decided about its place in the order."""

    offer: Offer
    expected: Expectation
    failed_recently: bool = False
    later_turn: bool = False
    passed_over: bool = False
    """It is the first although another of its turn is expected to cost less."""
    known_odds: bool = False
    """Launches were seen there."""


def place_reasons(standing: Standing, first: Standing, objective: str = "cost") -> tuple[Reason, ...]:
    """Why this candidate stands here; `first` is the one at the top. The first reason decides."""
    reasons = [_main_reason(standing, first, objective)]
    expected, price = standing.expected, standing.offer.price_per_hour
    if standing.later_turn:
        reasons.append(Reason("order", "later in the order asked for"))
    if standing.failed_recently:
        reasons.append(Reason("capacity", "failed there recently", {"chance": expected.chance}))
    elif standing is not first and standing.known_odds and expected.chance < first.expected.chance - 0.02:
        text = f"a launch works there now with {100 * expected.chance:.0f} %"
        reasons.append(Reason("capacity", text, {"chance": expected.chance}))
    again = expected.lost_hours + expected.restart_hours
    if price and again > _NOTABLE_SHARE * expected.run_hours:
        reasons.append(_restart_reason(expected))
    return tuple(reasons)


def _main_reason(standing: Standing, first: Standing, objective: str) -> Reason:
    price, expected = standing.offer.price_per_hour, standing.expected
    if price is None:
        return Reason("price", "price not known")
    if price == 0:
        return Reason("price", "own infrastructure, no charge", {"price": 0.0})
    numbers = {"price": price}
    if standing is first:
        return Reason("price", _first_text(standing, objective), numbers)
    top = first.offer.price_per_hour
    if top is not None:
        numbers["first"] = top
    if objective != "cost" and first.expected.run_hours != expected.run_hours:
        numbers |= {"hours": expected.run_hours, "first_hours": first.expected.run_hours}
        text = f"{expected.run_hours:g} h instead of {first.expected.run_hours:g} h; {_compare(price, top)}"
        return Reason("time", text, numbers)
    return Reason("price", _compare(price, top), numbers)


def _first_text(standing: Standing, objective: str) -> str:
    if objective == "time":
        return "done first"
    if objective == "both":
        return "the best product of cost and time"
    return "the cheapest that did not fail recently" if standing.passed_over else "lowest price"


def _restart_reason(expected: Expectation) -> Reason:
    again = expected.lost_hours + expected.restart_hours
    percent = 100 * again / expected.run_hours
    text = f"{expected.interruptions:.2g} interruptions expected, {percent:.0f} % more time"
    return Reason("restarts", text, {"interruptions": expected.interruptions, "hours": again})


def _compare(price: float, first: float | None) -> str:
    if first is None:
        return "price known, that of the first is not"
    if first == 0:
        return f"${price:.2f} more an hour than the first"
    percent = 100 * (price / first - 1)
    if abs(percent) < 0.05:
        return "same price as the first"
    return f"{abs(percent):.0f} % {'more' if percent > 0 else 'less'} than the first"


def unavailable(plan: Plan) -> ResourcesUnavailable:
    """The error for a plan without candidates."""
    sentence = plan.hints[0] if plan.hints else "nothing satisfies the task's resources"
    rejected = [
        {"cloud": item.cloud, "code": item.code, "reason": item.reason, "count": item.count}
        for item in plan.rejected
    ]
    return ResourcesUnavailable(
        sentence,
        hint="; ".join(plan.hints[1:]) or "see what exists with: sky gpus list --all",
        details={
            "hints": list(plan.hints),
            "rejected": rejected,
            "conflicts": [list(item.fields) for item in plan.conflicts],
        },
    )


def explain_empty(
    needs: Sequence[Need], worlds: Worlds, gate: Gate, conflicts: Sequence[Conflict] = ()
) -> tuple[str, ...]:
    """First the sentence that says what is impossible, then what contradicts what (fewest first), then what would be possible."""
    needs = wholes(needs)
    hints: list[str] = []
    for need in needs:
        clouds = clouds_of(need.spec)
        if clouds and not any(cloud in world.clouds for world in worlds for cloud in clouds):
            names = sorted(clouds)
            hints.append(
                f"{' and '.join(names)} {'has' if len(names) == 1 else 'have'} nothing to offer here; "
                f"see: sky check {' '.join(names)}"
            )
            continue
        count = _count_sentence(need, worlds)
        explored = not count and len(hints) < _MOST_HINTS
        relaxed = _relaxations(need, worlds, gate) if explored else []
        way = "" if relaxed else "; see what exists with: sky gpus list --all"
        hints.append(count or f"nothing offers {describe(need)}{way}")
        hints += relaxed
    # Where all of a short request contradicts itself, the first sentence has said it already.
    told = [item.text for item in conflicts if len(item.fields) > 1] if len(needs) == 1 else []
    hints[1:1] = told if len(conflicts) > 1 or any(len(c.fields) > 2 for c in conflicts) else []
    return tuple(dict.fromkeys(hints))[: 2 * _MOST_HINTS]


def _count_sentence(need: Need, worlds: Worlds) -> str | None:
    """For a device that exists, but never that many on one machine."""
    wanted = need.accelerator
    if wanted is None or wanted.name is None:
        return None
    sizes: dict[float, tuple[float, str]] = {}
    name, clouds = wanted.name, clouds_of(need.spec)
    for world in worlds:
        devices, _ = device_numbers(wanted, world)
        lowest = world.lowest(need.use_spot, world.open_offers)
        for machine in np.flatnonzero(np.isin(world.machines.accelerator, devices)).tolist():
            cloud = world.clouds[int(world.machines.cloud[machine])]
            if clouds is None or cloud in clouds:
                name = world.accelerators[int(world.machines.accelerator[machine])].name
                found = (float(lowest[machine]), f"{cloud}/{world.machines.name[machine]}")
                count = float(world.machines.accelerator_count[machine])
                sizes[count] = min(found, sizes.get(count, found))
    if not sizes or wanted.count in sizes or np.ceil(wanted.count) in sizes:
        return None
    return _nearest_counts(name, wanted.count, {count: where for count, (_, where) in sizes.items()})


def _nearest_counts(name: str, count: float, sizes: Mapping[float, str]) -> str:
    asked, largest = f"{name}:{number_text(count)}", max(sizes)
    most = f"{name}:{number_text(largest)}"
    if count > largest:
        text = f"{asked} does not exist on one node; largest is {most} on {sizes[largest]}"
        nodes = count / largest
        return f"{text}; use num_nodes: {int(nodes)} with {most}" if nodes == int(nodes) else text
    near = min(size for size in sizes if size > count)
    return f"{asked} does not exist on one node; nearest is {name}:{number_text(near)} on {sizes[near]}"


def _relaxations(need: Need, worlds: Worlds, gate: Gate) -> list[str]:
    """What each smallest change would give; two requirements are dropped only where one is not enough."""
    present = [name for name in _RELAXABLE if getattr(need.spec, name) not in (None, False, (), {})]
    found = _gate_hints(need, worlds, gate)
    for size in (1, 2):
        for fields in combinations(present, size):
            best = _cheapest(without(need, *fields), worlds, gate)
            if best is not None:
                found.append(
                    f"without {' and '.join(field_text(need, gate, name) for name in fields)}: {best}"
                )
        if found:
            return found[:_MOST_HINTS]
    return found


def _gate_hints(need: Need, worlds: Worlds, gate: Gate) -> list[str]:
    """Closed doors that are not part of the task: clouds without an account, places tried already, policies, quotas."""
    hints = []
    if gate.enabled is not None and (best := _cheapest(need, worlds, gate.open("enabled"))):
        hints.append(f"a cloud that is not enabled has it: {best}; see: sky check")
    if gate.blocked and (best := _cheapest(need, worlds, gate.open("blocked"))):
        hints.append(
            f"every place that has it was tried already, for example {best}; repeat with: --retry-until-up"
        )
    if gate.denied and (best := _cheapest(need, worlds, gate.open("denied"))):
        hints.append(f"a policy ({gate.denied[0].reason}) excludes it, for example {best}")
    if gate.quotas and (best := _cheapest(need, worlds, gate.open("quotas"))):
        hints.append(f"quotas leave no room, for example for {best}; ask the provider for a higher quota")
    return hints


def _cheapest(need: Need, worlds: Worlds, gate: Gate) -> str | None:
    best: tuple[float, str] | None = None
    for one, world in product(placed(need, worlds), worlds):
        feasible = feasible_only(one, world, gate)
        if not feasible.machines.any():
            continue
        price = np.where(feasible.machines, feasible.lowest, np.inf)
        machine = int(np.argmin(price)) if np.isfinite(price).any() else int(np.argmax(feasible.machines))
        cloud = world.clouds[int(world.machines.cloud[machine])]
        cost = f"${price[machine]:.2f} an hour" if np.isfinite(price[machine]) else "price not known"
        entry = (float(price[machine]), f"{cloud}/{world.machines.name[machine]} ({cost})")
        best = entry if best is None else min(best, entry)
    return best[1] if best else None


__all__ = ["Standing", "data", "explain_empty", "lines", "place_reasons", "unavailable"]
