"""Whether a request may start now, later, or not: rates, concurrency, queues, and services that sleep.

Order: rates (429, at once), an endpoint (held until there is one), a place (queued in a fair order). What was taken is given
back exactly once, however the request ended. One per process; survives reloads. With a ledger, the worker processes of a balancer
count together; without one, each has its share.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from skyloom_lb.admission.config import Limits, ServiceLimits
from skyloom_lb.admission.gate import Gate, Slots
from skyloom_lb.admission.ledger import HELD, Ledger, Row
from skyloom_lb.admission.shared import RedisScript
from skyloom_lb.admission.taken import Place, Taken, Took, give_back, rates, too_many
from skyloom_lb.exchange import FREE, ClientStream, Permit, Refusal

if TYPE_CHECKING:
    from collections.abc import Awaitable

_FIRST_WORD = 1.0
"""Seconds after which a held stream hears from us for the first time."""
_KEEP_ALIVE = b": waiting for a replica\n\n"
_WANTED_EVERY = 1.0


class Sleeper(Protocol):
    """What is asked of a service: has it somebody to serve?"""

    name: str

    @property
    def eligible(self) -> Any: ...


class Waiting:
    """An awaitable that becomes a coroutine only when somebody awaits it."""

    __slots__ = ("_run",)

    def __init__(self, run: Callable[[], Awaitable[Permit | Refusal]]) -> None:
        self._run = run

    def __await__(self) -> Generator[Any, Any, Permit | Refusal]:
        return self._run().__await__()


class Admission:
    def __init__(
        self,
        script: RedisScript | None = None,
        wanted: Callable[[str], None] = lambda service: None,
        workers: int = 1,
        clock: Callable[[], float] = time.monotonic,
        ledger: Ledger | None = None,
    ) -> None:
        self.clock = clock
        self._ledger = ledger
        self._script = script
        self._wanted = wanted
        self._workers = workers
        self._settings: dict[str, ServiceLimits] = {}
        self._gates: dict[str, Gate] = {}
        self._services: dict[str, Taken] = {}
        self._keys: dict[str, Taken] = {}
        self._held: dict[str, list[asyncio.Future[None]]] = {}
        self._sleepers: dict[str, Sleeper] = {}
        self._asked_at: dict[str, float] = {}
        self._crowded: set[Gate] = set()
        self._giving_back: set[asyncio.Task[None]] = set()
        self.nobody = Taken("")

    # --- settings

    def configure(self, services: Mapping[str, ServiceLimits]) -> None:
        now = self.clock()
        for name, settings in services.items():
            self._settings[name] = settings
            taken = self._services.get(name)
            if taken is None:
                taken = self._services[name] = Taken(f"service:{name}", always=True)
                self._gates[name] = Gate(taken.slots, self._ledger)
            taken.configure(settings.limits, self._workers, self._script, self._ledger, now)
        for gate in self._crowded:
            gate.grant()

    def key(self, name: str, limits: Limits) -> Taken:
        """The counts of a key; the same object for the same name, whatever its limits become."""
        taken = self._keys.get(name)
        if taken is None:
            taken = self._keys[name] = Taken(f"key:{name}")
        taken.configure(limits, self._workers, self._script, self._ledger, self.clock())
        return taken

    # --- one request

    def is_open(self, service: Sleeper, key: Taken) -> bool:
        """Whether `admit` would let a request in without counting it: somebody is awake, and nothing is limited."""
        taken = self._services.get(service.name)
        return taken is None or not (key.limited or taken.limited or not service.eligible)

    def admit(
        self, service: Sleeper, key: Taken, priority: int, estimate: float, client: ClientStream | None,
        has_fallback: bool = False,
    ) -> Permit | Refusal | Awaitable[Permit | Refusal]:  # fmt: skip
        """`client` is that of a stream, which can be told that it waits; None for any other request."""
        settings = self._settings.get(service.name)
        if settings is None:
            return FREE
        taken, gate = self._services[service.name], self._gates[service.name]
        asleep = not service.eligible
        if asleep:
            self._want(service.name)
        elif self.is_open(service, key):
            return FREE
        hold = asleep and settings.hold_seconds > 0 and not has_fallback
        known = self._rates_now(key, taken, estimate)
        if isinstance(known, Refusal):
            return known
        if known is not None and not hold and gate.enter(key.slots):
            return Place(self, gate, taken, key, known)

        async def run() -> Permit | Refusal:
            return await self._wait(service, settings, key, priority, estimate, client, known, hold)

        return Waiting(run)

    def _rates_now(self, key: Taken, service: Taken, estimate: float) -> Took | Refusal | None:
        """None = only Redis knows (nothing was taken)."""
        now = self.clock()
        took: Took = []
        for bucket, amount, words in rates(key, service, estimate):
            wait = bucket.take_now(amount, now)
            if wait == 0.0:
                took.append((bucket, amount))
                continue
            give_back(took, now)
            return None if wait is None else too_many(words, wait, key, self.clock())
        return took

    async def _rates_asked(self, key: Taken, service: Taken, estimate: float) -> Took | Refusal:
        took: Took = []
        done = False
        try:
            for bucket, amount, words in rates(key, service, estimate):
                wait = await bucket.take(amount, self.clock)
                if wait:
                    return too_many(words, wait, key, self.clock())
                took.append((bucket, amount))
            done = True
            return took
        finally:
            if not done:
                give_back(took, self.clock())

    async def _wait(
        self, service: Sleeper, settings: ServiceLimits, key: Taken, priority: int, estimate: float,
        client: ClientStream | None, took: Took | None, hold: bool,
    ) -> Permit | Refusal:  # fmt: skip
        taken, gate = self._services[service.name], self._gates[service.name]
        entered = False
        try:
            if took is None:
                asked = await self._rates_asked(key, taken, estimate)
                if isinstance(asked, Refusal):
                    return asked
                took = asked
            if hold:
                refusal = await self._hold(service, settings, client)
                if refusal is not None:
                    return refusal
            refusal = await self._queue(settings, gate, service.name, key, priority, estimate)
            entered = refusal is None
            return Place(self, gate, taken, key, took) if refusal is None else refusal
        finally:
            if took and not entered:
                give_back(took, self.clock())

    # --- the queue

    async def _queue(
        self, settings: ServiceLimits, gate: Gate, name: str, key: Taken, priority: int, cost: float
    ) -> Refusal | None:
        if gate.enter(key.slots):
            return None
        full = self._queue_refusal(gate, name, key, settings.queue_seconds)
        if not settings.queue_seconds or not (
            gate.queued < settings.queue or gate.make_room(key.slots, priority)
        ):
            return full
        waiter = gate.join(key.slots, priority, cost)
        self._crowded.add(gate)
        try:
            async with asyncio.timeout(settings.queue_seconds):
                await waiter.entered
            return None if waiter.granted else _crowded_out(gate, name, settings.queue_seconds)
        except TimeoutError:
            if gate.give_up(waiter):
                return full
            return None
        except asyncio.CancelledError:
            if not gate.give_up(waiter):
                gate.leave(key.slots)
                self.left(gate, key.slots)
            raise

    def _queue_refusal(self, gate: Gate, name: str, key: Taken, seconds: float) -> Refusal:
        if not key.slots.free:
            words = f"This API key may have {key.limits.concurrency} requests at once, and all of them run."
            return Refusal(429, "too_many_concurrent_requests", words, retry_after=_again(seconds))
        return _crowded_out(gate, name, seconds)

    def left(self, gate: Gate, key: Slots) -> None:
        """A place is free: of this gate, and of a key that may wait at others. The workers take turns."""
        if self._ledger is not None:
            heirs = {one for one in (gate.slots.heir(), key.heir()) if one is not None}
            for worker in heirs:
                self._ledger.ring(worker)
            if heirs:
                return  # they pass on what they cannot use
        if self._crowded:
            self._grant_all(gate)

    def _grant_all(self, first: Gate | None = None) -> None:
        if first is not None:
            first.grant()
        for one in tuple(self._crowded):
            if not len(one):
                self._crowded.discard(one)
            elif one is not first:
                one.grant()

    def woken(self) -> None:
        """Another worker has left a place, or is dead."""
        self._grant_all()
        assert self._ledger is not None
        for worker in {one for gate in self._gates.values() for one in gate.heirs()}:
            self._ledger.ring(worker)

    # --- services that sleep

    def _want(self, name: str) -> None:
        now = self.clock()
        if now - self._asked_at.get(name, -_WANTED_EVERY) >= _WANTED_EVERY:
            self._asked_at[name] = now
            self._wanted(name)

    async def _hold(
        self, service: Sleeper, settings: ServiceLimits, client: ClientStream | None
    ) -> Refusal | None:
        held = self._held.setdefault(service.name, [])
        row = self._services[service.name].slots.row
        waiting = len(held) if row is None else row.total(HELD)
        if waiting >= settings.hold_requests:
            words = f"Service {service.name} is starting and {waiting} requests wait already."
            return Refusal(503, "starting", words, retry_after=5.0)
        self._sleepers[service.name] = service
        ends = self.clock() + settings.hold_seconds
        word_at = self.clock() + _FIRST_WORD
        while not service.eligible:
            now = self.clock()
            if now >= ends:
                words = (
                    f"Service {service.name} has no endpoint after {settings.hold_seconds:g} s of waiting."
                )
                return Refusal(503, "no_endpoint", words, retry_after=10.0)
            if client is not None and now >= word_at:
                client.begin_stream()
                client.send_payload(_KEEP_ALIVE)
                word_at = now + settings.keep_alive_seconds
            self._want(service.name)
            await self._woken(held, row, min(ends, word_at if client is not None else ends) - now)
        return None

    async def _woken(self, held: list[asyncio.Future[None]], row: Row | None, seconds: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        held.append(future)
        if row is not None:
            row.set(HELD, len(held))
        try:
            async with asyncio.timeout(min(seconds, _WANTED_EVERY)):
                await future
        except TimeoutError:
            pass
        finally:
            held.remove(future)
            if row is not None:
                row.set(HELD, len(held))

    def sweep(self, now: float) -> None:
        """Wakes who waited for an endpoint that is there now, gives unused advances back, looks whether Redis is back, and
        starts what a bell that was not heard should have started."""
        if self._ledger is not None and self._crowded:
            self._grant_all()
        for name, held in self._held.items():
            if held and self._sleepers[name].eligible:
                for future in held:
                    if not future.done():
                        future.set_result(None)
        if self._script is None:
            return
        if self._script.trouble:
            self._start(self._script.probe())
        if not self._script.away:
            for taken in (*self._keys.values(), *self._services.values()):
                for bucket in (taken.requests, taken.tokens):
                    if bucket is not None and bucket.idle_credit(now):
                        self._start(bucket.give_back(now))

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._giving_back.add(task)
        task.add_done_callback(self._giving_back.discard)

    @property
    def redis_failures(self) -> int:
        return self._script.failures if self._script is not None else 0

    @property
    def trouble(self) -> str:
        """Why limits are not common to all balancers now."""
        return self._script.trouble if self._script is not None else ""

    @property
    def ledger_missed(self) -> int:
        return self._ledger.lock.missed if self._ledger is not None else 0

    def counts(self) -> dict[str, int]:
        """All of them are 0 when nothing runs."""
        return {
            "active": sum(gate.slots.active for gate in self._gates.values()),
            "key_active": sum(key.slots.active for key in self._keys.values()) + self.nobody.slots.active,
            "queued": sum(len(gate) for gate in self._gates.values()),
            "held": sum(len(held) for held in self._held.values()),
        }


def _crowded_out(gate: Gate, name: str, seconds: float) -> Refusal:
    words = f"Service {name} is at its limit and {gate.queued} requests wait already."
    return Refusal(503, "overloaded", words, retry_after=_again(seconds))


def _again(seconds: float) -> float:
    """When to try again, of a queue in which one waits so many seconds at most."""
    return min(max(1.0, seconds / 4), 30.0)
