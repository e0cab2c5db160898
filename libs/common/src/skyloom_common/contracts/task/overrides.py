"""What the command line says over what the file says, read by the parsers of the same fields.

An override wins over the base and over every alternative. None means "not given"; the text `none` takes a field away.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Optional

from skyloom_common.contracts.task import placement, places, scalars, taskfields
from skyloom_common.contracts.task.model import AutostopSpec, GitWorkdir, ResourcesSpec, TaskSpec, WaitFor
from skyloom_common.contracts.task.problems import Field, Problems
from skyloom_common.contracts.task.resources import job_recovery, resources
from skyloom_common.contracts.task.variables import Given, add_given, check_docker_login
from skyloom_common.core.text import did_you_mean

_RESOURCE_FLAGS = (
    "instance_type", "cpus", "memory", "gpus", "use_spot", "disk_size", "disk_tier", "network_tier", "local_disk", "ports",
    "image_id", "labels", "max_hourly_cost",
)  # fmt: skip
_PLACE_FLAGS = ("infra", "cloud", "region", "zone")
_TASK_FLAGS = ("name", "num_nodes", "workdir", "git_url", "git_ref", "env", "secret")
_JOB_FLAGS = ("priority", "job_recovery")
_AUTOSTOP_FLAGS = ("idle_minutes_to_autostop", "down", "wait_for")
FLAGS = (*_TASK_FLAGS, *_PLACE_FLAGS, *_RESOURCE_FLAGS, *_JOB_FLAGS, *_AUTOSTOP_FLAGS)

_NO_RESET = ("use_spot",)
_ANYWHERE: dict[str, Any] = {"cloud": None, "region": None, "zone": None, "infra": ()}


def apply_overrides(
    task: TaskSpec, overrides: Mapping[str, Any], *, client_env: Optional[Mapping[str, str]] = None
) -> TaskSpec:
    """The task as the command line wants it. Keys are the flags with `_` for `-` (see FLAGS), values as typed.

    `env` and `secret` are mappings of name to value (None = from `client_env`); they come too late for `$NAME` in a file:
    give those to `parse_task_file`. Raises InvalidTask naming the flags.
    """
    report = Problems()
    given = {
        key: value for key, value in overrides.items() if value is not None and value != () and value != {}
    }
    for key in given:
        if key not in FLAGS:
            report.add((_flag(key),), f"unknown option{did_you_mean(key, FLAGS)}")
    task = _task_flags(task, given, report, client_env or {})
    changes = {
        **_place(given, task.resources, report),
        **_resource_flags(given, report),
        **_job_flags(given, report),
    }
    if any(key in given for key in _AUTOSTOP_FLAGS):
        changes["autostop"] = _autostop(given, task.resources.autostop, report)
    report.raise_if_any()
    return dataclasses.replace(task, resources=_overridden(task.resources, changes)) if changes else task


def _flag(key: str) -> str:
    return "--" + key.replace("_", "-")


def _field(given: Mapping[str, Any], key: str, report: Problems) -> Field:
    return Field(given[key], (_flag(key),), report)


def _is_reset(value: Any) -> bool:
    return (isinstance(value, str) and value.strip().lower() == "none") or (
        isinstance(value, (list, tuple)) and len(value) == 1 and _is_reset(value[0])
    )


def _task_flags(
    task: TaskSpec, given: Mapping[str, Any], report: Problems, client_env: Mapping[str, str]
) -> TaskSpec:
    changes: dict[str, Any] = {}
    if "name" in given:
        changes["name"] = taskfields.task_name(_field(given, "name", report))
    if "num_nodes" in given:
        changes["num_nodes"] = scalars.integer(
            _field(given, "num_nodes", report), "a whole number from 1", low=1
        )
    if {"workdir", "git_url", "git_ref"} & given.keys():
        changes["workdir"] = _workdir(task, given, report)
    if "env" in given or "secret" in given:
        root = Field({}, (), report)
        added = Given(given.get("env", {}), given.get("secret", {}), client_env)
        changes["envs"], changes["secrets"] = add_given(root, task.envs, task.secrets, added)
        check_docker_login(root, changes["envs"], changes["secrets"])
    return task if report.found else dataclasses.replace(task, **changes)


def _workdir(task: TaskSpec, given: Mapping[str, Any], report: Problems) -> Any:
    if "workdir" in given and "git_url" in given:
        report.add(("--workdir",), "--workdir together with --git-url", "one of the two")
        return None
    if "workdir" in given:
        return taskfields.workdir(_field(given, "workdir", report))
    own = task.workdir if isinstance(task.workdir, GitWorkdir) else None
    url = given.get("git_url") or (own.url if own else None)
    if url is None:
        report.add(("--git-ref",), "--git-ref without a repository", "--git-url as well")
        return None
    return GitWorkdir(str(url), str(given["git_ref"]) if "git_ref" in given else (own.ref if own else None))


def _place(given: Mapping[str, Any], base: ResourcesSpec, report: Problems) -> dict[str, Any]:
    older = [key for key in ("cloud", "region", "zone") if key in given]
    if "infra" in given:
        if older:
            report.add(("--infra",), f"--infra together with {', '.join(map(_flag, older))}", "--infra alone")
        given_place = _field(given, "infra", report)
        found = {} if _is_reset(given_place.value) else placement.infra(given_place, frees=False)
        return {**_ANYWHERE, **found}
    changes: dict[str, Any] = {}
    for key in older:
        field = _field(given, key, report)
        reset = _is_reset(field.value)
        changes[key] = None if reset else placement.older(field, changes.get("cloud", base.cloud))
    if "cloud" in changes and changes["cloud"] != base.cloud:
        return {**_ANYWHERE, **changes}
    if changes and base.infra:
        freed = {key: value or places.ANY for key, value in changes.items()}
        return places.changed(base.infra, freed.get("region"), freed.get("zone"))
    if "region" in changes:
        changes.setdefault("zone", None)
    return changes


def _resource_flags(given: Mapping[str, Any], report: Problems) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for key in _RESOURCE_FLAGS:
        if key not in given:
            continue
        name = "accelerators" if key == "gpus" else key
        if _is_reset(given[key]) and key not in _NO_RESET:
            changes[name] = _empty(name)
        else:
            one = _parsed(name, given[key], _flag(key), report)
            changes[name] = getattr(one, name)
            if name == "accelerators":
                changes["accelerators_ordered"] = one.accelerators_ordered
    return changes


def _parsed(name: str, value: Any, flag: str, report: Problems) -> ResourcesSpec:
    """The field alone, read by its own parser; problems name the flag."""
    inner = Problems()
    one = resources(Field({name: value}, (), inner))
    for problem in inner.found:
        report.add((flag,), problem.message, problem.right, problem.value)
    return one


def _job_flags(given: Mapping[str, Any], report: Problems) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if "priority" in given:
        value = given["priority"]
        if _is_reset(value):
            changes.update(priority=None, priority_class=None)
        elif scalars.as_number(value) is not None:
            changes.update(
                priority=_parsed("priority", value, "--priority", report).priority, priority_class=None
            )
        else:
            changes.update(priority=None, priority_class=str(value))
    if "job_recovery" in given:
        changes["job_recovery"] = job_recovery(_field(given, "job_recovery", report))
    return changes


def _autostop(
    given: Mapping[str, Any], own: Optional[AutostopSpec], report: Problems
) -> Optional[AutostopSpec]:
    """`--down` alone means: tear down as soon as the jobs are done. A negative idle time means never."""
    changes: dict[str, Any] = {}
    if "idle_minutes_to_autostop" in given:
        idle = scalars.integer(_field(given, "idle_minutes_to_autostop", report), "minutes such as 10")
        if idle is not None and idle < 0:
            return AutostopSpec(enabled=False)
        changes["idle_minutes"] = idle or 0
    if given.get("down"):
        changes["down"] = True
    if "wait_for" in given:
        wanted = scalars.choice(_field(given, "wait_for", report), [member.value for member in WaitFor])
        if wanted is not None:
            changes["wait_for"] = WaitFor(wanted)
    if not changes:
        return own
    if own is None and set(changes) == {"wait_for"}:
        report.add(("--wait-for",), "--wait-for without an idle time", "-i MINUTES or --down as well")
        return None
    return dataclasses.replace(own if own is not None and own.enabled else AutostopSpec(), **changes)


def _overridden(base: ResourcesSpec, changes: Mapping[str, Any]) -> ResourcesSpec:
    """The base changed, and the same fields emptied in its alternatives, which may then be the same."""
    entries: dict[str, Any] = {}
    for name in ("any_of", "ordered"):
        left = [_cleared(entry, changes) for entry in getattr(base, name)]
        unique = [entry for index, entry in enumerate(left) if entry not in left[:index]]
        entries[name] = () if unique == [ResourcesSpec()] else tuple(unique)
    return dataclasses.replace(base, **changes, **entries)


def _cleared(entry: ResourcesSpec, changes: Mapping[str, Any]) -> ResourcesSpec:
    """An alternative without what the command line says."""
    cleared = {name: _empty(name) for name in changes}
    if entry.infra and "infra" not in changes and {"region", "zone"} & changes.keys():
        freed = {key: changes[key] or places.ANY for key in ("region", "zone") if key in changes}
        cleared |= places.changed(entry.infra, freed.get("region"), freed.get("zone"))
    return dataclasses.replace(entry, **cleared)


def _empty(name: str) -> Any:
    for field in dataclasses.fields(ResourcesSpec):
        if field.name == name:
            factory: Any = field.default_factory
            return field.default if factory is dataclasses.MISSING else factory()
    raise KeyError(name)
