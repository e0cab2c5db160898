"""What is asked of the price history, checked. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from skyloom_common.core.errors import InvalidRequest
from skyloom_common.core.text import did_you_mean
from skyloom_optimizer.snapshot import OfferSnapshot

LEAST_STEP = 60.0
MOST_STEPS = 2000
_NICE_STEPS = (60, 300, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400)
_DAY = 86400.0


@dataclass(frozen=True)
class HistoryQuery:
    """`machines`: (cloud, instance type), any of which. `step` seconds, or 0 for the observations as they are.

    `points`: at most so many for each series; the step follows from it once the range is known.
    """

    machines: Sequence[tuple[str, str]]
    region: str | None = None
    zone: str | None = None
    use_spot: bool | None = None
    since: float = 0.0
    until: float = math.inf
    step: float = 0.0
    points: int | None = None

    def __post_init__(self) -> None:
        if math.isnan(self.since) or math.isnan(self.until) or self.since >= self.until:
            raise InvalidRequest(f"since: {self.since:g} is not before until ({self.until:g})")
        if self.step and self.points:
            raise InvalidRequest(
                "step and points: one of them says how fine the series are; leave the other out"
            )
        if self.step and not self.step >= LEAST_STEP:
            raise InvalidRequest(f"step: {self.step:g} is not a number of seconds of at least {LEAST_STEP:g}")
        if self.points is not None and not 1 <= self.points <= MOST_STEPS:
            raise InvalidRequest(f"points: {self.points} is not between 1 and {MOST_STEPS}")

    @property
    def sampled(self) -> bool:
        return bool(self.step or self.points)

    def step_of(self, first: float, last: float) -> float:
        """Raises InvalidRequest where a step makes too many points."""
        wide = max(last - first, LEAST_STEP)
        if self.step:
            if wide / self.step > MOST_STEPS:
                least = math.ceil(wide / MOST_STEPS / LEAST_STEP) * LEAST_STEP
                raise InvalidRequest(
                    f"step: {self.step:g} is too fine for this range; at least {least:g}, or a later since"
                )
            return self.step
        assert self.points is not None
        # A series may begin and end inside of a step: one more than fits is drawn.
        exact = wide / max(self.points - 1, 1)
        return float(next((step for step in _NICE_STEPS if step >= exact), math.ceil(exact / _DAY) * _DAY))


def machines_of(
    snapshot: OfferSnapshot, cloud: str | None, instance_type: str | None, accelerator: str | None
) -> list[tuple[str, str]]:
    """Named by cloud and instance type, or by what is in them: `H100:8`, or `H100` for every number of them."""
    if accelerator is None:
        if not cloud or not instance_type:
            raise InvalidRequest(
                "cloud and instance_type, or accelerator: say which prices; such as "
                "cloud=aws&instance_type=p5.48xlarge, or accelerator=H100:8"
            )
        return [(cloud, instance_type)]
    if instance_type is not None:
        raise InvalidRequest(
            "instance_type and accelerator: one of them names the machines; leave the other out"
        )
    return _with_accelerator(snapshot, accelerator, cloud)


def _with_accelerator(snapshot: OfferSnapshot, text: str, cloud: str | None) -> list[tuple[str, str]]:
    name, _, number = text.partition(":")
    try:
        count = float(number) if number else None
    except ValueError:
        raise InvalidRequest(f"accelerator: {text!r} is not NAME or NAME:COUNT, such as H100:8") from None
    if cloud is not None and cloud not in snapshot.clouds:
        raise InvalidRequest(f"cloud: {cloud!r} is not in the catalog{did_you_mean(cloud, snapshot.clouds)}")
    found = snapshot.names.find(name, count or 1.0)
    if found is None or not found.devices:
        guess = snapshot.names.nearest(name)
        maybe = f"; did you mean {guess!r}?" if guess else ""
        raise InvalidRequest(f"accelerator: {name!r} is not a known accelerator{maybe}")
    machines = snapshot.machines
    mask = np.isin(machines.accelerator, found.devices)
    if count is not None:
        mask &= np.isclose(machines.accelerator_count, count)
    if cloud is not None:
        mask &= machines.cloud == snapshot.clouds.index(cloud)
    numbers = np.flatnonzero(mask).tolist()
    return sorted({(snapshot.clouds[int(machines.cloud[n])], machines.name[n]) for n in numbers})
