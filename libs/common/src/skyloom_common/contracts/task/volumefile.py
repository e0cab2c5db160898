"""The file of `sky volumes apply`: one volume to be made or adopted. A contract and its parser; makes nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any, Callable, Optional, Union

from skyloom_common.contracts.task import placement, places, scalars
from skyloom_common.contracts.task.mounts import ACCESS_MODES
from skyloom_common.contracts.task.problems import Field, Problems
from skyloom_common.contracts.task.source import load_documents, read_text
from skyloom_common.contracts.task.taskfields import task_name

TYPES = {"k8s-pvc": "kubernetes", "k8s-hostpath": "kubernetes", "runpod-network-volume": "runpod"}
"""Each type and the cloud it lives in."""
_MINIMUM_GIB = {"runpod-network-volume": 10.0}
_CONFIG = ("storage_class_name", "access_mode", "namespace", "host_path", "cleanup_on_deletion")


@dataclass(frozen=True)
class VolumeDefinition:
    """`size_gib` None only with `use_existing` or a path on the host."""

    name: str
    type: str
    cloud: Optional[str] = None
    region: Optional[str] = None
    zone: Optional[str] = None
    size_gib: Optional[float] = None
    use_existing: bool = False
    labels: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)


def parse_volume_file(
    text_or_path: Union[str, bytes, os.PathLike[str]],
    *,
    filename: Optional[str] = None,
    overrides: Optional[dict[str, Any]] = None,
) -> VolumeDefinition:
    """Raises InvalidTask with every problem. `overrides` are the fields given as flags; None there means "not given"."""
    text, name = read_text(text_or_path, filename)
    documents, report = load_documents(text, name)
    document = documents[0] if len(documents) == 1 else None
    report.positions = document.positions if document else {}
    root = Field(document.value if document else None, (), report)
    if len(documents) > 1:
        root.refuse(f"{len(documents)} documents", "one volume in a file")
    elif root.is_mapping("the fields of a volume: name, type, size"):
        given = {key: value for key, value in (overrides or {}).items() if value is not None}
        found = volume_definition(Field({**root.value, **given}, (), report))
        report.raise_if_any()
        return found
    raise report.error()


def parse_volume_mapping(mapping: dict[str, Any]) -> VolumeDefinition:
    """The same from Python or from flags alone."""
    report = Problems()
    found = volume_definition(Field(mapping, (), report))
    report.raise_if_any()
    return found


def volume_definition(root: Field) -> VolumeDefinition:
    root.only(_PARSERS)
    values: dict[str, Any] = {"name": "", "type": ""}
    for key, parse in _PARSERS.items():
        item = root.get(key)
        value = None if item is None else parse(item)
        if value is not None:
            values[key] = value
    place = values.pop("infra", {})
    values["size_gib"] = values.pop("size", None)
    for key, right in (("name", "name: VOLUME"), ("type", f"one of {', '.join(TYPES)}")):
        if root.get(key) is None:
            root.refuse(f"{key} is missing", right)
    _check(root, values, place)
    return VolumeDefinition(**values, **place)


def _check(root: Field, values: dict[str, Any], place: dict[str, Any]) -> None:
    kind, size = values["type"], values["size_gib"]
    cloud = TYPES.get(kind)
    if cloud and place.get("cloud") not in (None, cloud):
        root.child("infra", place["cloud"]).refuse(f"{kind} on {place['cloud']}", f"infra: {cloud}")
    minimum = _MINIMUM_GIB.get(kind, 1.0)
    if size is not None and size < minimum:
        root.child("size", size).refuse(
            f"{scalars.tidy(size)} GiB are too few for {kind}", f"{minimum:g}Gi or more"
        )
    is_host = kind == "k8s-hostpath"
    if root.get("size") is None and not values.get("use_existing") and not is_host:
        root.refuse("size is missing", "size: 100Gi, or use_existing: true")
    if is_host and not values.get("config", {}).get("host_path"):
        root.refuse("config.host_path is missing", "config: {host_path: /PATH} with type k8s-hostpath")


def _infra(item: Field) -> dict[str, Optional[str]]:
    if isinstance(item.value, str) and placement.ANY in item.value:
        item.refuse_value("one place", "a place without *, such as k8s/CONTEXT")
        return {}
    found = placement.infra(item, frees=False)
    if "infra" in found or any(len(places.listed(part)) > 1 for part in found.values()):
        item.refuse_value("one place", "the place where the volume lies, such as k8s/CONTEXT")
        return {}
    return found


def _config(item: Field) -> dict[str, Any]:
    if not item.is_mapping("{access_mode: ReadWriteMany}"):
        return {}
    item.only(_CONFIG)
    found: dict[str, Any] = {}
    for key, value in item.items():
        if value.value is None or key not in _CONFIG:
            continue
        if key == "access_mode" and value.value not in ACCESS_MODES:
            value.refuse_value("known here", "one of " + ", ".join(ACCESS_MODES))
        else:
            found[key] = (
                scalars.boolean(value) if key == "cleanup_on_deletion" else scalars.text(value, "text")
            )
    return {key: value for key, value in found.items() if value is not None}


_PARSERS: dict[str, Callable[[Field], Any]] = {
    "name": task_name,
    "type": lambda item: scalars.choice(item, TYPES),
    "infra": _infra,
    "size": lambda item: scalars.gib(item, "a size such as 100Gi"),
    "use_existing": scalars.boolean,
    "labels": lambda item: scalars.text_map(item, "text to text"),
    "config": _config,
}
