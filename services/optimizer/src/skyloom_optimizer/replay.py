"""Replays recorded spot capacity against a way of ordering candidates, and counts the attempts that fail.

Pure: capacity, arrivals and the order are arguments. Users arrive one after another; each walks the order until a launch works, and
every outcome is remembered for the next. Used by the benchmark and by tests; no route needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from skyloom_common.contracts.plan import LaunchOutcome, Offer

Order = Callable[[Sequence[Offer], Sequence[LaunchOutcome], float], Sequence[Offer]]
"""Offers with their present prices, the outcomes so far, now: the order in which to try."""


@dataclass(frozen=True)
class Zone:
    """`up[i]`: capacity in interval i; `price[i]`: dollars an hour."""

    offer: Offer
    up: tuple[bool, ...]
    price: tuple[float, ...]


@dataclass(frozen=True)
class Recording:
    gap_seconds: float
    zones: tuple[Zone, ...]

    @property
    def seconds(self) -> float:
        return self.gap_seconds * min(len(zone.up) for zone in self.zones)


@dataclass(frozen=True)
class Tally:
    """`failed`: attempts that found no capacity; `paid`: mean price of what was got."""

    launches: int
    failed: int
    nowhere: int
    paid: float


def recording_of(data: Mapping[str, Any]) -> Recording:
    """From the re-encoded form: states as distances between changes, prices as (distance, price)."""
    count = int(data["intervals"])
    zones = []
    for item in data["zones"]:
        offer = Offer(
            data["cloud"], data["instance_type"], item["region"], item["zone"], 8.0, 61.0, use_spot=True
        )
        zones.append(
            Zone(offer, _states(item["first"], item["turns"], count), _prices(item["prices"], count))
        )
    return Recording(float(data["gap_seconds"]), tuple(zones))


def _states(first: int, turns: Iterable[int], count: int) -> tuple[bool, ...]:
    found: list[bool] = []
    state = bool(first)
    for length in turns:
        found += [state] * length
        state = not state
    return tuple(found + [state] * (count - len(found)))


def _prices(changes: Sequence[Sequence[float]], count: int) -> tuple[float, ...]:
    found: list[float] = []
    for number, (_, price) in enumerate(changes):
        last = number + 1 == len(changes)
        length = count - len(found) if last else int(changes[number + 1][0])
        found += [price] * length
    return tuple(found)


def replay(recording: Recording, arrivals: Iterable[float], order: Order) -> Tally:
    """`arrivals`: seconds from the beginning, ascending."""
    outcomes: list[LaunchOutcome] = []
    launches = failed = nowhere = 0
    paid = 0.0
    by_place = {(zone.offer.region, zone.offer.zone): zone for zone in recording.zones}
    for now in arrivals:
        tick = int(now / recording.gap_seconds)
        offers = [_priced(zone, tick) for zone in recording.zones]
        launches += 1
        for offer in order(offers, outcomes, now):
            up = by_place[offer.region, offer.zone].up[tick]
            outcomes.append(_outcome(offer, up, now))
            if up:
                paid += offer.price_per_hour or 0.0
                break
            failed += 1
        else:
            nowhere += 1
    return Tally(launches, failed, nowhere, paid / max(launches - nowhere, 1))


def by_price(offers: Sequence[Offer], _outcomes: Sequence[LaunchOutcome], _now: float) -> Sequence[Offer]:
    """What a price list alone gives."""
    return sorted(offers, key=lambda offer: (offer.price_per_hour or 0.0, offer.region, offer.zone))


def _priced(zone: Zone, tick: int) -> Offer:
    offer = zone.offer
    return Offer(
        offer.cloud,
        offer.instance_type,
        offer.region,
        offer.zone,
        offer.vcpus,
        offer.memory_gib,
        use_spot=True,
        price_per_hour=zone.price[tick],
    )


def _outcome(offer: Offer, up: bool, now: float) -> LaunchOutcome:
    result = "ok" if up else "insufficient_capacity"
    return LaunchOutcome(offer.cloud, offer.region, offer.zone, offer.instance_type, True, result, now)
