"""One label for each node at least total cost, where nodes cost by their label and edges by the labels of both ends. Exact.

1. Labels that another label of the same node is never worse than are dropped.
2. Nodes are eliminated while the tables that this makes stay small: chains, trees and narrow graphs end here.
3. What is left is bounded from below by a dual of the linear relaxation (sequential reweighted messages); labels that cannot be
   part of anything better than the best known answer are dropped, and elimination is tried again.
4. If both do not suffice: branch and bound, with the same bound in each branch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_MOST_TABLE = 4_000_000
_DOMINATORS = 12
_ROUNDS = 150
_STALLED = 1e-7
_SLACK = 1e-9


@dataclass(frozen=True)
class Edge:
    """`cost[a, b]`: what it costs when node i has label a and node j label b."""

    i: int
    j: int
    cost: Floats


@dataclass(frozen=True)
class Labelling:
    """`labels` of all nodes; nothing costs less than `bound`."""

    labels: tuple[int, ...]
    value: float
    bound: float
    method: str = ""

    @property
    def proven(self) -> bool:
        return self.value - self.bound <= _tolerance(self.value)


def solve(
    unary: Sequence[Floats], edges: Sequence[Edge], expired: Callable[[], bool] = lambda: False
) -> Labelling:
    """Every node needs at least one label; infinite costs are allowed as long as some answer is finite."""
    merged = _merge(edges)
    state = _Problem([np.asarray(costs, dtype=np.float64) for costs in unary], merged)
    state = _drop_dominated(state)
    whole = _eliminate(state)
    if whole is not None:
        return _answer(unary, merged, whole, None, "dynamic programming")
    search = _Search(unary, merged, expired)
    bound = search.run(state)
    return _answer(unary, merged, search.best, bound, search.method)


@dataclass(frozen=True)
class Relaxed:
    """No answer costs less than `bound`, none with label a of node i less than `least[i][a]`; `labels` is a good answer."""

    bound: float
    least: list[Floats]
    labels: list[int]


def relax(unary: Sequence[Floats], edges: Sequence[Edge], rounds: int) -> Relaxed:
    """The bound alone, for whoever searches by himself. All costs must be finite."""
    problem = _Problem([np.asarray(costs, dtype=np.float64) for costs in unary], _merge(edges))
    dual = _Dual(problem)
    for _ in range(rounds):
        dual.sweep(True)
        dual.sweep(False)
    return Relaxed(dual.bound(), dual.label_bounds(), _descend(problem, dual.decode()))


def cost_of(unary: Sequence[Floats], edges: Sequence[Edge], labels: Sequence[int]) -> float:
    total = sum(float(costs[labels[node]]) for node, costs in enumerate(unary))
    return total + sum(float(edge.cost[labels[edge.i], labels[edge.j]]) for edge in edges)


def _answer(
    unary: Sequence[Floats], edges: Sequence[Edge], labels: Sequence[int], bound: float | None, method: str
) -> Labelling:
    value = cost_of(unary, edges, labels)
    return Labelling(tuple(labels), value, value if bound is None else min(bound, value), method)


def _tolerance(value: float) -> float:
    return _SLACK * max(1.0, abs(value))


def _merge(edges: Sequence[Edge]) -> list[Edge]:
    """At most one edge between two nodes, always from the lower to the higher number."""
    found: dict[tuple[int, int], Floats] = {}
    for edge in edges:
        key, cost = ((edge.i, edge.j), edge.cost) if edge.i < edge.j else ((edge.j, edge.i), edge.cost.T)
        found[key] = found[key] + cost if key in found else np.asarray(cost, dtype=np.float64)
    return [Edge(i, j, cost) for (i, j), cost in found.items()]


@dataclass
class _Problem:
    """Nodes keep their numbers; `labels[i]` are the original labels that node i still has."""

    unary: list[Floats]
    edges: list[Edge]
    labels: list[Ints] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.labels:
            self.labels = [np.arange(len(costs)) for costs in self.unary]

    def keep(self, masks: Sequence[NDArray[np.bool_]]) -> _Problem:
        return _Problem(
            [costs[mask] for costs, mask in zip(self.unary, masks, strict=True)],
            [Edge(e.i, e.j, e.cost[masks[e.i]][:, masks[e.j]]) for e in self.edges],
            [labels[mask] for labels, mask in zip(self.labels, masks, strict=True)],
        )

    def fix(self, node: int, label: int) -> _Problem:
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


# --- dominance


def _drop_dominated(problem: _Problem) -> _Problem:
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


# --- elimination


@dataclass
class _Table:
    """A cost over the labels of several nodes (axes in the order of `nodes`)."""

    nodes: tuple[int, ...]
    cost: Floats


def _eliminate(problem: _Problem) -> list[int] | None:
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


# --- bound and search


class _Dual:
    """A lower bound: costs are moved between nodes and edges without changing any answer's total.

    The bound is the sum of all minima: valid after any move.
    """

    def __init__(self, problem: _Problem) -> None:
        self.problem = problem
        self.node = [costs.copy() for costs in problem.unary]
        self.edge = [edge.cost.copy() for edge in problem.edges]
        self.before: list[list[int]] = [[] for _ in problem.unary]
        self.after: list[list[int]] = [[] for _ in problem.unary]
        for number, edge in enumerate(problem.edges):
            self.after[edge.i].append(number)
            self.before[edge.j].append(number)

    def bound(self) -> float:
        return sum(float(costs.min()) for costs in self.node) + sum(float(cost.min()) for cost in self.edge)

    def sweep(self, forward: bool) -> None:
        nodes = range(len(self.node)) if forward else range(len(self.node) - 1, -1, -1)
        for node in nodes:
            incoming, outgoing = self.before[node], self.after[node]
            if not forward:
                incoming, outgoing = outgoing, incoming
            for number in incoming:
                self._pull(number, node)
            if outgoing:
                for number in outgoing:
                    self._pull(number, node)
                share = self.node[node] / max(len(incoming), len(outgoing))
                for number in outgoing:
                    self._give(number, node, share)

    def _axis(self, number: int, node: int) -> int:
        return 0 if self.problem.edges[number].i == node else 1

    def _pull(self, number: int, node: int) -> None:
        axis = self._axis(number, node)
        least = self.edge[number].min(axis=1 - axis)
        self.node[node] = self.node[node] + least
        self.edge[number] -= least[:, None] if axis == 0 else least[None, :]

    def _give(self, number: int, node: int, share: Floats) -> None:
        self.edge[number] += share[:, None] if self._axis(number, node) == 0 else share[None, :]
        self.node[node] = self.node[node] - share

    def label_bounds(self) -> list[Floats]:
        """For each node and label: nothing with that label costs less."""
        total = self.bound()
        found = []
        for node, costs in enumerate(self.node):
            least, own = costs.copy(), float(costs.min())
            for number in (*self.before[node], *self.after[node]):
                least = least + self.edge[number].min(axis=1 - self._axis(number, node))
                own += float(self.edge[number].min())
            found.append(total - own + least)
        return found

    def decode(self) -> list[int]:
        """Labels one node after the other, given those chosen before."""
        labels: list[int] = []
        for node, costs in enumerate(self.node):
            score = costs.copy()
            for number in self.before[node]:
                score = score + self.edge[number][labels[self.problem.edges[number].i]]
            labels.append(int(score.argmin()))
        return labels


class _Search:
    """Best-known answer and the proof that there is none better. Infinite costs become large ones meanwhile."""

    def __init__(self, unary: Sequence[Floats], edges: Sequence[Edge], expired: Callable[[], bool]) -> None:
        self._unary, self._edges, self._expired = unary, edges, expired
        self.best: list[int] = [0] * len(unary)
        self.value = float("inf")
        self.method = "dual bound"

    def run(self, problem: _Problem) -> float:
        return self._bound(_finite(problem), 0)

    def _offer(self, problem: _Problem, labels: list[int]) -> None:
        labels = _descend(problem, labels)
        original = problem.original(labels)
        value = cost_of(self._unary, self._edges, original)
        if value < self.value:
            self.best, self.value = original, value

    def _bound(self, problem: _Problem, depth: int) -> float:
        """Improves `best` and returns a lower bound on all answers of this branch."""
        self._start(problem, depth)
        problem, bound = self._tighten(problem)
        if bound >= self.value - _tolerance(self.value):
            return bound
        exact = _eliminate(problem)
        if exact is not None:
            value = cost_of(self._unary, self._edges, exact)
            if value < self.value:
                self.best, self.value = exact, value
            return value
        if self._expired():
            return bound
        self.method = "branch and bound"
        return self._branch(problem, depth)

    def _start(self, problem: _Problem, depth: int) -> None:
        if depth == 0:
            self._offer(problem, [int(costs.argmin()) for costs in problem.unary])

    def _tighten(self, problem: _Problem) -> tuple[_Problem, float]:
        dual, last, bound = _Dual(problem), -np.inf, -np.inf
        for number in range(_ROUNDS):
            dual.sweep(True)
            dual.sweep(False)
            if number % 5 != 4:
                continue
            bound = max(bound, dual.bound())
            self._offer(problem, dual.decode())
            if bound >= self.value - _tolerance(self.value) or self._expired():
                break
            masks = [least <= self.value + _tolerance(self.value) for least in dual.label_bounds()]
            if not all(mask.any() for mask in masks):
                return problem, self.value
            if sum(map(np.count_nonzero, masks)) < 0.9 * sum(len(mask) for mask in masks):
                problem = problem.keep(masks)
                dual = _restarted(problem, dual, masks)
                if _small(problem):
                    break
            if bound - last < _STALLED * max(1.0, abs(bound)):
                break
            last = bound
        return problem, bound

    def _branch(self, problem: _Problem, depth: int) -> float:
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


def _small(problem: _Problem) -> bool:
    return max(len(costs) for costs in problem.unary) <= 3


def _finite(problem: _Problem) -> _Problem:
    """Infinite costs as large ones, so that differences stay defined."""
    values = [costs[np.isfinite(costs)] for costs in problem.unary]
    values += [edge.cost[np.isfinite(edge.cost)] for edge in problem.edges]
    large = 10 * sum(float(np.abs(part).max(initial=0.0)) for part in values) + 1
    return _Problem(
        [np.minimum(costs, large) for costs in problem.unary],
        [Edge(edge.i, edge.j, np.minimum(edge.cost, large)) for edge in problem.edges],
        problem.labels,
    )


def _restarted(problem: _Problem, dual: _Dual, masks: Sequence[NDArray[np.bool_]]) -> _Dual:
    """The same moved costs on fewer labels."""
    fresh = _Dual(problem)
    fresh.node = [costs[mask] for costs, mask in zip(dual.node, masks, strict=True)]
    fresh.edge = [
        cost[masks[edge.i]][:, masks[edge.j]] for cost, edge in zip(dual.edge, problem.edges, strict=True)
    ]
    return fresh


def _descend(problem: _Problem, labels: list[int]) -> list[int]:
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
