"""Builds the optimizer from its settings; the only place that does."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from importlib.metadata import version
from pathlib import Path

from fastapi import FastAPI

from skyloom_common.core.clock import Clock, SystemClock
from skyloom_common.core.errors import StoreUnavailable
from skyloom_common.service import run
from skyloom_common.service.app import OK, create_service_app
from skyloom_common.service.auth import ServiceTokenAuth
from skyloom_common.store import Database, Schema, ensure_schema
from skyloom_optimizer.api import optimizer_router
from skyloom_optimizer.catalog.load import load_catalog
from skyloom_optimizer.outcomes import MemoryKeeper, OutcomeStore, metadata
from skyloom_optimizer.settings import OptimizerSettings

SCHEMA = Schema("optimizer", metadata, Path(__file__).parent / "migrations", head="0001")


def create_app(settings: OptimizerSettings, clock: Clock | None = None) -> FastAPI:
    """The service as an app. The database is opened when the app starts and closed when it ends."""
    database = Database(settings.database_url)
    catalog = load_catalog(settings.catalog)
    memory = MemoryKeeper(OutcomeStore(database), clock or SystemClock())

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await ensure_schema(database, SCHEMA)
        catalog.warm()
        try:
            yield
        finally:
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
    )
    app.include_router(optimizer_router(catalog, memory))
    return app


def openapi_app() -> FastAPI:
    """For the golden document: reads no environment and opens nothing."""
    return create_app(
        OptimizerSettings(home=Path(), service_token="openapi", database_url="sqlite:///unused.db")
    )


def main() -> None:
    run.main(OptimizerSettings, create_app)


if __name__ == "__main__":
    main()
