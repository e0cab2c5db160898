"""Policies that take the endpoint with the least of something: load, load by capacity, latency, price.

A heap with lazy deletion keeps a pick at O(log n): each change pushes the endpoint again under its new key, and entries of
an older generation are dropped when they surface. Equal keys go to whoever was chosen longest ago. And since the least of something
may for ever be the same one (a heavy endpoint at low load, an old measurement), every 64th pick goes to whoever was chosen
longest ago whatever its key: nobody starves.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from heapq import heapify, heappop, heappush

from skyloom_lb.pipeline.model import LbRequest, LiveEndpoint

_FAIR_TURN = 64
_FEW = 8
"""Up to so many endpoints are looked at one by one, which costs less than keeping the heap."""

Key = Callable[[LiveEndpoint], float]


def by_load(endpoint: LiveEndpoint) -> float:
    return (endpoint.in_flight + 1) / endpoint.effective_weight


def by_capacity(endpoint: LiveEndpoint) -> float:
    """Load as a share of what the endpoint takes; one without a hint counts as capacity 1."""
    return (endpoint.in_flight + 1) / (endpoint.effective_weight * (endpoint.capacity or 1.0))


def by_latency(endpoint: LiveEndpoint) -> float:
    """Peak EWMA: what a request would wait. Unknown latency reads as very good, so that a new endpoint is tried;
    once it was, it counts as usual until it answers (`latency.guess_latency`)."""
    return (endpoint.latency or 1e-6) * (endpoint.in_flight + 1) / endpoint.effective_weight


def by_price(endpoint: LiveEndpoint) -> float:
    """Money per share of the work: the cheap one is filled first, the dear one takes over as the cheap one's load grows."""
    price = 1.0 if endpoint.price_per_hour is None else max(endpoint.price_per_hour, 1e-3)
    return price * (endpoint.in_flight + 1) / (endpoint.effective_weight * (endpoint.capacity or 1.0))


class Least:
    """The endpoint whose `key` is least; `key` must depend on nothing but the endpoint."""

    def __init__(self, name: str, key: Key) -> None:
        self.name = name
        self._key = key
        self._heap: list[tuple[float, int, int, LiveEndpoint]] = []
        self._members: dict[str, LiveEndpoint] = {}
        """By id, in the order in which they were chosen: the first one has waited longest."""
        self._current: dict[str, int] = {}
        self._turn = 0
        self._pushed = 0
        self._few = True

    def rebuild(self, endpoints: Sequence[LiveEndpoint]) -> None:
        now = {one.id: one for one in endpoints}
        fresh = {id: one for id, one in now.items() if id not in self._members}
        self._members = {**fresh, **{id: now[id] for id in self._members if id in now}}
        self._heap = []
        self._few = len(endpoints) <= _FEW
        for endpoint in endpoints:
            self._pushed += 1
            self._heap.append((self._key(endpoint), self._turn, self._pushed, endpoint))
        self._current = {one.id: entry[2] for one, entry in zip(endpoints, self._heap, strict=True)}
        heapify(self._heap)

    def changed(self, endpoint: LiveEndpoint) -> None:
        if self._few or self._members.get(endpoint.id) is not endpoint:
            return  # it has left, or another one has its id now
        self._pushed += 1
        self._current[endpoint.id] = self._pushed
        heappush(self._heap, (self._key(endpoint), self._turn, self._pushed, endpoint))
        if len(self._heap) > 64 + 4 * len(self._members):
            self._compact()

    def pick(self, request: LbRequest, exclude: Container[str] = ()) -> LiveEndpoint | None:
        self._turn += 1
        found = None
        if self._turn % _FAIR_TURN == 0:
            found = next((one for id, one in self._members.items() if id not in exclude), None)
        if found is None:
            found = self._first_of_few(exclude) if self._few else self._least(exclude)
        if found is not None:
            del self._members[found.id]
            self._members[found.id] = found
        return found

    def _first_of_few(self, exclude: Container[str]) -> LiveEndpoint | None:
        best, least = None, 0.0
        for endpoint in self._members.values():
            if endpoint.id not in exclude:
                key = self._key(endpoint)
                if best is None or key < least:
                    best, least = endpoint, key
        return best

    def _least(self, exclude: Container[str]) -> LiveEndpoint | None:
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
                heappop(self._heap)
                heappush(self._heap, (entry[0], self._turn, entry[2], endpoint))
                break
        for entry in skipped:
            heappush(self._heap, entry)
        return found

    def _compact(self) -> None:
        self._heap = [entry for entry in self._heap if self._current.get(entry[3].id) == entry[2]]
        heapify(self._heap)
