"""First stage of a fleet: fewest copies left over, those of the highest priority first. Cost does not count yet."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from skyloom_optimizer.solvers.deadline import Deadline
from skyloom_optimizer.solvers.fleet_greedy import greedy
from skyloom_optimizer.solvers.fleet_groups import Group, coarse, groups_of
from skyloom_optimizer.solvers.fleet_model import LeftModel, Shares
from skyloom_optimizer.solvers.fleet_parts import Ints, Kind, Left, Limit
from skyloom_optimizer.solvers.fleet_share import shared_out

_COARSE = 6
_COARSE_SHARE = 0.3


def leave_fewest(
    kinds: Sequence[Kind], limits: Sequence[Limit], deadline: Deadline
) -> tuple[list[Left], list[Ints]]:
    """By priority, highest first; and copies of each kind by option that leave so many."""
    search = _Fewest(kinds, limits, deadline)
    priorities = sorted({kind.priority for kind in kinds}, reverse=True)
    for number, priority in enumerate(priorities):
        search.settle(priority, deadline.part(1 / (len(priorities) - number)))
    return search.left, search.shared()


class _Fewest:
    """Priorities that are settled, and the best answer so far: by group, and by kind and option."""

    def __init__(self, kinds: Sequence[Kind], limits: Sequence[Limit], deadline: Deadline) -> None:
        self.kinds, self.limits, self.deadline = kinds, limits, deadline
        self.groups: list[Group] = groups_of(kinds, limits)
        self.by_kind = any(limit.by_kind for limit in limits)
        self.left: list[Left] = []
        self.shares = Shares(
            tuple(np.zeros(len(group.ways), dtype=np.int64) for group in self.groups),
            tuple(group.count for group in self.groups),
        )
        self.counts = [np.zeros(len(kind.costs), dtype=np.int64) for kind in kinds]
        self._take(greedy(kinds, self.groups, limits))

    def settle(self, priority: int, until: Deadline) -> None:
        if self.by_kind and self._count(self.shares, priority) and not until.passed():
            self._settle_coarsely(priority, until.part(_COARSE_SHARE).left())
        least = 0
        if self._count(self.shares, priority) and not until.passed():
            model = LeftModel(self.kinds, self.groups, self.limits, priority, self._allowed)
            found = model.solve(until.left(), model.start(self.shares, self.counts))
            least = int(np.ceil(found.bound - 1e-6)) if np.isfinite(found.bound) else 0
            if found.amounts is not None:
                self._offer(model.shares(found.amounts), priority)
        count = self._count(self.shares, priority)
        self.left.append(Left(priority, count, max(0, min(least, count))))

    def _settle_coarsely(self, priority: int, seconds: float) -> None:
        """What fits depends on what every kind costs: first as if kinds that cost alike were one."""
        kinds, groups, limits = coarse(self.kinds, self.groups, self.limits, _COARSE)
        model = LeftModel(kinds, groups, limits, priority, self._allowed)
        counts = shared_out(kinds, groups, limits, self.shares, self.deadline)
        start = None if counts is None else model.start(self.shares, counts)
        found = model.solve(seconds, start)
        if found.amounts is not None:
            self._offer(model.shares(found.amounts), priority)

    def _offer(self, shares: Shares, priority: int) -> None:
        if self._count(shares, priority) < self._count(self.shares, priority):
            self._take(shares)

    def shared(self) -> list[Ints]:
        if self.by_kind:
            return self.counts
        counts = shared_out(self.kinds, self.groups, self.limits, self.shares, self.deadline)
        return self.counts if counts is None else counts

    def _take(self, shares: Shares) -> None:
        """Without limits by kind it does not matter yet which kind goes where."""
        if not self.by_kind:
            self.shares = shares
            return
        counts = shared_out(self.kinds, self.groups, self.limits, shares, self.deadline)
        if counts is not None:
            self.shares, self.counts = shares, counts

    def _count(self, shares: Shares, priority: int) -> int:
        pairs = zip(self.groups, shares.left, strict=True)
        return sum(left for group, left in pairs if group.priority == priority)

    @property
    def _allowed(self) -> dict[int, int]:
        return {item.priority: item.count for item in self.left}
