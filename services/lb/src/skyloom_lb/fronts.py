"""Which front stands before the services: the one place that `main` asks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from random import Random
from typing import TYPE_CHECKING

from skyloom_common.bus import Bus
from skyloom_common.contracts.endpoints import REPLICA_WANTED
from skyloom_common.core.errors import InvalidRequest
from skyloom_lb.admission.admission import Admission
from skyloom_lb.admission.config import Limits
from skyloom_lb.admission.keys import KeyStore, read_keys
from skyloom_lb.admission.ledger import Ledger
from skyloom_lb.admission.shared import RedisScript
from skyloom_lb.exchange import Front
from skyloom_lb.openai.config import front_settings, secret_of, service_settings
from skyloom_lb.openai.front import OpenAiFront, State
from skyloom_lb.settings import Settings

if TYPE_CHECKING:
    from skyloom_lb.balancer import Balancer

_log = logging.getLogger(__name__)


def check(settings: Settings) -> None:
    """What the front reads beside the settings: the keys file, providers' keys. Raises InvalidRequest."""
    path, limits = keys_wanted(settings)
    if path:
        read_keys(path, limits)
    elif not settings.is_local and not settings.open:
        raise InvalidRequest(
            f"host: {settings.host} is reachable from outside and there is no keys file, so that everybody could use the "
            "endpoints; give --keys-file FILE (docs/lb-openai.md, Keys), --host 127.0.0.1, or --open if that is wanted"
        )
    for name, service in settings.services.items():
        secret_of(service_settings(name, service.openai))


def is_exposed(settings: Settings) -> bool:
    """Everybody who reaches it may use it, and not only this machine does."""
    return not keys_wanted(settings)[0] and not settings.is_local


def keys_wanted(settings: Settings) -> tuple[str, Limits]:
    """Path of the keys file ("" = none), and the limits of keys that have none of their own."""
    front = front_settings(settings.front)
    return settings.keys_file or front.keys_file, front.limits


def key_store(settings: Settings, before: KeyStore | None, known: str | None = None) -> KeyStore | None:
    """The one there was, unless another one is wanted."""
    path, limits = keys_wanted(settings)
    if not path:
        return None
    return before if before is not None and before.same(path, limits) else KeyStore(path, limits, known=known)


def make_front(balancer: Balancer, ledger: Ledger | None = None, known_keys: str | None = None) -> Front:
    """Called again when the settings or the set of services change; keys, counts and limits outlive that.

    `ledger`: what this process counts together with the other workers. `known_keys`: of a supervisor, for this process's first
    front: the keys file may have become wrong since.
    """
    before = getattr(balancer, "front", None)
    settings = front_settings(balancer.settings.front)
    state = before.state if isinstance(before, OpenAiFront) else new_state(balancer, ledger)
    state.keys = key_store(balancer.settings, state.keys, known_keys if before is None else None)
    front = OpenAiFront(balancer.services, settings, state, os.environ)
    for missing in sorted(set(front.table.missing)):
        _log.warning("front.models names service %r, which nobody knows (yet)", missing)
    return front


def new_state(balancer: Balancer, ledger: Ledger | None = None) -> State:
    """Once for each process."""
    settings = balancer.settings
    bus = Bus(settings.redis_url) if settings.redis_url else None
    wanted = Wanted(bus)
    script = RedisScript(bus.redis) if bus is not None else None
    admission = Admission(script, wanted, max(1, settings.workers), ledger=ledger)
    if ledger is not None:
        ledger.listen(admission.woken)
    state = State(admission, Random(), bus=bus)
    looked = time.monotonic()

    def look(now: float) -> None:
        nonlocal looked
        state.admission.sweep(now)
        if state.keys is not None and now - looked >= 1.0:
            looked = now
            state.keys.poll()

    balancer.after_sweep.append(look)
    return state


class Wanted:
    """Tells who starts replicas that a service has requests and no endpoint. Without Redis there is nobody to tell."""

    def __init__(self, bus: Bus | None) -> None:
        self._bus = bus
        self._tasks: set[asyncio.Task[bool]] = set()

    def __call__(self, service: str) -> None:
        if self._bus is None:
            return
        with contextlib.suppress(RuntimeError):  # no loop: nothing serves yet
            task = asyncio.get_running_loop().create_task(self._bus.emit(REPLICA_WANTED, service))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
