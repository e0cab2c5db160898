"""Brings trees from the file store to nodes: the agent says what it lacks, gets that, and puts the tree in place.

It keeps no state: after any interruption the same call goes on where the agent stands.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import httpx

from skyloom_common.clients.agent_files import AgentFilesClient
from skyloom_common.contracts.clusters import MountRef
from skyloom_common.contracts.file_frames import frame_head
from skyloom_common.contracts.files import CorruptChunk, FilesMissing, check_destination
from skyloom_common.core.errors import Conflict
from skyloom_provisioner.files.store import FileStore

ROUNDS = 4
PIECE = 1024 * 1024
REQUEST_BYTES = 64 * 1024 * 1024
"""One request each: a node that refuses reads the rest of it away before it answers."""

OnProgress = Callable[[int, int], None]
"""(bytes sent, bytes to send) to one node; called as chunks go out."""


@dataclass(frozen=True)
class PushResult:
    """`written`: entries that were put in place; 0 when the node had everything already."""

    written: int = 0
    chunks_sent: int = 0
    bytes_sent: int = 0


async def push_tree(
    http: httpx.AsyncClient, store: FileStore, mount: MountRef, on_progress: OnProgress | None = None
) -> PushResult:
    """Makes `mount.destination` on one node hold the tree. `http`: base URL and token of the node's agent."""
    check_destination(mount.destination)
    agent = AgentFilesClient(http)
    with store.using([mount.manifest_id]):
        return await _Push(agent, store, mount, on_progress or (lambda sent, total: None)).run()


async def push_mounts(
    nodes: Sequence[httpx.AsyncClient],
    store: FileStore,
    mounts: Sequence[MountRef],
    on_progress: Callable[[int, MountRef, int, int], None] | None = None,
) -> list[PushResult]:
    """All mounts to all nodes, the nodes side by side, one result per node and mount. The first failure ends the others.

    `on_progress(node index, mount, bytes sent, bytes to send)`. Mounts go in the order given: the workdir first.
    """

    async def one_node(index: int, http: httpx.AsyncClient) -> list[PushResult]:
        done = []
        for mount in mounts:
            report = (
                (lambda sent, total, m=mount: on_progress(index, m, sent, total)) if on_progress else None
            )
            done.append(await push_tree(http, store, mount, report))
        return done

    tasks = [asyncio.create_task(one_node(index, http)) for index, http in enumerate(nodes)]
    try:
        results = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return [result for per_node in results for result in per_node]


class _Push:
    def __init__(
        self, agent: AgentFilesClient, store: FileStore, mount: MountRef, on_progress: OnProgress
    ) -> None:
        self._agent = agent
        self._store = store
        self._mount = mount
        self._on_progress = on_progress
        self._chunks_sent = 0
        self._bytes_sent = 0

    async def run(self) -> PushResult:
        for _ in range(ROUNDS):
            plan = await self._agent.plan(self._mount)
            if plan.need_manifest:
                packed = await asyncio.to_thread(self._store.packed_manifest, self._mount.manifest_id)
                plan = await self._agent.plan(self._mount, packed)
            if not plan.missing and not plan.changed:
                return PushResult(0, self._chunks_sent, self._bytes_sent)
            if plan.missing:
                await self._send(plan.missing)
            applied = await self._agent.apply(self._mount)
            if not applied.missing:
                return PushResult(applied.written, self._chunks_sent, self._bytes_sent)
        raise Conflict(
            f"the files at {self._mount.destination} on the node change faster than they can be synced",
            hint="Cancel the job that writes there and try again.",
        )

    async def _send(self, missing: Sequence[str]) -> None:
        sizes = await asyncio.to_thread(self._store.chunk_sizes, self._mount.manifest_id)
        total = sum(sizes.get(name, 0) for name in missing)
        sent = 0
        try:
            for names in _grouped(missing, sizes, REQUEST_BYTES, len(missing)):
                await self._agent.put_chunks(self._frames(names, sizes, sent, total))
                sent += sum(sizes.get(name, 0) for name in names)
        except CorruptChunk as error:
            # The node checks every chunk, so that we need not: it found one that our own disk has spoilt.
            dropped = await asyncio.to_thread(self._store.drop_damaged, self._mount.manifest_id)
            if not dropped:
                raise
            raise FilesMissing(
                f"{dropped} chunks of {self._mount.destination} are damaged in the file store and were removed",
                hint="Launch again: the client sends what is missing.",
            ) from error

    async def _frames(
        self, names: Sequence[str], sizes: Mapping[str, int], sent: int, total: int
    ) -> AsyncIterator[bytes]:
        for group in _grouped(names, sizes, PIECE, 512):
            for piece in await asyncio.to_thread(self._read, group):
                yield piece
            size = sum(sizes.get(name, 0) for name in group)
            sent += size
            self._chunks_sent += len(group)
            self._bytes_sent += size
            self._on_progress(sent, total)

    def _read(self, names: Sequence[str]) -> list[bytes]:
        """Small chunks in one piece with their heads; a big one in slices, so that nobody has to copy it whole."""
        pieces: list[bytes] = []
        small: list[bytes] = []
        for name in names:
            data = self._store.read(name)
            small.append(frame_head(name, len(data)))
            if len(data) < PIECE:
                small.append(data)
                continue
            pieces.append(b"".join(small))
            small = []
            pieces.extend(data[start : start + PIECE] for start in range(0, len(data), PIECE))
        pieces.append(b"".join(small))
        return [piece for piece in pieces if piece]


def _grouped(
    names: Sequence[str], sizes: Mapping[str, int], most_bytes: int, most_names: int
) -> Iterator[list[str]]:
    """Runs of names that reach `most_bytes` together, or are `most_names`."""
    group: list[str] = []
    size = 0
    for name in names:
        group.append(name)
        size += sizes.get(name, 0)
        if size >= most_bytes or len(group) >= most_names:
            yield group
            group, size = [], 0
    if group:
        yield group
