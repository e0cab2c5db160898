"""Lays own prices and offers over a snapshot. Pure: arrays in, a new snapshot out; the one given stays as it is.

What is one's own wins. A private offer that the catalog has too (same cloud, type and place) only sets its price: sizes are
facts of the seller. Everything else becomes an offer of its own. The provenance of both is OWN.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from skyloom_optimizer.names import Accelerator
from skyloom_optimizer.overlay.read import OwnList, PriceRule, PrivateOffer
from skyloom_optimizer.snapshot import (
    NO_ACCELERATOR,
    Floats,
    Ints,
    Machines,
    Mask,
    OfferSnapshot,
    Places,
    Prices,
    Source,
)

OWN = "own"


@dataclass(frozen=True)
class Overlaid:
    """`notes`: what in the list had no effect; it is no reason to refuse the rest."""

    snapshot: OfferSnapshot
    notes: tuple[str, ...] = ()


def overlay(snapshot: OfferSnapshot, own: OwnList) -> Overlaid:
    if not own:
        return Overlaid(snapshot)
    notes: list[str] = []
    work = _Prices(snapshot, len(snapshot.sources))
    for rule in own.rules:
        if not work.apply(rule):
            notes.append(f"{rule.where}: matches no offer of the catalog")
    fresh = []
    for offer in own.offers:
        rows = _same(snapshot, offer)
        if len(rows):
            work.put(rows, offer.price, offer.spot_price)
            notes += _contradictions(snapshot, int(rows[0]), offer)
        else:
            fresh.append(offer)
    priced = replace(
        snapshot,
        on_demand=work.on_demand,
        spot=work.spot,
        sources=[*snapshot.sources, Source(OWN, own.as_of)],
        version=f"{snapshot.version}+{own.version}",
    )
    return Overlaid(_with_offers(priced, fresh) if fresh else priced, tuple(notes))


class _Prices:
    """Copies of both price columns, changed in place."""

    def __init__(self, snapshot: OfferSnapshot, source: int) -> None:
        self._snapshot = snapshot
        self._source = source
        self.on_demand = _copied(snapshot.on_demand)
        self.spot = _copied(snapshot.spot)

    def apply(self, rule: PriceRule) -> bool:
        """False: there is nothing that it matches."""
        rows = np.flatnonzero(_matched(self._snapshot, rule))
        self.put(rows, rule.price, rule.spot_price)
        for prices, percent in ((self.on_demand, rule.discount), (self.spot, rule.spot_discount)):
            if percent is not None:
                known = rows[~np.isnan(prices.price[rows])]
                self._set(prices, known, np.round(prices.price[known] * (1 - percent / 100), 6))
        return len(rows) > 0

    def put(self, rows: Ints, price: float | None, spot_price: float | None) -> None:
        for prices, value in ((self.on_demand, price), (self.spot, spot_price)):
            if value is not None:
                self._set(prices, rows, np.full(len(rows), value))

    def _set(self, prices: Prices, rows: Ints, values: Floats) -> None:
        prices.price[rows] = values
        prices.sold[rows] = True
        prices.source[rows] = self._source


def _copied(prices: Prices) -> Prices:
    return Prices(prices.price.copy(), prices.sold.copy(), prices.source.astype(np.uint16))


def _matched(snapshot: OfferSnapshot, rule: PriceRule) -> Mask:
    machines, places = snapshot.machines, snapshot.places
    if rule.cloud not in snapshot.clouds:
        return np.zeros(len(snapshot), dtype=bool)
    cloud = snapshot.clouds.index(rule.cloud)
    kind = (machines.cloud == cloud) & _like(machines.name, rule.instance_type)
    place = _like(places.region, rule.region) & _like(places.zone, rule.zone)
    mask: Mask = kind[snapshot.machine] & place[snapshot.place]
    return mask


def _like(names: Sequence[str], pattern: str) -> Mask:
    if pattern == "*":
        return np.ones(len(names), dtype=bool)
    wanted = pattern.lower()
    return np.array([fnmatch.fnmatchcase(name.lower(), wanted) for name in names], dtype=bool)


def _same(snapshot: OfferSnapshot, offer: PrivateOffer) -> Ints:
    """Offers of the catalog that this one is about: a region without a zone means all its zones."""
    escaped = PriceRule(
        offer.cloud,
        _exactly(offer.region),
        _exactly(offer.zone) if offer.zone else "*",
        _exactly(offer.instance_type),
    )
    return np.flatnonzero(_matched(snapshot, escaped))


def _exactly(name: str) -> str:
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)


def _contradictions(snapshot: OfferSnapshot, row: int, offer: PrivateOffer) -> list[str]:
    known = snapshot.offer(row, use_spot=False)
    pairs = (("vcpus", offer.vcpus, known.vcpus), ("memory_gib", offer.memory_gib, known.memory_gib))
    return [
        f"{offer.where}: {name} {said:g} is ignored; {offer.instance_type} has {fact:g} in the catalog"
        for name, said, fact in pairs
        if said is not None and fact is not None and said != fact
    ]


# --- offers that the catalog does not have ---


def _with_offers(snapshot: OfferSnapshot, offers: Sequence[PrivateOffer]) -> OfferSnapshot:
    clouds = sorted({*snapshot.clouds, *(offer.cloud for offer in offers)})
    moved = np.array([clouds.index(cloud) for cloud in snapshot.clouds], dtype=np.int64)
    places, place_of = _with_places(snapshot, offers, clouds, moved)
    devices = _with_devices(snapshot, offers)
    machines, machine_of, order = _with_machines(snapshot, offers, clouds, moved, devices)
    new_number = np.argsort(order)
    machine = new_number[np.concatenate([snapshot.machine, np.array(machine_of, dtype=np.int64)])]
    place = np.concatenate([snapshot.place, np.array(place_of, dtype=np.int64)])
    rows = np.lexsort((place, machine))
    source = len(snapshot.sources) - 1
    return replace(
        snapshot,
        clouds=clouds,
        machines=replace(machines, first_offer=np.searchsorted(machine[rows], np.arange(len(machines) + 1))),
        places=places,
        machine=machine[rows],
        place=place[rows],
        on_demand=_more(
            snapshot.on_demand,
            [offer.price for offer in offers],
            [offer.price is not None or offer.spot_price is None for offer in offers],
            source,
            rows,
        ),
        spot=_more(
            snapshot.spot,
            [offer.spot_price for offer in offers],
            [offer.spot_price is not None for offer in offers],
            source,
            rows,
        ),
        accelerators=devices,
    )


def _more(
    prices: Prices, values: Sequence[float | None], sold: Sequence[bool], source: int, rows: Ints
) -> Prices:
    number = np.array([np.nan if value is None else value for value in values])
    return Prices(
        np.concatenate([prices.price, number])[rows],
        np.concatenate([prices.sold, np.array(sold, dtype=bool)])[rows],
        np.concatenate([prices.source, np.full(len(values), source, dtype=prices.source.dtype)])[rows],
    )


def _with_places(
    snapshot: OfferSnapshot, offers: Sequence[PrivateOffer], clouds: list[str], moved: Ints
) -> tuple[Places, list[int]]:
    """The places with new ones behind, and the place of each offer."""
    places = snapshot.places
    cloud, region, zone = moved[places.cloud].tolist(), list(places.region), list(places.zone)
    number = {key: at for at, key in enumerate(zip(cloud, region, zone, strict=True))}
    found = []
    for offer in offers:
        key = (clouds.index(offer.cloud), offer.region, offer.zone)
        if key not in number:
            number[key] = len(cloud)
            cloud.append(key[0])
            region.append(key[1])
            zone.append(key[2])
        found.append(number[key])
    restricted = np.concatenate([places.restricted, np.zeros(len(cloud) - len(places), dtype=bool)])
    return Places(np.array(cloud, dtype=np.int64), region, zone, restricted), found


def _with_devices(snapshot: OfferSnapshot, offers: Sequence[PrivateOffer]) -> list[Accelerator]:
    devices = list(snapshot.accelerators)
    for offer in offers:
        unknown = offer.accelerator and _device(snapshot, devices, offer.accelerator) == NO_ACCELERATOR
        if unknown:
            devices.append(Accelerator(offer.accelerator, memory_gib=offer.accelerator_memory_gib))
    return devices


def _device(snapshot: OfferSnapshot, devices: Sequence[Accelerator], name: str) -> int:
    found = snapshot.names.find(name, 1.0) if name else None
    if found is not None and found.devices:
        return found.devices[0]
    numbers = [number for number, device in enumerate(devices) if device.name.lower() == name.lower()]
    return numbers[0] if numbers else NO_ACCELERATOR


def _with_machines(
    snapshot: OfferSnapshot,
    offers: Sequence[PrivateOffer],
    clouds: list[str],
    moved: Ints,
    devices: Sequence[Accelerator],
) -> tuple[Machines, list[int], Ints]:
    """The machines with new ones in their clouds, the machine of each offer (before sorting), and the order of sorting."""
    machines = snapshot.machines
    known = {(int(moved[cloud]), name): at for at, (cloud, name) in enumerate(_keys(machines))}
    fresh: list[PrivateOffer] = []
    machine_of = []
    for offer in offers:
        key = (clouds.index(offer.cloud), offer.instance_type)
        if key not in known:
            known[key] = len(machines) + len(fresh)
            fresh.append(offer)
        machine_of.append(known[key])
    device = np.array([_device(snapshot, devices, offer.accelerator) for offer in fresh], dtype=np.int64)
    memory = [
        offer.accelerator_memory_gib or (devices[at].memory_gib if at != NO_ACCELERATOR else None)
        for offer, at in zip(fresh, device.tolist(), strict=True)
    ]
    cloud = np.concatenate([moved[machines.cloud], [clouds.index(offer.cloud) for offer in fresh]]).astype(
        np.int64
    )
    order = np.argsort(cloud, kind="stable")
    names = [*machines.name, *(offer.instance_type for offer in fresh)]
    archs = [*machines.arch, *(offer.arch for offer in fresh)]

    def longer(old: Floats, new: Sequence[float | None]) -> Floats:
        more = np.array([np.nan if value is None else value for value in new], dtype=np.float64)
        return np.concatenate([old, more])[order]

    result = Machines(
        cloud=cloud[order],
        name=[names[at] for at in order.tolist()],
        vcpus=longer(machines.vcpus, [offer.vcpus for offer in fresh]),
        memory_gib=longer(machines.memory_gib, [offer.memory_gib for offer in fresh]),
        accelerator=np.concatenate([machines.accelerator, device])[order],
        accelerator_count=longer(machines.accelerator_count, [offer.accelerator_count for offer in fresh]),
        accelerator_memory_gib=longer(machines.accelerator_memory_gib, memory),
        arch=[archs[at] for at in order.tolist()],
        first_offer=machines.first_offer,
    )
    return result, machine_of, order


def _keys(machines: Machines) -> list[tuple[int, str]]:
    return list(zip(machines.cloud.tolist(), machines.name, strict=True))
