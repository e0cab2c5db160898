"""Routes of the optimizer: decode, ask, encode. Decides nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from skyloom_common.contracts.dag import DagPlan, DagPlanRequest
from skyloom_common.contracts.fleet import FleetPlan, FleetPlanRequest
from skyloom_common.contracts.plan import AcceleratorList, LaunchOutcome, Plan, PlanRequest
from skyloom_common.service.responses import wire_response
from skyloom_optimizer.dagplan import plan_dag
from skyloom_optimizer.fleetplan import plan_fleet
from skyloom_optimizer.gpus import AcceleratorQuery, list_accelerators
from skyloom_optimizer.outcomes import MemoryKeeper
from skyloom_optimizer.plan import plan
from skyloom_optimizer.refresh.live import LiveCatalog

_Text = Annotated[str | None, Query(max_length=200)]


def optimizer_router(
    live: LiveCatalog, memory: MemoryKeeper, now: Callable[[], float] = time.time
) -> APIRouter:
    router = APIRouter(prefix="/v1")

    @router.post("/plans", response_model=Plan)
    async def post_plan(request: PlanRequest) -> Response:
        """Ordered candidates for one task. No candidate: the first hint says why."""
        known, catalog = await memory.current(), live.current.catalog
        return wire_response(plan(request, catalog.snapshot, known, catalog.market))

    @router.post("/plans/dag", response_model=DagPlan)
    async def post_dag_plan(request: DagPlanRequest) -> Response:
        """A place for each task of a graph, with the data that moves between them."""
        known, catalog = await memory.current(), live.current.catalog
        answer = await run_in_threadpool(plan_dag, request, catalog.snapshot, known, catalog.market)
        return wire_response(answer)

    @router.post("/plans/fleet", response_model=FleetPlan)
    async def post_fleet_plan(request: FleetPlanRequest) -> Response:
        """Many tasks at once under quotas, reservations, budgets and spread."""
        known, catalog = await memory.current(), live.current.catalog
        answer = await run_in_threadpool(plan_fleet, request, catalog.snapshot, known, catalog.market)
        return wire_response(answer)

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
        query = AcceleratorQuery(name, count, cloud, region, all, all_regions, require_price, now())
        return wire_response(list_accelerators(query, live.current.catalog.snapshot))

    @router.post("/outcomes", status_code=202)
    async def post_outcome(outcome: LaunchOutcome) -> Response:
        """What became of a launch attempt. Repeating an id changes nothing."""
        return wire_response({"recorded": await memory.record(outcome)}, 202)

    return router
