"""One task from end to end on this machine, by the command line alone."""

from __future__ import annotations

import json
import os
import stat
import time
from pathlib import Path

import pytest

from skyloom_testing_stack import Stack, wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def test_a_task_runs_and_everything_goes_away_again(stack: Stack) -> None:
    task = stack.work / "task.yaml"
    task.write_text(
        """
name: hi
num_nodes: 2
envs: {WHO: world}
setup: echo setting up node $SKYPILOT_SETUP_NODE_RANK
run: |
  echo "hello $WHO from rank $SKYPILOT_NODE_RANK of $SKYPILOT_NUM_NODES, head $SKYPILOT_HEAD_IP"
  echo "$SKYPILOT_NODE_IPS" | wc -l
  pwd
"""
    )
    shown = stack.sky("launch", "-y", "-c", "one", str(task))
    for rank in (0, 1):
        assert f"hello world from rank {rank} of 2" in shown
    assert "sky_workdir" in shown
    cluster = stack.cluster("one")
    assert cluster is not None
    assert (cluster["status"], cluster["num_nodes"]) == ("UP", 2)
    assert len({node["address"] for node in cluster["nodes"]}) == 2
    [job] = stack.jobs("one")
    assert (job["status"], job["job_id"]) == ("SUCCEEDED", 1)
    assert "hello world from rank 1" in stack.sky("logs", "one", "1")
    assert "again" in stack.sky("exec", "one", "echo again")
    assert len(stack.jobs("one")) == 2
    assert stack.sky("status", "--ip", "one").strip() == cluster["head_ip"]
    stack.sky("down", "-y", "one")
    assert stack.cluster("one") is None
    assert stack.node_dirs() == []
    stack.sky("api", "stop")
    wait_until(lambda: not stack.processes(), seconds=10, what="every process of the stack is gone")


def test_exit_codes_follow_the_job(stack: Stack) -> None:
    stack.sky("launch", "-y", "-c", "codes", "true")
    stack.sky("exec", "codes", "exit 3", code=100)
    stack.sky("logs", "codes", "2", "--status", code=100)
    stack.sky("logs", "codes", "99", "--status", code=102)
    stack.sky("exec", "codes", "-d", "sleep 60")
    stack.sky("logs", "codes", "3", "--status", code=101)
    stack.sky("cancel", "-y", "codes", "3")
    wait_until(lambda: stack.jobs("codes")[0]["status"] == "CANCELLED", what="job 3 is cancelled")
    stack.sky("logs", "codes", "3", "--status", code=103)
    stack.sky("exec", "nowhere", "true", code=1)
    assert "nowhere" in stack.last_error
    stack.sky("launch", "--no-such-flag", code=2)


def test_a_setup_that_fails_is_failed_setup_and_named(stack: Stack) -> None:
    task = stack.work / "t.yaml"
    task.write_text("setup: |\n  echo about to break\n  exit 7\nrun: echo never\n")
    shown = stack.sky("launch", "-y", "-c", "s", str(task), code=100)
    assert "about to break" in shown
    assert "never" not in shown
    [job] = stack.jobs("s")
    assert job["status"] == "FAILED_SETUP"
    assert job["failure"]["exit_code"] == 7


def test_stop_start_and_what_was_on_the_disk(stack: Stack) -> None:
    stack.sky("launch", "-y", "-c", "keep", "echo treasure > ~/kept")
    stack.sky("stop", "-y", "keep")
    assert stack.cluster("keep")["status"] == "STOPPED"
    assert not [one for one in stack.processes() if "agent" in " ".join(one.cmdline())]
    stack.sky("exec", "keep", "true", code=1)
    assert "sky start keep" in stack.last_error
    stack.sky("start", "-y", "keep")
    assert "treasure" in stack.sky("exec", "keep", "cat ~/kept")
    assert [job["job_id"] for job in stack.jobs("keep")] == [2, 1]


def test_autodown_takes_an_idle_cluster_away(stack: Stack) -> None:
    stack.sky("launch", "-y", "-d", "-c", "brief", "-i", "0", "--down", "true")
    wait_until(lambda: stack.cluster("brief") is None, seconds=60, what="the idle cluster is gone")
    assert stack.node_dirs() == []
    assert any(
        row["name"] == "brief" and row["status"] == "TERMINATED"
        for row in stack.json("cost-report", "-a")["rows"]
    )


def test_two_launches_of_one_name_at_once_share_the_cluster(stack: Stack) -> None:
    stack.sky("api", "start")
    both = [stack.popen("launch", "-y", "-c", "same", f"echo mine is {number}") for number in (1, 2)]
    shown = [process.communicate(timeout=90)[0].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], shown
    assert "mine is 1" in shown[0]
    assert "mine is 2" in shown[1]
    assert len(stack.node_dirs()) == 1
    assert {job["status"] for job in stack.jobs("same")} == {"SUCCEEDED"}
    assert len(stack.jobs("same")) == 2


def test_cancel_during_setup_leaves_no_process(stack: Stack) -> None:
    task = stack.work / "t.yaml"
    task.write_text("setup: |\n  echo in setup\n  sleep 613\nrun: echo never\n")
    stack.sky("launch", "-y", "-d", "-c", "c", str(task))
    wait_until(lambda: stack.jobs("c")[0]["status"] == "SETTING_UP", what="setup runs")
    stack.sky("cancel", "-y", "c", "1")
    wait_until(lambda: stack.jobs("c")[0]["status"] == "CANCELLED", seconds=15, what="the job is cancelled")
    wait_until(
        lambda: not [one for one in stack.processes() if "613" in one.cmdline()],
        seconds=10,
        what="its sleep is gone",
    )


def test_one_rank_dies_the_others_follow_and_it_is_named(stack: Stack) -> None:
    task = stack.work / "t.yaml"
    task.write_text(
        "num_nodes: 3\nrun: |\n"
        "  if [ $SKYPILOT_NODE_RANK = 2 ]; then sleep 1; echo rank two gives up >&2; exit 9; fi\n  sleep 617\n"
    )
    started = time.monotonic()
    stack.sky("launch", "-y", "-c", "g", str(task), code=100)
    told = stack.last_error
    assert time.monotonic() - started < 60
    [job] = stack.jobs("g")
    assert (job["status"], job["failure"]["rank"], job["failure"]["exit_code"]) == ("FAILED", 2, 9)
    assert "rank two gives up" in "\n".join(job["failure"]["last_lines"])
    assert "rank 2 (worker2) in run: exit code 9" in told
    assert job["ended_at"] - job["started_at"] < 11
    assert not [one for one in stack.processes() if "617" in one.cmdline()]


def test_secrets_reach_the_job_and_nothing_else(stack: Stack) -> None:
    secret = "tops3cret-" + os.urandom(4).hex()
    stack.extra_env = {"MY_SECRET": secret}
    stack.sky(
        "launch", "-y", "-c", "sec", "--secret", "MY_SECRET", 'echo "got ${#MY_SECRET} characters"; sleep 1'
    )
    assert f"got {len(secret)} characters" in stack.sky("logs", "sec", "1")
    stack.extra_env = {}
    holders = [
        path for path in stack.home.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()
    ]
    assert holders == []
    assert not [one for one in stack.processes() if secret in " ".join(one.cmdline())]


def test_private_files_are_private(stack: Stack) -> None:
    stack.sky("launch", "-y", "-c", "p", "true")
    for name in ("token", "api.json"):
        assert stat.S_IMODE((stack.home / name).stat().st_mode) == 0o600
    token = (stack.home / "token").read_text().strip()
    log = (stack.home / "logs" / "server.log").read_text()
    assert token not in log
    configs = [
        path
        for node in stack.node_dirs()
        for path in node.rglob("*")
        if path.is_file() and b'"token"' in path.read_bytes()[:4096]
    ]
    assert configs
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in configs)


def test_workdir_and_mounts_reach_every_node_and_change_with_the_source(stack: Stack) -> None:
    code = stack.work / "code"
    code.mkdir()
    (code / "main.sh").write_text("echo version one\n")
    (code / "skip.log").write_text("no")
    (code / ".skyignore").write_text("*.log\n")
    (stack.work / "data.txt").write_text("some data\n")
    task = stack.work / "t.yaml"
    task.write_text(
        f"num_nodes: 2\nworkdir: {code}\nfile_mounts:\n  ~/d/data.txt: {stack.work}/data.txt\n"
        "run: |\n  bash main.sh; ls; cat ~/d/data.txt\n"
    )
    shown = stack.sky("launch", "-y", "-c", "w", str(task))
    assert shown.count("version one") == 2
    assert shown.count("some data") == 2
    assert "skip.log" not in shown
    (code / "main.sh").write_text("echo version two\n")
    assert stack.sky("exec", "w", str(task)).count("version two") == 2


def test_dryrun_and_check_and_gpus_need_no_account(stack: Stack) -> None:
    plan = stack.sky("launch", "--dryrun", "--gpus", "A100:8", "echo hi")
    for word in ("p4d.24xlarge", "a2-highgpu-8g", "vCPUs", "CHOSEN", "✔"):
        assert word in plan
    assert "local" in stack.sky("check").lower()
    assert "H100" in stack.sky("gpus", "list")
    assert "p5.48xlarge" in stack.sky("show-gpus", "H100")
    assert stack.json("status") == []


def test_json_goes_to_stdout_alone(stack: Stack) -> None:
    for command in (
        ["status"],
        ["cost-report"],
        ["api", "status"],
        ["api", "info"],
        ["check"],
        ["gpus", "list"],
    ):
        json.loads(stack.sky(*command, "-o", "json"))


def test_logs_come_down_as_files(stack: Stack, tmp_path: Path) -> None:
    stack.sky("launch", "-y", "-c", "l", "--num-nodes", "2", "echo from $SKYPILOT_NODE_RANK")
    stack.sky("logs", "l", "1", "--sync-down")
    [run_log] = (stack.work / "sky_logs").rglob("run.log")
    assert "from 1" in run_log.read_text()
    assert len(list(run_log.parent.joinpath("tasks").glob("*.log"))) >= 2


def test_why_tells_the_causes(stack: Stack) -> None:
    task = stack.work / "t.yaml"
    task.write_text("resources: {cpus: 1+}\nrun: echo on my last legs; exit 3\n")
    assert "1. local local" in stack.sky("why", str(task))
    assert "p4d.24xlarge" in stack.sky("why", str(task), "--gpus", "A100:8", "--infra", "aws")
    stack.sky("launch", "-y", "-c", "y", str(task), code=100)
    told = stack.sky("why", "y", "1")
    assert "exit code 3" in told
    assert "on my last legs" in told
    assert "Cluster 'y' is UP" in stack.sky("why", "y")
    assert stack.json("why", "y", "1")["job"]["failure"]["exit_code"] == 3
    stack.sky("why", "nowhere", code=1)
    assert "nowhere" in stack.last_error
