"""Doors that are not part of the task: accounts, earlier attempts, policies, quotas, what a provider cannot do. Pure data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from skyloom_common.contracts.plan import DeniedPlace, Offer, QuotaPool
from skyloom_common.contracts.task.model import ResourcesSpec
from skyloom_common.core.errors import InvalidRequest
from skyloom_common.core.text import did_you_mean
from skyloom_optimizer.names import number_text

UNITS = ("nodes", "vcpus", "memory_gib", "accelerators")


@dataclass(frozen=True)
class Gate:
    """`enabled` None: every cloud. `lacks`: cloud to features its provider cannot give."""

    enabled: frozenset[str] | None = None
    blocked: Sequence[Mapping[str, Any]] = ()
    denied: Sequence[DeniedPlace] = ()
    quotas: Sequence[QuotaPool] = ()
    lacks: Mapping[str, Sequence[str]] = field(default_factory=dict)
    num_nodes: int = 1

    def open(self, *names: str) -> Gate:
        """The same with some doors open."""
        free: dict[str, Any] = {"enabled": None, "blocked": (), "denied": (), "quotas": (), "lacks": {}}
        return dataclasses.replace(self, **{name: free[name] for name in names})


OPEN = Gate()


class Gated(Protocol):
    """Every kind of plan request."""

    @property
    def enabled(self) -> tuple[str, ...] | None: ...
    @property
    def blocked(self) -> tuple[dict[str, Any], ...]: ...
    @property
    def denied(self) -> tuple[DeniedPlace, ...]: ...
    @property
    def quotas(self) -> tuple[QuotaPool, ...]: ...
    @property
    def lacks(self) -> dict[str, tuple[str, ...]]: ...
    @property
    def extra_offers(self) -> tuple[Offer, ...]: ...


def gate_of(request: Gated, num_nodes: int = 1) -> Gate:
    for pool in request.quotas:
        if pool.unit not in UNITS:
            raise InvalidRequest(
                f"quotas: unit {pool.unit!r} of {pool.name} is not one of {', '.join(UNITS)}"
                f"{did_you_mean(pool.unit, UNITS)}"
            )
    enabled = None if request.enabled is None else frozenset(request.enabled)
    return Gate(enabled, request.blocked, request.denied, request.quotas, request.lacks, num_nodes)


def asked_features(spec: ResourcesSpec) -> dict[str, str]:
    """Features that a task needs beyond a machine, with the words for people."""
    asked: dict[str, str] = {}
    if spec.ports:
        asked["ports"] = "cannot open ports"
    images = spec.image_id if isinstance(spec.image_id, dict) else {"": spec.image_id or ""}
    if any(name == "docker" or value.startswith("docker:") for name, value in images.items()):
        asked["docker"] = "cannot run a task in a container image"
    if any(value and name != "docker" and not value.startswith("docker:") for name, value in images.items()):
        asked["image"] = "cannot start from a machine image of one's own"
    if spec.disk_tier and spec.disk_tier.lower() not in ("medium", "best", "none"):
        asked[f"disk_tier_{spec.disk_tier.lower()}"] = f"has no disks of tier {spec.disk_tier.lower()}"
    if spec.network_tier and spec.network_tier.lower() == "best":
        asked["network_tier_best"] = "has no faster network to switch on"
    if spec.local_disk:
        asked["local_disk"] = "has no choice of local disks"
    if spec.volumes:
        asked["volumes"] = "cannot attach volumes that resources.volumes names"
    return asked


# What is known of every account, beside what `lacks` tells of providers.
ONLY_ON = {"volumes": frozenset({"gcp"}), "local_disk": frozenset({"aws"})}
NOT_ON = {"image": frozenset({"lambda"})}


def missing_feature(cloud: str, asked: Mapping[str, str], lacks: Mapping[str, Sequence[str]]) -> str | None:
    """Why this cloud cannot do what is asked, or None."""
    for feature, words in asked.items():
        only, never = ONLY_ON.get(feature), NOT_ON.get(feature, frozenset())
        if cloud in never or (only is not None and cloud not in only) or feature in lacks.get(cloud, ()):
            return words
    return None


def quota_text(pool: QuotaPool, needed: float) -> str:
    return f"quota {pool.name} allows {number_text(pool.limit)} {pool.unit}, {number_text(needed)} are needed"
