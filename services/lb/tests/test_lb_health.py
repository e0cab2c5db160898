"""Signals, ejection, floor and retries: pure decisions."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyloom_common.contracts.endpoints import Endpoint, EndpointState
from skyloom_lb.health.outliers import kept_by_floor, outliers
from skyloom_lb.health.signals import Signals
from skyloom_lb.observe.stats import Histogram, Labelled, quantile
from skyloom_lb.pipeline.model import NO_FACTS
from skyloom_lb.retries import Failed, RetryBudget, may_retry
from skyloom_lb.service import Service
from skyloom_lb.settings import Health, ServiceSettings

HEALTH = Health(failures=3, open_seconds=5, max_open_seconds=60, slow_start_seconds=10, probe_failures=2)


def test_the_circuit_opens_after_failures_in_a_row_and_ever_longer() -> None:
    signals = Signals(HEALTH)
    for moment in range(2):
        assert not signals.failure("ConnectFailed", float(moment))
    signals.success(0.1)
    for moment in range(2):
        assert not signals.failure("ConnectFailed", float(moment))
    assert signals.failure("ConnectFailed", 3.0)
    assert signals.verdict(7.9)[0] == "open"
    assert "ConnectFailed" in signals.verdict(7.9)[1]
    assert signals.verdict(8.1)[0] == "ready"
    assert signals.failure("ConnectFailed", 8.2), "half open: one more failure is enough"
    assert signals.verdict(18.0)[0] == "open"
    assert signals.verdict(18.3)[0] == "ready"
    signals.success(0.1)
    assert not signals.failure("ConnectFailed", 19.0)


def test_probes_take_out_and_bring_back() -> None:
    signals = Signals(HEALTH)
    signals.probed(False, "status 500")
    assert signals.verdict(0)[0] == "ready"
    signals.probed(False, "status 500")
    assert signals.verdict(0) == ("unhealthy", "2 probes failed in a row: status 500")
    signals.probed(True)
    assert signals.verdict(0)[0] == "ready"


def test_slow_start() -> None:
    signals = Signals(HEALTH, warm_since=100.0)
    assert [signals.share(at) for at in (100.0, 102.0, 105.0, 110.0)] == [0.1, 0.2, 0.5, 1.0]
    assert signals.verdict(111.0)[0] == "ready"


def window(requests: int, failures: int = 0, latency: float = 0.1) -> Signals:
    signals = Signals(HEALTH)
    signals.window_requests, signals.window_failures = requests, failures
    signals.window_latency = (requests - failures) * latency
    return signals


def test_outliers() -> None:
    windows = {
        "a": window(100),
        "b": window(100, 60),
        "c": window(10, 10),
        "d": window(100, 0, 0.9),
        "e": window(100),
    }
    assert set(outliers(windows, Health(error_share=0.5))) == {"b"}
    assert set(outliers(windows, Health(latency_factor=3.0))) == {"b", "d"}


@given(st.integers(0, 20), st.integers(0, 20), st.floats(0, 1))
def test_the_floor_holds(good: int, bad: int, floor: float) -> None:
    names = [str(number) for number in range(bad)]
    kept = kept_by_floor(good, names, floor)
    assert list(kept) == names[: len(kept)]
    if good + bad:
        assert good + len(kept) >= min(good + bad, (good + bad) * floor)
        assert good + len(kept) >= 1, "never nobody, as long as there is somebody"


class _NoPool:
    closed = 0

    def close_idle(self) -> None:
        self.closed += 1

    def idle_count(self) -> int:
        return 0


def service(**fields: Any) -> Service:
    return Service(ServiceSettings(health=HEALTH, **fields), lambda backend, owner: _NoPool(), Random(1))


def specs(*ids: str, **fields: Any) -> list[Endpoint]:
    return [Endpoint(id=id, url=f"http://10.0.0.{number + 1}:80", **fields) for number, id in enumerate(ids)]


def test_a_new_endpoint_starts_slowly_beside_known_ones_only() -> None:
    one = service()
    one.apply(specs("a", "b"), 0.0)
    assert [backend.state for backend in one.backends.values()] == ["ready", "ready"]
    one.apply(specs("a", "b", "c"), 100.0)
    assert one.backends["c"].state == "warming"
    assert one.backends["c"].effective_weight == pytest.approx(0.1)
    one.sweep(111.0)
    assert one.backends["c"].state == "ready"
    assert one.backends["c"].effective_weight == 1.0


def test_an_endpoint_that_left_is_kept_until_its_last_request_ended() -> None:
    one = service()
    one.apply(specs("a"), 0.0)
    backend = one.pick(NO_FACTS)
    assert backend is not None
    one.started(backend)
    one.apply([], 1.0)
    assert one.pick(NO_FACTS) is None
    assert one.leaving == [backend]
    assert backend.state == "draining"
    one.finished(backend, 200, 0.1, 2.0)
    one.sweep(2.1)
    assert one.leaving == []
    assert backend.in_flight == 0


def test_another_url_under_a_known_id_is_another_endpoint() -> None:
    one = service()
    one.apply([Endpoint("a", "http://10.0.0.1:80")], 0.0)
    old = one.pick(NO_FACTS)
    assert old is not None
    one.started(old)
    one.apply([Endpoint("a", "http://10.0.0.2:80")], 1.0)
    one.abandoned(old)
    assert one.pick(NO_FACTS) is one.backends["a"]
    assert one.backends["a"] is not old
    assert (one.backends["a"].in_flight, old.in_flight) == (0, 0)


def test_draining_gets_nothing_new() -> None:
    one = service()
    one.apply([*specs("a"), Endpoint("b", "http://10.0.0.9:80", state=EndpointState.DRAINING)], 0.0)
    assert {one.pick(NO_FACTS) for _ in range(10)} == {one.backends["a"]}
    assert one.backends["b"].reason == "the endpoint table says so"
    one.apply(specs("a", state=EndpointState.DRAINING), 1.0)
    assert one.pick(NO_FACTS) is None


def test_half_may_be_out_and_the_kept_one_has_little_weight() -> None:
    one = service()
    one.apply(specs("a", "b", "c"), 0.0)
    for id in ("a", "b"):
        for _ in range(3):
            one.started(one.backends[id])
            one.failed(one.backends[id], "ConnectFailed", 1.0)
    one.sweep(1.1)
    assert len(one.eligible) == 2
    assert one.backends["c"].effective_weight == 1.0
    kept = next(backend for backend in one.eligible if backend.id != "c")
    assert kept.kept
    assert kept.effective_weight == 0.05


@pytest.mark.parametrize(
    ("failed", "replayable", "retries", "allowed"),
    [
        (Failed.CONNECT, False, 0, True),
        (Failed.STALE, False, 0, True),
        (Failed.NO_ANSWER, False, 0, False),
        (Failed.NO_ANSWER, True, 0, True),
        (Failed.TIMEOUT, False, 0, False),
        (Failed.GARBAGE, False, 0, False),
        (Failed.STATUS, True, 1, True),
        (Failed.CONNECT, True, 2, False),
    ],
)
def test_what_may_be_sent_again(failed: Failed, replayable: bool, retries: int, allowed: bool) -> None:
    assert may_retry(failed, replayable, retries, 2, RetryBudget(0.2)) is allowed


def test_the_budget_is_a_share_of_traffic() -> None:
    budget = RetryBudget(0.1, at_least=2)
    assert [budget.spend() for _ in range(3)] == [True, True, False]
    for _ in range(100):
        budget.earn()
    assert sum(budget.spend() for _ in range(100)) in (9, 10)


def test_quantiles_and_labels_are_bounded() -> None:
    histogram = Histogram()
    for number in range(1000):
        histogram.add(number / 1000)
    assert quantile(histogram.counts, 0.5) == pytest.approx(0.5, rel=0.2)
    assert quantile(histogram.counts, 0.99) == pytest.approx(0.99, rel=0.2)
    assert quantile([0] * 25, 0.5) is None
    labelled = Labelled()
    for number in range(1000):
        labelled.of(f"key-{number}").requests += 1
    assert len(labelled.by_name) == 201
    assert labelled.by_name["other"].requests == 800
