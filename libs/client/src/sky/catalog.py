"""Accelerators and their offers, from the server's catalog."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from sky.connect import connect
from sky.records import InstanceTypeInfo
from skyloom_common.contracts.plan import AcceleratorOffer, AcceleratorSummary

CATALOG_SCHEMA_VERSION = "v8"
"""Of the catalog format that programs written against the peer may ask for."""


class constants:  # noqa: N801
    """The same at its old address: sky.clouds.service_catalog.constants."""

    CATALOG_SCHEMA_VERSION = CATALOG_SCHEMA_VERSION


def list_accelerators(
    gpus_only: bool = True,
    name_filter: str | None = None,
    region_filter: str | None = None,
    quantity_filter: int | None = None,
    clouds: str | Sequence[str] | None = None,
    all_regions: bool = False,
    require_price: bool = True,
    case_sensitive: bool = True,
) -> dict[str, list[InstanceTypeInfo]]:
    """Accelerator name to its offers, the cheapest first. `name_filter` is a regular expression."""
    api = connect()
    only = _names(clouds)
    found: dict[str, list[InstanceTypeInfo]] = {}
    for summary in _matching(api.accelerators(all=True).summaries, gpus_only, name_filter, case_sensitive):
        query = {
            "name": summary.accelerator,
            "count": quantity_filter,
            "region": region_filter,
            "all_regions": all_regions or None,
        }
        offers = api.accelerators(**query).offers
        rows = [
            _info(offer)
            for offer in offers
            if offer.accelerator == summary.accelerator
            and (only is None or offer.cloud in only)
            and (
                not require_price or offer.price_per_hour is not None or offer.spot_price_per_hour is not None
            )
        ]
        if rows:
            found[summary.accelerator] = rows
    return found


def accelerator_counts(
    gpus_only: bool = True,
    name_filter: str | None = None,
    quantity_filter: int | None = None,
    clouds: str | Sequence[str] | None = None,
) -> dict[str, list[float]]:
    """Accelerator name to the counts in which it is sold."""
    only = _names(clouds)
    out = {}
    for row in _matching(connect().accelerators(all=True).summaries, gpus_only, name_filter, True):
        if only is not None and not only & set(row.clouds):
            continue
        counts = sorted(count for count in row.counts if quantity_filter in (None, count))
        if counts:
            out[row.accelerator] = counts
    return out


def _names(clouds: str | Sequence[str] | None) -> set[str] | None:
    if clouds is None:
        return None
    return {name.lower() for name in ([clouds] if isinstance(clouds, str) else clouds)}


def _matching(
    rows: Iterable[AcceleratorSummary], gpus_only: bool, name_filter: str | None, case_sensitive: bool
) -> list[AcceleratorSummary]:
    pattern = re.compile(name_filter or "", 0 if case_sensitive else re.IGNORECASE)
    return [
        row
        for row in rows
        if pattern.search(row.accelerator) and not (gpus_only and row.family == "google_tpu")
    ]


def _info(offer: AcceleratorOffer) -> InstanceTypeInfo:
    return InstanceTypeInfo(
        cloud=offer.cloud, instance_type=offer.instance_type, accelerator_name=offer.accelerator,
        accelerator_count=offer.count, cpu_count=offer.vcpus, device_memory=offer.accelerator_memory_gib,
        memory=offer.memory_gib, price=offer.price_per_hour, spot_price=offer.spot_price_per_hour, region=offer.region,
    )  # fmt: skip
