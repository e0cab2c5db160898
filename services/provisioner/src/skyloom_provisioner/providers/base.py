"""The provider protocol: five verbs, the two of the agent, and optional answers. Holds no code that talks to a cloud."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from skyloom_common.contracts.agent import AgentConfig
from skyloom_common.contracts.plan import Offer
from skyloom_common.contracts.task.model import ResourcesSpec

DEPLOYMENT_TAG = "skyloom-deployment"
CLUSTER_TAG = "skyloom-cluster"
NODE_TAG = "skyloom-node"


class InstanceStatus(enum.StrEnum):
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"
    STOPPED = "STOPPED"
    TERMINATING = "TERMINATING"


@dataclass(frozen=True)
class Instance:
    """What the cloud sells, as it is now. `address`: as its peers reach it ("" until known)."""

    id: str
    status: InstanceStatus
    tags: Mapping[str, str]
    created_at: float
    address: str = ""
    region: str = ""
    zone: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class InstanceRequest:
    """One instance. `name` is for people; `tags` hold the three owner tags and the user's labels."""

    token: str
    name: str
    offer: Offer
    tags: Mapping[str, str]
    resources: ResourcesSpec = field(default_factory=ResourcesSpec)


@dataclass(frozen=True)
class OfferQuery:
    """What is asked for, so that a provider of flexible sizes can cut one to measure."""

    resources: ResourcesSpec = field(default_factory=ResourcesSpec)


@dataclass(frozen=True)
class Check:
    """May this provider be used here and now? `reason` and `hint` are for people."""

    enabled: bool
    reason: str = ""
    hint: str = ""


@runtime_checkable
class Provider(Protocol):
    name: str
    listing_delay_seconds: float
    has_price_list: bool
    """True: its offers are in the optimizer's catalog; False: `offers()` is asked at every plan."""

    async def check(self) -> Check: ...

    async def offers(self, query: OfferQuery) -> Sequence[Offer]: ...

    async def create(self, request: InstanceRequest) -> Instance:
        """Starts one instance and returns early. The same token gives the same instance."""
        ...

    async def get(self, id: str) -> Instance:
        """Raises InstanceNotFound once it is truly gone."""
        ...

    async def list(self, deployment: str) -> Sequence[Instance]:
        """Everything that carries this deployment's tag, in every region; what is younger than the delay may be missing."""
        ...

    async def delete(self, id: str) -> None:
        """Asks for the end. Raises InstanceNotFound once it is truly gone; callers repeat until then."""
        ...

    async def bootstrap(self, instance: Instance, config: AgentConfig) -> None:
        """Starts the agent, or starts it again if it is not running; a running one with this config is left alone.
        `home` and `listen_host` of the config are filled in here. Returns early."""
        ...

    async def channel(self, instance: Instance) -> str:
        """Base URL at which the agent answers. Raises AgentUnreachable while there is none."""
        ...


@runtime_checkable
class SupportsStop(Protocol):
    async def stop(self, id: str) -> None:
        """Returns early; the disk stays, the price falls. A stopped instance stays stopped. Raises InstanceNotFound."""
        ...

    async def start(self, id: str) -> None:
        """Returns early; a running instance stays running. Raises InstanceNotFound, InsufficientCapacity."""
        ...


@runtime_checkable
class SupportsSsh(Protocol):
    async def ssh(self, instance: Instance) -> Mapping[str, Any]:
        """{"host", "port", "user"} of one instance."""
        ...


FEATURES: dict[str, type] = {"stop": SupportsStop, "ssh": SupportsSsh}


def features(provider: Provider) -> tuple[str, ...]:
    """The row of the support matrix: computed from what the class has, so that it cannot lie."""
    inner = getattr(provider, "inner", provider)
    return tuple(name for name, protocol in FEATURES.items() if isinstance(inner, protocol))


def shares_machine(provider: Provider) -> bool:
    """True when its nodes are only directories of one machine, so that nothing outside of their homes may be written."""
    return bool(getattr(getattr(provider, "inner", provider), "shares_machine", False))
