"""Accelerators of machines: which ones a choice means, how many are enough, and what a node takes of a pool. Pure."""

from __future__ import annotations

import numpy as np

from skyloom_common.contracts.plan import QuotaPool
from skyloom_common.contracts.task.model import AcceleratorSpec
from skyloom_optimizer.needs import Need
from skyloom_optimizer.snapshot import NO_ACCELERATOR, Floats, Mask, OfferSnapshot

_NEAR = 1e-6
# A third of a card is sold as 0.333 and as 0.3333.
_COUNT_TOLERANCE = 0.005


def device_numbers(wanted: AcceleratorSpec, snapshot: OfferSnapshot) -> tuple[list[int], float]:
    """Devices that a named choice means here, and the count to look for on one machine."""
    found = snapshot.names.find(wanted.name or "", wanted.count)
    return ([], wanted.count) if found is None else (list(found.devices), found.count)


def device_mask(wanted: AcceleratorSpec, snapshot: OfferSnapshot) -> tuple[Mask, float]:
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
