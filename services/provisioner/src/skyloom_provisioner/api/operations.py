"""Routes of operations: read, follow by server-sent events, cancel; and the provision log, which is the same in text."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Header, Query
from starlette.responses import Response, StreamingResponse

from skyloom_common.contracts.operations import Operation, OperationEvent, OperationList
from skyloom_common.core.errors import InvalidRequest, NotFound
from skyloom_common.core.names import check_cluster_name
from skyloom_common.core.wire import dumps
from skyloom_common.service.auth import CurrentCaller
from skyloom_common.service.responses import wire_response
from skyloom_provisioner.api.docs import Answers
from skyloom_provisioner.api.service import Service
from skyloom_provisioner.operations.rows import LAUNCH, START

RESYNC_SECONDS = 1.0
KEEP_ALIVE_SECONDS = 15.0
_PLAIN = "text/plain; charset=utf-8"


def router(service: Service, answers: Answers) -> APIRouter:
    routes = APIRouter(prefix="/v1", tags=["operations"])
    store = service.parts.operations

    @routes.get("/operations", **answers(OperationList))
    async def operations(
        caller: CurrentCaller,
        all: bool = False,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        cluster: str | None = None,
    ) -> Response:
        rows = await store.newest_first(all=all, limit=limit, target=cluster)
        return wire_response(OperationList(tuple(row.view() for row in rows)))

    @routes.get("/operations/{id}", **answers(Operation))
    async def operation(id: str) -> Response:
        return wire_response((await store.get(id)).view())

    @routes.post("/operations/{id}/cancel", **answers(Operation))
    async def cancel(id: str) -> Response:
        return wire_response((await store.request_cancel(id)).view())

    @routes.get("/operations/{id}/events")
    async def events(
        id: str,
        after: Annotated[int, Query(ge=0)] = 0,
        last_event_id: Annotated[str | None, Header(alias="Last-Event-ID")] = None,
    ) -> Response:
        row = await store.get(id)
        start = max(after, _number(last_event_id))
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(
            _sse(service, row.id, start), headers=headers, media_type="text/event-stream"
        )

    @routes.get("/clusters/{name}/provision-logs")
    async def provision_logs(
        name: str, follow: bool = False, tail: Annotated[int, Query(ge=0)] = 0
    ) -> Response:
        row = await store.newest(check_cluster_name(name), (LAUNCH, START))
        if row is None:
            raise NotFound(f"cluster {name!r} has no launch to show", hint="Run `sky api status -a`.")
        return StreamingResponse(_text(service, row.id, follow, tail), media_type=_PLAIN)

    return routes


async def _sse(service: Service, id: str, after: int) -> AsyncIterator[bytes]:
    async for event in follow_events(service, id, after):
        yield b": keep-alive\n\n" if event is None else _encoded(event)


async def follow_events(
    service: Service, id: str, after: int, *, follow: bool = True
) -> AsyncIterator[OperationEvent | None]:
    """Every event after `after`, up to the final one; None when nothing came for a while."""
    quiet = 0.0
    with service.signals.subscribe(id) as changed:
        while True:
            for event in await service.parts.operations.events(id, after):
                after, quiet = event.seq, 0.0
                yield event
                if event.status is not None:
                    return
            if not follow or await _is_over(service, id, after):
                return
            if not await changed.wait(RESYNC_SECONDS):
                quiet += RESYNC_SECONDS
            if quiet >= KEEP_ALIVE_SECONDS:
                quiet = 0.0
                yield None


async def _is_over(service: Service, id: str, after: int) -> bool:
    """A reader that comes back after the final event gets an empty, finished stream."""
    if after == 0 or not (await service.parts.operations.get(id)).status.is_final:
        return False
    return not await service.parts.operations.events(id, after, 1)


def _encoded(event: OperationEvent) -> bytes:
    return b"id: %d\nevent: progress\ndata: %s\n\n" % (event.seq, dumps(event))


async def _text(service: Service, id: str, follow: bool, tail: int = 0) -> AsyncIterator[bytes]:
    """`tail`: only the last lines of what there is; 0 = all."""
    known = await service.parts.operations.events(id, 0, 100_000) if tail else []
    after = known[-tail].seq - 1 if len(known) > tail else 0
    async for event in follow_events(service, id, after, follow=follow):
        if event is not None:
            when = datetime.fromtimestamp(event.at, UTC).strftime("%Y-%m-%d %H:%M:%S")
            yield f"{when} {event.level.upper():7} {event.phase}: {event.message}\n".encode()


def _number(text: str | None) -> int:
    if not text:
        return 0
    if not (text.isascii() and text.isdigit()):
        raise InvalidRequest(f"Last-Event-ID: {text[:40]!r} is not a number")
    return int(text)
