"""Node after node is eliminated while the tables that this makes stay small: chains, trees and narrow graphs end here. Exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from skyloom_optimizer.solvers.labels_problem import Floats, Ints, Problem

_MOST_TABLE = 4_000_000


@dataclass
class _Table:
    """A cost over the labels of several nodes (axes in the order of `nodes`)."""

    nodes: tuple[int, ...]
    cost: Floats


def eliminate(problem: Problem) -> list[int] | None:
    """Labels of the best answer by eliminating node after node, or None where a table would become too large."""
    sizes = [len(costs) for costs in problem.unary]
    tables = [_Table((node,), costs) for node, costs in enumerate(problem.unary)]
    tables += [_Table((edge.i, edge.j), edge.cost) for edge in problem.edges]
    order: list[tuple[int, tuple[int, ...], Ints]] = []
    left = set(range(len(sizes)))
    while left:
        node, around, size = _narrowest(left, tables, sizes)
        if size > _MOST_TABLE:
            return None
        joined = _join([table for table in tables if node in table.nodes], (*around, node), sizes)
        tables = [table for table in tables if node not in table.nodes]
        order.append((node, around, joined.argmin(axis=-1)))
        if around:
            tables.append(_Table(around, joined.min(axis=-1)))
        left.remove(node)
    labels = [0] * len(sizes)
    for node, around, best in reversed(order):
        labels[node] = int(best[tuple(labels[other] for other in around)])
    return problem.original(labels)


def _narrowest(
    left: set[int], tables: Sequence[_Table], sizes: Sequence[int]
) -> tuple[int, tuple[int, ...], int]:
    around: dict[int, set[int]] = {node: set() for node in left}
    for table in tables:
        for node in table.nodes:
            around[node].update(table.nodes)
    best = min(left, key=lambda node: (_volume(around[node] | {node}, sizes), node))
    others = tuple(sorted(around[best] - {best}))
    return best, others, _volume(around[best] | {best}, sizes)


def _volume(nodes: set[int], sizes: Sequence[int]) -> int:
    size = 1
    for node in nodes:
        size *= sizes[node]
    return size


def _join(tables: Sequence[_Table], axes: tuple[int, ...], sizes: Sequence[int]) -> Floats:
    total: Floats = np.zeros([sizes[node] for node in axes])
    position = {node: number for number, node in enumerate(axes)}
    for table in tables:
        order = sorted(range(len(table.nodes)), key=lambda axis: position[table.nodes[axis]])
        shape = [1] * len(axes)
        for node in table.nodes:
            shape[position[node]] = sizes[node]
        total = total + table.cost.transpose(order).reshape(shape)
    return total
