"""Branch and bound over labels, with the dual bound in each branch; elimination is tried again whenever labels have gone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from skyloom_optimizer.solvers.labels_dual import Dual
from skyloom_optimizer.solvers.labels_eliminate import eliminate
from skyloom_optimizer.solvers.labels_problem import (
    Edge,
    Floats,
    Problem,
    cost_of,
    descend,
    finite,
    tolerance,
)

_ROUNDS = 150
_STALLED = 1e-7


class Search:
    """Best-known answer and the proof that there is none better. Infinite costs become large ones meanwhile."""

    def __init__(self, unary: Sequence[Floats], edges: Sequence[Edge], expired: Callable[[], bool]) -> None:
        self._unary, self._edges, self._expired = unary, edges, expired
        self.best: list[int] = [0] * len(unary)
        self.value = float("inf")
        self.method = "dual bound"

    def run(self, problem: Problem) -> float:
        return self._bound(finite(problem), 0)

    def _offer(self, problem: Problem, labels: list[int]) -> None:
        labels = descend(problem, labels)
        original = problem.original(labels)
        value = cost_of(self._unary, self._edges, original)
        if value < self.value:
            self.best, self.value = original, value

    def _bound(self, problem: Problem, depth: int) -> float:
        """Improves `best` and returns a lower bound on all answers of this branch."""
        self._start(problem, depth)
        problem, bound = self._tighten(problem)
        if bound >= self.value - tolerance(self.value):
            return bound
        exact = eliminate(problem)
        if exact is not None:
            value = cost_of(self._unary, self._edges, exact)
            if value < self.value:
                self.best, self.value = exact, value
            return value
        if self._expired():
            return bound
        self.method = "branch and bound"
        return self._branch(problem, depth)

    def _start(self, problem: Problem, depth: int) -> None:
        if depth == 0:
            self._offer(problem, [int(costs.argmin()) for costs in problem.unary])

    def _tighten(self, problem: Problem) -> tuple[Problem, float]:
        dual, last, bound = Dual.of(problem), -np.inf, -np.inf
        for number in range(_ROUNDS):
            dual.sweep(True)
            dual.sweep(False)
            if number % 5 != 4:
                continue
            bound = max(bound, dual.bound())
            self._offer(problem, dual.decode())
            if bound >= self.value - tolerance(self.value) or self._expired():
                break
            masks = [least <= self.value + tolerance(self.value) for least in dual.label_bounds()]
            if not all(mask.any() for mask in masks):
                return problem, self.value
            if sum(map(np.count_nonzero, masks)) < 0.9 * sum(len(mask) for mask in masks):
                dual = dual.kept(masks)
                problem = problem.keep(masks)
                if _small(problem):
                    break
            if bound - last < _STALLED * max(1.0, abs(bound)):
                break
            last = bound
        return problem, bound

    def _branch(self, problem: Problem, depth: int) -> float:
        """On the node with the fewest labels; its cheapest label first."""
        open_nodes = [node for node, costs in enumerate(problem.unary) if len(costs) > 1]
        degree = [0] * len(problem.unary)
        for edge in problem.edges:
            degree[edge.i] += 1
            degree[edge.j] += 1
        node = max(open_nodes, key=lambda n: (degree[n], -len(problem.unary[n])))
        bounds = []
        for label in np.argsort(problem.unary[node], kind="stable").tolist():
            bounds.append(self._bound(problem.fix(node, int(label)), depth + 1))
        return min(bounds)


def _small(problem: Problem) -> bool:
    return max(len(costs) for costs in problem.unary) <= 3
