"""Limits without a clock or a network: buckets, fair order, places, and what is left of them after any mix of ends."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skyloom_lb.admission.admission import Admission
from skyloom_lb.admission.buckets import Bucket
from skyloom_lb.admission.config import Limits, ServiceLimits
from skyloom_lb.admission.fair import MAX_COST, FairQueue
from skyloom_lb.admission.ledger import QUEUED, Ledger, make_ledger
from skyloom_lb.exchange import FREE, Outcome, Permit, Refusal
from skyloom_lb.retries import MOST_DEATHS, MOST_IN_VAIN, PATIENCE_SECONDS, Comeback


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# --- buckets


def test_a_bucket_holds_a_minute_and_fills_at_its_rate() -> None:
    bucket = Bucket(60, 0.0)
    assert [bucket.take(1, 0.0) for _ in range(60)] == [0.0] * 60
    assert bucket.take(1, 0.0) == pytest.approx(1.0)
    assert bucket.take(1, 1.0) == 0.0
    assert bucket.take(30, 1.0) == pytest.approx(30.0)
    assert bucket.take(30, 31.0) == 0.0


def test_what_is_more_than_a_bucket_costs_a_full_one() -> None:
    bucket = Bucket(100, 0.0)
    assert bucket.take(5000, 0.0) == 0.0
    assert bucket.take(1, 0.0) > 0


def test_corrections_may_overdraw_and_never_overfill() -> None:
    bucket = Bucket(60, 0.0)
    bucket.correct(-90, 0.0)
    assert bucket.take(1, 0.0) == pytest.approx(31.0)
    bucket.correct(1e9, 0.0)
    assert bucket.level == 60


def test_a_clock_that_runs_backwards_gives_nothing() -> None:
    bucket = Bucket(60, 100.0)
    bucket.take(60, 100.0)
    assert bucket.take(1, 50.0) > 0
    assert bucket.take(1, 101.0) == 0.0


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0.1, 50)), max_size=60))
def test_never_more_than_the_limit_and_one_bucket(steps: list[tuple[float, float]]) -> None:
    bucket, now, taken = Bucket(60, 0.0), 0.0, 0.0
    for pause, amount in steps:
        now += pause
        if bucket.take(amount, now) == 0.0:
            taken += amount
        assert taken <= 60 + now * 1.0 + 1e-6


# --- order


def drain(queue: FairQueue[Any], count: int = 10**6) -> list[Any]:
    return [one for one in (queue.pop() for _ in range(min(count, len(queue)))) if one is not None]


def test_keys_take_turns() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(6):
        queue.push(f"a{number}", "a", cost=512)
    queue.push("b0", "b", cost=512)
    queue.push("c0", "c", cost=512)
    assert {"b0", "c0"} < set(drain(queue, 4))


def test_cost_counts_not_the_number_of_requests() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(100):
        queue.push(f"big{number}", "big", cost=2000)
        queue.push(f"small{number}", "small", cost=100)
    first = Counter(one[:3] for one in drain(queue, 60))
    assert first["sma"] > 10 * first["big"]


def test_higher_classes_get_more_and_lower_ones_their_share() -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue()
    for number in range(400):
        queue.push(("high", number), "h", 1, 100)
        queue.push(("low", number), "l", 0, 100)
    first = Counter(name for name, _ in drain(queue, 200))
    assert 150 <= first["high"] <= 170 and first["low"] >= 30


def test_a_key_that_may_not_is_passed_over() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.push("a0", "a")
    queue.push("b0", "b")
    assert queue.pop(lambda key: key == "b") == "b0"
    assert queue.pop(lambda key: key == "b") is None
    assert queue.pop() == "a0" and len(queue) == 0


def test_a_class_that_was_held_saves_nothing_up() -> None:
    """`held` is at its own limit all the time; when another key of its class comes, the higher class still gets its turns."""
    queue: FairQueue[tuple[str, int]] = FairQueue()
    classes = {"held": 0, "late": 0, "high": 1}
    for number, name in enumerate(("held", "high") * 20):
        queue.push((name, number), name, classes[name])
    for number in range(100, 2100):
        item = queue.pop(lambda key: key != "held")
        assert item is not None
        queue.push((item[0], number), item[0], classes[item[0]])
    for number in range(3000, 3020):
        queue.push(("late", number), "late", 0)
    served = Counter[str]()
    for number in range(4000, 4100):
        item = queue.pop(lambda key: key != "held")
        assert item is not None
        served[item[0]] += 1
        queue.push((item[0], number), item[0], classes[item[0]])
    assert 70 <= served["high"] <= 90 and served["late"] >= 10


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(-2, 2), st.floats(0, 10**5)), max_size=80), st.randoms()
)
def test_every_item_comes_out_once_or_was_removed(
    items: list[tuple[int, int, float]], chance: random.Random
) -> None:
    queue: FairQueue[int] = FairQueue()
    gone, seen = set(), []
    for number, (key, priority, cost) in enumerate(items):
        queue.push(number, f"k{key}", priority, cost)
        if chance.random() < 0.2:
            victim = chance.randrange(number + 1)
            if queue.remove(victim):
                gone.add(victim)
        if chance.random() < 0.3 and (item := queue.pop()) is not None:
            seen.append(item)
    seen += drain(queue)
    assert sorted([*seen, *gone]) == list(range(len(items))) and len(queue) == 0


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(1, MAX_COST), min_size=2, max_size=6), st.integers(0, 10**6))
def test_no_key_starves(costs: list[float], seed: int) -> None:
    """Every key always has something waiting; each is served again within a bounded amount of work."""
    queue: FairQueue[tuple[int, int]] = FairQueue()
    chance = random.Random(seed)
    for key, cost in enumerate(costs):
        queue.push((key, 0), f"k{key}", chance.choice((0, 1)), cost)
    work: Counter[int] = Counter()
    since: dict[int, float] = dict.fromkeys(range(len(costs)), 0.0)
    for turn in range(1, 400):
        item = queue.pop()
        assert item is not None
        key = item[0]
        work[key] += 1
        since = {one: waited + costs[key] for one, waited in since.items()}
        since[key] = 0.0
        assert all(waited <= 16 * len(costs) * (MAX_COST + 1024) for waited in since.values())
        queue.push((key, turn), f"k{key}", 0, costs[key])


# --- admission


class Service:
    name = "s"

    def __init__(self) -> None:
        self.eligible: list[str] = ["e"]


class Stream:
    def __init__(self) -> None:
        self.begun = False
        self.told: list[bytes] = []

    def begin_stream(self) -> None:
        self.begun = True

    def send_payload(self, payload: bytes) -> None:
        assert self.begun
        self.told.append(payload)


def outcome(**fields: Any) -> Outcome:
    made = Outcome(0.0, None, "", b"", "fast")
    made.ended = made.first_byte = 1.0
    made.status = 200
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def admission(clock: Clock | None = None, wanted: list[str] | None = None, **limits: Any) -> Admission:
    made = Admission(
        wanted=wanted.append if wanted is not None else lambda name: None, clock=clock or Clock()
    )
    made.configure({"s": ServiceLimits(**limits)})
    return made


async def settle(answer: Any) -> Permit | Refusal:
    return answer if isinstance(answer, Refusal) or hasattr(answer, "release") else await answer


async def test_without_limits_nothing_is_counted() -> None:
    one = admission()
    assert one.admit(Service(), one.nobody, 0, 100, None) is FREE


async def test_requests_a_minute() -> None:
    clock = Clock()
    one = admission(clock)
    key = one.key("k", Limits(requests_per_minute=2))
    for _ in range(2):
        permit = one.admit(Service(), key, 0, 0, None)
        assert not isinstance(permit, Refusal)
        (await settle(permit)).release(outcome())  # type: ignore[union-attr]
    refused = one.admit(Service(), key, 0, 0, None)
    assert isinstance(refused, Refusal) and refused.status == 429 and refused.retry_after == pytest.approx(30)
    clock.now += 31
    assert not isinstance(one.admit(Service(), key, 0, 0, None), Refusal)


async def test_tokens_are_estimated_and_corrected() -> None:
    one = admission()
    key = one.key("k", Limits(tokens_per_minute=1000))
    permit = await settle(one.admit(Service(), key, 0, 900, None))
    assert isinstance(one.admit(Service(), key, 0, 900, None), Refusal)
    permit.release(outcome(prompt_tokens=50, completion_tokens=50))  # type: ignore[union-attr]
    permit = await settle(one.admit(Service(), key, 0, 900, None))
    permit.release(outcome(prompt_tokens=1500))  # type: ignore[union-attr]
    refused = one.admit(Service(), key, 0, 1, None)
    assert isinstance(refused, Refusal) and "1000 tokens a minute" in refused.message


@pytest.mark.parametrize("ended", [0.0, 1.0])
@pytest.mark.parametrize("of", ["key", "service"])
async def test_an_estimate_beyond_the_bucket_gives_back_no_more_than_it_took(of: str, ended: float) -> None:
    """Also when the bucket has grown in the meantime."""
    one = admission(tokens_per_minute=1000 if of == "service" else 0)
    key = one.key("k", Limits(tokens_per_minute=1000 if of == "key" else 0))
    permit: Any = await settle(one.admit(Service(), key, 0, 100_000, None))
    bucket = key.tokens if of == "key" else one._services["s"].tokens
    assert bucket is not None and bucket.local.peek(1000.0) == 0
    one.configure({"s": ServiceLimits(tokens_per_minute=5000 if of == "service" else 0)})
    one.key("k", Limits(tokens_per_minute=5000 if of == "key" else 0))
    permit.release(outcome(ended=ended, prompt_tokens=900 if ended else 0))
    assert bucket.local.peek(1000.0) == (100 if ended else 1000)


async def test_a_refused_request_costs_nothing() -> None:
    one = admission(tokens_per_minute=10)
    key = one.key("k", Limits(requests_per_minute=1))
    await settle(one.admit(Service(), one.nobody, 0, 10, None))
    assert isinstance(one.admit(Service(), key, 0, 10, None), Refusal)
    assert key.requests is not None and key.requests.local.level == 1


async def test_the_queue_is_bounded_and_has_a_deadline() -> None:
    one = admission(concurrency=1, queue=1, queue_seconds=0.02)
    first = await settle(one.admit(Service(), one.nobody, 0, 0, None))
    second = asyncio.ensure_future(settle(one.admit(Service(), one.nobody, 0, 0, None)))
    await asyncio.sleep(0)
    third = await settle(one.admit(Service(), one.nobody, 0, 0, None))
    assert isinstance(third, Refusal) and third.status == 503 and third.retry_after
    late = await second
    assert isinstance(late, Refusal) and late.status == 503
    first.release(outcome())  # type: ignore[union-attr]
    assert set(one.counts().values()) == {0}


async def crowd(one: Admission, key: Any, count: int, priority: int = 0) -> list[asyncio.Future[Any]]:
    tasks = [
        asyncio.ensure_future(settle(one.admit(Service(), key, priority, 0, None))) for _ in range(count)
    ]
    await asyncio.sleep(0)
    return tasks


async def test_one_key_does_not_fill_the_queue_against_the_others() -> None:
    one = admission(concurrency=1, queue=4)
    greedy, modest = one.key("greedy", Limits(concurrency=9)), one.key("modest", Limits(concurrency=9))
    first: Any = await settle(one.admit(Service(), one.nobody, 0, 0, None))
    waits = await crowd(one, greedy, 4)
    late = await crowd(one, modest, 3)
    refused = [await waits[number] for number in (3, 2)]
    assert [(each.status, bool(each.retry_after)) for each in refused] == [(503, True)] * 2
    assert not waits[0].done() and not waits[1].done()
    assert late[2].done() and (await late[2]).status == 503, "two each are as many as there is room for"
    first.release(outcome())
    for waiting in asyncio.as_completed((*late[:2], *waits[:2])):
        (await waiting).release(outcome())
    assert set(one.counts().values()) == {0}


async def test_room_is_made_where_it_hurts_least() -> None:
    one = admission(concurrency=1, queue=5)
    keys = [one.key(name, Limits(concurrency=9)) for name in ("high", "low", "new")]
    first: Any = await settle(one.admit(Service(), one.nobody, 0, 0, None))
    high = await crowd(one, keys[0], 3, 1)
    low = await crowd(one, keys[1], 2)
    (late,) = await crowd(one, keys[2], 1)
    assert (await low[1]).status == 503 and not any(each.done() for each in (*high, low[0], late))
    first.release(outcome())
    for waiting in asyncio.as_completed((*high, low[0], late)):
        (await waiting).release(outcome())
    assert set(one.counts().values()) == {0}


async def test_room_in_a_queue_of_several_workers_is_made_in_ones_own_part() -> None:
    ledger, ears = make_ledger(2)
    both = [
        Admission(clock=Clock(), ledger=Ledger(ledger.fd, 2, index, ledger.bells, ear))
        for index, ear in enumerate(ears)
    ]
    greedy, modest = [], []
    for one in both:
        one.configure({"s": ServiceLimits(concurrency=1, queue=4)})
        greedy.append(one.key("greedy", Limits(concurrency=9)))
        modest.append(one.key("modest", Limits(concurrency=9)))
    first: Any = await settle(both[0].admit(Service(), both[0].nobody, 0, 0, None))
    waits = await crowd(both[0], greedy[0], 4)
    elsewhere = await crowd(both[1], modest[1], 1)
    assert (await elsewhere[0]).status == 503, "nobody of this worker could make room"
    late = await crowd(both[0], modest[0], 1)
    assert (await waits[3]).status == 503 and not late[0].done()
    assert ledger.row("service:s").total(QUEUED) == 4  # type: ignore[union-attr]
    first.release(outcome())
    for waiting in asyncio.as_completed((*late, *waits[:3])):
        (await waiting).release(outcome())
    assert set(both[0].counts().values()) == {0}
    for fd in (ledger.fd, *ears, *ledger.bells):
        os.close(fd)


async def test_a_key_at_its_own_limit_does_not_hold_up_others() -> None:
    one = admission(concurrency=10)
    greedy, other = one.key("greedy", Limits(concurrency=1)), one.key("other", Limits(concurrency=5))
    first = await settle(one.admit(Service(), greedy, 0, 0, None))
    waits = asyncio.ensure_future(settle(one.admit(Service(), greedy, 0, 0, None)))
    await asyncio.sleep(0)
    assert hasattr(one.admit(Service(), other, 0, 0, None), "release")
    first.release(outcome())  # type: ignore[union-attr]
    assert hasattr(await waits, "release")


async def test_a_key_waits_at_one_service_for_its_place_at_another() -> None:
    one = admission(concurrency=10)
    one.configure({"t": ServiceLimits(concurrency=10)})
    other = Service()
    other.name = "t"
    key = one.key("k", Limits(concurrency=1))
    first = await settle(one.admit(Service(), key, 0, 0, None))
    waits = asyncio.ensure_future(settle(one.admit(other, key, 0, 0, None)))
    await asyncio.sleep(0)
    assert not waits.done()
    first.release(outcome())  # type: ignore[union-attr]
    assert hasattr(await waits, "release")


async def test_a_sleeping_service_is_asked_for_and_the_request_held() -> None:
    wanted: list[str] = []
    clock, service, stream = Clock(), Service(), Stream()
    service.eligible = []
    one = admission(clock, wanted, hold_seconds=60, keep_alive_seconds=5)
    held = asyncio.ensure_future(settle(one.admit(service, one.nobody, 0, 0, stream)))
    await asyncio.sleep(0)
    assert wanted == ["s"] and not stream.begun
    clock.now += 2
    await wake(one)
    assert stream.begun and stream.told == [b": waiting for a replica\n\n"]
    clock.now += 6
    await wake(one)
    assert len(stream.told) == 2 and len(wanted) >= 2 and not held.done()
    service.eligible = ["e"]
    one.sweep(clock.now)
    (await held).release(outcome())  # type: ignore[union-attr]
    assert set(one.counts().values()) == {0}


async def wake(one: Admission) -> None:
    """As if the second between two looks were over."""
    for held in one._held.values():
        for future in list(held):
            future.set_result(None)
    for _ in range(3):
        await asyncio.sleep(0)


async def test_the_hold_ends() -> None:
    clock, service = Clock(), Service()
    service.eligible = []
    one = admission(clock, hold_seconds=10)
    held = asyncio.ensure_future(settle(one.admit(service, one.nobody, 0, 0, None)))
    await asyncio.sleep(0)
    clock.now += 11
    await wake(one)
    refused = await held
    assert isinstance(refused, Refusal) and refused.status == 503 and refused.retry_after
    assert set(one.counts().values()) == {0}


async def test_with_a_fallback_nobody_is_held() -> None:
    service, wanted = Service(), list[str]()
    service.eligible = []
    one = admission(None, wanted, hold_seconds=10)
    assert hasattr(one.admit(service, one.nobody, 0, 0, None, True), "release")
    assert wanted == ["s"]


@pytest.mark.parametrize("seed", range(12))
async def test_counts_return_to_zero_after_any_mix_of_ends(seed: int) -> None:
    chance, clock, service = random.Random(seed), Clock(), Service()
    one = admission(
        clock, concurrency=3, queue=8, queue_seconds=0.01, hold_seconds=5, tokens_per_minute=10**9
    )
    keys = [
        one.key(f"k{number}", Limits(concurrency=2, requests_per_minute=10**6, tokens_per_minute=10**8))
        for number in range(4)
    ]

    async def request() -> None:
        key = chance.choice(keys)
        permit = await settle(
            one.admit(service, key, chance.randrange(3), chance.randrange(1, 5000), Stream())
        )
        if isinstance(permit, Refusal):
            return
        try:
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
        finally:
            permit.release(
                chance.choice(
                    (
                        outcome(prompt_tokens=chance.randrange(5000)),
                        outcome(status=502, first_byte=0.0),
                        outcome(error="ClientDisconnected"),
                        outcome(ended=0.0),
                    )
                )
            )

    tasks = []
    for _ in range(300):
        service.eligible = ["e"] if chance.random() < 0.8 else []
        tasks.append(asyncio.ensure_future(request()))
        if chance.random() < 0.3:
            chance.choice(tasks).cancel()
        if chance.random() < 0.5:
            await asyncio.sleep(0)
        one.sweep(clock.now)
    service.eligible = ["e"]
    one.sweep(clock.now)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert set(one.counts().values()) == {0}
    assert all(key.tokens is not None and key.tokens.local.level <= 10**8 for key in keys)


async def test_no_key_starves_at_a_gate() -> None:
    """One key asks without end; the others get their turn."""
    one, service = admission(concurrency=2, queue=1000), Service()
    greedy, modest = one.key("greedy", Limits(concurrency=100)), one.key("modest", Limits(concurrency=100))
    done: Counter[str] = Counter()

    async def ask(key: Any) -> None:
        permit = await settle(one.admit(service, key, 0, 300, None))
        assert not isinstance(permit, Refusal)
        await asyncio.sleep(0)
        done[key.name] += 1
        permit.release(outcome())

    tasks = [asyncio.ensure_future(ask(greedy)) for _ in range(500)]
    await asyncio.sleep(0)
    last = [asyncio.ensure_future(ask(modest)) for _ in range(20)]
    await asyncio.gather(*last)
    assert done["key:greedy"] < 60
    await asyncio.gather(*tasks)
    assert set(one.counts().values()) == {0}


async def test_a_waiter_that_is_cancelled_as_its_place_comes_free_takes_nothing() -> None:
    one = admission(concurrency=1)
    first = await settle(one.admit(Service(), one.nobody, 0, 0, None))
    waits = [asyncio.ensure_future(settle(one.admit(Service(), one.nobody, 0, 0, None))) for _ in range(2)]
    await asyncio.sleep(0)
    waits[0].cancel()  # its future is cancelled now, its task runs in the next turn
    first.release(outcome())  # type: ignore[union-attr]
    assert isinstance((await asyncio.gather(waits[0], return_exceptions=True))[0], asyncio.CancelledError)
    (await waits[1]).release(outcome())  # type: ignore[union-attr]
    assert set(one.counts().values()) == {0}


def test_a_broken_answer_is_carried_as_long_as_it_goes_on() -> None:
    one = Comeback()
    for death in range(1, MOST_DEATHS + 1):
        assert one.may_go_on(float(death), given=death)
        one.answered()
    assert not one.may_go_on(1000.0, given=1000)


def test_a_request_that_kills_whoever_takes_it_is_given_up() -> None:
    one = Comeback()
    assert one.may_go_on(0.0, given=10)
    for death in range(MOST_IN_VAIN):
        one.answered()
        assert one.may_go_on(float(death), given=10)
    one.answered()
    assert not one.may_go_on(9.0, given=10)


def test_a_broken_answer_waits_a_bounded_time_for_somebody() -> None:
    other = Comeback()
    assert other.may_go_on(0.0, 0) and other.pause(0.0) < 0.1
    assert all(other.may_go_on(float(second), 0) for second in range(1, int(PATIENCE_SECONDS)))
    assert other.deaths == 1 and other.pause(20.0) == 1.0
    assert not other.may_go_on(PATIENCE_SECONDS, 0)
