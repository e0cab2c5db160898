"""A fleet's groups as linear programs with whole numbers: one for what is left over, one for what it costs.

Columns: copies of each way of each group, and those left over. Cost needs more where a group has several kinds: how many of each
kind go which way. Those are no whole numbers in the program: with the group's numbers whole they are a transport, which is whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from skyloom_optimizer.solvers.fleet_groups import Group, place_of_options
from skyloom_optimizer.solvers.fleet_parts import Floats, Ints, Kind, Limit
from skyloom_optimizer.solvers.program import (
    INFINITY,
    Linear,
    Program,
    Whole,
    solve_linear,
    solve_soon,
    solve_whole,
)

_NEAR = 4
_MORE = 2.5
# Of the first solver.
_SHARE = 0.85
_LEFT_SHARE = 0.5


@dataclass(frozen=True)
class Shares:
    """Whole numbers for each group: copies by way, and left over."""

    ways: tuple[Ints, ...]
    left: tuple[int, ...]


def shares_of(groups: Sequence[Group], counts: Sequence[Ints]) -> Shares:
    """Of copies of each kind by option."""
    ways = [
        np.sum([counts[k][row] for k, row in zip(group.kinds, group.options, strict=True)], axis=0)
        for group in groups
    ]
    left = tuple(group.count - int(own.sum()) for group, own in zip(groups, ways, strict=True))
    return Shares(tuple(ways), left)


class _Model:
    """Groups under the limits."""

    def __init__(self, kinds: Sequence[Kind], groups: Sequence[Group], limits: Sequence[Limit]) -> None:
        self.kinds, self.groups, self.limits = kinds, groups, limits
        self.program = Program()
        self.ways: list[Ints] = []
        self.left: list[int] = []
        self.limit_rows: dict[int, int] = {}
        self.flags: dict[int, list[int]] = {}
        self.cells: dict[int, Ints] = {}
        self.excess: list[tuple[int, int]] = []

    def _groups(self, left_costs: Sequence[float], no_left: Sequence[bool], priced: bool) -> None:
        """`priced`: copies cost what they do, else nothing."""
        transport = priced or any(limit.by_kind for limit in self.limits)
        for number, (group, left_cost, none) in enumerate(zip(self.groups, left_costs, no_left, strict=True)):
            costs = _costs(self.kinds, group) * priced
            ways = self.program.add(costs[0] if group.alone else 0 * costs[0], group.count, whole=True)
            left = self.program.add(np.array([left_cost]), 0 if none else group.count, whole=True)
            self.ways.append(ways)
            self.left.append(int(left[0]))
            self.program.row(np.concatenate([ways, left]), 1.0, group.count, group.count)
            kind = self.kinds[group.kinds[0]]
            if kind.spread:
                self._spread(kind, group, ways, int(left[0]))
            if transport and not group.alone:
                self._transport(number, group, costs, np.append(ways, left))
        self._limits()

    def _limits(self) -> None:
        columns: list[list[int]] = [[] for _ in self.limits]
        amounts: list[list[float]] = [[] for _ in self.limits]
        for group, numbers in zip(self.groups, self.ways, strict=True):
            for way, column in zip(group.ways, numbers.tolist(), strict=True):
                for taken, amount in way:
                    columns[taken].append(column)
                    amounts[taken].append(amount)
        for number, limit in enumerate(self.limits):
            if limit.by_kind:
                self._limit_by_kind(number, limit)
            elif columns[number]:
                own = np.array(columns[number]), np.array(amounts[number])
                self.limit_rows[number] = self.program.row(*own, -INFINITY, limit.most)

    def _limit_by_kind(self, number: int, limit: Limit) -> None:
        by_kind = limit.amounts(self.kinds)
        columns, amounts = [], []
        for position, (group, ways) in enumerate(zip(self.groups, self.ways, strict=True)):
            own = ways if group.alone else self.cells[position][:, :-1].ravel()
            columns.append(own)
            amounts += [by_kind[k][row] for k, row in zip(group.kinds, group.options, strict=True)]
        row = np.concatenate(columns), np.concatenate(amounts)
        self.limit_rows[number] = self.program.row(*row, -INFINITY, limit.most)

    def _transport(self, number: int, group: Group, costs: Floats, totals: Ints) -> None:
        cells = add_transport(self.program, self.kinds, group, costs)
        self.cells[number] = cells
        rows = np.tile(np.arange(len(totals)), len(cells) + 1)
        columns = np.append(cells.ravel(), totals)
        signs = np.append(np.ones(cells.size), -np.ones(len(totals)))
        self.program.block(rows, columns, signs, [(0.0, 0.0)] * len(totals))

    def _spread(self, kind: Kind, group: Group, ways: Ints, left: int) -> None:
        """Copies in a place, and used places: at most one for each place, and no more than copies."""
        places: dict[int, list[int]] = {}
        place_of = place_of_options(kind)
        for column, option in zip(ways.tolist(), group.options[0].tolist(), strict=True):
            places.setdefault(place_of[option], []).append(column)
        share = kind.most_in_place
        for columns in places.values() if 0 < share < kind.count else ():
            self.program.row(np.array(columns), 1.0, -INFINITY, share)
        if kind.min_places > 1:
            used = self.program.add(np.zeros(len(places)), 1.0, whole=False)
            for flag, columns in zip(used.tolist(), places.values(), strict=True):
                self.flags[flag] = columns
                signs = np.array([1.0] * len(columns) + [-1.0])
                self.program.row(np.array([*columns, flag]), signs, 0.0, INFINITY)
            self.program.row(np.append(used, left), 1.0, kind.min_places, INFINITY)

    def _keep_left(self, left: Mapping[int, int]) -> None:
        """Of these priorities no more than so many are left over; `excess`: columns that could allow for more, and the rows."""
        for priority, count in left.items():
            own = [c for c, group in zip(self.left, self.groups, strict=True) if group.priority == priority]
            if own and count:
                over = self.program.add(np.zeros(1), 0.0, whole=True)
                signs = np.append(np.ones(len(own)), -1.0)
                row = self.program.row(np.append(own, over), signs, -INFINITY, count)
                self.excess.append((int(over[0]), row))

    def shares(self, amounts: Floats) -> Shares:
        """As whole numbers; the others of a group give way where rounding changed its sum."""
        ways, left = [], []
        for group, columns in zip(self.groups, self.ways, strict=True):
            own = np.round(amounts[columns]).astype(np.int64)
            ways.append(own)
            left.append(group.count - int(own.sum()))
        return Shares(tuple(ways), tuple(left))

    def start(self, shares: Shares, counts: Sequence[Ints]) -> Floats:
        """Amounts of the columns for an answer: by group, and by kind and option."""
        amounts = np.zeros(self.program.columns)
        for columns, own in zip(self.ways, shares.ways, strict=True):
            amounts[columns] = own
        amounts[self.left] = shares.left
        for flag, place in self.flags.items():
            amounts[flag] = min(1.0, amounts[place].sum())
        for number, cells in self.cells.items():
            group = self.groups[number]
            for row, kind, options in zip(cells, group.kinds, group.options, strict=True):
                amounts[row[:-1]] = counts[kind][options]
                amounts[row[-1]] = self.kinds[kind].count - counts[kind].sum()
        return amounts


class LeftModel(_Model):
    """Fewest copies of `priority` left over, with those of higher ones as they are."""

    def __init__(
        self,
        kinds: Sequence[Kind],
        groups: Sequence[Group],
        limits: Sequence[Limit],
        priority: int,
        left: Mapping[int, int],
    ) -> None:
        super().__init__(kinds, groups, limits)
        counted = [float(group.priority == priority) for group in groups]
        none = [left.get(group.priority) == 0 for group in groups]
        self._groups(counted, none, priced=False)
        self._keep_left(left)

    def solve(self, seconds: float, start: Floats | None) -> Whole:
        return solve_whole(self.program, seconds, 0.0, start, _LEFT_SHARE)


class CostModel(_Model):
    """Least cost with no more left over than said."""

    def __init__(
        self,
        kinds: Sequence[Kind],
        groups: Sequence[Group],
        limits: Sequence[Limit],
        left: Mapping[int, int],
    ) -> None:
        super().__init__(kinds, groups, limits)
        none = [left[group.priority] == 0 for group in groups]
        self._groups([0.0] * len(groups), none, priced=True)
        self._keep_left(left)

    def linear(self, seconds: float) -> Linear | None:
        return solve_linear(self.program, seconds)

    def solve(self, seconds: float, max_gap: float, start: Floats | None = None) -> Whole:
        return solve_whole(self.program, seconds, max_gap, start, _SHARE)

    def soon(self, seconds: float, max_gap: float, start: Floats | None) -> Floats | None:
        return solve_soon(self.program, seconds, max_gap, start).amounts

    def near(self, linear: Linear, seconds: float, max_gap: float) -> Floats | None:
        """An answer close to the relaxation: of the ways that it leaves empty only those that would cost least more."""
        ways = np.concatenate(self.ways)
        empty = ways[linear.amounts[ways] < 1e-9]
        closed = np.zeros(self.program.columns, dtype=bool)
        closed[empty[np.argsort(linear.regrets[empty], kind="stable")[len(ways) // _NEAR :]]] = True
        return solve_soon(self.program, seconds, max_gap, None, closed).amounts

    def soft(self, linear: Linear, seconds: float, max_gap: float, start: Floats) -> Whole:
        """More may be left over, but each at more than what that would save by the relaxation. The bound holds all the same."""
        if not self.excess:
            return Whole(None, INFINITY, -INFINITY)
        prices = {column: _MORE * max(0.0, -float(linear.prices[row])) for column, row in self.excess}
        found = solve_soon(self.program, seconds, max_gap, start, None, prices)
        excess = 0.0 if found.amounts is None else sum(float(found.amounts[column]) for column in prices)
        return found if excess < 0.5 else dataclasses.replace(found, amounts=None)

    def prices(self, linear: Linear) -> tuple[float, ...]:
        """What one unit more of each limit would save."""
        rows = [self.limit_rows.get(number) for number in range(len(self.limits))]
        return tuple(0.0 if row is None else max(0.0, -float(linear.prices[row])) for row in rows)


def add_transport(program: Program, kinds: Sequence[Kind], group: Group, costs: Floats) -> Ints:
    """How many of each kind (rows) go which way, or (last) are left over: the numbers of the columns."""
    size, ways = costs.shape
    counts = np.array([kinds[k].count for k in group.kinds], dtype=np.float64)
    priced = np.append(costs, np.zeros((size, 1)), axis=1)
    cells = program.add(priced.ravel(), np.repeat(counts, ways + 1), whole=False).reshape(priced.shape)
    rows = np.repeat(np.arange(size), ways + 1)
    program.block(rows, cells.ravel(), 1.0, list(zip(counts.tolist(), counts.tolist(), strict=True)))
    return cells


def _costs(kinds: Sequence[Kind], group: Group) -> Floats:
    """Of each kind (rows) each way."""
    return np.array([kinds[k].costs[row] for k, row in zip(group.kinds, group.options, strict=True)])
