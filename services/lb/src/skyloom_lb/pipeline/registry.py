"""Policies by name: ours, then those that other packages register in the entry point group `skyloom.lb.policies`.

An entry point names a callable `make(options, random) -> Policy`. Ours win over theirs of the same name.
"""

from __future__ import annotations

import inspect
import math
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
        policy = made(options, random)
    except Exception as error:  # a plug-in may raise anything
        raise InvalidRequest(f"options of policy {name!r}: {error}") from error
    lacks = [one for one in ("rebuild", "changed", "pick") if not callable(getattr(policy, one, None))]
    if lacks:
        raise InvalidRequest(f"policy: {name!r} makes {policy!r}, which is no Policy: it has no {lacks[0]}()")
    return policy


class _FirstOf:
    """Enough of a source of randomness to see whether a policy can be made."""

    def random(self) -> float:
        return 0.0

    def randrange(self, stop: int, /) -> int:
        return 0


def check_policy(name: str, options: Mapping[str, Any]) -> None:
    """Before anybody uses it: a wrong value of ours would show only at a request."""
    for option, value in options.items():
        right = _right(name, option)
        if right and not _RIGHT[right](value):
            raise InvalidRequest(f"options of policy {name!r}: {option}: {value!r} is not {right}")
    make_policy(name, options, _FirstOf())


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


_RIGHT: dict[str, Callable[[Any], bool]] = {
    "a whole number of at least 1": lambda value: type(value) is int and value >= 1,
    "a number above 0": lambda value: _number(value) and value > 0,
    "a number of at least 0": lambda value: _number(value) and value >= 0,
    "true or false": lambda value: isinstance(value, bool),
    "text": lambda value: isinstance(value, str),
}
_WEIGHTED = {
    **dict.fromkeys(("idle", "cheap", "near", "quick"), "a number of at least 0"),
    "not_full": "true or false",
    "zone": "text",
}
_CLASSES = {"session_affinity": SessionAffinity, "prefix_affinity": PrefixAffinity}


def _right(name: str, option: str) -> str:
    """What is right for an option of ours; nothing for one that is unknown, which the policy refuses itself."""
    if name == "weighted":
        return _WEIGHTED.get(option, "")
    made = _CLASSES.get(name)
    found = inspect.signature(made).parameters.get(option) if made is not None else None
    kind = type(found.default) if found is not None else None
    return {int: "a whole number of at least 1", float: "a number above 0"}.get(kind, "") if kind else ""


def _plugin(name: str) -> Make | None:
    for found in entry_points(group=GROUP, name=name):
        try:
            make: Make = found.load()
        except Exception as error:  # its module runs here
            raise InvalidRequest(f"policy: {name!r} ({found.value}) cannot be imported: {error}") from error
        return make
    return None
