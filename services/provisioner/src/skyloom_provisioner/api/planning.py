"""Routes that look and change nothing: plans, infrastructure, costs."""

from __future__ import annotations

import logging
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from skyloom_common.clients.optimizer import OptimizerClient
from skyloom_common.contracts.clusters import CostReport, InfraList, InfraStatus
from skyloom_common.contracts.dag import DagPlan, DagPlanRequest
from skyloom_common.contracts.plan import Plan, PlanRequest
from skyloom_common.core.errors import Unavailable
from skyloom_common.service.responses import wire_response
from skyloom_provisioner.api.docs import Answers
from skyloom_provisioner.api.service import Service
from skyloom_provisioner.clusters.costs import cost_report
from skyloom_provisioner.operations.planning import full_dag_request, full_request
from skyloom_provisioner.providers.base import Provider, features

_log = logging.getLogger(__name__)


def router(service: Service, answers: Answers) -> APIRouter:
    routes = APIRouter(prefix="/v1", tags=["planning"])
    parts = service.parts

    @routes.post("/plans", **answers(Plan))
    async def plans(body: PlanRequest) -> Response:
        return wire_response(await parts.optimizer.plan(await full_request(parts.providers, body)))

    @routes.post("/plans/dag", **answers(DagPlan))
    async def dag_plans(body: DagPlanRequest) -> Response:
        return wire_response(await parts.optimizer.plan_dag(await full_dag_request(parts.providers, body)))

    @routes.get("/infra", **answers(InfraList))
    async def infra(name: Annotated[list[str] | None, Query()] = None) -> Response:
        wanted = {one.lower() for one in name or ()}
        found = [
            await _infra(provider) for provider in parts.providers if not wanted or provider.name in wanted
        ]
        priced = await _catalog_clouds(parts.optimizer)
        own = parts.providers.names()
        for cloud in sorted((wanted or priced) - set(own)):
            reason = "only its prices are known here" if cloud in priced else "not known"
            found.append(
                InfraStatus(cloud, False, reason, f"Providers here: {', '.join(own)}." if wanted else "")
            )
        return wire_response(InfraList(tuple(found)))

    @routes.get("/cost-report", **answers(CostReport))
    async def costs(days: Annotated[int | None, Query(ge=0, le=36500)] = None) -> Response:
        now = parts.clock.now()
        ledger = await parts.clusters.usage_since(now - days * 86400.0 if days else None)
        statuses = {state.cluster.id: state.cluster.status for state in await parts.clusters.all()}
        return wire_response(cost_report(ledger, statuses, now, days))

    return routes


async def _catalog_clouds(optimizer: OptimizerClient) -> set[str]:
    """Empty while the optimizer is away: what can be used here does not depend on it."""
    try:
        catalog = await optimizer.catalog()
    except Unavailable as error:
        _log.warning("infra is shown without the catalog's clouds: %s", error)
        return set()
    return {str(cloud["name"]) for cloud in catalog.get("clouds", ())}


async def _infra(provider: Provider) -> InfraStatus:
    check = await provider.check()
    return InfraStatus(
        name=provider.name,
        enabled=check.enabled,
        reason=check.reason,
        hint=check.hint,
        capabilities=("compute",) if check.enabled else (),
        features=features(provider),
    )
