"""Jobs on real agents: one node and several."""

from __future__ import annotations

import json
import statistics
import time

import pytest

pytestmark = pytest.mark.integration


def test_a_job_runs_and_its_log_is_followed_to_the_end(nodes):
    (node,) = nodes.cluster(1)
    job_id = node.submit("echo hello; echo $0; exit 0", name="greet")
    text = node.logs(job_id, follow=True).decode()
    job = node.job(job_id)
    assert job["status"] == "SUCCEEDED" and job["exit_codes"] == [0]
    assert text.splitlines()[0].startswith("(greet, pid=") and text.splitlines()[0].endswith(") hello")
    assert (node.home / "sky_logs" / f"{job_id}-greet" / "tasks" / "run.log").read_text() == "hello\nbash\n"
    assert not node.processes()


def test_three_ranks_start_together_on_three_nodes_and_know_each_other(nodes):
    agents = nodes.cluster(3)
    script = 'echo "rank $SKYPILOT_NODE_RANK of $SKYPILOT_NUM_NODES: $(echo $SKYPILOT_NODE_IPS) head $SKYPILOT_HEAD_IP"'
    job_id = agents[0].submit(script, num_nodes=3, setup="echo setup $SKYPILOT_SETUP_NODE_RANK")
    text = agents[0].logs(job_id, follow=True).decode()
    assert agents[0].job(job_id)["exit_codes"] == [0, 0, 0]
    ips = " ".join(agent.host for agent in agents)
    for rank, agent in enumerate(agents):
        line = f"rank {rank} of 3: {ips} head {agents[0].host}"
        matching = [entry for entry in text.splitlines() if entry.endswith(line)]
        name = "(head, rank=0, pid=" if rank == 0 else f"(worker{rank}, rank={rank}, pid="
        assert len(matching) == 1 and matching[0].startswith(name)
        assert rank == 0 or f"ip={agent.host})" in matching[0]
        file = "0-head.log" if rank == 0 else f"{rank}-worker{rank}.log"
        for home in {agents[0].home, agent.home}:
            assert (home / "sky_logs" / f"{job_id}-job" / "tasks" / file).read_text() == line + "\n"
        assert agents[0].logs(job_id, rank=rank).decode() == line + "\n"
        assert agents[0].logs(job_id, rank=rank, phase="setup").decode() == f"setup {rank}\n"
    setup = agents[0].logs(job_id, phase="setup").decode()
    assert sorted(line.partition(") ")[2] for line in setup.splitlines()) == ["setup 0", "setup 1", "setup 2"]


def test_the_first_rank_that_fails_is_named_and_the_rest_are_ended(nodes):
    agents = nodes.cluster(3)
    script = "if [ $SKYPILOT_NODE_RANK = 1 ]; then echo about to fail; sleep 0.5; exit 7; fi; sleep 1000"
    job_id = agents[0].submit(script, num_nodes=3)
    job = agents[0].wait(job_id, seconds=10)
    assert job["status"] == "FAILED" and job["exit_codes"] == [137, 7, 137]
    failure = job["failure"]
    assert (failure["rank"], failure["node"], failure["exit_code"], failure["phase"]) == (
        1,
        "worker1",
        7,
        "run",
    )
    assert failure["last_lines"] == ["about to fail"]
    assert "rank 1 on worker1" in job["reason"] and "7" in job["reason"]
    assert not any(agent.processes() for agent in agents)


@pytest.mark.slow
def test_a_rank_that_ignores_sigterm_is_killed_within_the_bound(nodes):
    agents = nodes.cluster(2)
    script = "if [ $SKYPILOT_NODE_RANK = 0 ]; then sleep 0.5; exit 3; fi; trap '' TERM; while :; do sleep 0.1; done"
    job_id = agents[0].submit(script, num_nodes=2)
    job = agents[0].wait(job_id, seconds=10)
    assert job["exit_codes"] == [3, 137]
    assert not any(agent.processes() for agent in agents)


def test_a_failing_setup_fails_the_job_before_it_runs(nodes):
    agents = nodes.cluster(2)
    job_id = agents[0].submit(
        "touch ~/ran",
        setup="[ $SKYPILOT_SETUP_NODE_RANK = 0 ] || { echo no; exit 4; }; sleep 30",
        num_nodes=1,
    )
    job = agents[0].wait(job_id)
    assert job["status"] == "FAILED_SETUP" and job["failure"]["node"] == "worker1"
    assert job["failure"]["exit_code"] == 4 and job["failure"]["phase"] == "setup"
    assert not (agents[0].home / "ran").exists()


def test_cancel_while_running_waiting_and_setting_up(nodes):
    (node,) = nodes.cluster(1, cpus=1.0)
    running = node.submit("sleep 1000", demand={"cpus": 1.0})
    waiting = node.submit("sleep 1000", demand={"cpus": 1.0})
    node.wait(running, "RUNNING")
    job = node.job(waiting)
    assert job["status"] == "PENDING" and job["reason"] == f"waiting for 1 CPU on node 0; job {running} runs"
    assert node.request("POST", "/v1/jobs/cancel", {"job_ids": [waiting]}) == {"job_ids": [waiting]}
    assert node.job(waiting)["status"] == "CANCELLED"
    assert node.request("POST", "/v1/jobs/cancel", {}) == {"job_ids": [running]}
    assert node.wait(running)["status"] == "CANCELLED"
    assert not node.processes()
    setting_up = node.submit("echo never", setup="sleep 1000 & sleep 1000")
    node.wait(setting_up, "SETTING_UP")
    assert node.request("POST", "/v1/jobs/cancel", {"all": True}) == {"job_ids": [setting_up]}
    job = node.wait(setting_up)
    assert job["status"] == "CANCELLED" and not node.processes()
    assert b"never" not in node.logs(setting_up)
    assert node.request("POST", "/v1/jobs/cancel", {"all": True}).get("job_ids", []) == []


def test_jobs_start_in_order_and_share_fake_gpus(nodes):
    (node,) = nodes.cluster(1, gpus=2, cpus=64.0)
    show = "echo gpu=$CUDA_VISIBLE_DEVICES n=$SKYPILOT_NUM_GPUS_PER_NODE; while [ ! -e ~/go ]; do sleep 0.05; done"
    half = [node.submit(show, demand={"cpus": 0.5, "gpus": 0.5}) for _ in range(2)]
    whole = node.submit(show, demand={"cpus": 0.5, "gpus": 1.0})
    both = node.submit(show, demand={"cpus": 0.5, "gpus": 2.0})
    small = node.submit("echo gpu=$CUDA_VISIBLE_DEVICES", demand={"cpus": 0.5})
    for job_id in (*half, whole):
        node.wait(job_id, "RUNNING")
    assert node.job(both)["status"] == "PENDING" and "2 GPUs" in node.job(both)["reason"]
    assert node.job(small)["status"] == "PENDING", "the head of the queue blocks those behind it"
    (node.home / "go").touch()
    for job_id in (*half, whole, both, small):
        assert node.wait(job_id)["status"] == "SUCCEEDED"
    seen = [node.logs(job_id, rank=0).decode().splitlines()[0] for job_id in (*half, whole, both, small)]
    assert seen == ["gpu=0 n=1", "gpu=0 n=1", "gpu=1 n=1", "gpu=0,1 n=2", "gpu="]


def test_what_never_fits_fails_at_once_with_the_reason(nodes, refused):
    (node,) = nodes.cluster(1)
    blocker = node.submit("sleep 1000", demand={"cpus": 8.0})
    too_many = node.wait(node.submit("true", num_nodes=2), seconds=3)
    assert too_many["status"] == "FAILED" and "2 nodes and the cluster has 1" in too_many["reason"]
    too_big = node.wait(node.submit("true", demand={"gpus": 1.0}), seconds=3)
    assert too_big["status"] == "FAILED" and "1 GPU" in too_big["reason"]
    assert node.wait(blocker, "RUNNING")
    with pytest.raises(refused) as error:
        node.submit("true", envs={"A-B": "x"})
    assert error.value.status == 400 and "A-B" in error.value.body["message"]


def test_the_same_key_gives_the_same_job(nodes):
    (node,) = nodes.cluster(1)
    first = node.submit("echo once >> ~/times", key="k")
    node.wait(first)
    assert node.submit("echo once >> ~/times", key="k") == first
    assert (node.home / "times").read_text() == "once\n"
    assert len(node.request("GET", "/v1/jobs")["jobs"]) == 1


def test_the_job_sees_a_clean_environment_and_its_variables_win_over_login_files(nodes):
    import os

    node = nodes.make()
    (node.home / ".profile").write_text(
        "echo noise; export FROM_PROFILE=yes TASTE=profile PATH=$PATH:/extra\nfalse\n"
    )
    node.start(
        {**os.environ, "AWS_SECRET_ACCESS_KEY": "control-plane", "SKYLOOM_TOKEN": "x", "PYTHONPATH": "/x"}
    )
    nodes.introduce([node])
    job_id = node.submit(
        "env -0",
        envs={"TASTE": "user", "MULTI": "a\nb 'c\"", "SKYPILOT_TASK_ID": "mine"},
        secrets={"PASS": "hunter2"},
    )
    node.wait(job_id)
    env = dict(entry.split("=", 1) for entry in node.logs(job_id, rank=0).decode().split("\0") if entry)
    assert (env["TASTE"], env["FROM_PROFILE"], env["MULTI"], env["PASS"]) == (
        "user",
        "yes",
        "a\nb 'c\"",
        "hunter2",
    )
    assert env["HOME"] == str(node.home) and env["PWD"] == str(node.home / "sky_workdir")
    assert env["SKYPILOT_TASK_ID"] == "mine" and env["PYTHONUNBUFFERED"] == "1" and "/extra" in env["PATH"]
    assert not {"AWS_SECRET_ACCESS_KEY", "SKYLOOM_TOKEN", "PYTHONPATH"} & set(env)
    assert not [name for name in env if "token" in env[name].lower() and name != "PATH"]


def test_secrets_are_on_no_disk_after_the_job_and_never_on_argv(nodes, eventually):
    from pathlib import Path

    (node,) = nodes.cluster(1)
    job_id = node.submit("sleep 0.5", secrets={"PASS": "hunter2-unlikely"}, setup="true")
    node.wait(job_id, "RUNNING", "SUCCEEDED")
    holders = [
        path for path in node.home.rglob("*") if path.is_file() and b"hunter2-unlikely" in path.read_bytes()
    ]
    assert all(path.stat().st_mode & 0o077 == 0 for path in holders)
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert b"hunter2-unlikely" not in entry.read_bytes()
        except OSError:
            continue
    node.wait(job_id)

    def found():
        return [p for p in node.home.rglob("*") if p.is_file() and b"hunter2-unlikely" in p.read_bytes()]

    eventually(lambda: not found(), 5, "the end of every copy of the secret")


def test_logs_from_an_offset_from_the_end_and_of_strange_requests(nodes, refused):
    (node,) = nodes.cluster(1)
    job_id = node.submit("seq 1 100000", name="../../../etc/x y;rm")
    whole = node.logs(job_id, follow=True)
    assert whole.count(b"\n") == 100000
    assert node.logs(job_id, offset=1000) == whole[1000:]
    assert node.logs(job_id, tail=3) == b"".join(whole.splitlines(True)[-3:])
    assert node.logs(job_id, tail=0) == whole and node.logs(job_id, tail=200000) == whole
    assert node.logs(job_id, offset=10**12) == b""
    connection, response = node.open("GET", f"/v1/jobs/{job_id}/logs?tail=2")
    assert int(response.headers["x-log-offset"]) == len(whole) - len(response.read())
    connection.close()
    inside = list((node.home / "sky_logs").iterdir())
    assert [path.name for path in inside] == [f"{job_id}-_.._.._etc_x_y_rm"]
    for path in (
        "/v1/jobs/..%2f..%2fx/logs", "/v1/jobs/99/logs", "/v1/jobs/1/logs?rank=7", "/v1/jobs/1/logs?offset=-1",
        "/v1/jobs/1/logs?phase=../x", "/v1/../etc/passwd", "/v1/ranks/..%2f..%2fx/follow",
    ):  # fmt: skip
        with pytest.raises(refused) as error:
            node.request("GET", path)
        assert error.value.status in (400, 404), path


def test_the_archive_holds_what_is_on_the_node(nodes, tmp_path):
    import io
    import tarfile

    agents = nodes.cluster(2)
    job_id = agents[0].submit("echo $SKYPILOT_NODE_RANK", num_nodes=2, setup="true")
    agents[0].wait(job_id)
    connection, response = agents[0].open("GET", f"/v1/jobs/{job_id}/archive")
    data = response.read()
    connection.close()
    names = {f"{job_id}-job", f"{job_id}-job/run.log", f"{job_id}-job/tasks", f"{job_id}-job/tasks/setup.log"}
    names |= {f"{job_id}-job/tasks/0-head.log", f"{job_id}-job/tasks/1-worker1.log"}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert set(archive.getnames()) == names
        assert archive.extractfile(f"{job_id}-job/tasks/1-worker1.log").read() == b"1\n"


def test_heartbeats_carry_all_jobs_first_and_then_what_changed(nodes):
    (node,) = nodes.cluster(1, heartbeat_seconds=30.0)
    first = node.submit("true")
    node.wait(first)
    connection, response = node.open("GET", "/v1/watch")
    beat = json.loads(response.readline())
    assert [job["job_id"] for job in beat["jobs"]] == [first] and beat["utilization"]["memory_used_gib"] > 0
    second = node.submit("sleep 0.3")
    statuses = []
    while "SUCCEEDED" not in statuses:
        beat = json.loads(response.readline())
        assert all(job["job_id"] == second for job in beat.get("jobs", []))
        statuses += [job["status"] for job in beat.get("jobs", [])]
        assert (beat.get("idle_jobs_seconds", 0.0) == 0.0) == (
            statuses[-1] != "SUCCEEDED"
        ) or "SUCCEEDED" in statuses
    assert "RUNNING" in statuses
    connection.close()


def test_a_request_without_the_token_is_refused_and_health_is_open(nodes, refused):
    (node,) = nodes.cluster(1)
    for path in ("/v1/info", "/v1/jobs", "/v1/jobs/1/logs", "/v1/watch", "/nothing"):
        for token in ("", "wrong", "token-of-the-cluster2"):
            with pytest.raises(refused) as error:
                node.request("GET", path, token=token)
            assert error.value.status == 401 and error.value.body["code"] == "unauthenticated"
    assert node.request("GET", "/healthz", token="") == {"ok": True}


@pytest.mark.slow
def test_a_long_queue_does_not_slow_down_a_submit(nodes):
    """Each job behind one that waits costs the same, however many there are."""
    (node,) = nodes.cluster(1)
    node.wait(node.submit("sleep 1000", demand={"cpus": 8}), "RUNNING")
    seconds = []
    for _ in range(1500):
        began = time.perf_counter()
        last = node.submit("true", demand={"cpus": 1})
        seconds.append(time.perf_counter() - began)
    assert statistics.median(seconds[-100:]) < 3 * statistics.median(seconds[:100])
    assert "turn" in node.job(last)["reason"]
    too_big = node.submit("true", demand={"cpus": 9})
    assert node.job(too_big)["status"] == "FAILED"
    node.request("POST", "/v1/jobs/cancel", {"job_ids": [1]})
    node.wait(2, "SUCCEEDED")
    cancelled = node.request("POST", "/v1/jobs/cancel", {"all": True})["job_ids"]
    assert last in cancelled
