"""From whole numbers of groups to those of kinds: which kind of a group goes which way, at least cost.

A transport with whole totals: the corners of its linear program are whole. Where time is over, those that cost most choose first,
which is the best as well where one kind costs a multiple of another.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from skyloom_optimizer.solvers.deadline import Deadline
from skyloom_optimizer.solvers.fleet_groups import Group
from skyloom_optimizer.solvers.fleet_model import Shares, add_transport
from skyloom_optimizer.solvers.fleet_parts import Floats, Ints, Kind, Limit
from skyloom_optimizer.solvers.program import Program, solve_linear


def shared_out(
    kinds: Sequence[Kind],
    groups: Sequence[Group],
    limits: Sequence[Limit],
    shares: Shares,
    deadline: Deadline,
) -> list[Ints] | None:
    """Copies of each kind by option; None where that breaks a limit by kind.

    What costs least keeps such a limit as a rule; where it does not, what takes least of it does if anything does.
    """
    by_kind = [limit for limit in limits if limit.by_kind]
    measures = [[kind.costs for kind in kinds], *(limit.amounts(kinds) for limit in by_kind)]
    for costs in measures:
        counts = _least(kinds, groups, costs, shares, deadline)
        if all(_used(limit, counts) <= limit.most + 1e-6 * (1 + limit.most) for limit in by_kind):
            return counts
    return None


def _used(limit: Limit, counts: Sequence[Ints]) -> float:
    return sum(amount * int(counts[k][option]) for k, option, amount in limit.uses)


def _least(
    kinds: Sequence[Kind],
    groups: Sequence[Group],
    measure: Sequence[Floats],
    shares: Shares,
    deadline: Deadline,
) -> list[Ints]:
    counts = [np.zeros(len(kind.costs), dtype=np.int64) for kind in kinds]
    for group, ways, left in zip(groups, shares.ways, shares.left, strict=True):
        costs = np.array([measure[k][row] for k, row in zip(group.kinds, group.options, strict=True)])
        rows = _matrix(kinds, group, costs, ways, left, deadline)
        for kind, options, row in zip(group.kinds, group.options, rows, strict=True):
            counts[kind][options] = row
    return counts


def _matrix(
    kinds: Sequence[Kind], group: Group, costs: Floats, ways: Ints, left: int, deadline: Deadline
) -> Ints:
    if group.alone:
        return ways.reshape(1, -1)
    totals = np.append(ways, left)
    wanted = np.array([kinds[k].count for k in group.kinds])
    best = None if deadline.passed() else _transported(kinds, group, costs, totals, deadline)
    if best is None or (best.sum(axis=1) != wanted).any() or (best.sum(axis=0) != totals).any():
        best = _in_turn(wanted, costs, totals)
    return best[:, :-1]


def _transported(
    kinds: Sequence[Kind], group: Group, costs: Floats, totals: Ints, deadline: Deadline
) -> Ints | None:
    program = Program()
    cells = add_transport(program, kinds, group, costs)
    rows = np.tile(np.arange(len(totals)), len(cells))
    program.block(rows, cells.ravel(), 1.0, list(zip(totals.tolist(), totals.tolist(), strict=True)))
    found = solve_linear(program, deadline.left())
    return None if found is None else np.round(found.amounts).astype(np.int64).reshape(cells.shape)


def _in_turn(wanted: Ints, costs: Floats, totals: Ints) -> Ints:
    """The dearest kinds first, each the ways that are cheapest on the average; to be left over is cheapest."""
    found, room = np.zeros((len(wanted), len(totals)), dtype=np.int64), totals.copy()
    order = [len(totals) - 1, *np.argsort(costs.mean(axis=0), kind="stable").tolist()]
    for number in np.argsort(-costs.mean(axis=1), kind="stable").tolist():
        rest = int(wanted[number])
        for way in order:
            taken = min(rest, int(room[way]))
            found[number, way] = taken
            room[way] -= taken
            rest -= taken
    return found
