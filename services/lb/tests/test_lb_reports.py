"""Load reports: counts since the report before, of this endpoint and no other that has its id."""

from __future__ import annotations

from random import Random
from types import SimpleNamespace
from typing import Any

from skyloom_common.contracts.endpoints import Endpoint, EndpointLoad
from skyloom_lb.observe.reports import Reporter
from skyloom_lb.service import Service
from skyloom_lb.settings import ServiceSettings


class NoPool:
    def close_idle(self) -> None:
        """It has no connections."""

    def idle_count(self) -> int:
        return 0


class World:
    def __init__(self) -> None:
        self.service = Service(ServiceSettings(name="s"), lambda backend, owner: NoPool(), Random(1))
        balancer: Any = SimpleNamespace(services={"s": self.service})
        self.reporter = Reporter(balancer, "lb")
        self.now = 0.0

    def ask(self, count: int, failed: int = 0) -> None:
        backend = self.service.backends["a"]
        for number in range(count):
            self.service.started(backend)
            if number < failed:
                self.service.failed(backend, "NoAnswer", self.now)
            else:
                self.service.finished(backend, 200, 0.2, self.now)
                backend.stats.latency.add(0.5)
                backend.stats.first_byte.add(0.2)
                backend.stats.completion_tokens += 7

    def report(self) -> EndpointLoad:
        self.now += 1.0
        return self.reporter.reports(0.0, self.now)[0].endpoints[0]


def test_a_report_counts_since_the_one_before() -> None:
    world = World()
    world.service.apply([Endpoint("a", "http://10.0.0.1:80")], 0.0)
    world.ask(5, failed=2)
    first = world.report()
    world.ask(3)
    second = world.report()
    assert (first.requests, first.failures, first.completion_tokens) == (5, 2, 21)
    assert (second.requests, second.failures, second.completion_tokens) == (3, 0, 21)
    third = world.report()
    assert (third.requests, third.completion_tokens, third.latency_p50) == (0, 0, None)


def test_another_url_under_a_known_id_is_counted_from_nothing() -> None:
    world = World()
    world.service.apply([Endpoint("a", "http://10.0.0.1:80")], 0.0)
    world.ask(50, failed=5)
    world.report()
    world.service.apply([Endpoint("a", "http://10.0.0.2:80")], 1.0)
    world.ask(3, failed=1)
    load = world.report()
    assert (load.requests, load.failures, load.prompt_tokens, load.completion_tokens) == (3, 1, 0, 14)
    assert load.latency_p50 is not None and load.ttft_p50 is not None
