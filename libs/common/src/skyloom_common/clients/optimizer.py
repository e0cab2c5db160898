"""Typed calls to the optimizer."""

from __future__ import annotations

from typing import Any

from skyloom_common.clients.base import ServiceClient
from skyloom_common.contracts.catalog import CatalogRefresh, CatalogRefreshRequest, PriceHistory
from skyloom_common.contracts.dag import DagPlan, DagPlanRequest
from skyloom_common.contracts.fleet import FleetPlan, FleetPlanRequest
from skyloom_common.contracts.plan import AcceleratorList, LaunchOutcome, Plan, PlanRequest
from skyloom_common.core.wire import dumps


class OptimizerClient(ServiceClient):
    service = "the optimizer"

    async def plan(self, request: PlanRequest) -> Plan:
        return await self.post(Plan, "/v1/plans", request)

    async def plan_dag(self, request: DagPlanRequest) -> DagPlan:
        """A place for each task of a graph."""
        return await self.post(DagPlan, "/v1/plans/dag", request)

    async def plan_fleet(self, request: FleetPlanRequest) -> FleetPlan:
        """Many tasks at once under shared limits."""
        return await self.post(FleetPlan, "/v1/plans/fleet", request)

    async def accelerators(self, **query: Any) -> AcceleratorList:
        """`name`, `count`, `cloud`, `region`, `all`."""
        return await self.get(AcceleratorList, "/v1/accelerators", _asked(query))

    async def catalog(self, **query: Any) -> dict[str, Any]:
        """What the catalog is made of: version, sources, sizes."""
        response = await self.call("GET", "/v1/catalog", params=_asked(query))
        body: dict[str, Any] = response.json()
        return body

    async def refresh_catalog(self, request: CatalogRefreshRequest) -> CatalogRefresh:
        """Starts it; `catalog()["refresh"]` shows how it goes."""
        return await self.post(CatalogRefresh, "/v1/catalog/refresh", request)

    async def price_history(self, **query: Any) -> PriceHistory:
        """`cloud` and `instance_type`, or `accelerator`; `region`, `zone`, `spot`, `since`, `until`, `step` or `points`."""
        return await self.get(PriceHistory, "/v1/prices/history", _asked(query))

    async def record_outcome(self, outcome: LaunchOutcome) -> None:
        """Idempotent by the outcome's id."""
        await self.call("POST", "/v1/outcomes", body=dumps(outcome))


def _asked(query: dict[str, Any]) -> dict[str, Any]:
    return {
        name: int(value) if isinstance(value, bool) else value
        for name, value in query.items()
        if value is not None
    }
