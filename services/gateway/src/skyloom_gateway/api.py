"""The routes for clients, as contracts/http.py lists them. Thin: check names, say who asks, pass on.

Bodies are checked here against their contract (the same mistake costs one hop less) and go on as they came.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response, StreamingResponse

from skyloom_common.clients.optimizer import OptimizerClient
from skyloom_common.clients.provisioner import ProvisionerClient
from skyloom_common.contracts.catalog import (
    CatalogInfo,
    CatalogRefresh,
    CatalogRefreshRequest,
    PriceHistory,
)
from skyloom_common.contracts.clusters import (
    AutostopRequest,
    ClusterList,
    CostReport,
    ExecRequest,
    InfraList,
    LaunchRequest,
    ServerInfo,
    StartRequest,
    StopRequest,
)
from skyloom_common.contracts.dag import DagPlan, DagPlanRequest
from skyloom_common.contracts.files import ChunksAnswer, ManifestAnswer
from skyloom_common.contracts.http import IDEMPOTENCY_KEY
from skyloom_common.contracts.jobs import CancelJobs, CancelledJobs, JobList
from skyloom_common.contracts.operations import Operation, OperationList
from skyloom_common.contracts.plan import AcceleratorList, Plan, PlanRequest
from skyloom_common.service.auth import CurrentCaller
from skyloom_common.service.responses import wire_response
from skyloom_gateway import names, relay
from skyloom_gateway.docs import octets, parameters, text
from skyloom_gateway.info import About
from skyloom_gateway.serverlog import read_log
from skyloom_gateway.settings import GatewaySettings

API = "/api/v1"


def client_router(
    settings: GatewaySettings, provisioner: ProvisionerClient, optimizer: OptimizerClient, about: About
) -> APIRouter:
    router = APIRouter()
    _add_server(router, settings, about)
    _add_plans(router, provisioner, optimizer)
    _add_catalog(router, optimizer)
    _add_clusters(router, provisioner)
    _add_jobs(router, provisioner)
    _add_operations(router, provisioner)
    _add_files(router, provisioner)
    return router


def _add_server(router: APIRouter, settings: GatewaySettings, about: About) -> None:
    @router.get(f"{API}/info", response_model=ServerInfo)
    async def info(caller: CurrentCaller) -> Response:
        return wire_response(await about.info(caller.user))

    @router.get(f"{API}/server-logs", **text())
    async def server_logs(
        follow: bool = False, tail: Annotated[int | None, Query(ge=0, le=1_000_000)] = None
    ) -> Response:
        pieces = read_log(settings.server_log, tail=tail, follow=follow)
        first = await anext(pieces, b"")

        async def all_pieces() -> Any:
            yield first
            async for piece in pieces:
                yield piece

        return StreamingResponse(all_pieces(), media_type="text/plain; charset=utf-8")


def _add_plans(router: APIRouter, provisioner: ProvisionerClient, optimizer: OptimizerClient) -> None:
    @router.post(f"{API}/plans", response_model=Plan)
    async def plans(request: Request, body: PlanRequest) -> Response:
        return await relay.small(provisioner, request, "/v1/plans")

    @router.post(f"{API}/plans/dag", response_model=DagPlan)
    async def dag_plans(request: Request, body: DagPlanRequest) -> Response:
        return await relay.small(provisioner, request, "/v1/plans/dag")

    asked = parameters("name", "count", "cloud", "region", "all", "all_regions")

    @router.get(f"{API}/accelerators", response_model=AcceleratorList, openapi_extra=asked)
    async def accelerators(request: Request) -> Response:
        return await relay.small(optimizer, request, "/v1/accelerators")

    @router.get(f"{API}/infra", response_model=InfraList, openapi_extra=parameters("name*"))
    async def infra(request: Request) -> Response:
        return await relay.small(provisioner, request, "/v1/infra")

    @router.get(f"{API}/cost-report", response_model=CostReport, openapi_extra=parameters("days"))
    async def cost_report(request: Request) -> Response:
        return await relay.small(provisioner, request, "/v1/cost-report")


def _add_catalog(router: APIRouter, optimizer: OptimizerClient) -> None:
    @router.get(f"{API}/catalog", response_model=CatalogInfo)
    async def catalog(request: Request) -> Response:
        return await relay.small(optimizer, request, "/v1/catalog")

    @router.post(f"{API}/catalog/refresh", response_model=CatalogRefresh, status_code=202)
    async def refresh(request: Request, body: CatalogRefreshRequest) -> Response:
        return await relay.small(optimizer, request, "/v1/catalog/refresh")

    asked = parameters(
        "cloud", "instance_type", "accelerator", "region", "zone", "spot", "since", "until", "step", "points"
    )

    @router.get(f"{API}/prices/history", response_model=PriceHistory, openapi_extra=asked)
    async def prices(request: Request) -> Response:
        return await relay.small(optimizer, request, "/v1/prices/history")


def _add_clusters(router: APIRouter, provisioner: ProvisionerClient) -> None:
    asked = parameters("name*", "all_users", "refresh")

    @router.get(f"{API}/clusters", response_model=ClusterList, openapi_extra=asked)
    async def clusters(request: Request) -> Response:
        return await relay.small(provisioner, request, "/v1/clusters")

    async def act(request: Request, verb: str) -> Response:
        headers = relay.forwarded(request, **{IDEMPOTENCY_KEY: names.idempotency_key(request)})
        return await relay.small(
            provisioner, request, f"/v1/clusters/{names.cluster(request)}/{verb}", headers=headers
        )

    def post(verb: str) -> Any:
        path = f"{API}/clusters/{{name}}/{verb}"
        return router.post(
            path, response_model=Operation, status_code=202, openapi_extra=parameters(path="name")
        )

    @post("launch")
    async def launch(request: Request, body: LaunchRequest) -> Response:
        return await act(request, "launch")

    @post("exec")
    async def exec_(request: Request, body: ExecRequest) -> Response:
        return await act(request, "exec")

    @post("start")
    async def start(request: Request, body: StartRequest) -> Response:
        return await act(request, "start")

    @post("stop")
    async def stop(request: Request, body: StopRequest) -> Response:
        return await act(request, "stop")

    @post("down")
    async def down(request: Request, body: StopRequest) -> Response:
        return await act(request, "down")

    @post("autostop")
    async def autostop(request: Request, body: AutostopRequest) -> Response:
        return await act(request, "autostop")

    @router.get(f"{API}/clusters/{{name}}/provision-logs", **text(parameters("follow", "tail", path="name")))
    async def provision_logs(request: Request) -> Response:
        return relay.Stream(provisioner, request, f"/v1/clusters/{names.cluster(request)}/provision-logs")


def _add_jobs(router: APIRouter, provisioner: ProvisionerClient) -> None:
    one = f"{API}/clusters/{{name}}/jobs/{{job}}"

    @router.get(
        f"{API}/clusters/{{name}}/jobs", response_model=JobList, openapi_extra=parameters(path="name")
    )
    async def jobs(request: Request) -> Response:
        return await relay.small(provisioner, request, f"/v1/clusters/{names.cluster(request)}/jobs")

    @router.post(
        f"{API}/clusters/{{name}}/jobs/cancel",
        response_model=CancelledJobs,
        openapi_extra=parameters(path="name"),
    )
    async def cancel(request: Request, body: CancelJobs) -> Response:
        return await relay.small(provisioner, request, f"/v1/clusters/{names.cluster(request)}/jobs/cancel")

    def upstream(request: Request, what: str) -> relay.Stream:
        path = f"/v1/clusters/{names.cluster(request)}/jobs/{names.job(request)}/{what}"
        return relay.Stream(provisioner, request, path)

    @router.get(
        f"{one}/logs", **octets(parameters("follow", "offset", "tail", "rank", "phase", path="name job"))
    )
    async def logs(request: Request) -> Response:
        return upstream(request, "logs")

    @router.get(f"{one}/archive", **octets(parameters(path="name job"), "application/x-tar"))
    async def archive(request: Request) -> Response:
        return upstream(request, "archive")


def _add_operations(router: APIRouter, provisioner: ProvisionerClient) -> None:
    one = f"{API}/operations/{{operation}}"

    asked = parameters("all", "limit", "cluster")

    @router.get(f"{API}/operations", response_model=OperationList, openapi_extra=asked)
    async def operations(request: Request) -> Response:
        return await relay.small(provisioner, request, "/v1/operations")

    @router.get(one, response_model=Operation, openapi_extra=parameters(path="operation"))
    async def operation(request: Request) -> Response:
        return await relay.small(provisioner, request, f"/v1/operations/{names.operation(request)}")

    @router.get(f"{one}/events", **octets(parameters("after", path="operation"), "text/event-stream"))
    async def events(request: Request) -> Response:
        seen = request.headers.get("last-event-id")
        headers = {"Last-Event-ID": seen} if seen and seen.isascii() and seen.isdigit() else {}
        return relay.Stream(
            provisioner, request, f"/v1/operations/{names.operation(request)}/events", **headers
        )

    @router.post(f"{one}/cancel", response_model=Operation, openapi_extra=parameters(path="operation"))
    async def cancel(request: Request) -> Response:
        headers = relay.forwarded(request, **{IDEMPOTENCY_KEY: names.idempotency_key(request)})
        path = f"/v1/operations/{names.operation(request)}/cancel"
        return await relay.small(provisioner, request, path, headers=headers)


def _add_files(router: APIRouter, provisioner: ProvisionerClient) -> None:
    @router.post(f"{API}/files/manifests", response_model=ManifestAnswer)
    async def manifests(request: Request) -> Response:
        return await relay.upload(provisioner, request, "/v1/files/manifests")

    @router.put(f"{API}/files/chunks", response_model=ChunksAnswer)
    async def chunks(request: Request) -> Response:
        return await relay.upload(provisioner, request, "/v1/files/chunks")
