"""Signals, ejection, floor and retries: pure decisions."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyloom_common.contracts.endpoints import Endpoint, EndpointState
from skyloom_lb.health.outliers import kept_by_floor, outliers
from skyloom_lb.health.signals import Signals
from skyloom_lb.observe.stats import Histogram, Labelled, quantile
from skyloom_lb.pipeline import registry
from skyloom_lb.pipeline.model import NO_FACTS, LbRequest
from skyloom_lb.pipeline.scoring import Scored
from skyloom_lb.retries import Failed, RetryBudget, may_retry
from skyloom_lb.service import Backend, Service
from skyloom_lb.settings import Affinity, Health, ServiceSettings
from skyloom_lb.wire.request import parse_request

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


def service(zone: str = "", **fields: Any) -> Service:
    return Service(
        ServiceSettings(health=HEALTH, **fields), lambda backend, owner: _NoPool(), Random(1), zone
    )


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


# --- latency


def ask(one: Service, now: float, first_byte: float = 0.05) -> Backend:
    """A request that is answered, unless it went to the endpoint that hangs."""
    backend = one.pick(NO_FACTS)
    assert backend is not None
    one.started(backend)
    if backend.id != "hangs":
        one.finished(backend, 200, first_byte, now)
    return backend


def test_one_that_never_answered_does_not_look_best() -> None:
    one = service(policy="latency")
    one.apply(specs("hangs", "a", "b"), 0.0)
    asked = [ask(one, 10.0 + number / 1000).id for number in range(2000)]
    assert asked.count("hangs") < 60
    assert min(asked.count("a"), asked.count("b")) > 500


@pytest.mark.parametrize("policy", ["latency", "weighted"])
def test_one_that_never_answered_counts_as_usual_once_others_have(policy: str) -> None:
    one = service(policy=policy)
    one.apply(specs("hangs", "a"), 0.0)
    for backend in one.backends.values():
        one.started(backend)
    one.finished(one.backends["a"], 200, 0.5, 10.0)
    one.sweep(10.1)
    assert one.backends["hangs"].latency == 0.5
    one.sweep(10.2)
    one.started(one.backends["a"])
    one.finished(one.backends["a"], 200, 2.0, 10.3)
    one.sweep(10.4)
    assert one.backends["hangs"].latency == 2.0, "a guess is no measurement"


def test_attempts_that_got_no_answer_are_a_latency() -> None:
    one = service(policy="latency")
    one.apply(specs("a", "b"), 0.0)
    a, b = one.backends.values()
    for backend in (a, a, a, b):
        one.started(backend)
    one.failed(a, "TimedOut", 10.0, 3.0)
    assert a.latency == 3.0
    one.failed(a, "NoAnswer", 11.0, 0.001)
    assert a.latency == 3.0, "a quick end must not look like a quick answer"
    one.abandoned(a, 12.0, 5.0)
    assert a.latency == 5.0
    one.abandoned(b)
    assert b.latency == 0.0


@pytest.mark.parametrize("policy", ["latency", "weighted"])
def test_an_old_latency_is_forgotten(policy: str) -> None:
    one = service(policy=policy)
    one.apply(specs("a", "b", "c"), 0.0)
    for backend, latency in zip(one.backends.values(), (0.1, 0.1, 60.0), strict=True):
        one.started(backend)
        one.finished(backend, 200, latency, 1.0)
    for second in range(2, 102):
        one.sweep(float(second))
    assert one.backends["c"].latency < 0.2


# --- what a policy is told of a request


def facts(lines: bytes, zone: str = "", **fields: Any) -> LbRequest:
    head = parse_request(b"POST / HTTP/1.1\r\nHost: lb\r\n%b\r\n" % lines)
    return service(zone, **fields).facts(head, b"body")


@pytest.mark.parametrize("name", ["X-Session-ID", "x-session-id"])
def test_the_case_of_the_affinity_header_does_not_matter(name: str) -> None:
    for line in (b"X-Session-Id: s\r\n", b"x-session-id: s\r\n"):
        found = facts(line, policy="session_affinity", affinity=Affinity(header=name))
        assert found.session == "s"


@pytest.mark.parametrize(
    ("lines", "session"),
    [
        (b"Cookie: sid=abc\r\n", "abc"),
        (b'Cookie: sid="abc"\r\n', "abc"),
        (b"Cookie: a=1; sid=abc; b=2\r\n", "abc"),
        (b"Cookie: a=1;sid = abc ;b=2\r\n", "abc"),
        (b"Cookie: a=1\r\nCookie: sid=abc\r\n", "abc"),
        (b"Cookie: sid=abc; sid=other\r\n", "abc"),
        (b"Cookie: sid=a=b==\r\n", "a=b=="),
        (b"Cookie: xsid=abc; SID=abc; sidx=abc; x=sid=abc\r\n", ""),
        (b"Cookie: sid\r\n", ""),
        (b"Cookie: sid=abc\r\nX-Session-Id: s\r\n", "s"),
        (b"", ""),
    ],
)
def test_cookie_affinity(lines: bytes, session: str) -> None:
    found = facts(lines, policy="session_affinity", affinity=Affinity(cookie="sid"))
    assert found.session == session


def test_a_cookies_session_stays_where_it_is() -> None:
    one = service(policy="session_affinity", affinity=Affinity(header="", cookie="sid"))
    one.apply(specs("a", "b", "c"), 0.0)
    heads = [
        parse_request(b"GET / HTTP/1.1\r\nHost: lb\r\nCookie: t=%d; sid=%b\r\n\r\n" % (turn, value))
        for turn, value in enumerate((b"me", b'"me"', b"me"))
    ]
    assert len({one.pick(one.facts(head, b"")) for head in heads}) == 1


@pytest.mark.parametrize(
    ("policy", "lines", "told"),
    [
        ("least_load", b"X-Session-Id: s\r\n", NO_FACTS),
        ("weighted", b"X-Session-Id: s\r\n", NO_FACTS),
        ("session_affinity", b"", NO_FACTS),
        ("session_affinity", b"X-Session-Id: s\r\n", LbRequest("s", b"body", "eu-1a")),
        ("prefix_affinity", b"", LbRequest("", b"body", "eu-1a")),
        ("mine", b"", LbRequest("", b"body", "eu-1a")),
        ("mine", b"X-Session-Id: s\r\n", LbRequest("s", b"body", "eu-1a")),
    ],
)
def test_what_a_policy_is_told(
    monkeypatch: pytest.MonkeyPatch, policy: str, lines: bytes, told: LbRequest
) -> None:
    def make(options: Mapping[str, Any], random: Any) -> Scored:
        return Scored("mine", [])

    monkeypatch.setattr(registry, "_plugin", lambda name: make)
    assert facts(lines, "eu-1a", policy=policy) == told
    assert service(policy=policy).affine == (told is not NO_FACTS or policy == "session_affinity")


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
