"""Short ways to write offers and requests, for tests and benchmarks. Production code must not import it."""

from __future__ import annotations

from typing import Any

from skyloom_common.contracts.plan import Offer, PlanRequest
from skyloom_common.contracts.task.model import AcceleratorSpec, Quantity, ResourcesSpec, TaskSpec


def offer(cloud: str, instance_type: str, region: str, price: float | None, **more: Any) -> Offer:
    values = {"vcpus": 8.0, "memory_gib": 32.0, "arch": "x86_64", **more}
    return Offer(cloud, instance_type, region, price_per_hour=price, **values)


def gpu(name: str, count: float = 1.0) -> AcceleratorSpec:
    return AcceleratorSpec(name=name, count=float(count))


def at_least(value: float) -> Quantity:
    return Quantity(float(value), at_least=True)


def request(resources: ResourcesSpec | None = None, *, num_nodes: int = 1, **more: Any) -> PlanRequest:
    return PlanRequest(task=TaskSpec(resources=resources or ResourcesSpec(), num_nodes=num_nodes), **more)
