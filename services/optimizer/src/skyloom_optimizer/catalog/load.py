"""Reads the container: the snapshot that plans are made from, and the tables beside it.

Only what planning needs is decoded at once; regions, egress and interruption bands are read when asked for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from skyloom_optimizer.catalog.columns import Container, IndexColumn, NumberColumn, Table, TextColumn
from skyloom_optimizer.market import Market, market_of
from skyloom_optimizer.names import Accelerator
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

CONTAINER = Path(__file__).parent / "data" / "catalog.skycol"
_TPU = "tpu-"
_RESTRICTED = {
    "aws": re.compile(r"us-gov-|us-iso|cn-|[^/]+/\w+-[a-z]{3}\d+-az\d|[a-z]{2}-[a-z]+-\d-[a-z]{3}-\d/"),
    "azure": re.compile(r"usgov|usdod|att[a-z]+\d|china"),
    "gcp": re.compile(r"(us-east2|us-east7|europe-west5)/"),
}


@dataclass(frozen=True)
class Region:
    cloud: str
    name: str
    display_name: str
    city: str
    country: str
    continent: str
    latitude: float | None
    longitude: float | None


@dataclass(frozen=True)
class EgressTier:
    """From `tier_start_gib` a month on, a GiB from one scope to the other costs this."""

    cloud: str
    from_scope: str
    to_scope: str
    source: str
    price_per_gib: float
    tier_start_gib: float


@dataclass(frozen=True)
class InterruptionBand:
    """Share of spot instances of this type interrupted in a month, in per cent."""

    cloud: str
    region: str
    instance_type: str
    low_percent: float
    high_percent: float


@dataclass(frozen=True)
class SourceInfo:
    """Where prices come from. `kind`: quoted, converted (currency or period), computed."""

    code: str
    kind: str
    as_of: str
    licence: str
    description: str


class Catalog:
    """An opened container."""

    def __init__(self, container: Container) -> None:
        self._container = container
        self._given: OfferSnapshot | None = None
        self.version: str = container.sha256[:12]

    def with_snapshot(self, snapshot: OfferSnapshot) -> Catalog:
        """The same facts with other offers, such as own prices laid over."""
        other = Catalog(self._container)
        other._given = snapshot
        other.version = snapshot.version
        return other

    @cached_property
    def snapshot(self) -> OfferSnapshot:
        return self._given or _snapshot(self._container, self.version)

    @cached_property
    def market(self) -> Market:
        """What is known beside prices, for these offers."""
        return market_of(self)

    def warm(self) -> None:
        """Computes what the first plan would otherwise wait for."""
        snapshot = self.snapshot
        for use_spot in (False, True):
            snapshot.lowest(use_spot, snapshot.open_offers)
            snapshot.sold_count(use_spot, snapshot.open_offers)
        self.market.band_numbers(snapshot)

    @cached_property
    def sources(self) -> tuple[SourceInfo, ...]:
        keys = ("code", "kind", "as_of", "licence", "description")
        return tuple(SourceInfo(*row) for row in _text_rows(self._container.table("sources"), keys))

    @cached_property
    def regions(self) -> tuple[Region, ...]:
        table = self._container.table("regions")
        texts = _text_rows(table, ("cloud", "region", "display_name", "city", "country", "continent"))
        where = _number_rows(table, ("latitude", "longitude"))
        return tuple(Region(*text, *map(_known, at)) for text, at in zip(texts, where, strict=True))

    @cached_property
    def egress(self) -> tuple[EgressTier, ...]:
        table = self._container.table("egress")
        texts = _text_rows(table, ("cloud", "from_scope", "to_scope", "source"))
        tiers = _number_rows(table, ("usd_per_gib", "tier_start_gib"))
        return tuple(EgressTier(*text, *tier) for text, tier in zip(texts, tiers, strict=True))

    @cached_property
    def interruptions(self) -> dict[tuple[str, str, str], InterruptionBand]:
        """By (cloud, region, instance type)."""
        table = self._container.table("spot_interruption")
        keys = _text_rows(table, ("cloud", "region", "instance_type"))
        bands = _number_rows(table, ("band_low_pct", "band_high_pct"))
        return {key: InterruptionBand(*key, *band) for key, band in zip(keys, bands, strict=True)}


def load_catalog(path: Path = CONTAINER) -> Catalog:
    """Raises CorruptContainer, or OSError where the file cannot be read."""
    return Catalog(Container(path.read_bytes()))


def _snapshot(container: Container, version: str) -> OfferSnapshot:
    offers = container.table("offers")
    machines, clouds, devices = _machines(container, _index(offers["machine"]))
    places = _places(container, clouds)
    codes, sources = _sources(container, offers)
    machine = _index(offers["machine"])
    cloud_of_offer = machines.cloud[machine]
    doubtful = _index(container.table("doubtful")["offer"])
    return OfferSnapshot(
        clouds=clouds,
        machines=machines,
        places=places,
        machine=machine,
        place=_index(offers["place"]),
        on_demand=_prices(offers["price_usd_hour"], doubtful, codes["price_source"], cloud_of_offer),
        spot=_prices(offers["spot_price_usd_hour"], doubtful, codes["spot_source"], cloud_of_offer),
        accelerators=devices,
        sources=sources,
        known_zones=_zones(container),
        version=version,
    )


def _places(container: Container, clouds: list[str]) -> Places:
    table = container.table("places")
    cloud = _text(table["cloud"])
    rows = _text_rows(table, ("cloud", "region", "zone"))
    return Places(
        cloud=np.array([clouds.index(name) for name in cloud.pool], dtype=np.int64)[cloud.codes],
        region=[row[1] for row in rows],
        zone=[row[2] for row in rows],
        restricted=np.array([is_restricted(*row) for row in rows], dtype=bool),
    )


def is_restricted(cloud: str, region: str, zone: str) -> bool:
    """Government clouds, carrier edges, opt-in local zones and names that are not public regions."""
    pattern = _RESTRICTED.get(cloud)
    return pattern is not None and pattern.match(f"{region}/{zone}") is not None


def _machines(container: Container, machine: Ints) -> tuple[Machines, list[str], list[Accelerator]]:
    table = container.table("machines")
    cloud, name = _text(table["cloud"]), _text(table["instance_type"]).values()
    devices, device_of = _accelerators(container, _text(table["accelerator_name"]))
    nominal = np.array([_nan(device.memory_gib) for device in devices] + [np.nan])
    reported = _floats(table["accelerator_memory_gib"])
    memory = nominal[device_of]
    machines = Machines(
        cloud=cloud.codes.astype(np.int64),
        name=name,
        vcpus=_floats(table["vcpus"]),
        memory_gib=_floats(table["memory_gib"]),
        accelerator=device_of,
        accelerator_count=np.nan_to_num(_floats(table["accelerator_count"])),
        accelerator_memory_gib=np.where(np.isnan(memory), reported, memory),
        arch=_text(table["arch"]).values(),
        first_offer=np.searchsorted(machine, np.arange(len(name) + 1)),
    )
    return machines, cloud.pool, devices


def _accelerators(container: Container, used: TextColumn) -> tuple[list[Accelerator], Ints]:
    """The known devices, then those that only offers name (TPU slices); and the device of each machine."""
    table = container.table("accelerators")
    memory = _floats(table["memory_gib"]).tolist()
    rows = _text_rows(table, ("name", "aliases", "vendor"))
    devices = [
        Accelerator(name, tuple(aliases.split(";")) if aliases else (), _known(gib), vendor)
        for (name, aliases, vendor), gib in zip(rows, memory, strict=True)
    ]
    number = {device.name: position for position, device in enumerate(devices)}
    for name in used.pool:
        if name and name not in number:
            number[name] = len(devices)
            devices.append(Accelerator(name, vendor="Google" if name.startswith(_TPU) else ""))
    pool = np.array([number[name] if name else NO_ACCELERATOR for name in used.pool], dtype=np.int64)
    return devices, pool[used.codes]


def _sources(container: Container, offers: Table) -> tuple[dict[str, Ints], list[Source]]:
    table = container.table("sources")
    dates = dict(_text_rows(table, ("code", "as_of")))
    names = sorted({"", *dates})
    number = {name: position for position, name in enumerate(names)}
    codes = {}
    for key in ("price_source", "spot_source"):
        column = _text(offers[key])
        codes[key] = np.array([number[name] for name in column.pool], dtype=np.uint8)[column.codes]
    return codes, [Source(name, dates.get(name, "")) for name in names]


def _prices(column: Any, doubtful: Ints, source: Ints, cloud_of_offer: Ints) -> Prices:
    """A cloud that lists no price at all of a capacity type does not sell it; a single gap is only a gap."""
    price = _floats(column).copy()
    price[doubtful] = np.nan
    sells = (
        np.bincount(cloud_of_offer[~np.isnan(price)], minlength=int(cloud_of_offer.max(initial=0)) + 1) > 0
    )
    sold: Mask = sells[cloud_of_offer]
    return Prices(price, sold, source)


def _zones(container: Container) -> dict[tuple[str, str], frozenset[str]]:
    found: dict[tuple[str, str], set[str]] = {}
    for cloud, region, zone in _text_rows(container.table("zones"), ("cloud", "region", "zone")):
        found.setdefault((cloud, region), set()).add(zone)
    return {key: frozenset(zones) for key, zones in found.items()}


def _text_rows(table: Table, keys: tuple[str, ...]) -> list[Any]:
    return list(zip(*(_text(table[key]).values() for key in keys), strict=True))


def _number_rows(table: Table, keys: tuple[str, ...]) -> list[Any]:
    return list(zip(*(_floats(table[key]).tolist() for key in keys), strict=True))


def _text(column: Any) -> TextColumn:
    if not isinstance(column, TextColumn):
        raise TypeError("this column does not hold text")
    return column


def _floats(column: Any) -> Floats:
    if not isinstance(column, NumberColumn):
        raise TypeError("this column does not hold numbers")
    return column.floats


def _index(column: Any) -> Ints:
    if not isinstance(column, IndexColumn):
        raise TypeError("this column does not hold row numbers")
    return column.values


def _known(value: float) -> float | None:
    return None if value != value else value


def _nan(value: float | None) -> float:
    return float("nan") if value is None else value
