"""Counters and histograms as plain numbers: 0.2 µs an observation. Rendering is the collector's work.

Everything here can be turned into JSON-able data and added up, because one page shows all workers.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

BOUNDS = (
    0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0,
    10.0, 25.0, 50.0, 100.0, 250.0,
)  # fmt: skip
MAX_LABELS = 200
OTHER = "other"


class Histogram:
    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(BOUNDS, value)] += 1
        self.total += value

    def dump(self) -> dict[str, Any]:
        return {"counts": list(self.counts), "total": self.total}


def quantile(counts: list[int], share: float) -> float | None:
    """Linear within its bucket; None without observations."""
    wanted = share * sum(counts)
    if wanted <= 0:
        return None
    seen, low = 0.0, 0.0
    for bound, count in zip(BOUNDS, counts, strict=False):
        if count and seen + count >= wanted:
            return low + (bound - low) * (wanted - seen) / count
        seen += count
        low = bound
    return BOUNDS[-1]


class EndpointStats:
    """`failures` are attempts that the endpoint is to blame for; `statuses` what clients got from it."""

    __slots__ = (
        "attempts", "completion_tokens", "ejections", "failures", "first_byte", "latency", "prompt_tokens", "reused",
        "stale", "statuses",
    )  # fmt: skip

    def __init__(self) -> None:
        self.attempts = 0
        self.failures: dict[str, int] = {}
        self.statuses: dict[int, int] = {}
        self.latency = Histogram()
        self.first_byte = Histogram()
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.ejections = 0
        self.reused = 0
        self.stale = 0

    def dump(self) -> dict[str, Any]:
        return {
            "attempts": self.attempts,
            "failures": dict(self.failures),
            "statuses": {str(status): count for status, count in self.statuses.items()},
            "latency": self.latency.dump(),
            "first_byte": self.first_byte.dump(),
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "ejections": self.ejections,
            "reused": self.reused,
            "stale": self.stale,
        }


class ServiceStats:
    """`refused` by code, `errors` by reason; `gaps` are times between two reads of a stream."""

    __slots__ = ("errors", "gaps", "hedges", "refused", "requests", "resumes", "retries", "retries_denied")

    def __init__(self) -> None:
        self.requests = 0
        self.refused: dict[str, int] = {}
        self.errors: dict[str, int] = {}
        self.retries = 0
        self.retries_denied = 0
        self.hedges = 0
        self.resumes = 0
        self.gaps = Histogram()

    def dump(self) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "refused": dict(self.refused),
            "errors": dict(self.errors),
            "retries": self.retries,
            "retries_denied": self.retries_denied,
            "hedges": self.hedges,
            "resumes": self.resumes,
            "gaps": self.gaps.dump(),
        }


class LabelStats:
    """Counts for one model or one key."""

    __slots__ = ("cached_tokens", "completion_tokens", "cost", "errors", "prompt_tokens", "requests")

    def __init__(self) -> None:
        self.requests = 0
        self.errors = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.cached_tokens = 0
        self.cost = 0.0

    def dump(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


class Labelled:
    """At most `MAX_LABELS` names; whoever comes later is counted as "other"."""

    def __init__(self) -> None:
        self.by_name: dict[str, LabelStats] = {}

    def of(self, name: str) -> LabelStats:
        found = self.by_name.get(name)
        if found is None:
            if len(self.by_name) >= MAX_LABELS:
                name = OTHER
            found = self.by_name.setdefault(name, LabelStats())
        return found

    def dump(self) -> dict[str, Any]:
        return {name: stats.dump() for name, stats in self.by_name.items()}


def bump(counts: dict[Any, int], key: Any) -> None:
    counts[key] = counts.get(key, 0) + 1
