"""Typed calls for the files of one node: what does it lack, take these chunks, put the tree in place (contracts/files.py)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Optional

import httpx

from skyloom_common.clients.base import ServiceClient
from skyloom_common.contracts.clusters import MountRef
from skyloom_common.contracts.files import AppliedTree, ApplyTree, ChunksAnswer, FilePlan
from skyloom_common.core.errors import AgentUnreachable
from skyloom_common.core.wire import dumps

TIMEOUT = httpx.Timeout(600.0, connect=30.0)
"""Hashing or writing gigabytes on a slow node takes a while before it answers."""


class AgentFilesClient(ServiceClient):
    service = "the node's agent"
    unreachable = AgentUnreachable

    async def plan(self, mount: MountRef, packed_manifest: Optional[bytes] = None) -> FilePlan:
        """What the node lacks for `mount`; without the manifest it may answer that it needs it."""
        query = {
            "manifest_id": mount.manifest_id,
            "destination": mount.destination,
            "is_file": int(mount.is_file),
        }
        response = await self.call(
            "POST", "/v1/files/plan", body=packed_manifest or b"", params=query, timeout=TIMEOUT
        )
        return self.decode(FilePlan, response.content)

    async def put_chunks(self, frames: AsyncIterator[bytes]) -> ChunksAnswer:
        """Sends a stream of frames; the node keeps every one that arrives whole."""
        async with self.stream("PUT", "/v1/files/chunks", body=frames) as response:
            return self.decode(ChunksAnswer, await response.aread())

    async def apply(self, mount: MountRef) -> AppliedTree:
        request = ApplyTree(mount.manifest_id, mount.destination, mount.is_file)
        response = await self.call("POST", "/v1/files/apply", body=dumps(request), timeout=TIMEOUT)
        return self.decode(AppliedTree, response.content)
