"""Builds the provisioner: the only place where its parts are made and put together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from skyloom_common.bus import RESYNC, Bus
from skyloom_common.clients.optimizer import OptimizerClient
from skyloom_common.contracts.events import (
    OPERATION_ADVANCED,
    OPERATION_CANCEL_REQUESTED,
    OPERATION_CREATED,
    Event,
)
from skyloom_common.contracts.files import MAX_FILES_BODY
from skyloom_common.core.clock import Clock, SystemClock
from skyloom_common.core.errors import SkyloomError
from skyloom_common.reconcile import Backoff, Runner
from skyloom_common.service.app import MAX_BODY, create_service_app
from skyloom_common.service.auth import ServiceTokenAuth
from skyloom_common.service.run import main as run_service
from skyloom_common.service.shell import BodyLimit
from skyloom_common.store import Database, ensure_schema
from skyloom_common.store.lease import LeaseKeeper
from skyloom_provisioner import files
from skyloom_provisioner.announcer import Announcer
from skyloom_provisioner.api import clusters as clusters_api
from skyloom_provisioner.api import jobs as jobs_api
from skyloom_provisioner.api import operations as operations_api
from skyloom_provisioner.api import planning as planning_api
from skyloom_provisioner.api.docs import Answers
from skyloom_provisioner.api.service import Service
from skyloom_provisioner.bundle import AgentBundle
from skyloom_provisioner.clusters.revive import Reviver
from skyloom_provisioner.clusters.snapshot import ClusterSnapshot
from skyloom_provisioner.clusters.store import ClusterStore
from skyloom_provisioner.clusters.upkeep import WORK_LOOK_SECONDS, ClusterReconciler
from skyloom_provisioner.deployment import Deployment, load_secret
from skyloom_provisioner.nodes.agents import AgentPool
from skyloom_provisioner.nodes.gc import GarbageCollector
from skyloom_provisioner.nodes.lifecycle import Limits, NodeLifecycle
from skyloom_provisioner.nodes.live import LiveView
from skyloom_provisioner.nodes.watch import NodeWatches
from skyloom_provisioner.operations.context import Parts
from skyloom_provisioner.operations.executor import Executor
from skyloom_provisioner.operations.launch import LAUNCH_KIND, START_KIND
from skyloom_provisioner.operations.rows import AUTOSTOP, DOWN, EXEC, LAUNCH, START, STOP
from skyloom_provisioner.operations.signals import Signals
from skyloom_provisioner.operations.stopping import AUTOSTOP_KIND, DOWN_KIND, STOP_KIND
from skyloom_provisioner.operations.store import OperationStore
from skyloom_provisioner.operations.submit import EXEC_KIND
from skyloom_provisioner.outcomes.outbox import Outbox
from skyloom_provisioner.outcomes.sender import KEY as OUTCOMES
from skyloom_provisioner.outcomes.sender import OutcomeMetrics, OutcomeSender
from skyloom_provisioner.providers.base import Provider
from skyloom_provisioner.providers.metered import MeteredProvider, ProviderMetrics
from skyloom_provisioner.providers.registry import ProviderContext, Providers, load_providers
from skyloom_provisioner.settings import ProvisionerSettings
from skyloom_provisioner.tables import SCHEMA, lease_tables

_log = logging.getLogger(__name__)
VERSION = version("skyloom-provisioner")
KINDS = {
    LAUNCH: LAUNCH_KIND,
    EXEC: EXEC_KIND,
    START: START_KIND,
    STOP: STOP_KIND,
    DOWN: DOWN_KIND,
    AUTOSTOP: AUTOSTOP_KIND,
}
CLUSTERS_AT_ONCE = 64
OUTCOME_SECONDS = 30.0
"""How long an outcome may wait whose replica died before it was told."""


@dataclass(frozen=True)
class World:
    """What a test may bring instead of the real thing. `providers` None = those of the registry."""

    clock: Clock = field(default_factory=SystemClock)
    providers: Mapping[str, Provider] | None = None
    agent_transport: httpx.AsyncBaseTransport | None = None
    limits: Limits = field(default_factory=Limits)
    retry_seconds: float = 30.0
    checkpoint: Callable[[str], None] | None = None
    identity: str | None = None
    """Of this process, for its leases; two in one process need two."""


class Provisioner:
    """Every part, wired. Needs a running loop."""

    def __init__(
        self,
        settings: ProvisionerSettings,
        optimizer: OptimizerClient,
        bus: Bus | None,
        world: World,
        registry: CollectorRegistry,
    ) -> None:
        clock = world.clock
        self.settings = settings
        self.bus = bus
        self.database = Database(settings.database_url)
        self.deployment = Deployment(load_secret(settings.home, settings.deployment_secret))
        self.bundle = AgentBundle(settings.home, settings.agent_bundle)
        providers = Providers(_metered(self._load(world), registry))
        self.keeper = LeaseKeeper(
            self.database,
            lease_tables,
            clock,
            ttl=settings.lease_seconds,
            identity=world.identity,
            on_lost=self._on_leases_lost,
        )
        clusters = ClusterStore(self.database, self.keeper, clock)
        operations = OperationStore(self.database, self.keeper, clock)
        agents = AgentPool(providers, self.deployment, world.agent_transport)
        live = LiveView(clock)
        lifecycle = NodeLifecycle(
            providers,
            agents,
            clusters,
            self.deployment,
            clock,
            live,
            heartbeat_seconds=settings.heartbeat_seconds,
            limits=world.limits,
        )
        self.watches = NodeWatches(
            agents, clusters, live, clock, self._wake, heartbeat_seconds=settings.heartbeat_seconds
        )
        self.signals = Signals()
        self.announcer = Announcer(bus, self.keeper.id, self._on_event)
        reviver = Reviver(clusters, lifecycle, live, self.watches, self._emit)
        self.parts = Parts(
            clock=clock,
            deployment=self.deployment,
            providers=providers,
            clusters=clusters,
            operations=operations,
            lifecycle=lifecycle,
            agents=agents,
            live=live,
            watches=self.watches,
            reviver=reviver,
            optimizer=optimizer,
            files=files.FileStore(settings.home / "files", max_bytes=int(settings.file_store_gib * 2**30)),
            retry_seconds=world.retry_seconds,
            checkpoint=world.checkpoint or _crash_point(settings.crash_at),
        )
        self.executor = Executor(self.parts, KINDS)
        reconciler = ClusterReconciler(self.parts, self.executor, self.keeper)
        self.runner = Runner(
            reconciler.reconcile, name="cluster", workers=CLUSTERS_AT_ONCE, list_keys=reconciler.keys
        )
        sender = OutcomeSender(Outbox(self.database), optimizer, clock, OutcomeMetrics(registry))
        self.outcomes = Runner(
            sender.reconcile,
            name="tell",
            workers=1,
            list_keys=sender.keys,
            backoff=Backoff(longest=OUTCOME_SECONDS),
            resync_seconds=OUTCOME_SECONDS,
        )
        self._look: asyncio.Task[None] | None = None
        self.collector = GarbageCollector(
            providers, clusters, self.deployment, clock, every=settings.gc_seconds
        )
        self.service = Service(self.parts, self.runner, self.signals, ClusterSnapshot(clusters, live, clock))
        operations.on_change = self._operation_changed
        operations.on_cancel = self._cancel_wished
        operations.on_created = self._operation_created
        clusters.on_change = self.announcer.cluster_changed
        clusters.on_outcome = lambda: self.outcomes.wake(OUTCOMES)

    def _load(self, world: World) -> Mapping[str, Provider]:
        if world.providers is not None:
            return world.providers
        context = ProviderContext(self.settings.home, world.clock, self.bundle.path)
        return load_providers(context, self.settings.providers)

    async def start(self) -> None:
        await ensure_schema(self.database, SCHEMA)
        await self.keeper.start()
        self.watches.start()
        self.announcer.start()
        self.runner.start()
        self.outcomes.start()
        self.collector.start()
        self._look = asyncio.create_task(self._look_for_work(), name="look-for-work")

    async def stop(self) -> None:
        """What runs stays as its rows say and goes on at the next start."""
        if self._look is not None:
            self._look.cancel()
            await asyncio.gather(self._look, return_exceptions=True)
        for part in (self.runner, self.executor, self.outcomes, self.collector, self.watches):
            await part.stop()
        await self.announcer.stop()
        await self.keeper.stop()
        await self.parts.agents.close()
        await self.database.close()

    async def readiness(self) -> Mapping[str, str]:
        checks = {"database": self.database.ping}
        if self.bus is not None:
            checks["bus"] = self.bus.ping
        found = {}
        for name, check in checks.items():
            try:
                await check()
                found[name] = "ok"
            except SkyloomError as error:
                found[name] = error.message
        return found

    # --- wake-ups ---

    async def _look_for_work(self) -> None:
        """The net under the bus: one cheap query, so that losing every event costs seconds."""
        while True:
            await self.parts.clock.sleep(WORK_LOOK_SECONDS)
            try:
                for target in await self.parts.operations.unfinished_targets():
                    if not self.runner.is_running(target):
                        self.runner.wake(target)
            except SkyloomError as error:
                _log.warning("cannot look for work: %s", error)

    def _wake(self, cluster: str) -> None:
        self.runner.wake(cluster)

    def _operation_created(self, target: str) -> None:
        self.runner.wake(target)
        self.announcer.announce(OPERATION_CREATED, target)

    def _operation_changed(self, id: str) -> None:
        self.signals.notify(id)
        self.announcer.announce(OPERATION_ADVANCED, id)

    def _cancel_wished(self, id: str) -> None:
        self.executor.cancel_wished(id)
        self.announcer.announce(OPERATION_CANCEL_REQUESTED, id)

    def _on_event(self, event: Event) -> None:
        """From another replica."""
        if event.kind == OPERATION_ADVANCED:
            self.signals.notify(event.key)
        elif event.kind == OPERATION_CANCEL_REQUESTED:
            self.executor.cancel_wished(event.key)
        elif event.kind == OPERATION_CREATED:
            self.runner.wake(event.key)
        elif event.kind == RESYNC:
            _log.debug("the bus is back; followers look for themselves")

    def _on_leases_lost(self) -> None:
        self.watches.drop_all()

    async def _emit(self, kind: str, key: str, data: dict[str, Any]) -> None:
        self.announcer.announce(kind, key, **data)


def create_app(
    settings: ProvisionerSettings,
    *,
    optimizer: OptimizerClient | None = None,
    bus: Bus | None = None,
    world: World | None = None,
) -> FastAPI:
    """`optimizer` and `bus` given = shared with other services of this process; else made from the settings."""
    registry = CollectorRegistry()
    holder: dict[str, Provisioner] = {}

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            provisioner = Provisioner(
                settings,
                optimizer or await _own_optimizer(settings, stack),
                bus or await _own_bus(settings, stack),
                world or World(),
                registry,
            )
            holder["it"] = app.state.provisioner = provisioner
            _add_routes(app, provisioner.service)
            stack.push_async_callback(provisioner.stop)
            await provisioner.start()
            yield

    async def readiness() -> Mapping[str, str]:
        return await holder["it"].readiness() if holder else {"database": "not started"}

    return create_service_app(
        name="provisioner",
        version=VERSION,
        auth=ServiceTokenAuth(settings.service_token),
        readiness=readiness,
        lifespan=lifespan,
        registry=registry,
        body_limit=BodyLimit(MAX_BODY, {"/v1/files/": MAX_FILES_BODY}),
    )


def _add_routes(app: FastAPI, service: Service, *, described: bool = False) -> None:
    answers = Answers(described)
    app.include_router(clusters_api.router(service, answers))
    app.include_router(jobs_api.router(service, answers))
    app.include_router(operations_api.router(service, answers))
    app.include_router(planning_api.router(service, answers))
    app.include_router(files.router(service.parts.files))


def openapi_app() -> FastAPI:
    """Every route, nothing behind them: for the golden OpenAPI file."""
    app = create_app(
        ProvisionerSettings(
            home=Path("/nonexistent"), service_token="x" * 16, database_url="sqlite:///:memory:"
        )
    )
    _add_routes(app, _Shape(), described=True)  # type: ignore[arg-type]
    return app


class _Shape:
    """Stands for any part while routes are only described."""

    def __getattr__(self, name: str) -> Any:
        return self


def _metered(providers: Mapping[str, Provider], registry: CollectorRegistry) -> dict[str, Any]:
    metrics = ProviderMetrics(registry)
    return {name: MeteredProvider(provider, metrics) for name, provider in providers.items()}


async def _own_optimizer(settings: ProvisionerSettings, stack: contextlib.AsyncExitStack) -> OptimizerClient:
    http = httpx.AsyncClient(
        base_url=settings.optimizer_url,
        headers={"Authorization": f"Bearer {settings.service_token}"},
        timeout=httpx.Timeout(60, connect=3),
        trust_env=False,
    )
    return OptimizerClient(await stack.enter_async_context(http))


async def _own_bus(settings: ProvisionerSettings, stack: contextlib.AsyncExitStack) -> Bus | None:
    if not settings.redis_url:
        return None
    bus = Bus(settings.redis_url)
    stack.push_async_callback(bus.close)
    return bus


def _crash_point(wanted: str) -> Callable[[str], None]:
    """For failure tests of whole processes: death without any clean-up at the named point."""

    def reached(name: str) -> None:
        if wanted and name == wanted:
            os.kill(os.getpid(), signal.SIGKILL)

    return reached


def main() -> None:
    run_service(ProvisionerSettings, create_app)
