"""Limits that worker processes count together: exact, fair between them, woken at once, and freed when one of them dies."""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest

from skyloom_lb.admission import ledger as ledgers
from skyloom_lb.admission.admission import Admission
from skyloom_lb.admission.config import Limits, ServiceLimits
from skyloom_lb.admission.ledger import ACTIVE, QUEUED, REQUESTS, WANTS, Ledger, Lock, inherited, make_ledger
from skyloom_lb.exchange import Outcome, Permit, Refusal
from skyloom_lb.settings import Settings
from skyloom_lb.workers import Supervisor


class Service:
    name = "s"
    eligible = ("e",)


def done(**fields: Any) -> Outcome:
    made = Outcome(0.0, None, "", b"", "fast")
    made.ended = made.first_byte = 1.0
    made.status = 200
    for name, value in fields.items():
        setattr(made, name, value)
    return made


class Machine:
    """A supervisor's ledger and what its workers would have of it, in one process."""

    def __init__(self, workers: int) -> None:
        self.ledger, self.ears = make_ledger(workers)
        self.workers = [
            Ledger(self.ledger.fd, workers, index, self.ledger.bells, ear)
            for index, ear in enumerate(self.ears)
        ]
        self.now = 1000.0

    def admissions(self, listening: bool = True, **limits: Any) -> list[Admission]:
        made = []
        for one in self.workers:
            admission = Admission(workers=len(self.workers), ledger=one, clock=lambda: self.now)
            admission.configure({"s": ServiceLimits(**limits)})
            if listening:
                one.listen(admission.woken)
            made.append(admission)
        return made

    def total(self, name: str, column: int) -> int:
        row = self.ledger.row(name)
        assert row is not None
        return row.total(column)

    def close(self) -> None:
        for fd in (self.ledger.fd, *self.ears, *self.ledger.bells):
            os.close(fd)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    made = Machine(3)
    yield made
    made.close()


async def settle(answer: Any) -> Permit | Refusal:
    return answer if isinstance(answer, Refusal) or hasattr(answer, "release") else await answer


async def got(answer: Any) -> Permit:
    permit = await asyncio.wait_for(settle(answer), 2)
    assert not isinstance(permit, Refusal), permit
    return permit


def ask(one: Admission, key: Any = None) -> asyncio.Future[Any]:
    return asyncio.ensure_future(settle(one.admit(Service(), key or one.nobody, 0, 100, None)))


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_one_worker_may_have_the_whole_limit_and_all_together_no_more(machine: Machine) -> None:
    first, second, _ = machine.admissions(concurrency=5, queue_seconds=0)
    permits = [await got(first.admit(Service(), first.nobody, 0, 0, None)) for _ in range(5)]
    refused = await settle(second.admit(Service(), second.nobody, 0, 0, None))
    assert isinstance(refused, Refusal) and refused.code == "overloaded"
    permits.pop().release(done())
    permits.append(await got(second.admit(Service(), second.nobody, 0, 0, None)))
    assert machine.total("service:s", ACTIVE) == 5
    for one in permits:
        one.release(done())
    assert machine.total("service:s", ACTIVE) == 0


async def test_a_place_that_one_worker_leaves_wakes_the_others(machine: Machine) -> None:
    first, second, _ = machine.admissions(concurrency=1)
    permit = await got(ask(first))
    waits = ask(second)
    await turns()
    assert not waits.done() and machine.total("service:s", WANTS) == 1
    permit.release(done())
    (await got(waits)).release(done())
    assert machine.total("service:s", WANTS) == machine.total("service:s", QUEUED) == 0


async def test_a_keys_place_too_at_another_service(machine: Machine) -> None:
    first, second, _ = machine.admissions(concurrency=10)
    second.configure({"t": ServiceLimits(concurrency=10)})
    other = Service()
    other.name = "t"
    keys = [one.key("k", Limits(concurrency=1)) for one in (first, second)]
    permit = await got(ask(first, keys[0]))
    waits = asyncio.ensure_future(settle(second.admit(other, keys[1], 0, 0, None)))
    free = await got(ask(second))  # others go on meanwhile
    assert not waits.done() and machine.total("key:k", WANTS) == 1
    permit.release(done())
    (await got(waits)).release(done())
    free.release(done())


async def test_no_worker_starves_beside_a_busy_one(machine: Machine) -> None:
    busy, modest, _ = machine.admissions(concurrency=2, queue=1000)
    order: list[str] = []

    async def work(one: Admission, name: str) -> None:
        permit = await got(ask(one))
        order.append(name)
        await asyncio.sleep(0)
        permit.release(done())

    crowd = [asyncio.ensure_future(work(busy, "busy")) for _ in range(200)]
    await turns()
    late = [asyncio.ensure_future(work(modest, "modest")) for _ in range(10)]
    await asyncio.gather(*late)
    assert order.count("busy") < 100
    await asyncio.gather(*crowd)


async def test_a_newcomer_gives_way_to_who_waits_in_another_worker(machine: Machine) -> None:
    first, second, _ = machine.admissions(concurrency=1)
    permit = await got(ask(first))
    waits = ask(second)
    await turns()
    permit.release(done())  # the bell rings; nobody has looked yet
    newcomer = ask(first)
    late = await got(waits)
    assert not newcomer.done()
    late.release(done())
    (await got(newcomer)).release(done())


async def test_a_dead_workers_places_are_free_and_its_queue_is_forgotten(machine: Machine) -> None:
    first, second, third = machine.admissions(concurrency=2)
    _ = [await got(ask(first)) for _ in range(2)]
    ghost = ask(first)
    waits = [ask(second), ask(third)]
    await turns()
    assert machine.total("service:s", WANTS) == 3
    machine.ledger.clear(0)
    assert machine.total("service:s", WANTS) == 2 and machine.total("service:s", ACTIVE) == 0
    for one in [await got(wait) for wait in waits]:
        one.release(done())
    ghost.cancel()


async def test_the_sweep_starts_what_no_bell_did(machine: Machine) -> None:
    first, second, _ = machine.admissions(listening=False, concurrency=1)
    permit = await got(ask(first))
    waits = ask(second)
    await turns()
    permit.release(done())
    await turns()
    assert not waits.done()
    second.sweep(machine.now)
    (await got(waits)).release(done())


async def test_queue_and_held_requests_are_bounded_together(machine: Machine) -> None:
    first, second, _ = machine.admissions(concurrency=1, queue=2, hold_seconds=9, hold_requests=1)
    permit = await got(ask(first))
    waits = [ask(first), ask(second)]
    await turns()
    refused = await settle(second.admit(Service(), second.nobody, 0, 0, None))
    assert isinstance(refused, Refusal) and "2 requests wait" in refused.message
    permit.release(done())
    for wait in reversed(waits):  # the workers take turns
        (await got(wait)).release(done())
    asleep: Any = Service()
    asleep.eligible = ()
    held = asyncio.ensure_future(settle(first.admit(asleep, first.nobody, 0, 0, None)))
    await turns()
    refused = await settle(second.admit(asleep, second.nobody, 0, 0, None))
    assert isinstance(refused, Refusal) and refused.code == "starting"
    held.cancel()
    await asyncio.gather(held, return_exceptions=True)


async def test_rates_are_common(machine: Machine) -> None:
    all_of_them = machine.admissions()
    keys = [one.key("k", Limits(requests_per_minute=60, tokens_per_minute=6000)) for one in all_of_them]
    taken = 0
    for turn in range(120):
        one, key = all_of_them[turn % 3], keys[turn % 3]
        permit = await settle(one.admit(Service(), key, 0, 0, None))
        taken += not isinstance(permit, Refusal)
    assert taken == 60
    machine.now += 10
    refused = [await settle(all_of_them[0].admit(Service(), keys[0], 0, 0, None)) for _ in range(12)]
    assert [isinstance(one, Refusal) for one in refused] == [False] * 10 + [True] * 2
    assert refused[-1].retry_after == pytest.approx(1.0)
    # Tokens: what one sets aside and gives back, another one sees.
    permit = await settle(all_of_them[1].admit(Service(), all_of_them[1].nobody, 0, 0, None))
    machine.now += 60
    permit = await settle(all_of_them[1].admit(Service(), keys[1], 0, 6000, None))
    assert isinstance(await settle(all_of_them[2].admit(Service(), keys[2], 0, 10, None)), Refusal)
    permit.release(done(prompt_tokens=100))
    assert keys[2].tokens.left(machine.now) == pytest.approx(5900)


def test_another_limit_leaves_a_bucket_equally_full_whoever_knows_it_first(machine: Machine) -> None:
    rows = [one.row("key:k") for one in machine.workers]
    one, other = (row.bucket(REQUESTS, 60) for row in rows[:2] if row is not None)
    assert one.take(30, 5.0) == 0.0
    one = one.resized(600, 5.0)
    assert one.peek(5.0) == pytest.approx(300) and other.peek(5.0) == pytest.approx(30)
    assert one.take(100, 5.0) == 0.0
    assert other.peek(5.0) == pytest.approx(20)
    other.correct(-50, 4.0)  # its clock reads less: no time has passed, none is given twice
    assert other.peek(5.0) == pytest.approx(-30) and one.peek(6.0) == pytest.approx(-290)


def test_a_full_table_divides_among_the_workers(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledgers, "ROWS", 4)
    assert [machine.ledger.row(f"n{number}") is not None for number in range(6)] == [True] * 4 + [False] * 2
    one = Admission(workers=3, ledger=machine.workers[0])
    key = one.key("k", Limits(concurrency=6, requests_per_minute=30))
    assert key.slots.limit == 2 and key.requests is not None and key.requests.local.capacity == 10


@pytest.mark.parametrize("seed", range(6))
async def test_any_mix_stays_within_the_limits_and_leaves_nothing_behind(machine: Machine, seed: int) -> None:
    chance = random.Random(seed)
    all_of_them = machine.admissions(concurrency=4, queue=50, queue_seconds=0.05)
    keys = [[one.key(f"k{number}", Limits(concurrency=2)) for number in range(3)] for one in all_of_them]

    async def request(worker: int) -> None:
        one, number = all_of_them[worker], chance.randrange(3)
        permit = await settle(one.admit(Service(), keys[worker][number], 0, 100, None))
        if isinstance(permit, Refusal):
            return
        try:
            assert machine.total("service:s", ACTIVE) <= 4
            assert machine.total(f"key:k{number}", ACTIVE) <= 2
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
        finally:
            permit.release(done())

    tasks = []
    for _ in range(200):
        tasks.append(asyncio.ensure_future(request(chance.randrange(3))))
        if chance.random() < 0.3:
            chance.choice(tasks).cancel()
        if chance.random() < 0.5:
            await asyncio.sleep(0)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert not [one for one in results if isinstance(one, AssertionError)]
    for name in ("service:s", "key:k0", "key:k1", "key:k2"):
        assert [machine.total(name, column) for column in range(4)] == [0, 0, 0, 0]
    assert all(set(one.counts().values()) == {0} for one in all_of_them)


_HAMMER = """
import os, random, sys
from skyloom_lb.admission.gate import Gate, Slots
from skyloom_lb.admission.ledger import inherited
ledger = inherited(sys.argv[1])
row, peak = ledger.row("service:s"), 0
slots, key = Slots("service:s", 3), Slots("k")
slots.share(row)
gate = Gate(slots, ledger)
bucket = ledger.row("key:k").bucket(0, 1)
bucket.capacity, bucket.rate = 50000.0, 1e-9
taken = entered = 0
for turn in range(20000):
    if gate.enter(key):
        entered += 1
        peak = max(peak, row.total(0))
        gate.leave(key)
    taken += bucket.take(1, 1.0) == 0.0
print(peak, entered, taken, ledger.lock.missed)
if sys.argv[2] == "hold":
    for _ in range(2):
        assert gate.enter(key)
    print("held", flush=True)
    sys.stdin.read()
"""


def start(ledger: Ledger, index: int, ear: int, what: str) -> subprocess.Popen[str]:
    text, fds = ledgers.described(ledger, index, ear)
    return subprocess.Popen(
        [sys.executable, "-c", _HAMMER, text, what],
        pass_fds=fds,
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
    )


@pytest.mark.integration
def test_processes_take_turns_exactly_and_a_killed_one_is_cleared(machine: Machine) -> None:
    ledger = machine.ledger
    processes = [start(ledger, index, machine.ears[index], "end") for index in range(3)]
    rows = [one.communicate(timeout=60)[0].split() for one in processes]
    assert all(int(peak) <= 3 and int(entered) > 1000 for peak, entered, _, _ in rows)
    assert sum(int(taken) for _, _, taken, _ in rows) == 50_000, "not one token twice, not one lost"
    assert machine.total("service:s", ACTIVE) == 0
    holder = start(ledger, 1, machine.ears[1], "hold")
    assert holder.stdout is not None
    holder.stdout.readline()
    assert holder.stdout.readline() == "held\n"
    assert machine.total("service:s", ACTIVE) == 2
    holder.kill()
    holder.communicate()
    ledger.clear(1)
    assert machine.total("service:s", ACTIVE) == 0


class Contended:
    """A lock that somebody else has for so many tries, and the time that waiting for it takes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tries: float) -> None:
        self.tries = tries
        self.now = self.waited = 0.0
        monkeypatch.setattr(
            ledgers, "fcntl", SimpleNamespace(lockf=self._lockf, LOCK_UN=fcntl.LOCK_UN, LOCK_EX=fcntl.LOCK_EX)
        )
        monkeypatch.setattr(ledgers, "time", SimpleNamespace(sleep=self._sleep, monotonic=lambda: self.now))
        self.lock = Lock(-1)

    def _lockf(self, fd: int, how: int) -> None:
        if how != fcntl.LOCK_UN and self.tries > 0:
            self.tries -= 1
            raise BlockingIOError

    def _sleep(self, seconds: float) -> None:
        self.now += seconds
        self.waited += seconds

    def enter(self) -> None:
        self.now += 0.001
        with self.lock:
            pass


def test_a_holder_that_waits_for_a_processor_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    contended = Contended(monkeypatch, 900)
    contended.enter()
    assert contended.lock.missed == 0 and contended.tries == 0


def test_a_stopped_holder_costs_a_few_per_cent(monkeypatch: pytest.MonkeyPatch) -> None:
    contended = Contended(monkeypatch, float("inf"))
    for _ in range(30_000):
        contended.enter()
    assert contended.lock.missed == 30_000
    assert 0 < contended.waited < 0.04 * contended.now


def test_a_lock_that_came_back_is_waited_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    contended = Contended(monkeypatch, float("inf"))
    contended.enter()
    assert contended.lock.missed == 1
    contended.tries = 0
    contended.enter()
    contended.tries = 3
    contended.enter()
    assert contended.lock.missed == 1, "nobody is stopped any more: three tries are just a neighbour"


async def test_the_supervisor_clears_the_columns_of_a_worker_that_died(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before another one has its place: the others may have what it held at once."""
    supervisor = Supervisor(Settings(workers=2), ())
    ledger = supervisor._ledger
    rows = [Ledger(ledger.fd, 2, index, ledger.bells).row("service:s") for index in range(2)]
    for row in rows:
        assert row is not None
        row.set(ACTIVE, 3)
        row.set(WANTS, 2)

    def die() -> int:
        supervisor._stopping.set()
        return -9

    dead = Mock(last=None, ask=AsyncMock(return_value=None))
    dead.process.wait = AsyncMock(side_effect=die)
    monkeypatch.setattr(supervisor, "_start", AsyncMock(return_value=dead))
    await supervisor._keep(1)
    assert rows[0] is not None
    assert (rows[0].total(ACTIVE), rows[0].total(WANTS)) == (3, 2), "that of the living one alone"
    assert os.read(supervisor._ears[0], 9) == b"\0", "and it was told"
    for fd in (ledger.fd, *ledger.bells, *supervisor._ears):
        os.close(fd)


@pytest.mark.integration
def test_a_stopped_holder_of_the_lock_stops_nobody(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import fcntl, sys; fcntl.lockf({machine.ledger.fd}, fcntl.LOCK_EX); print('has it', flush=True); sys.stdin.read()",
        ],
        pass_fds=(machine.ledger.fd,),
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    naps: list[float] = []
    sleep = time.sleep
    counted = SimpleNamespace(sleep=lambda one: (naps.append(one), sleep(one)), monotonic=lambda: 0.0)
    monkeypatch.setattr(ledgers, "time", counted)
    for _ in range(50):
        with machine.workers[0].lock:
            pass
    assert len(naps) <= 1000, "the first one waits, the others do not"
    assert machine.workers[0].lock.missed == 50
    holder.kill()
    holder.communicate()
    with machine.workers[0].lock:
        pass
    assert machine.workers[0].lock.missed == 50, "the lock went with its holder"


def test_a_worker_finds_the_ledger_it_inherited(machine: Machine) -> None:
    text, fds = ledgers.described(machine.ledger, 2, machine.ears[2])
    found = inherited(text)
    assert (found.index, found.workers, found.ear) == (2, 3, machine.ears[2])
    assert set(fds) >= {machine.ledger.fd, machine.ears[2], *machine.ledger.bells}
    row = found.row("x")
    assert row is not None
    row.set(ACTIVE, 7)
    assert machine.total("x", ACTIVE) == 7
    assert fcntl.fcntl(machine.ears[2], fcntl.F_GETFL) & os.O_NONBLOCK
