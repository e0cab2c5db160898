"""What a fleet's solver takes and gives: kinds, limits, and the answer. Numbers only: it knows no clouds and no offers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Kind:
    """`count` copies, each in one of the options. `costs` by option."""

    count: int
    costs: Floats
    priority: int = 0
    places: tuple[tuple[int, ...], ...] = ()
    """Options of each place, where copies are to be spread: every option is in exactly one."""
    most_in_place: int = 0
    """0: any number."""
    min_places: int = 1
    """Different places that are needed; copies left over count as a place each."""

    @property
    def spread(self) -> bool:
        return bool(self.places) and (self.min_places > 1 or 0 < self.most_in_place < self.count)


@dataclass(frozen=True)
class Limit:
    """Sum over `uses` (kind, option, amount) at most `most`.

    `by_kind`: every kind takes another amount, as of a budget in all; it does not tell groups of kinds apart.
    """

    most: float
    uses: tuple[tuple[int, int, float], ...]
    by_kind: bool = False

    def amounts(self, kinds: Sequence[Kind]) -> list[Floats]:
        """Of each kind by option."""
        found = [np.zeros(len(kind.costs)) for kind in kinds]
        for kind, option, amount in self.uses:
            found[kind][option] = amount
        return found


@dataclass(frozen=True)
class Left:
    """Of a priority: how many copies are left over, and how many every answer leaves (with those of higher priority as they are)."""

    priority: int
    count: int
    least: int


@dataclass(frozen=True)
class Fleet:
    """`counts[k][o]`: copies of kind k in option o. `prices`: what one unit more of each limit would save.

    Nothing that leaves over as little costs less than `bound`.
    """

    counts: tuple[tuple[int, ...], ...]
    unplaced: tuple[int, ...]
    value: float
    bound: float
    prices: tuple[float | None, ...]
    method: str
    left: tuple[Left, ...] = ()
