"""One label for each node at least total cost, where nodes cost by their label and edges by the labels of both ends. Exact.

1. Labels that another label of the same node is never worse than are dropped.
2. Nodes are eliminated while the tables that this makes stay small: chains, trees and narrow graphs end here.
3. What is left is bounded from below by a dual of the linear relaxation (sequential reweighted messages); labels that cannot be
   part of anything better than the best known answer are dropped, and elimination is tried again.
4. If both do not suffice: branch and bound, with the same bound in each branch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from skyloom_optimizer.solvers.labels_dominance import drop_dominated
from skyloom_optimizer.solvers.labels_eliminate import eliminate
from skyloom_optimizer.solvers.labels_problem import Edge, Floats, Problem, cost_of, merged_edges, tolerance
from skyloom_optimizer.solvers.labels_search import Search

__all__ = ["Edge", "Labelling", "solve"]


@dataclass(frozen=True)
class Labelling:
    """`labels` of all nodes; nothing costs less than `bound`."""

    labels: tuple[int, ...]
    value: float
    bound: float
    method: str = ""

    @property
    def proven(self) -> bool:
        return self.value - self.bound <= tolerance(self.value)


def solve(
    unary: Sequence[Floats], edges: Sequence[Edge], expired: Callable[[], bool] = lambda: False
) -> Labelling:
    """Every node needs at least one label; infinite costs are allowed as long as some answer is finite."""
    merged = merged_edges(edges)
    state = Problem([np.asarray(costs, dtype=np.float64) for costs in unary], merged)
    state = drop_dominated(state)
    whole = eliminate(state)
    if whole is not None:
        return _answer(unary, merged, whole, None, "dynamic programming")
    search = Search(unary, merged, expired)
    bound = search.run(state)
    return _answer(unary, merged, search.best, bound, search.method)


def _answer(
    unary: Sequence[Floats], edges: Sequence[Edge], labels: Sequence[int], bound: float | None, method: str
) -> Labelling:
    value = cost_of(unary, edges, labels)
    return Labelling(tuple(labels), value, value if bound is None else min(bound, value), method)
