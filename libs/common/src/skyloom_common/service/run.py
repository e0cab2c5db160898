"""A service's process: environment, logging, socket, signals, exit code. Light to import; the server comes late."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from skyloom_common.service.env import SettingsError
from skyloom_common.service.logs import configure_logging
from skyloom_common.service.settings import ServiceSettings

if TYPE_CHECKING:
    from fastapi import FastAPI

S = TypeVar("S", bound=ServiceSettings)
BACKLOG = 1024


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises OSError when the address is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


@contextlib.asynccontextmanager
async def lifespan_of(app: FastAPI) -> AsyncIterator[None]:
    """Runs an app's start and end where no server does it (several apps in one process, tests)."""
    async with app.router.lifespan_context(app):
        yield


def run_until_signal(main: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    """Runs `main(stop)` on uvloop; SIGTERM and SIGINT set `stop`, a second one ends the process at once."""

    async def guarded() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()

        def on_signal() -> None:
            if stop.is_set():
                os._exit(1)
            stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal)
        await main(stop)

    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(guarded())


def say(service: str, sentence: str) -> None:
    """To the person or supervisor who started the process; the log may be elsewhere."""
    sys.stderr.write(f"skyloom-{service}: {sentence}\n")
    sys.stderr.flush()


def main(settings_class: type[S], create: Callable[[S], FastAPI]) -> None:
    """The whole `main` of a service that runs by itself."""
    name = settings_class.SERVICE
    try:
        settings = settings_class.from_env()
        configure_logging(settings.log_level, secrets=(settings.service_token,))
        app = create(settings)
    except SettingsError as error:
        for problem in error.problems:
            say(name, problem)
        sys.exit(2)
    try:
        sock = bind(settings.host, settings.port)
    except OSError as error:
        where = f"{settings.host}:{settings.port}"
        say(name, f"cannot listen on {where}: {error.strerror}; set SKYLOOM_PORT to another port")
        sys.exit(1)

    async def announce(url: str) -> None:
        gc.freeze()
        say(name, f"ready at {url}")

    async def run(stop: asyncio.Event) -> None:
        from skyloom_common.service.server import serve

        await serve(app, sock, stop, grace_seconds=settings.grace_seconds, on_ready=announce)

    run_until_signal(run)
