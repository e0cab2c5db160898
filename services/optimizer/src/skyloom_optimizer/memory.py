"""Availability memory: launch outcomes in, what to expect of a place now out.

Pure: outcomes and the present moment are arguments. Two things are kept: penalties, which say how recently something failed and
reach as far as the provider's answer did (a cloud, a region, a zone), and the posteriors of `availability`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import cached_property

from skyloom_common.contracts.plan import LaunchOutcome
from skyloom_optimizer.availability import (
    ENDED,
    INTERRUPTED,
    OK,
    CapacityMemory,
    Observation,
    learn,
    observation,
)

HALF_LIFE_SECONDS = 900.0
RECENT_FAILURE = 0.25
"""From this penalty on a place is not the first to be tried: about half an hour after a single failure."""
_FORGET_BELOW = 0.02

# How far a failure reaches: what is not named here concerns one zone and one machine type.
_WHOLE_CLOUD = frozenset({"credentials_invalid"})
_WHOLE_REGION = frozenset({"quota_exceeded"})
_ANY_TYPE = frozenset({"access_denied"})
_PRICE = frozenset({"price_limit_exceeded"})
_NOBODYS_FAULT = frozenset(
    {"provider_invalid_request", "throttled", "invalid_request", "operation_cancelled"}
)
NOT_CAPACITY = _WHOLE_CLOUD | _WHOLE_REGION | _ANY_TYPE | _PRICE | _NOBODYS_FAULT
"""Results that say nothing about capacity."""

Key = tuple[str, str, str, str, bool | None]
"""cloud, region, zone, instance type, use_spot; empty or None stands for "any"."""


@dataclass(frozen=True)
class AvailabilityMemory:
    """Penalties in [0, 1): 0 = nothing bad is known. Keys are as wide as the failure reached."""

    penalties: dict[Key, float] = field(default_factory=dict)
    capacity: CapacityMemory = field(default_factory=CapacityMemory)
    quota: frozenset[Key] = frozenset()
    """Keys of `penalties` that come from quotas."""

    def penalty(self, cloud: str, region: str, zone: str, instance_type: str, use_spot: bool) -> float:
        """The worst that is known of this place; without a zone, of all zones of its region."""
        place = (cloud, region, zone, instance_type, use_spot)
        known = self._by_cloud.get(cloud, ())
        return max((value for key, value in known if _covers(key, place)), default=0.0)

    def chance(self, cloud: str, region: str, zone: str, instance_type: str, use_spot: bool) -> float:
        """That a launch succeeds now: capacity, and what else failed as widely as it did."""
        place = (cloud, region, zone, instance_type, use_spot)
        other = max((value for key, value in self._wide.get(cloud, ()) if _covers(key, place)), default=0.0)
        return max(self.capacity.chance(*place) * (1 - other), 0.01)

    @cached_property
    def clouds(self) -> Collection[str]:
        """Clouds of which anything is known."""
        return self._by_cloud.keys() | self.capacity.clouds

    @cached_property
    def _by_cloud(self) -> dict[str, list[tuple[Key, float]]]:
        found: dict[str, list[tuple[Key, float]]] = {}
        for key, value in self.penalties.items():
            found.setdefault(key[0], []).append((key, value))
        return found

    @cached_property
    def _wide(self) -> dict[str, list[tuple[Key, float]]]:
        """Failures that concern more than one zone's capacity: account and quota."""
        found: dict[str, list[tuple[Key, float]]] = {}
        for key, value in self.penalties.items():
            if not key[3] or (key[2] == "" and key in self.quota):
                found.setdefault(key[0], []).append((key, value))
        return found


def remember(
    outcomes: Iterable[LaunchOutcome], now: float, earlier: Iterable[Observation] = ()
) -> AvailabilityMemory:
    """What outcomes, in any order, say at `now`. One from the future (a clock jump) counts as fresh.

    `earlier`: observations from before these outcomes, summed up; they feed the posteriors only.
    """
    weight: dict[Key, float] = {}
    quota: set[Key] = set()
    seen: list[Observation] = [item for item in earlier if item.result not in NOT_CAPACITY]
    for outcome in sorted(outcomes, key=lambda o: o.at):
        if outcome.result not in NOT_CAPACITY:
            seen.append(observation(outcome))
        if outcome.result == OK:
            _forgive(weight, outcome)
        elif outcome.result not in _NOBODYS_FAULT and outcome.result != ENDED:
            key = scope(outcome)
            age = max(0.0, now - outcome.at)
            weight[key] = weight.get(key, 0.0) + 0.5 ** (age / HALF_LIFE_SECONDS)
            if outcome.result in _WHOLE_REGION:
                quota.add(key)
    penalties = {key: value / (value + 1) for key, value in weight.items()}
    kept = {key: value for key, value in penalties.items() if value >= _FORGET_BELOW}
    return AvailabilityMemory(kept, learn(seen, now), frozenset(quota))


def scope(outcome: LaunchOutcome) -> Key:
    """As wide as the provider's answer reaches."""
    if outcome.result in _WHOLE_CLOUD:
        return (outcome.cloud, "", "", "", None)
    if outcome.result in _WHOLE_REGION:
        return (outcome.cloud, outcome.region, "", outcome.instance_type, outcome.use_spot)
    if outcome.result in _ANY_TYPE:
        return (outcome.cloud, outcome.region, outcome.zone, "", None)
    return (outcome.cloud, outcome.region, outcome.zone, outcome.instance_type, outcome.use_spot)


def _forgive(weight: dict[Key, float], outcome: LaunchOutcome) -> None:
    place = (outcome.cloud, outcome.region, outcome.zone, outcome.instance_type, outcome.use_spot)
    for key in [key for key in weight if _covers(key, place)]:
        del weight[key]


def _covers(key: Key, place: tuple[str, str, str, str, bool]) -> bool:
    return all(
        part in ("", None) or part == asked or (position == 2 and not asked)
        for position, (part, asked) in enumerate(zip(key, place, strict=True))
    )


__all__ = [
    "HALF_LIFE_SECONDS",
    "INTERRUPTED",
    "NOT_CAPACITY",
    "OK",
    "RECENT_FAILURE",
    "AvailabilityMemory",
    "remember",
    "scope",
]
