"""Fetched offers into catalog rows, and catalog rows into a container. Pure: rows in, rows or bytes out.

A row is what the CSV form has (csvform.OFFERINGS), as texts. What a feed does not say (sizes, a missing price) stays as it
was known, with its own source and date: a refresh adds knowledge and never thins it out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from skyloom_optimizer.catalog import columns, csvform
from skyloom_optimizer.catalog.columns import Container
from skyloom_optimizer.catalog.csvform import Row
from skyloom_optimizer.names import Accelerator, AcceleratorNames
from skyloom_optimizer.refresh.model import WHOLE_CLOUD, FeedInfo, FeedRow

_ZONE, _TYPE, _PRICE, _SPOT, _SOURCE, _SPOT_SOURCE = 2, 3, 10, 11, 12, 13
_SPECS = slice(4, 10)
_NO_SPECS = ("", "", "", "", "", "")
SourceRow = tuple[str, str, str, str, str]
"""code, kind, as_of, licence, description"""


@dataclass(frozen=True)
class Accepted:
    """A part of a cloud that was taken: finished rows, and the sources that their prices name.

    `source`: the one of the prices that are new; others are earlier ones that were kept.
    """

    cloud: str
    part: str
    at: float
    source: str
    rows: Sequence[Row]
    sources: Sequence[SourceRow] = ()


@dataclass
class CloudRows:
    """The catalog's rows of one cloud before a refresh."""

    cloud: str
    rows: list[Row]
    devices: AcceleratorNames
    specs: dict[str, Row] = field(default_factory=dict)
    _regions: dict[str, list[Row]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        counted: dict[str, Counter[Row]] = {}
        for row in self.rows:
            counted.setdefault(row[_TYPE], Counter())[row[_SPECS]] += 1
            self._regions.setdefault(row[1], []).append(row)
        self.specs = {name: counts.most_common(1)[0][0] for name, counts in counted.items()}

    def of_part(self, part: str) -> list[Row]:
        return self.rows if part == WHOLE_CLOUD else self._regions.get(part, [])


def prices_of(rows: Iterable[Row]) -> dict[tuple[str, str, str, str], tuple[float | None, float | None]]:
    """(cloud, region, zone, instance type) to the prices (on-demand, spot)."""
    return {row[:4]: (_number(row[_PRICE]), _number(row[_SPOT])) for row in rows}  # type: ignore[misc]


def finished(before: CloudRows, info: FeedInfo, part: str, rows: Iterable[FeedRow], source: str) -> list[Row]:
    """The feed's rows as catalog rows of this part."""
    earlier = {(row[1], row[_ZONE], row[_TYPE]): row for row in before.of_part(part)}
    return [_finished(before, info.cloud, row, earlier, source) for row in rows]


def staying(info: FeedInfo, rows: Iterable[FeedRow], earlier: Sequence[Row]) -> set[Row]:
    """Rows that this feed need not list to say that they are still there."""
    if not info.stays and not info.stays_where_none:
        return set()
    listed, zones = set(), set()
    for row in rows:
        listed.add((row.region, row.zone, row.instance_type))
        zones |= {
            (row.zone, pattern)
            for pattern in info.stays_where_none
            if fnmatchcase(row.instance_type, pattern)
        }

    def stays(row: Row) -> bool:
        if (row[1], row[_ZONE], row[_TYPE]) in listed:
            return False
        silent = (pattern for pattern in info.stays_where_none if (row[_ZONE], pattern) not in zones)
        return any(fnmatchcase(row[_TYPE], pattern) for pattern in (*info.stays, *silent))

    return {row for row in earlier if stays(row)}


def _finished(
    before: CloudRows, cloud: str, row: FeedRow, earlier: Mapping[tuple[str, str, str], Row], source: str
) -> Row:
    old = earlier.get((row.region, row.zone, row.instance_type))
    specs = _specs(row, before.specs.get(row.instance_type, _NO_SPECS), before.devices)
    price, price_source = _price(row.price, old, _PRICE, source)
    spot, spot_source = _price(row.spot_price, old, _SPOT, source)
    if spot and price and float(spot) > float(price):
        spot, spot_source = "", ""
    return (
        cloud, row.region, row.zone, row.instance_type, *specs, price, spot, price_source, spot_source,
    )  # fmt: skip


def _price(now: float | None, old: Row | None, column: int, source: str) -> tuple[str, str]:
    if now is not None:
        return number_text(now), source
    return ("", "") if old is None else (old[column], old[column + 2])


def _specs(row: FeedRow, old: Row, devices: AcceleratorNames) -> Row:
    """A device keeps the name that it has in the catalog: the same thing must not get a second one."""
    vcpus, memory, name, count, device_memory, arch = old
    if row.accelerator is not None and not _same_device(row, name, count, device_memory):
        name = canonical(row.accelerator, row.accelerator_memory_gib, devices)
        count = _text(row.accelerator_count) if name else ""
        device_memory = _text(row.accelerator_memory_gib) if name else ""
    if name and not device_memory:
        device_memory = _text(row.accelerator_memory_gib)
    return (
        _text(row.vcpus) or vcpus, _text(row.memory_gib) or memory, name, count, device_memory, row.arch or arch,
    )  # fmt: skip


def _same_device(row: FeedRow, name: str, count: str, memory: str) -> bool:
    """The count is the same, and the memory not another: sellers round it in their own ways."""
    if not name or _number(count) != row.accelerator_count:
        return False
    before, now = _number(memory), row.accelerator_memory_gib
    return not before or not now or abs(now - before) <= 0.2 * before


def canonical(name: str, memory_gib: float | None, devices: AcceleratorNames) -> str:
    """The catalog's name of a device that a cloud calls `name`; its own where the catalog does not know it."""
    bare = name.strip()
    for brand in ("NVIDIA ", "Tesla ", "GeForce "):
        bare = bare.removeprefix(brand)
    sized = [f"{bare}-{memory_gib:.0f}GB", f"{bare} {memory_gib:.0f}GB"] if memory_gib else []
    for text in (*sized, bare, name.strip()):
        found = devices.find(text, 1.0)
        if found is not None and found.devices and (text in sized or len(found.devices) == 1):
            return devices.name_of(found.devices[0])
    return bare.replace(" ", "")


def number_text(value: float) -> str:
    """Six decimals are enough for a price; trailing zeros are not content."""
    return f"{value:.6f}".rstrip("0").rstrip(".")


def _text(value: float | None) -> str:
    return "" if value is None or value < 0 else number_text(value)


def _number(text: str) -> float | None:
    return float(text) if text else None


# --- the container ---


def devices_of(container: Container) -> AcceleratorNames:
    table = container.table("accelerators", ("name", "aliases"))
    names, aliases = (csvform.texts(table[key]) for key in ("name", "aliases"))
    known = [
        Accelerator(name, tuple(text.split(";")) if text else ())
        for name, text in zip(names, aliases, strict=True)
    ]
    return AcceleratorNames(known)


def merged(base: Container, accepted: Sequence[Accepted], meta: Mapping[str, object]) -> bytes:
    """The base with the accepted parts in place of its own; a container's bytes."""
    covered = {(item.cloud, item.part) for item in accepted}
    whole = {cloud for cloud, part in covered if part == WHOLE_CLOUD}
    rows = [
        row for row in csvform.offer_rows(base) if row[0] not in whole and (row[0], row[1]) not in covered
    ]
    for item in accepted:
        rows += item.rows
    tables = {name: base.table(name) for name in base.names() if name != "doubtful"}
    tables |= csvform.offer_tables(rows)
    tables["sources"] = _sources(base, accepted, rows)
    tables["zones"] = _zones(base, accepted)
    counts = {name: csvform.length(table) for name, table in sorted(tables.items())}
    return columns.pack(tables, {**base.meta, **meta, "rows": counts})


def _sources(base: Container, accepted: Sequence[Accepted], rows: Sequence[Row]) -> columns.Table:
    """Those of the base, and those of refreshes that a price still names."""
    used = {row[_SOURCE] for row in rows} | {row[_SPOT_SOURCE] for row in rows}
    table = base.table("sources")
    keys = csvform.PLAIN_TABLES["sources"]
    known: dict[str, tuple[str, ...]] = {
        row[0]: row for row in zip(*(csvform.texts(table[key]) for key in keys), strict=True)
    }
    known |= {source[0]: source for item in accepted for source in item.sources if source[0] in used}
    return csvform.plain_table("sources", sorted(known.values()))


def _zones(base: Container, accepted: Sequence[Accepted]) -> columns.Table:
    keys = csvform.PLAIN_TABLES["zones"]
    table = base.table("zones")
    known = set(zip(*(csvform.texts(table[key]) for key in keys), strict=True))
    known |= {(row[0], row[1], row[2]) for item in accepted for row in item.rows if row[1] and row[2]}
    return csvform.plain_table("zones", sorted(known))
