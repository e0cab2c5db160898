"""Nodes with labels, and edges that cost by the labels of both ends: what the exact solver and its bounds share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

_SLACK = 1e-9


@dataclass(frozen=True)
class Edge:
    """`cost[a, b]`: what it costs when node i has label a and node j label b."""

    i: int
    j: int
    cost: Floats


@dataclass
class Problem:
    """Nodes keep their numbers; `labels[i]` are the original labels that node i still has."""

    unary: list[Floats]
    edges: list[Edge]
    labels: list[Ints] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.labels:
            self.labels = [np.arange(len(costs)) for costs in self.unary]

    def keep(self, masks: Sequence[NDArray[np.bool_]]) -> Problem:
        return Problem(
            [costs[mask] for costs, mask in zip(self.unary, masks, strict=True)],
            [Edge(e.i, e.j, e.cost[masks[e.i]][:, masks[e.j]]) for e in self.edges],
            [labels[mask] for labels, mask in zip(self.labels, masks, strict=True)],
        )

    def fix(self, node: int, label: int) -> Problem:
        masks = [np.ones(len(costs), dtype=bool) for costs in self.unary]
        masks[node] = np.arange(len(self.unary[node])) == label
        return self.keep(masks)

    def original(self, labels: Sequence[int]) -> list[int]:
        return [int(self.labels[node][label]) for node, label in enumerate(labels)]

    def incident(self) -> list[list[tuple[int, Floats]]]:
        """For each node: (other end, cost with this node's labels as rows)."""
        found: list[list[tuple[int, Floats]]] = [[] for _ in self.unary]
        for edge in self.edges:
            found[edge.i].append((edge.j, edge.cost))
            found[edge.j].append((edge.i, edge.cost.T))
        return found


def merged_edges(edges: Sequence[Edge]) -> list[Edge]:
    """At most one edge between two nodes, always from the lower to the higher number."""
    found: dict[tuple[int, int], Floats] = {}
    for edge in edges:
        key, cost = ((edge.i, edge.j), edge.cost) if edge.i < edge.j else ((edge.j, edge.i), edge.cost.T)
        found[key] = found[key] + cost if key in found else np.asarray(cost, dtype=np.float64)
    return [Edge(i, j, cost) for (i, j), cost in found.items()]


def cost_of(unary: Sequence[Floats], edges: Sequence[Edge], labels: Sequence[int]) -> float:
    total = sum(float(costs[labels[node]]) for node, costs in enumerate(unary))
    return total + sum(float(edge.cost[labels[edge.i], labels[edge.j]]) for edge in edges)


def tolerance(value: float) -> float:
    return _SLACK * max(1.0, abs(value))


def finite(problem: Problem) -> Problem:
    """Infinite costs as large ones, so that differences stay defined."""
    values = [costs[np.isfinite(costs)] for costs in problem.unary]
    values += [edge.cost[np.isfinite(edge.cost)] for edge in problem.edges]
    large = 10 * sum(float(np.abs(part).max(initial=0.0)) for part in values) + 1
    return Problem(
        [np.minimum(costs, large) for costs in problem.unary],
        [Edge(edge.i, edge.j, np.minimum(edge.cost, large)) for edge in problem.edges],
        problem.labels,
    )


def descend(problem: Problem, labels: list[int]) -> list[int]:
    """Single changes as long as they help."""
    incident = problem.incident()
    labels = list(labels)
    for _ in range(20):
        changed = False
        for node, costs in enumerate(problem.unary):
            score = costs.copy()
            for other, cost in incident[node]:
                score = score + cost[:, labels[other]]
            best = int(score.argmin())
            if score[best] < score[labels[node]] - 1e-12:
                labels[node], changed = best, True
        if not changed:
            break
    return labels
