"""Volume definition files."""

from __future__ import annotations

from typing import Any

import pytest

from skyloom_common.contracts.task.volumefile import VolumeDefinition, parse_volume_file, parse_volume_mapping
from skyloom_common.core.errors import InvalidTask

VALID: list[tuple[str, VolumeDefinition]] = [
    ("name: v\ntype: k8s-pvc\nsize: 100\n", VolumeDefinition("v", "k8s-pvc", size_gib=100)),
    (
        "name: v\ntype: K8S-PVC\ninfra: k8s/ctx\nsize: 1Ti\nlabels: {a: b}\nconfig: {access_mode: ReadWriteMany}\n",
        VolumeDefinition(
            "v",
            "k8s-pvc",
            "kubernetes",
            "ctx",
            size_gib=1024,
            labels={"a": "b"},
            config={"access_mode": "ReadWriteMany"},
        ),
    ),
    ("name: v\ntype: k8s-pvc\nuse_existing: true\n", VolumeDefinition("v", "k8s-pvc", use_existing=True)),
    (
        "name: v\ntype: k8s-hostpath\nconfig: {host_path: /x}\n",
        VolumeDefinition("v", "k8s-hostpath", config={"host_path": "/x"}),
    ),
    (
        "name: v\ntype: runpod-network-volume\ninfra: runpod/CA-MTL-1\nsize: 10\n",
        VolumeDefinition("v", "runpod-network-volume", "runpod", "CA-MTL-1", size_gib=10),
    ),
]


@pytest.mark.parametrize(("text", "expected"), VALID)
def test_volume_files(text: str, expected: VolumeDefinition) -> None:
    assert parse_volume_file(text) == expected


def test_flags_win_and_may_stand_alone() -> None:
    found = parse_volume_file("name: v\ntype: k8s-pvc\nsize: 1\n", overrides={"size": "5Gi", "name": None})
    assert found.size_gib == 5
    assert parse_volume_mapping({"name": "v", "type": "k8s-pvc", "size": "1Gi"}).size_gib == 1


INVALID: list[tuple[str, list[str]]] = [
    (
        "size: 1\n",
        [
            "2 problems:",
            "  v.yaml:1: name is missing; use name: VOLUME",
            "  v.yaml:1: type is missing; use one of k8s-pvc, k8s-hostpath, runpod-network-volume",
        ],
    ),
    ("name: v\ntype: k8s-pvc\n", ["v.yaml:1: size is missing; use size: 100Gi, or use_existing: true"]),
    (
        "name: v\ntype: k8s-pvc\nsize: 1\ninfra: aws\n",
        ["v.yaml:4: infra: k8s-pvc on aws; use infra: kubernetes"],
    ),
    (
        "name: v\ntype: k8s-pvc\nsize: 1\ninfra: '*'\n",
        ["v.yaml:4: infra: '*' is not one place; use a place without *, such as k8s/CONTEXT"],
    ),
    (
        "name: v\ntype: runpod-network-volume\nsize: 5\n",
        ["v.yaml:3: size: 5 GiB are too few for runpod-network-volume; use 10Gi or more"],
    ),
    (
        "name: v\ntype: k8s-hostpath\n",
        ["v.yaml:1: config.host_path is missing; use config: {host_path: /PATH} with type k8s-hostpath"],
    ),
    ("name: v\ntype: k8s-pvc\nsise: 1\nsize: 2\n", ["v.yaml:3: sise: unknown field; did you mean 'size'?"]),
    ("- v\n", ["v.yaml:1: a list is not a mapping; use the fields of a volume: name, type, size"]),
    ("name: v\n---\nname: w\n", ["v.yaml: 2 documents; use one volume in a file"]),
]


@pytest.mark.parametrize(("text", "expected"), INVALID)
def test_what_is_wrong(text: str, expected: list[str]) -> None:
    with pytest.raises(InvalidTask) as caught:
        parse_volume_file(text, filename="v.yaml")
    assert str(caught.value).splitlines() == expected


def test_mistakes_in_flags_name_no_file() -> None:
    wrong: dict[str, Any] = {"name": "v", "type": "nfs", "size": 1}
    with pytest.raises(InvalidTask, match=r"^type: 'nfs' is not known here"):
        parse_volume_mapping(wrong)
