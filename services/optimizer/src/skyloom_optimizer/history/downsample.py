"""Observations of one series as even steps: the mean of the price in force, and what it ranged over. Pure.

A price holds from its observation to the next one, and for a day at most: where it stands still it is observed once a day.
So a price that stood for hours weighs more than one that was seen for a minute; where nothing was seen there is no point.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from skyloom_common.contracts.catalog import PricePoint

DAY = 86400.0
HOLDS_SECONDS = DAY + 3600.0
"""A daily refresh does not come to the second."""


@dataclass
class _Step:
    weighted: float = 0.0
    seconds: float = 0.0
    low: float = float("inf")
    high: float = 0.0
    samples: int = 0

    def add(self, point: PricePoint, seconds: float) -> None:
        self.weighted += point.price * seconds
        self.seconds += seconds
        self.low, self.high = min(self.low, point.low), max(self.high, point.high)


def downsampled(
    points: Sequence[PricePoint], step: float, since: float, until: float
) -> tuple[PricePoint, ...]:
    """`points`: one series, oldest first; those before `since` say what was in force then. Steps are multiples of `step`."""
    steps: dict[int, _Step] = {}
    for point, end in _spans(points, until):
        for number, seconds in _split(max(point.at, since), end, step):
            steps.setdefault(number, _Step()).add(point, seconds)
        if point.at >= since:
            steps.setdefault(int(point.at // step), _Step()).samples += point.samples
    return tuple(
        PricePoint(number * step, found.weighted / found.seconds, found.low, found.high, step, found.samples)
        for number, found in sorted(steps.items())
        if found.seconds > 0
    )


def _spans(points: Sequence[PricePoint], until: float) -> Iterable[tuple[PricePoint, float]]:
    for position, point in enumerate(points):
        end = point.at + (point.seconds or HOLDS_SECONDS)
        if position + 1 < len(points):
            end = min(end, points[position + 1].at)
        yield point, min(end, until)


def _split(start: float, end: float, step: float) -> Iterator[tuple[int, float]]:
    """The parts of a span by step."""
    while start < end:
        number = int(start // step)
        border = min((number + 1) * step, end)
        yield number, border - start
        start = border
