"""The file store over HTTP: manifests in whole, chunks as they stream by. Holds no more than a few chunks in memory."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from skyloom_common.contracts.file_frames import Frame, FrameDecoder
from skyloom_common.contracts.files import (
    MAX_PACKED_MANIFEST,
    ChunksAnswer,
    ManifestAnswer,
    ManifestQuery,
    check_id,
)
from skyloom_common.core.errors import SkyloomError, TooLarge
from skyloom_common.core.wire import loads
from skyloom_common.service.responses import wire_response
from skyloom_provisioner.files.store import FileStore

GZIP = b"\x1f\x8b"
FLUSH_BYTES = 1024 * 1024
FLUSH_FRAMES = 256


def router(store: FileStore) -> APIRouter:
    """POST /v1/files/manifests and PUT /v1/files/chunks (contracts/files.py). The app must allow bodies up to MAX_FILES_BODY."""
    routes = APIRouter(prefix="/v1/files", tags=["files"])

    @routes.post("/manifests", response_model=ManifestAnswer)
    async def manifests(request: Request) -> Response:
        body = await _read(request, MAX_PACKED_MANIFEST)
        if body.startswith(GZIP):
            return wire_response(await asyncio.to_thread(store.add_manifest, body))
        query = loads(ManifestQuery, body, strict=True)
        return wire_response(await asyncio.to_thread(store.ask, check_id(query.id)))

    @routes.put("/chunks", response_model=ChunksAnswer)
    async def chunks(request: Request) -> Response:
        return wire_response(await receive(request, store))

    return routes


async def receive(request: Request, store: FileStore) -> ChunksAnswer:
    """Keeps every frame that arrives whole, also of a stream that breaks off."""
    stream = request.stream()
    decoder, waiting = FrameDecoder(), list[Frame]()
    received = stored = size = 0
    try:
        async for data in stream:
            for frame in decoder.feed(data):
                waiting.append(frame)
                size += len(frame.payload)
                if size >= FLUSH_BYTES or len(waiting) >= FLUSH_FRAMES:
                    received += len(waiting)
                    batch, waiting, size = waiting, [], 0
                    stored += await asyncio.to_thread(store.put, batch)
        decoder.finish()
    except ClientDisconnect:
        await asyncio.to_thread(store.put, waiting)
        raise
    except SkyloomError:
        # A client that is still sending would see a broken connection and not the reason.
        async for _ in stream:
            pass
        raise
    received += len(waiting)
    stored += await asyncio.to_thread(store.put, waiting)
    return ChunksAnswer(received, stored)


async def _read(request: Request, limit: int) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise TooLarge(f"the manifest is longer than {limit} bytes; sync fewer files (.skyignore)")
        parts.append(part)
    return b"".join(parts)
