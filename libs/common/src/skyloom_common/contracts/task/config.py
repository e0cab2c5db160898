"""The `config` section of a task: which global settings one task may override, and its lifecycle hooks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from skyloom_common.contracts.task import scalars
from skyloom_common.contracts.task.problems import Field

OVERRIDABLE: dict[str, tuple[str, ...]] = {
    "docker": ("run_options",),
    "nvidia_gpus": ("disable_ecc",),
    "ssh": ("custom_metadata", "pod_config", "provision_timeout"),
    "kubernetes": (
        "custom_metadata", "pod_config", "provision_timeout", "dws", "kueue", "quota", "remote_identity", "enable_docker",
        "set_pod_resource_limits",
    ),
    "azure": ("remote_identity", "vpc_name"),
    "gcp": ("vpc_name", "subnet_names", "managed_instance_group", "enable_gvnic", "enable_gpu_direct", "placement_policy"),
    "vast": ("datacenter_only", "create_instance_kwargs"),
    "slurm": ("sbatch_options", "quota", "cpu_partition"),
}  # fmt: skip
EVENTS = ("stop", "preemption", "down")
MAX_HOOKS = 32
MAX_HOOK_CHARS = 16384


def config(field: Field) -> dict[str, Any]:
    """The section as plain values, checked; hooks with their defaults left out. A null value stays: it clears a setting."""
    if not field.is_mapping("settings such as {docker: {run_options: [...]}}"):
        return {}
    field.only((*OVERRIDABLE, "active_workspace", "hooks"))
    found: dict[str, Any] = {}
    for key, item in field.items():
        if key == "hooks":
            if item.value is not None:
                found[key] = _hooks(item)
        elif key in OVERRIDABLE and item.value is not None:
            if item.is_mapping(f"settings: {', '.join(OVERRIDABLE[key])}"):
                item.only(OVERRIDABLE[key])
                found[key] = plain(item.value)
        elif key == "active_workspace" and item.value is not None:
            found[key] = scalars.text(item, "the name of a workspace")
        else:
            found[key] = plain(item.value)
    return {key: value for key, value in found.items() if value != []}


def plain(value: Any) -> Any:
    """A copy of nested mappings and lists as dict and list, so that equal things compare equal."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def _hooks(field: Field) -> list[dict[str, Any]]:
    if not isinstance(field.value, (list, tuple)):
        field.refuse_value("a list of hooks", "a list such as [{run: SCRIPT, events: [stop]}]")
        return []
    if len(field.value) > MAX_HOOKS:
        field.refuse(f"{len(field.value)} hooks", f"at most {MAX_HOOKS}")
    return [_hook(item) for item in field.elements() if item.is_mapping("{run: SCRIPT, events: [stop]}")]


def _hook(field: Field) -> dict[str, Any]:
    field.only(("run", "events", "timeout"))
    found: dict[str, Any] = {}
    run, events, timeout = field.get("run"), field.get("events"), field.get("timeout")
    if run is None:
        field.refuse("run is missing", "run: SCRIPT")
    else:
        found["run"] = _script(run)
    if events is not None:
        listed = [events.value] if isinstance(events.value, str) else events.value
        if not isinstance(listed, (list, tuple)) or not listed:
            events.refuse_value("a list of events", f"a list of {', '.join(EVENTS)}")
        else:
            named = [
                scalars.choice(item, EVENTS) for item in Field(listed, events.path, events.report).elements()
            ]
            found["events"] = list(dict.fromkeys(name for name in named if name is not None))
    if timeout is not None:
        found["timeout"] = scalars.integer(timeout, "seconds from 1", low=1)
    return found


def _script(field: Field) -> Any:
    script = scalars.text(field, "a script")
    if script is not None and len(script) > MAX_HOOK_CHARS:
        field.refuse(
            f"{len(script):,} characters", f"at most {MAX_HOOK_CHARS:,}, or a script file in workdir"
        )
    return script
