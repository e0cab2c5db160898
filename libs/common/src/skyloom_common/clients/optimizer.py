"""Typed calls to the optimizer."""

from __future__ import annotations

from typing import Any

from skyloom_common.clients.base import ServiceClient
from skyloom_common.contracts.plan import AcceleratorList, LaunchOutcome, Plan, PlanRequest
from skyloom_common.core.wire import dumps


class OptimizerClient(ServiceClient):
    service = "the optimizer"

    async def plan(self, request: PlanRequest) -> Plan:
        return await self.post(Plan, "/v1/plans", request)

    async def accelerators(self, **query: Any) -> AcceleratorList:
        """`name`, `count`, `cloud`, `region`, `all`."""
        return await self.get(AcceleratorList, "/v1/accelerators", _asked(query))

    async def catalog(self, **query: Any) -> dict[str, Any]:
        """What the catalog is made of: version, sources, sizes."""
        response = await self.call("GET", "/v1/catalog", params=_asked(query))
        body: dict[str, Any] = response.json()
        return body

    async def record_outcome(self, outcome: LaunchOutcome) -> None:
        """Idempotent by the outcome's id."""
        await self.call("POST", "/v1/outcomes", body=dumps(outcome))


def _asked(query: dict[str, Any]) -> dict[str, Any]:
    return {
        name: int(value) if isinstance(value, bool) else value
        for name, value in query.items()
        if value is not None
    }
