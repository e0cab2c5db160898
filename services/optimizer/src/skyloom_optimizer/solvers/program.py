"""Linear programs, some of their variables whole numbers, as arrays. OR-Tools' solvers run them; this is the only module that asks.

Knows nothing of fleets. What comes back is what the solver proved within its time: never more.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyloom_common.core.errors import NotSupportedYet
from skyloom_optimizer.solvers.deadline import Deadline

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

INFINITY = float("inf")
_EXACT = 1e-6


@dataclass
class Program:
    """Least `cost` x amounts within bounds and rows. Columns and rows are added in blocks, and keep their numbers."""

    cost: list[Floats] = field(default_factory=list)
    most: list[Floats] = field(default_factory=list)
    whole: list[NDArray[np.bool_]] = field(default_factory=list)
    columns: int = 0
    rows: int = 0
    _row_bounds: list[tuple[float, float]] = field(default_factory=list)
    _entries: list[tuple[Ints, Ints, Floats]] = field(default_factory=list)

    def add(self, cost: Floats, most: Floats | float, whole: bool) -> Ints:
        """New columns between 0 and `most`; their numbers."""
        size = len(cost)
        self.cost.append(np.asarray(cost, dtype=np.float64))
        self.most.append(np.broadcast_to(np.asarray(most, dtype=np.float64), size))
        self.whole.append(np.full(size, whole))
        self.columns += size
        return np.arange(self.columns - size, self.columns)

    def row(self, columns: Ints, amounts: Floats | float, low: float, high: float) -> int:
        """low <= amounts x columns <= high."""
        return self.block(np.zeros(len(columns), dtype=np.int64), columns, amounts, [(low, high)])

    def block(
        self, rows: Ints, columns: Ints, amounts: Floats | float, bounds: Sequence[tuple[float, float]]
    ) -> int:
        """Several rows at once; `rows` count from 0 within the block. The number of the first."""
        first = self.rows
        values = np.broadcast_to(np.asarray(amounts, dtype=np.float64), len(columns))
        self._entries.append((rows + first, columns, values))
        self._row_bounds += bounds
        self.rows += len(bounds)
        return first

    def arrays(self) -> _Arrays:
        rows = np.concatenate([entry[0] for entry in self._entries])
        columns = np.concatenate([entry[1] for entry in self._entries])
        values = np.concatenate([entry[2] for entry in self._entries])
        order = np.lexsort((columns, rows))
        bounds = np.array(self._row_bounds, dtype=np.float64).reshape(-1, 2)
        return _Arrays(
            np.concatenate(self.cost),
            np.concatenate(self.most),
            np.concatenate(self.whole),
            rows[order],
            columns[order],
            values[order],
            bounds[:, 0],
            bounds[:, 1],
        )


@dataclass(frozen=True)
class _Arrays:
    cost: Floats
    most: Floats
    whole: NDArray[np.bool_]
    rows: Ints
    columns: Ints
    values: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True)
class Linear:
    """The best of a relaxation: `prices` by row (what one unit more of it adds), `regrets` by column."""

    value: float
    amounts: Floats
    prices: Floats
    regrets: Floats


@dataclass(frozen=True)
class Whole:
    """`amounts` None: nothing found. `bound`: nothing lower exists. `impossible`: proven that nothing exists."""

    amounts: Floats | None
    value: float
    bound: float
    impossible: bool = False


def solve_linear(program: Program, seconds: float) -> Linear | None:
    """None where it is impossible or did not end in time."""
    api = _mathopt()
    model, numbers, rows = _model(api, program.arrays(), whole=False)
    limits = api.SolveParameters(time_limit=dt.timedelta(seconds=max(seconds, 0.01)), threads=1)
    found = api.solve(model, api.SolverType.GLOP, params=limits)
    if found.termination.reason != api.TerminationReason.OPTIMAL:
        return None
    amounts, regrets, prices = found.variable_values(), found.reduced_costs(), found.dual_values()
    return Linear(
        found.objective_value(),
        np.array([amounts[item] for item in numbers]),
        np.array([prices[item] for item in rows]),
        np.array([regrets[item] for item in numbers]),
    )


def solve_whole(program: Program, seconds: float, gap: float, start: Floats | None, share: float) -> Whole:
    """Within `gap` of the bound it proves, or the best of its time. `start`: an answer that is known.

    Two solvers, the first with that share of the time, the second from where it ended: each closes in a moment what the other is
    stuck with.
    """
    deadline, arrays = Deadline(seconds), program.arrays()
    first = _solved(arrays, "GSCIP", deadline.part(share).left(), gap, start)
    if first.impossible or first.value - first.bound <= max(gap * abs(first.value), _EXACT):
        return first
    start = start if first.amounts is None else first.amounts
    second = _solved(arrays, "HIGHS", deadline.left(), gap, start)
    best = min(first, second, key=lambda item: item.value)
    return Whole(best.amounts, best.value, max(first.bound, second.bound), second.impossible)


def solve_soon(
    program: Program,
    seconds: float,
    gap: float,
    start: Floats | None = None,
    closed: NDArray[np.bool_] | None = None,
    opened: Mapping[int, float] | None = None,
) -> Whole:
    """By one solver. `closed`: columns that stay empty; `opened`: closed ones that may be used, and at what cost."""
    arrays = program.arrays()
    most, cost = arrays.most.copy(), arrays.cost.copy()
    if closed is not None:
        most[closed] = 0.0
    for column, price in (opened or {}).items():
        most[column], cost[column] = INFINITY, price
    return _solved(dataclasses.replace(arrays, most=most, cost=cost), "HIGHS", seconds, gap, start)


def _solved(arrays: _Arrays, solver: str, seconds: float, gap: float, start: Floats | None) -> Whole:
    api = _mathopt()
    model, numbers, _ = _model(api, arrays, whole=True)
    limits = api.SolveParameters(
        time_limit=dt.timedelta(seconds=max(seconds, 0.01)),
        relative_gap_tolerance=gap,
        absolute_gap_tolerance=_EXACT,
        random_seed=1,
    )
    more = api.ModelSolveParameters()
    if start is not None and _holds(arrays, start):
        hint = api.SolutionHint(variable_values=dict(zip(numbers, start.tolist(), strict=True)))
        more = api.ModelSolveParameters(solution_hints=[hint])
    found = api.solve(model, api.SolverType[solver], params=limits, model_params=more)
    reason, reasons = found.termination.reason, api.TerminationReason
    bound = found.termination.objective_bounds.dual_bound
    if not found.has_primal_feasible_solution():
        return Whole(None, INFINITY, bound, reason == reasons.INFEASIBLE)
    amounts = found.variable_values()
    return Whole(np.array([amounts[item] for item in numbers]), found.objective_value(), bound)


def _holds(item: _Arrays, amounts: Floats) -> bool:
    """Whether these amounts are an answer: the solver refuses to begin with what is none."""
    sums = np.bincount(item.rows, item.values * amounts[item.columns], minlength=len(item.low))
    slack = 1e-7 * (1 + np.abs(sums))
    inside = (sums >= item.low - slack) & (sums <= item.high + slack)
    return bool(inside.all() and (amounts >= 0).all() and (amounts <= item.most).all())


def _model(api: Any, item: _Arrays, whole: bool) -> tuple[Any, list[Any], list[Any]]:
    from ortools.math_opt import model_pb2

    model = model_pb2.ModelProto()
    columns, rows = len(item.cost), len(item.low)
    model.variables.ids.extend(range(columns))
    model.variables.lower_bounds.extend([0.0] * columns)
    model.variables.upper_bounds.extend(item.most.tolist())
    model.variables.integers.extend(item.whole.tolist() if whole else [False] * columns)
    costly = np.flatnonzero(item.cost)
    model.objective.linear_coefficients.ids.extend(costly.tolist())
    model.objective.linear_coefficients.values.extend(item.cost[costly].tolist())
    model.linear_constraints.ids.extend(range(rows))
    model.linear_constraints.lower_bounds.extend(item.low.tolist())
    model.linear_constraints.upper_bounds.extend(item.high.tolist())
    matrix = model.linear_constraint_matrix
    matrix.row_ids.extend(item.rows.tolist())
    matrix.column_ids.extend(item.columns.tolist())
    matrix.coefficients.extend(item.values.tolist())
    built = api.Model.from_model_proto(model)
    return built, list(built.variables()), list(built.linear_constraints())


def _mathopt() -> Any:
    try:
        from ortools.math_opt.python import mathopt
    except ImportError as error:
        raise missing_solver("a fleet plan") from error
    return mathopt


def check_solver() -> None:
    """Raises where OR-Tools is not there."""
    _mathopt()


def missing_solver(what: str) -> NotSupportedYet:
    return NotSupportedYet(
        f"not supported yet: {what} needs OR-Tools, which this optimizer was installed without",
        hint="install it beside the optimizer: pip install 'skyloom-optimizer[solver]'",
    )
