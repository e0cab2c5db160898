"""Typed calls to one node's agent. The channel that reaches it is the transport of `http`; so is the token.

File calls are in clients/agent_files.py.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Optional

from skyloom_common.clients.base import ServiceClient
from skyloom_common.contracts.agent import ClusterMembership, Heartbeat, NodeInfo
from skyloom_common.contracts.http import LOG_OFFSET
from skyloom_common.contracts.jobs import CancelJobs, CancelledJobs, Job, JobList, JobSubmit
from skyloom_common.core.errors import AgentUnreachable, RemoteError
from skyloom_common.core.wire import dumps, from_wire

MAX_LINE = 16 << 20


class AgentClient(ServiceClient):
    service = "the node's agent"
    unreachable = AgentUnreachable

    async def healthy(self) -> bool:
        """Whether it answers at all; needs no token."""
        try:
            await self.call("GET", "/healthz")
        except AgentUnreachable:
            return False
        return True

    async def info(self) -> NodeInfo:
        return await self.get(NodeInfo, "/v1/info")

    async def set_cluster(self, membership: ClusterMembership) -> None:
        """Idempotent; a lower generation than the known one raises Conflict."""
        await self.call("PUT", "/v1/cluster", body=dumps(membership))

    async def watch(self) -> AsyncIterator[Heartbeat]:
        """Heartbeats until the connection breaks (AgentUnreachable) or the caller stops."""
        rest = b""
        async for piece in self.pieces("/v1/watch"):
            *lines, rest = (rest + piece).split(b"\n")
            if len(rest) > MAX_LINE:
                raise RemoteError(f"{self.service} sent a heartbeat longer than {MAX_LINE} bytes")
            for line in lines:
                if line.strip():
                    yield from_wire(Heartbeat, json.loads(line))
        raise AgentUnreachable(f"{self.service} at {self.http.base_url} ended its heartbeats")

    async def submit(self, job: JobSubmit) -> Job:
        return await self.post(Job, "/v1/jobs", job)

    async def jobs(self) -> tuple[Job, ...]:
        return (await self.get(JobList, "/v1/jobs")).jobs

    async def job(self, job_id: int) -> Job:
        return await self.get(Job, f"/v1/jobs/{int(job_id)}")

    async def cancel(self, request: CancelJobs) -> tuple[int, ...]:
        return (await self.post(CancelledJobs, "/v1/jobs/cancel", request)).job_ids

    def logs(
        self,
        job_id: int,
        *,
        follow: bool = False,
        offset: Optional[int] = None,
        tail: Optional[int] = None,
        rank: Optional[int] = None,
        phase: Optional[str] = None,
    ) -> AgentLogs:
        """`async with agent.logs(1, follow=True) as log: log.offset; async for piece in log: ...`"""
        query = {"follow": int(follow), "offset": offset, "tail": tail, "rank": rank, "phase": phase}
        return AgentLogs(self, f"/v1/jobs/{int(job_id)}/logs", query)

    def archive(self, job_id: int) -> AsyncIterator[bytes]:
        """A tar of the job's log directory, as it comes."""
        return self.pieces(f"/v1/jobs/{int(job_id)}/archive")

    async def shutdown(self) -> None:
        """The agent answers first, then ends its jobs and itself."""
        await self.call("POST", "/v1/shutdown")


class AgentLogs:
    """An open log. `offset`: where its first byte lies in the whole log, so that a reader can come back."""

    def __init__(self, agent: AgentClient, path: str, query: dict[str, Any]) -> None:
        params = {name: value for name, value in query.items() if value is not None}
        self._opening = agent.stream("GET", path, params=params)
        self.offset = 0

    async def __aenter__(self) -> AgentLogs:  # noqa: PYI034 - Self is not in Python 3.9
        self._response = await self._opening.__aenter__()
        sent = self._response.headers.get(LOG_OFFSET, "0")
        self.offset = int(sent) if sent.isdigit() else 0
        return self

    async def __aexit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        stack: Optional[TracebackType],
    ) -> Optional[bool]:
        return await self._opening.__aexit__(kind, error, stack)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._response.aiter_raw()
