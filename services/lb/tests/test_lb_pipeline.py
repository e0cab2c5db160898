"""Policies: tables of who is chosen, and properties that hold for every one of them."""

from __future__ import annotations

import time
from collections import Counter
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skyloom_common.contracts.endpoints import Endpoint, EndpointState
from skyloom_common.core.errors import InvalidRequest
from skyloom_lb.pipeline.affinity import PrefixAffinity, SessionAffinity
from skyloom_lb.pipeline.latency import (
    forget_latency,
    guess_latency,
    observe_latency,
    observe_wait,
    usual_latency,
)
from skyloom_lb.pipeline.least import Least, by_load
from skyloom_lb.pipeline.model import NO_FACTS, LbRequest, LiveEndpoint, Policy
from skyloom_lb.pipeline.registry import OURS, make_policy
from skyloom_lb.pipeline.scoring import Cheap, Idle, Near, NotFull, Quick, Scored
from skyloom_lb.service import Backend, Service
from skyloom_lb.settings import Health, ServiceSettings

ENDPOINTS = [
    LiveEndpoint("a", zone="eu-1a", price_per_hour=4.0, capacity=1.0),
    LiveEndpoint("b", zone="eu-1b", price_per_hour=2.0, capacity=2.0),
    LiveEndpoint("c", zone="us-1a", weight=2.0),
]


def fresh(count: int = 3, **fields: Any) -> list[LiveEndpoint]:
    return [LiveEndpoint(f"e{number}", **fields) for number in range(count)]


def loaded(**in_flight: int) -> list[LiveEndpoint]:
    made = []
    for id, count in in_flight.items():
        one = LiveEndpoint(id)
        one.in_flight = count
        made.append(one)
    return made


@pytest.mark.parametrize(
    ("policy", "change", "chosen"),
    [
        ("least_load", {"a": {"in_flight": 1}}, {"b", "c"}),
        ("least_load", {"a": {"in_flight": 5}, "b": {"in_flight": 4}, "c": {"in_flight": 6}}, {"b"}),
        ("least_load", {"c": {"in_flight": 1, "effective_weight": 4.0}}, {"c"}),
        ("instance_aware_least_load", {"b": {"in_flight": 1, "capacity": 4.0}}, {"b"}),
        ("latency", {"a": {"latency": 0.5}, "b": {"latency": 0.1}, "c": {"latency": 0.2}}, {"b"}),
        ("latency", {"a": {"latency": 0.5}, "b": {"latency": 0.1, "in_flight": 9}, "c": {"latency": 0.2}}, {"c"}),
        ("price", {"a": {"price_per_hour": 4.0}, "b": {"price_per_hour": 2.0}, "c": {"price_per_hour": 3.0}}, {"b"}),
        ("price", {"a": {"price_per_hour": 4.0}, "b": {"price_per_hour": 2.0, "in_flight": 9}, "c": {"price_per_hour": 3.0}}, {"c"}),
        ("power_of_two", {"a": {"in_flight": 9}}, {"b", "c"}),
    ],
)  # fmt: skip
def test_who_is_chosen(policy: str, change: dict[str, dict[str, Any]], chosen: set[str]) -> None:
    endpoints = [LiveEndpoint(id) for id in "abc"]
    for one in endpoints:
        for name, value in change.get(one.id, {}).items():
            setattr(one, name, value)
    for seed in range(10):
        made = make_policy(policy, {}, Random(seed))
        made.rebuild(endpoints)
        picked = made.pick(NO_FACTS)
        assert picked is not None
        assert picked.id in chosen


class NoPool:
    def close_idle(self) -> None:
        """It has no connections."""

    def idle_count(self) -> int:
        return 0


class Life:
    """A service in which anything may happen, beside a plain list of what runs."""

    def __init__(self, policy: str, data: Any) -> None:
        health = Health(failures=3, open_seconds=1, window_seconds=2, min_requests=3, slow_start_seconds=5)
        self.draw = data.draw
        self.service = Service(
            ServiceSettings(policy=policy, health=health),
            lambda backend, owner: NoPool(),
            Random(self.draw(st.integers(0, 9))),
        )
        self.now = 0.0
        self.running: list[Backend] = []
        self.started: Counter[Backend] = Counter()
        self.failed: Counter[Backend] = Counter()

    def apply(self) -> None:
        ids = self.draw(st.sets(st.integers(0, 4)))
        self.service.apply([self._spec(number) for number in sorted(ids)], self.now)

    def _spec(self, number: int) -> Endpoint:
        states = [EndpointState.READY] * 3 + [EndpointState.DRAINING]
        return Endpoint(
            f"e{number}",
            f"http://10.0.{self.draw(st.integers(0, 1))}.{number + 1}:80",
            weight=self.draw(st.sampled_from([0.05, 1.0, 20.0])),
            state=self.draw(st.sampled_from(states)),
        )

    def pick(self) -> None:
        service, ids = self.service, [one.id for one in self.service.eligible]
        exclude = tuple(self.draw(st.sets(st.sampled_from(ids or ["x"]))))
        session = self.draw(st.sampled_from(["", "s1", "s2"]))
        picked = service.pick(LbRequest(session=session, prompt=session.encode() * 400), exclude)
        assert (picked is None) == all(id in exclude for id in ids)
        if picked is not None:
            assert picked in service.eligible and picked.id not in exclude
            service.started(picked)
            self.running.append(picked)
            self.started[picked] += 1

    def end(self, how: str) -> None:
        if not self.running:
            return None
        backend = self.running.pop(self.draw(st.integers(0, len(self.running) - 1)))
        waited = self.draw(st.sampled_from([0.0, 0.1, 9.0]))
        if how == "abandoned":
            return self.service.abandoned(backend, self.now, waited)
        status = self.draw(st.sampled_from([200, 429, 500]))
        if how == "finished":
            self.service.finished(backend, status, waited, self.now)
        else:
            self.service.failed(backend, "NoAnswer", self.now, waited)
        self.failed[backend] += how == "failed" or status == 500
        return None

    def check(self) -> None:
        running, service = Counter(self.running), self.service
        known = {*service.backends.values(), *service.leaving}
        for backend in {*known, *self.started}:
            assert backend.in_flight == running[backend]
            assert backend.stats.attempts == self.started[backend]
            assert sum(backend.stats.failures.values()) == self.failed[backend]
        assert set(running) <= known, "nobody is forgotten who still works"
        if isinstance(service.policy, SessionAffinity | PrefixAffinity):
            assert service.policy._load.total == sum(one.in_flight for one in service.eligible)


@pytest.mark.parametrize("policy", sorted(OURS))
@settings(max_examples=40)
@given(data=st.data())
def test_whatever_happens_counts_stay_right_and_the_excluded_are_never_chosen(policy: str, data: Any) -> None:
    life = Life(policy, data)
    deeds = ["pick", "pick", "pick", "finished", "failed", "abandoned", "apply", "sweep"]
    for _ in range(data.draw(st.integers(1, 40))):
        life.now += data.draw(st.sampled_from([0.0, 0.25, 3.0]))
        deed = data.draw(st.sampled_from(deeds))
        if deed == "pick":
            life.pick()
        elif deed == "apply":
            life.apply()
        elif deed == "sweep":
            life.service.sweep(life.now)
        else:
            life.end(deed)
        life.check()
    while life.running:
        life.end("abandoned")
    life.service.sweep(life.now)
    life.check()
    assert life.service.leaving == []


@pytest.mark.parametrize("policy", sorted(set(OURS) - {"session_affinity", "prefix_affinity"}))
@given(
    weights=st.lists(st.floats(0.1, 10), min_size=2, max_size=6),
    latencies=st.lists(st.floats(0.001, 1), min_size=6, max_size=6),
)
def test_nobody_starves(policy: str, weights: list[float], latencies: list[float]) -> None:
    """One request after the other, the hardest case for whoever is not the least."""
    made = make_policy(policy, {}, Random(1))
    endpoints = fresh(len(weights))
    for one, weight, latency in zip(endpoints, weights, latencies, strict=False):
        one.effective_weight, one.latency, one.price_per_hour = weight, latency, latency * 10
    made.rebuild(endpoints)
    chosen: set[str] = set()
    for _ in range(64 * len(weights) * 6):
        one = made.pick(NO_FACTS)
        assert one is not None
        one.in_flight += 1
        made.changed(one)
        one.in_flight -= 1
        made.changed(one)
        chosen.add(one.id)
    assert chosen == {one.id for one in endpoints}


@given(st.lists(st.booleans(), max_size=200), st.integers(1, 8))
def test_least_load_is_least_but_for_the_fair_turn(deeds: list[bool], count: int) -> None:
    made = Least("least_load", by_load)
    endpoints = fresh(count)
    made.rebuild(endpoints)
    running: list[LiveEndpoint] = []
    for number, begin in enumerate(deeds):
        if begin or not running:
            least = min(one.in_flight for one in endpoints)
            one = made.pick(NO_FACTS)
            assert one is not None
            assert one.in_flight == least or number >= 60
            one.in_flight += 1
            running.append(one)
        else:
            one = running.pop(len(running) // 2)
            one.in_flight -= 1
        made.changed(one)


def test_round_robin_by_weight_spreads_the_heavy_ones_turns() -> None:
    made = make_policy("round_robin", {}, Random(1))
    one, other = LiveEndpoint("a", weight=2.0), LiveEndpoint("b", weight=1.0)
    made.rebuild([one, other])
    turns = "".join(picked.id for picked in (made.pick(NO_FACTS) for _ in range(9)) if picked)
    assert turns == "abaabaaba"


def test_a_warmed_up_endpoint_gets_its_share_of_random_and_round_robin() -> None:
    for name in ("random", "round_robin"):
        made = make_policy(name, {}, Random(1))
        endpoints = fresh(2)
        endpoints[1].effective_weight = 0.1
        made.rebuild(endpoints)
        endpoints[1].effective_weight = 1.0
        made.changed(endpoints[1])
        counts = [made.pick(NO_FACTS) for _ in range(1000)].count(endpoints[1])
        assert 430 < counts < 570, name


def test_a_stranger_with_a_members_id_does_not_get_in() -> None:
    for name in sorted(OURS):
        made = make_policy(name, {}, Random(1))
        member, stranger = LiveEndpoint("a"), LiveEndpoint("a")
        made.rebuild([member])
        made.changed(stranger)
        assert {made.pick(LbRequest(session="s", prompt=b"p")) for _ in range(100)} == {member}, name
        made.rebuild([])
        made.changed(member)
        assert made.pick(NO_FACTS) is None


def test_sessions_stay_when_others_come_and_go() -> None:
    made = SessionAffinity()
    endpoints = fresh(10)
    made.rebuild(endpoints)
    sessions = [LbRequest(session=f"user-{number}") for number in range(1000)]
    before = [made.pick(one) for one in sessions]
    assert len(set(before)) == 10
    made.rebuild(endpoints[:-1])
    after = [made.pick(one) for one in sessions]
    moved = sum(one is not other for one, other in zip(before, after, strict=True))
    assert moved == before.count(endpoints[-1])
    made.rebuild([*endpoints, LiveEndpoint("new")])
    moved = sum(
        one is not other for one, other in zip(before, [made.pick(one) for one in sessions], strict=True)
    )
    assert moved < 250


def test_an_overloaded_favourite_gives_way() -> None:
    for made, request in (
        (SessionAffinity(), LbRequest(session="s")),
        (PrefixAffinity(), LbRequest(prompt=b"p" * 2000)),
    ):
        endpoints = fresh(4)
        made.rebuild(endpoints)
        favourite = made.pick(request)
        assert favourite is not None
        assert {made.pick(request) for _ in range(10)} == {favourite}
        favourite.in_flight = 50
        made.changed(favourite)
        assert made.pick(request) is not favourite


def affine(kind: str, count: int) -> tuple[Policy, list[LbRequest]]:
    """A policy with affinity and so many requests that want their favourite."""
    if kind == "session":
        return SessionAffinity(), [LbRequest(session=f"user-{number}") for number in range(count)]
    return PrefixAffinity(), [LbRequest(prompt=b"%09d" % number * 100) for number in range(count)]


@pytest.mark.parametrize("kind", ["session", "prefix"])
def test_affinity_gives_a_weakened_endpoint_its_share(kind: str) -> None:
    """One request after the other: no load would say that it has enough."""
    made, requests = affine(kind, 2000)
    endpoints = fresh(4)
    made.rebuild(endpoints)
    before = [made.pick(one) for one in requests]
    weak = endpoints[0]
    weak.effective_weight = 0.05
    made.changed(weak)
    after = [made.pick(one) for one in requests]
    its_own = before.count(weak)
    assert its_own > 200
    assert 0 < after.count(weak) < 0.15 * its_own
    moved = [one for one, other in zip(before, after, strict=True) if one is not other]
    assert set(moved) == {weak}, "nobody else's favourite is another one now"


def test_a_session_comes_back_as_its_endpoint_warms_up() -> None:
    made, requests = affine("session", 500)
    endpoints = fresh(3)
    made.rebuild(endpoints)
    before = [made.pick(one) for one in requests]
    counts = []
    for share in (0.1, 0.4, 0.7, 1.0):
        endpoints[1].effective_weight = share
        made.changed(endpoints[1])
        counts.append([made.pick(one) for one in requests].count(endpoints[1]))
    assert counts == sorted(set(counts))
    assert [made.pick(one) for one in requests] == before


def test_affinity_stays_while_all_are_kept_by_the_floor() -> None:
    made, requests = affine("session", 200)
    endpoints = fresh(3)
    made.rebuild(endpoints)
    before = [made.pick(one) for one in requests]
    for one in endpoints:
        one.effective_weight = 0.05
        made.changed(one)
    assert [made.pick(one) for one in requests] == before


@pytest.mark.parametrize("kind", ["session", "prefix"])
def test_a_weakened_favourite_is_overloaded_earlier(kind: str) -> None:
    made, requests = affine(kind, 1)
    endpoints = fresh(4)
    made.rebuild(endpoints)
    for one in endpoints:
        one.in_flight = 10
        made.changed(one)
    favourite = made.pick(requests[0])
    assert favourite is not None and made.pick(requests[0]) is favourite
    favourite.in_flight = 6  # more than half of what the others may have
    favourite.effective_weight = 0.3
    made.changed(favourite)
    assert made.pick(requests[0]) is not favourite


def test_the_longest_prefix_wins_and_memory_is_bounded() -> None:
    made = PrefixAffinity(capacity=1000, block=10)
    endpoints = fresh(5)
    made.rebuild(endpoints)
    system = b"s" * 40
    first = made.pick(LbRequest(prompt=system + b"a" * 40))
    made.pick(LbRequest(prompt=b"other" * 20))
    assert made.pick(LbRequest(prompt=system + b"a" * 40 + b"more")) is first
    assert made.pick(LbRequest(prompt=system + b"b" * 40)) is first
    for number in range(5000):
        made.pick(LbRequest(prompt=b"%09d " % number * 3))
    assert len(made) <= 1010
    made.rebuild([one for one in endpoints if one is not first])
    assert made.pick(LbRequest(prompt=system + b"a" * 40)) is not first


def test_scorers() -> None:
    assert list(Near("eu-1a").score(NO_FACTS, ENDPOINTS)) == [1.0, 0.5, 0.0]
    assert list(Cheap().score(NO_FACTS, ENDPOINTS)) == [0.5, 1.0, 0.5]
    assert list(Idle().score(NO_FACTS, loaded(a=1, b=3))) == [1.0, 0.5]
    slow = fresh(2)
    slow[0].latency, slow[1].latency = 0.2, 0.4
    assert list(Quick().score(NO_FACTS, slow)) == [1.0, 0.5]
    scored = Scored("mine", [(1.0, Near("eu-1a")), (0.1, Cheap())], [NotFull(3)])
    endpoints = [LiveEndpoint("a", zone="eu-1a"), LiveEndpoint("b", zone="us-1a")]
    scored.rebuild(endpoints)
    assert scored.pick(NO_FACTS) is endpoints[0]
    endpoints[0].in_flight = 3
    assert scored.pick(NO_FACTS) is endpoints[1]
    endpoints[1].in_flight = 3
    assert scored.pick(NO_FACTS) is endpoints[0], "a filter that leaves nobody is left out"


def test_equal_scores_take_turns() -> None:
    scored = make_policy("weighted", {"near": 1, "zone": "eu-1a"}, Random(1))
    endpoints = fresh(3, zone="eu-1a")
    scored.rebuild(endpoints)
    assert [scored.pick(NO_FACTS) for _ in range(6)] == endpoints * 2


def test_scores_leave_a_turn_for_whoever_waited_longest() -> None:
    scored = make_policy("weighted", {"near": 1, "zone": "eu-1a", "not_full": True}, Random(1))
    near, far, full = (LiveEndpoint("a", zone="eu-1a"), LiveEndpoint("b"), LiveEndpoint("c", capacity=1.0))
    full.in_flight = 1
    scored.rebuild([near, far, full])
    picked = [scored.pick(NO_FACTS) for _ in range(640)]
    assert (picked.count(far), picked.count(full)) == (10, 0), "a filter holds for that turn too"


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("least_lod", {}, "did you mean"),
        ("weighted", {"cheep": 1}, "'cheep' is none of"),
        ("session_affinity", {"slak": 2}, "slak"),
        ("round_robin", {"x": 1}, "x"),
    ],
)
def test_wrong_names_are_told(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        make_policy(name, options, Random(1))


def test_a_plugin_is_found_by_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint

    from skyloom_lb.pipeline import registry

    found = EntryPoint("mine", "skyloom_lb.pipeline.scoring:Idle", registry.GROUP)
    asked: list[dict[str, str]] = []
    monkeypatch.setattr(registry, "entry_points", lambda **given: asked.append(given) or [found])
    made = Scored("mine", [])
    given_options: list[Any] = []
    monkeypatch.setattr(
        EntryPoint, "load", lambda self: lambda options, random: given_options.append(options) or made
    )
    assert make_policy("mine", {"a": 1}, Random(1)) is made
    assert given_options == [{"a": 1}]
    assert asked == [{"group": "skyloom.lb.policies", "name": "mine"}]


def test_latency_jumps_up_and_comes_down_over_seconds() -> None:
    one = LiveEndpoint("a")
    observe_latency(one, 0.1, 0.0)
    observe_latency(one, 2.0, 1.0)
    assert one.latency == 2.0
    observe_latency(one, 0.1, 2.0)
    assert 1.5 < one.latency < 2.0
    for second in range(3, 60):
        observe_latency(one, 0.1, float(second))
    assert one.latency < 0.15
    one.latency = 5.0
    guessed = LiveEndpoint("b")
    guessed.latency = 1.0
    assert usual_latency([one, guessed, LiveEndpoint("c")]) == 5.0
    assert forget_latency(one, 0.1, 100.0)
    assert one.latency < 1.0


def test_waiting_in_vain_is_a_latency_and_never_good_news() -> None:
    one = LiveEndpoint("a")
    observe_wait(one, 0.0, 5.0)
    assert (one.latency, one.latency_at) == (0.0, 0.0)
    observe_wait(one, 3.0, 5.0)
    observe_wait(one, 0.5, 99.0)
    assert (one.latency, one.latency_at) == (3.0, 5.0)


def test_a_guess_follows_the_others_until_the_first_answer() -> None:
    one = LiveEndpoint("a")
    assert not guess_latency(one, 0.0)
    assert guess_latency(one, 2.0) and guess_latency(one, 0.5) and not guess_latency(one, 0.5)
    assert not forget_latency(one, 0.1, 100.0)
    observe_latency(one, 0.2, 100.0)
    assert one.latency == pytest.approx(0.2, rel=1e-3)
    assert not guess_latency(one, 0.5)


@pytest.mark.slow
def test_a_pick_costs_at_most_ten_microseconds() -> None:
    """1,000 endpoints and 10^6 remembered prefixes; the bound is generous because the machine is shared."""
    rounds = 20_000
    least = Least("least_load", by_load)
    prefix = PrefixAffinity(capacity=1_000_000)
    for policy, prompts in ((least, [b""]), (prefix, [b"%08d" % number * 256 for number in range(2000)])):
        policy.rebuild(fresh(1000))
        if isinstance(policy, PrefixAffinity):
            for number in range(1_000_000 // 4):
                policy.pick(LbRequest(prompt=b"%08d" % number * 256))
        requests = [LbRequest(prompt=prompt) for prompt in prompts]
        best = 1.0
        for _ in range(3):
            started = time.perf_counter()
            for number in range(rounds):
                one = policy.pick(requests[number % len(requests)])
            best = min(best, (time.perf_counter() - started) / rounds)
        assert one is not None
        assert best < 30e-6
