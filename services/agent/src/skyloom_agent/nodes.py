"""The nodes of the cluster as the head uses them: its own without HTTP, the others through their agents."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol, Union

from skyloom_agent import framing
from skyloom_agent.http_client import PeerClient
from skyloom_agent.model import RankId, RankSpec, RankState
from skyloom_agent.ranks import ALIVE_SECONDS, RankTable
from skyloom_common.contracts.agent import NodeInfo
from skyloom_common.core import wire
from skyloom_common.core.errors import AgentUnreachable, NotFound

SILENCE_SECONDS = 3 * ALIVE_SECONDS


class Node(Protocol):
    shares_disk: bool
    """Whether the rank's log lies where the head reads it; else `follow` brings it."""

    async def info(self) -> NodeInfo: ...

    async def prepare(self, spec: RankSpec) -> RankState: ...

    async def start(self, uid: str) -> RankState: ...

    async def stop(self, uid: str) -> RankState: ...

    async def release(self, uid: str) -> None: ...

    def follow(self, uid: str, offset: int) -> AsyncIterator[Union[bytes, RankState]]:
        """Output from `offset` on and states, ending after the final state. b"" = something may be new, or it is alive."""
        ...


class LocalNode:
    shares_disk = True

    def __init__(self, table: RankTable, info: NodeInfo) -> None:
        self._table = table
        self._info = info

    async def info(self) -> NodeInfo:
        return self._info

    async def prepare(self, spec: RankSpec) -> RankState:
        return self._table.prepare(spec)

    async def start(self, uid: str) -> RankState:
        return self._table.start(uid)

    async def stop(self, uid: str) -> RankState:
        return self._table.stop(uid)

    async def release(self, uid: str) -> None:
        self._table.release(uid)

    async def follow(self, uid: str, offset: int) -> AsyncIterator[Union[bytes, RankState]]:
        rank = self._table.rank(uid)
        while True:
            seen, state = rank.changed.version, rank.state
            yield state
            if state.status in ("finished", "lost"):
                return
            await rank.changed.wait(seen)
            if not self._table.knows(rank):
                raise NotFound(f"rank {uid} was released")


class RemoteNode:
    shares_disk = False

    def __init__(self, url: str, token: str) -> None:
        self._peer = PeerClient(url, token)

    async def info(self) -> NodeInfo:
        return wire.from_wire(NodeInfo, await self._peer.call("GET", "/v1/info"))

    async def prepare(self, spec: RankSpec) -> RankState:
        return wire.from_wire(RankState, await self._peer.call("POST", "/v1/ranks/prepare", spec))

    async def start(self, uid: str) -> RankState:
        return wire.from_wire(RankState, await self._peer.call("POST", "/v1/ranks/start", RankId(uid)))

    async def stop(self, uid: str) -> RankState:
        return wire.from_wire(
            RankState, await self._peer.call("POST", "/v1/ranks/stop", RankId(uid), timeout=5.0)
        )

    async def release(self, uid: str) -> None:
        await self._peer.call("POST", "/v1/ranks/release", RankId(uid))

    async def follow(self, uid: str, offset: int) -> AsyncIterator[Union[bytes, RankState]]:
        decoder = framing.Decoder()
        path = f"/v1/ranks/{uid}/follow?offset={offset}"
        async for part in self._peer.stream("GET", path, silence=SILENCE_SECONDS):
            for kind, payload in decoder.feed(part):
                if kind == framing.STATE:
                    state = wire.loads(RankState, payload)
                    yield state
                    if state.status in ("finished", "lost"):
                        return
                else:
                    yield payload
        raise AgentUnreachable("the agent ended the stream of a rank that runs")
