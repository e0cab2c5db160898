"""FakeProvider keeps instances in memory, records its calls and fails on demand.

Knobs: `offer_list`, `capacity` (instances per (region, zone, instance type)), `fail_next(verb, error)`, `listing_delay_seconds`,
`start_seconds` (PENDING until then), `delete_calls` needed before one is gone, and `agents`: what to do for
bootstrap and channel (None: there are no agents).
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from skyloom_common.contracts.agent import AgentConfig
from skyloom_common.contracts.plan import Offer
from skyloom_common.core.clock import Clock
from skyloom_common.core.errors import AgentUnreachable, InstanceNotFound, InsufficientCapacity
from skyloom_provisioner.providers.base import (
    DEPLOYMENT_TAG,
    Check,
    Instance,
    InstanceRequest,
    InstanceStatus,
    OfferQuery,
)

Place = tuple[str, str, str]


class Agents(Protocol):
    """Fake agents that answer for fake instances."""

    def start(self, instance: Instance, config: AgentConfig) -> Awaitable[None]: ...

    def url(self, instance: Instance) -> str | None: ...

    def end(self, id: str) -> Awaitable[None]: ...


@dataclass
class _Rented:
    instance: Instance
    ready_at: float
    listed_at: float
    place: Place
    deletes: int = 0


@dataclass
class FakeProvider:
    clock: Clock
    name: str = "fake"
    offer_list: Sequence[Offer] = ()
    capacity: dict[Place, int] = field(default_factory=dict)
    listing_delay_seconds: float = 0.0
    start_seconds: float = 0.0
    delete_calls: int = 1
    agents: Agents | None = None
    check_result: Check = field(default_factory=lambda: Check(enabled=True))
    has_price_list: bool = False
    calls: list[tuple[str, Any]] = field(default_factory=list)
    created: list[str] = field(default_factory=list)
    _rented: dict[str, _Rented] = field(default_factory=dict)
    _failures: dict[str, list[Exception]] = field(default_factory=lambda: defaultdict(list))

    def fail_next(self, verb: str, error: Exception, times: int = 1) -> None:
        self._failures[verb].extend([error] * times)

    def vanish(self, id: str) -> None:
        """The cloud takes it back."""
        del self._rented[id]

    @property
    def instances(self) -> list[Instance]:
        return [self._now(rented) for rented in self._rented.values()]

    async def check(self) -> Check:
        self._called("check", None)
        return self.check_result

    async def offers(self, query: OfferQuery) -> Sequence[Offer]:
        self._called("offers", query)
        return tuple(self.offer_list)

    async def create(self, request: InstanceRequest) -> Instance:
        self._called("create", request.token)
        id = "fake-" + hashlib.sha256(request.token.encode()).hexdigest()[:12]
        if id not in self._rented:
            self._rent(id, request)
        return self._now(self._rented[id])

    async def get(self, id: str) -> Instance:
        self._called("get", id)
        return self._now(self._find(id))

    async def list(self, deployment: str) -> Sequence[Instance]:
        self._called("list", deployment)
        now = self.clock.monotonic()
        return [
            self._now(rented)
            for rented in self._rented.values()
            if rented.listed_at <= now and rented.instance.tags.get(DEPLOYMENT_TAG) == deployment
        ]

    async def delete(self, id: str) -> None:
        self._called("delete", id)
        rented = self._find(id)
        rented.deletes += 1
        rented.instance = replace(rented.instance, status=InstanceStatus.TERMINATING)
        if self.agents is not None:
            await self.agents.end(id)
        if rented.deletes >= self.delete_calls:
            del self._rented[id]

    async def stop(self, id: str) -> None:
        self._called("stop", id)
        self._set(id, InstanceStatus.STOPPED)
        if self.agents is not None:
            await self.agents.end(id)

    async def start(self, id: str) -> None:
        self._called("start", id)
        self._set(id, InstanceStatus.RUNNING)

    async def bootstrap(self, instance: Instance, config: AgentConfig) -> None:
        self._called("bootstrap", instance.id)
        if self.agents is not None:
            await self.agents.start(instance, config)

    async def channel(self, instance: Instance) -> str:
        self._called("channel", instance.id)
        url = self.agents.url(instance) if self.agents is not None else None
        if url is None:
            raise AgentUnreachable(f"{instance.id}: no agent answers")
        return url

    def _called(self, verb: str, argument: Any) -> None:
        self.calls.append((verb, argument))
        if self._failures[verb]:
            raise self._failures[verb].pop(0)

    def _find(self, id: str) -> _Rented:
        if id not in self._rented:
            raise InstanceNotFound(f"instance {id} does not exist")
        return self._rented[id]

    def _set(self, id: str, status: InstanceStatus) -> None:
        rented = self._find(id)
        rented.instance = replace(rented.instance, status=status)

    def _now(self, rented: _Rented) -> Instance:
        waiting = (
            rented.instance.status is InstanceStatus.RUNNING and self.clock.monotonic() < rented.ready_at
        )
        return replace(rented.instance, status=InstanceStatus.PENDING) if waiting else rented.instance

    def _rent(self, id: str, request: InstanceRequest) -> None:
        offer = request.offer
        place = (offer.region, offer.zone, offer.instance_type)
        used = sum(1 for rented in self._rented.values() if rented.place == place)
        if used >= self.capacity.get(place, 1_000_000):
            raise InsufficientCapacity(
                f"{offer.instance_type} is sold out in {offer.zone or offer.region or self.name}",
                details={"blocks": "zone", "provider_message": f"no capacity for {offer.instance_type}"},
            )
        now = self.clock.monotonic()
        instance = Instance(
            id=id,
            status=InstanceStatus.RUNNING,
            tags=dict(request.tags),
            created_at=self.clock.now(),
            address=f"10.0.0.{len(self._rented) + 1}",
            region=offer.region,
            zone=offer.zone,
        )
        self._rented[id] = _Rented(
            instance, now + self.start_seconds, now + self.listing_delay_seconds, place
        )
        self.created.append(id)
