"""Which offers satisfy a need, and why the rest do not.

Pure vector work on a snapshot. Requirements are applied one after another; what each removes is counted for
each cloud under that requirement, with the machine that came nearest. Nothing is ranked here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from skyloom_common.contracts.plan import DeniedPlace, QuotaPool, Rejection
from skyloom_common.contracts.task.model import AcceleratorSpec, Quantity
from skyloom_common.core.errors import InvalidRequest
from skyloom_common.core.text import did_you_mean
from skyloom_optimizer.gate import OPEN, Gate, asked_features, missing_feature, quota_text
from skyloom_optimizer.names import number_text
from skyloom_optimizer.needs import (
    DEFAULT_CPUS,
    DEFAULT_MEMORY,
    Need,
    accelerator_text,
    aws_region_of,
    quantity_text,
)
from skyloom_optimizer.snapshot import (
    NO_ACCELERATOR,
    Floats,
    Ints,
    Mask,
    OfferSnapshot,
    count_per_machine,
)

BLOCK_KEYS = ("cloud", "region", "zone", "instance_type", "use_spot")
_ANYWHERE = "*"
# For whom a requirement reports: each cloud it touched; only clouds that it emptied (elsewhere it goes without
# saying that most machines have no such device); or all clouds as one (nobody looks for what he excluded).
_EACH, _EMPTIED, _TOGETHER = "each", "emptied", "together"
_NEAR = 1e-6
_SIZE_TOLERANCE = 0.01
# A third of a card is sold as 0.333 and as 0.3333.
_COUNT_TOLERANCE = 0.005

Describe = Callable[[str, int], str]
Figures = Callable[[int], dict[str, float]]


@dataclass(frozen=True)
class Feasible:
    """`machines`: those that satisfy the need somewhere. `allowed`: offers that may be used, if sold.

    `lowest`: cheapest allowed price of each machine, infinite where no price is known.
    """

    machines: Mask
    allowed: Mask
    lowest: Floats
    rejected: tuple[Rejection, ...] = ()


@dataclass(frozen=True)
class _Drop:
    code: str
    gone: Mask
    distance: Floats | None
    describe: Describe
    scope: str = _EACH
    figures: Figures | None = None


class _Sieve:
    """Machines still in the running, and what each requirement removed."""

    def __init__(self, snapshot: OfferSnapshot) -> None:
        self.snapshot = snapshot
        self.alive: Mask = np.ones(len(snapshot.machines), dtype=bool)
        self.drops: list[_Drop] = []

    def keep(
        self,
        passing: Mask,
        code: str,
        describe: Describe,
        *,
        distance: Floats | None = None,
        scope: str = _EACH,
        figures: Figures | None = None,
    ) -> None:
        gone = self.alive & ~passing
        if gone.any():
            self.drops.append(_Drop(code, gone, distance, describe, scope, figures))
            self.alive &= passing

    def rejections(self, rank: Floats) -> tuple[Rejection, ...]:
        """Where a requirement has no distance of its own, the least by `rank` is the nearest miss."""
        found: list[Rejection] = []
        alive = self.snapshot.offers_by_cloud(self.alive)
        for drop in reversed(self.drops):
            alive += self.snapshot.offers_by_cloud(drop.gone)
        for drop in self.drops:
            gone = self.snapshot.offers_by_cloud(drop.gone)
            alive -= gone
            found += self._rejections_of(drop, rank, gone, alive)
        return tuple(found)

    def _rejections_of(self, drop: _Drop, rank: Floats, gone: Ints, alive: Ints) -> list[Rejection]:
        """`gone`, `alive`: offers of each cloud that this requirement removed and left."""
        snapshot = self.snapshot
        if drop.scope == _TOGETHER:
            near = int(np.argmax(drop.gone))
            return [Rejection(_ANYWHERE, drop.code, drop.describe(_ANYWHERE, near), int(gone.sum()))]
        touched = gone > 0 if drop.scope == _EACH else (gone > 0) & (alive == 0)
        distance = rank if drop.distance is None else drop.distance
        nearest = snapshot.least_of_clouds(distance, drop.gone).tolist()
        found = []
        for number in np.flatnonzero(touched).tolist():
            cloud, near = snapshot.clouds[number], nearest[number]
            example = None if drop.scope == _EMPTIED else snapshot.machines.name[near]
            numbers = {} if drop.figures is None else drop.figures(near)
            text = drop.describe(cloud, near)
            found.append(Rejection(cloud, drop.code, text, int(gone[number]), example, numbers))
        return found


def split_feasible(need: Need, snapshot: OfferSnapshot, gate: Gate = OPEN) -> Feasible:
    """The machines and offers that satisfy `need`, and the reasons for the rest."""
    sieve, allowed, lowest = _sift(need, snapshot, gate)
    rank = snapshot.lowest(need.use_spot, snapshot.open_offers)
    return Feasible(sieve.alive, allowed, lowest, sieve.rejections(rank))


def feasible_only(need: Need, snapshot: OfferSnapshot, gate: Gate = OPEN) -> Feasible:
    """As `split_feasible`, without the reasons."""
    sieve, allowed, lowest = _sift(need, snapshot, gate)
    return Feasible(sieve.alive, allowed, lowest)


def _sift(need: Need, snapshot: OfferSnapshot, gate: Gate) -> tuple[_Sieve, Mask, Floats]:
    sieve = _Sieve(snapshot)
    _keep_asked_place(sieve, need)
    _keep_accelerators(sieve, need)
    _keep_sizes(sieve, need)
    _keep_features(sieve, need, gate)
    allowed = _allowed_offers(sieve, need, gate)
    lowest = snapshot.lowest(need.use_spot, allowed)
    _keep_affordable(sieve, need, lowest)
    _keep_enabled(sieve, gate.enabled, lowest)
    return sieve, allowed, lowest


def _keep_features(sieve: _Sieve, need: Need, gate: Gate) -> None:
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


def _keep_asked_place(sieve: _Sieve, need: Need) -> None:
    snapshot, spec = sieve.snapshot, need.spec
    if spec.cloud:
        passing = snapshot.machines.cloud == _number_of(snapshot.clouds, spec.cloud)
        sieve.keep(passing, "region", lambda _c, _m: f"the task asks for {spec.cloud}", scope=_TOGETHER)
    if need.instance_type:
        passing = np.zeros(len(snapshot.machines), dtype=bool)
        passing[snapshot.machine_number.get(need.instance_type.lower(), [])] = True
        sieve.keep(passing, "size", lambda _c, _m: f"the task asks for {need.instance_type}", scope=_TOGETHER)


def _number_of(names: Sequence[str], name: str) -> int:
    return names.index(name) if name in names else -1


def _keep_accelerators(sieve: _Sieve, need: Need) -> None:
    machines, snapshot = sieve.snapshot.machines, sieve.snapshot
    if need.accelerator is None:
        if need.instance_type is None and not snapshot.divisible:
            plain = machines.accelerator == NO_ACCELERATOR
            sieve.keep(
                plain, "accelerator", lambda _c, _m: "sells only machines with accelerators", scope=_EMPTIED
            )
            sieve.keep(snapshot.plain_arch, "feature", _describe_arch(snapshot))
        return
    wanted = need.accelerator
    device, count = _device_mask(wanted, snapshot)
    sieve.keep(device, "accelerator", lambda _c, _m: f"has no {_device_text(wanted)}", scope=_EMPTIED)
    sieve.keep(
        count_mask(machines.accelerator_count, count, snapshot.divisible),
        "accelerator",
        _describe_counts(sieve, wanted),
        distance=np.abs(machines.accelerator_count - count),
    )


def device_numbers(wanted: AcceleratorSpec, snapshot: OfferSnapshot) -> tuple[list[int], float]:
    """Devices that a named choice means here, and the count to look for on one machine."""
    found = snapshot.names.find(wanted.name or "", wanted.count)
    return ([], wanted.count) if found is None else (list(found.devices), found.count)


def _device_mask(wanted: AcceleratorSpec, snapshot: OfferSnapshot) -> tuple[Mask, float]:
    machines = snapshot.machines
    if wanted.name is not None:
        devices, count = device_numbers(wanted, snapshot)
        return np.isin(machines.accelerator, devices), count
    memory = machines.accelerator_memory_gib
    asked = wanted.memory_gib or 0.0
    passing = memory >= asked - 0.5 if wanted.memory_at_least else np.abs(memory - asked) <= 0.5
    passing &= machines.accelerator != NO_ACCELERATOR
    if wanted.vendor:
        vendor = wanted.vendor.casefold()
        made = [number for number, name in enumerate(snapshot.device_vendor) if name == vendor]
        passing &= np.isin(machines.accelerator, made)
    return passing, wanted.count


def count_mask(counts: Floats, wanted: float, divisible: bool) -> Mask:
    """A fraction that nobody sells is billed as the next whole device."""
    if divisible:
        enough: Mask = counts >= wanted - _NEAR
        return enough
    whole = np.ceil(wanted - _NEAR)
    fits: Mask = (np.abs(counts - wanted) < _COUNT_TOLERANCE) | (np.abs(counts - whole) < _NEAR)
    return fits


def _describe_counts(sieve: _Sieve, wanted: AcceleratorSpec) -> Describe:
    snapshot, before = sieve.snapshot, sieve.alive.copy()

    def describe(cloud: str, _near: int) -> str:
        part = snapshot.cloud_slices[snapshot.clouds.index(cloud)]
        gone = before[part] & ~sieve.alive[part]
        counts = [
            number_text(count)
            for count in np.unique(snapshot.machines.accelerator_count[part][gone]).tolist()
        ]
        return f"{_device_text(wanted)} in other numbers than {number_text(wanted.count)}: {_listed(counts)}"

    return describe


def _device_text(wanted: AcceleratorSpec) -> str:
    return accelerator_text(wanted).rsplit(":", 1)[0]


def _describe_arch(snapshot: OfferSnapshot) -> Describe:
    return lambda _cloud, near: f"{snapshot.machines.arch[near]} machines; name an instance_type to use one"


def _keep_sizes(sieve: _Sieve, need: Need) -> None:
    snapshot, spec = sieve.snapshot, need.spec
    use_default = not need.sized and not snapshot.divisible
    cpus = DEFAULT_CPUS if use_default else spec.cpus
    memory = DEFAULT_MEMORY if use_default else spec.memory
    _keep_size(sieve, "vCPUs", snapshot.machines.vcpus, cpus)
    _keep_size(sieve, "GiB of memory", snapshot.machines.memory_gib, memory)


def _keep_size(sieve: _Sieve, unit: str, have: Floats, wanted: Quantity | None) -> None:
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


def _allowed_offers(sieve: _Sieve, need: Need, gate: Gate) -> Mask:
    """Applies place, images by region, capacity type, earlier attempts, policies and quotas."""
    snapshot, spec = sieve.snapshot, need.spec
    allowed = snapshot.open_offers
    if spec.region or spec.zone:
        allowed = place_mask(snapshot, spec.region, spec.zone)[snapshot.place]
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
        sieve.keep(left, "feature", lambda _c, _m: f"image_id names images in {_listed(regions)} only")
    if gate.blocked:
        allowed = allowed & ~block_mask(snapshot, gate.blocked, need.use_spot)
        left = snapshot.sold_count(need.use_spot, allowed) > 0
        sieve.keep(left, "blocked", lambda _c, _m: "already tried in this launch")
    allowed = _not_denied(sieve, need, gate, allowed)
    return _within_quotas(sieve, need, gate, allowed)


def _places_in(snapshot: OfferSnapshot, regions: Sequence[str]) -> Mask:
    names = {region.lower() for region in regions}
    return np.array([region.lower() in names for region in snapshot.places.region], dtype=bool)


def _not_denied(sieve: _Sieve, need: Need, gate: Gate, allowed: Mask) -> Mask:
    snapshot = sieve.snapshot
    for item in gate.denied:
        if item.use_spot not in (None, need.use_spot):
            continue
        allowed = allowed & ~row_mask(snapshot, place_of(item))
        left = snapshot.sold_count(need.use_spot, allowed) > 0
        sieve.keep(left, "policy", lambda _c, _m, words=item.reason: words)  # type: ignore[misc]
    return allowed


def _within_quotas(sieve: _Sieve, need: Need, gate: Gate, allowed: Mask) -> Mask:
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


def row_mask(snapshot: OfferSnapshot, place: Mapping[str, Any]) -> Mask:
    """Offers in a partial place."""
    mask = np.zeros(len(snapshot), dtype=bool)
    _block(snapshot, place, mask)
    return mask


def place_of(item: DeniedPlace | QuotaPool) -> dict[str, str]:
    return {name: getattr(item, name) for name in BLOCK_KEYS if name != "use_spot"}


def pool_machines(snapshot: OfferSnapshot, pool: QuotaPool) -> Mask:
    """Machines of the accelerator that a pool is about; all where it names none."""
    if not pool.accelerator:
        return np.ones(len(snapshot.machines), dtype=bool)
    devices, _ = device_numbers(AcceleratorSpec(name=pool.accelerator), snapshot)
    return np.isin(snapshot.machines.accelerator, devices)


def units_of(need: Need, snapshot: OfferSnapshot, unit: str) -> Floats:
    """What one node takes of a pool, for each machine. Of own machines a task takes what it asks for, else all."""
    machines, spec = snapshot.machines, need.spec
    if unit == "nodes":
        return np.ones(len(machines))
    if unit == "accelerators":
        share = need.accelerator.count if need.accelerator and snapshot.divisible else None
        return machines.accelerator_count if share is None else np.full(len(machines), share)
    have, asked = (machines.vcpus, spec.cpus) if unit == "vcpus" else (machines.memory_gib, spec.memory)
    if asked is not None and not asked.per_cpu and snapshot.divisible:
        return np.full(len(machines), asked.value)
    return np.nan_to_num(have)


def place_mask(snapshot: OfferSnapshot, region: str | None, zone: str | None) -> Mask:
    """Places within a region and zone. A regional price holds in each zone of its region."""
    fits = (_place_fits(snapshot, number, region, zone) for number in range(len(snapshot.places)))
    return np.fromiter(fits, dtype=bool, count=len(snapshot.places))


def _place_fits(snapshot: OfferSnapshot, number: int, region: str | None, zone: str | None) -> bool:
    places = snapshot.places
    name = places.region[number]
    if region and name.lower() != region.lower():
        return False
    if not zone or places.zone[number].lower() == zone.lower():
        return True
    cloud = snapshot.clouds[int(places.cloud[number])]
    if cloud == "aws":
        return aws_region_of(zone) == name
    if places.zone[number]:
        return False
    return zone.lower() in {known.lower() for known in snapshot.known_zones.get((cloud, name), ())}


def block_mask(snapshot: OfferSnapshot, blocked: Sequence[Mapping[str, Any]], use_spot: bool) -> Mask:
    """Offers that match any entry; a key that is missing or empty matches anything."""
    check_blocked(blocked)
    mask = np.zeros(len(snapshot), dtype=bool)
    for entry in blocked:
        if entry.get("use_spot") in (None, use_spot):
            _block(snapshot, entry, mask)
    return mask


def check_blocked(blocked: Sequence[Mapping[str, Any]]) -> None:
    for entry in blocked:
        for key in entry:
            if key not in BLOCK_KEYS:
                text = (
                    f"blocked: {key!r} is not one of {', '.join(BLOCK_KEYS)}{did_you_mean(key, BLOCK_KEYS)}"
                )
                raise InvalidRequest(text, details={"field": f"blocked.{key}"})


def _block(snapshot: OfferSnapshot, entry: Mapping[str, Any], mask: Mask) -> None:
    places = blocked_places(snapshot, entry)
    if not entry.get("instance_type"):
        mask |= places[snapshot.place]
        return
    for number in snapshot.machine_number.get(str(entry["instance_type"]).lower(), []):
        first, last = snapshot.machines.first_offer[number : number + 2]
        mask[first:last] |= places[snapshot.place[first:last]]


def blocked_places(snapshot: OfferSnapshot, entry: Mapping[str, Any]) -> Mask:
    places = snapshot.places
    mask = np.ones(len(places), dtype=bool)
    if entry.get("cloud"):
        mask &= places.cloud == _number_of(snapshot.clouds, str(entry["cloud"]))
    for key, names in (("region", places.region), ("zone", places.zone)):
        if entry.get(key):
            mask &= np.array([name == entry[key] for name in names], dtype=bool)
    return mask


def _describe_region(snapshot: OfferSnapshot, where: str) -> Describe:
    def describe(_cloud: str, near: int) -> str:
        first, last = snapshot.machines.first_offer[near : near + 2]
        regions = sorted(
            {snapshot.places.region[place] for place in snapshot.place[first:last].tolist()} - {""}
        )
        return f"not sold in {where}" + (f"; sold in {_listed(regions)}" if regions else "")

    return describe


def _keep_affordable(sieve: _Sieve, need: Need, lowest: Floats) -> None:
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


def _keep_enabled(sieve: _Sieve, enabled: frozenset[str] | None, lowest: Floats) -> None:
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


def _listed(names: Sequence[str], most: int = 4) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def rows_of(snapshot: OfferSnapshot, machine: int, use_spot: bool, allowed: Mask) -> Ints:
    """Offer rows of one machine that are sold and allowed."""
    first, last = snapshot.machines.first_offer[machine : machine + 2]
    usable: Mask = snapshot.prices(use_spot).sold[first:last] & allowed[first:last]
    rows: Ints = first + np.flatnonzero(usable)
    return rows
