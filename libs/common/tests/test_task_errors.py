"""What people read when a task is wrong, word for word."""

from __future__ import annotations

import pytest

from skyloom_common.contracts.task.parse import parse_task_file
from skyloom_common.core.errors import InvalidTask

PORTS = "use ports from 1 to 65535 such as 8080, 8000-8010 or a list of those"
COUNT = "use a count above 0 such as 8 or 0.5"
ACCELERATOR = (
    "use NAME or NAME:COUNT such as H100:8, a mapping {H100: 8, A100: 8}, a list ['H100:8', 'A100:8'] "
    "or a memory such as 80GB+"
)
INFRA = (
    "use CLOUD, CLOUD/REGION or CLOUD/REGION/ZONE such as aws/us-east-1, '*/us-east-1', k8s/CONTEXT or ssh/POOL, "
    "or a list such as [aws/us-east-1, gcp]"
)
URIS = (
    "use one of s3://, gs://, r2://, cos://, oci://, nebius://, cw://, vastdata://, hf://, azblob:// "
    "or https://ACCOUNT.blob.core.windows.net/CONTAINER"
)
NAME = "use letters and digits, joined by one or two of . _ - such as train-llama.v2"
MEMORY = "use a number of GB such as 16, 16GB, 16+ (at least), 4x (per vCPU) or 4x+"
DOCKER = "SKYPILOT_DOCKER_USERNAME, SKYPILOT_DOCKER_PASSWORD, SKYPILOT_DOCKER_SERVER"

RESOURCES = [
    (
        "disk_size: 500-",
        "disk_size: '500-' is not a size; use a number of GB such as 500, 500GB or 500+ (at least)",
    ),
    (
        "disk_size: 0",
        "disk_size: '0' is not more than 0; use a number of GB such as 500, 500GB or 500+ (at least)",
    ),
    ("cpus: 2x", "cpus: '2x' is not a number of vCPUs; use a number of vCPUs such as 4, or 4+ (at least)"),
    ("memory: lots", f"memory: 'lots' is not a size; {MEMORY}"),
    ("memory: 0", f"memory: '0' is not more than 0; {MEMORY}"),
    ("gpu: A100", "gpu: unknown field; did you mean 'gpus'?"),
    ("dsk_size: 5", "dsk_size: unknown field; did you mean 'disk_size'?"),
    ("hooks: []", "hooks: unknown field; use config.hooks at the top of the task"),
    ("accelerators: H100:0", f"accelerators: '0' is not a number of accelerators; {COUNT}"),
    ("accelerators: H100:many", f"accelerators: 'many' is not a number of accelerators; {COUNT}"),
    ("accelerators: 8", f"accelerators: '8' is not an accelerator; {ACCELERATOR}"),
    ("accelerators: 'A100:8,V100:8'", f"accelerators: 'A100:8,V100:8' is not an accelerator; {ACCELERATOR}"),
    ("infra: aws/a/b/c", f"infra: 'aws/a/b/c' is not a place; {INFRA}"),
    ("infra: aws//a", f"infra: 'aws//a' is not a place; {INFRA}"),
    ("infra: [aws, gpc]", "infra[1]: 'gpc' is not a known cloud; did you mean 'gcp'?"),
    ("infra: aws/us-east-1,gpc", "infra: 'gpc' is not a known cloud; did you mean 'gcp'?"),
    ("infra: [aws, 7]", f"infra[1]: '7' is not a place; {INFRA}"),
    ("region: []", "region: a list is not a place; use a region name such as us-east-1, or a list of names"),
    ("cloud: [aws, awz]", "cloud[1]: 'awz' is not a known cloud; did you mean 'aws'?"),
    ("zone: [a b]", "zone[0]: 'a b' is not the name of a zone; use a zone name such as us-east-1a"),
    ("region: '*'", "region: '*' is not the name of a region; use a region name such as us-east-1"),
    ("infra: awz", "infra: 'awz' is not a known cloud; did you mean 'aws'?"),
    ("ports: 70000", f"ports: '70000' is not a port or a range of ports; {PORTS}"),
    ("ports: [1, 20-10]", f"ports[1]: '20-10' is not a port or a range of ports; {PORTS}"),
    ("priority: 1001", "priority: '1001' is not in range; use a whole number from -1000 to 1000"),
    ("max_hourly_cost: 0", "max_hourly_cost: '0' is not in range; use a price above 0 in USD such as 2.5"),
    ("disk_tier: fast", "disk_tier: 'fast' is not known here; use one of low, medium, high, ultra, best"),
    ("use_spot: maybe", "use_spot: 'maybe' is not true or false; use true or false"),
    (
        "local_disk: hdd:5",
        "local_disk: 'hdd:5' is not a local disk; use nvme, ssd, or [MODE:]SIZE[+] such as nvme:500+",
    ),
    ("labels: [a]", "labels: a list is not a mapping; use text to text such as {team: vision}"),
    (
        "job_recovery: sometimes",
        "job_recovery: 'sometimes' is not known here; use one of EAGER_NEXT_REGION, FAILOVER, NONE",
    ),
    (
        "job_recovery: {recover_on_exit_codes: [1, 1]}",
        "job_recovery.recover_on_exit_codes: an exit code given twice; use each code once",
    ),
    (
        "autostop: soon",
        (
            "autostop: 'soon' is not a time; use true, false, minutes such as 10, a time such as 2h, "
            "or a mapping {idle_minutes: 10, down: true}"
        ),
    ),
    (
        "autostop: {wait_for: never}",
        "autostop.wait_for: 'never' is not known here; use one of jobs_and_ssh, jobs, none",
    ),
    (
        "any_of: [{any_of: []}]",
        "any_of[0].any_of: unknown field; use alternatives without alternatives of their own",
    ),
    (
        "any_of: aws",
        "any_of: 'aws' is not a list of alternatives; use a list such as [{infra: aws}, {infra: gcp}]",
    ),
    (
        "volumes: [{name: d}]",
        "volumes[0]: path is missing; use path: /mnt/NAME",
    ),
    (
        "image_id: {docker: a, r: docker:b}",
        "image_id: a docker key together with docker: images; use one container image",
    ),
]

TASKS = [
    ("name: -x", f"name: '-x' is not a task name; {NAME}"),
    ("name: a...b", f"name: 'a...b' is not a task name; {NAME}"),
    ("resorces: {}", "resorces: unknown field; did you mean 'resources'?"),
    ("cpus: 4", "cpus: unknown field; use resources.cpus"),
    ("num_nodes: 0", "num_nodes: '0' is not in range; use a whole number from 1"),
    ("num_nodes: 1.5", "num_nodes: '1.5' is not a whole number; use a whole number from 1"),
    ("run: 7", "run: '7' is not a script; use text; for several lines write `|` behind the colon"),
    ("envs: [A=1]", "envs: a list is not a mapping; use NAME: VALUE, for example {MODEL: llama}"),
    (
        "envs: {1A: x}",
        "envs.1A: '1A' is not the name of a variable; use letters, digits and _, not beginning with a digit",
    ),
    (
        "envs: {A: [1]}",
        "envs.A: a list is not text; use text, a number, true or false; put lists and mappings in quotes",
    ),
    (
        "envs: {SKYPILOT_DOCKER_SERVER: x}",
        f"envs.SKYPILOT_DOCKER_SERVER: the docker login is not whole; use {DOCKER}, all three in envs",
    ),
    (
        "secrets: [A]",
        "secrets[0]: an item that is no reference to a managed secret; use secrets:NAME (or secrets:workspace.NAME)",
    ),
    (
        "secrets: {'secrets:A': x}",
        "secrets.secrets:A: a reference with a value; use no value; it is looked up when the task starts",
    ),
    ("workdir: {ref: a}", "workdir: url is missing; use a directory, or {url: REPOSITORY, ref: BRANCH}"),
    ("file_mounts: {/a/: x}", "file_mounts./a/: the destination '/a/' ends with /; use '/a'"),
    (
        "file_mounts: {../a: x}",
        "file_mounts.../a: the destination '../a' leads out of its directory; use a path without ..",
    ),
    (
        "file_mounts: {s3://a: x}",
        "file_mounts.s3://a: 's3://a' is not a path on the node; use a path such as /data or ~/data as the key",
    ),
    (
        "file_mounts: {/a: ftp://x}",
        f"file_mounts./a: 'ftp://x' is not object storage that is known here; {URIS}",
    ),
    ("file_mounts: {/a: s3://}", "file_mounts./a: the bucket is missing; use s3://BUCKET"),
    (
        "file_mounts: {/a: {mode: MOUNT}}",
        "file_mounts./a: name is missing; use name: BUCKET, or source: s3://BUCKET",
    ),
    (
        "file_mounts: {/a: {name: s3://b, source: ./x}}",
        "file_mounts./a.name: 's3://b' is not the name of a bucket; use a bucket name without s3:// or the like",
    ),
    (
        "file_mounts: {/a: {source: s3://b/c}}",
        (
            "file_mounts./a.source: 's3://b/c' is a directory of a bucket, and mode MOUNT needs a whole one; "
            "use mode: COPY, or the bucket alone"
        ),
    ),
    (
        "file_mounts: {/a: {name: bkt, source: [x/a, y/a]}}",
        "file_mounts./a.source: two sources are named 'a'; use sources with different last names",
    ),
    (
        "file_mounts: {/a: {name: bkt, type: DATASET_RO}}",
        "file_mounts./a.type: type with mode MOUNT; use mode: MOUNT_CACHED",
    ),
    (
        "workdir: .\nfile_mounts: {~/sky_workdir: ./x}",
        "file_mounts.~/sky_workdir: the destination '~/sky_workdir' is where workdir goes; use another path, or no workdir",
    ),
    ("volumes: {a: v}", "volumes.a: 'a' is not a mount path; use an absolute path or one that begins with ~"),
    ("volumes: {/a: {}}", "volumes./a: one of name, size and host_path is needed; use exactly one of them"),
    (
        "volumes: {/a: {name: v, sub_path: ../x}}",
        "volumes./a.sub_path: '../x' is not a path inside the volume; use a relative path without ..",
    ),
    ("service: {}\npool: {workers: 1}", "pool: pool together with service; use one of the two"),
    (
        "service: {readiness_probe: health}",
        "service.readiness_probe: 'health' is not a path of the service; use a path that begins with / such as /health",
    ),
    (
        "service: {replicas: 1, replica_policy: {min_replicas: 1}}",
        "service.replica_policy: replica_policy together with replicas; use one of the two",
    ),
    (
        "service: {replica_policy: {max_replicas: 1}}",
        "service.replica_policy: min_replicas is missing; use min_replicas: 1",
    ),
    (
        "service: {replica_policy: {min_replicas: 1, target_qps_per_replica: 1}}",
        "service.replica_policy: max_replicas is missing; use max_replicas together with target_qps_per_replica",
    ),
    (
        "service: {replica_policy: {min_replicas: 3, max_replicas: 2, target_qps_per_replica: 1}}",
        "service.replica_policy.max_replicas: 2 is less than min_replicas 3; use 3 or more",
    ),
    (
        "service: {replica_policy: {min_replicas: 1, max_replicas: 2}}",
        (
            "service.replica_policy: target_qps_per_replica is missing; "
            "use it to say when to go from min_replicas to max_replicas"
        ),
    ),
    (
        "service: {load_balancing_policy: instance_aware_least_load}",
        (
            "service.load_balancing_policy: instance_aware_least_load and a target_qps_per_replica for each accelerator "
            "belong together; use both or neither"
        ),
    ),
    ("service: {tls: {keyfile: a}}", "service.tls: certfile is missing; use both keyfile and certfile"),
    (
        "service: {readiness_probe: {path: /, post_data: '{'}}",
        "service.readiness_probe.post_data: '{' is not JSON; use a mapping, or JSON text such as '{\"prompt\": \"hi\"}'",
    ),
    ("pool: {}", "pool: the number of workers is missing; use workers, or both min_workers and max_workers"),
    (
        "pool: {min_workers: 3, max_workers: 1}",
        "pool.min_workers: 3 is more than max_workers 1; use 1 or less",
    ),
    ("pool: {workers: 1}\nresources: {ports: 80}", "resources.ports: ports in a pool; use no ports"),
    (
        "pool: {workers: 1}\nresources: {job_recovery: failover}",
        "resources.job_recovery: job_recovery in a pool; use no job_recovery; replicas are replaced anyway",
    ),
    (
        "config: {docker: {run_option: 1}}",
        "config.docker.run_option: unknown field; did you mean 'run_options'?",
    ),
    ("config: {hooks: [{events: [stop]}]}", "config.hooks[0]: run is missing; use run: SCRIPT"),
    ("inputs: {a: 1}", "inputs.a: 'a' is not a bucket; use a URI that begins with s3://, gs:// or cos://"),
    ("inputs: {s3://a: 1, s3://b: 1}", "inputs: 2 entries; use one pair URI: GIGABYTES"),
    ("sync: {mode: fast}", "sync.mode: 'fast' is not known here; use one of incremental, full"),
]


def _message(text: str) -> str:
    with pytest.raises(InvalidTask) as caught:
        parse_task_file(text, filename="task.yaml")
    return str(caught.value)


@pytest.mark.parametrize(("text", "expected"), RESOURCES)
def test_resources(text: str, expected: str) -> None:
    assert _message(f"resources:\n  {text}\n") == f"task.yaml:2: resources.{expected}"


def test_an_item_of_a_list_has_its_own_line() -> None:
    assert _message("resources:\n  infra:\n  - aws/us-east-1\n  - gpc\n  - aws//x\n").splitlines() == [
        "2 problems:",
        "  task.yaml:4: resources.infra[1]: 'gpc' is not a known cloud; did you mean 'gcp'?",
        f"  task.yaml:5: resources.infra[2]: 'aws//x' is not a place; {INFRA}",
    ]


@pytest.mark.parametrize(("text", "expected"), TASKS)
def test_tasks(text: str, expected: str) -> None:
    last_line = text.count("\n") + 1
    assert _message(text + "\n") == f"task.yaml:{last_line}: {expected}"


def test_pairs_that_exclude_each_other() -> None:
    assert _message("resources:\n  infra: aws\n  cloud: gcp\n") == (
        "task.yaml:2: resources.infra: infra together with cloud; use infra alone"
    )
    assert _message("resources:\n  infra: aws\n  region: us-east-1\n") == (
        "task.yaml:2: resources.infra: infra together with region; use infra: aws/us-east-1"
    )
    assert _message("resources:\n  gpus: A\n  accelerators: B\n") == (
        "task.yaml:2: resources.gpus: gpus together with accelerators; use one of the two; they mean the same"
    )
    assert _message("resources:\n  any_of: [{infra: aws}]\n  ordered: [{infra: gcp}]\n") == (
        "task.yaml:3: resources.ordered: ordered together with any_of; use one of the two"
    )
    assert _message("resources:\n  accelerators: [A:1, B:1]\n  any_of: [{infra: aws}]\n") == (
        "task.yaml:3: resources.any_of: any_of together with a list of accelerators in preferred order; "
        "use a mapping such as {H100: 8, A100: 8}"
    )
    assert _message("resources:\n  ordered: [{accelerators: {A: 1, B: 1}}]\n") == (
        "task.yaml:2: resources.ordered: ordered together with several accelerators; use one accelerator in each entry"
    )
    assert _message("resources:\n  priority: 1\n  any_of: [{priority: 2}, {infra: aws}]\n") == (
        "task.yaml:2: resources.priority: alternatives with different priority; use one priority for all of them"
    )


def test_every_problem_is_reported_at_once_in_the_order_of_the_file() -> None:
    text = "name: -x\nresources:\n  cpus: none\n  disk_siz: 5\nnum_nodes: 1\nnum_nodes: 2\nenvs: {1: 2}"
    assert _message(text) == "\n".join(
        [
            "5 problems:",
            f"  task.yaml:1: name: '-x' is not a task name; {NAME}",
            (
                "  task.yaml:3: resources.cpus: 'none' is not a number of vCPUs; "
                "use a number of vCPUs such as 4, or 4+ (at least)"
            ),
            "  task.yaml:4: resources.disk_siz: unknown field; did you mean 'disk_size'?",
            "  task.yaml:6: num_nodes: given twice, on line 5 and on line 6; use it once",
            (
                "  task.yaml:7: envs.1: '1' is not the name of a variable; "
                "use letters, digits and _, not beginning with a digit"
            ),
        ]
    )


def test_details_are_for_programs() -> None:
    with pytest.raises(InvalidTask) as caught:
        parse_task_file("resources:\n  disk_size: 500-\n", filename="task.yaml")
    assert caught.value.details["problems"] == [
        {
            "file": "task.yaml",
            "line": 2,
            "column": 3,
            "field": "resources.disk_size",
            "value": "500-",
            "message": "'500-' is not a size",
            "right": "a number of GB such as 500, 500GB or 500+ (at least)",
        }
    ]


def test_a_secret_is_never_in_a_problem() -> None:
    text = (
        "secrets: {TOKEN: sesame-open, BAD: [sesame-open]}\n"
        "service: {readiness_probe: '$TOKEN'}\n"
        "file_mounts: {/a: 'ftp://${TOKEN}'}\n"
    )
    with pytest.raises(InvalidTask) as caught:
        parse_task_file(text)
    assert len(caught.value.details["problems"]) == 3
    assert "sesame" not in str(caught.value.to_wire())


def test_a_long_value_is_shortened() -> None:
    assert len(_message(f"resources: {{cpus: {'x' * 500}}}\n")) < 200
