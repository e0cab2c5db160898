"""Builds the optimizer from its settings; the only place that does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from importlib.metadata import version
from pathlib import Path

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from skyloom_common.core.clock import Clock, SystemClock
from skyloom_common.core.errors import StoreUnavailable
from skyloom_common.service import run
from skyloom_common.service.app import OK, create_service_app
from skyloom_common.service.auth import ServiceTokenAuth
from skyloom_common.store import Database, Schema, ensure_schema
from skyloom_optimizer.api import optimizer_router
from skyloom_optimizer.history.store import PriceHistoryStore
from skyloom_optimizer.outcomes import MemoryKeeper, OutcomeStore, metadata
from skyloom_optimizer.refresh.api import catalog_router
from skyloom_optimizer.refresh.files import RefreshFiles
from skyloom_optimizer.refresh.live import LiveCatalog
from skyloom_optimizer.refresh.metrics import CatalogMetrics
from skyloom_optimizer.refresh.schedule import RefreshSchedule
from skyloom_optimizer.refresh.service import RefreshService
from skyloom_optimizer.refresh.shared import SharedParts
from skyloom_optimizer.settings import OptimizerSettings

SCHEMA = Schema("optimizer", metadata, Path(__file__).parent / "migrations", head="0004")


def create_app(settings: OptimizerSettings, clock: Clock | None = None) -> FastAPI:
    """The service as an app. The database is opened when the app starts and closed when it ends."""
    clock = clock or SystemClock()
    database = Database(settings.database_url)
    files, registry = RefreshFiles(settings.home, clock.now), CollectorRegistry()
    live = LiveCatalog(settings.catalog, files.container, settings.offers_file)
    memory = MemoryKeeper(OutcomeStore(database), clock)
    history = PriceHistoryStore(database, clock)
    shared = None if database.is_sqlite else SharedParts(database, files)
    metrics = CatalogMetrics(registry)
    refresh = RefreshService(files, live, settings.catalog, history, metrics, clock, shared)
    schedule = RefreshSchedule(database, refresh, settings.timetable, clock, metrics)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await ensure_schema(database, SCHEMA)
        live.current.catalog.warm()
        looking = [asyncio.create_task(refresh.run_forever()), asyncio.create_task(schedule.run_forever())]
        try:
            yield
        finally:
            for task in looking:
                task.cancel()
            await asyncio.gather(*looking, return_exceptions=True)
            await refresh.close()
            await schedule.close()
            await database.close()

    async def readiness() -> Mapping[str, str]:
        try:
            await database.ping()
        except StoreUnavailable as error:
            return {"store": str(error)}
        return {"store": OK}

    app = create_service_app(
        name="optimizer",
        version=version("skyloom-optimizer"),
        auth=ServiceTokenAuth(settings.service_token),
        readiness=readiness,
        lifespan=lifespan,
        registry=registry,
    )
    app.include_router(optimizer_router(live, memory, clock.now))
    app.include_router(catalog_router(live, refresh, schedule, history, clock.now))
    return app


def openapi_app() -> FastAPI:
    """For the golden document: reads no environment and opens nothing."""
    return create_app(
        OptimizerSettings(home=Path("unused"), service_token="openapi", database_url="sqlite:///unused.db")
    )


def main() -> None:
    run.main(OptimizerSettings, create_app)


if __name__ == "__main__":
    main()
