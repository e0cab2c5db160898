"""The agent's routes for files: plan, chunks, apply (contracts/files.py). Holds no more than a few chunks in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from skyloom_agent.file_trees import FileTrees
from skyloom_agent.router import Request, Response, Router
from skyloom_common.contracts.file_frames import Frame, FrameDecoder
from skyloom_common.contracts.files import MAX_PACKED_MANIFEST, ApplyTree, ChunksAnswer
from skyloom_common.core.errors import InvalidRequest, SkyloomError

FLUSH_BYTES = 1024 * 1024
FLUSH_FRAMES = 256


def add_file_routes(router: Router, trees: FileTrees) -> None:
    routes = _Routes(trees)
    router.add("POST", "/v1/files/plan", routes.plan)
    router.add("PUT", "/v1/files/chunks", routes.chunks)
    router.add("POST", "/v1/files/apply", routes.apply)


class _Routes:
    def __init__(self, trees: FileTrees) -> None:
        self._trees = trees

    async def plan(self, request: Request) -> Response:
        manifest_id, destination = (_needed(request, name) for name in ("manifest_id", "destination"))
        packed = await request.read(MAX_PACKED_MANIFEST)
        is_file = request.flag_query("is_file")
        return Response.of(
            await asyncio.to_thread(self._trees.plan, manifest_id, destination, is_file, packed)
        )

    async def apply(self, request: Request) -> Response:
        what = await request.json(ApplyTree)
        return Response.of(
            await asyncio.to_thread(self._trees.apply, what.manifest_id, what.destination, what.is_file)
        )

    async def chunks(self, request: Request) -> Response:
        stream = request.stream()
        try:
            return Response.of(await self._receive(stream))
        except SkyloomError:
            # A sender that is not done would see a broken connection and not the reason.
            async for _ in stream:
                pass
            raise

    async def _receive(self, stream: AsyncIterator[bytes]) -> ChunksAnswer:
        """Keeps every frame that arrives whole, also of a stream that breaks off."""
        decoder = FrameDecoder()
        waiting: list[Frame] = []
        received = stored = size = 0
        try:
            async for data in stream:
                for frame in decoder.feed(data):
                    waiting.append(frame)
                    size += len(frame.payload)
                    if size >= FLUSH_BYTES or len(waiting) >= FLUSH_FRAMES:
                        batch, waiting, size = waiting, [], 0
                        received += len(batch)
                        stored += await asyncio.to_thread(self._trees.put, batch)
        except ConnectionError:
            await asyncio.to_thread(self._trees.put, waiting)
            raise
        decoder.finish()
        received += len(waiting)
        stored += await asyncio.to_thread(self._trees.put, waiting)
        return ChunksAnswer(received, stored)


def _needed(request: Request, name: str) -> str:
    value = request.query.get(name)
    if not value:
        raise InvalidRequest(f"{name}: missing from the query", details={"field": name})
    return value
