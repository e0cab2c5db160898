"""What must hold when something dies, fills up or misbehaves."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from skyloom_agent import procs

pytestmark = pytest.mark.integration

COUNT = "for i in $(seq 1 {n}); do echo line $i; sleep {pause}; done; exit {code}"
PREFIX = re.compile(rb"^\([^)]*\) ", re.M)


def without_prefix(log: bytes) -> bytes:
    return PREFIX.sub(b"", log)


def numbered(count: int) -> bytes:
    return b"".join(b"line %d\n" % number for number in range(1, count + 1))


def runner_pids(node) -> list[int]:
    """The live runners of a node, by their locks."""
    pids = []
    for lock in (node.home / ".sky" / "ranks").glob("*/lock"):
        content = json.loads(lock.read_bytes().strip() or b"{}")
        pids.append(content.get("runner", 0))
    return [pid for pid in pids if pid]


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGTERM])
def test_a_job_outlives_its_agent_and_nothing_is_lost(nodes, death):
    (node,) = nodes.cluster(1)
    job_id = node.submit(COUNT.format(n=40, pause=0.05, code=5), setup="echo set up")
    waiting = node.submit("echo after", demand={"cpus": 8.0})
    connection, response = node.open("GET", f"/v1/jobs/{job_id}/logs?follow=1")
    seen = response.read1(200)
    while b"line 3\n" not in seen:
        seen += response.read1(200)
    node.kill(death)
    connection.close()
    assert node.processes(), "the job runs on without an agent"
    time.sleep(0.3)
    node.start()
    assert first_heartbeat(node).get("idle_jobs_seconds", 0.0) == 0.0, "the job still runs"
    rest = node.logs(job_id, follow=True, offset=len(seen))
    job = node.job(job_id)
    assert job["status"] == "FAILED" and job["exit_codes"] == [5] and job["failure"]["exit_code"] == 5
    assert without_prefix(seen + rest) == b"set up\n" + numbered(40)
    assert seen + rest == node.logs(job_id)
    assert node.wait(waiting)["status"] == "SUCCEEDED", "the queue goes on too"
    assert 1.5 < job["duration_seconds"] < 15


def test_a_job_that_ends_while_there_is_no_agent(nodes, eventually):
    (node,) = nodes.cluster(1)
    job_id = node.submit("sleep 0.4; echo last words; exit 9")
    node.wait(job_id, "RUNNING")
    node.kill()
    eventually(lambda: not node.processes())
    eventually(lambda: list((node.home / ".sky" / "ranks").glob("*/result.json")), 5)
    node.start()
    job = node.wait(job_id)
    assert job["exit_codes"] == [9] and without_prefix(node.logs(job_id)) == b"last words\n"


def test_agents_killed_again_and_again_lose_and_repeat_no_byte_of_two_ranks(nodes):
    head, worker = nodes.cluster(2)
    script = "for i in $(seq 1 3000); do echo $SKYPILOT_NODE_RANK-$i; [ $((i%100)) = 0 ] && sleep 0.1; done; exit 0"
    job_id = head.submit(script, num_nodes=2)
    head.wait(job_id, "RUNNING")
    seen = b""
    for turn in range(4):
        connection, response = head.open("GET", f"/v1/jobs/{job_id}/logs?follow=1&offset={len(seen)}")
        seen += response.read1(65536)
        (head, worker)[turn % 2].kill()
        connection.close()
        (head, worker)[turn % 2].start()
        nodes.introduce([head, worker], generation=turn + 2)
    job = head.wait(job_id)
    assert job["status"] == "SUCCEEDED" and job["exit_codes"] == [0, 0], job
    log = head.logs(job_id)
    assert log.startswith(seen)
    for rank in (0, 1):
        mine = [line for line in without_prefix(log).split(b"\n") if line.startswith(b"%d-" % rank)]
        assert mine == [b"%d-%d" % (rank, number) for number in range(1, 3001)]


def test_a_killed_runner_fails_the_job_quickly_and_leaves_no_process(nodes, eventually):
    (node,) = nodes.cluster(1)
    job_id = node.submit("echo here; (setsid sleep 1000 &) ; sleep 1000")
    node.wait(job_id, "RUNNING")
    (runner,) = eventually(lambda: runner_pids(node))
    eventually(lambda: len(node.processes()) == 3)
    os.kill(runner, signal.SIGKILL)
    job = node.wait(job_id, seconds=3)
    assert job["status"] == "FAILED_DRIVER" and "runner was killed" in job["reason"]
    assert job["failure"]["phase"] == "driver" and not node.processes()


def test_daemons_of_a_run_end_with_it_even_when_they_keep_its_output(nodes):
    (node,) = nodes.cluster(1)
    daemon = (
        f'{sys.executable} -c "import os,time\nif os.fork(): os._exit(0)\nos.setsid()\nif os.fork(): os._exit(0)\n'
        'import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(1000)"'
    )
    job_id = node.submit(f"{daemon}\n(env -i setsid sleep 1000.123 &)\necho done; exit 2")
    job = node.wait(job_id, seconds=8)
    assert job["status"] == "FAILED" and job["exit_codes"] == [2]
    assert not node.processes()
    for stat in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert stat.read_bytes() != b"sleep\x001000.123\x00"
        except OSError:
            continue
    assert without_prefix(node.logs(job_id)) == b"done\n"


def test_daemons_of_a_setup_live_until_the_node_is_shut_down(nodes, eventually):
    (node,) = nodes.cluster(1)
    talk = "while sleep 0.05; do echo still here; done"
    job_id = node.submit("sleep 0.6; echo ran", setup=f"({talk}) & echo up")
    assert node.wait(job_id)["status"] == "SUCCEEDED"
    assert node.processes(), "what the setup started is still there"
    assert node.request("POST", "/v1/shutdown") == {"ok": True}
    assert node.process.wait(15) == 0
    assert not node.processes()
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in runner_pids(node)), 5)


def test_shutdown_ends_the_jobs_and_says_so(nodes):
    (node,) = nodes.cluster(1)
    job_id = node.submit("sleep 1000")
    node.wait(job_id, "RUNNING")
    node.request("POST", "/v1/shutdown")
    assert node.process.wait(20) == 0 and not node.processes()
    node.start()
    job = node.job(job_id)
    assert job["status"] == "CANCELLED" and "shut down" in job["reason"]


def test_a_second_agent_for_the_same_home_refuses_to_start(nodes):
    (node,) = nodes.cluster(1)
    again = subprocess.run(node._command, check=False, capture_output=True, timeout=20)
    assert again.returncode == 2 and b"another agent runs for" in again.stderr
    assert node.request("GET", "/healthz") == {"ok": True}


def test_a_taken_port_is_answered_with_another_one(nodes):
    with socket.socket() as taken:
        node = nodes.make()
        taken.bind((node.host, 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = json.loads(node.config.read_text()) | {"port": port}
        node.config.write_text(json.dumps(config))
        node.start()
        ready = json.loads(node.ready_file.read_text())
        assert ready["port"] != port and node.request("GET", "/v1/info")["url"] == ready["url"]


def test_a_config_that_others_may_read_is_refused(nodes):
    node = nodes.make()
    node.config.chmod(0o644)
    result = subprocess.run(node._command, check=False, capture_output=True, timeout=20)
    assert result.returncode == 2 and b"chmod 600" in result.stderr


def test_a_line_of_10_mb_binary_output_and_a_missing_newline(nodes):
    (node,) = nodes.cluster(1)
    script = (
        f"{sys.executable} -c \"import sys; w=sys.stdout.buffer.write; w(b'x'*10_000_000+b'\\n');"
        "w(bytes(range(256))*4096); w(b'end')\""
    )
    job_id = node.submit(script)
    log = node.logs(job_id, follow=True)
    raw = b"x" * 10_000_000 + b"\n" + bytes(range(256)) * 4096 + b"end"
    assert node.logs(job_id, rank=0) == raw
    assert without_prefix(log) == raw + b"\n"
    assert node.logs(job_id, tail=1).endswith(b"end\n")


@pytest.mark.slow
def test_a_million_lines_of_each_of_two_ranks(nodes):
    agents = nodes.cluster(2)
    job_id = agents[0].submit('seq -f "$SKYPILOT_NODE_RANK %.0f" 1 1000000', num_nodes=2)
    began = time.monotonic()
    log = agents[0].logs(job_id, follow=True, timeout=60)
    took = time.monotonic() - began
    lines = without_prefix(log).split(b"\n")
    for rank in (b"0", b"1"):
        mine = [line for line in lines if line.startswith(rank + b" ")]
        assert mine == [b"%s %d" % (rank, number) for number in range(1, 1_000_001)]
    assert took < 20


def test_a_worker_that_is_away_for_long_fails_the_job_and_says_which(nodes):
    head, worker = nodes.cluster(2, unreachable_seconds=1.5)
    job_id = head.submit("echo here; sleep 1000", num_nodes=2)
    head.wait(job_id, "RUNNING")
    worker.kill()
    job = head.wait(job_id, seconds=15)
    assert job["status"] == "FAILED_DRIVER" and "not reached for 1.5 s" in job["reason"]
    assert job["failure"]["node"] == "worker1" and not head.processes()
    log = head.logs(job_id)
    head.kill()
    head.start()
    assert head.job(job_id) == job and head.logs(job_id) == log
    worker.start()
    nodes.introduce([head, worker], generation=2)
    deadline = time.monotonic() + 30
    while worker.processes() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not worker.processes(), "what it still ran is ended once it is back"


@pytest.mark.slow
def test_a_worker_that_is_frozen_is_noticed_too(nodes):
    """Its port still accepts: only silence says that nobody is there."""
    head, worker = nodes.cluster(2, unreachable_seconds=1.0)
    job_id = head.submit("sleep 1000", num_nodes=2)
    head.wait(job_id, "RUNNING")
    worker.process.send_signal(signal.SIGSTOP)
    try:
        job = head.wait(job_id, seconds=40)
    finally:
        worker.process.send_signal(signal.SIGCONT)
    assert job["status"] == "FAILED_DRIVER" and job["failure"]["node"] == "worker1"


def test_a_rank_that_cannot_be_prepared_keeps_all_others_from_starting(nodes, eventually):
    agents = nodes.cluster(3)
    (agents[2].home / "sky_logs").rmdir()
    (agents[2].home / "sky_logs").write_text("not a directory")
    job_id = agents[0].submit("touch ~/started; sleep 1000", num_nodes=3)
    job = agents[0].wait(job_id)
    assert job["status"] == "FAILED_DRIVER" and job["failure"]["node"] == "worker2"
    assert "could not prepare" in job["reason"]
    assert not any((agent.home / "started").exists() for agent in agents)
    for agent in agents:
        eventually(lambda home=agent.home: not list((home / ".sky" / "ranks").iterdir()), 5, "the release")


@pytest.fixture
def small_disk(tmp_path):
    if os.geteuid() != 0 or not sys.platform.startswith("linux"):
        pytest.skip("mounting a small file system needs root on Linux")
    mount = tmp_path / "small"
    mount.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(mount)], check=False, capture_output=True
    )
    if done.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.decode().strip()}")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=False)


def test_a_full_disk_blocks_no_job_and_loses_no_exit_code(nodes, small_disk, eventually):
    node = nodes.make(home=small_disk / "home").start()
    nodes.introduce([node])
    script = (
        "echo before; while [ ! -e ~/full ]; do sleep 0.05; done; seq 1 200000; echo x > ~/sign 2>/dev/null;"
        "while [ ! -e /tmp/space-$SKYPILOT_TASK_ID ]; do sleep 0.05; done; echo after; exit 6"
    )
    marker = Path(f"/tmp/space-{node.node_id}")
    job_id = node.submit(script, envs={"SKYPILOT_TASK_ID": node.node_id})
    eventually(lambda: b"before" in node.logs(job_id))
    (node.home / "full").touch()
    filler = node.home / "filler"
    with open(filler, "wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 65536)
        except OSError:
            pass
    eventually(lambda: (node.home / "sign").exists(), 15, "the job's way past its output")
    assert node.request("GET", "/healthz") == {"ok": True}
    assert "disk full" in first_heartbeat(node)["problem"]
    node.kill(signal.SIGTERM)
    node.start()
    assert node.job(job_id)["status"] == "RUNNING", "an agent also starts on a full disk"
    filler.unlink()
    try:
        marker.touch()
        job = node.wait(job_id, seconds=20)
    finally:
        marker.unlink()
    assert job["status"] == "FAILED" and job["exit_codes"] == [6]
    raw = node.logs(job_id, rank=0)
    assert b"bytes of output are missing here: No space left on device" in raw and raw.endswith(b"after\n")


@pytest.mark.slow
def test_a_job_that_ends_on_a_full_disk_has_its_exit_code(nodes, small_disk, eventually):
    node = nodes.make(home=small_disk / "home").start()
    nodes.introduce([node])
    job_id = node.submit("echo before; while [ ! -e ~/full ]; do sleep 0.05; done; seq 1 200000; exit 6")
    eventually(lambda: b"before" in node.logs(job_id))
    (node.home / "full").touch()
    with open(node.home / "filler", "wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 4096)
        except OSError:
            pass
    job = node.wait(job_id, seconds=30)
    assert job["status"] == "FAILED" and job["exit_codes"] == [6]
    (node.home / "filler").unlink()
    eventually(lambda: "problem" not in first_heartbeat(node), 10, "the end of the problem")
    node.kill()
    node.start()
    assert node.job(job_id)["exit_codes"] == [6]


def first_heartbeat(node) -> dict:
    connection, response = node.open("GET", "/v1/watch")
    beat = json.loads(response.readline())
    connection.close()
    return beat


def test_wall_clock_jumps_change_no_duration_and_end_nothing(nodes, tmp_path):
    """The agent's own wall clock is turned back a day and on a day by a sitecustomize."""
    (tmp_path / "sitecustomize.py").write_text(
        "import time\n_time = time.time\ntime.time = lambda: _time() + (86400 if int(time.monotonic()*5) % 2 else -86400)\n"
    )
    head, worker = (nodes.make(), nodes.make())
    for node in (head, worker):
        node.start({**os.environ, "PYTHONPATH": str(tmp_path)})
    nodes.introduce([head, worker])
    job_id = head.submit("sleep 1.2; echo fine", num_nodes=2)
    job = head.wait(job_id)
    assert job["status"] == "SUCCEEDED" and 1.0 < job["duration_seconds"] < 10
    beat = first_heartbeat(head)
    assert 0 <= beat["idle_jobs_seconds"] < 60 and 0 < beat["uptime_seconds"] < 60


def test_no_child_is_left_as_a_zombie_of_the_agent(nodes, eventually):
    (node,) = nodes.cluster(1)
    for _ in range(3):
        node.wait(node.submit("true"))

    def zombies() -> list[str]:
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] == "Z" and int(fields[1]) == node.process.pid:
                found.append(stat.parent.name)
        return found

    eventually(lambda: not zombies(), 5, "the end of the zombies")
    assert procs.start_ticks(node.process.pid) is not None


@pytest.mark.slow
@pytest.mark.parametrize("victims", [(0,), (1,), (0, 1)])
def test_agents_killed_at_any_moment_start_everything_exactly_once(nodes, victims):
    head, worker = nodes.cluster(2)
    for step in range(6):
        job_id = head.submit(
            "echo $SKYPILOT_INTERNAL_JOB_ID >> ~/ran; sleep 0.1; echo done",
            num_nodes=2,
            setup="echo setup >> ~/set-up; echo set up",
            key=f"step-{step}",
        )
        time.sleep(0.03 * step)
        for victim in victims:
            (head, worker)[victim].kill()
        for victim in victims:
            (head, worker)[victim].start()
        nodes.introduce([head, worker], generation=step + 2)
        job = head.wait(job_id)
        assert job["status"] == "SUCCEEDED", f"step {step}: {job['status']}: {job.get('reason')}"
        log = without_prefix(head.logs(job_id)).split(b"\n")
        assert log.count(b"done") == 2 == log.count(b"set up"), (step, log)
    expected = [str(number) for number in range(1, 7)]
    for node in (head, worker):
        assert (node.home / "ran").read_text().split() == expected
        assert (node.home / "set-up").read_text().split() == ["setup"] * 6


@pytest.mark.slow
def test_a_frozen_runner_does_not_hold_up_a_cancel(nodes, eventually):
    (node,) = nodes.cluster(1, grace_seconds=0.5)
    job_id = node.submit("sleep 1000")
    (runner,) = eventually(lambda: runner_pids(node))
    os.kill(runner, signal.SIGSTOP)
    node.request("POST", "/v1/jobs/cancel", {"job_ids": [job_id]})
    job = node.wait(job_id, seconds=15)
    assert job["status"] == "CANCELLED"
    eventually(lambda: not node.processes(), 10, "the end of the job's processes")
    eventually(lambda: not Path(f"/proc/{runner}").exists(), 10, "the end of the runner")


def test_what_the_job_does_on_sigterm_is_seen_and_its_code_kept(nodes):
    head, _worker = nodes.cluster(2)
    script = (
        "if [ $SKYPILOT_NODE_RANK = 0 ]; then sleep 0.7; exit 1; fi\n"
        "trap 'echo saving; sleep 0.5; echo saved; exit 0' TERM; while :; do sleep 0.1; done"
    )
    job_id = head.submit(script, num_nodes=2)
    job = head.wait(job_id)
    assert job["exit_codes"] == [1, 0] and job["failure"]["rank"] == 0
    assert head.logs(job_id, rank=1).endswith(b"saving\nsaved\n")


def test_followers_that_leave_leave_nothing_behind(nodes, eventually):
    (node,) = nodes.cluster(1)
    job_id = node.submit("sleep 1000")
    before = len(list(Path(f"/proc/{node.process.pid}/fd").iterdir()))
    for _ in range(20):
        connection, response = node.open("GET", f"/v1/jobs/{job_id}/logs?follow=1")
        response.close()
        connection.close()
    eventually(
        lambda: len(list(Path(f"/proc/{node.process.pid}/fd").iterdir())) <= before + 3,
        10,
        "the end of the streams",
    )
