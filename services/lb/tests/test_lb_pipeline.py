"""Policies: tables of who is chosen, and properties that hold for every one of them."""

from __future__ import annotations

import time
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyloom_common.core.errors import InvalidRequest
from skyloom_lb.pipeline.affinity import PrefixAffinity, SessionAffinity
from skyloom_lb.pipeline.latency import forget_latency, observe_latency, usual_latency
from skyloom_lb.pipeline.least import Least, by_load
from skyloom_lb.pipeline.model import NO_FACTS, LbRequest, LiveEndpoint
from skyloom_lb.pipeline.registry import OURS, make_policy
from skyloom_lb.pipeline.scoring import Cheap, Idle, Near, NotFull, Quick, Scored

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


@pytest.mark.parametrize("policy", sorted(OURS))
@given(data=st.data())
def test_whatever_happens_counts_stay_right_and_the_excluded_are_never_chosen(policy: str, data: Any) -> None:
    made = make_policy(policy, {}, Random(data.draw(st.integers(0, 99))))
    endpoints = fresh(data.draw(st.integers(0, 6)))
    made.rebuild(endpoints)
    running: list[LiveEndpoint] = []
    for _ in range(data.draw(st.integers(1, 40))):
        deed = data.draw(st.sampled_from(["pick", "pick", "finish", "weight", "rebuild"]))
        if deed == "pick":
            exclude = tuple(data.draw(st.sets(st.sampled_from([one.id for one in endpoints] or ["x"]))))
            session = data.draw(st.sampled_from(["", "s1", "s2"]))
            picked = made.pick(LbRequest(session=session, prompt=session.encode() * 400), exclude)
            assert (picked is None) == all(one.id in exclude for one in endpoints)
            if picked is not None:
                assert picked in endpoints
                assert picked.id not in exclude
                picked.in_flight += 1
                running.append(picked)
                made.changed(picked)
        elif deed == "finish" and running:
            done = running.pop()
            done.in_flight -= 1
            done.latency = data.draw(st.floats(0, 10))
            made.changed(done)
        elif deed == "weight" and endpoints:
            one = data.draw(st.sampled_from(endpoints))
            one.effective_weight = data.draw(st.floats(0.05, 20))
            made.changed(one)
        elif deed == "rebuild":
            keep = data.draw(st.integers(0, 5))
            endpoints = endpoints[:keep] + [
                LiveEndpoint(f"e{number}") for number in range(keep, data.draw(st.integers(0, 6)))
            ]
            made.rebuild(endpoints)


@pytest.mark.parametrize("policy", sorted(set(OURS) - {"session_affinity", "prefix_affinity", "weighted"}))
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
    monkeypatch.setattr(EntryPoint, "load", lambda self: lambda options, random: ("made", options))
    assert make_policy("mine", {"a": 1}, Random(1)) == ("made", {"a": 1})
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
    assert usual_latency([one, LiveEndpoint("b")]) == 5.0
    assert forget_latency(one, 0.1, 100.0)
    assert one.latency < 1.0


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
