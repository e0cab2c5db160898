"""What a run is expected to cost, not what an hour costs: interruptions, lost work and restarts in hours.

Pure. Interruptions of one node are taken as memoryless with a rate an hour; a gang of nodes is interrupted when any of them is.
Work is saved at every checkpoint; without checkpoints it begins anew.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from skyloom_common.contracts.plan import RunEstimate
from skyloom_common.core.errors import InvalidRequest
from skyloom_optimizer.snapshot import Floats, OfferSnapshot

HOURS_PER_MONTH = 730.0
DEFAULT_HOURS = 1.0
_MOST_EXPONENT = 50.0


@dataclass(frozen=True)
class Outlook:
    """Hours to finish as expected, each an array of one shape: `total` = run + lost + restart."""

    run: Floats
    lost: Floats
    restart: Floats
    interruptions: Floats

    @property
    def total(self) -> Floats:
        return self.run + self.lost + self.restart


def outlook(hours: Floats, rate: Floats, run: RunEstimate) -> Outlook:
    """`rate`: interruptions an hour that stop the work (all nodes together); it may be 0."""
    hours, rate = np.broadcast_arrays(np.asarray(hours, dtype=np.float64), np.asarray(rate, dtype=np.float64))
    segment = hours if run.checkpoint_minutes is None else np.minimum(hours, run.checkpoint_minutes / 60)
    whole = np.floor(hours / segment + 1e-9)
    rest = np.maximum(hours - whole * segment, 0.0)
    count = whole * _failures(rate, segment) + _failures(rate, rest)
    active = rate > 0
    tried = np.where(active, count / np.where(active, rate, 1.0), hours)
    return Outlook(hours, np.maximum(tried - hours, 0.0), count * run.restart_minutes / 60, count)


def _failures(rate: Floats, segment: Floats) -> Floats:
    """Expected interruptions until a segment is finished once without one."""
    found: Floats = np.expm1(np.minimum(rate * segment, _MOST_EXPONENT))
    return found


def rate_of_month(percent: float) -> float:
    """Interruptions an hour where this share of machines is interrupted within a month."""
    share = min(max(percent, 0.0) / 100, 0.99)
    return float(-np.log1p(-share) / HOURS_PER_MONTH)


def hours_of_machines(run: RunEstimate, world: OfferSnapshot) -> Floats:
    """Run time on each machine; all equal unless `hours_on` names some by accelerator or instance type."""
    base = DEFAULT_HOURS if run.hours is None else run.hours
    hours = np.full(len(world.machines), base)
    for name, value in run.hours_on.items():
        device = world.names.find(name, 1.0)
        if device is not None:
            hours[np.isin(world.machines.accelerator, device.devices)] = value
        for number in world.machine_number.get(name.lower(), []):
            hours[number] = value
    return hours


def check_run(run: RunEstimate, field: str = "run") -> None:
    for name, value in (("hours", run.hours), ("checkpoint_minutes", run.checkpoint_minutes)):
        if value is not None and not 0 < value < 1e6:
            raise InvalidRequest(f"{field}.{name}: {value} is not a number above 0", details={"field": name})
    if not 0 <= run.restart_minutes < 1e6:
        raise InvalidRequest(f"{field}.restart_minutes: {run.restart_minutes} is not a number of at least 0")
    for key, value in run.hours_on.items():
        if not 0 < value < 1e6:
            raise InvalidRequest(f"{field}.hours_on.{key}: {value} is not a number above 0")
