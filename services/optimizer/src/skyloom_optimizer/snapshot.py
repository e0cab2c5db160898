"""What a decision may look at: every offer of a moment as columns. Immutable, shared by all requests.

Data only: no file, clock or network is touched here. Offers are sorted by machine, machines by cloud, so that
"per machine" and "per cloud" are slices.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyloom_common.contracts.plan import Offer
from skyloom_optimizer.names import Accelerator, AcceleratorNames

Floats = NDArray[np.float64]
Ints = NDArray[Any]
Mask = NDArray[np.bool_]

NO_ACCELERATOR = -1
_LARGEST = float(np.finfo(np.float64).max)


@dataclass(frozen=True)
class Machines:
    """What is sold: one entry for each distinct (cloud, instance type, size). NaN = not known."""

    cloud: Ints
    name: list[str]
    vcpus: Floats
    memory_gib: Floats
    accelerator: Ints
    """Index into the snapshot's accelerators, or NO_ACCELERATOR."""
    accelerator_count: Floats
    accelerator_memory_gib: Floats
    """Memory of one device: nominal where the device is known, else what the seller reports."""
    arch: list[str]
    first_offer: Ints
    """Offers of machine m are first_offer[m] : first_offer[m + 1]."""

    def __len__(self) -> int:
        return len(self.name)


@dataclass(frozen=True)
class Places:
    """Where it is sold. An empty zone: a price for the whole region; an empty region: for the whole cloud."""

    cloud: Ints
    region: list[str]
    zone: list[str]
    restricted: Mask
    """Not for everybody (government, opt-in, not public): used only where region or zone is asked for."""

    def __len__(self) -> int:
        return len(self.region)

    @cached_property
    def region_number(self) -> Ints:
        """A number for each (cloud, region)."""
        numbers: dict[tuple[int, str], int] = {}
        keys = zip(self.cloud.tolist(), self.region, strict=True)
        return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


@dataclass(frozen=True)
class Prices:
    """One capacity type. `price` NaN = not known; `sold` says whether it can be asked for all the same."""

    price: Floats
    sold: Mask
    source: Ints


@dataclass(frozen=True)
class Source:
    code: str
    as_of: str = ""


@dataclass(frozen=True)
class OfferSnapshot:
    """Offers with their places and machines.

    `divisible`: these are somebody's own machines, of which a request takes a share: sizes are lower bounds
    and the default size does not apply; catalog machines are bought whole.
    """

    clouds: list[str]
    machines: Machines
    places: Places
    machine: Ints
    place: Ints
    on_demand: Prices
    spot: Prices
    accelerators: Sequence[Accelerator] = ()
    sources: Sequence[Source] = (Source(""),)
    known_zones: Mapping[tuple[str, str], frozenset[str]] = field(default_factory=dict)
    """(cloud, region) to all zones of that region, sold or not."""
    version: str = ""
    divisible: bool = False

    def __len__(self) -> int:
        return len(self.machine)

    def prices(self, use_spot: bool) -> Prices:
        return self.spot if use_spot else self.on_demand

    @cached_property
    def first_machine(self) -> Ints:
        """First machine of each cloud."""
        return np.searchsorted(self.machines.cloud, np.arange(len(self.clouds)))

    @cached_property
    def cloud_slices(self) -> list[slice]:
        """Machines of each cloud."""
        edges = np.searchsorted(self.machines.cloud, np.arange(len(self.clouds) + 1)).tolist()
        return [slice(first, last) for first, last in pairwise(edges)]

    def least_of_clouds(self, values: Floats, mask: Mask) -> Ints:
        """For each cloud its masked machine with the least value, or -1 where the mask has none."""
        if not len(self.machines):
            return np.zeros(0, dtype=np.int64)
        ranked = np.where(mask, np.minimum(values, _LARGEST), np.inf)
        least = np.minimum.reduceat(ranked, self.first_machine)
        hits = np.flatnonzero(ranked == least[self.machines.cloud])
        first = hits[np.searchsorted(self.machines.cloud[hits], np.arange(len(self.clouds)))]
        return np.where(np.isinf(least), -1, first)

    @cached_property
    def size(self) -> Floats:
        """Orders machines by accelerators, then vCPUs, then memory; unknown is large."""
        machines = self.machines
        vcpus, memory = np.nan_to_num(machines.vcpus, nan=1e5), np.nan_to_num(machines.memory_gib, nan=1e6)
        size: Floats = 1e9 * machines.accelerator_count + 1e3 * vcpus + 1e-3 * memory
        return size

    @cached_property
    def offers_per_machine(self) -> Ints:
        return np.diff(self.machines.first_offer)

    def offers_by_cloud(self, mask: Mask) -> Ints:
        """Offers of each cloud whose machine is in the mask."""
        if not len(self.machines):
            return np.zeros(len(self.clouds), dtype=np.int64)
        return np.add.reduceat(np.where(mask, self.offers_per_machine, 0), self.first_machine)

    @cached_property
    def plain_arch(self) -> Mask:
        """Machines that run ordinary (x86-64 Linux) software; an unknown architecture counts as one."""
        return np.array([arch in ("", "x86_64") for arch in self.machines.arch], dtype=bool)

    @cached_property
    def device_vendor(self) -> list[str]:
        return [accelerator.vendor.casefold() for accelerator in self.accelerators]

    @cached_property
    def regions(self) -> dict[str, frozenset[str]]:
        """Cloud to the names of its regions."""
        found: dict[str, set[str]] = {cloud: set() for cloud in self.clouds}
        for cloud, region in zip(self.places.cloud.tolist(), self.places.region, strict=True):
            if region:
                found[self.clouds[cloud]].add(region)
        for cloud_name, region in self.known_zones:
            found.setdefault(cloud_name, set()).add(region)
        return {cloud: frozenset(names) for cloud, names in found.items()}

    @cached_property
    def machine_number(self) -> dict[str, list[int]]:
        """Instance type (lower case) to the machines that bear it, on whatever cloud."""
        numbers: dict[str, list[int]] = {}
        for number, name in enumerate(self.machines.name):
            numbers.setdefault(name.lower(), []).append(number)
        return numbers

    @cached_property
    def names(self) -> AcceleratorNames:
        return AcceleratorNames(self.accelerators)

    @cached_property
    def open_offers(self) -> Mask:
        """Offers in places that are for everybody: what a task without a region may use."""
        mask: Mask = ~self.places.restricted[self.place]
        return mask

    @cached_property
    def open_count(self) -> Ints:
        """How many open places offer each machine."""
        return count_per_machine(self, self.open_offers)

    @cached_property
    def _open_lowest(self) -> dict[bool, Floats]:
        return {spot: lowest_price(self, self.prices(spot), self.open_offers) for spot in (False, True)}

    @cached_property
    def _open_sold(self) -> dict[bool, Ints]:
        return {
            spot: count_per_machine(self, self.prices(spot).sold & self.open_offers) for spot in (False, True)
        }

    def lowest(self, use_spot: bool, allowed: Mask) -> Floats:
        """Cheapest known price of each machine over the allowed offers; infinite where none is known."""
        if allowed is self.open_offers:
            return self._open_lowest[use_spot]
        return lowest_price(self, self.prices(use_spot), allowed)

    def sold_count(self, use_spot: bool, allowed: Mask) -> Ints:
        """How many allowed places sell each machine."""
        if allowed is self.open_offers:
            return self._open_sold[use_spot]
        return count_per_machine(self, self.prices(use_spot).sold & allowed)

    def cloud_of(self, row: int) -> str:
        return self.clouds[int(self.places.cloud[self.place[row]])]

    def offer(self, row: int, use_spot: bool, zone: str | None = None) -> Offer:
        """Row `row` as a contract; `zone` replaces its zone."""
        number, place, prices = int(self.machine[row]), int(self.place[row]), self.prices(use_spot)
        machines = self.machines
        device = int(machines.accelerator[number])
        source = self.sources[int(prices.source[row])]
        return Offer(
            cloud=self.clouds[int(machines.cloud[number])],
            instance_type=machines.name[number],
            region=self.places.region[place],
            zone=self.places.zone[place] if zone is None else zone,
            vcpus=known(machines.vcpus[number]),
            memory_gib=known(machines.memory_gib[number]),
            accelerator=None if device == NO_ACCELERATOR else self.accelerators[device].name,
            accelerator_count=known(machines.accelerator_count[number]) or 0.0,
            accelerator_memory_gib=known(machines.accelerator_memory_gib[number]),
            use_spot=use_spot,
            price_per_hour=known(prices.price[row]),
            arch=machines.arch[number],
            source=source.code,
            as_of=source.as_of,
        )


def known(value: Any) -> float | None:
    """A number, or None for NaN."""
    number = float(value)
    return None if number != number else number


def lowest_price(snapshot: OfferSnapshot, prices: Prices, allowed: Mask) -> Floats:
    if not len(snapshot):
        return np.full(len(snapshot.machines), np.inf)
    usable = prices.sold & ~np.isnan(prices.price) & allowed
    return np.minimum.reduceat(np.where(usable, prices.price, np.inf), snapshot.machines.first_offer[:-1])


def count_per_machine(snapshot: OfferSnapshot, mask: Mask) -> Ints:
    if not len(snapshot):
        return np.zeros(len(snapshot.machines), dtype=np.int64)
    return np.add.reduceat(mask, snapshot.machines.first_offer[:-1], dtype=np.int64)


def snapshot_of(
    offers: Iterable[Offer],
    *,
    accelerators: Sequence[Accelerator] = (),
    divisible: bool = False,
    version: str = "",
) -> OfferSnapshot:
    """A snapshot from contracts: a provider's own offers, a user's price list, a test's small world."""
    rows = list(offers)
    clouds = sorted({offer.cloud for offer in rows})
    devices = _devices(rows, accelerators)
    device_number = {device.name: number for number, device in enumerate(devices)}
    cloud_number = {cloud: number for number, cloud in enumerate(clouds)}
    machine_keys = sorted({_machine_key(offer) for offer in rows})
    machine_number = {key: number for number, key in enumerate(machine_keys)}
    place_keys = sorted({(offer.cloud, offer.region, offer.zone) for offer in rows})
    place_number = {key: number for number, key in enumerate(place_keys)}
    rows.sort(
        key=lambda o: (machine_number[_machine_key(o)], place_number[o.cloud, o.region, o.zone], o.use_spot)
    )
    machine = np.array([machine_number[_machine_key(offer)] for offer in rows], dtype=np.int64)
    first = np.searchsorted(machine, np.arange(len(machine_keys) + 1))
    of_machine = [rows[row] for row in first[:-1].tolist()]
    sources = sorted({Source(offer.source, offer.as_of) for offer in rows}, key=lambda s: (s.code, s.as_of))
    source = np.array([sources.index(Source(offer.source, offer.as_of)) for offer in rows], dtype=np.int64)
    price = np.array([_number(offer.price_per_hour) for offer in rows], dtype=np.float64)
    spot = np.array([offer.use_spot for offer in rows], dtype=bool)
    return OfferSnapshot(
        clouds=clouds,
        machines=Machines(
            cloud=np.array([cloud_number[offer.cloud] for offer in of_machine], dtype=np.int64),
            name=[offer.instance_type for offer in of_machine],
            vcpus=_numbers(offer.vcpus for offer in of_machine),
            memory_gib=_numbers(offer.memory_gib for offer in of_machine),
            accelerator=np.array(
                [device_number[o.accelerator] if o.accelerator else NO_ACCELERATOR for o in of_machine],
                dtype=np.int64,
            ),
            accelerator_count=_numbers(offer.accelerator_count for offer in of_machine),
            accelerator_memory_gib=_numbers(
                offer.accelerator_memory_gib or _nominal(offer.accelerator, devices) for offer in of_machine
            ),
            arch=[offer.arch for offer in of_machine],
            first_offer=first,
        ),
        places=Places(
            cloud=np.array([cloud_number[key[0]] for key in place_keys], dtype=np.int64),
            region=[key[1] for key in place_keys],
            zone=[key[2] for key in place_keys],
            restricted=np.zeros(len(place_keys), dtype=bool),
        ),
        machine=machine,
        place=np.array([place_number[o.cloud, o.region, o.zone] for o in rows], dtype=np.int64),
        on_demand=Prices(np.where(spot, np.nan, price), ~spot, source),
        spot=Prices(np.where(spot, price, np.nan), spot, source),
        accelerators=devices,
        sources=sources or (Source(""),),
        version=version,
        divisible=divisible,
    )


def _machine_key(offer: Offer) -> tuple[Any, ...]:
    return (
        offer.cloud,
        offer.instance_type,
        *(-1.0 if value is None else value for value in (offer.vcpus, offer.memory_gib)),
        offer.accelerator or "",
        offer.accelerator_count,
        -1.0 if offer.accelerator_memory_gib is None else offer.accelerator_memory_gib,
        offer.arch,
    )


def _devices(rows: Sequence[Offer], given: Sequence[Accelerator]) -> list[Accelerator]:
    names = {device.name for device in given}
    new = sorted({offer.accelerator for offer in rows if offer.accelerator} - names)
    return [*given, *(Accelerator(name) for name in new)]


def _nominal(name: str | None, devices: Sequence[Accelerator]) -> float | None:
    return next((device.memory_gib for device in devices if device.name == name), None)


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _numbers(values: Iterable[float | None]) -> Floats:
    return np.array([_number(value) for value in values], dtype=np.float64)
