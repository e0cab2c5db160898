"""How many of each kind go where, at least total cost, under shared limits. Needs OR-Tools.

A linear relaxation gives a bound and the price of each limit; CP-SAT finds whole numbers, starting from it. Where not everything
fits, as much as possible is placed first (by priority), then cost is minimised.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyloom_optimizer.solvers.schedule import missing_solver

Floats = NDArray[np.float64]

_COST_STEPS = 10_000_000
_LIMIT_STEPS = 1000
_WORKERS = 2
_MOST_OPTIONS = 6_000
_CORE = 8


@dataclass(frozen=True)
class Kind:
    """`count` copies, each in one of the options. `costs` by option."""

    count: int
    costs: Floats
    priority: int = 0
    places: tuple[tuple[int, ...], ...] = ()
    """Options of each place, where at least `min_places` different ones are needed."""
    min_places: int = 1


@dataclass(frozen=True)
class Limit:
    """Sum over `uses` (kind, option, amount) at most `most`."""

    most: float
    uses: tuple[tuple[int, int, float], ...]


@dataclass(frozen=True)
class Fleet:
    """`counts[k][o]`: copies of kind k in option o. `prices`: what one unit more of each limit would save."""

    counts: tuple[tuple[int, ...], ...]
    unplaced: tuple[int, ...]
    value: float
    bound: float
    prices: tuple[float | None, ...]
    method: str


def solve(kinds: Sequence[Kind], limits: Sequence[Limit], max_gap: float, seconds: float) -> Fleet:
    """Whole numbers within `max_gap` of a proven bound, or the best found in time with its bound."""
    greedy = _unlimited(kinds, limits)
    if greedy is not None:
        return greedy
    cp = _cp_model()
    left = {kind.priority: 0 for kind in kinds}
    found = _place(cp, kinds, limits, left, max_gap, 0.4 * seconds)
    if found is not None and not any(found.unplaced):
        return found
    left = _least_left(kinds, limits)
    second = _place(cp, kinds, limits, left, max_gap, 0.4 * seconds)
    if second is not None and _left_by_priority(kinds, second.unplaced) == left:
        return second
    best = second or _nothing(kinds, limits)
    fewest = _fewest_left(cp, kinds, limits, best, 0.1 * seconds)
    third = _place(cp, kinds, limits, fewest, max_gap, 0.2 * seconds)
    return min([item for item in (second, third) if item], key=lambda item: _rank(kinds, item), default=best)


def _rank(kinds: Sequence[Kind], found: Fleet) -> tuple[list[int], float]:
    """Fewest left over of the highest priority first, then cost."""
    left = _left_by_priority(kinds, found.unplaced)
    return [left[priority] for priority in sorted(left, reverse=True)], found.value


def _nothing(kinds: Sequence[Kind], limits: Sequence[Limit]) -> Fleet:
    counts = tuple(tuple(0 for _ in kind.costs) for kind in kinds)
    left = tuple(kind.count for kind in kinds)
    return Fleet(counts, left, 0.0, 0.0, (None,) * len(limits), "nothing found in time")


def _place(
    cp: Any,
    kinds: Sequence[Kind],
    limits: Sequence[Limit],
    left: Mapping[int, int],
    max_gap: float,
    seconds: float,
) -> Fleet | None:
    """The relaxation, rounded, where that is good enough; else the search, and the rounded one where that finds nothing."""
    relaxed = _relax(kinds, limits, left)
    if relaxed is None:
        return None
    rounded = _round(kinds, limits, relaxed)
    complete = rounded is not None and _left_by_priority(kinds, rounded.unplaced) == left
    if rounded is not None and complete and rounded.value <= rounded.bound * (1 + max_gap) + 1e-9:
        return rounded
    start = rounded if complete else None
    if sum(len(kind.costs) for kind in kinds) <= _MOST_OPTIONS:
        return _whole(cp, kinds, limits, left, relaxed, start, max_gap, seconds) or rounded
    return _in_core(cp, kinds, limits, left, relaxed, start, max_gap, seconds) or rounded


def _in_core(
    cp: Any,
    kinds: Sequence[Kind],
    limits: Sequence[Limit],
    left: Mapping[int, int],
    relaxed: _Relaxation,
    start: Fleet | None,
    max_gap: float,
    seconds: float,
) -> Fleet | None:
    """Only the options that cost least with limits at their prices are searched; the bound is that of the whole relaxation."""
    priced = _priced(kinds, limits, relaxed)
    kept = [
        np.union1d(np.argsort(cost, kind="stable")[:_CORE], np.flatnonzero(amounts > 1e-9))
        for cost, amounts in zip(priced, relaxed.counts, strict=True)
    ]
    if start is not None:
        kept = [np.union1d(k, np.flatnonzero(row)) for k, row in zip(kept, start.counts, strict=True)]
    number = [{int(option): position for position, option in enumerate(row)} for row in kept]
    small = [
        Kind(
            kind.count,
            kind.costs[row],
            kind.priority,
            tuple(tuple(new[o] for o in place if o in new) for place in kind.places),
            kind.min_places,
        )
        for kind, row, new in zip(kinds, kept, number, strict=True)
    ]
    few = [
        Limit(limit.most, tuple((k, number[k][o], amount) for k, o, amount in limit.uses if o in number[k]))
        for limit in limits
    ]
    less = _Relaxation(
        relaxed.bound, [a[row] for a, row in zip(relaxed.counts, kept, strict=True)], relaxed.prices
    )
    hint = None
    if start is not None:
        rows = (np.array(row)[k] for row, k in zip(start.counts, kept, strict=True))
        counts = tuple(tuple(int(count) for count in row) for row in rows)
        hint = Fleet(counts, start.unplaced, start.value, start.bound, start.prices, start.method)
    found = _whole(cp, small, few, left, less, hint, max_gap, seconds)
    if found is None:
        return None
    whole = []
    for kind, row, counts_of in zip(kinds, kept, found.counts, strict=True):
        spread = np.zeros(len(kind.costs), dtype=int)
        spread[row] = counts_of
        whole.append(tuple(int(count) for count in spread))
    bound = min(relaxed.bound, found.value)
    return Fleet(tuple(whole), found.unplaced, found.value, bound, found.prices, found.method)


def _priced(kinds: Sequence[Kind], limits: Sequence[Limit], relaxed: _Relaxation) -> list[Floats]:
    """Costs with limits at their prices."""
    priced = [kind.costs.copy() for kind in kinds]
    for number, limit in enumerate(limits):
        if relaxed.prices[number]:
            for k, o, amount in limit.uses:
                priced[k][o] += relaxed.prices[number] * amount
    return priced


def _left_by_priority(kinds: Sequence[Kind], left: Sequence[int]) -> dict[int, int]:
    found = {kind.priority: 0 for kind in kinds}
    for kind, count in zip(kinds, left, strict=True):
        found[kind.priority] += count
    return found


def _round(kinds: Sequence[Kind], limits: Sequence[Limit], relaxed: _Relaxation) -> Fleet | None:
    """Whole parts of the relaxation; the rest one by one where it costs least, limits at their prices counted in."""
    if any(kind.min_places > 1 for kind in kinds):
        return None
    uses: list[list[list[tuple[int, float]]]] = [[[] for _ in kind.costs] for kind in kinds]
    for number, limit in enumerate(limits):
        for k, o, amount in limit.uses:
            uses[k][o].append((number, amount))
    priced = _priced(kinds, limits, relaxed)
    room = np.array([limit.most for limit in limits], dtype=np.float64)
    counts = [np.floor(amounts + 1e-7).astype(int) for amounts in relaxed.counts]
    for k, row in enumerate(counts):
        for o in np.flatnonzero(row).tolist():
            for number, amount in uses[k][o]:
                room[number] -= amount * row[o]
    left = [kind.count - int(row.sum()) for kind, row in zip(kinds, counts, strict=True)]
    for k in sorted(range(len(kinds)), key=lambda k: -kinds[k].priority):
        for o in np.argsort(priced[k], kind="stable").tolist():
            while left[k] and all(room[number] >= amount - 1e-9 for number, amount in uses[k][o]):
                counts[k][o] += 1
                left[k] -= 1
                for number, amount in uses[k][o]:
                    room[number] -= amount
    if (room < -1e-6).any():
        return None
    value = sum(float(np.dot(row, kind.costs)) for row, kind in zip(counts, kinds, strict=True))
    whole = tuple(tuple(int(number) for number in row) for row in counts)
    bound = min(relaxed.bound, value)
    return Fleet(whole, tuple(left), value, bound, relaxed.prices, "linear relaxation, rounded")


def _least_left(kinds: Sequence[Kind], limits: Sequence[Limit]) -> dict[int, int]:
    """A lower bound on what is left over, by priority, highest first: often it can be met."""
    found: dict[int, int] = {}
    for priority in sorted({kind.priority for kind in kinds}, reverse=True):
        found[priority] = _relaxed_left(kinds, limits, found, priority)
    return found


def _relaxed_left(
    kinds: Sequence[Kind], limits: Sequence[Limit], fixed: Mapping[int, int], priority: int
) -> int:
    from ortools.linear_solver import pywraplp

    solver = pywraplp.Solver.CreateSolver("GLOP")
    amounts = [[solver.NumVar(0, kind.count, "") for _ in kind.costs] for kind in kinds]
    left = [solver.NumVar(0, kind.count, "") for kind in kinds]
    for kind, row, rest in zip(kinds, amounts, left, strict=True):
        solver.Add(solver.Sum([*row, rest]) == kind.count)
    for limit in limits:
        row_limit = solver.Constraint(-solver.infinity(), limit.most)
        for k, o, amount in limit.uses:
            row_limit.SetCoefficient(amounts[k][o], amount)
    sums = {
        other: solver.Sum([v for v, kind in zip(left, kinds, strict=True) if kind.priority == other])
        for other in {kind.priority for kind in kinds}
    }
    for other, count in fixed.items():
        solver.Add(sums[other] <= count)
    solver.Minimize(sums[priority])
    if solver.Solve() != pywraplp.Solver.OPTIMAL:
        return sum(kind.count for kind in kinds if kind.priority == priority)
    return int(np.ceil(solver.Objective().Value() - 1e-6))


def _unlimited(kinds: Sequence[Kind], limits: Sequence[Limit]) -> Fleet | None:
    """Everything in its cheapest option, where no limit minds."""
    if any(kind.min_places > 1 for kind in kinds):
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
    free = tuple(0.0 for _ in limits)
    return Fleet(counts, (0,) * len(kinds), value, value, free, "no limit binds")


@dataclass(frozen=True)
class _Relaxation:
    bound: float
    counts: list[Floats]
    prices: tuple[float, ...]


def _relax(
    kinds: Sequence[Kind], limits: Sequence[Limit], left_over: Mapping[int, int]
) -> _Relaxation | None:
    """The linear relaxation; None where even that has no answer. `min_places` are left out: that only lowers the bound."""
    from ortools.linear_solver import pywraplp

    solver = pywraplp.Solver.CreateSolver("GLOP")
    amounts = [[solver.NumVar(0, kind.count, "") for _ in kind.costs] for kind in kinds]
    rows = []
    without = {priority: solver.Constraint(count, count) for priority, count in left_over.items()}
    for kind, row in zip(kinds, amounts, strict=True):
        total = solver.Constraint(kind.count, kind.count)
        for var in row:
            total.SetCoefficient(var, 1)
        if left_over[kind.priority]:
            left = solver.NumVar(0, kind.count, "")
            total.SetCoefficient(left, 1)
            without[kind.priority].SetCoefficient(left, 1)
    for limit in limits:
        row_limit = solver.Constraint(-solver.infinity(), limit.most)
        for k, o, amount in limit.uses:
            row_limit.SetCoefficient(amounts[k][o], amount)
        rows.append(row_limit)
    goal = solver.Objective()
    for kind, row in zip(kinds, amounts, strict=True):
        for cost, var in zip(kind.costs.tolist(), row, strict=True):
            goal.SetCoefficient(var, cost)
    goal.SetMinimization()
    if solver.Solve() != pywraplp.Solver.OPTIMAL:
        return None
    counts = [np.array([var.solution_value() for var in row]) for row in amounts]
    prices = tuple(max(0.0, -row.dual_value()) for row in rows)
    return _Relaxation(goal.Value() * (1 - 1e-9), counts, prices)


class _Model:
    """The whole-number variables with all limits. Copies that are left over count as a place of their own."""

    def __init__(
        self, cp: Any, kinds: Sequence[Kind], limits: Sequence[Limit], leftover: Collection[int]
    ) -> None:
        """`leftover`: priorities of which some may be left over."""
        self.cp, self.kinds = cp, kinds
        self.model = cp.CpModel()
        self.counts = [[self.model.NewIntVar(0, kind.count, "") for _ in kind.costs] for kind in kinds]
        self.left = [
            self.model.NewIntVar(0, kind.count if kind.priority in leftover else 0, "") for kind in kinds
        ]
        for kind, row, left in zip(kinds, self.counts, self.left, strict=True):
            self.model.Add(cp.LinearExpr.Sum(row) + left == kind.count)
            if kind.min_places > 1:
                self._spread(kind, row, left)
        for limit in limits:
            self._limit(limit)

    def _spread(self, kind: Kind, row: Sequence[Any], left: Any) -> None:
        used = []
        for place in kind.places:
            flag = self.model.NewBoolVar("")
            self.model.Add(self.cp.LinearExpr.Sum([row[option] for option in place]) >= flag)
            used.append(flag)
        self.model.Add(self.cp.LinearExpr.Sum(used) + left >= kind.min_places)

    def _limit(self, limit: Limit) -> None:
        """Amounts are rounded up, the limit down: what is found keeps the true one."""
        whole = all(amount == int(amount) for _, _, amount in limit.uses)
        steps = 1 if whole else _LIMIT_STEPS
        if not whole and limit.most > 0:
            steps = max(steps, int(1e9 / limit.most))
        terms = [self.counts[k][o] for k, o, _ in limit.uses]
        amounts = [int(np.ceil(amount * steps - 1e-6)) for _, _, amount in limit.uses]
        if terms:
            most = int(np.floor(limit.most * steps + 1e-6))
            self.model.Add(self.cp.LinearExpr.WeightedSum(terms, amounts) <= most)

    def solve(self, max_gap: float, seconds: float) -> tuple[Any, int]:
        solver = self.cp.CpSolver()
        solver.parameters.max_time_in_seconds = max(seconds, 0.1)
        solver.parameters.num_workers = _WORKERS
        solver.parameters.random_seed = 1
        solver.parameters.relative_gap_limit = max_gap
        return solver, solver.Solve(self.model)


def _whole(
    cp: Any,
    kinds: Sequence[Kind],
    limits: Sequence[Limit],
    left_over: Mapping[int, int],
    relaxed: _Relaxation,
    start: Fleet | None,
    max_gap: float,
    seconds: float,
) -> Fleet | None:
    """Least cost with so many of each priority left over, or None where that is impossible or not found in time."""
    built = _Model(cp, kinds, limits, [priority for priority, count in left_over.items() if count])
    for priority, count in left_over.items():
        group = [left for left, kind in zip(built.left, kinds, strict=True) if kind.priority == priority]
        built.model.Add(cp.LinearExpr.Sum(group) == count)
    largest = max((float(kind.count * kind.costs.max(initial=0.0)) for kind in kinds), default=0.0)
    scale = _COST_STEPS / max(relaxed.bound / max(sum(k.count for k in kinds), 1), largest * 1e-6, 1e-9)
    terms = [var for row in built.counts for var in row]
    costs = [round(cost * scale) for kind in kinds for cost in kind.costs.tolist()]
    built.model.Minimize(cp.LinearExpr.WeightedSum(terms, costs))
    for number, row in enumerate(built.counts):
        hint = start.counts[number] if start else _rounded(relaxed.counts[number])
        for var, amount in zip(row, hint, strict=True):
            built.model.AddHint(var, int(amount))
    if start is not None:
        for var, amount in zip(built.left, start.unplaced, strict=True):
            built.model.AddHint(var, amount)
    solver, status = built.solve(max_gap, seconds)
    if status not in (cp.OPTIMAL, cp.FEASIBLE):
        return None
    counts = tuple(tuple(solver.Value(var) for var in row) for row in built.counts)
    value = sum(float(np.dot(row, kind.costs)) for row, kind in zip(counts, kinds, strict=True))
    rounding = 0.5 * sum(kind.count for kind in kinds)
    bound = max(relaxed.bound, (solver.BestObjectiveBound() - rounding) / scale)
    if status == cp.OPTIMAL and max_gap == 0:
        bound = value
    return Fleet(
        counts,
        tuple(solver.Value(var) for var in built.left),
        value,
        min(bound, value),
        relaxed.prices,
        "CP-SAT and linear relaxation",
    )


def _rounded(amounts: Floats) -> list[int]:
    """Whole numbers near these with the same sum."""
    whole = np.floor(amounts + 1e-9).astype(int)
    missing = round(float(amounts.sum())) - int(whole.sum())
    rest = np.argsort(whole - amounts, kind="stable")[: max(0, missing)]
    whole[rest] += 1
    return [int(number) for number in whole]


def _fewest_left(
    cp: Any, kinds: Sequence[Kind], limits: Sequence[Limit], start: Fleet, seconds: float
) -> dict[int, int]:
    """How many of each priority cannot be placed: fewest of the highest first. `start`: an answer that is known."""
    priorities = sorted({kind.priority for kind in kinds}, reverse=True)
    found = _left_by_priority(kinds, start.unplaced)
    for priority in priorities:
        built = _Model(cp, kinds, limits, priorities)
        for row, counts in zip(built.counts, start.counts, strict=True):
            for var, count in zip(row, counts, strict=True):
                built.model.AddHint(var, count)
        sums = {
            other: cp.LinearExpr.Sum(
                [v for v, k in zip(built.left, kinds, strict=True) if k.priority == other]
            )
            for other in priorities
        }
        for other in priorities:
            if other > priority:
                built.model.Add(sums[other] == found[other])
        built.model.Minimize(sums[priority])
        solver, status = built.solve(0.0, seconds / len(priorities))
        if status not in (cp.OPTIMAL, cp.FEASIBLE):
            return found
        left = [solver.Value(var) for var in built.left]
        better = _left_by_priority(kinds, left)
        if [better[p] for p in priorities] < [found[p] for p in priorities]:
            found = better
    return found


def _cp_model() -> Any:
    try:
        from ortools.sat.python import cp_model
    except ImportError as error:
        raise missing_solver("a fleet plan") from error
    return cp_model
