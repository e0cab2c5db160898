"""One process that serves: listener, sweep, sources, probes, reports; ends by draining. `main` and `workers` start it."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import socket
import ssl
from typing import Any

from skyloom_common.core.errors import InvalidRequest, Unavailable
from skyloom_lb.balancer import Balancer, MakeFront
from skyloom_lb.careful.lane import CarefulLane
from skyloom_lb.endpoints.file import FileSource
from skyloom_lb.exchange import Closes
from skyloom_lb.fast.front import FrontConnection
from skyloom_lb.health.probes import Prober
from skyloom_lb.listener import Listener
from skyloom_lb.observe.accesslog import AccessLog
from skyloom_lb.observe.snapshot import snapshot
from skyloom_lb.settings import Settings

_SPARE_FILES = 64
_END_SECONDS = 5.0
_NEW_WORTH_IT = 10_000
_NEW_AT_MOST = 300_000
"""Objects that can be part of cycles, made since the last look and not gone by themselves; some 50 MB."""
_log = logging.getLogger(__name__)


def server_tls(settings: Settings) -> ssl.SSLContext | None:
    if not settings.certfile:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(settings.certfile, settings.keyfile)
    except OSError as error:  # ssl.SSLError is one
        raise InvalidRequest(
            f"certfile, keyfile: {settings.certfile} and {settings.keyfile} are not a PEM certificate chain and its key "
            f"that can be read: {error.strerror or error}"
        ) from error
    return context


def access_log(settings: Settings) -> AccessLog | None:
    try:
        return AccessLog(settings.access_log) if settings.access_log else None
    except OSError as error:
        raise Unavailable(
            f"access_log: {settings.access_log} cannot be written: {error.strerror or error}"
        ) from error


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
        log = access_log(settings)
        self.settings = settings
        self.balancer = (
            Balancer(settings, make_front, access_log=log)
            if make_front
            else Balancer(settings, access_log=log)
        )
        self.balancer.careful = CarefulLane(self.balancer)
        self._room = room_for_clients()
        self.balancer.max_connections = settings.max_connections or self._room
        self.tls = server_tls(settings)
        self.file: FileSource | None = None
        self.redis: Any = None
        self.prober = Prober(self.balancer)
        self._listener: Listener | None = None
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
        self._listener = Listener(
            listener, lambda: FrontConnection(self.balancer), lambda: self.tls, self.settings.header_seconds
        )
        self._listener.start()

    async def _start_redis(self) -> None:
        from skyloom_lb.redis_side import RedisSide

        self.redis = RedisSide(self.settings, self.balancer)
        await self.redis.first_read()
        self._tasks.append(asyncio.get_running_loop().create_task(self.redis.run()))

    def _after_sweep(self, now: float) -> None:
        collect_garbage(busy=bool(self.balancer.exchanges))
        if self._listener is not None:
            self._listener.sweep()
        if self.balancer.access_log is not None:
            self.balancer.access_log.sweep(now)
        if now - self._polled >= 1.0:
            self._polled = now
            if self.file is not None:
                self.file.poll()
            self.balancer.forget_left()
            self._reload_certificate()

    # --- reload

    def configure(self, settings: Settings) -> None:
        """What may change at run time; `settings.FIXED` stays as it was started."""
        self.balancer.configure(settings)
        self.settings = settings
        self.balancer.max_connections = settings.max_connections or self._room
        self._reopen_log()
        self._cert_mark = None
        self._reload_certificate()

    def _reopen_log(self) -> None:
        """A disk that is full or away keeps nobody from new settings."""
        if self.balancer.access_log is not None:
            try:
                self.balancer.access_log.reopen()
            except OSError as error:
                _log.warning("access_log: %s cannot be opened anew: %s", self.settings.access_log, error)

    def _mark(self) -> tuple[float, float] | None:
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
            self.tls = server_tls(self.settings)  # anew: a context keeps a pair of each type of key
            self._cert_mark = mark
        except (OSError, InvalidRequest) as error:
            _log.warning("the certificate stays what it was: %s", error)

    # --- what the admin port asks

    def snapshot(self) -> dict[str, Any]:
        return {
            **snapshot(self.balancer),
            "sources": self.troubles(),
            "source_trouble": {name: int(bool(one.trouble)) for name, one in self._sources().items()},
            "reports_lost": self.redis.reports_lost if self.redis is not None else 0,
            "informed": self.is_informed(),
            "eligible": self.eligible(),
        }

    def _sources(self) -> dict[str, Any]:
        both = {"file": self.file, "redis": self.redis}
        return {name: one for name, one in both.items() if one is not None}

    def troubles(self) -> dict[str, str]:
        return {name: one.trouble for name, one in self._sources().items() if one.trouble}

    def is_informed(self) -> bool:
        """False while nobody could tell yet where requests go."""
        return all(one.was_read for one in self._sources().values()) or any(
            service.backends for service in self.balancer.services.values()
        )

    def eligible(self) -> dict[str, int]:
        return {name: len(service.eligible) for name, service in self.balancer.services.items()}

    # --- the end

    async def stop(self) -> None:
        """Drain: no new connection, what runs may finish, then everything is closed."""
        if self._listener is not None:
            self._listener.close()
        await self.balancer.drain(self.settings.drain_seconds)
        await self._end_tasks()
        await self.prober.close()
        if isinstance(self.balancer.front, Closes):
            await self.balancer.front.close()
        if self.redis is not None:
            await self.redis.close()
        if self.balancer.access_log is not None:
            self.balancer.access_log.close()

    async def _end_tasks(self) -> None:
        """Within a bound: a task that does not heed its cancel must not keep the process."""
        for task in self._tasks:
            task.cancel()
        _, late = await asyncio.wait(self._tasks, timeout=_END_SECONDS) if self._tasks else (set(), set())
        for one in late:
            _log.error("%s does not end", one.get_name())
