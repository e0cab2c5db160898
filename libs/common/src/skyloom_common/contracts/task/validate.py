"""The checks that need this machine, or every override to be in: existing paths, empty envs, ports of a service, images."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Callable, Optional, Union

from skyloom_common.contracts.task import places
from skyloom_common.contracts.task.expand import alternatives
from skyloom_common.contracts.task.model import ResourcesSpec, StorageSpec, TaskFile, TaskSpec
from skyloom_common.contracts.task.mounts import is_bucket
from skyloom_common.contracts.task.problems import Problem, Problems, path_text, shown
from skyloom_common.contracts.task.scalars import port_numbers

_ONE_NODE_ACCESS = ("ReadWriteOnce", "ReadWriteOncePod")
Base = Union[str, "os.PathLike[str]"]


def validate_task_file(file: TaskFile, base_dir: Base = ".", *, require_envs: bool = True) -> None:
    """`validate_task` for every task of a file, all problems at once and with their lines."""
    report = Problems()
    for index, task in enumerate(file.tasks):
        lines = file.lines[index] if index < len(file.lines) else {}
        report.found += _problems(task, base_dir, file.filename, lines, require_envs=require_envs)
    report.raise_if_any()


def validate_task(
    task: TaskSpec,
    base_dir: Base = ".",
    *,
    filename: Optional[str] = None,
    lines: Optional[Mapping[str, int]] = None,
    require_envs: bool = True,
) -> None:
    """Raises InvalidTask. Relative local paths start at `base_dir`. Without `require_envs`, empty envs pass (dry runs)."""
    report = Problems()
    report.found += _problems(task, base_dir, filename, lines or {}, require_envs=require_envs)
    report.raise_if_any()


class _Found:
    """Problems of one task, with the line of the field or of what is around it."""

    def __init__(self, filename: Optional[str], lines: Mapping[str, int]) -> None:
        self._filename = filename
        self._lines = lines
        self.problems: list[Problem] = []

    def add(self, path: tuple[Union[str, int], ...], message: str, right: str, value: object = None) -> None:
        known = [path_text(path[:end]) for end in range(len(path), 0, -1)]
        line = next((self._lines[name] for name in known if name in self._lines), None)
        self.problems.append(Problem(path_text(path), message, right, value, self._filename, line))


def _problems(
    task: TaskSpec, base_dir: Base, filename: Optional[str], lines: Mapping[str, int], *, require_envs: bool
) -> list[Problem]:
    found = _Found(filename, lines)
    if require_envs:
        for name in (name for name, value in task.envs.items() if value is None):
            found.add(("envs", name), "it has no value", f"--env {name}=VALUE, or a value in the file")
    _check_paths(task, lambda source: local_path(source, base_dir, filename), found)
    specs, _ = alternatives(task.resources)
    for spec in specs:
        _check_image(spec, found)
        _check_disks(spec, found)
    _check_volumes(task, found)
    if task.service is not None:
        _check_service(task, specs, found)
    return list(dict.fromkeys(found.problems))


def _check_paths(task: TaskSpec, local: Callable[[str], Path], found: _Found) -> None:
    if isinstance(task.workdir, str):
        path = local(task.workdir)
        if not path.is_dir():
            state = "is not a directory" if path.exists() else "does not exist"
            found.add(("workdir",), f"{shown(task.workdir)} {state}", "an existing directory", task.workdir)
    for destination, item in task.file_mounts.items():
        for field, source in _local_sources(destination, item):
            path = local(source)
            if not path.exists():
                found.add(field, f"{shown(source)} does not exist", "an existing file or directory", source)
            elif isinstance(item, StorageSpec) and isinstance(item.source, str) and not path.is_dir():
                found.add(field, f"{shown(source)} is one file", f"a list of one file: [{source}]", source)


def _local_sources(
    destination: str, item: Union[str, StorageSpec]
) -> Iterator[tuple[tuple[Union[str, int], ...], str]]:
    if isinstance(item, str):
        if not is_bucket(item):
            yield ("file_mounts", destination), item
    elif isinstance(item.source, str):
        if not is_bucket(item.source):
            yield ("file_mounts", destination, "source"), item.source
    else:
        for index, source in enumerate(item.source or ()):
            yield ("file_mounts", destination, "source", index), source


def local_path(source: str, base_dir: Base, filename: Optional[str] = None) -> Path:
    """Where a workdir or a local mount of a task lies: below `base_dir` (where the command was typed), else beside its file.

    Whoever copies the files must ask here too, so that what was checked is what is sent.
    """
    path = Path(base_dir) / Path(source).expanduser()
    if filename is not None and not path.exists():
        beside = Path(filename).expanduser().parent / Path(source).expanduser()
        if beside.exists():
            return beside
    return path


def _check_image(spec: ResourcesSpec, found: _Found) -> None:
    image = spec.image_id
    field = ("resources", "image_id")
    clouds = places.clouds_of(spec)
    regions = {place.region for place in places.places_of(spec)}
    if isinstance(image, str):
        if image.startswith("docker:"):
            return
        if clouds is None:
            found.add(
                field, f"{shown(image)} without a cloud", "infra: CLOUD as well, or docker:IMAGE", image
            )
        elif "lambda" in clouds:
            found.add(field, f"{shown(image)} on lambda", "docker:IMAGE", image)
        elif len(clouds) > 1:
            found.add(
                field, f"{shown(image)} on {' and '.join(sorted(clouds))}", "docker:IMAGE, or any_of", image
            )
        elif image.startswith("ami-") and None in regions:
            found.add(
                field, f"{shown(image)} without a region", "infra: aws/REGION, or {REGION: IMAGE}", image
            )
        elif image.startswith("ami-") and len(regions) > 1:
            found.add(field, f"{shown(image)} in {len(regions)} regions", "{REGION: IMAGE}", image)
    elif image is not None and "docker" not in image:
        if clouds is None:
            found.add(field, "machine images without a cloud", "infra: CLOUD as well, or docker:IMAGE")
        for region in sorted(name for name in regions if name and "*" not in name and name not in image):
            found.add(field, f"no image for the region {region}", f"an entry {region}: IMAGE")


def _check_disks(spec: ResourcesSpec, found: _Found) -> None:
    if not spec.volumes:
        return
    field = ("resources", "volumes")
    for cloud in sorted((places.clouds_of(spec) or frozenset()) - {"gcp"}):
        found.add(field, f"extra disks on {cloud}", "infra: gcp")
    if any(disk.get("name") for disk in spec.volumes) and any(
        place.region is None and place.zone is None for place in places.places_of(spec)
    ):
        found.add(field, "a named disk without a place", "infra: gcp/REGION or gcp/REGION/ZONE")


def _check_volumes(task: TaskSpec, found: _Found) -> None:
    for path, volume in task.volumes.items():
        mode = volume.config.get("access_mode")
        if task.num_nodes > 1 and mode in _ONE_NODE_ACCESS:
            found.add(
                ("volumes", path, "config", "access_mode"),
                f"{mode} with {task.num_nodes} nodes",
                "ReadWriteMany or ReadOnlyMany",
                mode,
            )


def _check_service(task: TaskSpec, specs: tuple[ResourcesSpec, ...], found: _Found) -> None:
    assert task.service is not None
    if task.service.ports is None:
        if any(sum(last - first + 1 for first, last in port_numbers(spec.ports)) != 1 for spec in specs):
            found.add(
                ("service",),
                "the port of the service is not clear",
                "service.ports, or one port in resources.ports",
            )
    elif not all(_holds(spec.ports, task.service.ports) for spec in specs):
        port = task.service.ports
        found.add(
            ("service", "ports"), f"{port} is not among resources.ports", f"resources.ports: {port}", port
        )
    if len({bool(spec.use_spot) for spec in specs}) > 1:
        found.add(("resources", "use_spot"), "spot in some alternatives only", "one use_spot for all of them")
    _check_spot_policy(task, specs, found)


def _check_spot_policy(task: TaskSpec, specs: tuple[ResourcesSpec, ...], found: _Found) -> None:
    policy = task.service.replica_policy if task.service else None
    if policy is None or all(spec.use_spot for spec in specs):
        return
    for name in ("base_ondemand_fallback_replicas", "dynamic_ondemand_fallback", "spot_placer"):
        if getattr(policy, name):
            found.add(("service", "replica_policy", name), f"{name} without spot", "resources.use_spot: true")


def _holds(spans: tuple[str, ...], port: int) -> bool:
    return any(first <= port <= last for first, last in port_numbers(spans))
