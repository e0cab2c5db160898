"""The catalog of now as its contract. Pure."""

from __future__ import annotations

import dataclasses

from skyloom_common.contracts.catalog import CatalogInfo, CatalogRefresh, CatalogSchedule
from skyloom_optimizer.catalog.info import catalog_info
from skyloom_optimizer.refresh.live import Loaded


def described(
    loaded: Loaded, now: float, report: CatalogRefresh | None, schedule: CatalogSchedule | None = None
) -> CatalogInfo:
    return dataclasses.replace(
        catalog_info(loaded.catalog, now, loaded.refreshed),
        own_offers=loaded.own,
        problems=loaded.problems,
        refresh=report,
        schedule=schedule,
    )
