"""Policies that take the endpoint with the least of something: load, load by capacity, latency, price.

A heap with lazy deletion keeps a pick at O(log n): each change pushes the endpoint again under its new key, and entries of
an older generation are dropped when they surface. Equal keys go to whoever was chosen longest ago, so nobody starves.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from heapq import heapify, heappop, heappush

from skyloom_lb.pipeline.model import LbRequest, LiveEndpoint

Key = Callable[[LiveEndpoint], float]


def by_load(endpoint: LiveEndpoint) -> float:
    return (endpoint.in_flight + 1) / endpoint.effective_weight


def by_capacity(endpoint: LiveEndpoint) -> float:
    """Load as a share of what the endpoint takes; one without a hint counts as capacity 1."""
    return (endpoint.in_flight + 1) / (endpoint.effective_weight * (endpoint.capacity or 1.0))


def by_latency(endpoint: LiveEndpoint) -> float:
    """Peak EWMA: what a request would wait. Unknown latency reads as very good, so that a new endpoint is tried."""
    return (endpoint.latency or 1e-6) * (endpoint.in_flight + 1) / endpoint.effective_weight


class Least:
    """The endpoint whose `key` is least; `key` must depend on nothing but the endpoint."""

    def __init__(self, name: str, key: Key) -> None:
        self.name = name
        self._key = key
        self._heap: list[tuple[float, int, int, LiveEndpoint]] = []
        self._members: set[str] = set()
        self._turn = 0
        self._pushed = 0

    def rebuild(self, endpoints: Sequence[LiveEndpoint]) -> None:
        self._members = {one.id for one in endpoints}
        self._heap = []
        for endpoint in endpoints:
            self._pushed += 1
            self._heap.append((self._key(endpoint), self._turn, self._pushed, endpoint))
        self._current = {one.id: entry[2] for one, entry in zip(endpoints, self._heap, strict=True)}
        heapify(self._heap)

    def changed(self, endpoint: LiveEndpoint) -> None:
        if endpoint.id not in self._members:
            return
        self._pushed += 1
        self._current[endpoint.id] = self._pushed
        heappush(self._heap, (self._key(endpoint), self._turn, self._pushed, endpoint))
        if len(self._heap) > 64 + 4 * len(self._members):
            self._compact()

    def pick(self, request: LbRequest, exclude: Container[str] = ()) -> LiveEndpoint | None:
        skipped = []
        found = None
        while self._heap:
            entry = self._heap[0]
            endpoint = entry[3]
            if self._current.get(endpoint.id) != entry[2]:
                heappop(self._heap)
            elif endpoint.id in exclude:
                skipped.append(heappop(self._heap))
            else:
                found = endpoint
                self._turn += 1
                heappop(self._heap)
                heappush(self._heap, (entry[0], self._turn, entry[2], endpoint))
                break
        for entry in skipped:
            heappush(self._heap, entry)
        return found

    def _compact(self) -> None:
        self._heap = [entry for entry in self._heap if self._current.get(entry[3].id) == entry[2]]
        heapify(self._heap)
