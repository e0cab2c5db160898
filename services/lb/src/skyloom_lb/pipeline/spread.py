"""Policies that only spread: round robin, random by weight, power of two choices."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Container, Sequence
from itertools import accumulate

from skyloom_lb.pipeline.model import LbRequest, LiveEndpoint, Random

_FAIR_SHARE = 1 / 64


class RoundRobin:
    """In turn, by weight: smooth weighted round robin, so that a heavy endpoint's turns are spread out."""

    name = "round_robin"

    def __init__(self) -> None:
        self._endpoints: list[LiveEndpoint] = []
        self._credit: dict[str, float] = {}
        self._weights: dict[str, float] = {}
        self._even = True
        self._next = 0

    def rebuild(self, endpoints: Sequence[LiveEndpoint]) -> None:
        self._endpoints = list(endpoints)
        self._credit = {one.id: self._credit.get(one.id, 0.0) for one in endpoints}
        self._weights = {one.id: one.effective_weight for one in endpoints}
        self._even = len(set(self._weights.values())) <= 1

    def changed(self, endpoint: LiveEndpoint) -> None:
        if self._weights.get(endpoint.id, endpoint.effective_weight) != endpoint.effective_weight:
            self.rebuild(self._endpoints)

    def pick(self, request: LbRequest, exclude: Container[str] = ()) -> LiveEndpoint | None:
        return self._in_turn(exclude) if self._even else self._by_credit(exclude)

    def _in_turn(self, exclude: Container[str]) -> LiveEndpoint | None:
        for _ in range(len(self._endpoints)):
            self._next = (self._next + 1) % len(self._endpoints)
            endpoint = self._endpoints[self._next]
            if endpoint.id not in exclude:
                return endpoint
        return None

    def _by_credit(self, exclude: Container[str]) -> LiveEndpoint | None:
        total, best = 0.0, None
        for endpoint in self._endpoints:
            if endpoint.id in exclude:
                continue
            total += endpoint.effective_weight
            self._credit[endpoint.id] += endpoint.effective_weight
            if best is None or self._credit[endpoint.id] > self._credit[best.id]:
                best = endpoint
        if best is not None:
            self._credit[best.id] -= total
        return best


class RandomByWeight:
    name = "random"

    def __init__(self, random: Random) -> None:
        self._random = random
        self._endpoints: list[LiveEndpoint] = []
        self._upto: list[float] = []
        self._weights: dict[str, float] = {}

    def rebuild(self, endpoints: Sequence[LiveEndpoint]) -> None:
        self._endpoints = list(endpoints)
        self._weights = {one.id: one.effective_weight for one in endpoints}
        self._upto = list(accumulate(one.effective_weight for one in endpoints))

    def changed(self, endpoint: LiveEndpoint) -> None:
        if self._weights.get(endpoint.id, endpoint.effective_weight) != endpoint.effective_weight:
            self.rebuild(self._endpoints)

    def pick(self, request: LbRequest, exclude: Container[str] = ()) -> LiveEndpoint | None:
        for _ in range(4):
            if not self._endpoints:
                return None
            at = bisect_right(self._upto, self._random.random() * self._upto[-1])
            endpoint = self._endpoints[min(at, len(self._endpoints) - 1)]
            if endpoint.id not in exclude:
                return endpoint
        left = [one for one in self._endpoints if one.id not in exclude]
        return left[self._random.randrange(len(left))] if left else None


class PowerOfTwo:
    """The less loaded of two random ones: nearly as even as least load, and no herd when several balancers choose at once.

    One pick in 64 takes the first of the two as it is: a light endpoint must not wait for ever while heavy ones are idle.
    """

    name = "power_of_two"

    def __init__(self, random: Random) -> None:
        self._random = random
        self._endpoints: list[LiveEndpoint] = []

    def rebuild(self, endpoints: Sequence[LiveEndpoint]) -> None:
        self._endpoints = list(endpoints)

    def changed(self, endpoint: LiveEndpoint) -> None:
        """Loads are read at each pick."""

    def pick(self, request: LbRequest, exclude: Container[str] = ()) -> LiveEndpoint | None:
        left = [one for one in self._endpoints if one.id not in exclude] if exclude else self._endpoints
        if len(left) < 2:
            return left[0] if left else None
        first = self._random.randrange(len(left))
        if self._random.random() < _FAIR_SHARE:
            return left[first]
        second = self._random.randrange(len(left) - 1)
        second += second >= first
        one, other = left[first], left[second]
        one_load = (one.in_flight + 1) / one.effective_weight
        other_load = (other.in_flight + 1) / other.effective_weight
        return one if one_load <= other_load else other
