"""AWS without an account: the public price list files, a CSV for each region, read line by line (hundreds of megabytes).

They hold on-demand prices and sizes by region. They know no zones, no spot prices and not the name of a device: those stay as
they were known, as do types that the list leaves out (sold by the block only, or only in zones of their own).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from skyloom_optimizer.refresh.model import FeedError, FeedInfo, FeedRow, Known
from skyloom_optimizer.refresh.transport import FeedHttp, field

_INDEX = "/offers/v1.0/aws/AmazonEC2/current/region_index.json"
_FIRST = "SKU"
_WANTED = {
    "TermType": ("OnDemand",),
    "Unit": ("Hrs",),
    "Operating System": ("Linux",),
    "Tenancy": ("Shared",),
    "Pre Installed S/W": ("NA",),
    "CapacityStatus": ("Used",),
    "Location Type": ("AWS Region",),
    "MarketOption": ("", "OnDemand"),
}
_OPTIONAL = frozenset({"Location Type", "MarketOption"})
_NEEDED = ("PricePerUnit", "Currency", "Instance Type", "vCPU", "Memory")
# Zones near cities and at carriers (use1-atl2-az1, use1-wl1-bos-wlz1) have prices of their own.
_ORDINARY_ZONE = re.compile(r"([a-z]+\d+-az\d+)?")
_NUMBER = re.compile(r"[\d,]+(\.\d+)?")


class AwsBulkFeed:
    info = FeedInfo(
        "aws",
        "aws-bulk",
        "AWS price list files (public), on-demand, Linux, shared tenancy; no spot prices",
        stays=("*",),
    )

    def __init__(self, http: FeedHttp, url: str) -> None:
        self._http = http
        self._url = url.rstrip("/")
        self._known = Known()
        self._files: dict[str, str] = {}

    def parts(self, known: Known, all_regions: bool) -> Sequence[str]:
        self._known = known
        url = self._url + _INDEX
        for region, item in field(self._http.get(url), "regions", dict, url).items():
            path = field(item, "currentVersionUrl", str, url)
            self._files[region] = self._url + path.removesuffix(".json") + ".csv"
        listed = sorted(self._files)
        wanted = set(known.every_region if all_regions else known.regions)
        return [region for region in listed if all_regions or region in wanted]

    def close(self) -> None:
        self._http.close()

    def fetch(self, part: str) -> Sequence[FeedRow]:
        url = self._files.get(part)
        if url is None:
            raise FeedError(f"{self._url}{_INDEX} does not list {part}")
        found: dict[str, dict[str, str]] = {}
        for item in price_rows(self._http.lines(url), url):
            found.setdefault(item["Instance Type"], item)
        rows = []
        for name, item in sorted(found.items()):
            zones = [zone for zone in self._known.zones_of(part, name) if _ORDINARY_ZONE.fullmatch(zone)]
            rows += [_row(part, name, zone, item) for zone in zones or [""]]
        return rows


def price_rows(lines: Iterable[str], where: str) -> Iterator[dict[str, str]]:
    """Machines by the hour. Raises FeedError for a file that is not the one that is documented."""
    reader = csv.reader(_after_preface(lines, where))
    header = next(reader, [])
    missing = [name for name in (*_WANTED, *_NEEDED) if name not in header and name not in _OPTIONAL]
    if missing:
        raise FeedError(f"{where}: the column {missing[0]!r} is missing")
    position = {name: number for number, name in enumerate(header)}
    wanted = [(position[name], values) for name, values in _WANTED.items() if name in position]
    for row in reader:
        if len(row) != len(header):
            raise FeedError(f"{where}: line {reader.line_num} has {len(row)} columns, not {len(header)}")
        if all(row[column] in values for column, values in wanted) and row[position["Instance Type"]]:
            yield {name: row[number] for name, number in position.items()}


def _after_preface(lines: Iterable[str], where: str) -> Iterator[str]:
    """The preface is a few lines of a name and a value each; the table begins with the line of its columns."""
    found = False
    for number, line in enumerate(lines):
        found = found or line.startswith((_FIRST, f'"{_FIRST}"'))
        if found:
            yield line
        elif number > 20:
            break
    if not found:
        raise FeedError(f"{where} is not a price list file: no line begins with {_FIRST}")


def _row(region: str, name: str, zone: str, item: Mapping[str, str]) -> FeedRow:
    return FeedRow(
        region=region,
        instance_type=name,
        zone=zone,
        vcpus=_number(item["vCPU"]),
        memory_gib=_number(item["Memory"]),
        arch=_arch(item),
        price=_price(name, item["PricePerUnit"]),
        currency=item["Currency"],
        **_no_device(item),
    )


def _no_device(item: Mapping[str, str]) -> dict[str, Any]:
    """That there is none can be told; what it is cannot."""
    if item.get("GPU") in ("", "0") and item.get("Instance Family", "") in (
        "General purpose",
        "Compute optimized",
        "Memory optimized",
        "Storage optimized",
    ):
        return {"accelerator": "", "accelerator_count": 0.0}
    return {}


def _arch(item: Mapping[str, str]) -> str:
    processor = item.get("Physical Processor", "")
    if not processor or "Apple" in processor:
        return ""
    return "arm64" if "Graviton" in processor else "x86_64"


def _number(text: str) -> float | None:
    """`192`, `2,048 GiB`; `NA` is not known."""
    match = _NUMBER.match(text.strip())
    return float(match.group().replace(",", "")) if match else None


def _price(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise FeedError(f"AWS price list: PricePerUnit of {name} is {text!r}, which is not a price") from None
