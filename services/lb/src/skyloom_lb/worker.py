"""One process that serves: listener, sweep, sources, probes, reports; ends by draining. `main` and `workers` start it."""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any

from skyloom_lb.balancer import Balancer, MakeFront
from skyloom_lb.careful.lane import CarefulLane
from skyloom_lb.endpoints.file import FileSource
from skyloom_lb.exchange import Closes
from skyloom_lb.fast.front import FrontConnection
from skyloom_lb.health.probes import Prober
from skyloom_lb.observe.accesslog import AccessLog
from skyloom_lb.observe.snapshot import snapshot
from skyloom_lb.settings import Settings

_BACKLOG = 4096
_SPARE_FILES = 64
_NEW_WORTH_IT = 10_000
_NEW_AT_MOST = 300_000
"""Objects that can be part of cycles, made since the last look and not gone by themselves; some 50 MB."""
_log = logging.getLogger(__name__)


def listen(host: str, port: int, reuse_port: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if reuse_port:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind((host, port))
    listener.setblocking(False)
    return listener


def server_tls(settings: Settings) -> ssl.SSLContext | None:
    if not settings.certfile:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(settings.certfile, settings.keyfile)
    return context


def room_for_clients() -> int:
    """A client may need a connection to an endpoint too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return max(16, (hard - _SPARE_FILES) // 2) if hard != resource.RLIM_INFINITY else 1_000_000


def spare_the_collector() -> None:
    """For a process that only serves: from now on garbage is collected by `collect_garbage` alone.

    A request leaves no cycles behind, and a look at the objects of a thousand streams halts every one of them for 20 ms.
    """
    gc.collect()
    gc.freeze()
    gc.disable()


def collect_garbage(busy: bool) -> None:
    """Asked by the sweep: when nobody waits for it; or when so much is new that there must be garbage in it after all."""
    new = gc.get_count()[0]
    if not gc.isenabled() and (new > _NEW_AT_MOST or (new > _NEW_WORTH_IT and not busy)):
        gc.collect()


class Worker:
    def __init__(self, settings: Settings, make_front: MakeFront | None = None) -> None:
        log = AccessLog(settings.access_log) if settings.access_log else None
        self.settings = settings
        self.balancer = (
            Balancer(settings, make_front, access_log=log)
            if make_front
            else Balancer(settings, access_log=log)
        )
        self.balancer.careful = CarefulLane(self.balancer)
        if not settings.max_connections:
            self.balancer.max_connections = room_for_clients()
        self.tls = server_tls(settings)
        self.file: FileSource | None = None
        self.redis: Any = None
        self.prober = Prober(self.balancer)
        self._server: asyncio.Server | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._polled = 0.0
        self._cert_mark = self._mark()

    async def start(self, listener: socket.socket) -> None:
        """Endpoints first: the first connection must find them."""
        loop = asyncio.get_running_loop()
        if self.settings.endpoints_file:
            self.file = FileSource(self.settings.endpoints_file, self.balancer.set_endpoints)
            self.file.poll()
        if self.settings.redis_url:
            await self._start_redis()
        self.balancer.after_sweep.append(self._after_sweep)
        self._tasks.append(loop.create_task(self.balancer.sweep_forever()))
        self._tasks.append(loop.create_task(self.prober.run()))
        self._server = await loop.create_server(
            lambda: FrontConnection(self.balancer), sock=listener, ssl=self.tls, backlog=_BACKLOG
        )

    async def _start_redis(self) -> None:
        from skyloom_lb.redis_side import RedisSide

        self.redis = RedisSide(self.settings, self.balancer)
        await self.redis.first_read()
        self._tasks.append(asyncio.get_running_loop().create_task(self.redis.run()))

    def _after_sweep(self, now: float) -> None:
        collect_garbage(busy=bool(self.balancer.exchanges))
        if self.balancer.access_log is not None:
            self.balancer.access_log.sweep(now)
        if now - self._polled >= 1.0:
            self._polled = now
            if self.file is not None:
                self.file.poll()
            self._reload_certificate()

    # --- reload

    def configure(self, settings: Settings) -> None:
        """What may change at run time; the listening addresses, workers and Redis stay as they were started."""
        self.settings = settings
        self.balancer.configure(settings)
        if self.balancer.access_log is not None:
            self.balancer.access_log.reopen()
        self._cert_mark = None
        self._reload_certificate()

    def _mark(self) -> tuple[float, float] | None:
        import os

        try:
            settings = self.settings
            return (
                (os.stat(settings.certfile).st_mtime, os.stat(settings.keyfile).st_mtime)
                if settings.certfile
                else None
            )
        except OSError:
            return None

    def _reload_certificate(self) -> None:
        """The next handshakes get the new one; a half-replaced pair is tried again a second later."""
        mark = self._mark()
        if self.tls is None or mark is None or mark == self._cert_mark:
            return
        try:
            server_tls(self.settings)  # a pair that does not fit must not spoil the context in use
            self.tls.load_cert_chain(self.settings.certfile, self.settings.keyfile)
            self._cert_mark = mark
        except (OSError, ssl.SSLError) as error:
            _log.warning("the certificate stays what it was: %s", error)

    # --- what the admin port asks

    def snapshot(self) -> dict[str, Any]:
        return {**snapshot(self.balancer), "sources": self.troubles(), "eligible": self.eligible()}

    def troubles(self) -> dict[str, str]:
        found = {}
        if self.file is not None and self.file.trouble:
            found["file"] = self.file.trouble
        if self.redis is not None and self.redis.trouble:
            found["redis"] = self.redis.trouble
        return found

    def eligible(self) -> dict[str, int]:
        return {name: len(service.eligible) for name, service in self.balancer.services.items()}

    # --- the end

    async def stop(self) -> None:
        """Drain: no new connection, what runs may finish, then everything is closed."""
        if self._server is not None:
            self._server.close()
        await self.balancer.drain(self.settings.drain_seconds)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.prober.close()
        if isinstance(self.balancer.front, Closes):
            await self.balancer.front.close()
        if self.redis is not None:
            await self.redis.close()
        if self.balancer.access_log is not None:
            self.balancer.access_log.close()


def now_and_then(seconds: float, act: Callable[[], None]) -> Callable[[float], None]:
    """A sweep hook that acts at most so often."""
    last = time.monotonic()

    def hook(now: float) -> None:
        nonlocal last
        if now - last >= seconds:
            last = now
            act()

    return hook
