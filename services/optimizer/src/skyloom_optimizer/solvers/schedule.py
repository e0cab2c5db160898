"""One label for each task of a graph: dollars add up, hours are the longest path. Needs OR-Tools where the quick proofs fail.

Quick: a plan that takes as long as the longest path does with every task at its fastest and no transfer cannot be beaten in time.
Else the longest path is bounded from below by mixes of paths, along which hours add up (a Lagrangian relaxation): labels that this
excludes go. What is left is searched by CP-SAT, with the pairs of labels of each edge as a flow, or tried in full where it is little.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyloom_common.core.errors import NotSupportedYet
from skyloom_optimizer.solvers import labels as label_solver
from skyloom_optimizer.solvers.labels import Edge, Labelling

Floats = NDArray[np.float64]

_GRAIN = 1_000_000_000
_TIE = 1e-6
_MOST_PAIRS = 15_000
_MOST_COMBINATIONS = 3_000
_ROUNDS = 60
_SWEEPS = 6


@dataclass(frozen=True)
class Timed:
    """Of each label of one task."""

    usd: Floats
    hours: Floats


@dataclass(frozen=True)
class Link:
    """`usd[a, b]`, `hours[a, b]` of the transfer when source has label a and target b."""

    source: int
    target: int
    usd: Floats
    hours: Floats


@dataclass(frozen=True)
class Graph:
    """`order`: a topological order of the tasks."""

    order: tuple[int, ...]
    own: tuple[Timed, ...]
    links: tuple[Link, ...]

    @cached_property
    def is_chain(self) -> bool:
        """Every task has at most one predecessor and one successor, and all hang together: hours add up."""
        pairs = {(link.source, link.target) for link in self.links}
        if len(pairs) != len(self.links) or len(pairs) != len(self.own) - 1:
            return False
        starts, ends = [source for source, _ in pairs], [target for _, target in pairs]
        return len(set(starts)) == len(starts) and len(set(ends)) == len(ends)

    def usd(self, labels: Sequence[int]) -> float:
        total = sum(float(item.usd[label]) for item, label in zip(self.own, labels, strict=True))
        return total + sum(float(link.usd[labels[link.source], labels[link.target]]) for link in self.links)

    def ends(self, labels: Sequence[int]) -> list[float]:
        """When each task ends."""
        ready = [0.0] * len(self.own)
        ends = [0.0] * len(self.own)
        for task in self.order:
            ends[task] = ready[task] + float(self.own[task].hours[labels[task]])
            for link in self.links:
                if link.source == task:
                    took = float(link.hours[labels[task], labels[link.target]])
                    ready[link.target] = max(ready[link.target], ends[task] + took)
        return ends

    def hours(self, labels: Sequence[int]) -> float:
        return max(self.ends(labels))

    def least_hours(self) -> float:
        """The longest path when everything is at its fastest."""
        ready = [0.0] * len(self.own)
        ends = [0.0] * len(self.own)
        for task in self.order:
            ends[task] = ready[task] + float(self.own[task].hours.min())
            for link in self.links:
                if link.source == task:
                    ready[link.target] = max(ready[link.target], ends[task] + float(link.hours.min()))
        return max(ends)


def solve(
    graph: Graph,
    per_usd: float,
    per_hour: float,
    seconds: float,
    expired: Callable[[], bool] = lambda: False,
) -> Labelling:
    """Least per_usd x dollars + per_hour x hours; where per_usd is 0, an hour is worth a million dollars."""
    graph, kept = _reduced(graph)
    weight = per_usd or _TIE
    best, floor = _start(graph, weight, per_hour, expired)
    best = _Best(_named(kept, best.labels), best.value)
    method = "longest path bound"
    if not _closed(best.value, floor):
        method = "Lagrangian bound"
        graph, kept, best, floor = _narrow(graph, kept, _Goal(weight, per_hour), best, floor, expired)
    if not _closed(best.value, floor):
        found = _search(
            graph,
            _Goal(weight, per_hour),
            seconds,
            [_find(k, x) for k, x in zip(kept, best.labels, strict=True)],
            floor,
        )
        best, floor, method = _Best(_named(kept, found.labels), found.value), found.bound, found.method
    return Labelling(best.labels, best.value, min(floor, best.value), method)


@dataclass(frozen=True)
class _Goal:
    weight: float
    per_hour: float

    def value(self, graph: Graph, labels: Sequence[int]) -> float:
        return self.weight * graph.usd(labels) + self.per_hour * graph.hours(labels)


@dataclass(frozen=True)
class _Best:
    """Labels by their original numbers."""

    labels: tuple[int, ...]
    value: float


def _closed(value: float, floor: float) -> bool:
    return value - floor <= 1e-9 * max(1.0, abs(value))


def _named(kept: Sequence[NDArray[np.int64]], labels: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(names[label]) for names, label in zip(kept, labels, strict=True))


def _find(names: NDArray[np.int64], name: int) -> int:
    return int(np.flatnonzero(names == name)[0]) if (names == name).any() else 0


def _narrow(
    graph: Graph,
    kept: list[NDArray[np.int64]],
    goal: _Goal,
    best: _Best,
    floor: float,
    expired: Callable[[], bool],
) -> tuple[Graph, list[NDArray[np.int64]], _Best, float]:
    """Bounds the longest path by a mix of paths, whose hours add up; labels that the bound excludes go.

    The mix moves towards the longest path of what the relaxation chooses, in ever smaller steps.
    """
    flow = _path_flow(graph, [_find(k, x) for k, x in zip(kept, best.labels, strict=True)])
    for number in range(_ROUNDS):
        tasks, links = flow
        unary = [
            goal.weight * t.usd + goal.per_hour * f * t.hours for t, f in zip(graph.own, tasks, strict=True)
        ]
        edges = [
            Edge(k.source, k.target, goal.weight * k.usd + goal.per_hour * f * k.hours)
            for k, f in zip(graph.links, links, strict=True)
        ]
        relaxed = label_solver.relax(unary, edges, _SWEEPS)
        floor = max(floor, relaxed.bound)
        value = goal.value(graph, relaxed.labels)
        if value < best.value:
            best = _Best(_named(kept, relaxed.labels), value)
        if _closed(best.value, floor) or expired():
            break
        step = 2.0 / (number + 3)
        toward = _path_flow(graph, relaxed.labels)
        flow = (
            [(1 - step) * old + step * new for old, new in zip(tasks, toward[0], strict=True)],
            [(1 - step) * old + step * new for old, new in zip(links, toward[1], strict=True)],
        )
        masks = [least <= best.value + 1e-9 * max(1.0, best.value) for least in relaxed.least]
        if not all(mask.any() for mask in masks):
            floor = best.value
            break
        graph = _restrict(graph, masks)
        kept = [names[mask] for names, mask in zip(kept, masks, strict=True)]
    return graph, kept, best, floor


def _path_flow(graph: Graph, labels: Sequence[int]) -> tuple[list[float], list[float]]:
    """1 for the tasks and links of the longest path, 0 for the others."""
    ends = graph.ends(labels)
    tasks, links = [0.0] * len(graph.own), [0.0] * len(graph.links)
    task = max(range(len(ends)), key=lambda number: ends[number])
    while True:
        tasks[task] = 1.0
        begin = ends[task] - float(graph.own[task].hours[labels[task]])
        before = [
            (ends[k.source] + float(k.hours[labels[k.source], labels[task]]), number)
            for number, k in enumerate(graph.links)
            if k.target == task
        ]
        if not before or max(before)[0] < begin - 1e-9:
            return tasks, links
        number = max(before)[1]
        links[number] = 1.0
        task = graph.links[number].source


def _restrict(graph: Graph, masks: Sequence[NDArray[np.bool_]]) -> Graph:
    own = tuple(Timed(t.usd[mask], t.hours[mask]) for t, mask in zip(graph.own, masks, strict=True))
    links = tuple(
        Link(
            k.source,
            k.target,
            k.usd[np.ix_(masks[k.source], masks[k.target])],
            k.hours[np.ix_(masks[k.source], masks[k.target])],
        )
        for k in graph.links
    )
    return Graph(graph.order, own, links)


def _reduced(graph: Graph) -> tuple[Graph, list[NDArray[np.int64]]]:
    """Without labels for which another is never worse, neither in dollars nor in hours."""
    kept = [np.arange(len(item.usd)) for item in graph.own]
    for task, item in enumerate(graph.own):
        usd = [
            link.usd if link.source == task else link.usd.T
            for link in graph.links
            if task in (link.source, link.target)
        ]
        keep = np.ones(len(item.usd), dtype=bool)
        far = item.usd + sum((cost.max(axis=1) for cost in usd), np.zeros(len(item.usd)))
        picks = [*np.argsort(far, kind="stable")[:8], *np.argsort(item.usd, kind="stable")[:8]]
        picks += [*np.lexsort((far, item.hours))[:8]]
        for best in dict.fromkeys(int(label) for label in picks):
            if not keep[best]:
                continue
            dearer = (
                item.usd[best]
                - item.usd
                + sum((np.max(c[best] - c, axis=1) for c in usd), np.zeros(len(keep)))
            )
            longer = item.hours[best] - item.hours
            # Hours on different edges lie on different paths: the worst of each side counts.
            before = [
                np.max(link.hours.T[best] - link.hours.T, axis=1)
                for link in graph.links
                if link.target == task
            ]
            after = [
                np.max(link.hours[best] - link.hours, axis=1) for link in graph.links if link.source == task
            ]
            zero = np.zeros(len(keep))
            late = longer + np.maximum.reduce([*before, zero]) + np.maximum.reduce([*after, zero])
            gone = (dearer <= 0) & (late <= 0)
            gone[best] = False
            keep &= ~gone
        kept[task] = np.flatnonzero(keep)
    masks = [np.isin(np.arange(len(t.usd)), names) for t, names in zip(graph.own, kept, strict=True)]
    return _restrict(graph, masks), kept


def _start(graph: Graph, weight: float, per_hour: float, expired: Callable[[], bool]) -> tuple[_Best, float]:
    """The best of some answers that treat hours as if they added up; and a first bound: cheapest and longest path apart."""

    def additive(hour: float) -> Labelling:
        unary = [weight * item.usd + hour * item.hours for item in graph.own]
        edges = [Edge(k.source, k.target, weight * k.usd + hour * k.hours) for k in graph.links]
        return label_solver.solve(unary, edges, expired)

    goal = _Goal(weight, per_hour)
    tried = [additive(0.0), additive(per_hour), additive(per_hour * 100), additive(per_hour / 4)]
    found = min((goal.value(graph, item.labels), item.labels) for item in tried)
    return _Best(found[1], found[0]), tried[0].bound + per_hour * graph.least_hours()


def _search(graph: Graph, goal: _Goal, seconds: float, start: Sequence[int], floor: float) -> Labelling:
    """Every combination where there are few, else CP-SAT, else the bound has to do."""
    if math.prod(len(item.usd) for item in graph.own) <= _MOST_COMBINATIONS:
        return _enumerate(graph, goal)
    value = goal.value(graph, start)
    if sum(link.usd.size for link in graph.links) > _MOST_PAIRS:
        return Labelling(tuple(start), value, floor, "bound only: too many pairs of places")
    return _cp_sat(graph, goal, seconds, start, floor)


def _enumerate(graph: Graph, goal: _Goal) -> Labelling:
    combinations = product(*(range(len(item.usd)) for item in graph.own))
    value, labels = min((goal.value(graph, labels), labels) for labels in combinations)
    return Labelling(labels, value, value, "all combinations")


def _cp_sat(graph: Graph, goal: _Goal, seconds: float, start: Sequence[int], floor: float) -> Labelling:
    cp, value, weight, per_hour = _cp_model(), goal.value(graph, start), goal.weight, goal.per_hour
    model = cp.CpModel()
    scale = _GRAIN / max(value, 1e-9)
    chosen = [[model.NewBoolVar("") for _ in item.usd] for item in graph.own]
    costs: list[Any] = []
    horizon = int(per_hour * graph.hours(start) * scale * 1.01) + 10
    ends = [model.NewIntVar(0, horizon, "") for _ in graph.own]
    finish = model.NewIntVar(0, horizon, "")

    def whole(number: float) -> int:
        return round(number * scale)

    for task, item in enumerate(graph.own):
        model.AddExactlyOne(chosen[task])
        costs += [whole(weight * float(usd)) * var for usd, var in zip(item.usd, chosen[task], strict=True)]
        model.Add(finish >= ends[task])
        took = _sum(whole(per_hour * float(h)) * v for h, v in zip(item.hours, chosen[task], strict=True))
        model.Add(ends[task] >= took)
    for link in graph.links:
        rows, columns = chosen[link.source], chosen[link.target]
        pair = [[model.NewBoolVar("") for _ in columns] for _ in rows]
        for a, row in enumerate(pair):
            model.Add(_sum(row) == rows[a])
        for b, column in enumerate(columns):
            model.Add(_sum(row[b] for row in pair) == column)
        cells = [(a, b) for a in range(len(rows)) for b in range(len(columns))]
        costs += [whole(weight * float(link.usd[a, b])) * pair[a][b] for a, b in cells]
        moved = _sum(whole(per_hour * float(link.hours[a, b])) * pair[a][b] for a, b in cells)
        own = graph.own[link.target].hours
        took = _sum(whole(per_hour * float(h)) * v for h, v in zip(own, columns, strict=True))
        model.Add(ends[link.target] >= ends[link.source] + moved + took)
        for a, b in cells:
            model.AddHint(pair[a][b], int(start[link.source] == a and start[link.target] == b))
    for task, label in enumerate(start):
        for number, var in enumerate(chosen[task]):
            model.AddHint(var, int(number == label))
    model.Minimize(_sum(costs) + finish)
    solver = cp.CpSolver()
    solver.parameters.max_time_in_seconds = seconds
    solver.parameters.num_workers = 2
    solver.parameters.random_seed = 1
    status = solver.Solve(model)
    bound = max(floor, (solver.BestObjectiveBound() - _rounding(graph)) / scale)
    if status in (cp.OPTIMAL, cp.FEASIBLE):
        labels = [next(n for n, var in enumerate(row) if solver.Value(var)) for row in chosen]
        found = goal.value(graph, labels)
        start, value = (labels, found) if found < value else (list(start), value)
    # Numbers were rounded to a fine grid: what lies within it is equal.
    if status == cp.OPTIMAL:
        bound = max(bound, value - 2 * _rounding(graph) / scale)
    return Labelling(tuple(start), value, min(bound, value), "CP-SAT")


def _rounding(graph: Graph) -> float:
    """By how many steps all rounded numbers together may be off."""
    return 0.5 * (3 * len(graph.own) + 2 * len(graph.links))


def _sum(parts: Any) -> Any:
    return sum(parts)


def _cp_model() -> Any:
    try:
        from ortools.sat.python import cp_model
    except ImportError as error:
        raise missing_solver("a plan of a graph by time") from error
    return cp_model


def missing_solver(what: str) -> NotSupportedYet:
    return NotSupportedYet(
        f"not supported yet: {what} needs OR-Tools, which this optimizer was installed without",
        hint="install it beside the optimizer: pip install 'skyloom-optimizer[solver]'",
    )
