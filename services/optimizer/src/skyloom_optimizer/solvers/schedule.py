"""One label for each task of a graph: dollars add up, hours are the longest path. Exact where time allows, else with a bound.

Labels for which another is never worse, neither in dollars nor in hours, go first; the rest is searched by `paths`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from skyloom_optimizer.solvers.graph import Graph
from skyloom_optimizer.solvers.labels import Labelling
from skyloom_optimizer.solvers.paths import Goal, PathSearch

_TIE = 1e-6
# Dollars and hours to a few millionths; where hours alone count, dollars decide and need more digits.
_GRAIN = 3e-7
_FINE_GRAIN = 1e-9


def solve(
    graph: Graph, per_usd: float, per_hour: float, expired: Callable[[], bool] = lambda: False
) -> Labelling:
    """Least per_usd x dollars + per_hour x hours; where per_usd is 0, an hour is worth a million dollars."""
    fewer, names = graph.core
    goal = Goal(per_usd, per_hour, _GRAIN) if per_usd else Goal(_TIE, per_hour, _FINE_GRAIN)
    search = PathSearch(goal, expired)
    bound = search.run(fewer, names)
    labels = np.empty(len(graph.own), dtype=np.int64)
    labels[list(graph.order)] = search.labels
    method = "mixes of paths" if search.branches == 1 else "branch and bound over mixes of paths"
    return Labelling(tuple(labels.tolist()), search.value, min(bound, search.value), method)
