"""Kinds that may use the limits in the same ways, as one. Also drops options that no best answer needs.

A way is what one copy takes of each limit. Of a kind's options that use the limits in the same way only the cheapest matters; where
copies are spread, as many of the cheapest as places can be needed. Kinds that are spread stay groups of their own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from skyloom_optimizer.solvers.fleet_parts import Floats, Ints, Kind, Limit

Way = tuple[tuple[int, float], ...]
"""(limit, amount) of one copy."""


@dataclass(frozen=True)
class Group:
    """`options[i, w]`: the option of the i-th kind that goes way w."""

    kinds: tuple[int, ...]
    ways: tuple[Way, ...]
    options: Ints
    count: int
    priority: int

    @property
    def alone(self) -> bool:
        return len(self.kinds) == 1


def groups_of(kinds: Sequence[Kind], limits: Sequence[Limit]) -> list[Group]:
    ways = _ways(kinds, limits)
    amounts = [limit.amounts(kinds) for limit in limits if limit.by_kind]
    found: dict[object, list[int]] = {}
    chosen: list[list[int]] = []
    for number, (kind, own) in enumerate(zip(kinds, ways, strict=True)):
        chosen.append(_needed(kind, own, [limit[number] for limit in amounts]))
        key = (kind.priority, number if kind.spread else -1, tuple(own[option] for option in chosen[-1]))
        found.setdefault(key, []).append(number)
    return [_group(kinds, ways, chosen, members) for members in found.values()]


def _ways(kinds: Sequence[Kind], limits: Sequence[Limit]) -> list[list[Way]]:
    found: list[list[list[tuple[int, float]]]] = [[[] for _ in kind.costs] for kind in kinds]
    for number, limit in enumerate(limits):
        for kind, option, amount in () if limit.by_kind else limit.uses:
            found[kind][option].append((number, amount))
    return [[tuple(way) for way in own] for own in found]


def _needed(kind: Kind, ways: Sequence[Way], amounts: Sequence[Floats]) -> list[int]:
    """Ordered by way, so that equal sets of ways are equal lists. `amounts`: what options take of limits by kind.

    Spread: a copy in a place beyond the `most` cheapest of its way could move to one of those: one has room, and is new or not needed.
    """
    most, places = 1, [0] * len(kind.costs)
    if kind.spread:
        share = kind.most_in_place or kind.count
        most = max(-(-kind.count // share), kind.min_places)
        places = place_of_options(kind)
    taken: dict[Way, list[int]] = {}
    for measure in (kind.costs, *amounts):
        seen: dict[Way, set[int]] = {}
        for option in np.argsort(measure, kind="stable").tolist():
            used, own = seen.setdefault(ways[option], set()), taken.setdefault(ways[option], [])
            if len(used) < most and places[option] not in used:
                used.add(places[option])
                own += [] if option in own else [option]
    return [option for way in sorted(taken) for option in taken[way]]


def place_of_options(kind: Kind) -> list[int]:
    found = [0] * len(kind.costs)
    for number, place in enumerate(kind.places):
        for option in place:
            found[option] = number
    return found


def _group(
    kinds: Sequence[Kind],
    ways: Sequence[Sequence[Way]],
    chosen: Sequence[Sequence[int]],
    members: Sequence[int],
) -> Group:
    first, count = members[0], sum(kinds[k].count for k in members)
    own = tuple(ways[first][option] for option in chosen[first])
    options = np.array([chosen[k] for k in members], dtype=np.int64).reshape(len(members), len(own))
    return Group(tuple(members), own, options, count, kinds[first].priority)


def coarse(
    kinds: Sequence[Kind], groups: Sequence[Group], limits: Sequence[Limit], most: int
) -> tuple[list[Kind], list[Group], list[Limit]]:
    """The same groups with at most so many kinds each: those that cost alike become one, with their mean in everything."""
    few: list[Kind] = []
    found: list[Group] = []
    uses: list[list[tuple[int, int, float]]] = [[] for _ in limits]
    amounts = [limit.amounts(kinds) if limit.by_kind else None for limit in limits]
    for group in groups:
        numbers, parts = [], [np.arange(1)] if group.alone else _alike(kinds, group, most)
        for part in parts:
            numbers.append(len(few))
            few.append(_mean(kinds, group, part))
            for limit, own in zip(uses, amounts, strict=True):
                mean = None if own is None else _mean_of(kinds, group, part, own)
                limit += [] if mean is None else [(numbers[-1], o, float(a)) for o, a in enumerate(mean)]
        options = np.tile(np.arange(len(group.ways)), (len(numbers), 1))
        found.append(Group(tuple(numbers), group.ways, options, group.count, group.priority))
    return few, found, [Limit(x.most, tuple(own), x.by_kind) for x, own in zip(limits, uses, strict=True)]


def _alike(kinds: Sequence[Kind], group: Group, most: int) -> list[Ints]:
    costs = np.array([kinds[k].costs[row].mean() for k, row in zip(group.kinds, group.options, strict=True)])
    return [part for part in np.array_split(np.argsort(costs, kind="stable"), most) if len(part)]


def _mean(kinds: Sequence[Kind], group: Group, part: Ints) -> Kind:
    costs = _mean_of(kinds, group, part, [kind.costs for kind in kinds])
    count = sum(kinds[group.kinds[position]].count for position in part.tolist())
    first = kinds[group.kinds[0]]
    if not group.alone:
        return Kind(count, costs, group.priority)
    number = {int(option): position for position, option in enumerate(group.options[0])}
    places = tuple(tuple(number[o] for o in place if o in number) for place in first.places)
    return dataclasses.replace(first, costs=costs, places=tuple(place for place in places if place))


def _mean_of(kinds: Sequence[Kind], group: Group, part: Ints, values: Sequence[Floats]) -> Floats:
    """By way, over the copies of some kinds of the group."""
    members = [(group.kinds[position], group.options[position]) for position in part.tolist()]
    weights = [kinds[k].count for k, _ in members]
    found: Floats = np.average([values[k][row] for k, row in members], axis=0, weights=weights)
    return found
