"""Second stage of a fleet: least cost with no more left over than the first stage found.

A linear relaxation bounds the cost and prices the limits. Whole numbers come from branch and bound, which is quick where it begins
with a good answer; so one is looked for first in a smaller program. Priorities of which nothing is left over are one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from skyloom_optimizer.solvers.deadline import Deadline
from skyloom_optimizer.solvers.fleet_groups import coarse, groups_of
from skyloom_optimizer.solvers.fleet_model import CostModel, shares_of
from skyloom_optimizer.solvers.fleet_parts import Fleet, Floats, Ints, Kind, Left, Limit
from skyloom_optimizer.solvers.fleet_share import shared_out
from skyloom_optimizer.solvers.program import Linear

_PART = 0.85
_COARSE_PART = 0.3
_NEAR_PART = 0.25
_START_PART = 0.5
_COARSE = 6


class Cheapest:
    def __init__(
        self,
        kinds: Sequence[Kind],
        limits: Sequence[Limit],
        left: Sequence[Left],
        counts: list[Ints],
        max_gap: float,
        deadline: Deadline,
    ) -> None:
        """`counts`: an answer that leaves as many over as `left` says."""
        short = {item.priority: number for number, item in enumerate(left, 1) if item.count}
        self.kinds = [dataclasses.replace(kind, priority=short.get(kind.priority, 0)) for kind in kinds]
        self.allowed = {0: 0} | {short[item.priority]: item.count for item in left if item.count}
        self.limits, self.left, self.counts = limits, left, counts
        self.groups = groups_of(self.kinds, limits)
        self.shares = shares_of(self.groups, counts)
        self.max_gap, self.deadline = max_gap, deadline
        self.bound = 0.0

    def run(self) -> Fleet:
        self.bound = self._least_cost()
        prices: tuple[float | None, ...] = (None,) * len(self.limits)
        if self._good or self.deadline.passed():
            return self._fleet(prices, "every copy by itself")
        model = CostModel(self.kinds, self.groups, self.limits, self.allowed)
        linear = model.linear(self.deadline.part(_PART).left())
        if linear is not None:
            self.bound, prices = max(self.bound, linear.value * (1 - 1e-9)), model.prices(linear)
            if not self._good:
                self._begin_better(model, linear)
        if self._good or self.deadline.passed():
            return self._fleet(prices, "linear relaxation")
        start = model.start(self.shares, self.counts)
        found = model.solve(self.deadline.part(_PART).left(), self.max_gap, start)
        self.bound = max(self.bound, found.bound)
        self._offer(model, found.amounts)
        return self._fleet(prices, "branch and bound over groups")

    @property
    def _good(self) -> bool:
        return self._value(self.counts) <= self.bound * (1 + self.max_gap)

    def _value(self, counts: Sequence[Ints]) -> float:
        return float(sum(np.dot(row, kind.costs) for row, kind in zip(counts, self.kinds, strict=True)))

    def _begin_better(self, model: CostModel, linear: Linear) -> None:
        """From a program in which kinds that cost alike are one, or close to the relaxation, or in which more may be left over."""
        if len(self.kinds) > _COARSE * len(self.groups):
            self._begin_coarsely()
            return
        known = self._value(self.counts)
        self._offer(model, model.near(linear, self.deadline.part(_NEAR_PART).left(), self.max_gap / 2))
        if self._value(self.counts) == known:
            start = model.start(self.shares, self.counts)
            found = model.soft(linear, self.deadline.part(_START_PART).left(), self.max_gap, start)
            self.bound = max(self.bound, found.bound)
            self._offer(model, found.amounts)

    def _begin_coarsely(self) -> None:
        kinds, groups, limits = coarse(self.kinds, self.groups, self.limits, _COARSE)
        rough = CostModel(kinds, groups, limits, self.allowed)
        counts = shared_out(kinds, groups, limits, self.shares, self.deadline)
        start = None if counts is None else rough.start(self.shares, counts)
        self._offer(rough, rough.soon(self.deadline.part(_COARSE_PART).left(), self.max_gap, start))

    def _offer(self, model: CostModel, amounts: Floats | None) -> None:
        if amounts is None:
            return
        shares = model.shares(amounts)
        counts = shared_out(self.kinds, self.groups, self.limits, shares, self.deadline)
        if counts is not None and self._value(counts) < self._value(self.counts):
            self.shares, self.counts = shares, counts

    def _least_cost(self) -> float:
        """Every copy in its cheapest option, the dearest copies of each priority left over: always a bound."""
        total = 0.0
        for priority, over in self.allowed.items():
            own = [(float(k.costs.min()), k.count) for k in self.kinds if k.priority == priority]
            for cost, count in sorted(own, reverse=True):
                total += cost * max(0, count - over)
                over = max(0, over - count)
        return total

    def _fleet(self, prices: tuple[float | None, ...], method: str) -> Fleet:
        value = self._value(self.counts)
        pairs = zip(self.kinds, self.counts, strict=True)
        over = tuple(kind.count - int(row.sum()) for kind, row in pairs)
        whole = tuple(tuple(row.tolist()) for row in self.counts)
        left = tuple(self.left)
        return Fleet(whole, over, value, max(0.0, min(self.bound, value)), prices, method, left)
