"""What both lanes of one process share: services, front, live exchanges, the sweep, and the end of every request.

It opens no listener and reads no file: `main` and `workers` do.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, cast

from skyloom_common.contracts.endpoints import Endpoint
from skyloom_lb.exchange import Front, Outcome, PlainFront
from skyloom_lb.fast.entry import Entry
from skyloom_lb.fast.front import FrontConnection
from skyloom_lb.fast.turn import Turn
from skyloom_lb.fast.upstream import Pool
from skyloom_lb.observe.accesslog import AccessLog
from skyloom_lb.observe.stats import Labelled, bump
from skyloom_lb.service import Backend, Service
from skyloom_lb.settings import ServiceSettings, Settings
from skyloom_lb.wire.forwarded import forwarded_lines
from skyloom_lb.wire.request import RequestHead

if TYPE_CHECKING:
    from skyloom_lb.careful.lane import CarefulLane

SWEEP_SECONDS = 0.25
SWEEP_PART = 25
"""Requests or connections looked at in one go: some 50 µs."""
SWEEP_PARTS = 100
"""At most; where there would be more, each is bigger."""
MakeFront = Callable[["Balancer"], Front]
_log = logging.getLogger(__name__)


class Balancer:
    careful: CarefulLane

    def __init__(
        self,
        settings: Settings,
        make_front: MakeFront = lambda balancer: PlainFront(balancer.services),
        random: Random | None = None,
        access_log: AccessLog | None = None,
    ) -> None:
        self.services: dict[str, Service] = {}
        self.exchanges: set[Entry] = set()
        self.fronts: set[FrontConnection] = set()
        self.draining = False
        self.turn = Turn()
        self.models = Labelled()
        self.keys = Labelled()
        self.early: dict[str, int] = {}
        self.max_connections = settings.max_connections or 1_000_000
        self.access_log = access_log
        self.after_sweep: list[Callable[[float], None]] = []
        self._random = random or Random()
        self._make_front = make_front
        self._client_tls: ssl.SSLContext | None = None
        self._closing: list[tuple[float, asyncio.Transport]] = []
        self._id_prefix = os.urandom(6).hex().encode()
        self._ids = 0
        self._told: set[str] = set()
        """Services that a watched file or Redis names."""
        self.settings = settings
        self.configure(settings)

    # --- settings and endpoints

    def configure(self, settings: Settings) -> None:
        """Also at run time: requests that run keep what they began with."""
        self._trusted = tuple(ipaddress.ip_network(one, strict=False) for one in settings.trusted_proxies)
        before, self.settings, now = self.settings, settings, time.monotonic()
        for name in set(before.services) - set(settings.services) - self._told:
            self.services.pop(name).apply((), now)
        only_told = {name: self._like_default(name) for name in self._told - set(settings.services)}
        for name, one in {**settings.services, **only_told}.items():
            self._configure_service(name, one, now)
        self.front = self._make_front(self)

    def _configure_service(self, name: str, settings: ServiceSettings, now: float) -> None:
        """Endpoints of the settings count while no file and no Redis names the service."""
        service = self.services.get(name)
        before = service.settings.endpoints if service is not None else ()
        if service is None:
            service = self.services[name] = Service(
                settings, self._make_pool, self._random, self.settings.zone
            )
        else:
            service.configure(settings)
        if settings.endpoints != before and name not in self._told:
            service.apply(settings.endpoints, now)

    def _like_default(self, name: str) -> ServiceSettings:
        """For a service that only a source names."""
        like = self.settings.services.get("default", ServiceSettings())
        return replace(like, name=name, endpoints=(), hosts=(), path_prefix="")

    def set_endpoints(self, name: str, endpoints: Sequence[Endpoint] | None) -> None:
        """From a watched file or Redis; an unknown service is made with the default's settings. None: the source names it
        no more, so that it goes once nothing of it runs, unless the settings name it."""
        now = time.monotonic()
        if endpoints is None:
            self._told.discard(name)
            endpoints = self.settings.services.get(name, ServiceSettings()).endpoints
        else:
            self._told.add(name)
            if name not in self.services:
                self._configure_service(name, self._like_default(name), now)
                self.front = self._make_front(self)
        if name in self.services:
            self.services[name].apply(endpoints, now)
            self.front.endpoints_changed()

    def forget_left(self) -> None:
        """Services that no settings and no source name any more; asked every second, and waits for what still runs."""
        named = self._told.union(self.settings.services)
        gone = [one for name, one in self.services.items() if name not in named and _is_over(one)]
        for service in gone:
            del self.services[service.name]
        if gone:
            self.front = self._make_front(self)

    def _make_pool(self, backend: Backend, service: Service) -> Pool:
        return Pool(backend, self.client_tls() if backend.address.tls else None, self.turn)

    def client_tls(self) -> ssl.SSLContext:
        if self._client_tls is None:
            self._client_tls = ssl.create_default_context()
        return self._client_tls

    # --- requests

    def new_request_id(self) -> bytes:
        self._ids += 1
        return b"%b%08x" % (self._id_prefix, self._ids)

    def forwarded_lines(self, peer: str, transport: asyncio.BaseTransport, head: RequestHead) -> bytes:
        tls = transport.get_extra_info("sslcontext") is not None
        return forwarded_lines(peer, tls, head, self._trusts(peer))

    def _trusts(self, peer: str) -> bool:
        if not self._trusted:
            return False
        try:
            address = ipaddress.ip_address(peer)
        except ValueError:
            return False
        return any(address in network for network in self._trusted)

    def refused_early(self, code: str) -> None:
        bump(self.early, code)

    def finish(self, outcome: Outcome) -> None:
        """Counts one request; both lanes call it exactly once for each."""
        self.front.finish(outcome)  # first: it knows the last counts, and the cost
        route, principal = outcome.route, outcome.principal
        if route is not None:
            self._count(outcome, route.service)
            if route.model:
                self._count_label(self.models, route.model, outcome)
        elif outcome.refused:
            bump(self.early, outcome.refused)
        if principal is not None and principal.id:
            self._count_label(self.keys, principal.id, outcome)
        if self.access_log is not None:
            self.access_log.add(outcome)

    def _count(self, outcome: Outcome, service: Service) -> None:
        stats = service.stats
        stats.requests += 1
        if outcome.refused:
            bump(stats.refused, outcome.refused)
        if outcome.error:
            bump(stats.errors, outcome.error.partition(":")[0])
        backend = service.backends.get(outcome.endpoint)
        if backend is None or not outcome.first_byte:
            return
        counts = backend.stats
        counts.statuses[outcome.status] = counts.statuses.get(outcome.status, 0) + 1
        counts.latency.add(outcome.ended - outcome.started)
        counts.first_byte.add(outcome.first_byte - outcome.started)
        if outcome.prompt_tokens or outcome.completion_tokens:
            counts.prompt_tokens += outcome.prompt_tokens
            counts.completion_tokens += outcome.completion_tokens

    def _count_label(self, labelled: Labelled, name: str, outcome: Outcome) -> None:
        stats = labelled.of(name)
        stats.requests += 1
        if outcome.error or outcome.refused:
            stats.errors += 1
        if outcome.prompt_tokens or outcome.completion_tokens:
            stats.prompt_tokens += outcome.prompt_tokens
            stats.completion_tokens += outcome.completion_tokens
            stats.cached_tokens += outcome.cached_tokens
        if outcome.cost:
            stats.cost += outcome.cost

    # --- connections

    def welcome(self, front: FrontConnection) -> bool:
        if len(self.fronts) >= self.max_connections:
            return False
        self.fronts.add(front)
        return True

    def close_gently(self, transport: asyncio.Transport) -> None:
        """A client that still sends must be able to read why: close at once would reset what it has not read."""
        if not transport.can_write_eof() or transport.is_closing():
            return transport.close()
        try:
            transport.write_eof()
        except OSError:  # it has gone already
            return transport.abort()
        return self._closing.append((time.monotonic() + 1.0, transport))

    async def sweep_forever(self) -> None:
        """Every time-out of the process hangs on this loop, and no other timer does.

        Its parts are spread over its time. A core that is nearly busy makes up for a halt so slowly that a sweep in one piece, a
        millisecond for a thousand streams, was seen in every hundredth chunk.
        """
        slow = 0
        while True:
            slow += 1
            all_fronts = slow % 4 == 0
            looked_at = len(self.exchanges) + (len(self.fronts) if all_fronts else 0)
            size = max(SWEEP_PART, looked_at // SWEEP_PARTS)
            pause = SWEEP_SECONDS / (1 + looked_at // size)
            await asyncio.sleep(pause)
            for _ in self.parts_of_sweep(all_fronts, size):
                await asyncio.sleep(pause)

    def sweep(self) -> None:
        for _ in self.parts_of_sweep(all_fronts=True):
            pass

    def parts_of_sweep(self, all_fronts: bool, size: int = SWEEP_PART) -> Iterator[None]:
        """Bytes are passed on between two parts: a look at thousands of streams at once would halt all of them.

        What fails at one of them must not keep the others from their time-outs.
        """
        for number, exchange in enumerate(tuple(self.exchanges), 1):
            try:
                if exchange in self.exchanges:  # it may be over by now
                    exchange.check(time.monotonic())
            except Exception:
                _log.exception("a request failed in the sweep")
                exchange.fault()
            if number % size == 0:
                yield
        now = time.monotonic()
        for service in self.services.values():
            self._guarded(self._sweep_service, service, now)
        while self._closing and self._closing[0][0] <= now:
            self._closing.pop(0)[1].abort()
        if all_fronts:
            for number, front in enumerate(tuple(self.fronts), 1):
                self._guarded(front.check, now)
                if number % size == 0:
                    yield
        for hook in self.after_sweep:
            self._guarded(hook, now)

    def _sweep_service(self, service: Service, now: float) -> None:
        service.sweep(now)
        service.budget.trickle(SWEEP_SECONDS)
        for backend in service.backends.values():
            cast(Pool, backend.pool).close_old(now)

    def _guarded(self, act: Callable[..., None], *arguments: object) -> None:
        try:
            act(*arguments)
        except Exception:
            _log.exception("a part of the sweep failed; the others go on")

    # --- the end

    async def drain(self, seconds: float) -> None:
        """Nothing new on any connection; what runs may finish within the bound, then it is cut."""
        self.draining = True
        for front in tuple(self.fronts):
            if front.exchange is not None:
                front.closing = True
            elif not front.receiving:  # else it is answered, and closed then
                front.transport.close()
        ends = time.monotonic() + seconds
        while (self.exchanges or any(one.busy for one in self.fronts)) and time.monotonic() < ends:
            await asyncio.sleep(0.05)
        for exchange in tuple(self.exchanges):
            exchange.client.close_broken()
            exchange.cancel("Drained")
        self.turn.end()
        for front in tuple(self.fronts):
            front.transport.abort()
        for service in self.services.values():
            service.apply((), time.monotonic())


def _is_over(service: Service) -> bool:
    return not (service.active or service.waiting or service.backends or service.leaving)
