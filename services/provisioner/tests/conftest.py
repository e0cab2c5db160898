"""A whole provisioner in this process, against fake clouds with fake agents, that can be crashed and started again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from skyloom_common.clients.asgi import AsgiTransport
from skyloom_common.clients.provisioner import ProvisionerClient
from skyloom_common.contracts.operations import Operation, OperationEvent
from skyloom_common.contracts.plan import Candidate, LaunchOutcome, Offer, Plan, PlanRequest, Rejection
from skyloom_common.contracts.task.model import TaskSpec
from skyloom_common.core.clock import SystemClock
from skyloom_common.core.errors import Unavailable
from skyloom_common.testing.databases import fresh_database, postgres_server
from skyloom_provisioner.main import Provisioner, World, create_app
from skyloom_provisioner.nodes.lifecycle import Limits
from skyloom_provisioner.providers.fake.agents import FakeAgents
from skyloom_provisioner.providers.fake.provider import FakeProvider
from skyloom_provisioner.settings import ProvisionerSettings

TOKEN = "test-service-token-0123456789"
OFFERS = tuple(
    Offer(
        cloud="fake",
        instance_type="big",
        region=region,
        zone=f"{region}{zone}",
        vcpus=4,
        memory_gib=16,
        price_per_hour=1.5,
    )
    for region in ("east", "west")
    for zone in ("a", "b")
)


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with postgres_server(tmp_path_factory.mktemp("postgres")) as url:
        yield url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.integration)])
def any_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/any.db"
    return fresh_database(request.getfixturevalue("postgres_url"))


class Crash(BaseException):
    """The process dies at a checkpoint."""


@dataclass
class FakeOptimizer:
    """Offers as they come, without the blocked ones being sorted out: that is checked by who asks."""

    requests: list[PlanRequest] = field(default_factory=list)
    outcomes: list[LaunchOutcome] = field(default_factory=list)
    """Each id once, as the real one records them; `heard` has the repetitions too."""
    heard: list[LaunchOutcome] = field(default_factory=list)
    away: int = 0

    async def plan(self, request: PlanRequest) -> Plan:
        self.requests.append(request)
        if self.away:
            self.away -= 1
            raise Unavailable("the optimizer is away")
        wanted = request.task.resources.cloud
        usable = [offer for offer in request.extra_offers if wanted in (None, offer.cloud)]
        candidates = tuple(Candidate(offer, request.task.num_nodes, offer.price_per_hour) for offer in usable)
        rejected = () if candidates else (Rejection("fake", "size", "nothing is big enough"),)
        return Plan(candidates=candidates, rejected=rejected, considered=len(usable))

    async def catalog(self) -> dict[str, Any]:
        return {"clouds": [{"name": "aws"}, {"name": "fake"}]}

    async def record_outcome(self, outcome: LaunchOutcome) -> None:
        self.heard.append(outcome)
        if outcome.id not in {known.id for known in self.outcomes}:
            self.outcomes.append(outcome)


@dataclass
class Rig:
    """One deployment: its database and its cloud outlive the process, which `start` and `crash` begin and end."""

    home: Path
    database_url: str
    agents: FakeAgents = field(default_factory=FakeAgents)
    optimizer: FakeOptimizer = field(default_factory=FakeOptimizer)
    provider: FakeProvider = field(init=False)
    settings: dict[str, Any] = field(default_factory=dict)
    limits: Limits = field(default_factory=lambda: Limits(running=5, agent=1, gone=5, stopped=5))
    retry_seconds: float = 0.05
    crashed: asyncio.Event = field(default_factory=asyncio.Event)
    reached: list[str] = field(default_factory=list)
    provisioner: Provisioner = field(init=False)
    client: ProvisionerClient = field(init=False)
    _stack: Any = None
    _number: int = 0

    def __post_init__(self) -> None:
        self.provider = FakeProvider(SystemClock(), offer_list=OFFERS, agents=self.agents)

    async def start(self, crash_at: str | None = None, crash_count: int = 1) -> None:
        self.crashed.clear()
        left = crash_count

        def checkpoint(name: str) -> None:
            nonlocal left
            self.reached.append(name)
            if self.crashed.is_set():
                raise Crash(name)
            if name == crash_at:
                left -= 1
                if left == 0:
                    self.crashed.set()
                    raise Crash(name)

        self._number += 1
        settings = ProvisionerSettings(
            home=self.home,
            service_token=TOKEN,
            database_url=self.database_url,
            gc_seconds=3600,
            **self.settings,
        )
        world = World(
            providers={"fake": self.provider},
            agent_transport=self.agents.transport,
            limits=self.limits,
            retry_seconds=self.retry_seconds,
            checkpoint=checkpoint,
            identity=f"elsewhere|{self._number}|1",
        )
        app = create_app(settings, optimizer=self.optimizer, world=world)  # type: ignore[arg-type]
        self._stack = app.router.lifespan_context(app)
        await self._stack.__aenter__()
        self.provisioner = app.state.provisioner
        http = httpx.AsyncClient(
            transport=AsgiTransport(app),
            base_url="http://provisioner",
            headers={"Authorization": f"Bearer {TOKEN}"},
        )
        self.client = ProvisionerClient(http)

    async def crash(self) -> None:
        """Ends everything without a word; the leases look as a dead process leaves them."""
        self.crashed.set()
        provisioner = self.provisioner
        provisioner._look.cancel()  # type: ignore[union-attr]
        provisioner.keeper._task.cancel()  # type: ignore[union-attr]
        for part in (provisioner.runner, provisioner.executor, provisioner.collector, provisioner.watches):
            await part.stop()
        await provisioner.outcomes.stop()
        await provisioner.announcer.stop()
        async with provisioner.database.write() as connection:
            await connection.execute(provisioner.keeper._tables.replicas.delete())
        await provisioner.database.close()

    async def stop(self) -> None:
        await self._stack.__aexit__(None, None, None)

    async def finished(self, operation: Operation | str, seconds: float = 10) -> Operation:
        id = operation if isinstance(operation, str) else operation.id
        async with asyncio.timeout(seconds):
            async for _ in self.client.operation_events(id):
                pass
            return await self.client.operation(id)

    async def events(self, operation: Operation) -> list[OperationEvent]:
        return [event async for event in self.client.operation_events(operation.id)]

    async def until(self, condition: Callable[[], Awaitable[Any] | Any], seconds: float = 10) -> Any:
        async with asyncio.timeout(seconds):
            while True:
                found = condition()
                found = await found if asyncio.iscoroutine(found) else found
                if found:
                    return found
                await asyncio.sleep(0.005)

    async def status(self, name: str) -> str | None:
        found = await self.client.clusters([name])
        return found[0].status.value if found else None

    def agent_of(self, rank: int = 0) -> Any:
        for agent in self.agents.by_instance.values():
            if agent.alive and agent.membership is not None and agent.membership.rank == rank:
                return agent
        raise AssertionError(f"no agent of rank {rank}")


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    rig = Rig(tmp_path / "home", f"sqlite:///{tmp_path}/provisioner.db")
    yield rig
    if rig._stack is not None and not rig.crashed.is_set():
        await rig.stop()


@pytest.fixture
async def started(rig: Rig) -> Rig:
    await rig.start()
    return rig


@pytest.fixture
def task() -> TaskSpec:
    return TaskSpec(name="train", run="echo hi")
