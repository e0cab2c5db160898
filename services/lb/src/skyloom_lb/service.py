"""One service as this process sees it: its live endpoints, who may get requests now, and the counts of both.

No I/O: connections belong to `Pool`s that are made by the factory handed in. Both lanes call `pick`, `started` and `finished`,
in pairs, so that a count is right whatever happens to a request.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import Protocol, cast

from skyloom_common.contracts.endpoints import Endpoint, EndpointState
from skyloom_lb.endpoints.url import Address, parse_url
from skyloom_lb.health.outliers import KEPT_SHARE, kept_by_floor, outliers
from skyloom_lb.health.signals import DRAINING, READY, WARMING, Signals
from skyloom_lb.observe.stats import EndpointStats, ServiceStats, bump
from skyloom_lb.pipeline.latency import (
    forget_latency,
    guess_latency,
    observe_latency,
    observe_wait,
    usual_latency,
)
from skyloom_lb.pipeline.model import NO_FACTS, LbRequest, LiveEndpoint, Policy, Random
from skyloom_lb.pipeline.registry import make_policy
from skyloom_lb.retries import RetryBudget
from skyloom_lb.settings import ServiceSettings
from skyloom_lb.wire.request import RequestHead


class ConnectionPool(Protocol):
    def close_idle(self) -> None: ...

    def idle_count(self) -> int: ...


class Backend(LiveEndpoint):
    """A live endpoint with what surrounds it: address, connections, signals, counts."""

    __slots__ = ("address", "host_header", "kept", "pool", "reason", "signals", "spec", "state", "stats")

    pool: ConnectionPool

    def __init__(self, spec: Endpoint, signals: Signals) -> None:
        super().__init__(
            spec.id,
            spec.url,
            weight=spec.weight,
            capacity=spec.capacity,
            zone=spec.zone,
            price_per_hour=spec.price_per_hour,
            version=spec.version,
        )
        self.spec = spec
        self.address: Address = parse_url(spec.url)
        self.signals = signals
        self.stats = EndpointStats()
        self.state = READY
        self.reason = ""
        self.kept = False

    def update(self, spec: Endpoint) -> None:
        """The same endpoint, described anew; what was learnt about it stays."""
        self.spec = spec
        self.weight = spec.weight
        self.capacity = spec.capacity
        self.zone = spec.zone
        self.price_per_hour = spec.price_per_hour
        self.version = spec.version


class Service:
    def __init__(
        self,
        settings: ServiceSettings,
        make_pool: Callable[[Backend, Service], ConnectionPool],
        random: Random,
        zone: str = "",
    ) -> None:
        self.name = settings.name
        self.backends: dict[str, Backend] = {}
        self.leaving: list[Backend] = []
        self.stats = ServiceStats()
        self.active = 0
        """Requests between `route` and their end, in both lanes."""
        self.waiting = 0
        """Requests that wait to be admitted."""
        self._make_pool = make_pool
        self._random = random
        self._zone = zone
        self._window_ends = 0.0
        self.eligible: list[Backend] = []
        self.configure(settings)

    def configure(self, settings: ServiceSettings) -> None:
        """New settings for the requests from now on."""
        self.settings = settings
        options = settings.options
        if settings.policy == "weighted" and self._zone:
            options = {"zone": self._zone, **options}
        self.policy: Policy = make_policy(settings.policy, options, self._random)
        self.affine = settings.policy not in _BLIND
        """Whether its policy looks at the request."""
        self._by_latency = settings.policy not in _DEAF
        self._header = settings.affinity.header.lower().encode()
        self._cookie = settings.affinity.cookie.encode()
        self.budget = RetryBudget(settings.retries.budget)
        for backend in self.backends.values():
            backend.signals.settings = settings.health
        self.policy.rebuild(self.eligible)

    # --- endpoints come and go

    def apply(self, specs: Sequence[Endpoint], now: float) -> None:
        """Makes the endpoints these. One that goes finishes what it has; a new one starts slowly beside known ones."""
        warm_since = now if self.backends else None
        usual = usual_latency(self.backends.values())
        fresh: dict[str, Backend] = {}
        for spec in specs:
            known = self.backends.pop(spec.id, None)
            if known is not None and known.url != spec.url:
                self.leaving.append(known)
                known = None
            if known is None:
                known = self._new(spec, warm_since, usual)
            elif known.spec is not spec:
                known.update(spec)
            fresh[spec.id] = known
        self.leaving += self.backends.values()
        self.backends = fresh
        self._judge(now, force=True)
        self._see_off()

    def _new(self, spec: Endpoint, warm_since: float | None, usual: float) -> Backend:
        backend = Backend(spec, Signals(self.settings.health, warm_since))
        backend.latency = usual
        backend.pool = self._make_pool(backend, self)
        return backend

    def _see_off(self) -> None:
        for backend in self.leaving:
            backend.state = DRAINING
            backend.pool.close_idle()
        self.leaving = [backend for backend in self.leaving if backend.in_flight]

    def sweep(self, now: float) -> None:
        """Every 250 ms: ejections, recoveries, slow start, windows."""
        if now >= self._window_ends:
            self._end_window(now)
        self._judge(now)
        if self.leaving:
            self._see_off()
        if self._by_latency:
            self._age_latencies(now)

    def _age_latencies(self, now: float) -> None:
        usual = usual_latency(self.eligible)
        for backend in self.eligible:
            guessed = bool(backend.stats.attempts) and guess_latency(backend, usual)
            if forget_latency(backend, usual, now) or guessed:
                self.policy.changed(backend)

    def _end_window(self, now: float) -> None:
        health = self.settings.health
        windows = {backend.id: backend.signals for backend in self.eligible if not backend.kept}
        for id, reason in outliers(windows, health).items():
            windows[id].eject(reason, now)
            self.backends[id].stats.ejections += 1
        for backend in self.backends.values():
            signals = backend.signals
            signals.window_requests = signals.window_failures = 0
            signals.window_latency = 0.0
        self._window_ends = now + health.window_seconds

    def _judge(self, now: float, force: bool = False) -> None:
        good: list[Backend] = []
        bad: list[Backend] = []
        for backend in self.backends.values():
            was = backend.state
            if backend.spec.state is EndpointState.DRAINING:
                backend.state, backend.reason = DRAINING, "the endpoint table says so"
                if was != DRAINING:
                    backend.pool.close_idle()
                continue
            backend.state, backend.reason = backend.signals.verdict(now)
            if backend.state not in (READY, WARMING):
                bad.append(backend)
                continue
            if was not in (READY, WARMING):
                backend.signals.warm_since = now
            good.append(backend)
        bad.sort(key=lambda one: (one.signals.open_until > now, not one.signals.probed_healthy))
        kept = kept_by_floor(len(good), [one.id for one in bad], self.settings.health.floor)
        self._settle(good + [one for one in bad if one.id in kept], kept, now, force)

    def _settle(self, eligible: list[Backend], kept: Container[str], now: float, force: bool) -> None:
        changed = []
        for backend in eligible:
            backend.kept = backend.id in kept
            weight = backend.weight * (KEPT_SHARE if backend.kept else backend.signals.share(now))
            if weight != backend.effective_weight:
                backend.effective_weight = weight
                changed.append(backend)
        if force or [one.id for one in eligible] != [one.id for one in self.eligible]:
            self.eligible = eligible
            self.policy.rebuild(eligible)
        else:
            for backend in changed:
                self.policy.changed(backend)

    # --- requests

    def facts(self, head: RequestHead, body: bytes) -> LbRequest:
        """What the policy wants to know of a request; a plug-in's gets all."""
        if not self.affine:
            return NO_FACTS
        session = head.get(self._header) if self._header else b""
        if not session and self._cookie:
            session = _cookie(head, self._cookie)
        if not session and self.settings.policy == "session_affinity":
            return NO_FACTS
        return LbRequest(session.decode("latin-1"), body, self._zone)

    def pick(self, facts: LbRequest, exclude: Container[str] = ()) -> Backend | None:
        return cast("Backend | None", self.policy.pick(facts, exclude))

    def started(self, backend: Backend) -> None:
        """An attempt begins; `finished`, `failed` or `abandoned` ends it."""
        backend.in_flight += 1
        backend.stats.attempts += 1
        if self._by_latency and not backend.latency_at:
            guess_latency(backend, usual_latency(self.eligible))
        self.policy.changed(backend)

    def finished(self, backend: Backend, status: int, first_byte: float, now: float) -> None:
        """The endpoint answered; `first_byte` in seconds since the attempt was sent."""
        backend.in_flight -= 1
        if status >= 500 and status != 501:
            bump(backend.stats.failures, "Status5xx")
            if backend.signals.failure(f"status {status}", now):
                backend.stats.ejections += 1
                self._judge(now)  # not at the next sweep: a burst would still go there
        else:
            backend.signals.success(first_byte)
            if status != 429 and first_byte > 0:  # a quick no must not look like a quick answer
                observe_latency(backend, first_byte, now)
        self.policy.changed(backend)

    def failed(self, backend: Backend, reason: str, now: float, waited: float = 0.0) -> None:
        """The endpoint did not answer, or not to the end. `reason`: CamelCase, bounded in number.

        `waited`: seconds without a first byte, or until it; 0 = not known.
        """
        backend.in_flight -= 1
        observe_wait(backend, waited, now)
        bump(backend.stats.failures, reason)
        if backend.signals.failure(reason, now):
            backend.stats.ejections += 1
            self._judge(now)
        self.policy.changed(backend)

    def abandoned(self, backend: Backend, now: float = 0.0, waited: float = 0.0) -> None:
        """Ended by the client or by us: says nothing about the endpoint but that it took so long (as in `failed`)."""
        backend.in_flight -= 1
        observe_wait(backend, waited, now)
        self.policy.changed(backend)

    def why_none(self) -> str:
        """Why `pick` gave nothing, for the one who asked."""
        if not self.backends:
            return f"Service {self.name} has no endpoint now."
        return f"None of the {len(self.backends)} endpoints of service {self.name} takes requests now."


_COUNTING = ("round_robin", "random", "power_of_two", "least_load", "instance_aware_least_load", "price")
_BLIND = frozenset((*_COUNTING, "latency", "weighted"))
"""Policies that look at nothing of a request."""
_DEAF = frozenset((*_COUNTING, "session_affinity", "prefix_affinity"))
"""Policies that do not look at latencies."""


def _cookie(head: RequestHead, name: bytes) -> bytes:
    """The first of that name, without quotes; a proxy may have put each cookie on a line of its own."""
    for header, line in head.headers:
        if header == b"cookie":
            for part in line.split(b";"):
                one, _, value = part.partition(b"=")
                if one.strip() == name:
                    return value.strip().strip(b'"')
    return b""
