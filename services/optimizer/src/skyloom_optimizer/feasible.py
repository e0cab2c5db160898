"""Which offers satisfy a need, and why the rest do not.

Pure vector work on a snapshot. Requirements are applied one after another; what each removes is counted for
each cloud under that requirement, with the machine that came nearest. Nothing is ranked here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from skyloom_common.contracts.plan import Rejection
from skyloom_common.contracts.task.model import AcceleratorSpec, Quantity
from skyloom_common.contracts.task.places import clouds_of
from skyloom_common.core.text import few
from skyloom_optimizer.devices import count_mask, device_mask, device_numbers, pool_machines, units_of
from skyloom_optimizer.gate import OPEN, Gate, asked_features, missing_feature, quota_text
from skyloom_optimizer.names import number_text
from skyloom_optimizer.needs import DEFAULT_CPUS, DEFAULT_MEMORY, Need, accelerator_text, quantity_text
from skyloom_optimizer.placing import (
    block_mask,
    blocked_places,
    check_blocked,
    number_of,
    place_mask,
    place_of,
    row_mask,
    rows_of,
)
from skyloom_optimizer.sieve import EMPTIED, TOGETHER, Describe, Sieve
from skyloom_optimizer.snapshot import NO_ACCELERATOR, Floats, Mask, OfferSnapshot, count_per_machine

__all__ = [
    "Feasible",
    "blocked_places",
    "check_blocked",
    "count_mask",
    "device_numbers",
    "feasible_only",
    "place_mask",
    "pool_machines",
    "rows_of",
    "split_feasible",
    "units_of",
]

_NEAR = 1e-6
_SIZE_TOLERANCE = 0.01


@dataclass(frozen=True)
class Feasible:
    """`machines`: those that satisfy the need somewhere. `allowed`: offers that may be used, if sold.

    `lowest`: cheapest allowed price of each machine, infinite where no price is known.
    """

    machines: Mask
    allowed: Mask
    lowest: Floats
    rejected: tuple[Rejection, ...] = ()


def split_feasible(need: Need, snapshot: OfferSnapshot, gate: Gate = OPEN) -> Feasible:
    """The machines and offers that satisfy `need`, and the reasons for the rest."""
    sieve, allowed, lowest = _sift(need, snapshot, gate)
    rank = snapshot.lowest(need.use_spot, snapshot.open_offers)
    return Feasible(sieve.alive, allowed, lowest, sieve.rejections(rank))


def feasible_only(need: Need, snapshot: OfferSnapshot, gate: Gate = OPEN) -> Feasible:
    """As `split_feasible`, without the reasons."""
    sieve, allowed, lowest = _sift(need, snapshot, gate)
    return Feasible(sieve.alive, allowed, lowest)


def _sift(need: Need, snapshot: OfferSnapshot, gate: Gate) -> tuple[Sieve, Mask, Floats]:
    sieve = Sieve(snapshot)
    _keep_asked_place(sieve, need)
    _keep_accelerators(sieve, need)
    _keep_sizes(sieve, need)
    _keep_features(sieve, need, gate)
    allowed = _allowed_offers(sieve, need, gate)
    lowest = snapshot.lowest(need.use_spot, allowed)
    _keep_affordable(sieve, need, lowest)
    _keep_enabled(sieve, gate.enabled, lowest)
    return sieve, allowed, lowest


def _keep_features(sieve: Sieve, need: Need, gate: Gate) -> None:
    """Ports, images, disks: a whole cloud has a feature or lacks it."""
    asked = asked_features(need.spec)
    if not asked:
        return
    snapshot = sieve.snapshot
    missing = [missing_feature(cloud, asked, gate.lacks) for cloud in snapshot.clouds]
    can = np.array([words is None for words in missing], dtype=bool)

    def describe(cloud: str, _near: int) -> str:
        return missing[snapshot.clouds.index(cloud)] or ""

    sieve.keep(can[snapshot.machines.cloud], "feature", describe)


def _keep_asked_place(sieve: Sieve, need: Need) -> None:
    snapshot, spec = sieve.snapshot, need.spec
    named = clouds_of(need.whole)
    if named is not None:
        passing = np.isin(snapshot.machines.cloud, [number_of(snapshot.clouds, cloud) for cloud in named])
        text = f"the task asks for {' or '.join(sorted(named))}"
        sieve.keep(passing, "region", lambda _c, _m: text, scope=TOGETHER)
    if spec.cloud:
        sieve.narrow(snapshot.machines.cloud == number_of(snapshot.clouds, spec.cloud))
    if need.instance_type:
        passing = np.zeros(len(snapshot.machines), dtype=bool)
        passing[snapshot.machine_number.get(need.instance_type.lower(), [])] = True
        sieve.keep(passing, "size", lambda _c, _m: f"the task asks for {need.instance_type}", scope=TOGETHER)


def _keep_accelerators(sieve: Sieve, need: Need) -> None:
    machines, snapshot = sieve.snapshot.machines, sieve.snapshot
    if need.accelerator is None:
        if need.instance_type is None and not snapshot.divisible:
            plain = machines.accelerator == NO_ACCELERATOR
            sieve.keep(
                plain, "accelerator", lambda _c, _m: "sells only machines with accelerators", scope=EMPTIED
            )
            sieve.keep(snapshot.plain_arch, "feature", _describe_arch(snapshot))
        return
    wanted = need.accelerator
    device, count = device_mask(wanted, snapshot)
    sieve.keep(device, "accelerator", lambda _c, _m: f"has no {_device_text(wanted)}", scope=EMPTIED)
    enough = count_mask(machines.accelerator_count, count, snapshot.divisible)
    sieve.keep(
        enough,
        "accelerator",
        _describe_counts(snapshot, wanted, sieve.alive & ~enough),
        distance=np.abs(machines.accelerator_count - count),
    )


def _describe_counts(snapshot: OfferSnapshot, wanted: AcceleratorSpec, gone: Mask) -> Describe:
    def describe(cloud: str, _near: int) -> str:
        part = snapshot.cloud_slices[snapshot.clouds.index(cloud)]
        counts = [
            number_text(count)
            for count in np.unique(snapshot.machines.accelerator_count[part][gone[part]]).tolist()
        ]
        return f"{_device_text(wanted)} in other numbers than {number_text(wanted.count)}: {few(counts)}"

    return describe


def _device_text(wanted: AcceleratorSpec) -> str:
    return accelerator_text(wanted).rsplit(":", 1)[0]


def _describe_arch(snapshot: OfferSnapshot) -> Describe:
    return lambda _cloud, near: f"{snapshot.machines.arch[near]} machines; name an instance_type to use one"


def _keep_sizes(sieve: Sieve, need: Need) -> None:
    snapshot, spec = sieve.snapshot, need.spec
    use_default = not need.sized and not snapshot.divisible
    cpus = DEFAULT_CPUS if use_default else spec.cpus
    memory = DEFAULT_MEMORY if use_default else spec.memory
    _keep_size(sieve, "vCPUs", snapshot.machines.vcpus, cpus)
    _keep_size(sieve, "GiB of memory", snapshot.machines.memory_gib, memory)


def _keep_size(sieve: Sieve, unit: str, have: Floats, wanted: Quantity | None) -> None:
    if wanted is None:
        return
    target: Any = wanted.value * sieve.snapshot.machines.vcpus if wanted.per_cpu else wanted.value
    missing = target - have
    if wanted.at_least or sieve.snapshot.divisible:
        passing = missing <= _SIZE_TOLERANCE
    else:
        passing = np.abs(missing) <= _SIZE_TOLERANCE

    def describe(_cloud: str, near: int) -> str:
        size = have[near]
        if size != size:
            return f"the number of {unit} is not known, and {quantity_text(wanted)} is asked for"
        return f"{number_text(size)} {unit} is the nearest to {quantity_text(wanted)}"

    def figures(near: int) -> dict[str, float]:
        size = float(have[near])
        return {"asked": wanted.value} if size != size else {"asked": wanted.value, "nearest": size}

    distance = np.nan_to_num(np.abs(missing), nan=1e12)
    sieve.keep(passing, "size", describe, distance=distance, figures=figures)


def _allowed_offers(sieve: Sieve, need: Need, gate: Gate) -> Mask:
    """Applies place, images by region, capacity type, earlier attempts, policies and quotas."""
    snapshot, spec = sieve.snapshot, need.spec
    allowed = snapshot.open_offers
    if spec.region or spec.zone:
        allowed = place_mask(snapshot, spec.region, spec.zone)[snapshot.place]
        if spec.region and "*" in spec.region:
            # Places that are used only when they are named.
            allowed = allowed & snapshot.open_offers
        where = "/".join(part for part in (spec.region, spec.zone) if part)
        sieve.keep(count_per_machine(snapshot, allowed) > 0, "region", _describe_region(snapshot, where))
    else:
        sieve.keep(snapshot.open_count > 0, "region", _describe_region(snapshot, "an open region"))
    kind = "spot" if need.use_spot else "on-demand"
    sold = snapshot.sold_count(need.use_spot, allowed) > 0
    sieve.keep(sold, "feature", lambda _c, _m: f"sells no {kind} capacity")
    if isinstance(spec.image_id, dict) and (regions := sorted(set(spec.image_id) - {"docker"})):
        allowed = allowed & _places_in(snapshot, regions)[snapshot.place]
        left = snapshot.sold_count(need.use_spot, allowed) > 0
        sieve.keep(left, "feature", lambda _c, _m: f"image_id names images in {few(regions)} only")
    if gate.blocked:
        blocked = [_in_asked_zone(entry, spec.zone) for entry in gate.blocked]
        allowed = allowed & ~block_mask(snapshot, blocked, need.use_spot)
        left = snapshot.sold_count(need.use_spot, allowed) > 0
        sieve.keep(left, "blocked", lambda _c, _m: "already tried in this launch")
    allowed = _not_denied(sieve, need, gate, allowed)
    return _within_quotas(sieve, need, gate, allowed)


def _in_asked_zone(entry: Mapping[str, Any], zone: str | None) -> Mapping[str, Any]:
    """The zone asked for may be one that the catalog prices by region only: then it stands for the whole region here."""
    same = zone is not None and str(entry.get("zone") or "").lower() == zone.lower()
    return {**entry, "zone": ""} if same else entry


def _places_in(snapshot: OfferSnapshot, regions: Sequence[str]) -> Mask:
    names = {region.lower() for region in regions}
    return np.array([region.lower() in names for region in snapshot.places.region], dtype=bool)


def _not_denied(sieve: Sieve, need: Need, gate: Gate, allowed: Mask) -> Mask:
    snapshot = sieve.snapshot
    for item in gate.denied:
        if item.use_spot not in (None, need.use_spot):
            continue
        allowed = allowed & ~row_mask(snapshot, place_of(item))
        left = snapshot.sold_count(need.use_spot, allowed) > 0
        sieve.keep(left, "policy", lambda _c, _m, words=item.reason: words)  # type: ignore[misc]
    return allowed


def _within_quotas(sieve: Sieve, need: Need, gate: Gate, allowed: Mask) -> Mask:
    """A quota that one task of its own would break."""
    snapshot = sieve.snapshot
    for pool in gate.quotas:
        if pool.use_spot not in (None, need.use_spot):
            continue
        needed = units_of(need, snapshot, pool.unit) * gate.num_nodes
        over = pool_machines(snapshot, pool) & (needed > pool.limit + _NEAR)
        if not over.any():
            continue
        allowed = allowed & ~(row_mask(snapshot, place_of(pool)) & over[snapshot.machine])
        left = snapshot.sold_count(need.use_spot, allowed) > 0
        sieve.keep(left, "quota", lambda _c, m, p=pool, n=needed: quota_text(p, float(n[m])))  # type: ignore[misc]
    return allowed


def _describe_region(snapshot: OfferSnapshot, where: str) -> Describe:
    def describe(_cloud: str, near: int) -> str:
        first, last = snapshot.machines.first_offer[near : near + 2]
        regions = sorted(
            {snapshot.places.region[place] for place in snapshot.place[first:last].tolist()} - {""}
        )
        return f"not sold in {where}" + (f"; sold in {few(regions)}" if regions else "")

    return describe


def _keep_affordable(sieve: Sieve, need: Need, lowest: Floats) -> None:
    cap = need.spec.max_hourly_cost
    if cap is None:
        return

    def describe(_cloud: str, near: int) -> str:
        if np.isinf(lowest[near]):
            return f"no price is known, so max_hourly_cost {cap:g} cannot be kept"
        return f"${lowest[near]:.2f} an hour is the cheapest, max_hourly_cost is {cap:g}"

    def figures(near: int) -> dict[str, float]:
        return {"asked": cap} if np.isinf(lowest[near]) else {"asked": cap, "price": float(lowest[near])}

    sieve.keep(lowest <= cap + _NEAR, "price", describe, distance=lowest, figures=figures)


def _keep_enabled(sieve: Sieve, enabled: frozenset[str] | None, lowest: Floats) -> None:
    """Last, so that the reason can say what the cloud would have cost."""
    if enabled is None:
        return
    snapshot = sieve.snapshot
    numbers = [number for number, cloud in enumerate(snapshot.clouds) if cloud in enabled]
    passing = np.isin(snapshot.machines.cloud, numbers)

    def describe(cloud: str, near: int) -> str:
        price = f"; it has this from ${lowest[near]:.2f} an hour" if np.isfinite(lowest[near]) else ""
        return f"not enabled{price}: sky check {cloud}"

    def figures(near: int) -> dict[str, float]:
        return {"price": float(lowest[near])} if np.isfinite(lowest[near]) else {}

    sieve.keep(passing, "not_enabled", describe, distance=lowest, figures=figures)
