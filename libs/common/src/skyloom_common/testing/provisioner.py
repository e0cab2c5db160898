"""A provisioner in memory, for tests of whoever talks to one: the real routes, recorded calls, knobs, real streams.

It launches nothing. `operations` finish when a test says so; `log` grows when a test appends to it.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import Response, StreamingResponse

from skyloom_common.contracts.clusters import Cluster, ClusterList, CostReport, InfraList
from skyloom_common.contracts.files import MAX_FILES_BODY, ChunksAnswer
from skyloom_common.contracts.http import IDEMPOTENCY_KEY, LOG_OFFSET
from skyloom_common.contracts.jobs import CancelledJobs, JobList
from skyloom_common.contracts.operations import Operation, OperationEvent, OperationList, OperationStatus
from skyloom_common.contracts.plan import Plan
from skyloom_common.core.errors import ClusterDoesNotExist, OperationDoesNotExist, SkyloomError
from skyloom_common.core.ids import new_id
from skyloom_common.core.wire import dumps
from skyloom_common.service.app import MAX_BODY, create_service_app
from skyloom_common.service.auth import CALLER_KEY, ServiceTokenAuth
from skyloom_common.service.responses import wire_response
from skyloom_common.service.shell import BodyLimit


@dataclass(frozen=True)
class Call:
    method: str
    path: str
    query: str
    user: str
    key: str
    body: bytes


@dataclass
class FakeProvisioner:
    token: str
    clusters: dict[str, Cluster] = field(default_factory=dict)
    operations: dict[str, Operation] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    state: str = "ok"
    """What readiness says of the store."""
    log: bytes = b""
    log_ended: bool = False
    streams_open: int = 0
    received: list[bytes] = field(default_factory=list)
    """Pieces of uploads, as they come."""

    def __post_init__(self) -> None:
        self._forget()
        self.app = self._make_app()

    def reset(self) -> None:
        """As new. Making the app is the costly part: one may serve many tests."""
        for name in ("clusters", "operations", "calls", "received"):
            setattr(self, name, type(getattr(self, name))())
        self.state, self.log, self.log_ended, self.streams_open = "ok", b"", False, 0
        self._forget()

    def _forget(self) -> None:
        self._events: dict[str, list[OperationEvent]] = defaultdict(list)
        self._changed = asyncio.Condition()
        self._failures: list[SkyloomError] = []

    def fail_next(self, error: SkyloomError) -> None:
        self._failures.append(error)

    async def add_event(self, operation: str, phase: str, status: OperationStatus | None = None) -> None:
        """The operation's next step; with a status, its last one."""
        events = self._events[operation]
        events.append(
            OperationEvent(operation, len(events) + 1, time.time(), phase, f"{phase}…", status=status)
        )
        if status is not None:
            self.operations[operation] = replace(self.operations[operation], status=status)
        await self._notify()

    async def append_log(self, text: bytes, *, ended: bool = False) -> None:
        self.log += text
        self.log_ended = ended
        await self._notify()

    def _has_events(self, operation: str, after: int) -> bool:
        return len(self._events[operation]) > after

    def _has_log(self, offset: int) -> bool:
        return len(self.log) > offset or self.log_ended

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with self._changed:
            await self._changed.wait_for(condition)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _make_app(self) -> FastAPI:
        async def readiness() -> Mapping[str, str]:
            return {"store": self.state}

        app = create_service_app(
            name="provisioner",
            version="0",
            auth=ServiceTokenAuth(self.token),
            readiness=readiness,
            body_limit=BodyLimit(MAX_BODY, {"/v1/files/": MAX_FILES_BODY}),
        )
        routes = {
            "GET /v1/clusters": self._list,
            "POST /v1/plans": self._plan,
            "GET /v1/infra": self._infra,
            "GET /v1/cost-report": self._costs,
            "GET /v1/clusters/{name}/jobs": self._jobs,
            "POST /v1/clusters/{name}/jobs/cancel": self._cancel_jobs,
            "GET /v1/clusters/{name}/jobs/{job}/logs": self._logs,
            "GET /v1/clusters/{name}/jobs/{job}/archive": self._logs,
            "GET /v1/clusters/{name}/provision-logs": self._logs,
            "POST /v1/clusters/{name}/{verb}": self._act,
            "GET /v1/operations": self._operations,
            "GET /v1/operations/{id}": self._operation,
            "GET /v1/operations/{id}/events": self._follow,
            "POST /v1/operations/{id}/cancel": self._cancel,
            "POST /v1/files/manifests": self._upload,
            "PUT /v1/files/chunks": self._upload,
        }
        for route, handler in routes.items():
            method, path = route.split()
            app.add_api_route(path, handler, methods=[method], response_model=None)
        return app

    async def _note(self, request: Request, *, read: bool = True) -> None:
        body = await request.body() if read else b""
        key = request.headers.get(IDEMPOTENCY_KEY, "")
        user = request.scope[CALLER_KEY].user
        self.calls.append(Call(request.method, request.url.path, request.url.query, user, key, body))
        if self._failures:
            raise self._failures.pop(0)

    async def _list(self, request: Request) -> Response:
        await self._note(request)
        return wire_response(ClusterList(tuple(self.clusters.values())))

    async def _plan(self, request: Request) -> Response:
        await self._note(request)
        return wire_response(Plan())

    async def _infra(self, request: Request) -> Response:
        await self._note(request)
        return wire_response(InfraList())

    async def _costs(self, request: Request) -> Response:
        await self._note(request)
        return wire_response(CostReport())

    async def _jobs(self, request: Request) -> Response:
        await self._note(request)
        if request.path_params["name"] not in self.clusters:
            raise ClusterDoesNotExist(f"cluster {request.path_params['name']!r} does not exist")
        return wire_response(JobList())

    async def _cancel_jobs(self, request: Request) -> Response:
        await self._note(request)
        return wire_response(CancelledJobs((1,)))

    async def _act(self, request: Request) -> Response:
        await self._note(request)
        verb, name, user = request.path_params["verb"], request.path_params["name"], self.calls[-1].user
        made = Operation(new_id(), verb, name, user, OperationStatus.PENDING, time.time())
        self.operations[made.id] = made
        return wire_response(made, 202)

    async def _operations(self, request: Request) -> Response:
        await self._note(request)
        return wire_response(OperationList(tuple(self.operations.values())))

    async def _operation(self, request: Request) -> Response:
        await self._note(request)
        return wire_response(self._find(request))

    async def _cancel(self, request: Request) -> Response:
        await self._note(request)
        found = replace(self._find(request), cancel_requested=True)
        self.operations[found.id] = found
        return wire_response(found)

    def _find(self, request: Request) -> Operation:
        wanted = request.path_params["id"]
        found = [row for id, row in self.operations.items() if id.startswith(wanted)]
        if len(found) != 1:
            raise OperationDoesNotExist(f"operation {wanted!r} does not exist")
        return found[0]

    async def _follow(self, request: Request) -> Response:
        await self._note(request)
        operation = self._find(request).id
        after = int(request.headers.get("last-event-id") or request.query_params.get("after") or 0)
        return StreamingResponse(self._events_after(operation, after), media_type="text/event-stream")

    async def _events_after(self, operation: str, after: int) -> AsyncIterator[bytes]:
        self.streams_open += 1
        try:
            yield b": keep-alive\n\n"
            while True:
                for event in self._events[operation][after:]:
                    yield b"id: %d\nevent: progress\ndata: %b\n\n" % (event.seq, dumps(event))
                    after = event.seq
                    if event.status is not None:
                        return
                await self._until(partial(self._has_events, operation, after))
        finally:
            self.streams_open -= 1

    async def _logs(self, request: Request) -> Response:
        await self._note(request)
        offset = int(request.query_params.get("offset", 0))
        follow = request.query_params.get("follow") == "1"
        return StreamingResponse(
            self._log_from(offset, follow),
            headers={LOG_OFFSET: str(offset)},
            media_type="application/octet-stream",
        )

    async def _log_from(self, offset: int, follow: bool) -> AsyncIterator[bytes]:
        self.streams_open += 1
        try:
            while True:
                piece, offset = self.log[offset:], len(self.log)
                if piece:
                    yield piece
                if not follow or (self.log_ended and offset == len(self.log)):
                    return
                await self._until(partial(self._has_log, offset))
        finally:
            self.streams_open -= 1

    async def _upload(self, request: Request) -> Any:
        await self._note(request, read=False)
        async for piece in request.stream():
            if piece:
                self.received.append(piece)
        return wire_response(ChunksAnswer(len(self.received), len(self.received)))
