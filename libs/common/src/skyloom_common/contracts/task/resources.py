"""The `resources` section: one set of requirements, with its alternatives. Checks form, not availability."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Callable, Optional, Union

from skyloom_common.contracts.task import placement, scalars
from skyloom_common.contracts.task.accelerators import accelerators
from skyloom_common.contracts.task.autostop import autostop
from skyloom_common.contracts.task.model import JobRecoverySpec, ResourcesSpec
from skyloom_common.contracts.task.problems import Field

FIELDS = (
    "infra", "cloud", "region", "zone", "instance_type", "cpus", "memory", "accelerators", "gpus", "accelerator_args",
    "use_spot", "disk_size", "disk_tier", "network_tier", "local_disk", "max_hourly_cost", "ports", "image_id", "labels",
    "volumes", "autostop", "priority", "priority_class", "job_recovery", "spot_recovery", "any_of", "ordered",
    "ephemeral_storage",
)  # fmt: skip
STRATEGIES = ("EAGER_NEXT_REGION", "FAILOVER", "NONE")
DISK_TIERS = ("low", "medium", "high", "ultra", "best")
NETWORK_TIERS = ("standard", "best")

_HINTS = {"hooks": "config.hooks at the top of the task", "tpu": "accelerators, for example tpu-v5e-8"}
_ENTRY_HINTS = dict.fromkeys(("any_of", "ordered"), "alternatives without alternatives of their own")
_IGNORED = ("ephemeral_storage",)
_LOCAL_DISK = re.compile(
    r"(?:(?P<mode>nvme|ssd):)?(?P<size>[0-9]+)(?P<plus>\+)?|(?P<bare>nvme|ssd)", re.IGNORECASE
)
_TPU_ARGS = ("runtime_version", "tpu_name", "tpu_vm", "gcp_queued_resource")
_VOLUME_KEYS = ("path", "name", "disk_size", "disk_tier", "storage_type", "attach_mode", "auto_delete")
_INSTANCE_TYPE = re.compile(r"[^\s\x00-\x1f\x7f]+")


def resources(field: Field) -> ResourcesSpec:
    if field.value is None or not field.is_mapping("fields such as {accelerators: H100:8}"):
        return ResourcesSpec()
    values = _requirements(field, FIELDS, is_entry=False)
    for name in ("any_of", "ordered"):
        item = field.get(name)
        if item is not None:
            values[name] = _entries(item)
    _check_alternatives(field, values)
    return ResourcesSpec(**values)


def job_recovery(field: Field) -> Optional[JobRecoverySpec]:
    """A strategy name or a mapping. `auto` is the default strategy."""
    if not isinstance(field.value, Mapping):
        strategy = _strategy(field)
        return None if strategy is None else JobRecoverySpec(strategy=strategy)
    field.only(("strategy", "max_restarts_on_errors", "recover_on_exit_codes"))
    values: dict[str, Any] = {}
    if "strategy" in field.value:
        values["strategy"] = _strategy(field.child("strategy", field.value["strategy"]))
    restarts = field.get("max_restarts_on_errors")
    if restarts is not None:
        values["max_restarts_on_errors"] = scalars.integer(restarts, "a whole number from 0", low=0) or 0
    codes = field.get("recover_on_exit_codes")
    if codes is not None:
        values["recover_on_exit_codes"] = _exit_codes(codes)
    return JobRecoverySpec(**values)


def _requirements(field: Field, known: tuple[str, ...], *, is_entry: bool) -> dict[str, Any]:
    field.only(known, {**_HINTS, **_ENTRY_HINTS} if is_entry else _HINTS)
    values: dict[str, Any] = _placement(field, is_entry=is_entry)
    for name, parse in _PARSERS.items():
        item = field.get(name)
        if item is not None:
            values[name] = parse(item)
    values.update(_accelerators(field))
    memory = field.get("memory")
    if memory is not None:
        values["memory"] = scalars.memory(memory, zero=values.get("cloud") == "slurm")
    values.update(_recovery(field))
    kept = {key: value for key, value in field.value.items() if str(key).startswith("_") or key in _IGNORED}
    if kept:
        values["internal"] = kept
    return values


def _placement(field: Field, *, is_entry: bool) -> dict[str, Any]:
    whole = field.get("infra")
    older = [item for item in map(field.get, ("cloud", "region", "zone")) if item is not None]
    if whole is not None:
        if older:
            names = ", ".join(str(item.path[-1]) for item in older)
            whole.refuse(f"infra together with {names}", _one_infra(whole.value, older))
        return dict(placement.infra(whole, frees=is_entry))
    values: dict[str, Any] = {}
    for item in older:
        values[str(item.path[-1])] = placement.older(item, values.get("cloud"))
    return values


def _one_infra(whole: Any, older: list[Field]) -> str:
    """`infra alone`, and how it would look where that is plain."""
    parts = {str(item.path[-1]): item.value for item in older}
    if not isinstance(whole, str) or "/" in whole or "," in whole or not isinstance(parts.get("region"), str):
        return "infra alone"
    rest = [parts["region"], parts["zone"]] if isinstance(parts.get("zone"), str) else [parts["region"]]
    return f"infra: {'/'.join([whole, *rest])}" if "cloud" not in parts else "infra alone"


def _accelerators(field: Field) -> dict[str, Any]:
    both = [item for item in (field.get("accelerators"), field.get("gpus")) if item is not None]
    if len(both) == 2:
        both[1].refuse("gpus together with accelerators", "one of the two; they mean the same")
    if not both:
        return {}
    found, ordered = accelerators(both[0])
    return {"accelerators": found, "accelerators_ordered": ordered}


def _recovery(field: Field) -> dict[str, Any]:
    both = [item for item in (field.get("job_recovery"), field.get("spot_recovery")) if item is not None]
    if len(both) == 2:
        both[1].refuse("spot_recovery together with job_recovery", "job_recovery alone")
    return {"job_recovery": job_recovery(both[0])} if both else {}


def _strategy(field: Field) -> Optional[str]:
    if field.value is None:
        return "NONE"
    if isinstance(field.value, str) and field.value.strip().lower() == "auto":
        return STRATEGIES[0]
    return scalars.choice(field, STRATEGIES, upper=True)


def _exit_codes(field: Field) -> tuple[int, ...]:
    listed = field.value if isinstance(field.value, (list, tuple)) else [field.value]
    right = "exit codes from 0 to 255 such as 33 or [33, 34]"
    found = [
        scalars.integer(item, right, low=0, high=255)
        for item in Field(listed, field.path, field.report).elements()
    ]
    codes = tuple(code for code in found if code is not None)
    if len(set(codes)) < len(codes):
        field.refuse("an exit code given twice", "each code once")
    return tuple(dict.fromkeys(codes))


def _entries(field: Field) -> tuple[ResourcesSpec, ...]:
    if not isinstance(field.value, (list, tuple)) or not field.value:
        field.refuse_value("a list of alternatives", "a list such as [{infra: aws}, {infra: gcp}]")
        return ()
    known = tuple(name for name in FIELDS if name not in ("any_of", "ordered"))
    found: list[ResourcesSpec] = []
    for item in field.elements():
        if item.is_mapping("fields of resources such as {infra: aws}"):
            found.append(ResourcesSpec(**_requirements(item, known, is_entry=True)))
    return tuple(found)


def _check_alternatives(field: Field, values: Mapping[str, Any]) -> None:
    entries = [*values.get("any_of", ()), *values.get("ordered", ())]
    if values.get("any_of") and values.get("ordered"):
        field.child("ordered", None).refuse("ordered together with any_of", "one of the two")
    several = [bool(values.get("accelerators_ordered")), *(entry.accelerators_ordered for entry in entries)]
    if values.get("any_of") and any(several):
        field.child("any_of", None).refuse(
            "any_of together with a list of accelerators in preferred order",
            "a mapping such as {H100: 8, A100: 8}",
        )
    if values.get("ordered") and any(len(one) > 1 for one in (values.get("accelerators", ()), *_of(entries))):
        field.child("ordered", None).refuse(
            "ordered together with several accelerators", "one accelerator in each entry"
        )
    for name in ("priority", "job_recovery"):
        differing = {repr(value) for value in _each(name, values, entries)}
        if len(differing) > 1:
            field.child(name, None).refuse(
                f"alternatives with different {name}", f"one {name} for all of them"
            )
    every = [values, *(vars(entry) for entry in entries)]
    if any(one.get("priority") is not None for one in every) and any(
        one.get("priority_class") for one in every
    ):
        field.child("priority_class", None).refuse("priority_class together with priority", "one of the two")


def _of(entries: list[ResourcesSpec]) -> list[tuple[Any, ...]]:
    return [entry.accelerators for entry in entries]


def _each(name: str, base: Mapping[str, Any], entries: list[ResourcesSpec]) -> list[Any]:
    own = base.get(name)
    if not entries:
        return []
    return [own if getattr(entry, name) is None else getattr(entry, name) for entry in entries]


def _instance_type(field: Field) -> Optional[str]:
    if isinstance(field.value, str) and _INSTANCE_TYPE.fullmatch(field.value):
        return field.value
    field.refuse_value("an instance type", "a name such as p4d.24xlarge")
    return None


def _local_disk(field: Field) -> Optional[str]:
    match = _LOCAL_DISK.fullmatch(str(field.value).strip())
    if match is None or (match["size"] and int(match["size"]) == 0):
        field.refuse_value("a local disk", "nvme, ssd, or [MODE:]SIZE[+] such as nvme:500+")
        return None
    return str(field.value).strip().lower()


def _image(field: Field) -> Optional[Union[str, dict[str, str]]]:
    right = "an image name, docker:IMAGE, or a mapping {REGION: IMAGE}"
    if not isinstance(field.value, Mapping):
        return scalars.text(field, right)
    found = scalars.text_map(field, right)
    if "docker" in found and any(
        value.startswith("docker:") for key, value in found.items() if key != "docker"
    ):
        field.refuse("a docker key together with docker: images", "one container image")
    if not field.value:
        field.refuse_value("an image", right)
    return found or None


def _labels(field: Field) -> dict[str, str]:
    return scalars.text_map(field, "text to text such as {team: vision}")


def _tpu_args(field: Field) -> dict[str, Any]:
    if not field.is_mapping("TPU options such as {tpu_vm: true}"):
        return {}
    field.only(_TPU_ARGS)
    found: dict[str, Any] = {}
    for key, item in field.items():
        if key in ("tpu_vm", "gcp_queued_resource"):
            found[key] = scalars.boolean(item)
        elif key in _TPU_ARGS:
            found[key] = scalars.label_text(item, "text")
    return {key: value for key, value in found.items() if value is not None}


def _volumes(field: Field) -> tuple[dict[str, Any], ...]:
    if not isinstance(field.value, (list, tuple)):
        field.refuse_value("a list of disks", "a list such as [{path: /mnt/data, name: my-disk}]")
        return ()
    return tuple(
        disk(item) for item in field.elements() if item.is_mapping("{path: /mnt/data, name: my-disk}")
    )


def disk(field: Field) -> dict[str, Any]:
    """One attached disk, checked and with its defaults left out."""
    field.only(_VOLUME_KEYS)
    found: dict[str, Any] = {}
    for key, parse in _DISK_PARSERS.items():
        item = field.get(key)
        value = None if item is None else parse(item)
        if value is not None:
            found[key] = value
    if "path" not in found and field.get("path") is None:
        field.refuse("path is missing", "path: /mnt/NAME")
    if (
        found.get("storage_type", "network") == "network"
        and "name" not in found
        and field.get("name") is None
    ):
        field.refuse("name is missing", "name: DISK, or storage_type: instance")
    return found


def _disk_gb(field: Field) -> Optional[int]:
    found = scalars.disk_size(field)
    return None if found is None else int(found.value)


_DISK_PARSERS: dict[str, Callable[[Field], Any]] = {
    "path": lambda item: scalars.text(item, "a path such as /mnt/data"),
    "name": lambda item: scalars.text(item, "the name of a disk"),
    "disk_size": _disk_gb,
    "disk_tier": lambda item: scalars.choice(item, DISK_TIERS),
    "storage_type": lambda item: scalars.choice(item, ("network", "instance")),
    "attach_mode": lambda item: scalars.choice(item, ("read_only", "read_write")),
    "auto_delete": scalars.boolean,
}

_PARSERS: dict[str, Callable[[Field], Any]] = {
    "instance_type": _instance_type,
    "cpus": scalars.cpus,
    "accelerator_args": _tpu_args,
    "use_spot": scalars.boolean,
    "disk_size": scalars.disk_size,
    "disk_tier": lambda item: scalars.choice(item, DISK_TIERS),
    "network_tier": lambda item: scalars.choice(item, NETWORK_TIERS),
    "local_disk": _local_disk,
    "max_hourly_cost": lambda item: scalars.number(
        item, "a price above 0 in USD such as 2.5", exclusive=True
    ),
    "ports": scalars.ports,
    "image_id": _image,
    "labels": _labels,
    "volumes": _volumes,
    "autostop": autostop,
    "priority": lambda item: scalars.integer(item, "a whole number from -1000 to 1000", low=-1000, high=1000),
    "priority_class": lambda item: scalars.text(item, "the name of a class"),
}
