"""What dies, and what must be true afterwards. Each test breaks a running stack from outside."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import signal
import socket
import time
from urllib.parse import urlsplit

import psutil
import pytest

from skyloom_testing_stack import Stack, wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def _unfinished(stack: Stack) -> list[dict[str, object]]:
    return [one for one in stack.json("api", "status", "-a") if one["status"] in ("PENDING", "RUNNING")]


def _agents(stack: Stack) -> list[psutil.Process]:
    return stack.agents()


@pytest.mark.parametrize("after", [0.0, 0.05, 0.15, 0.3, 0.5, 0.8, 1.2])
def test_a_killed_server_finishes_or_undoes_its_launch_after_restart(stack: Stack, after: float) -> None:
    """The crash points inside the saga are the provisioner's own tests; here the moment is arbitrary and everything is real."""
    stack.sky("api", "start")
    launching = stack.popen("launch", "-y", "-d", "-c", "k", "--num-nodes", "2", "echo survived")
    wait_until(
        lambda: launching.poll() is not None or _has_operation(stack),
        seconds=20,
        what="the launch was accepted",
    )
    time.sleep(after)
    stack.kill_server()
    stack.sky("api", "start")
    launching.communicate(timeout=60)
    wait_until(lambda: not _unfinished(stack), seconds=60, what="no operation is left unfinished")
    cluster = stack.cluster("k")
    if cluster is None:
        assert stack.node_dirs() == []
        assert _agents(stack) == []
    else:
        assert cluster["status"] == "UP", cluster
        assert len(stack.node_dirs()) == 2
        assert len(_agents(stack)) == 2
        wait_until(
            lambda: [job["status"] for job in stack.jobs("k")] == ["SUCCEEDED"],
            seconds=30,
            what="exactly one job ran",
        )
    stack.sky("down", "-y", "k", code=None)
    wait_until(lambda: not stack.node_dirs() and not _agents(stack), seconds=20, what="nothing is left")


@pytest.mark.parametrize("verb", ["launch", "start"])
def test_an_agent_killed_while_its_cluster_comes_up_is_started_again(stack: Stack, verb: str) -> None:
    """As soon as it is seen: mostly before it answers, now and then before it knows its peers."""
    stack.sky("api", "start")
    command = ["launch", "-y", "-d", "-c", "k", "--num-nodes", "2", "echo survived"]
    if verb == "start":
        stack.sky(*command)
        stack.sky("stop", "-y", "k")
        command = ["start", "-y", "k"]
    coming = stack.popen(*command)
    wait_until(lambda: _kill_an_agent(stack), seconds=20, what="an agent was started")
    shown = coming.communicate(timeout=60)[0].decode()
    assert coming.returncode == 0, shown
    assert stack.cluster("k")["status"] == "UP"
    assert len(_agents(stack)) == 2
    assert "survived" in stack.sky("logs", "k", "1")


def _kill_an_agent(stack: Stack) -> bool:
    """Not the shell that starts one: its end is told to whoever started it."""
    for process in _agents(stack):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.name() != "sh":
                process.kill()
                return True
    return False


def _has_operation(stack: Stack) -> bool:
    return bool(stack.json("api", "status", "-a"))


def test_the_server_dies_and_the_job_does_not_notice(stack: Stack) -> None:
    stack.sky(
        "launch", "-y", "-d", "-c", "k", "for i in $(seq 1 40); do echo line $i; sleep 0.1; done; exit 5"
    )
    wait_until(lambda: stack.jobs("k")[0]["status"] == "RUNNING", what="the job runs")
    stack.kill_server()
    stack.sky("api", "start")
    shown = stack.sky("logs", "k", "1", code=100)
    assert [f"line {number}\n" in shown for number in range(1, 41)] == [True] * 40
    assert stack.jobs("k")[0]["failure"]["exit_code"] == 5


def test_a_follower_survives_a_killed_server_without_a_lost_or_double_line(stack: Stack) -> None:
    stack.sky("launch", "-y", "-d", "-c", "k", "for i in $(seq 1 60); do echo line-$i.; sleep 0.1; done")
    follower = stack.popen("logs", "k", "1")
    wait_until(lambda: stack.jobs("k")[0]["status"] == "RUNNING", what="the job runs")
    time.sleep(1)
    stack.kill_server()
    stack.sky("api", "start")
    shown = follower.communicate(timeout=60)[0].decode()
    assert [shown.count(f"line-{number}.") for number in range(1, 61)] == [1] * 60, shown
    assert follower.returncode == 0


def test_a_killed_agent_comes_back_and_the_job_goes_on(stack: Stack) -> None:
    stack.sky(
        "launch", "-y", "-d", "-c", "a", "for i in $(seq 1 50); do echo line-$i.; sleep 0.1; done; exit 4"
    )
    wait_until(lambda: stack.jobs("a")[0]["status"] == "RUNNING", what="the job runs")
    [agent] = _agents(stack)
    agent.kill()
    shown = stack.sky("logs", "a", "1", code=100)
    assert [shown.count(f"line-{number}.") for number in range(1, 51)] == [1] * 50, shown
    job = stack.jobs("a")[0]
    assert (job["status"], job["failure"]["exit_code"]) == ("FAILED", 4)
    wait_until(lambda: stack.cluster("a")["status"] == "UP", what="the cluster is healthy again")


def test_a_node_whose_directory_was_removed_leaves_no_process(stack: Stack) -> None:
    stack.sky("launch", "-y", "-c", "gone", "true")
    assert len(_agents(stack)) == 1
    shutil.rmtree(stack.node_dirs()[0])
    stack.sky("exec", "gone", "true", code=None)
    stack.sky("down", "-y", "gone", code=None)
    wait_until(lambda: not _agents(stack), seconds=15, what="its agent is gone too")
    assert stack.json("status") == []


def test_redis_is_killed_and_nothing_is_lost(stack: Stack) -> None:
    stack.sky("launch", "-y", "-c", "r", "true")
    engines = [one for one in stack.processes() if "redis" in one.name() or "valkey" in one.name()]
    assert len(engines) == 1
    engines[0].send_signal(signal.SIGKILL)
    assert "still here" in stack.sky("exec", "r", "echo still here")
    wait_until(
        lambda: [one for one in stack.processes() if "redis" in one.name() or "valkey" in one.name()],
        what="the engine is back",
    )
    assert stack.sky("launch", "-y", "-c", "r2", "echo and again").count("and again") >= 1


def test_ports_that_are_taken_are_walked_around(stack: Stack) -> None:
    with socket.socket() as api, socket.socket() as agent:
        for one, port in ((api, 46580), (agent, 46590)):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                one.bind(("0.0.0.0", port))
                one.listen()
            except OSError:
                continue  # somebody has it: taken all the same
        assert "works" in stack.sky("launch", "-y", "-c", "p", "echo works")
        assert urlsplit(stack.server()["url"]).port != 46580


def _request(
    stack: Stack, method: str, path: str, token: str | None, body: bytes = b""
) -> tuple[int, dict[str, object]]:
    url = urlsplit(stack.server()["url"])
    connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=10)
    headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
    connection.request(method, path, body=body, headers={**headers, "Content-Type": "application/json"})
    answer = connection.getresponse()
    data = answer.read()
    try:
        return answer.status, json.loads(data)
    except ValueError:
        return answer.status, {"text": data.decode("latin-1")}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/v1/clusters"), ("GET", "/api/v1/info"), ("GET", "/api/v1/operations"), ("GET", "/metrics"),
        ("POST", "/api/v1/clusters/x/launch"), ("GET", "/api/v1/clusters/x/jobs/1/logs"), ("GET", "/api/v1/server-logs"),
        ("POST", "/api/v1/files/manifests"), ("PUT", "/api/v1/files/chunks"), ("GET", "/docs"), ("GET", "/openapi.json"),
    ],
)  # fmt: skip
def test_nothing_answers_without_the_right_token(stack_up: Stack, method: str, path: str) -> None:
    for token in (None, "wrong", ""):
        status, body = _request(stack_up, method, path, token)
        assert status in (401, 404), (token, status, body)
        if path.startswith("/api/v1"):
            assert (status, body["code"]) == (401, "unauthenticated")


def test_paths_and_names_that_climb_are_refused(stack_up: Stack) -> None:
    token = (stack_up.home / "token").read_text().strip()
    for path in (
        "/api/v1/clusters/..%2f..%2fetc/jobs/1/logs",
        "/api/v1/clusters/x/jobs/..%2f..%2f..%2fetc%2fpasswd/logs",
        "/api/v1/clusters/../../etc/passwd",
        "/api/v1/clusters/x%3Brm%20-rf/jobs",
        "/api/v1/operations/..%2f..%2fhealthz",
    ):
        status, body = _request(stack_up, "GET", path, token)
        assert status in (400, 404, 422), (path, status, body)
        assert "root:" not in str(body)
    for name in ("a;rm", "$(id)", "../up", "a b", "-x"):
        stack_up.sky("launch", "-y", "-c", name, "true", code=None)
        assert "Traceback" not in stack_up.last_error
        assert stack_up.json("status") == []


def test_a_mount_that_climbs_out_of_the_node_is_refused(stack_up: Stack) -> None:
    (stack_up.work / "f").write_text("x")
    for target in ("../../escape", "~/../../escape", "/escape-skyloom"):
        task = stack_up.work / "t.yaml"
        task.write_text(f"file_mounts:\n  {target}: ./f\nrun: echo ran\n")
        stack_up.sky("launch", "-y", "-c", "m", str(task), code=1)
        assert "escape" in stack_up.last_error
        assert stack_up.json("status") == []
    assert not list(stack_up.home.rglob("escape*"))


def test_bad_task_files_are_refused_at_once(stack_up: Stack) -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
    )
    path = stack_up.work / "bomb.yaml"
    path.write_text(bomb + "run: echo no\n")
    started = time.monotonic()
    stack_up.sky("launch", "-y", str(path), code=1)
    big = stack_up.work / "big.yaml"
    with big.open("wb") as file:
        file.write(b"run: echo no\n")
        file.truncate(100 << 20)
    stack_up.sky("launch", "-y", str(big), code=1)
    assert "more than a task file may have" in stack_up.last_error
    assert time.monotonic() - started < 20
    typo = stack_up.work / "typo.yaml"
    typo.write_text("resorces:\n  cpus: 1\nnum_nodes: zero\nrun: true\n")
    stack_up.sky("launch", "-y", str(typo), code=1)
    for word in ("resources", "num_nodes", "typo.yaml:1", "typo.yaml:3"):
        assert word in stack_up.last_error
    assert stack_up.json("status") == []


def test_what_is_not_supported_yet_is_said_and_nothing_is_made(stack_up: Stack) -> None:
    task = stack_up.work / "t.yaml"
    task.write_text("file_mounts:\n  ~/data: s3://bucket/path\nevent_callback: echo\nrun: echo ran\n")
    stack_up.sky("launch", "-y", "-c", "n", str(task), code=1)
    assert "not supported yet: file_mounts" in stack_up.last_error
    stack_up.sky("jobs", "launch", "echo", code=1)
    assert "not supported yet" in stack_up.last_error
    assert stack_up.json("status") == []


def test_big_lines_many_lines_and_binary_output_arrive_whole(stack_up: Stack) -> None:
    script = "head -c 10485760 /dev/zero | tr '\\0' x; echo; seq 1 200000; head -c 100000 /dev/urandom > r; sha256sum r; cat r; echo; echo END"
    stack_up.sky("launch", "-y", "-d", "-c", "big", script)
    shown = stack_up.popen("logs", "big", "1", "--tail", "0").communicate(timeout=90)[0]
    assert b"x" * 10485760 in shown
    assert shown.count(b"\n") >= 200_003
    assert shown.rstrip().endswith(b"END") or b"END" in shown[-4000:]
