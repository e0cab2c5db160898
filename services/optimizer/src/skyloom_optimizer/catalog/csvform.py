"""The CSV form of the catalog: the tables as files, read into columns and written back.

The columns and their meaning are in docs/catalog.md. Columns that a file has beyond those are ignored.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

from skyloom_optimizer.catalog import columns
from skyloom_optimizer.catalog.columns import Column, Container, IndexColumn, NumberColumn, Table, TextColumn

PLACE = ("cloud", "region", "zone")
MACHINE = (
    "cloud",
    "instance_type",
    "vcpus",
    "memory_gib",
    "accelerator_name",
    "accelerator_count",
    "accelerator_memory_gib",
    "arch",
)
PRICE = ("price_usd_hour", "spot_price_usd_hour", "price_source", "spot_source")
OFFERINGS = (*PLACE, *MACHINE[1:], *PRICE)

PLAIN_TABLES: dict[str, tuple[str, ...]] = {
    "accelerators": (
        "name",
        "aliases",
        "memory_gib",
        "vendor",
        "fp16_bf16_dense_tflops",
        "tflops_source",
        "cuda_compute_capability",
    ),
    "regions": ("cloud", "region", "display_name", "city", "country", "continent", "latitude", "longitude"),
    "zones": PLACE,
    "spot_interruption": (
        "cloud",
        "region",
        "instance_type",
        "band_low_pct",
        "band_high_pct",
        "savings_pct",
    ),
    "egress": ("cloud", "from_scope", "to_scope", "usd_per_gib", "tier_start_gib", "source"),
    "gcp_accelerator_components": (
        "cloud",
        "region",
        "zone",
        "accelerator_name",
        "accelerator_count",
        "component_price_usd_hour",
        "component_spot_price_usd_hour",
        "price_source",
    ),
    "sources": ("code", "kind", "as_of", "licence", "description"),
}
NUMBERS = frozenset(
    {
        "vcpus",
        "memory_gib",
        "accelerator_count",
        "accelerator_memory_gib",
        "price_usd_hour",
        "spot_price_usd_hour",
        "fp16_bf16_dense_tflops",
        "latitude",
        "longitude",
        "band_low_pct",
        "band_high_pct",
        "savings_pct",
        "usd_per_gib",
        "tier_start_gib",
        "component_price_usd_hour",
        "component_spot_price_usd_hour",
    }
)

DOUBT_BELOW = 0.2
DOUBT_NEEDS_PRICES = 4

Row = tuple[str, ...]


class BadSource(ValueError):
    """A source file cannot be used; the text names file, line and column."""


def read_source(folder: Path, fallback: Path) -> dict[str, Table]:
    """All tables from a folder of CSV files; a file that is absent there is taken from `fallback`."""
    tables = {
        name: _columns(name, wanted, sorted(_rows(_find(name, folder, fallback), wanted)))
        for name, wanted in PLAIN_TABLES.items()
    }
    path = _find("offerings", folder, fallback)
    tables |= offer_tables(list(_rows(path, OFFERINGS)), path.name)
    _check_sources(path, tables)
    return tables


def write_source(container: Container, folder: Path) -> list[Path]:
    """Writes every table as CSV; building from the result gives the same container."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [_write(folder / "offerings.csv", OFFERINGS, sorted(offer_rows(container)))]
    for name, wanted in PLAIN_TABLES.items():
        table = container.table(name)
        rows = zip(*(texts(table[key]) for key in wanted), strict=True)
        written.append(_write(folder / f"{name}.csv", wanted, list(rows)))
    return written


def _find(name: str, folder: Path, fallback: Path) -> Path:
    for path in (folder / f"{name}.csv", folder / f"{name}.csv.gz", fallback / f"{name}.csv"):
        if path.is_file():
            return path
    raise BadSource(f"{folder}: neither {name}.csv nor {name}.csv.gz is there")


def _rows(path: Path, wanted: Sequence[str]) -> Iterator[Row]:
    with _open_text(path) as stream:
        reader = csv.reader(stream)
        header = next(reader, [])
        missing = [name for name in wanted if name not in header]
        if missing:
            raise BadSource(f"{path.name}: line 1: the column {missing[0]!r} is missing")
        places = [header.index(name) for name in wanted]
        for row in reader:
            if len(row) != len(header):
                raise BadSource(
                    f"{path.name}: line {reader.line_num}: {len(row)} values for {len(header)} columns"
                )
            yield tuple(row[place] for place in places)


def _open_text(path: Path) -> io.TextIOBase:
    if path.suffix == ".gz":
        return io.TextIOWrapper(gzip.open(path), encoding="utf-8", newline="")
    return open(path, encoding="utf-8", newline="")


def _columns(name: str, wanted: Sequence[str], rows: Sequence[Row]) -> Table:
    table: Table = {}
    for position, key in enumerate(wanted):
        values = [row[position] for row in rows]
        try:
            table[key] = columns.number_column(values) if key in NUMBERS else columns.text_column(values)
        except ValueError as error:
            raise BadSource(f"{name}: column {key}: {error}") from error
    return table


def plain_table(name: str, rows: Sequence[Row]) -> Table:
    """One of PLAIN_TABLES from its sorted rows."""
    return _columns(name, PLAIN_TABLES[name], rows)


def length(table: Table) -> int:
    column = next(iter(table.values()))
    return len(column.values) if isinstance(column, IndexColumn) else len(column.codes)


def offer_tables(rows: Sequence[Row], origin: str = "offers") -> dict[str, Table]:
    """Rows become what is sold (machines), where (places), and prices that point at both (offers)."""
    place_of, machine_of = [row[:3] for row in rows], [(row[0], *row[3:10]) for row in rows]
    keys = {(place, machine[1]) for place, machine in zip(place_of, machine_of, strict=True)}
    if len(keys) != len(rows):
        raise BadSource(
            f"{origin}: {len(rows) - len(keys)} rows repeat a cloud, region, zone and instance_type"
        )
    places, machines = sorted(set(place_of)), sorted(set(machine_of))
    place_number = {key: number for number, key in enumerate(places)}
    machine_number = {key: number for number, key in enumerate(machines)}
    offers = sorted(
        (machine_number[machine], place_number[place], row[10:])
        for machine, place, row in zip(machine_of, place_of, rows, strict=True)
    )
    table = _columns("offerings", PRICE, [prices for _, _, prices in offers])
    table["machine"] = columns.index_column([machine for machine, _, _ in offers], len(machines))
    table["place"] = columns.index_column([place for _, place, _ in offers], len(places))
    doubtful = _doubtful_rows(table)
    return {
        "offers": table,
        "machines": _columns("offerings", MACHINE, machines),
        "places": _columns("offerings", PLACE, places),
        "doubtful": {"offer": columns.index_column(doubtful, len(offers))},
    }


def _doubtful_rows(offers: Table) -> list[int]:
    """Offers whose price is a fraction of what the same machine costs everywhere else.

    A slip in the source, such as a misplaced decimal point: kept as a fact, but nothing is ranked by it.
    """
    machine, price = offers["machine"], offers["price_usd_hour"]
    assert isinstance(machine, IndexColumn) and isinstance(price, NumberColumn)
    by_machine: dict[int, list[tuple[int, float]]] = {}
    for row, (number, value) in enumerate(zip(machine.values.tolist(), price.floats.tolist(), strict=True)):
        if value == value:
            by_machine.setdefault(number, []).append((row, value))
    found = []
    for priced in by_machine.values():
        if len(priced) >= DOUBT_NEEDS_PRICES:
            usual = median(value for _, value in priced)
            found += [row for row, value in priced if value < DOUBT_BELOW * usual]
    return sorted(found)


def _check_sources(path: Path, tables: dict[str, Table]) -> None:
    """A price without provenance is refused: every code that is used must be explained."""
    known = {*texts(tables["sources"]["code"]), ""}
    for key in ("price_source", "spot_source"):
        column = tables["offers"][key]
        assert isinstance(column, TextColumn)
        unknown = [code for code in column.pool if code not in known]
        if unknown:
            raise BadSource(f"{path.name}: {key} {unknown[0]!r} is not in sources.csv")


def offer_rows(container: Container) -> Iterator[Row]:
    """The offers as rows of the CSV form (OFFERINGS)."""
    offers = container.table("offers")
    machines, places = container.table("machines"), container.table("places")
    machine_rows = list(zip(*(texts(machines[key]) for key in MACHINE), strict=True))
    place_rows = list(zip(*(texts(places[key]) for key in PLACE), strict=True))
    prices = zip(*(texts(offers[key]) for key in PRICE), strict=True)
    for machine, place, price in zip(
        _numbers(offers["machine"]), _numbers(offers["place"]), prices, strict=True
    ):
        yield (*place_rows[place], *machine_rows[machine][1:], *price)


def _numbers(column: Column) -> list[int]:
    assert isinstance(column, IndexColumn)
    return list(column.values.tolist())


def texts(column: Column) -> list[str]:
    """The values of a column as they stand in the CSV form."""
    if isinstance(column, TextColumn):
        return column.values()
    assert isinstance(column, NumberColumn)
    return column.texts()


def _write(path: Path, header: Sequence[str], rows: Sequence[Row]) -> Path:
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
    return path
