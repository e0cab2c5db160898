"""Load reports: what this process saw of each service since the report before, for the serve controller to decide upon."""

from __future__ import annotations

from typing import TYPE_CHECKING

from skyloom_common.contracts.endpoints import EndpointLoad, LoadReport
from skyloom_lb.observe.stats import EndpointStats, quantile

if TYPE_CHECKING:
    from skyloom_lb.balancer import Balancer
    from skyloom_lb.service import Backend, Service


class _Before:
    """The counts at the last report."""

    __slots__ = ("completion", "failures", "first_byte", "latency", "prompt", "requests")

    def __init__(self, stats: EndpointStats | None = None) -> None:
        self.requests = stats.attempts if stats else 0
        self.failures = sum(stats.failures.values()) if stats else 0
        self.prompt = stats.prompt_tokens if stats else 0
        self.completion = stats.completion_tokens if stats else 0
        self.latency = list(stats.latency.counts) if stats else []
        self.first_byte = list(stats.first_byte.counts) if stats else []


class Reporter:
    def __init__(self, balancer: Balancer, name: str) -> None:
        self._balancer = balancer
        self._name = name
        self._at: float | None = None
        self._endpoints: dict[tuple[str, str], tuple[Backend, _Before]] = {}
        self._services: dict[str, tuple[int, int]] = {}

    def reports(self, wall: float, now: float) -> list[LoadReport]:
        seconds = now - self._at if self._at is not None else 1.0
        self._at = now
        made = [self._report(service, wall, seconds) for service in self._balancer.services.values()]
        alive = {(name, id) for name, service in self._balancer.services.items() for id in service.backends}
        self._endpoints = {key: before for key, before in self._endpoints.items() if key in alive}
        return made

    def _report(self, service: Service, wall: float, seconds: float) -> LoadReport:
        requests, refused = service.stats.requests, sum(service.stats.refused.values())
        requests_before, refused_before = self._services.get(service.name, (0, 0))
        self._services[service.name] = (requests, refused)
        return LoadReport(
            service=service.name,
            balancer=self._name,
            at=wall,
            interval_seconds=seconds,
            requests=requests - requests_before,
            in_flight=service.active - service.waiting,
            queued=service.waiting,
            refused=refused - refused_before,
            endpoints=tuple(self._load(service, one) for one in service.backends.values()),
        )

    def _load(self, service: Service, backend: Backend) -> EndpointLoad:
        stats, key = backend.stats, (service.name, backend.id)
        known, before = self._endpoints.get(key, (None, _Before()))
        if known is not backend:  # another one has its id now
            before = _Before()
        now = _Before(stats)
        self._endpoints[key] = (backend, now)
        latency = _minus(now.latency, before.latency)
        first_byte = _minus(now.first_byte, before.first_byte)
        return EndpointLoad(
            id=backend.id,
            requests=now.requests - before.requests,
            failures=now.failures - before.failures,
            in_flight=backend.in_flight,
            prompt_tokens=now.prompt - before.prompt,
            completion_tokens=now.completion - before.completion,
            latency_p50=quantile(latency, 0.5),
            latency_p95=quantile(latency, 0.95),
            latency_p99=quantile(latency, 0.99),
            ttft_p50=quantile(first_byte, 0.5),
            ttft_p95=quantile(first_byte, 0.95),
            state=backend.state,
        )


def _minus(now: list[int], before: list[int]) -> list[int]:
    return [one - other for one, other in zip(now, before, strict=True)] if before else now
