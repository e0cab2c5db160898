"""How many of each kind go where, at least total cost, under shared limits. Needs OR-Tools.

A linear relaxation gives a bound and the price of each limit; CP-SAT finds whole numbers, starting from it. Where not everything
fits, as much as possible is placed first (by priority), then cost is minimised.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyloom_optimizer.solvers.schedule import missing_solver

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_COST_STEPS = 10_000_000
_LIMIT_STEPS = 1000
_WORKERS = 2
_MOST_OPTIONS = 6_000
_CORE = 6
_MOVES = 3
_EXCHANGES = 200
_FREE = 120
_WAITING = 12


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
    found = _place(cp, kinds, limits, {kind.priority: 0 for kind in kinds}, max_gap, 0.4 * seconds)
    if found is not None and not any(found.unplaced):
        return found
    least = _least_left(kinds, limits)
    best = _place(cp, kinds, limits, least, max_gap, 0.5 * seconds) or _nothing(kinds, limits)
    if _left_by_priority(kinds, best.unplaced) == least:
        return best
    core = _core(kinds, limits, _relax(kinds, limits, least), best)[:3]
    left = _fewest_left(cp, *core, least, 0.2 * seconds)
    second = _place(cp, kinds, limits, left, max_gap, 0.3 * seconds, best)
    found = min([item for item in (second, best) if item], key=lambda item: _rank(kinds, item))
    return found if found is second else _bounded(kinds, limits, found)


def _bounded(kinds: Sequence[Kind], limits: Sequence[Limit], found: Fleet) -> Fleet:
    """With the bound for as many copies as it places."""
    relaxed = _relax(kinds, limits, _left_by_priority(kinds, found.unplaced))
    bound = 0.0 if relaxed is None else min(relaxed.bound, found.value)
    return dataclasses.replace(found, bound=bound)


def _rank(kinds: Sequence[Kind], found: Fleet) -> tuple[list[int], float]:
    """Fewest left over of the highest priority first, then cost."""
    left = _left_by_priority(kinds, found.unplaced)
    # Rounded, so that the order of additions decides nothing.
    return [left[priority] for priority in sorted(left, reverse=True)], float(f"{found.value:.10g}")


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
    known: Fleet | None = None,
) -> Fleet | None:
    """The relaxation, rounded, where that is good enough; else the search, and the rounded one where that finds nothing.

    `known`: an answer that may leave over just as much.
    """
    relaxed = _relax(kinds, limits, left)
    if relaxed is None:
        return None
    rounded = _round(kinds, limits, relaxed)
    if known is not None and _left_by_priority(kinds, known.unplaced) == left:
        mine = dataclasses.replace(known, bound=min(relaxed.bound, known.value), prices=relaxed.prices)
        rounded = min([mine, *([rounded] if rounded else [])], key=lambda item: _rank(kinds, item))
    complete = rounded is not None and _left_by_priority(kinds, rounded.unplaced) == left
    if rounded is not None and complete and rounded.value <= rounded.bound * (1 + max_gap) + 1e-9:
        return rounded
    near = _near(cp, kinds, limits, left, relaxed, max_gap, 0.7 * seconds)
    if near is not None and near.value <= near.bound * (1 + max_gap) + 1e-9:
        return near
    start = min([item for item in (near, rounded if complete else None) if item], key=_value, default=None)
    small, few, hint, kept = _core(kinds, limits, relaxed, start)
    counts = [amounts[row] for amounts, row in zip(relaxed.counts, kept, strict=True)]
    less = _Relaxation(relaxed.bound, counts, relaxed.prices)
    whole = all(len(row) == len(kind.costs) for row, kind in zip(kept, kinds, strict=True))
    found = _whole(cp, small, few, left, less, hint, max_gap, seconds)
    if found is None or (start is not None and found.value > start.value):
        return start or rounded
    bound = found.bound if whole else min(relaxed.bound, found.value)
    return dataclasses.replace(found, counts=_unfolded(kinds, kept, found.counts), bound=bound)


def _value(found: Fleet) -> float:
    return found.value


def _near(
    cp: Any,
    kinds: Sequence[Kind],
    limits: Sequence[Limit],
    left: Mapping[int, int],
    relaxed: _Relaxation,
    max_gap: float,
    seconds: float,
) -> Fleet | None:
    """Keeps what the relaxation decides clearly and searches the rest: kinds that it splits, and those that hardly mind."""
    if len(kinds) <= _FREE:
        return None
    priced = _priced(kinds, limits, relaxed)
    split = [bool(np.abs(row - np.round(row)).max(initial=0.0) > 1e-6) for row in relaxed.counts]
    regret = [
        float(np.diff(np.sort(cost)[:2])[0]) / max(float(cost.min()), 1e-9) if len(cost) > 1 else np.inf
        for cost in priced
    ]
    order = sorted(range(len(kinds)), key=lambda k: (not split[k], regret[k], k))
    free, fixed = sorted(order[:_FREE]), order[_FREE:]
    if any(split[k] for k in fixed):
        return None
    counts = [np.round(row).astype(int) for row in relaxed.counts]
    decided = frozenset(fixed)
    room = [
        limit.most - sum(counts[k][o] * amount for k, o, amount in limit.uses if k in decided)
        for limit in limits
    ]
    rest = dict(left)
    for k in fixed:
        rest[kinds[k].priority] -= kinds[k].count - int(counts[k].sum())
    if min(rest.values()) < 0 or min(room, default=0.0) < -1e-6:
        return None
    number = {k: position for position, k in enumerate(free)}
    few = [
        Limit(max(most, 0.0), tuple((number[k], o, a) for k, o, a in limit.uses if k in number))
        for most, limit in zip(room, limits, strict=True)
    ]
    paid = sum(float(np.dot(counts[k], kinds[k].costs)) for k in fixed)
    less = _Relaxation(max(relaxed.bound - paid, 0.0), [relaxed.counts[k] for k in free], relaxed.prices)
    goal = max_gap * relaxed.bound / max(less.bound, 1e-9) / 2
    found = _whole(cp, [kinds[k] for k in free], few, rest, less, None, min(goal, 0.5), seconds)
    if found is None:
        return None
    for k, row in zip(free, found.counts, strict=True):
        counts[k] = np.array(row)
    value = found.value + paid
    whole = tuple(tuple(int(count) for count in row) for row in counts)
    over = tuple(kind.count - sum(row) for kind, row in zip(kinds, whole, strict=True))
    return Fleet(whole, over, value, min(relaxed.bound, value), relaxed.prices, found.method)


def _core(
    kinds: Sequence[Kind], limits: Sequence[Limit], relaxed: _Relaxation | None, start: Fleet | None
) -> tuple[list[Kind], list[Limit], Fleet | None, list[Ints]]:
    """Of large problems only the options that cost least with limits at their prices; a bound is then that of the relaxation.

    Kinds, limits and a known answer on those options, and which they are.
    """
    kept = [np.arange(len(kind.costs)) for kind in kinds]
    if relaxed is None or sum(len(kind.costs) for kind in kinds) <= _MOST_OPTIONS:
        return list(kinds), list(limits), start, kept
    for k, (cost, amounts) in enumerate(zip(_priced(kinds, limits, relaxed), relaxed.counts, strict=True)):
        kept[k] = np.union1d(np.argsort(cost, kind="stable")[:_CORE], np.flatnonzero(amounts > 1e-9))
        if start is not None:
            kept[k] = np.union1d(kept[k], np.flatnonzero(start.counts[k]))
    number = [{int(option): position for position, option in enumerate(row)} for row in kept]
    small = [
        dataclasses.replace(
            kind,
            costs=kind.costs[row],
            places=tuple(tuple(new[o] for o in place if o in new) for place in kind.places),
        )
        for kind, row, new in zip(kinds, kept, number, strict=True)
    ]
    few = [
        Limit(limit.most, tuple((k, number[k][o], amount) for k, o, amount in limit.uses if o in number[k]))
        for limit in limits
    ]
    if start is not None:
        counts = tuple(tuple(row[o] for o in kept[k].tolist()) for k, row in enumerate(start.counts))
        start = dataclasses.replace(start, counts=counts)
    return small, few, start, kept


def _unfolded(
    kinds: Sequence[Kind], kept: Sequence[Ints], counts: Sequence[Sequence[int]]
) -> tuple[tuple[int, ...], ...]:
    """Counts of all options from those of the core."""
    found = []
    for kind, row, own in zip(kinds, kept, counts, strict=True):
        spread = [0] * len(kind.costs)
        for option, count in zip(row.tolist(), own, strict=True):
            spread[option] = count
        found.append(tuple(spread))
    return tuple(found)


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
    counts = [np.floor(amounts + 1e-7).astype(int) for amounts in relaxed.counts]
    room = np.array([limit.most for limit in limits], dtype=np.float64)
    for number, limit in enumerate(limits):
        room[number] -= sum(counts[k][o] * amount for k, o, amount in limit.uses if counts[k][o])
    left = [kind.count - int(row.sum()) for kind, row in zip(kinds, counts, strict=True)]
    for k in sorted(range(len(kinds)), key=lambda k: -kinds[k].priority):
        for o in np.argsort(priced[k], kind="stable").tolist() if left[k] else ():
            while left[k] and _moves((), uses[k][o], room):
                counts[k][o] += 1
                left[k] -= 1
    if (room < -1e-6).any():
        return None
    for _ in range(_MOVES):
        swapped = any(left) and _exchange(kinds, counts, left, uses, room)
        if not _improve(kinds, counts, uses, room) and not swapped:
            break
    value = sum(float(np.dot(row, kind.costs)) for row, kind in zip(counts, kinds, strict=True))
    whole = tuple(tuple(int(number) for number in row) for row in counts)
    bound = min(relaxed.bound, value)
    return Fleet(whole, tuple(left), value, bound, relaxed.prices, "linear relaxation, rounded")


def _improve(
    kinds: Sequence[Kind],
    counts: Sequence[NDArray[Any]],
    uses: Sequence[Sequence[Sequence[tuple[int, float]]]],
    room: Floats,
) -> bool:
    """Moves copies to cheaper options where there is room; whether anything moved. Changes `counts` and `room`."""
    moved = False
    for k, row in enumerate(counts):
        order = np.argsort(kinds[k].costs, kind="stable").tolist()
        for old in np.flatnonzero(row).tolist():
            for new in order[: order.index(old)]:
                while row[old] and _moves(uses[k][old], uses[k][new], room):
                    row[old] -= 1
                    row[new] += 1
                    moved = True
    return moved


def _exchange(
    kinds: Sequence[Kind],
    counts: Sequence[NDArray[Any]],
    left: list[int],
    uses: Sequence[Sequence[Sequence[tuple[int, float]]]],
    room: Floats,
) -> bool:
    """Leaves a dear copy over where more copies, or a cheaper one of equal priority, fit in its place."""
    placed = [
        (float(kinds[k].costs[o]), k, int(o)) for k, row in enumerate(counts) for o in np.flatnonzero(row)
    ]
    moved = False
    for cost, k, old in sorted(placed, reverse=True)[:_EXCHANGES]:
        waiting = [
            w for w in range(len(kinds)) if left[w] and w != k and kinds[w].priority >= kinds[k].priority
        ]
        waiting.sort(key=lambda w: float(kinds[w].costs.min()))
        for number, amount in uses[k][old]:
            room[number] += amount
        put = _fill(kinds, waiting[:_WAITING], left, uses, room)
        if len(put) > 1 or (put and float(kinds[put[0][0]].costs[put[0][1]]) < cost - 1e-9):
            counts[k][old] -= 1
            left[k] += 1
            for other, option in put:
                counts[other][option] += 1
                left[other] -= 1
            moved = True
            continue
        for other, option in put:
            for number, amount in uses[other][option]:
                room[number] += amount
        for number, amount in uses[k][old]:
            room[number] -= amount
    return moved


def _fill(
    kinds: Sequence[Kind],
    waiting: Sequence[int],
    left: Sequence[int],
    uses: Sequence[Sequence[Sequence[tuple[int, float]]]],
    room: Floats,
) -> list[tuple[int, int]]:
    """One copy of each waiting kind where there is room; takes the room."""
    put = []
    for other in waiting:
        for option in np.argsort(kinds[other].costs, kind="stable").tolist():
            if left[other] and _moves((), uses[other][option], room):
                put.append((other, option))
                break
    return put


def _moves(old: Sequence[tuple[int, float]], new: Sequence[tuple[int, float]], room: Floats) -> bool:
    """Whether one copy fits into the new option when it leaves the old one; then `room` is changed."""
    for number, amount in old:
        room[number] += amount
    fits = all(room[number] >= amount - 1e-9 for number, amount in new)
    for number, amount in new if fits else old:
        room[number] -= amount
    return fits


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
    cp: Any,
    kinds: Sequence[Kind],
    limits: Sequence[Limit],
    start: Fleet | None,
    least: Mapping[int, int],
    seconds: float,
) -> dict[int, int]:
    """How many of each priority cannot be placed: fewest of the highest first. `start`: an answer that is known."""
    assert start is not None
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
        if priority == priorities[0]:
            built.model.Add(sums[priority] >= least[priority])
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
