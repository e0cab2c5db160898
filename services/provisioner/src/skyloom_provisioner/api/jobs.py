"""Routes of jobs: passed through to the head's agent as they come. A stopped cluster still lists what it ran."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse

from skyloom_common.clients.agent import AgentClient
from skyloom_common.contracts.http import LOG_OFFSET
from skyloom_common.contracts.jobs import CancelJobs, CancelledJobs, JobList
from skyloom_common.core.errors import AgentUnreachable, ClusterNotUp, InvalidRequest, JobDoesNotExist
from skyloom_common.service.responses import wire_response
from skyloom_provisioner.api.docs import Answers
from skyloom_provisioner.api.service import Service


def router(service: Service, answers: Answers) -> APIRouter:
    routes = APIRouter(prefix="/v1/clusters/{name}", tags=["jobs"])

    @routes.get("/jobs", **answers(JobList))
    async def jobs(name: str) -> Response:
        """The head's own list; what was last heard of it while it does not answer."""
        state = await service.parts.clusters.get(name)
        if state.cluster.is_up:
            with contextlib.suppress(AgentUnreachable, ClusterNotUp):
                found = await service.with_head(name, lambda agent: agent.jobs(), patience=3.0)
                return wire_response(JobList(tuple(found)))
        return wire_response(JobList(tuple(await service.parts.clusters.cached_jobs(state.cluster.id))))

    @routes.post("/jobs/cancel", **answers(CancelledJobs))
    async def cancel(name: str, body: CancelJobs) -> Response:
        cancelled = await service.with_head(name, lambda agent: agent.cancel(body))
        return wire_response(CancelledJobs(tuple(cancelled)))

    @routes.get("/jobs/{id}/logs")
    async def logs(name: str, id: str, request: Request) -> Response:
        """As the agent's: follow, offset, tail, rank, phase."""
        job = await _job_id(service, name, id)
        return await _pass(service, name, f"/v1/jobs/{job}/logs", request, "application/octet-stream")

    @routes.get("/jobs/{id}/archive")
    async def archive(name: str, id: str, request: Request) -> Response:
        job = await _job_id(service, name, id)
        return await _pass(service, name, f"/v1/jobs/{job}/archive", request, "application/x-tar")

    return routes


async def _job_id(service: Service, name: str, id: str) -> int:
    if id == "latest":
        found = await service.with_head(name, lambda agent: agent.jobs())
        if not found:
            raise JobDoesNotExist(f"cluster {name!r} has no jobs")
        return max(job.job_id for job in found)
    if not (id.isascii() and id.isdigit() and len(id) < 12):
        raise InvalidRequest(f"job id: {id[:40]!r} is not valid; use a number or 'latest'")
    return int(id)


async def _pass(service: Service, name: str, path: str, request: Request, kind: str) -> Response:
    """The agent's answer is open before ours begins, so that its errors keep their status."""
    stack = contextlib.AsyncExitStack()
    query = str(request.url.query)

    async def open_stream(agent: AgentClient) -> object:
        target = f"{path}?{query}" if query else path
        return await stack.enter_async_context(agent.stream("GET", target))

    response = await service.with_head(name, open_stream)
    headers = {LOG_OFFSET: response.headers[LOG_OFFSET]} if LOG_OFFSET in response.headers else {}  # type: ignore[attr-defined]

    async def body() -> AsyncIterator[bytes]:
        async with stack:
            async for piece in response.aiter_raw():  # type: ignore[attr-defined]
                yield piece

    return StreamingResponse(body(), headers=headers, media_type=kind)
