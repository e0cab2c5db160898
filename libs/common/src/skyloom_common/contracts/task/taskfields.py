"""One task: its top-level sections put together. The sections themselves are parsed next door."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Callable, Optional, Union

from skyloom_common.contracts.task import scalars
from skyloom_common.contracts.task.config import config, plain
from skyloom_common.contracts.task.model import GitWorkdir, NetworkingSpec, SyncSpec, TaskSpec
from skyloom_common.contracts.task.mounts import file_mounts, volumes
from skyloom_common.contracts.task.problems import Field
from skyloom_common.contracts.task.resources import resources
from skyloom_common.contracts.task.serving import pool, service
from skyloom_common.contracts.task.variables import (
    SUBSTITUTED,
    Given,
    add_given,
    check_docker_login,
    envs,
    known_values,
    managed_secrets,
    secrets,
    substitute,
)

FIELDS = (
    "name", "workdir", "num_nodes", "resources", "envs", "env_vars", "secrets", "managed_secrets", "setup", "run",
    "file_mounts", "volumes", "service", "pool", "config", "event_callback", "inputs", "outputs", "api_server_access",
    "sync", "networking",
)  # fmt: skip
INTERNAL = ("file_mounts_mapping", "volume_mounts")
VERBATIM = "_verbatim"
"""Written instead of escapes: the texts of this task contain `$NAME` that must stay."""

_NAME = re.compile(r"[a-zA-Z0-9]+([._-]{1,2}[a-zA-Z0-9]+)*")
_HINTS = {
    "spot_recovery": "resources.job_recovery",
    "job_recovery": "resources.job_recovery",
    "accelerators": "resources.accelerators",
    "gpus": "resources.accelerators",
    "cpus": "resources.cpus",
    "memory": "resources.memory",
    "ports": "resources.ports",
    "image_id": "resources.image_id",
    "use_spot": "resources.use_spot",
    "infra": "resources.infra",
    "cloud": "resources.infra",
    "region": "resources.infra",
    "autostop": "resources.autostop",
    "disk_size": "resources.disk_size",
    "labels": "resources.labels",
    "hooks": "config.hooks",
    "storage_mounts": "file_mounts",
    "replicas": "service.replicas",
    "readiness_probe": "service.readiness_probe",
}


def task(field: Field, given: Given) -> TaskSpec:
    """The task; what is wrong with it is in `field.report`."""
    field.only((*FIELDS, *INTERNAL), _HINTS)
    values: dict[str, Any] = {}
    values["envs"], values["secrets"] = _variables(field, given)
    field = _substituted(field, values["envs"], values["secrets"])
    for name, parse in _PARSERS.items():
        item = field.get(name)
        value = None if item is None else parse(item)
        if value is not None:
            values[name] = value
    _add_mounts(field, values)
    _check_serving(field, values)
    kept = {key: plain(value) for key, value in field.value.items() if key.startswith("_") or key in INTERNAL}
    kept.pop(VERBATIM, None)
    return TaskSpec(**values, internal=kept)


def _variables(field: Field, given: Given) -> tuple[dict[str, Optional[str]], dict[str, Optional[str]]]:
    listed = [item for item in (field.get("envs"), field.get("env_vars")) if item is not None]
    if len(listed) == 2:
        listed[1].refuse("env_vars together with envs", "envs alone")
    own_envs = envs(listed[0] if listed else None)
    own_secrets = secrets(field.get("secrets"))
    field.report.hide(value for value in own_secrets.values() if value and len(value) > 2)
    now_envs, now_secrets = add_given(field, own_envs, own_secrets, given)
    field.report.hide(value for value in now_secrets.values() if value and len(value) > 2)
    check_docker_login(field, now_envs, now_secrets)
    return now_envs, now_secrets


def _substituted(field: Field, own_envs: Mapping[str, Any], own_secrets: Mapping[str, Any]) -> Field:
    sections = [name for name in SUBSTITUTED if field.value.get(name) is not None]
    if not sections or field.value.get(VERBATIM) is True:
        return field
    known = known_values(own_envs, own_secrets)
    return Field(
        {**field.value, **{name: substitute(field.value[name], known) for name in sections}},
        field.path,
        field.report,
    )


def _add_mounts(field: Field, values: dict[str, Any]) -> None:
    item = field.get("file_mounts")
    if item is None:
        return
    found = file_mounts(item, has_workdir=field.get("workdir") is not None)
    values["file_mounts"] = found.mounts
    if found.disks:
        from dataclasses import replace

        own = values.get("resources") or resources(field.child("resources", {}))
        values["resources"] = replace(own, volumes=(*own.volumes, *found.disks))


def _check_serving(field: Field, values: Mapping[str, Any]) -> None:
    if field.get("service") is not None and field.get("pool") is not None:
        field.child("pool", None).refuse("pool together with service", "one of the two")
    section = "service" if values.get("service") else "pool" if values.get("pool") else None
    wanted = values.get("resources")
    if section is None or wanted is None:
        return
    every = (wanted, *wanted.any_of, *wanted.ordered)
    if any(one.job_recovery is not None for one in every):
        field.child("resources", None).child("job_recovery", None).refuse(
            f"job_recovery in a {section}", "no job_recovery; replicas are replaced anyway"
        )
    if section == "pool" and any(one.ports for one in every):
        field.child("resources", None).child("ports", None).refuse("ports in a pool", "no ports")
    if section == "pool" and wanted.ordered:
        field.child("resources", None).child("ordered", None).refuse("ordered in a pool", "any_of")


def task_name(field: Field) -> Optional[str]:
    if isinstance(field.value, (str, int, float)) and not isinstance(field.value, bool):
        name = str(field.value)
        if _NAME.fullmatch(name):
            return name
    field.refuse_value(
        "a task name", "letters and digits, joined by one or two of . _ - such as train-llama.v2"
    )
    return None


def workdir(field: Field) -> Optional[Union[str, GitWorkdir]]:
    right = "a directory, or {url: REPOSITORY, ref: BRANCH}"
    if not isinstance(field.value, Mapping):
        path = scalars.text(field, right)
        return path if path is None else (path.rstrip("/") or "/")
    field.only(("url", "ref"))
    url, ref = field.get("url"), field.get("ref")
    if url is None:
        field.refuse("url is missing", right)
        return None
    address = scalars.text(url, "an https or ssh address of a repository")
    return (
        None
        if address is None
        else GitWorkdir(address, scalars.label_text(ref, "a branch, tag or commit") if ref else None)
    )


def _script(field: Field) -> Optional[str]:
    if isinstance(field.value, (list, tuple)) and all(isinstance(line, str) for line in field.value):
        return "\n".join(field.value)
    if isinstance(field.value, str):
        return field.value or None
    field.refuse_value("a script", "text; for several lines write `|` behind the colon")
    return None


def _one_uri(field: Field) -> dict[str, float]:
    if not field.is_mapping("one pair URI: GIGABYTES"):
        return {}
    if len(field.value) > 1:
        field.refuse(f"{len(field.value)} entries", "one pair URI: GIGABYTES")
    found: dict[str, float] = {}
    for uri, item in field.items():
        if field.path[-1] == "inputs" and uri.partition("://")[0] not in ("s3", "gs", "gcs", "cos"):
            item.refuse(f"{uri!r} is not a bucket", "a URI that begins with s3://, gs:// or cos://")
        size = scalars.number(item, "a number of GB")
        if size is not None:
            found[uri] = size
    return found


def _sync(field: Field) -> Optional[SyncSpec]:
    if not field.is_mapping("{include: [...], exclude: [...], mode: incremental}"):
        return None
    field.only(("include", "exclude", "mode", "git"))
    values: dict[str, Any] = {}
    for name in ("include", "exclude"):
        item = field.get(name)
        if item is not None:
            values[name] = scalars.texts(item, "a list of patterns such as ['*.pt']")
    mode, git = field.get("mode"), field.get("git")
    values["mode"] = (scalars.choice(mode, ("incremental", "full")) if mode else None) or "incremental"
    values["git"] = bool(scalars.boolean(git)) if git else False
    return SyncSpec(**values)


def _networking(field: Field) -> Optional[NetworkingSpec]:
    if not field.is_mapping("{vpc_name: NAME, subnet_name: NAME, security_groups: [NAME]}"):
        return None
    field.only(("vpc_name", "subnet_name", "security_groups"))
    groups, vpc, subnet = (field.get(name) for name in ("security_groups", "vpc_name", "subnet_name"))
    return NetworkingSpec(
        vpc_name=scalars.text(vpc, "the name of a network") if vpc else None,
        subnet_name=scalars.text(subnet, "the name of a subnet") if subnet else None,
        security_groups=scalars.texts(groups, "a list of security groups") if groups else (),
    )


_PARSERS: dict[str, Callable[[Field], Any]] = {
    "name": task_name,
    "workdir": workdir,
    "num_nodes": lambda item: scalars.integer(item, "a whole number from 1", low=1),
    "resources": resources,
    "managed_secrets": managed_secrets,
    "setup": _script,
    "run": _script,
    "volumes": volumes,
    "service": service,
    "pool": pool,
    "config": config,
    "event_callback": _script,
    "inputs": _one_uri,
    "outputs": _one_uri,
    "api_server_access": scalars.boolean,
    "sync": _sync,
    "networking": _networking,
}
