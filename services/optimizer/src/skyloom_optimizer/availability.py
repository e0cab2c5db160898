"""What launches and interruptions say about a place: the chance that a launch succeeds now, and how long machines live.

Pure. A place is cloud x region x zone x type x capacity type. Its long-run chance is a Beta posterior whose prior is the chance
of its zone (all types), whose prior is that of its region; counts fade over days. Upon it lies the last thing seen, which fades
within hours: capacity that was there a moment ago is still there, and the other way round. How long spot machines live is a Gamma
posterior with the same levels. Without observations every place has the same chance, so that price alone decides.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import cached_property

from skyloom_common.contracts.plan import LaunchOutcome

OK, INTERRUPTED, ENDED = "ok", "interrupted", "ended"

PRIOR_CHANCE = 0.85
LONG_HALF_LIFE = 24 * 3600.0
LIFETIME_HALF_LIFE = 14 * 24 * 3600.0
LAST_SEEN_HALF_LIFE = 45 * 60.0
DEFAULT_SECONDS_TO_RUNNING = 120.0
_PRIOR_WEIGHT = 6.0
_LEVEL_WEIGHT = 6.0
_PRIOR_HOURS = 48.0
_START_WEIGHT = 3.0
_LEAST, _MOST = 0.01, 0.99

Key = tuple[str | bool, ...]


@dataclass(frozen=True)
class Observation:
    """Launches, or ends of nodes, of one place with one result. `seconds`: their sum, to running or until the end."""

    cloud: str
    region: str
    zone: str
    instance_type: str
    use_spot: bool
    result: str
    at: float
    count: int = 1
    seconds: float | None = None


def observation(outcome: LaunchOutcome) -> Observation:
    ended = outcome.result in (INTERRUPTED, ENDED)
    seconds = outcome.ran_seconds if ended else outcome.seconds_to_running
    return Observation(
        outcome.cloud,
        outcome.region,
        outcome.zone,
        outcome.instance_type,
        outcome.use_spot,
        outcome.result,
        outcome.at,
        1,
        seconds,
    )


@dataclass
class _Tally:
    """Faded counts of one level of one place."""

    worked: float = 0.0
    failed: float = 0.0
    started: float = 0.0
    start_seconds: float = 0.0
    taken: float = 0.0
    hours: float = 0.0
    last: tuple[float, bool] | None = None


@dataclass(frozen=True)
class CapacityMemory:
    """Posteriors at the moment `now`. Keys of every level live in one table."""

    tallies: dict[Key, _Tally] = field(default_factory=dict)
    now: float = 0.0

    @cached_property
    def clouds(self) -> Collection[str]:
        return frozenset(str(key[0]) for key in self.tallies)

    def chance(self, cloud: str, region: str, zone: str, instance_type: str, use_spot: bool) -> float:
        """That a launch succeeds now."""
        levels = _levels(cloud, region, zone, instance_type, use_spot)
        chance = PRIOR_CHANCE
        for number, key in enumerate(levels):
            tally = self.tallies.get(key)
            if tally is not None:
                weight = _LEVEL_WEIGHT if number else _PRIOR_WEIGHT
                chance = (weight * chance + tally.worked) / (weight + tally.worked + tally.failed)
        leaf = self.tallies.get(levels[-1])
        if leaf is not None and leaf.last is not None:
            at, worked = leaf.last
            fresh = 0.5 ** (max(0.0, self.now - at) / LAST_SEEN_HALF_LIFE)
            chance += (float(worked) - chance) * fresh
        return min(max(chance, _LEAST), _MOST)

    def interruptions_per_hour(
        self, cloud: str, region: str, zone: str, instance_type: str, use_spot: bool, published: float
    ) -> float:
        """`published`: the rate that the provider's figures give; it weighs as much as two days of one machine."""
        rate = published
        for key in _levels(cloud, region, zone, instance_type, use_spot):
            tally = self.tallies.get(key)
            if tally is not None and tally.hours + tally.taken > 0:
                rate = (rate * _PRIOR_HOURS + tally.taken) / (_PRIOR_HOURS + tally.hours)
        return rate

    def seconds_to_running(
        self, cloud: str, region: str, zone: str, instance_type: str, use_spot: bool
    ) -> float:
        seconds = DEFAULT_SECONDS_TO_RUNNING
        for key in _levels(cloud, region, zone, instance_type, use_spot):
            tally = self.tallies.get(key)
            if tally is not None and tally.started > 0:
                total = _START_WEIGHT * seconds + tally.start_seconds
                seconds = total / (_START_WEIGHT + tally.started)
        return seconds


def learn(observations: Iterable[Observation], now: float) -> CapacityMemory:
    """Posteriors at `now`; observations come in any order, those from the future count as fresh."""
    tallies: dict[Key, _Tally] = {}
    for seen in sorted(observations, key=lambda item: item.at):
        age = max(0.0, now - seen.at)
        for key in _keys(seen):
            _add(tallies.setdefault(key, _Tally()), seen, age)
    return CapacityMemory(tallies, now)


def _levels(cloud: str, region: str, zone: str, instance_type: str, use_spot: bool) -> tuple[Key, ...]:
    """Widest first. Without a zone the region stands for all of its zones."""
    wide: Key = (cloud, region, use_spot)
    if not zone:
        return (wide, (cloud, region, "", instance_type, use_spot))
    return (wide, (cloud, region, zone, use_spot), (cloud, region, zone, instance_type, use_spot))


def _keys(seen: Observation) -> list[Key]:
    keys = list(_levels(seen.cloud, seen.region, seen.zone, seen.instance_type, seen.use_spot))
    if seen.zone:
        keys.append((seen.cloud, seen.region, "", seen.instance_type, seen.use_spot))
    return keys


def _add(tally: _Tally, seen: Observation, age: float) -> None:
    faded = seen.count * 0.5 ** (age / LONG_HALF_LIFE)
    lived = seen.count * 0.5 ** (age / LIFETIME_HALF_LIFE)
    if seen.result in (INTERRUPTED, ENDED):
        tally.taken += lived if seen.result == INTERRUPTED else 0.0
        tally.hours += lived / seen.count * (seen.seconds or 0.0) / 3600
        if seen.result == INTERRUPTED:
            tally.last = (seen.at, False)
        return
    worked = seen.result == OK
    tally.worked += faded if worked else 0.0
    tally.failed += 0.0 if worked else faded
    tally.last = (seen.at, worked)
    if worked and seen.seconds is not None:
        tally.started += faded
        tally.start_seconds += faded / seen.count * seen.seconds
