"""Routes about the catalog itself: what it holds, refreshing it, prices over time. Decides nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from skyloom_common.contracts.catalog import (
    CatalogInfo,
    CatalogRefresh,
    CatalogRefreshRequest,
    PriceHistory,
)
from skyloom_common.service.responses import wire_response
from skyloom_optimizer.history.query import HistoryQuery, machines_of
from skyloom_optimizer.history.store import PriceHistoryStore
from skyloom_optimizer.refresh.info import described
from skyloom_optimizer.refresh.live import LiveCatalog
from skyloom_optimizer.refresh.schedule import RefreshSchedule
from skyloom_optimizer.refresh.service import RefreshService

_Text = Annotated[str | None, Query(max_length=200)]


def catalog_router(
    live: LiveCatalog,
    refresh: RefreshService,
    schedule: RefreshSchedule,
    history: PriceHistoryStore,
    now: Callable[[], float],
) -> APIRouter:
    router = APIRouter(prefix="/v1")

    @router.get("/catalog", response_model=CatalogInfo)
    async def get_catalog() -> Response:
        """What the catalog holds, how old it is, where it comes from, and how the last refresh went."""
        report, turns = await refresh.report(), await schedule.state()
        return wire_response(await run_in_threadpool(described, live.current, now(), report, turns))

    @router.post("/catalog/refresh", response_model=CatalogRefresh, status_code=202)
    async def post_refresh(request: CatalogRefreshRequest) -> Response:
        """Starts asking clouds for their current prices. GET /v1/catalog shows how it goes."""
        return wire_response(await refresh.start(request), 202)

    @router.get("/prices/history", response_model=PriceHistory)
    async def get_history(
        cloud: _Text = None,
        instance_type: _Text = None,
        accelerator: _Text = None,
        region: _Text = None,
        zone: _Text = None,
        spot: bool | None = None,
        since: float = 0.0,
        until: float = math.inf,
        step: float = 0.0,
        points: int | None = None,
    ) -> Response:
        """Prices that this deployment has seen, oldest first. Times in Unix seconds; `step` (seconds) or `points` (at most
        so many for each series) draw them together."""
        machines = machines_of(live.current.catalog.snapshot, cloud, instance_type, accelerator)
        query = HistoryQuery(machines, region, zone, spot, since, until, step, points)
        return wire_response(await history.history(query))

    return router
