"""Counts, ages and origins of a catalog, for people who ask how far to trust it. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from skyloom_common.contracts.catalog import CatalogCloud, CatalogInfo, CatalogSource
from skyloom_optimizer.catalog.ages import age_in_days
from skyloom_optimizer.catalog.load import Catalog
from skyloom_optimizer.snapshot import NO_ACCELERATOR, OfferSnapshot, Prices


def catalog_info(
    catalog: Catalog, now: float | None = None, refreshed: Mapping[str, float] | None = None
) -> CatalogInfo:
    """`now` gives ages, `refreshed` when a cloud was last asked itself (both Unix seconds)."""
    snapshot = catalog.snapshot
    devices = snapshot.machines.accelerator
    return CatalogInfo(
        version=catalog.version,
        offers=len(snapshot),
        instance_types=len(snapshot.machines),
        accelerators=len(np.unique(devices[devices != NO_ACCELERATOR])),
        clouds=cloud_infos(catalog, now, refreshed or {}),
        sources=tuple(
            CatalogSource(item.code, item.kind, item.as_of, item.licence, item.description)
            for item in catalog.sources
        ),
    )


def cloud_infos(
    catalog: Catalog, now: float | None, refreshed: Mapping[str, float]
) -> tuple[CatalogCloud, ...]:
    snapshot = catalog.snapshot
    return tuple(
        _cloud(snapshot, number, now, refreshed.get(name)) for number, name in enumerate(snapshot.clouds)
    )


def _cloud(
    snapshot: OfferSnapshot, number: int, now: float | None, refreshed_at: float | None
) -> CatalogCloud:
    part = snapshot.cloud_slices[number]
    first, last = snapshot.machines.first_offer[[part.start, part.stop]]
    rows = slice(int(first), int(last))
    name = snapshot.clouds[number]
    dates = sorted(_dates(snapshot, snapshot.on_demand, rows) | _dates(snapshot, snapshot.spot, rows))
    return CatalogCloud(
        name=name,
        offers=int(last - first),
        instance_types=part.stop - part.start,
        regions=len(snapshot.regions[name]),
        priced=int(np.count_nonzero(~np.isnan(snapshot.on_demand.price[rows]))),
        spot_priced=int(np.count_nonzero(~np.isnan(snapshot.spot.price[rows]))),
        oldest=dates[0] if dates else "",
        newest=dates[-1] if dates else "",
        age_days=age_in_days(dates[-1], now) if dates and now is not None else None,
        refreshed_at=refreshed_at,
    )


def _dates(snapshot: OfferSnapshot, prices: Prices, rows: slice) -> set[str]:
    codes = np.unique(prices.source[rows]).tolist()
    return {snapshot.sources[code].as_of for code in codes} - {""}
