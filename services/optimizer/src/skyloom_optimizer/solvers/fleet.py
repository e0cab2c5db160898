"""How many of each kind go where, at least total cost, under shared limits. Needs OR-Tools where limits bind.

1. Kinds that may use the limits in the same ways are one group: limits see only how many of a group go which way (`fleet_groups`).
2. Fewest copies are left over, those of the highest priority first: whole numbers of groups alone (`fleet_left`).
3. Then cost: whole numbers of groups, and of each kind within its group, a transport (`fleet_cost`, `fleet_share`).

Every stage ends with what it has proven when its time is over; a later one begins with the answer of the one before.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from skyloom_optimizer.solvers.deadline import Deadline
from skyloom_optimizer.solvers.fleet_cost import Cheapest
from skyloom_optimizer.solvers.fleet_left import leave_fewest
from skyloom_optimizer.solvers.fleet_parts import Fleet, Kind, Left, Limit
from skyloom_optimizer.solvers.program import check_solver

__all__ = ["Fleet", "Kind", "Left", "Limit", "solve"]

_LEFT_SHARE = 0.35


def solve(kinds: Sequence[Kind], limits: Sequence[Limit], max_gap: float, deadline: Deadline) -> Fleet:
    """Whole numbers within `max_gap` of a proven bound, or the best found in time with its bound."""
    free = _unlimited(kinds, limits)
    if free is not None:
        return free
    check_solver()
    left, counts = leave_fewest(kinds, limits, deadline.part(_LEFT_SHARE))
    return Cheapest(kinds, limits, left, counts, max_gap, deadline).run()


def _unlimited(kinds: Sequence[Kind], limits: Sequence[Limit]) -> Fleet | None:
    """Everything in its cheapest option, where no limit minds."""
    if any(kind.spread for kind in kinds):
        return None
    best = [int(np.argmin(kind.costs)) for kind in kinds]
    for limit in limits:
        used = sum(kinds[k].count * amount for k, o, amount in limit.uses if best[k] == o)
        if used > limit.most + 1e-9:
            return None
    counts = tuple(
        tuple(kind.count if option == pick else 0 for option in range(len(kind.costs)))
        for kind, pick in zip(kinds, best, strict=True)
    )
    value = sum(kind.count * float(kind.costs[pick]) for kind, pick in zip(kinds, best, strict=True))
    left = tuple(Left(priority, 0, 0) for priority in _priorities(kinds))
    return Fleet(counts, (0,) * len(kinds), value, value, tuple(0.0 for _ in limits), "no limit binds", left)


def _priorities(kinds: Sequence[Kind]) -> list[int]:
    return sorted({kind.priority for kind in kinds}, reverse=True)
