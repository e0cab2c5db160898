"""Tables of accelerators over a snapshot: the overview, and the offers of one device. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import numpy as np

from skyloom_common.contracts.plan import AcceleratorList, AcceleratorOffer, AcceleratorSummary
from skyloom_common.contracts.task.model import AcceleratorSpec
from skyloom_common.contracts.task.placement import CLOUDS, OURS
from skyloom_common.core.errors import InvalidRequest
from skyloom_common.core.text import did_you_mean, few, nearest_few
from skyloom_optimizer.catalog.ages import age_in_days
from skyloom_optimizer.devices import count_mask, device_mask
from skyloom_optimizer.names import COMMON, number_text
from skyloom_optimizer.placing import place_mask
from skyloom_optimizer.snapshot import NO_ACCELERATOR, Floats, Ints, Mask, OfferSnapshot, known

SAME_SHARE = 0.005
_MEMORY = re.compile(r"(?:(?P<vendor>[a-z]+):)?(?P<size>[0-9]+(?:\.[0-9]+)?)g(?:i?b)?(?P<plus>\+)?")
FAMILIES = ("common", "google_tpu", "other")


@dataclass(frozen=True)
class AcceleratorQuery:
    """`every`: also devices that few ask for. `all_regions`: a row for each region, not only the cheapest."""

    name: str | None = None
    count: float | None = None
    cloud: str | None = None
    region: str | None = None
    every: bool = False
    all_regions: bool = False
    require_price: bool = False
    now: float | None = None
    """Unix seconds; prices have no age without it."""


def list_accelerators(query: AcceleratorQuery, snapshot: OfferSnapshot) -> AcceleratorList:
    """Raises InvalidRequest for a cloud or region that does not exist; an unknown device gives a hint."""
    if query.cloud is not None and query.cloud not in snapshot.clouds and query.cloud in (*CLOUDS, *OURS):
        return AcceleratorList(hints=(_own(query.cloud),))
    _check(query, snapshot)
    if query.name is None:
        return AcceleratorList(summaries=tuple(_summaries(query, snapshot)))
    devices, others = _devices(query.name, query.count or 1.0, snapshot)
    if not devices:
        guesses = nearest_few(query.name, snapshot.names.known())
        maybe = (
            f"did you mean {' or '.join(map(repr, guesses))}?"
            if guesses
            else "list them all with: sky gpus list --all"
        )
        return AcceleratorList(hints=(f"{query.name!r} is not a known accelerator; {maybe}",))
    offers = _offers(query, snapshot, devices)
    if not offers:
        return AcceleratorList(hints=(_nothing(query, snapshot, devices),))
    return AcceleratorList(offers=offers, hints=_similar(others))


def _own(cloud: str) -> str:
    """For what sells nothing: own machines, and clouds whose prices nobody lists."""
    return f"{cloud} has no price list here, so no accelerators are listed; see what it has with: sky check {cloud}"


def family(name: str) -> str:
    if name.startswith("tpu-"):
        return "google_tpu"
    return "common" if name in COMMON else "other"


def _check(query: AcceleratorQuery, snapshot: OfferSnapshot) -> None:
    if query.count is not None and query.count <= 0:
        raise InvalidRequest(f"count: {query.count:g} is not above 0")
    if query.cloud is not None and query.cloud not in snapshot.clouds:
        guess = did_you_mean(query.cloud, (*snapshot.clouds, *CLOUDS))
        raise InvalidRequest(f"cloud: {query.cloud!r} is not in the catalog{guess}")
    if query.region is not None:
        clouds = [query.cloud] if query.cloud else snapshot.clouds
        regions = {region for cloud in clouds for region in snapshot.regions[cloud]}
        if query.region.lower() not in {region.lower() for region in regions}:
            where = f" on {query.cloud}" if query.cloud else ""
            guess = did_you_mean(query.region, regions)
            raise InvalidRequest(f"region: {query.region!r} is not a region{where}{guess}")


def _allowed(query: AcceleratorQuery, snapshot: OfferSnapshot) -> Mask:
    if query.region is None:
        return snapshot.open_offers
    return place_mask(snapshot, query.region, None)[snapshot.place]


def _machines(query: AcceleratorQuery, snapshot: OfferSnapshot, allowed: Mask) -> Mask:
    machines = snapshot.machines
    mask: Mask = machines.accelerator != NO_ACCELERATOR
    if query.cloud is not None:
        mask &= machines.cloud == snapshot.clouds.index(query.cloud)
    if query.count is not None:
        mask &= count_mask(machines.accelerator_count, query.count, divisible=False)
    if allowed is not snapshot.open_offers:
        mask &= np.isfinite(snapshot.lowest(False, allowed)) | (snapshot.sold_count(False, allowed) > 0)
    if query.require_price:
        mask &= np.isfinite(snapshot.lowest(False, allowed)) | np.isfinite(snapshot.lowest(True, allowed))
    return mask


def _summaries(query: AcceleratorQuery, snapshot: OfferSnapshot) -> Iterator[AcceleratorSummary]:
    machines = snapshot.machines
    counts: dict[str, set[float]] = {}
    clouds: dict[str, set[str]] = {}
    for number in np.flatnonzero(_machines(query, snapshot, _allowed(query, snapshot))).tolist():
        name = snapshot.accelerators[int(machines.accelerator[number])].name
        counts.setdefault(name, set()).add(float(machines.accelerator_count[number]))
        clouds.setdefault(name, set()).add(snapshot.clouds[int(machines.cloud[number])])
    for name in sorted(counts, key=lambda name: (FAMILIES.index(family(name)), _natural(name))):
        if query.every or family(name) != "other":
            yield AcceleratorSummary(
                name, family(name), distinct_counts(counts[name]), tuple(sorted(clouds[name]))
            )


def distinct_counts(counts: Iterable[float]) -> tuple[float, ...]:
    """Each share of a device once: sellers round a sixth to 0.167 or 0.1667. The one with more digits is kept."""
    shown: list[float] = []
    for count in sorted(counts):
        if shown and count - shown[-1] <= SAME_SHARE * count:
            shown[-1] = max(shown[-1], count, key=lambda value: (len(f"{value:g}"), value))
        else:
            shown.append(count)
    return tuple(shown)


def _natural(name: str) -> tuple[str, int]:
    """`tpu-v4-8` before `tpu-v4-16`."""
    base, _, number = name.rpartition("-")
    return (base, int(number)) if number.isdigit() else (name, 0)


def _devices(name: str, count: float, snapshot: OfferSnapshot) -> tuple[list[int], list[str]]:
    """The devices that are meant (by name, wildcards or memory), and the names of others that contain the text."""
    text = name.casefold()
    memory = _MEMORY.fullmatch(text)
    if memory:
        wanted = AcceleratorSpec(
            memory_gib=float(memory["size"]), memory_at_least=bool(memory["plus"]), vendor=memory["vendor"]
        )
        found = np.unique(snapshot.machines.accelerator[device_mask(wanted, snapshot)[0]])
        return found.tolist(), []
    if "*" in text or "?" in text:
        every = enumerate(snapshot.accelerators)
        return [number for number, device in every if fnmatchcase(device.name.casefold(), text)], []
    return _named_devices(name, count, snapshot)


def _named_devices(name: str, count: float, snapshot: OfferSnapshot) -> tuple[list[int], list[str]]:
    found = snapshot.names.find(name, count)
    text = name.casefold()
    contains = [
        number for number, device in enumerate(snapshot.accelerators) if text in device.name.casefold()
    ]
    if found is None or not found.devices:
        return contains, []
    others = [snapshot.accelerators[number].name for number in contains if number not in found.devices]
    return list(found.devices), others


def _offers(
    query: AcceleratorQuery, snapshot: OfferSnapshot, devices: Sequence[int]
) -> tuple[AcceleratorOffer, ...]:
    allowed = _allowed(query, snapshot)
    tpu = snapshot.accelerators[devices[0]].name.startswith("tpu-")
    asked = query if not tpu else AcceleratorQuery(**{**vars(query), "count": None})
    mask = _machines(asked, snapshot, allowed) & np.isin(snapshot.machines.accelerator, devices)
    rows: list[AcceleratorOffer] = []
    for machine in np.flatnonzero(mask).tolist():
        rows += _machine_offers(query, snapshot, machine, allowed)
    return tuple(_sorted(rows))


def _machine_offers(
    query: AcceleratorQuery, snapshot: OfferSnapshot, machine: int, allowed: Mask
) -> list[AcceleratorOffer]:
    """One row for the machine's cheapest region, or one for each region."""
    first, last = snapshot.machines.first_offer[machine : machine + 2]
    rows = first + np.flatnonzero(allowed[first:last])
    if not len(rows):
        return []
    groups = _by_region(snapshot, rows) if query.all_regions else {"": rows}
    return [_machine_offer(snapshot, machine, group, query.now) for _, group in sorted(groups.items())]


def _by_region(snapshot: OfferSnapshot, rows: Ints) -> dict[str, Ints]:
    groups: dict[str, list[int]] = {}
    for row in rows.tolist():
        groups.setdefault(snapshot.places.region[int(snapshot.place[row])], []).append(row)
    return {region: np.array(group) for region, group in groups.items()}


def _machine_offer(snapshot: OfferSnapshot, machine: int, rows: Ints, now: float | None) -> AcceleratorOffer:
    best = _least(snapshot.on_demand.price, rows)
    cheapest_spot = _least(snapshot.spot.price, rows)
    row = next((found for found in (best, cheapest_spot) if found is not None), int(rows[0]))
    offer = snapshot.offer(row, use_spot=False)
    source = snapshot.sources[int((snapshot.on_demand if best is not None else snapshot.spot).source[row])]
    return AcceleratorOffer(
        accelerator=offer.accelerator or "",
        count=offer.accelerator_count,
        cloud=offer.cloud,
        instance_type=offer.instance_type,
        region=offer.region,
        vcpus=offer.vcpus,
        memory_gib=offer.memory_gib,
        accelerator_memory_gib=offer.accelerator_memory_gib,
        price_per_hour=None if best is None else known(snapshot.on_demand.price[best]),
        spot_price_per_hour=None if cheapest_spot is None else known(snapshot.spot.price[cheapest_spot]),
        as_of=source.as_of,
        source=source.code,
        age_days=None if now is None else age_in_days(source.as_of, now),
    )


def _least(prices: Floats, rows: Ints) -> int | None:
    values = np.nan_to_num(prices[rows], nan=np.inf)
    best = int(np.argmin(values))
    return int(rows[best]) if np.isfinite(values[best]) else None


def _sorted(rows: Sequence[AcceleratorOffer]) -> list[AcceleratorOffer]:
    """By device and count; within, clouds in the order of their cheapest offer, then by price."""
    cheapest: dict[tuple[str, float, str], float] = {}
    for row in rows:
        key = (row.accelerator, row.count, row.cloud)
        cheapest[key] = min(cheapest.get(key, np.inf), _price(row))

    def order(row: AcceleratorOffer) -> tuple[object, ...]:
        cloud = cheapest[row.accelerator, row.count, row.cloud]
        return (row.accelerator, row.count, cloud, row.cloud, _price(row), row.instance_type, row.region)

    return sorted(rows, key=order)


def _price(row: AcceleratorOffer) -> float:
    return float("inf") if row.price_per_hour is None else row.price_per_hour


def _nothing(query: AcceleratorQuery, snapshot: OfferSnapshot, devices: Sequence[int]) -> str:
    """Which numbers of it there are, where the number was the fault; else where it is sold."""
    where = "/".join(part for part in (query.cloud, query.region) if part)
    on = f" on {where}" if where else ""
    if query.count is not None:
        any_count = _offers(replace(query, count=None), snapshot, devices)
        if any_count:
            counts = distinct_counts({offer.count for offer in any_count})
            sold = ", ".join(map(number_text, counts))
            return f"{query.name}:{number_text(query.count)} is not sold{on}; {query.name} is sold in these numbers: {sold}"
    anywhere = _offers(replace(query, count=None, cloud=None, region=None), snapshot, devices)
    clouds = sorted({offer.cloud for offer in anywhere})
    if not clouds:
        return f"{query.name} is known, but no cloud sells it"
    regions = sorted({offer.region for offer in _everywhere(query, snapshot, devices)} - {""})
    if query.region and regions:
        return f"{query.name} is not sold{on}; on {query.cloud or 'any cloud'} it is sold in {few(regions)}"
    return f"{query.name} is not sold{on}; it is sold by {few(clouds, 8)}"


def _everywhere(
    query: AcceleratorQuery, snapshot: OfferSnapshot, devices: Sequence[int]
) -> tuple[AcceleratorOffer, ...]:
    return _offers(replace(query, count=None, region=None, all_regions=True), snapshot, devices)


def _similar(others: Sequence[str]) -> tuple[str, ...]:
    return (f"similar names: {', '.join(sorted(others)[:8])}",) if others else ()
