"""The solvers on bare numbers: against trying everything, and when there is no time at all."""

from __future__ import annotations

from itertools import product
from random import Random

import numpy as np
import pytest

from skyloom_optimizer.solvers import fleet, paths, schedule
from skyloom_optimizer.solvers.deadline import Deadline
from skyloom_optimizer.solvers.fleet_groups import coarse, groups_of
from skyloom_optimizer.solvers.graph import Graph, Link, Timed


def graph(r: Random) -> Graph:
    """Numbered against the order in which the tasks run, to see that numbers mean nothing."""
    size = r.randint(2, 5)
    labels = [r.randint(1, 4) for _ in range(size)]
    order = tuple(r.sample(range(size), size))
    own = tuple(Timed(numbers(r, n), numbers(r, n)) for n in labels)
    links = [
        Link(a, b, numbers(r, labels[a], labels[b]), numbers(r, labels[a], labels[b]))
        for position, b in enumerate(order)
        for a in order[:position]
        if r.random() < 0.6
    ]
    return Graph(order, own, tuple(links))


def numbers(r: Random, *shape: int) -> np.ndarray:
    return np.array([r.randint(0, 9) for _ in range(int(np.prod(shape)))], dtype=float).reshape(shape)


@pytest.mark.parametrize("seed", range(40))
def test_no_labels_of_a_graph_are_better(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "_MOST_COMBINATIONS", 1)
    monkeypatch.setattr(paths, "_FIRST_ROUNDS", 6)
    wanted, per_hour = graph(Random(seed)), Random(seed).choice([0.3, 1.0, 4.0])
    found = schedule.solve(wanted, 1.0, per_hour)
    every = product(*(range(len(item.usd)) for item in wanted.own))
    best = min(wanted.usd(labels) + per_hour * wanted.hours(labels) for labels in every)
    assert wanted.usd(found.labels) + per_hour * wanted.hours(found.labels) == pytest.approx(best, rel=1e-6)
    assert found.value == pytest.approx(best, rel=1e-6)
    assert best * (1 - 1e-6) <= found.bound <= best + 1e-9


def test_a_graph_without_time_has_an_answer_and_a_true_bound() -> None:
    wanted = graph(Random(3))
    found = schedule.solve(wanted, 1.0, 1.0, lambda: True)
    assert found.bound <= schedule.solve(wanted, 1.0, 1.0).value <= found.value


def limited(room: float = 20.0) -> tuple[list[fleet.Kind], list[fleet.Limit]]:
    """Kinds of two sizes; the first option is cheap and scarce, the second dear and scarcer."""
    r = Random(1)
    kinds = [fleet.Kind(r.randint(1, 4), r.uniform(1, 9) * np.array([1.0, 1.5]), n % 2) for n in range(12)]
    uses = [(k, 0, 1.0 + k % 3) for k in range(12)]
    return kinds, [fleet.Limit(room, tuple(uses)), fleet.Limit(8.0, tuple((k, 1, 1.0) for k in range(12)))]


def test_kinds_that_use_limits_alike_are_one_group() -> None:
    kinds, limits = limited()
    groups = groups_of(kinds, limits)
    assert sorted(len(group.kinds) for group in groups) == [2] * 6
    few, merged, _ = coarse(kinds, groups, limits, 1)
    assert [group.count for group in merged] == [group.count for group in groups]
    assert len(few) == len(groups) and sum(kind.count for kind in few) == sum(kind.count for kind in kinds)


def test_of_many_equal_places_only_as_many_stay_as_a_spread_can_need() -> None:
    places = tuple((number,) for number in range(50))
    kind = fleet.Kind(6, np.arange(50, dtype=float), 0, places, most_in_place=2, min_places=2)
    (group,) = groups_of([kind], [])
    assert group.options.tolist() == [[0, 1, 2]]


def test_without_time_a_fleet_keeps_the_limits_and_claims_nothing() -> None:
    kinds, limits = limited()
    proven = fleet.solve(kinds, limits, 0.0, Deadline(20))
    rushed = fleet.solve(kinds, limits, 0.0, Deadline(0))
    for limit in limits:
        assert sum(rushed.counts[k][o] * amount for k, o, amount in limit.uses) <= limit.most
    assert proven.value == pytest.approx(proven.bound, rel=1e-6)
    assert [(item.count, item.least) for item in proven.left] == [(item.least,) * 2 for item in proven.left]
    assert all(item.least <= item.count for item in rushed.left)
    assert rushed.left[0].count >= proven.left[0].count
    assert rushed.bound <= rushed.value


def test_priorities_come_before_cost() -> None:
    kinds = [fleet.Kind(2, np.array([9.0]), 1), fleet.Kind(2, np.array([1.0]), 0)]
    limits = [fleet.Limit(3.0, ((0, 0, 1.0), (1, 0, 1.0)))]
    found = fleet.solve(kinds, limits, 0.0, Deadline(20))
    assert found.counts == ((2,), (1,))
    assert [(item.priority, item.count) for item in found.left] == [(1, 0), (0, 1)]


def test_a_budget_by_kind_places_as_many_as_it_pays_for() -> None:
    kinds = [fleet.Kind(1, np.array([float(cost), cost + 1.0])) for cost in (5, 1, 3, 2, 4)]
    uses = tuple((k, o, float(cost)) for k, kind in enumerate(kinds) for o, cost in enumerate(kind.costs))
    found = fleet.solve(kinds, [fleet.Limit(6.5, uses, by_kind=True)], 0.0, Deadline(20))
    assert sum(found.unplaced) == 2
    assert found.value == pytest.approx(6.0)
