"""What this version understands and keeps, but does not act on when a task is launched on a cluster. Refuses nothing itself.

The answer depends on what the chosen provider can do. Where a task runs and on what machine is settled by the plan, so
those fields never appear here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

from skyloom_common.contracts.task import places
from skyloom_common.contracts.task.model import GitWorkdir, ResourcesSpec, StorageSpec, TaskSpec
from skyloom_common.contracts.task.mounts import is_bucket
from skyloom_common.contracts.task.problems import path_text
from skyloom_common.contracts.task.variables import DOCKER_LOGIN

FEATURES: dict[str, str] = {
    "docker": "run a task inside a container image",
    "images": "start nodes from a machine image",
    "buckets": "copy from object storage",
    "storage": "mount object storage",
    "encryption": "mount encrypted objects",
    "volumes": "attach named or ephemeral volumes",
    "disks": "attach extra disks",
    "disk_tier": "choose a class of disk",
    "local_disk": "choose machines by their local disks",
    "network_tier": "set up a fast interconnect",
    "networking": "choose networks, subnets and security groups",
    "accelerator_args": "set options of TPUs",
    "hooks": "run scripts before a stop, a teardown or a preemption",
    "config": "override settings for one task",
    "managed_secrets": "look up managed secrets",
    "git_workdir": "clone a repository as the workdir",
    "egress": "weigh where inputs and outputs lie",
    "ports": "open ports in its firewall (asked of providers that have `firewall`)",
    "firewall": "nodes are closed until a port is opened",
}
"""Names that a provider's row of the support matrix may hold, and what each lets a task do."""

_FOR_MANAGED_JOBS = "is for managed jobs and is ignored on a cluster"


def unsupported_at_launch(task: TaskSpec, *, features: Collection[str]) -> tuple[str, ...]:
    """One sentence "not supported yet: FIELD ..." for each thing that would not happen; empty when all of it would."""
    found = [*_task_fields(task, features), *_resource_fields(task.resources, features)]
    return tuple(dict.fromkeys(f"not supported yet: {message}" for message in found))


def unsupported_at_exec(task: TaskSpec, *, features: Collection[str]) -> tuple[str, ...]:
    """The same for a task on a cluster that is there: mounts and most of the hardware are not asked for again."""
    every = task.resources
    kept = replace(
        every, any_of=tuple(map(_runtime_of, every.any_of)), ordered=tuple(map(_runtime_of, every.ordered))
    )
    bare = replace(
        task, resources=_runtime_of(kept), file_mounts={}, volumes={}, inputs={}, outputs={}, networking=None
    )
    return unsupported_at_launch(bare, features=features)


def _runtime_of(resources: ResourcesSpec) -> ResourcesSpec:
    """Without what only the making of machines heeds."""
    return replace(
        resources,
        disk_tier=None,
        local_disk=None,
        network_tier=None,
        accelerator_args={},
        volumes=(),
        autostop=None,
        ports=(),
    )


def ignored_at_launch(task: TaskSpec) -> tuple[str, ...]:
    """What a launch on a cluster leaves aside by its nature, as notices for people."""
    notices = []
    if task.service is not None:
        notices.append("service is ignored by launch; `sky serve up` starts a service")
    if task.pool is not None:
        notices.append("pool is ignored by launch; `sky jobs pool apply` makes a pool")
    if task.event_callback:
        notices.append(f"event_callback {_FOR_MANAGED_JOBS}")
    every = (task.resources, *task.resources.any_of, *task.resources.ordered)
    if any(one.job_recovery is not None for one in every):
        notices.append(f"resources.job_recovery {_FOR_MANAGED_JOBS}")
    if any(one.priority is not None or one.priority_class for one in every):
        notices.append(f"resources.priority {_FOR_MANAGED_JOBS}")
    if any(name in task.envs or name in task.secrets for name in DOCKER_LOGIN) and not any(
        one.image_id for one in every
    ):
        notices.append(f"{DOCKER_LOGIN[0]} is ignored: no container image is asked for")
    return tuple(notices)


def _task_fields(task: TaskSpec, features: Collection[str]) -> Iterator[str]:
    if isinstance(task.workdir, GitWorkdir) and "git_workdir" not in features:
        yield f"workdir.url ({task.workdir.url}); use a local directory"
    for path, source in task.file_mounts.items():
        yield from _mount(path, source, features)
    if "volumes" not in features:
        for path in task.volumes:
            yield f"{path_text(('volumes', path))}; this provider has no volumes"
    yield from _config(task.config, features)
    if "managed_secrets" not in features:
        if task.managed_secrets:
            yield f"managed_secrets ({', '.join(secret.name for secret in task.managed_secrets)}); use secrets with values"
        for name in (name for name, value in task.secrets.items() if value is None):
            yield f"{path_text(('secrets', name))} without a value (a managed secret); use --secret {_bare(name)}=VALUE"
    for section in ("inputs", "outputs"):
        if getattr(task, section) and "egress" not in features:
            yield f"{section}; nothing weighs where data lies"
    if task.networking is not None and "networking" not in features:
        yield "networking; this provider has one network"


def _mount(path: str, source: Any, features: Collection[str]) -> Iterator[str]:
    field = path_text(("file_mounts", path))
    if isinstance(source, str):
        if is_bucket(source) and "buckets" not in features:
            yield f"{field} ({source}); copy it in setup, or use a local path"
    elif isinstance(source, StorageSpec):
        if "storage" not in features:
            yield f"{field} (a storage object with mode {source.mode}); use a local path"
        if source.encryption is not None and "encryption" not in features:
            yield f"{field}.encryption ({source.encryption.type})"


def _config(config: dict[str, Any], features: Collection[str]) -> Iterator[str]:
    for name, value in config.items():
        needed = "hooks" if name == "hooks" else "config"
        if needed in features or value is None:
            continue
        for inner in value if isinstance(value, dict) and name != "hooks" else [None]:
            yield f"config.{name}.{inner}" if inner else f"config.{name}"


def _resource_fields(resources: ResourcesSpec, features: Collection[str]) -> Iterator[str]:
    for one in (resources, *resources.any_of, *resources.ordered):
        yield from _image(one, features)
        for name, needed in (
            ("disk_tier", "disk_tier"),
            ("local_disk", "local_disk"),
            ("network_tier", "network_tier"),
        ):
            value = getattr(one, name)
            if value is not None and value != "standard" and needed not in features:
                yield f"resources.{name} ({value})"
        if one.accelerator_args and "accelerator_args" not in features:
            yield f"resources.accelerator_args ({', '.join(one.accelerator_args)})"
        if one.volumes and "disks" not in features:
            yield f"resources.volumes ({', '.join(str(disk.get('path')) for disk in one.volumes)})"
        if one.autostop is not None and one.autostop.hook and "hooks" not in features:
            yield "resources.autostop.hook"
        if one.ports and "firewall" in features and "ports" not in features:
            yield f"resources.ports ({', '.join(one.ports)}); this provider cannot open ports"


def _image(resources: ResourcesSpec, features: Collection[str]) -> Iterator[str]:
    image = resources.image_id
    if image is None:
        return
    names = (
        [image]
        if isinstance(image, str)
        else [f"docker:{image['docker']}" if "docker" in image else "", *image.values()]
    )
    in_kubernetes = (places.clouds_of(resources) or frozenset()) == frozenset({"kubernetes"})
    is_docker = any(name.startswith("docker:") for name in names) or in_kubernetes
    needed = "docker" if is_docker else "images"
    if needed not in features:
        kind = "a container image" if is_docker else "a machine image"
        yield f"resources.image_id ({next(name for name in names if name)}); this provider cannot start {kind}"


def _bare(name: str) -> str:
    return name.rpartition(":")[2].rpartition(".")[2]
