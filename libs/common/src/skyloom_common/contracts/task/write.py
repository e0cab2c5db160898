"""Contracts out as the YAML that a user would write. What `parse` reads back is equal to what was written.

With `redact`, secrets and whatever they were substituted into are hidden; that form is for people, not for `parse`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Callable, Optional

from skyloom_common.contracts.task import places
from skyloom_common.contracts.task.accelerators import accelerator_text, device_text
from skyloom_common.contracts.task.model import (
    AutostopSpec,
    EncryptionSpec,
    GitWorkdir,
    JobRecoverySpec,
    ManagedSecret,
    NetworkingSpec,
    Quantity,
    ReadinessProbe,
    ReplicaPolicy,
    ResourcesSpec,
    ServiceSpec,
    StorageSpec,
    SyncSpec,
    TaskFile,
    TaskSpec,
    VolumeSpec,
)
from skyloom_common.contracts.task.problems import HIDDEN
from skyloom_common.contracts.task.scalars import tidy
from skyloom_common.contracts.task.taskfields import VERBATIM
from skyloom_common.contracts.task.variables import SUBSTITUTED, known_values, substitute


def task_to_yaml_config(task: TaskSpec, *, redact: bool = False) -> dict[str, Any]:
    """The task as plain values in user form: what is not given is not there."""
    out = _plain_fields(task, ("name", "num_nodes", "setup", "run", "event_callback", "api_server_access"))
    parts: dict[str, Any] = {
        "workdir": _workdir(task),
        "resources": resources_to_yaml_config(task.resources),
        "envs": dict(task.envs),
        "secrets": _secrets(task.secrets, redact=redact),
        "managed_secrets": _managed(task.managed_secrets),
        "file_mounts": {path: _mount(item) for path, item in task.file_mounts.items()},
        "volumes": {path: _volume(item) for path, item in task.volumes.items()},
        "service": None if task.service is None else _service(task.service),
        "pool": None if task.pool is None else _given(task.pool),
        "config": _copy(task.config),
        "inputs": {uri: _number(size) for uri, size in task.inputs.items()},
        "outputs": {uri: _number(size) for uri, size in task.outputs.items()},
        "sync": None if task.sync is None else _sync(task.sync),
        "networking": None if task.networking is None else _networking(task.networking),
    }
    out.update(
        {name: value for name, value in parts.items() if value or (value is not None and name in _KEEP_EMPTY)}
    )
    out.update(_copy(task.internal))
    ordered = {name: out[name] for name in (*_ORDER, *out) if name in out}
    if redact:
        return _masked(ordered, task.secrets)
    if _would_change(ordered, known_values(task.envs, task.secrets)):
        ordered[VERBATIM] = True
    return ordered


def task_file_to_yaml(file: TaskFile, *, redact: bool = False) -> str:
    """The text of the whole file, with its header when it needs one."""
    import yaml

    documents = [task_to_yaml_config(task, redact=redact) for task in file.tasks]
    header = _header(file)
    if header is not None:
        documents.insert(0, header)
    return "---\n".join(
        yaml.dump(document, Dumper=_dumper(), sort_keys=False, allow_unicode=True, width=100)
        for document in documents
    )


def resources_to_yaml_config(resources: ResourcesSpec) -> dict[str, Any]:
    """The `resources` section in user form."""
    return _resources(resources, is_entry=False)


def _resources(resources: ResourcesSpec, *, is_entry: bool) -> dict[str, Any]:
    out = _place(resources, is_entry=is_entry)
    for name, write in _RESOURCES.items():
        value = getattr(resources, name)
        if value is not None and value != () and value != {}:
            out[name] = write(value)
    if resources.accelerators:
        out["accelerators"] = _accelerators(resources)
    for name in ("any_of", "ordered"):
        entries = getattr(resources, name)
        if entries:
            out[name] = [_resources(entry, is_entry=True) for entry in entries]
    out.update(_copy(resources.internal))
    return out


def _place(resources: ResourcesSpec, *, is_entry: bool) -> dict[str, Any]:
    if resources.infra:
        return {"infra": list(resources.infra)}
    given = {name: value for name in places.PARTS if (value := getattr(resources, name)) is not None}
    if not given:
        return {}
    several = any(len(places.listed(value)) > 1 for value in given.values())
    # `infra` in an entry says something about every part, and several clouds in it are pairs.
    apart = (is_entry and len(given) != len(places.PARTS)) or len(places.listed(resources.cloud)) > 1
    if apart:
        return {name: _one_or_list(places.listed(value)) for name, value in given.items()}
    texts = [places.place_text(place) for place in places.places_of(resources)]
    return {"infra": texts if several else texts[0]}


def _one_or_list(names: tuple[str, ...]) -> Any:
    return names[0] if len(names) == 1 else list(names)


def _accelerators(resources: ResourcesSpec) -> Any:
    texts = [accelerator_text(item) for item in resources.accelerators]
    if len(texts) == 1:
        return texts[0]
    if resources.accelerators_ordered:
        return texts
    devices = [device_text(item) for item in resources.accelerators]
    if len(set(devices)) == len(devices):
        return {device: _number(item.count) for device, item in zip(devices, resources.accelerators)}
    return dict.fromkeys(texts)


def _quantity(quantity: Quantity) -> Any:
    if quantity.per_cpu:
        return f"{tidy(quantity.value)}x{'+' if quantity.at_least else ''}"
    return f"{tidy(quantity.value)}+" if quantity.at_least else _number(quantity.value)


def _number(value: float) -> Any:
    """Whole numbers without a point; tiny ones without an exponent, which YAML reads as text."""
    if float(value).is_integer():
        return int(value)
    return tidy(value) if "e" in repr(value) else value


def _autostop(autostop: AutostopSpec) -> Any:
    if autostop == AutostopSpec(enabled=False):
        return False
    out = _given(autostop)
    out.pop("enabled", None)
    out["idle_minutes"] = autostop.idle_minutes
    if "max_lifetime_minutes" in out:
        out["max_lifetime"] = out.pop("max_lifetime_minutes")
    if "wait_for" in out:
        out["wait_for"] = autostop.wait_for.value
    return autostop.idle_minutes if set(out) == {"idle_minutes"} else out


def _recovery(recovery: JobRecoverySpec) -> Any:
    out = _given(recovery)
    if "recover_on_exit_codes" in out:
        out["recover_on_exit_codes"] = list(recovery.recover_on_exit_codes)
    return recovery.strategy if set(out) == {"strategy"} else out


def _workdir(task: TaskSpec) -> Any:
    return _given(task.workdir) if isinstance(task.workdir, GitWorkdir) else task.workdir


def _secrets(secrets: Mapping[str, Optional[str]], *, redact: bool) -> dict[str, Optional[str]]:
    return {name: HIDDEN if redact and value is not None else value for name, value in secrets.items()}


def _managed(secrets: tuple[ManagedSecret, ...]) -> Any:
    if all(secret.mount_path is None for secret in secrets):
        return [secret.name for secret in secrets]
    return {
        secret.name: {"mount_path": secret.mount_path} if secret.mount_path else None for secret in secrets
    }


def _mount(item: Any) -> Any:
    if not isinstance(item, StorageSpec):
        return item
    out = _given(item)
    internal = out.pop("internal", {})
    if isinstance(item.source, tuple):
        out["source"] = list(item.source)
    if isinstance(item.encryption, EncryptionSpec):
        out["encryption"] = {"type": item.encryption.type, **_given(item.encryption)}
    out.update(_copy({key: value for key, value in out.items() if key == "config"}))
    return {**out, **_copy(internal)}


def _volume(volume: VolumeSpec) -> Any:
    out = _given(volume)
    return volume.name if set(out) == {"name"} else _copy(out)


def _service(service: ServiceSpec) -> dict[str, Any]:
    out = _given(service)
    out["readiness_probe"] = _probe(service.readiness_probe)
    if service.replica_policy is not None:
        out["replica_policy"] = _policy(service.replica_policy)
    tls = {key[4:]: out.pop(key) for key in ("tls_keyfile", "tls_certfile") if key in out}
    if tls:
        out["tls"] = tls
    if "stream_timeout_seconds" in out:
        out["load_balancer"] = {"stream_timeout_seconds": _number(out.pop("stream_timeout_seconds"))}
    return out


def _probe(probe: ReadinessProbe) -> Any:
    out = {
        key: _number(value) if isinstance(value, float) else _copy(value)
        for key, value in _given(probe).items()
    }
    out["path"] = probe.path
    return probe.path if set(out) == {"path"} else {"path": out.pop("path"), **out}


def _policy(policy: ReplicaPolicy) -> dict[str, Any]:
    out = {
        key: _number(value) if isinstance(value, float) else value for key, value in _given(policy).items()
    }
    if isinstance(policy.target_qps_per_replica, dict):
        out["target_qps_per_replica"] = {
            key: _number(rate) for key, rate in policy.target_qps_per_replica.items()
        }
    return out


def _sync(sync: SyncSpec) -> dict[str, Any]:
    out = _given(sync)
    out.update({name: list(getattr(sync, name)) for name in ("include", "exclude") if name in out})
    return out


def _networking(networking: NetworkingSpec) -> dict[str, Any]:
    out = _given(networking)
    if "security_groups" in out:
        out["security_groups"] = list(networking.security_groups)
    return out


def _header(file: TaskFile) -> Optional[dict[str, Any]]:
    if file.execution == "serial" and file.name is None and not file.primary_tasks:
        return None
    out: dict[str, Any] = {}
    if file.name is not None:
        out["name"] = file.name
    if file.execution != "serial" or len(file.tasks) < 2:
        out["execution"] = file.execution
    if file.primary_tasks:
        out["primary_tasks"] = list(file.primary_tasks)
    if file.termination_delay:
        out["termination_delay"] = {task: _number(delay) for task, delay in file.termination_delay.items()}
    if file.inter_connection is not None:
        out["inter_connection"] = file.inter_connection
    return out


def _given(value: Any) -> dict[str, Any]:
    """The fields of a contract that differ from their defaults."""
    out: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if item is not None and (default is dataclasses.MISSING or item != default):
            out[field.name] = _number(item) if isinstance(item, float) else item
    return out


def _plain_fields(task: TaskSpec, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in _given(task).items() if name in names}


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_copy(item) for item in value]
    return value


def _would_change(config: Mapping[str, Any], known: Mapping[str, str]) -> bool:
    """Would reading this back replace a `$NAME` that was left in it?"""
    return any(substitute(config[name], known) != config[name] for name in SUBSTITUTED if name in config)


def _masked(config: dict[str, Any], secrets: Mapping[str, Optional[str]]) -> dict[str, Any]:
    """A secret that was substituted into a section goes back to `${NAME}`; longer ones first, they may hold shorter ones.

    What holds the file or a login as it was is dropped or hidden whole.
    """
    values = sorted(
        ((value, name) for name, value in secrets.items() if value),
        key=lambda pair: len(pair[0]),
        reverse=True,
    )
    out: dict[str, Any] = {}
    for name, item in config.items():
        if name == "_user_specified_yaml":
            continue
        out[name] = item if name in _NEVER_SUBSTITUTED else _unsubstituted(item, values)
    for section, keys in (("envs", _HIDDEN_ENVS), ("resources", _HIDDEN_RESOURCES)):
        for key in keys:
            if key in out.get(section, {}):
                out[section][key] = HIDDEN
    return out


def _unsubstituted(value: Any, secrets: list[tuple[str, str]]) -> Any:
    if isinstance(value, str):
        for secret, name in secrets:
            value = value.replace(secret, "${" + name + "}")
        return value
    if isinstance(value, Mapping):
        return {_unsubstituted(key, secrets): _unsubstituted(item, secrets) for key, item in value.items()}
    if isinstance(value, list):
        return [_unsubstituted(item, secrets) for item in value]
    return value


def _dumper() -> Any:
    """Scripts as blocks, and nothing by anchor."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text(dumper: Any, value: str) -> Any:
        style = "|" if "\n" in value.strip("\n") or value.endswith("\n") else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    return Dumper


_ORDER = (
    "name", "num_nodes", "workdir", "resources", "envs", "secrets", "managed_secrets", "file_mounts", "volumes", "sync",
    "networking", "inputs", "outputs", "service", "pool", "config", "event_callback", "api_server_access", "setup", "run",
)  # fmt: skip
_NEVER_SUBSTITUTED = ("name", "num_nodes", "envs", "secrets", "setup", "run")
_HIDDEN_ENVS = ("SKYPILOT_DOCKER_PASSWORD", "SKYPILOT_RUNPOD_DOCKER_PASSWORD")
_HIDDEN_RESOURCES = ("_docker_login_config",)
_KEEP_EMPTY = ("service", "sync", "networking", "pool")
_RESOURCES: dict[str, Callable[[Any], Any]] = {
    "instance_type": str,
    "cpus": _quantity,
    "memory": _quantity,
    "accelerator_args": _copy,
    "use_spot": bool,
    "disk_size": _quantity,
    "disk_tier": str,
    "network_tier": str,
    "local_disk": str,
    "max_hourly_cost": _number,
    "ports": lambda ports: [int(port) if port.isdigit() else port for port in ports],
    "image_id": _copy,
    "labels": dict,
    "volumes": _copy,
    "autostop": _autostop,
    "priority": int,
    "priority_class": str,
    "job_recovery": _recovery,
}
