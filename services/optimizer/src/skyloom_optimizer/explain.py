"""Sentences about a plan: why a candidate stands where it does, and what would make a request possible.

Pure. Relaxations are tried smallest first: one requirement dropped, then two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from skyloom_common.contracts.plan import Offer, Plan
from skyloom_common.core.errors import ResourcesUnavailable
from skyloom_optimizer.feasible import device_numbers, split_feasible
from skyloom_optimizer.names import number_text
from skyloom_optimizer.needs import Need, describe, quantity_text, without
from skyloom_optimizer.snapshot import OfferSnapshot

_RELAXABLE = ("region", "zone", "cloud", "instance_type", "cpus", "memory", "max_hourly_cost", "use_spot")
_MOST_HINTS = 4

Worlds = Sequence[OfferSnapshot]
Blocked = Sequence[Mapping[str, Any]]


def place_reason(offer: Offer, first: Offer | None, notes: Sequence[str] = ()) -> str:
    """Why this candidate stands here; `first` is the one at the top (None for itself)."""
    if offer.price_per_hour is None:
        return "; ".join(["price not known", *notes])
    if offer.price_per_hour == 0:
        return "; ".join(["own infrastructure, no charge", *notes])
    if first is None:
        return "; ".join(notes or ["lowest price"])
    return "; ".join([_compare(offer.price_per_hour, first.price_per_hour), *notes])


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
        details={"hints": list(plan.hints), "rejected": rejected},
    )


def explain_empty(
    needs: Sequence[Need], worlds: Worlds, enabled: frozenset[str] | None, blocked: Blocked
) -> tuple[str, ...]:
    """First the sentence that says what is impossible, then what would be possible, nearest first."""
    hints: list[str] = []
    for need in needs:
        if need.spec.cloud and not any(need.spec.cloud in world.clouds for world in worlds):
            hints.append(f"{need.spec.cloud} has nothing to offer here; see: sky check {need.spec.cloud}")
            continue
        count = _count_sentence(need, worlds)
        explored = not count and len(hints) < _MOST_HINTS
        relaxed = _relaxations(need, worlds, enabled, blocked) if explored else []
        way = "" if relaxed else "; see what exists with: sky gpus list --all"
        hints.append(count or f"nothing offers {describe(need)}{way}")
        hints += relaxed
    return tuple(dict.fromkeys(hints))[: 2 * _MOST_HINTS]


def _count_sentence(need: Need, worlds: Worlds) -> str | None:
    """For a device that exists, but never that many on one machine."""
    wanted = need.accelerator
    if wanted is None or wanted.name is None:
        return None
    sizes: dict[float, tuple[float, str]] = {}
    name = wanted.name
    for world in worlds:
        devices, _ = device_numbers(wanted, world)
        lowest = world.lowest(need.use_spot, world.open_offers)
        for machine in np.flatnonzero(np.isin(world.machines.accelerator, devices)).tolist():
            cloud = world.clouds[int(world.machines.cloud[machine])]
            if need.spec.cloud in (None, cloud):
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


def _relaxations(need: Need, worlds: Worlds, enabled: frozenset[str] | None, blocked: Blocked) -> list[str]:
    """What each smallest change would give; two requirements are dropped only where one is not enough."""
    present = [name for name in _RELAXABLE if getattr(need.spec, name) not in (None, False)]
    found = _gate_hints(need, worlds, enabled, blocked)
    for size in (1, 2):
        for fields in combinations(present, size):
            best = _cheapest(without(need, *fields), worlds, enabled, blocked)
            if best is not None:
                found.append(f"without {' and '.join(_field(need, name) for name in fields)}: {best}")
        if found:
            return found[:_MOST_HINTS]
    return found


def _gate_hints(need: Need, worlds: Worlds, enabled: frozenset[str] | None, blocked: Blocked) -> list[str]:
    """Closed doors that are not part of the task: clouds without an account, places tried already."""
    hints = []
    if enabled is not None and (best := _cheapest(need, worlds, None, blocked)):
        hints.append(f"a cloud that is not enabled has it: {best}; see: sky check")
    if blocked and (best := _cheapest(need, worlds, enabled, ())):
        hints.append(
            f"every place that has it was tried already, for example {best}; repeat with: --retry-until-up"
        )
    return hints


def _cheapest(need: Need, worlds: Worlds, enabled: frozenset[str] | None, blocked: Blocked) -> str | None:
    best: tuple[float, str] | None = None
    for world in worlds:
        feasible = split_feasible(need, world, enabled=enabled, blocked=blocked)
        if not feasible.machines.any():
            continue
        price = np.where(feasible.machines, feasible.lowest, np.inf)
        machine = int(np.argmin(price)) if np.isfinite(price).any() else int(np.argmax(feasible.machines))
        cloud = world.clouds[int(world.machines.cloud[machine])]
        cost = f"${price[machine]:.2f} an hour" if np.isfinite(price[machine]) else "price not known"
        entry = (float(price[machine]), f"{cloud}/{world.machines.name[machine]} ({cost})")
        best = entry if best is None else min(best, entry)
    return best[1] if best else None


def _field(need: Need, name: str) -> str:
    value = getattr(need.spec, name)
    if name in ("cpus", "memory"):
        value = quantity_text(value)
    return f"{name}: {str(value).lower() if isinstance(value, bool) else value}"
