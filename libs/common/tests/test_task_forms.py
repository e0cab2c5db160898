"""Every form of every field reads as what it means."""

from __future__ import annotations

from typing import Any

import pytest

from skyloom_common.contracts.task.model import (
    AcceleratorSpec,
    AutostopSpec,
    EncryptionSpec,
    GitWorkdir,
    JobRecoverySpec,
    ManagedSecret,
    NetworkingSpec,
    PoolSpec,
    Quantity,
    ReadinessProbe,
    ReplicaPolicy,
    ResourcesSpec,
    StorageSpec,
    SyncSpec,
    TaskSpec,
    VolumeSpec,
    WaitFor,
)
from skyloom_common.contracts.task.parse import parse_task_file, parse_task_mapping
from skyloom_common.contracts.task.places import Place, accepts, clouds_of, places_of
from skyloom_common.core.errors import InvalidTask

A, V, H = (AcceleratorSpec(name, 8) for name in ("A100", "V100", "H100"))


def task(text: str, **options: Any) -> TaskSpec:
    file = parse_task_file(text + "\n", **options)
    assert len(file.tasks) == 1
    return file.tasks[0]


def resources(text: str) -> ResourcesSpec:
    return task(f"resources: {{{text}}}").resources


PLACES = [
    ("infra: aws", ("aws", None, None)),
    ("infra: AWS/us-east-1", ("aws", "us-east-1", None)),
    ("infra: gcp/us-central1/us-central1-a", ("gcp", "us-central1", "us-central1-a")),
    ("infra: '*'", (None, None, None)),
    ("infra: '*/us-east-1'", (None, "us-east-1", None)),
    ("infra: '*/*/us-east-1b'", (None, None, "us-east-1b")),
    ("infra: k8s", ("kubernetes", None, None)),
    ("infra: k8s/my-context", ("kubernetes", "my-context", None)),
    ("infra: Kubernetes/arn:aws:eks:r:1:cluster/x/y", ("kubernetes", "arn:aws:eks:r:1:cluster/x/y", None)),
    ("infra: ssh", ("ssh", None, None)),
    ("infra: ssh/lab", ("ssh", "lab", None)),
    ("infra: slurm/c1/gpu", ("slurm", "c1", "gpu")),
    ("infra: local", ("local", None, None)),
    ("infra: ", (None, None, None)),
    ("cloud: GCP", ("gcp", None, None)),
    ("cloud: aws, region: us-west-2", ("aws", "us-west-2", None)),
    ("region: us-west-2, zone: us-west-2b", (None, "us-west-2", "us-west-2b")),
    ("cloud: kubernetes, region: gke_a/b", ("kubernetes", "gke_a/b", None)),
]


@pytest.mark.parametrize(("text", "expected"), PLACES)
def test_places(text: str, expected: tuple[Any, ...]) -> None:
    found = resources(text)
    assert (found.cloud, found.region, found.zone) == expected


LISTS = [
    ("region: [us-east-1, us-west-2]", (None, "us-east-1,us-west-2", None, ())),
    ("region: 'us-east-1, us-west-2'", (None, "us-east-1,us-west-2", None, ())),
    ("cloud: 'AWS,gcp'", ("aws,gcp", None, None, ())),
    ("cloud: aws, zone: [us-east-1a, us-east-1b, us-east-1a]", ("aws", None, "us-east-1a,us-east-1b", ())),
    ("cloud: aws, region: us-*", ("aws", "us-*", None, ())),
    ("infra: [aws/us-east-1, aws/us-west-2]", ("aws", "us-east-1,us-west-2", None, ())),
    ("infra: 'aws/us-east-1, aws/us-west-2'", ("aws", "us-east-1,us-west-2", None, ())),
    ("infra: 'aws/us-east-1,us-west-2'", ("aws", "us-east-1,us-west-2", None, ())),
    ("infra: 'gcp/us-west1/us-west1-a,us-west1-b'", ("gcp", "us-west1", "us-west1-a,us-west1-b", ())),
    ("infra: 'k8s/a,team/b'", ("kubernetes", "a,team/b", None, ())),
    ("infra: ['*/us-east-1', '*/us-west-2']", (None, "us-east-1,us-west-2", None, ())),
    ("infra: [aws]", ("aws", None, None, ())),
    ("infra: [aws, '*']", (None, None, None, ())),
    ("infra: [aws/us-east-1, gcp]", (None, None, None, ("aws/us-east-1", "gcp"))),
    ("infra: aws/us-*", ("aws", "us-*", None, ())),
    ("infra: [aws, aws/us-east-1]", (None, None, None, ("aws", "aws/us-east-1"))),
    ("cloud: vast, region: 'Georgia, US, NA'", ("vast", "Georgia, US, NA", None, ())),
    ("cloud: vast, region: ['Georgia, US, NA', 'CA, NA']", ("vast", "Georgia, US, NA,CA, NA", None, ())),
]


@pytest.mark.parametrize(("text", "expected"), LISTS)
def test_lists_of_places(text: str, expected: tuple[Any, ...]) -> None:
    found = resources(text)
    assert (found.cloud, found.region, found.zone, found.infra) == expected


def test_places_of_a_list_are_told_apart() -> None:
    found = resources("cloud: vast, region: ['Georgia, US, NA', 'CA, NA']")
    assert [place.region for place in places_of(found)] == ["Georgia, US, NA", "CA, NA"]
    pairs = resources("infra: [aws/us-*, k8s/team/x]")
    assert places_of(pairs) == (Place("aws", "us-*"), Place("kubernetes", "team/x"))
    assert accepts(pairs, "aws", "us-west-2", "us-west-2a")
    assert not accepts(pairs, "aws", "eu-west-1", "")
    assert clouds_of(pairs) == {"aws", "kubernetes"}
    assert clouds_of(resources("region: [a, b]")) is None


SIZES = [
    ("cpus: 4", "cpus", Quantity(4)),
    ("cpus: '4+'", "cpus", Quantity(4, at_least=True)),
    ("cpus: 4+", "cpus", Quantity(4, at_least=True)),
    ("memory: 2x+", "memory", Quantity(2, at_least=True, per_cpu=True)),
    ("cpus: 0.5", "cpus", Quantity(0.5)),
    ("memory: 16", "memory", Quantity(16)),
    ("memory: 500+", "memory", Quantity(500, at_least=True)),
    ("memory: 16GB+", "memory", Quantity(16, at_least=True)),
    ("memory: 16Gi", "memory", Quantity(16)),
    ("memory: 512MB", "memory", Quantity(0.5)),
    ("memory: 1.5 TB", "memory", Quantity(1536)),
    ("memory: 4x", "memory", Quantity(4, per_cpu=True)),
    ("infra: slurm/c, memory: 0", "memory", Quantity(0)),
    ("disk_size: 500", "disk_size", Quantity(500)),
    ("disk_size: 500+", "disk_size", Quantity(500, at_least=True)),
    ("disk_size: 1TB", "disk_size", Quantity(1024)),
    ("disk_size: 100.5", "disk_size", Quantity(101)),
    ("disk_size: '0.5TB+'", "disk_size", Quantity(512, at_least=True)),
]


@pytest.mark.parametrize(("text", "field", "expected"), SIZES)
def test_sizes(text: str, field: str, expected: Quantity) -> None:
    assert getattr(resources(text), field) == expected


ACCELERATORS = [
    ("H100", (AcceleratorSpec("H100"),), False),
    ("H100:8", (H,), False),
    ("V100:0.5", (AcceleratorSpec("V100", 0.5),), False),
    ("A100:0.25", (AcceleratorSpec("A100", 0.25),), False),
    ("{H100: 8}", (H,), False),
    ("{H100: 8, A100: '8'}", (H, A), False),
    ("{'H100:8', 'A100:8'}", (H, A), False),
    ("{H100, A100:8}", (AcceleratorSpec("H100"), A), False),
    ("['H100:8', 'A100:8']", (H, A), True),
    ("['H100:8']", (H,), False),
    ("['H100:8', 'H100:8']", (H,), False),
    ("80GB", (AcceleratorSpec(memory_gib=80),), False),
    ("80GB+", (AcceleratorSpec(memory_gib=80, memory_at_least=True),), False),
    ("80GB:4", (AcceleratorSpec(memory_gib=80, count=4),), False),
    ("nvidia:80GB+", (AcceleratorSpec(memory_gib=80, memory_at_least=True, vendor="nvidia"),), False),
    ("NVIDIA:80GB:4", (AcceleratorSpec(memory_gib=80, count=4, vendor="nvidia"),), False),
    ("tpu-v5e-8", (AcceleratorSpec("tpu-v5e-8"),), False),
    ("A100-80GB:2", (AcceleratorSpec("A100-80GB", 2),), False),
    ("{A100,V100,H100}:8", (A, V, H), False),
    ("'{A100, V100}:8'", (A, V), False),
]


@pytest.mark.parametrize("key", ["accelerators", "gpus"])
@pytest.mark.parametrize(("text", "expected", "ordered"), ACCELERATORS)
def test_accelerators(key: str, text: str, expected: tuple[AcceleratorSpec, ...], ordered: bool) -> None:
    found = task(f"resources:\n  {key}: {text} # as people write it").resources
    assert found.accelerators == expected
    assert found.accelerators_ordered is ordered


def test_a_set_with_one_count_may_stand_in_alternatives_and_keeps_lines() -> None:
    text = "resources:\n  any_of:\n  - accelerators: {A100,V100}:8\n  - {accelerators: {H100}:8, cpus: 4}\n  cpus: no\n"
    with pytest.raises(InvalidTask) as caught:
        parse_task_file(text)
    assert [problem["line"] for problem in caught.value.details["problems"]] == [5]
    found = task(text.replace("cpus: no", "cpus: 2")).resources
    assert [entry.accelerators for entry in found.any_of] == [(A, V), (H,)]


def test_a_script_that_looks_like_such_a_set_is_left_alone() -> None:
    script = "accelerators: {A100,V100}:8\n"
    found = task(f"run: |\n  {script}resources:\n  accelerators: {{A100,V100}}:8")
    assert found.run == script
    assert found.resources.accelerators == (A, V)


AUTOSTOPS = [
    ("false", AutostopSpec(enabled=False)),
    ("true", AutostopSpec(idle_minutes=0)),
    ("10", AutostopSpec(idle_minutes=10)),
    ("'10'", AutostopSpec(idle_minutes=10)),
    ("10m", AutostopSpec(idle_minutes=10)),
    ("90s", AutostopSpec(idle_minutes=2)),
    ("2h", AutostopSpec(idle_minutes=120)),
    ("1d", AutostopSpec(idle_minutes=1440)),
    ("1w", AutostopSpec(idle_minutes=10080)),
    ("{idle_minutes: 5}", AutostopSpec(idle_minutes=5)),
    ("{down: true}", AutostopSpec(down=True)),
    (
        "{idle_minutes: 5, down: true, wait_for: None}",
        AutostopSpec(idle_minutes=5, down=True, wait_for=WaitFor.NONE),
    ),
    ("{idle_minutes: 5, max_lifetime: 8h}", AutostopSpec(idle_minutes=5, max_lifetime_minutes=480)),
    ("{hook: sync, hook_timeout: 60}", AutostopSpec(hook="sync", hook_timeout=60)),
]


@pytest.mark.parametrize(("text", "expected"), AUTOSTOPS)
def test_autostop(text: str, expected: AutostopSpec) -> None:
    assert resources(f"autostop: {text}").autostop == expected


RECOVERIES = [
    ("job_recovery: FAILOVER", JobRecoverySpec("FAILOVER")),
    ("job_recovery: eager_next_region", JobRecoverySpec("EAGER_NEXT_REGION")),
    ("job_recovery: none", JobRecoverySpec("NONE")),
    ("job_recovery: auto", JobRecoverySpec("EAGER_NEXT_REGION")),
    ("spot_recovery: auto", JobRecoverySpec("EAGER_NEXT_REGION")),
    ("job_recovery: {strategy: }", JobRecoverySpec("NONE")),
    ("job_recovery: {max_restarts_on_errors: 3}", JobRecoverySpec(max_restarts_on_errors=3)),
    ("job_recovery: {recover_on_exit_codes: 33}", JobRecoverySpec(recover_on_exit_codes=(33,))),
    ("job_recovery: {recover_on_exit_codes: [33, 34]}", JobRecoverySpec(recover_on_exit_codes=(33, 34))),
]


@pytest.mark.parametrize(("text", "expected"), RECOVERIES)
def test_job_recovery(text: str, expected: JobRecoverySpec) -> None:
    assert resources(text).job_recovery == expected


PORTS = [
    ("8080", ("8080",)),
    ("'8080'", ("8080",)),
    ("8000-8010", ("8000-8010",)),
    ("[9000, 8000-8005, '8006']", ("8000-8006", "9000")),
    ("'1, 3-4,2'", ("1-4",)),
    ("[8080, 8080]", ("8080",)),
    ("", ()),
]


@pytest.mark.parametrize(("text", "expected"), PORTS)
def test_ports(text: str, expected: tuple[str, ...]) -> None:
    assert resources(f"ports: {text}").ports == expected


RESOURCE_FIELDS = [
    ("instance_type: p4d.24xlarge", "instance_type", "p4d.24xlarge"),
    ("use_spot: true", "use_spot", True),
    ("use_spot: false", "use_spot", False),
    ("use_spot: ", "use_spot", None),
    ("disk_tier: Best", "disk_tier", "best"),
    ("network_tier: BEST", "network_tier", "best"),
    ("local_disk: nvme", "local_disk", "nvme"),
    ("local_disk: SSD:500+", "local_disk", "ssd:500+"),
    ("local_disk: 500+", "local_disk", "500+"),
    ("max_hourly_cost: 2.5", "max_hourly_cost", 2.5),
    ("image_id: docker:a/b:c", "image_id", "docker:a/b:c"),
    ("image_id: {us-east-1: ami-1}", "image_id", {"us-east-1": "ami-1"}),
    ("image_id: {docker: a/b, us-east-1: ami-1}", "image_id", {"docker": "a/b", "us-east-1": "ami-1"}),
    ("image_id: ", "image_id", None),
    ("labels: {a: 1, b: x}", "labels", {"a": "1", "b": "x"}),
    ("priority: -1000", "priority", -1000),
    ("priority_class: high", "priority_class", "high"),
    ("accelerator_args: {tpu_vm: false}", "accelerator_args", {"tpu_vm": False}),
    ("_cluster_config_overrides: {a: 1}", "internal", {"_cluster_config_overrides": {"a": 1}}),
]


@pytest.mark.parametrize(("text", "field", "expected"), RESOURCE_FIELDS)
def test_other_resources(text: str, field: str, expected: Any) -> None:
    assert getattr(resources(text), field) == expected


TASK_FIELDS = [
    ("name: a.b--c_d", "name", "a.b--c_d"),
    ("name: 2024", "name", "2024"),
    ("workdir: ~/code/", "workdir", "~/code"),
    ("workdir: {url: git@host:r.git}", "workdir", GitWorkdir("git@host:r.git")),
    ("workdir: {url: https://h/r, ref: v1}", "workdir", GitWorkdir("https://h/r", "v1")),
    ("num_nodes: 4", "num_nodes", 4),
    ("resources: ", "resources", ResourcesSpec()),
    (
        "envs: {A: 1, B: true, C: 1.5, D: , E: ''}",
        "envs",
        {"A": "1", "B": "True", "C": "1.5", "D": None, "E": ""},
    ),
    ("env_vars: {A: x}", "envs", {"A": "x"}),
    ("envs: {T: 12:30, D: 2024-01-01}", "envs", {"T": "12:30", "D": "2024-01-01"}),
    ("envs: {on: 1, Y: 2}", "envs", {"on": "1", "Y": "2"}),
    ("secrets: {A: x, B: }", "secrets", {"A": "x", "B": None}),
    ("secrets: ['secrets:A', 'secrets:global.B']", "secrets", {"secrets:A": None, "secrets:global.B": None}),
    ("secrets: {'secrets:A': }", "secrets", {"secrets:A": None}),
    ("managed_secrets: [a, b]", "managed_secrets", (ManagedSecret("a"), ManagedSecret("b"))),
    ("managed_secrets: {a: {mount_path: /x}}", "managed_secrets", (ManagedSecret("a", "/x"),)),
    ("setup: ''", "setup", None),
    ("inputs: {s3://b: 10}", "inputs", {"s3://b": 10.0}),
    ("api_server_access: false", "api_server_access", False),
    ("event_callback: echo", "event_callback", "echo"),
    ("sync: {include: '*.py'}", "sync", SyncSpec(include=("*.py",))),
    ("sync: {exclude: [a, b], mode: FULL, git: true}", "sync", SyncSpec((), ("a", "b"), "full", True)),
    ("networking: {vpc_name: v, security_groups: [s]}", "networking", NetworkingSpec("v", None, ("s",))),
    ("pool: {workers: 3}", "pool", PoolSpec(workers=3)),
    ("config: {hooks: [{run: a, events: stop}]}", "config", {"hooks": [{"run": "a", "events": ["stop"]}]}),
    ("config: {kubernetes: {kueue: null}}", "config", {"kubernetes": {"kueue": None}}),
    ("_metadata: {a: [1]}", "internal", {"_metadata": {"a": [1]}}),
]


@pytest.mark.parametrize(("text", "field", "expected"), TASK_FIELDS)
def test_task_fields(text: str, field: str, expected: Any) -> None:
    assert getattr(task(text), field) == expected


MOUNTS = [
    ("./data", "./data"),
    ("~/local_models/", "~/local_models"),
    ("/", "/"),
    ("s3://bucket/", "s3://bucket"),
    ("gs://bucket/a/b/", "gs://bucket/a/b"),
    ("azblob://container/", "azblob://container"),
    ("https://acct.blob.core.windows.net/c/x", "https://acct.blob.core.windows.net/c/x"),
    ("{name: bkt, source: ./x}", StorageSpec(name="bkt", source="./x")),
    ("{source: s3://bkt/}", StorageSpec(source="s3://bkt")),
    ("{source: s3://bkt/dir, mode: copy}", StorageSpec(source="s3://bkt/dir", mode="COPY")),
    ("{name: bkt, source: [a.txt, b.txt], store: GCS}", StorageSpec("bkt", ("a.txt", "b.txt"), "gcs")),
    ("{name: bkt, persistent: false}", StorageSpec(name="bkt", persistent=False)),
    (
        "{source: s3://b, encryption: {type: aes256, key_id: k}}",
        StorageSpec(source="s3://b", encryption=EncryptionSpec("AES256", "k")),
    ),
]


@pytest.mark.parametrize(("text", "expected"), MOUNTS)
def test_file_mounts(text: str, expected: Any) -> None:
    assert task(f"file_mounts: {{/data: {text}}}").file_mounts == {"/data": expected}


def test_a_storage_object_of_store_volume_becomes_a_disk() -> None:
    found = task("file_mounts: {/d: {name: disk, store: Volume, config: {disk_size: 10}}}")
    assert found.file_mounts == {}
    assert found.resources.volumes == ({"path": "/d", "name": "disk", "disk_size": 10},)


VOLUMES = [
    ("vol", VolumeSpec(name="vol")),
    ("{name: vol, sub_path: a/b}", VolumeSpec(name="vol", sub_path="a/b")),
    ("{size: 100}", VolumeSpec(size="100Gi")),
    ("{size: 1Ti, type: K8S-PVC}", VolumeSpec(size="1024Gi", type="k8s-pvc")),
    ("{host_path: /x}", VolumeSpec(host_path="/x")),
    ("{host_path: /x, mode: RW}", VolumeSpec(host_path="/x", mode="rw")),
]


@pytest.mark.parametrize(("text", "expected"), VOLUMES)
def test_volumes(text: str, expected: VolumeSpec) -> None:
    assert task(f"volumes: {{/mnt: {text}}}").volumes == {"/mnt": expected}


PROBES = [
    ("/health", ReadinessProbe("/health")),
    ("{path: /h, timeout_seconds: 5}", ReadinessProbe("/h", timeout_seconds=5)),
    ("{path: /h, post_data: {a: [1]}}", ReadinessProbe("/h", post_data={"a": [1]})),
    ("{path: /h, post_data: '{}'}", ReadinessProbe("/h", post_data="{}")),
    ("{path: /h, headers: {X: 1}}", ReadinessProbe("/h", headers={"X": "1"})),
]


@pytest.mark.parametrize(("text", "expected"), PROBES)
def test_readiness_probe(text: str, expected: ReadinessProbe) -> None:
    service = task(f"service: {{readiness_probe: {text}}}").service
    assert service is not None
    assert service.readiness_probe == expected


def test_service_forms() -> None:
    service = task("service: {workers: 3, load_balancing_policy: Round_Robin, ports: '80'}").service
    assert service is not None
    assert (service.replicas, service.load_balancing_policy, service.ports) == (3, "round_robin", 80)
    scaled = task(
        "service: {replica_policy: {min_replicas: 0, max_replicas: 2, target_qps_per_replica: 1}}"
    ).service
    assert scaled is not None
    assert scaled.replica_policy == ReplicaPolicy(0, 2, target_qps_per_replica=1.0)


def test_python_users_may_use_tuples_sets_and_lists_of_lines() -> None:
    found = parse_task_mapping(
        {
            "name": "py",
            "run": ["echo a", "echo b"],
            "env_vars": {"MODEL_SIZE": "7b"},
            "resources": {
                "accelerators": {"A100:8", "V100:8"},
                "ports": (80, 81),
                "memory": "500+",
                "spot_recovery": "auto",
            },
            "file_mounts": {"/models": "~/local_models/"},
        }
    )
    assert found.run == "echo a\necho b"
    assert found.envs == {"MODEL_SIZE": "7b"}
    assert found.resources.accelerators == (A, V)
    assert found.resources.ports == ("80-81",)
    assert found.resources.memory == Quantity(500, at_least=True)
    assert found.file_mounts == {"/models": "~/local_models"}


def test_problems_of_python_users_name_no_file() -> None:
    with pytest.raises(InvalidTask) as caught:
        parse_task_mapping({"resources": {"cpus": -1}})
    assert str(caught.value).startswith("resources.cpus: '-1' is not a number of vCPUs")
