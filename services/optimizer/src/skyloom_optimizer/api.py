"""Routes of the optimizer: decode, ask, encode. Decides nothing."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from skyloom_common.contracts.catalog import CatalogInfo
from skyloom_common.contracts.plan import AcceleratorList, LaunchOutcome, Plan, PlanRequest
from skyloom_common.service.responses import wire_response
from skyloom_optimizer.catalog.info import catalog_info
from skyloom_optimizer.catalog.load import Catalog
from skyloom_optimizer.gpus import AcceleratorQuery, list_accelerators
from skyloom_optimizer.outcomes import MemoryKeeper
from skyloom_optimizer.plan import plan

_Text = Annotated[str | None, Query(max_length=200)]


def optimizer_router(catalog: Catalog, memory: MemoryKeeper) -> APIRouter:
    router = APIRouter(prefix="/v1")

    @router.post("/plans", response_model=Plan)
    async def post_plan(request: PlanRequest) -> Response:
        """Ordered candidates for one task. No candidate: the first hint says why."""
        return wire_response(plan(request, catalog.snapshot, await memory.current()))

    @router.get("/accelerators", response_model=AcceleratorList)
    async def get_accelerators(
        name: _Text = None,
        count: float | None = None,
        cloud: _Text = None,
        region: _Text = None,
        all: bool = False,
        all_regions: bool = False,
        require_price: bool = False,
    ) -> Response:
        """Without a name the overview (`all`: rare devices too), else the offers of that device."""
        query = AcceleratorQuery(name, count, cloud, region, all, all_regions, require_price)
        return wire_response(list_accelerators(query, catalog.snapshot))

    @router.get("/catalog", response_model=CatalogInfo)
    async def get_catalog() -> Response:
        """What the catalog holds, how old it is and where it comes from."""
        return wire_response(catalog_info(catalog))

    @router.post("/outcomes", status_code=202)
    async def post_outcome(outcome: LaunchOutcome) -> Response:
        """What became of a launch attempt. Repeating an id changes nothing."""
        return wire_response({"recorded": await memory.record(outcome)}, 202)

    return router
