"""The cluster commands against a gateway in a thread: what is sent, what is printed, the exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from skyloom_common.contracts.clusters import ClusterStatus
from skyloom_common.contracts.jobs import JobStatus
from skyloom_common.contracts.task.model import AutostopSpec
from skyloom_common.core import errors

Sky = Callable[..., Any]


def test_launch_plans_asks_launches_and_follows(fake: Any, sky: Sky) -> None:
    ran = sky("launch", "-c", "dev", "echo hello", stdin="\n")
    assert ran.code == 0
    assert "Launching a new cluster 'dev'. Proceed? [Y/n]:" in ran.out
    assert ran.out.endswith("hello\n")
    body = fake.last("/clusters/dev/launch").json()
    assert body["task"] == {"run": "echo hello"}
    assert fake.last("/launch").headers["idempotency-key"]
    assert "sky logs dev 1" in ran.err


def test_the_optimizer_table(fake: Any, sky: Sky) -> None:
    ran = sky("launch", "-c", "dev", "--gpus", "T4:1", stdin="n\n")
    assert ran.code == 1
    assert fake.count("POST", "/launch") == 0
    rule = "-" * 101
    expected = f"""== Optimizer ==
Estimated cost: $0.0 / hour
Considered resources (1 node):
{rule}
CLOUD       INSTANCE              vCPUs  Mem(GB)  ACCELERATORS  REGION/ZONE    COST ($)  CHOSEN
{rule}
Kubernetes  2CPU--8GB--1T4        2      8        T4:1          kubernetes     0.00      ✔
Azure       Standard_NC4as_T4_v3  4      28       T4:1          eastus         0.53
GCP         n1-highmem-4          4      26       T4:1          us-central1-a  0.59
{rule}
"""
    shown = ran.out.split("Launching")[0].splitlines()
    width = len(shown[3])
    assert [line for line in shown if set(line) != {"-"}] == [
        line for line in expected.splitlines() if set(line) != {"-"}
    ]
    assert width == max(len(line) for line in shown)


def test_a_dry_run_changes_nothing(fake: Any, sky: Sky) -> None:
    ran = sky("launch", "--dryrun", "echo hi")
    assert ran.code == 0
    assert "== Optimizer ==" in ran.out
    assert "enabled" not in fake.last("/plans").json()
    assert {call.method for call in fake.calls if call.path != "/plans"} <= {"GET"}


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (JobStatus.SUCCEEDED, 0),
        (JobStatus.FAILED, 100),
        (JobStatus.FAILED_SETUP, 100),
        (JobStatus.CANCELLED, 103),
    ],
)
def test_the_exit_code_is_the_jobs(fake: Any, sky: Sky, status: JobStatus, code: int) -> None:
    fake.job_status = status
    assert sky("launch", "-y", "-c", "dev", "false").code == code


def test_a_failed_launch_says_why_and_what_to_do(fake: Any, sky: Sky) -> None:
    fake.fail_kind["launch"] = errors.ResourcesUnavailable(
        "No place is left for this task.",
        hint="sky launch -r",
        details={"attempts": [{"cloud": "aws", "region": "us-east-1", "message": "sold out"}]},
    )
    ran = sky("launch", "-y", "-c", "dev", "true")
    assert ran.code == 1
    assert "Error: No place is left for this task." in ran.err
    assert "aws/us-east-1: sold out" in ran.err
    assert "Hint: sky launch -r" in ran.err


def test_a_broken_answer_to_launch_is_asked_again_with_the_same_key(fake: Any, sky: Sky) -> None:
    fake.add_cluster("dev")
    fake.fail_next = []
    assert sky("exec", "dev", "true").code == 0
    before = len(fake.operations)
    fake.drop_next = 1
    assert sky("exec", "dev", "true").code == 0
    keys = [call.headers["idempotency-key"] for call in fake.calls if call.path.endswith("/exec")]
    assert len(keys) == 3
    assert keys[1] == keys[2] != keys[0]
    assert len(fake.operations) == before + 1


def test_launch_flags_reach_the_server(fake: Any, sky: Sky) -> None:
    fake.add_cluster("dev")
    ran = sky(
        "launch", "-y", "-c", "dev", "-d", "-i", "10", "--down", "--no-setup", "--fast", "-r", "--num-nodes", "2",
        "--cpus", "4+", "--gpus", "A100:8", "--use-spot", "--env", "A=1", "--secret", "S=hush", "--priority", "7",
        "--infra", "aws/us-east-1", "run me",
    )  # fmt: skip
    assert ran.code == 0
    body = fake.last("/launch").json()
    assert body["autostop"] == {"idle_minutes": 10, "down": True}
    assert body["no_setup"] and body["fast"] and body["retry_until_up"]
    task = body["task"]
    assert task["num_nodes"] == 2
    assert task["envs"] == {"A": "1"}
    assert task["secrets"] == {"S": "hush"}
    resources = task["resources"]
    assert resources["cloud"] == "aws" and resources["region"] == "us-east-1" and resources["use_spot"]
    assert resources["accelerators"] == [{"name": "A100", "count": 8.0}]
    assert "hush" not in ran.text


def test_async_prints_the_request_id_only(fake: Any, sky: Sky) -> None:
    fake.add_cluster("dev")
    ran = sky("exec", "dev", "--async", "true")
    assert ran.out == "0001op\n"
    assert ran.code == 0


@pytest.mark.parametrize(
    "words", [["exec"], ["exec", "dev"], ["exec", "-c", "dev"], ["launch", "--resize", "x"]]
)
def test_missing_pieces_are_usage_errors(fake: Any, sky: Sky, words: list[str]) -> None:
    assert sky(*words).code == 2


def test_exec_with_the_cluster_as_an_option(fake: Any, sky: Sky) -> None:
    fake.add_cluster("dev")
    ran = sky("exec", "-c", "dev", "echo", "hello")
    assert ran.code == 0
    assert fake.last("/exec").json()["task"]["run"] == "echo hello"
    assert ran.out == "hello\n"


def test_exec_ignores_machine_sizes_and_says_so(fake: Any, sky: Sky) -> None:
    fake.add_cluster("dev")
    ran = sky("exec", "dev", "--cpus", "64", "true")
    assert ran.code == 0
    assert "--cpus is ignored" in ran.err
    assert "resources" not in fake.last("/exec").json()["task"]


def test_exec_on_a_cluster_that_is_not_there(fake: Any, sky: Sky) -> None:
    ran = sky("exec", "nope", "true")
    assert ran.code == 1
    assert "Error: Cluster 'nope' does not exist." in ran.err


def test_status_table(fake: Any, sky: Sky) -> None:
    fake.add_cluster("dev", autostop=AutostopSpec(idle_minutes=10, down=True))
    fake.add_cluster("train", ClusterStatus.STOPPED, cloud="aws", region="us-east-1", launched_at=1.0)
    ran = sky("status")
    assert ran.code == 0
    lines = ran.out.splitlines()
    assert lines[1].split() == ["NAME", "INFRA", "RESOURCES", "STATUS", "AUTOSTOP", "LAUNCHED"]
    assert lines[2] == "dev    Local            1x(cpus=2, mem=4GB)  UP       10m (down)  5 mins ago"
    assert lines[3].startswith("train  AWS (us-east-1)  1x(cpus=2, mem=4GB)  STOPPED  -")
    assert "autostop set" in ran.err


def test_an_unhealthy_cluster_says_why(fake: Any, sky: Sky) -> None:
    fake.add_cluster("dev", ClusterStatus.INIT, unhealthy=True, status_message="node 1 does not answer")
    ran = sky("status")
    assert "UNHEALTHY" in ran.out
    assert "dev: node 1 does not answer" in ran.err


def test_status_bare_values(fake: Any, sky: Sky) -> None:
    fake.add_cluster("dev", endpoints={"8080": "http://127.0.9.1:8080"})
    assert sky("status", "--ip", "dev").out == "127.0.9.1\n"
    assert sky("status", "--endpoints", "dev").out == "8080: http://127.0.9.1:8080\n"
    assert sky("status", "--endpoint", "8080", "dev").out == "http://127.0.9.1:8080\n"
    assert sky("status", "--endpoint", "1", "dev").code == 1
    assert sky("status", "--ip").code == 1
    assert sky("status", "--ip", "--endpoints", "dev").code == 1
    assert sky("status", "--ip", "--refresh", "dev").code == 1


def test_status_as_json(fake: Any, sky: Sky) -> None:
    fake.add_cluster("dev")
    rows = json.loads(sky("status", "-o", "json").out)
    assert [row["name"] for row in rows] == ["dev"]
    assert rows[0]["status"] == "UP"


def test_queue_table_and_cancel(fake: Any, sky: Sky) -> None:
    fake.add_cluster("dev")
    fake.add_job("dev")
    fake.add_job("dev", JobStatus.RUNNING, duration_seconds=None)
    ran = sky("queue", "dev")
    assert ran.code == 0
    assert "Job queue of cluster dev" in ran.out
    header = [
        "ID",
        "NAME",
        "USER",
        "SUBMITTED",
        "STARTED",
        "DURATION",
        "RESOURCES",
        "STATUS",
        "LOG",
        "GIT",
        "COMMIT",
    ]
    assert ran.out.splitlines()[2].split() == header
    assert "SUCCEEDED" not in sky("queue", "dev", "-s").out
    assert sky("cancel", "-y", "dev").out == "Cancelled job 2 on 'dev'.\n"
    again = sky("cancel", "-y", "dev", "2")
    assert again.code == 1
    assert sky("cancel", "-y", "dev", "2", "-a").code == 2
    assert sky("queue", "nope").code == 1


def test_stop_start_down_autostop(fake: Any, sky: Sky) -> None:
    for name in ("a1", "a2", "b"):
        fake.add_cluster(name)
    assert sky("stop", "-y", "a*").code == 0
    assert {c.name: c.status.value for c in fake.clusters.values()} == {
        "a1": "STOPPED",
        "a2": "STOPPED",
        "b": "UP",
    }
    assert sky("start", "-y", "a1", "-i", "30", "--down").code == 0
    assert fake.last("/a1/start").json()["autostop"] == {"idle_minutes": 30, "down": True}
    assert sky("autostop", "-y", "b").code == 0
    assert fake.last("/b/autostop").json()["autostop"]["idle_minutes"] == 5
    assert sky("autostop", "-y", "b", "--cancel").code == 0
    assert fake.last("/b/autostop").json() == {}
    assert sky("down", "-y", "-a").code == 0
    assert fake.clusters == {}


def test_a_partial_failure_exits_non_zero(fake: Any, sky: Sky) -> None:
    fake.add_cluster("a")
    ran = sky("down", "-y", "a", "nope")
    assert ran.code == 1
    assert "a" not in fake.clusters
    assert "Cluster 'nope' does not exist." in ran.err


def test_declining_aborts_with_1(fake: Any, sky: Sky) -> None:
    fake.add_cluster("a")
    ran = sky("down", "a", stdin="n\n")
    assert ran.code == 1
    assert "a" in fake.clusters


def test_starting_what_is_up_asks_nothing(fake: Any, sky: Sky) -> None:
    fake.add_cluster("a")
    ran = sky("start", "a")
    assert ran.code == 0
    assert "is up already" in ran.out
    assert fake.count("POST", "/start") == 0


@pytest.mark.parametrize(
    "words",
    [["stop"], ["down", "a", "-a"], ["start", "--down", "a"], ["autostop", "a", "--cancel", "-i", "3"]],
)
def test_wrong_combinations_are_usage_errors(fake: Any, sky: Sky, words: list[str]) -> None:
    assert sky(*words).code == 2


def test_a_later_command_says_so(fake: Any, sky: Sky) -> None:
    ran = sky("jobs", "launch", "--name", "x", "task.yaml")
    assert ran.code == 1
    assert ran.err == "not supported yet: sky jobs launch\n"
    assert sky("cpunode").code == 1
    assert sky("spot", "launch").code == 2


def test_the_row_of_status_is_true_to_the_contract() -> None:
    """Same names, same defaults: what is left out on the wire is what the contract says it is."""
    import dataclasses

    from sky.cli.rows import ClusterRow
    from skyloom_common.contracts.clusters import Cluster
    from skyloom_common.core.wire import to_wire

    least = Cluster("i", "n", ClusterStatus.UP, "ann", 1, 1.0)
    most = dataclasses.replace(
        least, resources="r", unhealthy=True, zone="z", autostop=AutostopSpec(idle_minutes=3, down=True),
        endpoints={"1": "u"}, ssh={"hosts": []}, heartbeat_age_seconds=2.0, workspace="w",
    )  # fmt: skip
    for cluster in (least, most):
        row = ClusterRow(to_wire(cluster))
        for name in set(ClusterRow.__slots__) - {"autostop"}:
            assert getattr(row, name) == getattr(cluster, name), name
    assert (ClusterRow(to_wire(most)).idle_minutes, ClusterRow(to_wire(most)).goes_down) == (3, True)
    assert ClusterRow(to_wire(least)).idle_minutes is None
    off = dataclasses.replace(least, autostop=AutostopSpec(enabled=False))
    assert ClusterRow(to_wire(off)).idle_minutes is None
