"""A first answer without any search: the highest priorities first, each group the ways that are cheapest while there is room."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from skyloom_optimizer.solvers.fleet_groups import Group, place_of_options
from skyloom_optimizer.solvers.fleet_model import Shares
from skyloom_optimizer.solvers.fleet_parts import Floats, Ints, Kind, Limit


def greedy(kinds: Sequence[Kind], groups: Sequence[Group], limits: Sequence[Limit]) -> Shares:
    room = np.array([limit.most for limit in limits], dtype=np.float64)
    ways = [np.zeros(len(group.ways), dtype=np.int64) for group in groups]
    by_kind = {number: limit.amounts(kinds) for number, limit in enumerate(limits) if limit.by_kind}
    turns = list(enumerate(groups))
    if by_kind:
        turns = [(number, single) for number, group in turns for single in _singles(kinds, group, by_kind)]
        turns.sort(key=lambda turn: float(kinds[turn[1].kinds[0]].costs.min()))
    for number, group in sorted(turns, key=lambda turn: -turn[1].priority):
        kind = kinds[group.kinds[0]]
        take = _spread_out if kind.spread else _filled
        ways[number] += take(kind, group, _order(kinds, group), room)
    left = tuple(group.count - int(own.sum()) for group, own in zip(groups, ways, strict=True))
    return Shares(tuple(ways), left)


def _singles(kinds: Sequence[Kind], group: Group, by_kind: Mapping[int, Sequence[Floats]]) -> list[Group]:
    """Its kinds one by one, with what they take of limits by kind: then those that cost least go first."""
    found = []
    for kind, options in zip(group.kinds, group.options, strict=True):
        taken = [[(n, float(own[kind][option])) for n, own in by_kind.items()] for option in options.tolist()]
        ways = tuple((*way, *more) for way, more in zip(group.ways, taken, strict=True))
        found.append(Group((kind,), ways, options.reshape(1, -1), kinds[kind].count, group.priority))
    return found


def _order(kinds: Sequence[Kind], group: Group) -> list[int]:
    costs = np.array([kinds[k].costs[row] for k, row in zip(group.kinds, group.options, strict=True)])
    order: list[int] = np.argsort(costs.mean(axis=0), kind="stable").tolist()
    return order


def _filled(kind: Kind, group: Group, order: Sequence[int], room: Floats) -> Ints:
    found, wanted = np.zeros(len(group.ways), dtype=np.int64), group.count
    for way in order:
        found[way] = _take(group, way, wanted, room)
        wanted -= int(found[way])
    return found


def _spread_out(kind: Kind, group: Group, order: Sequence[int], room: Floats) -> Ints:
    """First one copy in each of so many places, then the rest; what has no place of its own stays out."""
    found, wanted = np.zeros(len(group.ways), dtype=np.int64), group.count
    place_of = place_of_options(kind)
    places = [place_of[option] for option in group.options[0].tolist()]
    inside = [0] * len(kind.places)
    share = kind.most_in_place or group.count
    for most in (1, share):
        for way in order:
            if most == 1 and (inside[places[way]] or sum(map(bool, inside)) >= kind.min_places):
                continue
            taken = _take(group, way, min(wanted, most - inside[places[way]]), room)
            found[way] += taken
            inside[places[way]] += taken
            wanted -= taken
        if most == 1:
            wanted -= min(wanted, max(0, kind.min_places - sum(map(bool, inside))))
    return found


def _take(group: Group, way: int, wanted: int, room: Floats) -> int:
    """As many as fit; takes the room."""
    fits = [int(room[limit] / amount + 1e-9) for limit, amount in group.ways[way] if amount > 0]
    taken = max(0, min([wanted, *fits]))
    for limit, amount in group.ways[way]:
        room[limit] -= taken * amount
    return taken
