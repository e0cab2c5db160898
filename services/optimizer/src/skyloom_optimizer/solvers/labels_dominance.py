"""Labels that another label of the same node is never worse than are dropped."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from skyloom_optimizer.solvers.labels_problem import Floats, Problem

_DOMINATORS = 12


def drop_dominated(problem: Problem) -> Problem:
    """A label goes when moving to a certain other label is never dearer, whatever the neighbours have."""
    for _ in range(3):
        incident = problem.incident()
        masks = [_undominated(costs, around) for costs, around in zip(problem.unary, incident, strict=True)]
        if all(mask.all() for mask in masks):
            break
        problem = problem.keep(masks)
    return problem


def _undominated(costs: Floats, around: Sequence[tuple[int, Floats]]) -> NDArray[np.bool_]:
    """Only the cheapest labels are tried as dominators: they remove nearly all that can be removed."""
    keep = np.isfinite(costs)
    if not keep.any():
        return np.ones(len(costs), dtype=bool)
    for best in _dominators(costs, around):
        if not keep[best]:
            continue
        worse = costs[best] - costs
        for _, cost in around:
            worse = worse + _steps(cost, best).max(axis=1)
        gone = worse <= 0
        gone[best] = False
        keep &= ~gone
    return keep


def _steps(cost: Floats, best: int) -> Floats:
    """What moving to label `best` adds, for each label now and each label of the neighbour."""
    row = cost[best]
    with np.errstate(invalid="ignore"):
        found: Floats = row - cost
    if not np.isfinite(row).all():
        found = np.nan_to_num(found, nan=0.0, posinf=np.inf, neginf=-np.inf)
    return found


def _dominators(costs: Floats, around: Sequence[tuple[int, Floats]]) -> list[int]:
    """The cheapest by themselves, and the cheapest when every neighbour is as far away as can be."""
    with np.errstate(invalid="ignore"):
        far = costs + sum((cost.max(axis=1) for _, cost in around), np.zeros(len(costs)))
    picks = [*np.argsort(far, kind="stable")[:_DOMINATORS], *np.argsort(costs, kind="stable")[:_DOMINATORS]]
    return list(dict.fromkeys(int(label) for label in picks))
