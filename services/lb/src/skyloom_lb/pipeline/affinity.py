"""Policies that send like to like: sessions by consistent hashing, prompts by the longest prefix seen.

Both give way when the favourite is overloaded compared with the others, so that affinity never becomes a hot spot. One that has
only a share of its weight now (slow start, kept by the floor) gets that share of what would go to it, and as much less at once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Container, Sequence
from hashlib import blake2b

from skyloom_lb.pipeline.least import Least, by_load
from skyloom_lb.pipeline.model import LbRequest, LiveEndpoint

_POINTS = ((128, 64), (512, 16), (1 << 30, 8))
"""Points on the ring for each endpoint, by how many endpoints there are: fewer are a subset, so most sessions stay."""

_FINE = 0xFFFF
"""The bits of a hash that say whether it is in an endpoint's share; places on the ring differ in the others."""


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _share(endpoint: LiveEndpoint) -> float:
    return endpoint.effective_weight / endpoint.weight


class _Loads:
    """What all members have in flight together and which share of its weight each has, kept up to date.

    Shares count against the best one: while all are kept by the floor, none gives way to the others.
    """

    def __init__(self, endpoints: Sequence[LiveEndpoint] = ()) -> None:
        self._of = {one: one.in_flight for one in endpoints}
        self._weights = {one: one.effective_weight for one in endpoints}
        self._shares = {one: _share(one) for one in endpoints}
        self.total = sum(self._of.values())
        self._all = sum(self._shares.values())
        self._best = max(self._shares.values(), default=1.0)

    def changed(self, endpoint: LiveEndpoint) -> None:
        before = self._of.get(endpoint)
        if before is None:
            return
        self.total += endpoint.in_flight - before
        self._of[endpoint] = endpoint.in_flight
        if endpoint.effective_weight != self._weights[endpoint]:
            self._weights[endpoint] = endpoint.effective_weight
            self._set_share(endpoint, _share(endpoint))

    def _set_share(self, endpoint: LiveEndpoint, share: float) -> None:
        """Looks at the others only if this was the best one: a thousand may be warming up."""
        before = self._shares[endpoint]
        self._shares[endpoint] = share
        self._all += share - before
        if share >= self._best:
            self._best = share
        elif before == self._best:
            self._best = max(self._shares.values())

    def takes(self, endpoint: LiveEndpoint, slack: float, number: int) -> bool:
        """Whether what has this number (any hash of it) may go to its favourite now."""
        share = self._shares[endpoint]
        limit = slack * (self.total + 1) * share / self._all + share / self._best
        if endpoint.in_flight >= limit:
            return False
        return share == self._best or number & _FINE < _FINE * share / self._best


class _Otherwise:
    """The least loaded, for what has no favourite. It hears of changes when it is asked: most requests do not need it."""

    def __init__(self) -> None:
        self._least = Least("least_load", by_load)
        self._changed: set[LiveEndpoint] = set()

    def rebuild(self, endpoints: Sequence[LiveEndpoint]) -> None:
        self._changed.clear()
        self._least.rebuild(endpoints)

    def changed(self, endpoint: LiveEndpoint) -> None:
        self._changed.add(endpoint)

    def pick(self, request: LbRequest, exclude: Container[str]) -> LiveEndpoint | None:
        for endpoint in self._changed:
            self._least.changed(endpoint)
        self._changed.clear()
        return self._least.pick(request, exclude)


class SessionAffinity:
    """A hash ring with bounded loads: a session stays where it was while other endpoints come and go.

    `slack`: how far above the average load the favourite may be before the next one on the ring is taken.
    Requests without a session go to the least loaded.
    """

    name = "session_affinity"

    def __init__(self, slack: float = 1.25) -> None:
        self._slack = slack
        self._otherwise = _Otherwise()
        self._points: list[int] = []
        self._owners: list[LiveEndpoint] = []
        self._endpoints: list[LiveEndpoint] = []
        self._hashes: dict[str, list[int]] = {}
        self._load = _Loads()

    def rebuild(self, endpoints: Sequence[LiveEndpoint]) -> None:
        self._endpoints = list(endpoints)
        each = next(points for upto, points in _POINTS if len(endpoints) <= upto)
        hashes = {one.id: self._hashes_of(one, each) for one in endpoints}
        self._hashes = hashes
        owners = {point: one for one in endpoints for point in hashes[one.id]}
        self._points = sorted(owners)
        self._owners = [owners[point] for point in self._points]
        self._load = _Loads(endpoints)
        self._otherwise.rebuild(endpoints)

    def _hashes_of(self, endpoint: LiveEndpoint, each: int) -> list[int]:
        """Kept from the ring before: a change of one endpoint must not cost the hashes of all."""
        wanted = max(1, round(each * min(endpoint.weight, 16.0)))
        known = self._hashes.get(endpoint.id, [])[:wanted]
        return known + [_hash(f"{endpoint.id}#{point}") for point in range(len(known), wanted)]

    def changed(self, endpoint: LiveEndpoint) -> None:
        self._load.changed(endpoint)
        self._otherwise.changed(endpoint)

    def pick(self, request: LbRequest, exclude: Container[str] = ()) -> LiveEndpoint | None:
        if not request.session or not self._points:
            return self._otherwise.pick(request, exclude)
        number = _hash(request.session)
        start = bisect_right(self._points, number)
        seen: set[str] = set()
        for step in range(len(self._owners)):
            endpoint = self._owners[(start + step) % len(self._owners)]
            if endpoint.id in seen or endpoint.id in exclude:
                continue
            if self._load.takes(endpoint, self._slack, number):
                return endpoint
            seen.add(endpoint.id)
            if len(seen) == len(self._endpoints):
                break
        return self._otherwise.pick(request, exclude)


class PrefixAffinity:
    """The endpoint that has seen the longest prefix of this prompt, for hits in its KV cache; else the least loaded.

    Prefixes are remembered by block hashes in two generations of at most `capacity / 2` entries each: when the young one is
    full it becomes the old one, and what nobody asked for in between is forgotten. Memory is bounded, no entry costs a list.
    """

    name = "prefix_affinity"

    def __init__(
        self, capacity: int = 1_000_000, block: int = 512, blocks: int = 12, slack: float = 1.5
    ) -> None:
        self._half = max(1, capacity // 2)
        self._block = block
        self._blocks = blocks
        self._slack = slack
        self._young: dict[int, LiveEndpoint] = {}
        self._old: dict[int, LiveEndpoint] = {}
        self._members: dict[str, LiveEndpoint] = {}
        self._load = _Loads()
        self._otherwise = _Otherwise()

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def rebuild(self, endpoints: Sequence[LiveEndpoint]) -> None:
        self._members = {one.id: one for one in endpoints}
        self._load = _Loads(endpoints)
        self._otherwise.rebuild(endpoints)

    def changed(self, endpoint: LiveEndpoint) -> None:
        self._load.changed(endpoint)
        self._otherwise.changed(endpoint)

    def pick(self, request: LbRequest, exclude: Container[str] = ()) -> LiveEndpoint | None:
        keys = self._keys(request.prompt)
        lately = self._young.get(keys[-1]) if keys else None
        if (
            lately is not None
            and self._is_there(lately, exclude)
            and self._load.takes(lately, self._slack, keys[-1])
        ):
            return lately  # all of it was there lately, so that there is nothing to note
        chosen = self._longest(keys, exclude) or self._otherwise.pick(request, exclude)
        if chosen is not None:
            for key in keys:
                self._young[key] = chosen
            if len(self._young) > self._half:
                self._old, self._young = self._young, {}
        return chosen

    def _keys(self, prompt: bytes) -> list[int]:
        """One hash for each whole block from the start, each covering everything before it; a short prompt gives one."""
        if not prompt:
            return []
        size = self._block
        ends = range(size, min(len(prompt), size * self._blocks) + 1, size)
        keys, previous = [], 0
        for end in ends:
            previous = hash((previous, prompt[end - size : end]))
            keys.append(previous)
        return keys or [hash(prompt)]

    def _longest(self, keys: list[int], exclude: Container[str]) -> LiveEndpoint | None:
        for key in reversed(keys):
            endpoint = self._young.get(key) or self._old.get(key)
            if endpoint is not None and self._is_there(endpoint, exclude):
                return endpoint if self._load.takes(endpoint, self._slack, key) else None
        return None

    def _is_there(self, endpoint: LiveEndpoint, exclude: Container[str]) -> bool:
        return self._members.get(endpoint.id) is endpoint and endpoint.id not in exclude
