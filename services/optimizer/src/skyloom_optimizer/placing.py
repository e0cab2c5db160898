"""Offers by place: within what is asked for, or within what is closed. Pure vector work; no reasons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from skyloom_common.contracts.plan import DeniedPlace, QuotaPool
from skyloom_common.contracts.task.places import same_name
from skyloom_common.core.errors import InvalidRequest
from skyloom_common.core.text import did_you_mean
from skyloom_optimizer.needs import aws_region_of
from skyloom_optimizer.snapshot import Ints, Mask, OfferSnapshot

BLOCK_KEYS = ("cloud", "region", "zone", "instance_type", "use_spot")


def number_of(names: Sequence[str], name: str) -> int:
    return names.index(name) if name in names else -1


def place_mask(snapshot: OfferSnapshot, region: str | None, zone: str | None) -> Mask:
    """Places within a region and zone. A regional price holds in each zone of its region."""
    fits = (_place_fits(snapshot, number, region, zone) for number in range(len(snapshot.places)))
    return np.fromiter(fits, dtype=bool, count=len(snapshot.places))


def _place_fits(snapshot: OfferSnapshot, number: int, region: str | None, zone: str | None) -> bool:
    places = snapshot.places
    name = places.region[number]
    if region and not same_name(region, name):
        return False
    if not zone or places.zone[number].lower() == zone.lower():
        return True
    cloud = snapshot.clouds[int(places.cloud[number])]
    if cloud == "aws":
        return aws_region_of(zone) == name
    if places.zone[number]:
        return False
    return zone.lower() in {known.lower() for known in snapshot.known_zones.get((cloud, name), ())}


def block_mask(snapshot: OfferSnapshot, blocked: Sequence[Mapping[str, Any]], use_spot: bool) -> Mask:
    """Offers that match any entry; a key that is missing or empty matches anything."""
    check_blocked(blocked)
    mask = np.zeros(len(snapshot), dtype=bool)
    for entry in blocked:
        if entry.get("use_spot") in (None, use_spot):
            _block(snapshot, entry, mask)
    return mask


def check_blocked(blocked: Sequence[Mapping[str, Any]]) -> None:
    for entry in blocked:
        for key in entry:
            if key not in BLOCK_KEYS:
                text = (
                    f"blocked: {key!r} is not one of {', '.join(BLOCK_KEYS)}{did_you_mean(key, BLOCK_KEYS)}"
                )
                raise InvalidRequest(text, details={"field": f"blocked.{key}"})


def _block(snapshot: OfferSnapshot, entry: Mapping[str, Any], mask: Mask) -> None:
    places = blocked_places(snapshot, entry)
    if not entry.get("instance_type"):
        mask |= places[snapshot.place]
        return
    for number in snapshot.machine_number.get(str(entry["instance_type"]).lower(), []):
        first, last = snapshot.machines.first_offer[number : number + 2]
        mask[first:last] |= places[snapshot.place[first:last]]


def blocked_places(snapshot: OfferSnapshot, entry: Mapping[str, Any]) -> Mask:
    places = snapshot.places
    mask = np.ones(len(places), dtype=bool)
    if entry.get("cloud"):
        mask &= places.cloud == number_of(snapshot.clouds, str(entry["cloud"]))
    for key, names in (("region", places.region), ("zone", places.zone)):
        if entry.get(key):
            mask &= np.array([name == entry[key] for name in names], dtype=bool)
    return mask


def row_mask(snapshot: OfferSnapshot, place: Mapping[str, Any]) -> Mask:
    """Offers in a partial place."""
    mask = np.zeros(len(snapshot), dtype=bool)
    _block(snapshot, place, mask)
    return mask


def place_of(item: DeniedPlace | QuotaPool) -> dict[str, str]:
    return {name: getattr(item, name) for name in BLOCK_KEYS if name != "use_spot"}


def rows_of(snapshot: OfferSnapshot, machine: int, use_spot: bool, allowed: Mask) -> Ints:
    """Offer rows of one machine that are sold and allowed."""
    first, last = snapshot.machines.first_offer[machine : machine + 2]
    usable: Mask = snapshot.prices(use_spot).sold[first:last] & allowed[first:last]
    rows: Ints = first + np.flatnonzero(usable)
    return rows
