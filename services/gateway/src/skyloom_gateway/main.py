"""Builds the gateway from its settings; the only place that does."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import httpx
from fastapi import FastAPI

from skyloom_common.bus import Bus
from skyloom_common.clients.optimizer import OptimizerClient
from skyloom_common.clients.provisioner import ProvisionerClient
from skyloom_common.contracts.files import MAX_FILES_BODY
from skyloom_common.service import run
from skyloom_common.service.app import MAX_BODY, create_service_app
from skyloom_common.service.auth import Authenticator, UserTokenAuth, token_hash
from skyloom_common.service.shell import BodyLimit
from skyloom_gateway.api import API, client_router
from skyloom_gateway.info import VERSION, About
from skyloom_gateway.settings import GatewaySettings
from skyloom_gateway.tokens import FileTokens, local_auth, new_token


def create_app(
    settings: GatewaySettings,
    *,
    provisioner: ProvisionerClient | None = None,
    optimizer: OptimizerClient | None = None,
    bus: Bus | None = None,
    auth: Authenticator | None = None,
) -> FastAPI:
    """Clients that are given stay their giver's; those made here from the settings are closed with the app."""
    owned: list[httpx.AsyncClient] = []

    def http(url: str) -> httpx.AsyncClient:
        owned.append(_http(url, settings.service_token))
        return owned[-1]

    provisioner = provisioner or ProvisionerClient(http(settings.provisioner_url))
    optimizer = optimizer or OptimizerClient(http(settings.optimizer_url))
    own_bus = Bus(settings.redis_url) if settings.redis_url and bus is None else None
    about = About(
        {"optimizer": optimizer, "provisioner": provisioner}, _store(settings.database_url), bus or own_bus
    )

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            for client in owned:
                await client.aclose()
            if own_bus is not None:
                await own_bus.close()

    async def readiness() -> Mapping[str, str]:
        return await about.readiness()

    app = create_service_app(
        name="gateway",
        version=VERSION,
        auth=auth or _auth(settings),
        readiness=readiness,
        lifespan=lifespan,
        body_limit=BodyLimit(MAX_BODY, {f"{API}/files/": MAX_FILES_BODY}),
    )
    app.include_router(client_router(settings, provisioner, optimizer, about))
    return app


def _auth(settings: GatewaySettings) -> Authenticator:
    return FileTokens(settings.tokens_file) if settings.tokens_file else local_auth(settings.home)


def _http(url: str, token: str) -> httpx.AsyncClient:
    """Streams last as long as their readers, so there is no limit on connections; reads of calls are bounded."""
    return httpx.AsyncClient(
        base_url=url,
        headers={"Authorization": f"Bearer {token}", "Accept-Encoding": "identity"},
        timeout=httpx.Timeout(60.0, connect=5.0),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
        trust_env=False,
        # Loading the system's certificates takes longer than the rest of the start.
        verify=url.startswith("https:"),
    )


def _store(database_url: str) -> str:
    return "sqlite" if database_url.startswith("sqlite") else "postgresql"


def openapi_app() -> FastAPI:
    """For the golden document: reads no environment and opens nothing."""
    settings = GatewaySettings(home=Path(), service_token="openapi", database_url="sqlite:///unused.db")
    return create_app(settings, auth=UserTokenAuth({}))


def main() -> None:
    """`skyloom-gateway` serves; `skyloom-gateway new-token USER` prints a token and its line for the tokens file."""
    if len(sys.argv) == 3 and sys.argv[1] == "new-token":
        token = new_token()
        print(f"token (give it to {sys.argv[2]}, it is not stored): {token}")  # noqa: T201
        print(f"for SKYLOOM_TOKENS_FILE: {json.dumps({token_hash(token): sys.argv[2]})}")  # noqa: T201
        return
    if len(sys.argv) > 1:
        sys.exit("usage: skyloom-gateway [new-token USER]; everything else is set by SKYLOOM_* variables")
    run.main(GatewaySettings, create_app)


if __name__ == "__main__":
    main()
