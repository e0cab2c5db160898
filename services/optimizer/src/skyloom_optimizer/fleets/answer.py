"""From whole numbers back to places, reasons and what the limits had left. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property

from skyloom_common.contracts.fleet import (
    FleetGroup,
    FleetPlan,
    FleetPlanRequest,
    PoolUse,
    Reservation,
    Unplaced,
    UnplacedProof,
)
from skyloom_common.contracts.plan import Breakdown, Candidate, Proof, Reason
from skyloom_optimizer.choices import NoChoice
from skyloom_optimizer.fleets.kinds import FleetKind, Option, most_in_place
from skyloom_optimizer.names import number_text
from skyloom_optimizer.solvers import fleet as solver


class Answer:
    """From whole numbers back to places and reasons."""

    def __init__(
        self,
        request: FleetPlanRequest,
        kinds: Sequence[FleetKind],
        found: solver.Fleet,
        limits: Sequence[solver.Limit],
        pools: Sequence[tuple[str, float]],
    ) -> None:
        self.request, self.kinds, self.found = request, kinds, found
        self.limits, self.pools = limits, pools

    def plan(self, missing: dict[str, NoChoice], considered: int, version: str) -> FleetPlan:
        groups, unplaced = self._groups()
        for item in self.request.tasks:
            if item.name in missing:
                reasons = tuple(Reason("impossible", hint) for hint in missing[item.name].hints)
                unplaced.append(Unplaced(item.name, item.count, reasons))
        parts = [(group.breakdown, group.count) for group in groups]
        total = Breakdown(
            *(
                sum(getattr(part, name) * count for part, count in parts)
                for name in ("compute", "disk", "egress", "restarts")
            )
        )
        value, bound = self.found.value, self.found.bound
        gap = (value - bound) / value if value > 0 else 0.0
        return FleetPlan(
            groups=tuple(groups),
            unplaced=tuple(unplaced),
            pools=tuple(self._uses()),
            usd=total.total,
            usd_per_hour=sum((group.candidate.cost_per_hour or 0.0) * group.count for group in groups),
            breakdown=total,
            proof=Proof(value, bound, max(gap, 0.0), self.found.method),
            unplaced_proof=tuple(UnplacedProof(x.priority, x.count, x.least) for x in self.found.left),
            hints=(*_unplaced_hints(unplaced), *self._open_hints(gap)),
            considered=considered,
            catalog_version=version,
        )

    def _open_hints(self, gap: float) -> list[str]:
        """What the search could not settle in its time."""
        more = f"within {number_text(self.request.time_limit_seconds)} seconds: raise time_limit_seconds"
        found = [
            f"priority {item.priority}: whether {item.count - item.least} more fit could not be decided {more}"
            for item in self.found.left
            if item.least < item.count
        ]
        if gap > self.request.max_gap + 1e-6:
            found.append(f"no plan is more than {100 * gap:.2g} % cheaper; this could not be narrowed {more}")
        return found

    def _groups(self) -> tuple[list[FleetGroup], list[Unplaced]]:
        """Copies of a kind are handed to its members in turn, the cheapest options first."""
        groups: list[FleetGroup] = []
        unplaced: list[Unplaced] = []
        for kind, counts, left in zip(self.kinds, self.found.counts, self.found.unplaced, strict=True):
            stock = [[number, count] for number, count in enumerate(counts) if count]
            stock.sort(key=lambda entry: kind.options[entry[0]].value)
            for name, wanted in kind.members:
                while wanted and stock:
                    number, count = stock[0]
                    taken = min(wanted, count)
                    groups.append(self._group(kind, name, number, taken))
                    wanted -= taken
                    stock[0][1] -= taken
                    if not stock[0][1]:
                        stock.pop(0)
                if wanted:
                    unplaced.append(Unplaced(name, wanted, self._why_left(kind)))
            assert left >= 0
        return groups, unplaced

    def _group(self, kind: FleetKind, name: str, number: int, count: int) -> FleetGroup:
        option, choices = kind.options[number], kind.choices
        reserved = None if option.reservation is None else self.request.reservations[option.reservation]
        candidate = choices.candidate(option.choice, kind.item.task.num_nodes, self._reason(kind, option))
        parts = choices.breakdown(option.choice)
        if self._zoned(kind):
            part, index = choices.part(option.choice)
            offer = part.world.offer(int(part.rows[index]), part.need.use_spot, None)
            candidate = dataclasses.replace(candidate, offer=offer)
        if reserved is not None:
            candidate, parts = _at_reserved_price(candidate, reserved), Breakdown(compute=option.usd)
        return FleetGroup(name, count, candidate, parts, reserved.name if reserved else "")

    def _zoned(self, kind: FleetKind) -> bool:
        """Whether the zone is part of the answer, also where zones cost the same."""
        spread = kind.item.spread is not None and kind.item.spread.by == "zone"
        return (
            spread
            or any(item.zone for item in self.request.quotas)
            or any(item.zone for item in self.request.reservations)
        )

    def _reason(self, kind: FleetKind, option: Option) -> str:
        best = min(kind.options, key=lambda other: other.value)
        if option.reservation is not None:
            return f"reservation {self.request.reservations[option.reservation].name}"
        if option.value <= best.value + 1e-9:
            return "the cheapest"
        return f"${option.value - best.value:.2f} more than the cheapest, which is used up"

    def _why_left(self, kind: FleetKind) -> tuple[Reason, ...]:
        """Limits that are full and concern the kind."""
        number = next(position for position, other in enumerate(self.kinds) if other is kind)
        full = []
        for needed, (name, most), use in zip(self._least, self.pools, self._used, strict=True):
            own = needed.get(number)
            if own is not None and use + own > most + 1e-6:
                text = f"{name} is used up: {number_text(round(use, 4))} of {number_text(round(most, 4))}"
                full.append(Reason("quota", text, {"used": use, "limit": most, "needed": own}))
        if full:
            return tuple(full)
        if kind.item.spread is not None:
            most = most_in_place(kind)
            text = f"no {kind.item.spread.by} has room for it within the spread: at most {most} in each"
            return (Reason("spread", text, {"limit": most}),)
        return (Reason("quota", "no limit leaves room for it together with the others"),)

    @cached_property
    def _least(self) -> list[dict[int, float]]:
        """For each limit the least that a copy of each kind takes of it."""
        found: list[dict[int, float]] = []
        for limit in self.limits:
            own: dict[int, float] = {}
            for k, _, amount in limit.uses:
                own[k] = min(amount, own.get(k, amount))
            found.append(own)
        return found

    @cached_property
    def _used(self) -> list[float]:
        counts = self.found.counts
        return [
            sum(counts[k][o] * amount for k, o, amount in limit.uses if counts[k][o]) for limit in self.limits
        ]

    def _uses(self) -> list[PoolUse]:
        return [
            PoolUse(name, used, most, price if price is None or price > 1e-9 else None)
            for (name, most), used, price in zip(self.pools, self._used, self.found.prices, strict=True)
        ]


def _unplaced_hints(unplaced: Sequence[Unplaced]) -> list[str]:
    return [
        f"{item.task}: {item.count} could not be placed: {item.reasons[0].text}"
        for item in unplaced
        if item.reasons
    ]


def _at_reserved_price(candidate: Candidate, reserved: Reservation) -> Candidate:
    offer = dataclasses.replace(candidate.offer, price_per_hour=reserved.price_per_hour, zone=reserved.zone)
    return dataclasses.replace(
        candidate, offer=offer, cost_per_hour=reserved.price_per_hour * candidate.num_nodes
    )
