"""Policies by name: ours, then those that other packages register in the entry point group `skyloom.lb.policies`.

An entry point names a callable `make(options, random) -> Policy`. Ours win over theirs of the same name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any

from skyloom_common.core.errors import InvalidRequest
from skyloom_common.core.text import did_you_mean
from skyloom_lb.pipeline import least, scoring
from skyloom_lb.pipeline.affinity import PrefixAffinity, SessionAffinity
from skyloom_lb.pipeline.model import Policy, Random
from skyloom_lb.pipeline.spread import PowerOfTwo, RandomByWeight, RoundRobin

GROUP = "skyloom.lb.policies"
Make = Callable[[Mapping[str, Any], Random], Policy]

OURS: dict[str, Make] = {
    "round_robin": lambda options, random: RoundRobin(**options),
    "random": lambda options, random: RandomByWeight(random, **options),
    "power_of_two": lambda options, random: PowerOfTwo(random, **options),
    "least_load": lambda options, random: least.Least("least_load", least.by_load, **options),
    "instance_aware_least_load": lambda options, random: least.Least(
        "instance_aware_least_load", least.by_capacity, **options
    ),
    "latency": lambda options, random: least.Least("latency", least.by_latency, **options),
    "price": lambda options, random: least.Least("price", least.by_price, **options),
    "session_affinity": lambda options, random: SessionAffinity(**options),
    "prefix_affinity": lambda options, random: PrefixAffinity(**options),
    "weighted": lambda options, random: scoring.weighted(options),
}


def make_policy(name: str, options: Mapping[str, Any], random: Random) -> Policy:
    """Raises InvalidRequest for an unknown name or options that the policy does not take."""
    made = OURS.get(name) or _plugin(name)
    if made is None:
        raise InvalidRequest(
            f"policy: {name!r} is unknown{did_you_mean(name, OURS)}; there are {', '.join(OURS)}"
        )
    try:
        return made(options, random)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"options of policy {name!r}: {error}") from error


class _FirstOf:
    """Enough of a source of randomness to see whether a policy can be made."""

    def random(self) -> float:
        return 0.0

    def randrange(self, stop: int, /) -> int:
        return 0


def check_policy(name: str, options: Mapping[str, Any]) -> None:
    make_policy(name, options, _FirstOf())


def _plugin(name: str) -> Make | None:
    for found in entry_points(group=GROUP, name=name):
        make: Make = found.load()
        return make
    return None
