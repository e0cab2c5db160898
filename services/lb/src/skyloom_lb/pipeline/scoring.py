"""Filter, score, pick as parts: for plug-ins, and for wishes that no single number says (near, cheap and idle at once).

A filter says who may; a scorer gives each endpoint 0..1 (1.0 = best); the pick takes the greatest weighted sum, and of equals
whoever was chosen longest ago. Every 64th pick goes to whoever was chosen longest ago of those that the filters leave: nobody
starves. It looks at every endpoint for every request: use it up to some hundred endpoints.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any, Protocol

from skyloom_lb.pipeline.model import LbRequest, LiveEndpoint

_FAIR_TURN = 64


class Filter(Protocol):
    def keep(self, request: LbRequest, endpoint: LiveEndpoint) -> bool: ...


class Scorer(Protocol):
    def score(self, request: LbRequest, endpoints: Sequence[LiveEndpoint]) -> Sequence[float]: ...


def _against_least(values: Sequence[float]) -> list[float]:
    """Least value / value: 1.0 for the best, half for twice as much."""
    best = min(values)
    return [best / value if value > 0 else 1.0 for value in values]


class Idle:
    """1.0 for the least loaded."""

    def score(self, request: LbRequest, endpoints: Sequence[LiveEndpoint]) -> Sequence[float]:
        return _against_least([(one.in_flight + 1) / one.effective_weight for one in endpoints])


class Cheap:
    """1.0 for the cheapest; without a price as dear as the dearest."""

    def score(self, request: LbRequest, endpoints: Sequence[LiveEndpoint]) -> Sequence[float]:
        known = [one.price_per_hour for one in endpoints if one.price_per_hour is not None]
        dearest = max(known, default=1.0)
        return _against_least(
            [max(1e-9, dearest if one.price_per_hour is None else one.price_per_hour) for one in endpoints]
        )


class Near:
    """1.0 in the balancer's zone; in a zone of the same region half; elsewhere nothing."""

    def __init__(self, zone: str) -> None:
        self._zone = zone
        self._region = zone.rpartition("-")[0]

    def score(self, request: LbRequest, endpoints: Sequence[LiveEndpoint]) -> Sequence[float]:
        return [self._one(one.zone) for one in endpoints]

    def _one(self, zone: str) -> float:
        if zone == self._zone:
            return 1.0
        return 0.5 if self._region and zone.rpartition("-")[0] == self._region else 0.0


class Quick:
    """1.0 for the least time to first byte; an unknown one counts as good, so that it is tried."""

    def score(self, request: LbRequest, endpoints: Sequence[LiveEndpoint]) -> Sequence[float]:
        known = [one.latency for one in endpoints if one.latency > 0]
        best = min(known, default=1.0)
        return _against_least([one.latency or best for one in endpoints])


class NotFull:
    """Keeps endpoints with fewer than `limit` requests in flight, or than their capacity hint."""

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit

    def keep(self, request: LbRequest, endpoint: LiveEndpoint) -> bool:
        limit = endpoint.capacity if self._limit is None else self._limit
        return limit is None or endpoint.in_flight < limit


class Scored:
    """A filter that leaves nobody is left out: a preference must not refuse a request."""

    def __init__(
        self, name: str, scorers: Sequence[tuple[float, Scorer]], filters: Sequence[Filter] = ()
    ) -> None:
        self.name = name
        self._scorers = list(scorers)
        self._filters = list(filters)
        self._endpoints: list[LiveEndpoint] = []
        self._chosen_at: dict[str, int] = {}
        self._turn = 0

    def rebuild(self, endpoints: Sequence[LiveEndpoint]) -> None:
        self._endpoints = list(endpoints)
        self._chosen_at = {one.id: self._chosen_at.get(one.id, 0) for one in endpoints}

    def changed(self, endpoint: LiveEndpoint) -> None:
        """Everything is read at each pick."""

    def pick(self, request: LbRequest, exclude: Container[str] = ()) -> LiveEndpoint | None:
        left = [one for one in self._endpoints if one.id not in exclude]
        for keeper in self._filters:
            left = [one for one in left if keeper.keep(request, one)] or left
        if not left:
            return None
        self._turn += 1
        found = left[self._best(request, left)] if self._turn % _FAIR_TURN else min(left, key=self._age)
        self._chosen_at[found.id] = self._turn
        return found

    def _age(self, endpoint: LiveEndpoint) -> int:
        return self._chosen_at[endpoint.id]

    def _best(self, request: LbRequest, left: Sequence[LiveEndpoint]) -> int:
        totals = [0.0] * len(left)
        for weight, scorer in self._scorers:
            for index, score in enumerate(scorer.score(request, left)):
                totals[index] += weight * score
        return max(range(len(left)), key=lambda index: (totals[index], -self._age(left[index])))


def weighted(options: Mapping[str, Any]) -> Scored:
    """`{idle: 2, cheap: 1, near: 1, quick: 1, zone: eu-1a, not_full: true}`: weights of the scorers above."""
    rest = dict(options)
    zone = str(rest.pop("zone", ""))
    filters: list[Filter] = [NotFull()] if rest.pop("not_full", False) else []
    scorers: dict[str, Scorer] = {"idle": Idle(), "cheap": Cheap(), "near": Near(zone), "quick": Quick()}
    unknown = sorted(set(rest) - set(scorers))
    if unknown:
        raise ValueError(f"{unknown[0]!r} is none of {', '.join(scorers)}, zone, not_full")
    weights = {name: float(weight) for name, weight in rest.items()} or {"idle": 2.0, "cheap": 1.0}
    return Scored("weighted", [(weight, scorers[name]) for name, weight in weights.items()], filters)
