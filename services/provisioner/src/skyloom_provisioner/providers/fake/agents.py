"""Fake agents for fake instances: the part of the agent's API that the provisioner uses, without processes or sockets.

Give `FakeAgents.transport` to the agent pool and the object itself to FakeProvider. `kill(id)` ends an agent but not its jobs;
`refuse_start` names instances whose agents never come up; the next `die_at_start` agents end as soon as they are started,
the next `die_when_told` when they are told who their peers are.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import httpx

from skyloom_common.contracts.agent import AgentConfig, ClusterMembership, Heartbeat, NodeInfo
from skyloom_common.contracts.jobs import CancelledJobs, Job, JobList, JobStatus, JobSubmit
from skyloom_common.core.errors import Conflict, JobDoesNotExist, SkyloomError, Unauthenticated
from skyloom_common.core.ids import new_id
from skyloom_common.core.wire import dumps, loads
from skyloom_provisioner.providers.base import Instance


@dataclass
class FakeAgent:
    """`jobs` are the disk: they outlive the agent."""

    config: AgentConfig
    boot_id: str = field(default_factory=new_id)
    alive: bool = True
    membership: ClusterMembership | None = None
    jobs: dict[str, Job] = field(default_factory=dict)
    submits: list[JobSubmit] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    sequence: int = 0
    idle_jobs: float = 0.0
    idle_ssh: float = 0.0

    def active(self) -> int:
        return sum(not job.status.is_final for job in self.jobs.values())

    def finish(self, status: JobStatus = JobStatus.SUCCEEDED) -> None:
        """Ends every job."""
        for key, job in self.jobs.items():
            if not job.status.is_final:
                self.jobs[key] = replace(job, status=status, version=job.version + 1)
        self.push()

    def push(self) -> None:
        self.changed.set()


class FakeAgents:
    def __init__(self) -> None:
        self.by_instance: dict[str, FakeAgent] = {}
        self.transport = _Transport(self)
        self.refuse_start: set[str] = set()
        self.die_at_start = 0
        self.die_when_told = 0
        self.on_submit: Callable[[JobSubmit], None] = lambda job: None

    async def start(self, instance: Instance, config: AgentConfig) -> None:
        known = self.by_instance.get(instance.id)
        if instance.id in self.refuse_start or (known is not None and known.alive):
            return
        if self.die_at_start:
            self.die_at_start -= 1
            return
        fresh = FakeAgent(config)
        if known is not None:
            fresh.membership, fresh.jobs = known.membership, known.jobs
        self.by_instance[instance.id] = fresh

    def url(self, instance: Instance) -> str | None:
        agent = self.by_instance.get(instance.id)
        return f"http://{instance.id}" if agent is not None and agent.alive else None

    async def end(self, id: str) -> None:
        """Its machine stops or goes."""
        self.kill(id)

    def kill(self, id: str) -> None:
        agent = self.by_instance.get(id)
        if agent is not None:
            agent.alive = False
            agent.push()


class _Transport(httpx.AsyncBaseTransport):
    def __init__(self, agents: FakeAgents) -> None:
        self._agents = agents

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        agent = self._agents.by_instance.get(request.url.host)
        if agent is None or not agent.alive:
            raise httpx.ConnectError("nobody listens there", request=request)
        try:
            return await self._answer(agent, request)
        except SkyloomError as error:
            return httpx.Response(error.http_status, content=dumps(error.to_wire()))

    async def _answer(self, agent: FakeAgent, request: httpx.Request) -> httpx.Response:
        if request.headers.get("Authorization") != f"Bearer {agent.config.token}":
            raise Unauthenticated("wrong token")
        body = await request.aread()
        match request.method, request.url.path:
            case "GET", "/v1/info":
                return _json(self._info(agent, request.url.host))
            case "PUT", "/v1/cluster":
                if self._agents.die_when_told:
                    self._agents.die_when_told -= 1
                    self._agents.kill(request.url.host)
                    raise httpx.ReadError("the agent died", request=request)
                return self._join(agent, loads(ClusterMembership, body, strict=True))
            case "GET", "/v1/watch":
                return httpx.Response(200, stream=_Watch(agent))
            case "POST", "/v1/jobs":
                return _json(self._submit(agent, loads(JobSubmit, body, strict=True)))
            case "GET", "/v1/jobs":
                return _json(JobList(tuple(agent.jobs.values())))
            case "POST", "/v1/jobs/cancel":
                return self._cancel(agent)
        raise JobDoesNotExist(f"{request.method} {request.url.path}")

    def _info(self, agent: FakeAgent, host: str) -> NodeInfo:
        generation = agent.membership.generation if agent.membership else -1
        return NodeInfo(
            node_id=agent.config.node_id,
            boot_id=agent.boot_id,
            agent_version="fake",
            url=f"http://{host}",
            hostname=host,
            cpus=4,
            memory_gib=16,
            membership_generation=generation,
        )

    def _join(self, agent: FakeAgent, membership: ClusterMembership) -> httpx.Response:
        if agent.membership is not None and membership.generation < agent.membership.generation:
            raise Conflict("a newer membership is known")
        agent.membership = membership
        return httpx.Response(204)

    def _submit(self, agent: FakeAgent, submit: JobSubmit) -> Job:
        if submit.key not in agent.jobs:
            agent.submits.append(submit)
            agent.jobs[submit.key] = Job(
                job_id=len(agent.jobs) + 1,
                name=submit.name,
                user=submit.user,
                status=JobStatus.RUNNING,
                submitted_at=0.0,
                num_nodes=submit.num_nodes,
                key=submit.key,
            )
            agent.push()
            self._agents.on_submit(submit)
        return agent.jobs[submit.key]

    def _cancel(self, agent: FakeAgent) -> httpx.Response:
        ids = tuple(job.job_id for job in agent.jobs.values() if not job.status.is_final)
        agent.finish(JobStatus.CANCELLED)
        return _json(CancelledJobs(ids))


class _Watch(httpx.AsyncByteStream):
    def __init__(self, agent: FakeAgent) -> None:
        self._agent = agent

    async def __aiter__(self) -> AsyncIterator[bytes]:
        agent = self._agent
        told: dict[str, Job] = {}
        while agent.alive:
            agent.changed.clear()
            fresh = tuple(job for key, job in agent.jobs.items() if told.get(key) != job)
            told = dict(agent.jobs)
            agent.sequence += 1
            heartbeat = Heartbeat(
                node_id=agent.config.node_id,
                boot_id=agent.boot_id,
                seq=agent.sequence,
                at=0.0,
                idle_jobs_seconds=0.0 if agent.active() else agent.idle_jobs,
                idle_jobs_and_ssh_seconds=0.0 if agent.active() else agent.idle_ssh,
                active_jobs=agent.active(),
                jobs=fresh,
            )
            yield dumps(heartbeat) + b"\n"
            await agent.changed.wait()
        raise httpx.ReadError("the agent died")


def _json(value: Any) -> httpx.Response:
    return httpx.Response(200, content=dumps(value))
