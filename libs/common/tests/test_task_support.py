"""What needs this machine to check, and what is understood but not acted on."""

from __future__ import annotations

from pathlib import Path

import pytest

from skyloom_common.contracts.task.model import TaskSpec
from skyloom_common.contracts.task.parse import parse_task_file
from skyloom_common.contracts.task.support import (
    FEATURES,
    ignored_at_launch,
    unsupported_at_exec,
    unsupported_at_launch,
)
from skyloom_common.contracts.task.validate import local_path, validate_task, validate_task_file
from skyloom_common.core.errors import InvalidTask


def task(text: str) -> TaskSpec:
    return parse_task_file(text + "\n").tasks[0]


def invalid(text: str, base: Path) -> str:
    with pytest.raises(InvalidTask) as caught:
        validate_task_file(parse_task_file(text + "\n", filename="t.yaml"), base)
    return str(caught.value)


def test_paths_that_exist_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "data.txt").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "code")
    monkeypatch.setenv("HOME", str(tmp_path))
    text = (
        "workdir: link\nfile_mounts: {/a: code/, /b: ./data.txt, /c: ~/data.txt, /d: s3://b, "
        "/e: {name: bkt, source: code}, /f: {name: bkt, source: [data.txt]}}"
    )
    validate_task_file(parse_task_file(text + "\n"), tmp_path)


def test_paths_that_do_not_exist_are_all_named_with_their_lines(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    text = "workdir: file\nfile_mounts:\n  /a: ./nope\n  /b: {name: bkt, source: file}\n  /c: {name: bkt, source: [nope]}"
    assert invalid(text, tmp_path).splitlines() == [
        "4 problems:",
        "  t.yaml:1: workdir: 'file' is not a directory; use an existing directory",
        "  t.yaml:3: file_mounts./a: './nope' does not exist; use an existing file or directory",
        "  t.yaml:4: file_mounts./b.source: 'file' is one file; use a list of one file: [file]",
        "  t.yaml:5: file_mounts./c.source[0]: 'nope' does not exist; use an existing file or directory",
    ]


def test_paths_may_also_lie_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "tasks" / "code").mkdir(parents=True)
    path = tmp_path / "tasks" / "t.yaml"
    path.write_text("workdir: ./code\n")
    validate_task_file(parse_task_file(path), tmp_path)
    assert local_path("./code", tmp_path, str(path)) == tmp_path / "tasks" / "code"
    (tmp_path / "code").mkdir()
    assert local_path("./code", tmp_path, str(path)) == tmp_path / "code"


def test_an_empty_env_must_get_a_value(tmp_path: Path) -> None:
    text = "envs:\n  A: 1\n  TOKEN:\nrun: x"
    assert (
        invalid(text, tmp_path)
        == "t.yaml:3: envs.TOKEN: it has no value; use --env TOKEN=VALUE, or a value in the file"
    )
    validate_task(task(text), tmp_path, require_envs=False)
    validate_task_file(parse_task_file(text + "\n", env_overrides={"TOKEN": "x"}), tmp_path)


INVALID = [
    ("service: {}\nresources: {}", "t.yaml:1: service: the port of the service is not clear"),
    ("service: {}\nresources: {ports: [1, 3]}", "service: the port of the service is not clear"),
    ("service: {ports: 80}\nresources: {ports: 81}", "service.ports: 80 is not among resources.ports"),
    (
        "service: {}\nresources: {ports: 1, any_of: [{use_spot: true}, {use_spot: false}]}",
        "resources.use_spot: spot in some alternatives only",
    ),
    (
        "resources: {ports: 1}\nservice: {replica_policy: {min_replicas: 1, dynamic_ondemand_fallback: true}}",
        "dynamic_ondemand_fallback without spot; use resources.use_spot: true",
    ),
    ("resources: {image_id: my-image}", "resources.image_id: 'my-image' without a cloud"),
    ("resources: {image_id: ami-1, infra: aws}", "resources.image_id: 'ami-1' without a region"),
    ("resources: {image_id: {r1: ami-1}, infra: aws/r2}", "resources.image_id: no image for the region r2"),
    (
        "resources: {infra: aws, volumes: [{path: /a, name: d}]}",
        "resources.volumes: extra disks on aws; use infra: gcp",
    ),
    (
        "resources: {infra: gcp, volumes: [{path: /a, name: d}]}",
        "resources.volumes: a named disk without a place",
    ),
    (
        "num_nodes: 2\nvolumes: {/a: {size: 1, config: {access_mode: ReadWriteOnce}}}",
        "volumes./a.config.access_mode: ReadWriteOnce with 2 nodes; use ReadWriteMany or ReadOnlyMany",
    ),
]


@pytest.mark.parametrize(("text", "message"), INVALID)
def test_what_depends_on_several_fields(text: str, message: str, tmp_path: Path) -> None:
    assert message in invalid(text, tmp_path)


VALID = [
    "service: {}\nresources: {ports: 8000}",
    "service: {ports: 8005}\nresources: {ports: 8000-8010}",
    "resources: {image_id: docker:x}",
    "resources: {image_id: {docker: x}}",
    "resources: {image_id: ami-1, infra: aws/us-east-1}",
    "resources: {infra: k8s, image_id: ubuntu}",
    "resources: {infra: gcp/us-central1, volumes: [{path: /a, name: d}]}",
    "num_nodes: 2\nvolumes: {/a: {size: 1, config: {access_mode: ReadWriteMany}}}",
]


@pytest.mark.parametrize("text", VALID)
def test_what_fits_together(text: str, tmp_path: Path) -> None:
    validate_task(task(text), tmp_path)


UNSUPPORTED = [
    (
        "file_mounts: {/a: s3://b}",
        "file_mounts./a (s3://b); copy it in setup, or use a local path",
        "buckets",
    ),
    (
        "file_mounts: {/a: {name: bkt}}",
        "file_mounts./a (a storage object with mode MOUNT); use a local path",
        "storage",
    ),
    ("volumes: {/a: v}", "volumes./a; this provider has no volumes", "volumes"),
    ("workdir: {url: https://h/r}", "workdir.url (https://h/r); use a local directory", "git_workdir"),
    ("config: {hooks: [{run: x}]}", "config.hooks", "hooks"),
    ("config: {docker: {run_options: [a]}}", "config.docker.run_options", "config"),
    ("managed_secrets: [a]", "managed_secrets (a); use secrets with values", "managed_secrets"),
    (
        "secrets: ['secrets:personal.TOKEN']",
        "secrets.secrets:personal.TOKEN without a value (a managed secret); use --secret TOKEN=VALUE",
        "managed_secrets",
    ),
    ("inputs: {s3://b: 1}", "inputs; nothing weighs where data lies", "egress"),
    ("outputs: {s3://b: 1}", "outputs; nothing weighs where data lies", "egress"),
    ("networking: {vpc_name: v}", "networking; this provider has one network", "networking"),
    (
        "resources: {image_id: docker:a}",
        "resources.image_id (docker:a); this provider cannot start a container image",
        "docker",
    ),
    (
        "resources: {infra: aws, any_of: [{image_id: ami-1}]}",
        "resources.image_id (ami-1); this provider cannot start a machine image",
        "images",
    ),
    ("resources: {disk_tier: best}", "resources.disk_tier (best)", "disk_tier"),
    ("resources: {network_tier: best}", "resources.network_tier (best)", "network_tier"),
    ("resources: {local_disk: nvme}", "resources.local_disk (nvme)", "local_disk"),
    (
        "resources: {accelerator_args: {tpu_vm: true}}",
        "resources.accelerator_args (tpu_vm)",
        "accelerator_args",
    ),
    ("resources: {volumes: [{path: /a, name: d}]}", "resources.volumes (/a)", "disks"),
    ("resources: {autostop: {hook: sync}}", "resources.autostop.hook", "hooks"),
]


@pytest.mark.parametrize(("text", "message", "feature"), UNSUPPORTED)
def test_what_is_not_acted_on_is_said(text: str, message: str, feature: str) -> None:
    assert unsupported_at_launch(task(text), features=()) == (f"not supported yet: {message}",)
    assert unsupported_at_launch(task(text), features=(feature,)) == ()
    assert feature in FEATURES


def test_encryption_needs_more_than_storage() -> None:
    own = task("file_mounts: {/a: {source: s3://b, encryption: {key_id: k}}}")
    assert unsupported_at_launch(own, features=("storage",)) == (
        "not supported yet: file_mounts./a.encryption (AES256)",
    )
    assert unsupported_at_launch(own, features=("storage", "encryption")) == ()


def test_ports_matter_only_behind_a_firewall() -> None:
    own = task("resources: {ports: 80}")
    assert unsupported_at_launch(own, features=()) == ()
    assert unsupported_at_launch(own, features=("firewall",)) == (
        "not supported yet: resources.ports (80); this provider cannot open ports",
    )
    assert unsupported_at_launch(own, features=("firewall", "ports")) == ()


def test_placement_is_the_plan_s_business() -> None:
    own = task(
        "resources: {infra: aws/r/z, cpus: 4, memory: 8, accelerators: A100, use_spot: true, disk_size: 500+, "
        "instance_type: m, max_hourly_cost: 1, labels: {a: b}, ports: 80, autostop: 5, network_tier: standard}"
    )
    assert unsupported_at_launch(own, features=()) == ()


def test_what_launch_leaves_aside_is_said_too() -> None:
    own = task("event_callback: x\nresources: {job_recovery: auto, priority: 1}")
    assert ignored_at_launch(own) == (
        "event_callback is for managed jobs and is ignored on a cluster",
        "resources.job_recovery is for managed jobs and is ignored on a cluster",
        "resources.priority is for managed jobs and is ignored on a cluster",
    )
    assert ignored_at_launch(task("service: {}")) == (
        "service is ignored by launch; `sky serve up` starts a service",
    )
    assert ignored_at_launch(task("pool: {workers: 1}")) == (
        "pool is ignored by launch; `sky jobs pool apply` makes a pool",
    )
    assert ignored_at_launch(TaskSpec()) == ()
    assert unsupported_at_launch(own, features=()) == ()


def test_exec_names_what_a_job_would_miss_and_leaves_machines_alone() -> None:
    own = task(
        "resources: {image_id: 'docker:x', disk_tier: high, ordered: [{infra: aws, local_disk: nvme}]}\n"
        "workdir: {url: 'https://example.com/x'}\nconfig: {docker: {run_options: [a]}}\n"
        "file_mounts: {/a: s3://b}\nvolumes: {/v: vol}\ninputs: {'s3://b': 1}"
    )
    assert [problem.split()[3] for problem in unsupported_at_exec(own, features=())] == [
        "workdir.url",
        "config.docker.run_options",
        "resources.image_id",
    ]


def test_a_registry_login_without_an_image_is_said_to_be_ignored() -> None:
    login = "envs: {SKYPILOT_DOCKER_USERNAME: a, SKYPILOT_DOCKER_PASSWORD: b, SKYPILOT_DOCKER_SERVER: c}"
    assert ignored_at_launch(task(login)) == (
        "SKYPILOT_DOCKER_USERNAME is ignored: no container image is asked for",
    )
    assert ignored_at_launch(task(f"{login}\nresources: {{image_id: 'docker:x'}}")) == ()
