"""sky.Resources: what a task needs of each node. Immutable; equal and hashable by value."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sky.clouds import CLOUD_REGISTRY, Cloud
from sky.specs import parse_resources
from skyloom_common.contracts.task.model import AcceleratorSpec, ResourcesSpec
from skyloom_common.contracts.task.places import PARTS, accepts, listed, place_text, places_of

FIELDS = (
    "cloud", "instance_type", "cpus", "memory", "accelerators", "accelerator_args", "infra", "use_spot", "job_recovery",
    "region", "zone", "image_id", "disk_size", "disk_tier", "network_tier", "local_disk", "max_hourly_cost", "ports",
    "labels", "autostop", "priority", "priority_class", "volumes",
)  # fmt: skip


class Resources:
    """All keywords are optional and take what the YAML takes; `spot_recovery` is an old name of `job_recovery`."""

    def __init__(
        self,
        cloud: Cloud | str | Sequence[Cloud | str] | None = None,
        instance_type: str | None = None,
        cpus: float | str | None = None,
        memory: float | str | None = None,
        accelerators: str | Mapping[str, int | float] | Sequence[str] | set[str] | None = None,
        accelerator_args: Mapping[str, Any] | None = None,
        infra: str | Sequence[str] | None = None,
        use_spot: bool | None = None,
        job_recovery: str | Mapping[str, Any] | None = None,
        region: str | Sequence[str] | None = None,
        zone: str | Sequence[str] | None = None,
        image_id: str | Mapping[str, str] | None = None,
        disk_size: int | str | None = None,
        disk_tier: str | None = None,
        network_tier: str | None = None,
        local_disk: str | None = None,
        max_hourly_cost: float | None = None,
        ports: int | str | Sequence[int | str] | None = None,
        labels: Mapping[str, str] | None = None,
        autostop: bool | int | str | Mapping[str, Any] | None = None,
        hooks: Sequence[Mapping[str, Any]] | None = None,
        priority: int | None = None,
        priority_class: str | None = None,
        volumes: Sequence[Mapping[str, Any]] | None = None,
        *,
        spot_recovery: str | Mapping[str, Any] | None = None,
    ) -> None:
        values = {name: value for name, value in locals().items() if name in FIELDS and value is not None}
        if cloud is not None:
            values["cloud"] = _cloud_names(cloud)
        if isinstance(accelerators, set):
            values["accelerators"] = {str(item): None for item in sorted(accelerators)}
        if spot_recovery is not None:
            values["spot_recovery"] = spot_recovery
        self._hooks = tuple(dict(hook) for hook in hooks or ())
        self._spec = parse_resources(values)
        self._text = json.dumps(self.to_yaml_config(), sort_keys=True, default=str)

    @classmethod
    def _of(cls, spec: ResourcesSpec, hooks: tuple[dict[str, Any], ...] = ()) -> Resources:
        made = cls.__new__(cls)
        made._spec = spec
        made._hooks = hooks
        made._text = json.dumps(made.to_yaml_config(), sort_keys=True, default=str)
        return made

    @classmethod
    def from_yaml_config(cls, config: Mapping[str, Any] | None) -> set[Resources] | list[Resources]:
        """The alternatives of a `resources` section: a list in order of preference, a set where the cheapest wins."""
        from skyloom_common.contracts.task.expand import alternatives, split_accelerators

        spec = parse_resources(config or {})
        found, is_ordered = alternatives(spec)
        made = [cls._of(one) for merged in found for one in split_accelerators(merged)]
        return made if is_ordered or any(one.accelerators_ordered for one in found) else set(made)

    def to_yaml_config(self) -> dict[str, Any]:
        from skyloom_common.contracts.task.write import resources_to_yaml_config

        return resources_to_yaml_config(self._spec)

    @property
    def spec(self) -> ResourcesSpec:
        """The contract that is sent."""
        return self._spec

    def copy(self, **overrides: Any) -> Resources:
        """The same with some keywords changed; None takes one away."""
        base = self.to_yaml_config()
        if "infra" in overrides or {"cloud", "region", "zone"} & set(overrides):
            base.pop("infra", None)
            base.update(self._place_under(overrides))
        if overrides.get("cloud") is not None:
            overrides["cloud"] = _cloud_names(overrides["cloud"])
        hooks = overrides.pop("hooks", self._hooks)
        merged = {name: value for name, value in {**base, **overrides}.items() if value is not None}
        return Resources._of(parse_resources(merged), tuple(hooks or ()))

    def _place_under(self, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """What stays of the place where `overrides` changes part of it."""
        if "infra" in overrides:
            return {}
        if not self._spec.infra:
            return {name: list(listed(value)) for name in PARTS if (value := getattr(self._spec, name))}
        if "cloud" in overrides:
            return {}
        raise ValueError("copy: the places of a list change as a whole; say infra=[...]")

    # --- what it says ---

    @property
    def cloud(self) -> Cloud | None:
        """None also where several are named; `infra` has them."""
        names = listed(self._spec.cloud)
        return CLOUD_REGISTRY.named(names[0]) if len(names) == 1 else None

    @property
    def region(self) -> str | None:
        return self._spec.region

    @property
    def zone(self) -> str | None:
        return self._spec.zone

    @property
    def infra(self) -> str | None:
        """Several places with commas between them."""
        text = ",".join(place_text(place) for place in places_of(self._spec))
        return None if text == "*" else text

    @property
    def instance_type(self) -> str | None:
        return self._spec.instance_type

    @property
    def cpus(self) -> str | None:
        value = self.to_yaml_config().get("cpus")
        return None if value is None else str(value)

    @property
    def memory(self) -> str | None:
        value = self.to_yaml_config().get("memory")
        return None if value is None else str(value)

    @property
    def accelerators(self) -> dict[str, int | float] | None:
        found = {
            _name(one): int(one.count) if one.count == int(one.count) else one.count
            for one in self._spec.accelerators
        }
        return found or None

    @property
    def accelerator_args(self) -> dict[str, Any] | None:
        return dict(self._spec.accelerator_args) or None

    @property
    def use_spot(self) -> bool:
        return bool(self._spec.use_spot)

    @property
    def use_spot_specified(self) -> bool:
        return self._spec.use_spot is not None

    @property
    def job_recovery(self) -> Any:
        return self.to_yaml_config().get("job_recovery")

    @property
    def image_id(self) -> Any:
        return self._spec.image_id

    @property
    def disk_size(self) -> int:
        return 256 if self._spec.disk_size is None else int(self._spec.disk_size.value)

    @property
    def disk_tier(self) -> str | None:
        return self._spec.disk_tier

    @property
    def network_tier(self) -> str | None:
        return self._spec.network_tier

    @property
    def local_disk(self) -> str | None:
        return self._spec.local_disk

    @property
    def max_hourly_cost(self) -> float | None:
        return self._spec.max_hourly_cost

    @property
    def ports(self) -> list[str] | None:
        return list(self._spec.ports) or None

    @property
    def labels(self) -> dict[str, str] | None:
        return dict(self._spec.labels) or None

    @property
    def autostop(self) -> Any:
        return self._spec.autostop

    @property
    def hooks(self) -> list[dict[str, Any]]:
        return [dict(hook) for hook in self._hooks]

    @property
    def priority(self) -> int | None:
        return self._spec.priority

    @property
    def priority_class(self) -> str | None:
        return self._spec.priority_class

    @property
    def volumes(self) -> list[dict[str, Any]] | None:
        return [dict(volume) for volume in self._spec.volumes] or None

    # --- judging ---

    def is_empty(self) -> bool:
        return self._spec == ResourcesSpec()

    def is_launchable(self) -> bool:
        """A cloud and a machine type are named."""
        return self.cloud is not None and self._spec.instance_type is not None

    def assert_launchable(self) -> Resources:
        if not self.is_launchable():
            raise ValueError(f"{self!r} names no cloud and instance type; sky.optimize chooses them.")
        return self

    def validate(self) -> None:
        """Everything that can be checked without a catalog was checked when it was made."""

    def get_accelerators_str(self) -> str:
        found = self.accelerators
        return "-" if not found else ", ".join(f"{name}:{count}" for name, count in found.items())

    def get_cost(self, seconds: float) -> float:
        """USD for one node for so long, at the cheapest price that the server knows for these resources."""
        from sky import plans
        from sky.connect import connect
        from skyloom_common.contracts.task.model import TaskSpec

        plan = plans.make_plan(connect(), TaskSpec(resources=self._spec))
        plans.require_candidates(plan)
        price = plan.candidates[0].offer.price_per_hour
        if price is None:
            raise ValueError(f"The price of {self!r} is not known.")
        return price * seconds / 3600

    def less_demanding_than(self, other: Resources) -> bool:
        """Would a machine made for `other` do for this? What is not said is not demanded."""
        mine, theirs = self._spec, other._spec
        if not all(accepts(mine, *(part or "" for part in place)) for place in places_of(theirs)):
            return False
        if mine.instance_type not in (None, theirs.instance_type):
            return False
        if mine.use_spot is not None and bool(mine.use_spot) != bool(theirs.use_spot):
            return False
        for name in ("cpus", "memory", "disk_size"):
            need, have = getattr(mine, name), getattr(theirs, name)
            if need is not None and (have is None or have.value < need.value):
                return False
        have_gpus = other.accelerators or {}
        return all(have_gpus.get(name, 0) >= count for name, count in (self.accelerators or {}).items())

    def should_be_blocked_by(self, blocked: Resources) -> bool:
        """`blocked` is partial: what it does not say matches anything."""
        for name in ("cloud", "region", "zone", "instance_type", "use_spot"):
            wanted = getattr(blocked._spec, name)
            if wanted is not None and wanted != getattr(self._spec, name):
                return False
        return blocked.accelerators is None or blocked.accelerators == self.accelerators

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Resources) and other._text == self._text and other._hooks == self._hooks

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        given = ", ".join(f"{key}={value!r}" for key, value in self.to_yaml_config().items())
        return f"Resources({given})"


def _cloud_names(cloud: Cloud | str | Sequence[Cloud | str]) -> str | list[str]:
    if isinstance(cloud, str):
        return cloud
    if isinstance(cloud, Cloud):
        return cloud.canonical_name()
    return [one.canonical_name() if isinstance(one, Cloud) else one for one in cloud]


def _name(one: AcceleratorSpec) -> str:
    if one.name is not None:
        return one.name
    from skyloom_common.contracts.task.accelerators import device_text

    return device_text(one)
