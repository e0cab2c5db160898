"""The main job through services that were started one by one, from the environment alone, over HTTP, with a
redis-server that wants a password, and PostgreSQL."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from skyloom_common.bus.embedded import find_server
from skyloom_common.testing.databases import fresh_database, postgres_server
from skyloom_testing_stack import SKY, wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]

BIN = Path(sys.executable).parent
SERVICE_TOKEN = "service-token-of-this-deployment"
REDIS_PASSWORD = "bus-password-1"


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


@contextmanager
def _redis(folder: Path) -> Iterator[str]:
    """Debian's redis-server where there is one, else what an installation brings along."""
    port = _free_port()
    program = shutil.which("redis-server") or find_server()
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    server = subprocess.Popen([*command, "--requirepass", REDIS_PASSWORD], stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: _listens(port), seconds=10, what="redis-server listens")
        yield f"redis://:{REDIS_PASSWORD}@127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


class Service:
    """One service as a process of its own. `url` is what it said when it was ready."""

    def __init__(self, name: str, env: dict[str, str], log: Path) -> None:
        self.name, self.env, self.log = name, env, log
        self.start()

    def start(self) -> None:
        with open(self.log, "ab") as output:
            self.process = subprocess.Popen(
                [BIN / f"skyloom-{self.name}"], env=self.env, stdin=subprocess.DEVNULL, stderr=output
            )
        mark = f"skyloom-{self.name}: ready at "
        before = self.log.read_text().count(mark)
        wait_until(
            lambda: self.log.read_text().count(mark) > before, seconds=30, what=f"{self.name} is ready"
        )
        self.url = self.log.read_text().rpartition(mark)[2].split()[0]

    def get(self, path: str, token: str | None = None) -> tuple[int, str]:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + path, headers=headers)) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


class Deployment:
    def __init__(self, folder: Path, database_url: str, redis_url: str) -> None:
        self.folder = folder
        keep = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        self._env = {
            **keep,
            "SKYLOOM_HOME": str(folder / "home"),
            "SKYLOOM_SERVICE_TOKEN": SERVICE_TOKEN,
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "SKYLOOM_PORT": "0",
            "SKYLOOM_PROVIDERS": "local",
        }
        self.token = self._new_token("alice")
        self.services: dict[str, Service] = {}
        self._add("optimizer")
        self._add("provisioner", SKYLOOM_OPTIMIZER_URL=self.services["optimizer"].url)
        self._add(
            "gateway",
            SKYLOOM_OPTIMIZER_URL=self.services["optimizer"].url,
            SKYLOOM_PROVISIONER_URL=self.services["provisioner"].url,
            SKYLOOM_TOKENS_FILE=str(folder / "tokens.json"),
        )

    def _add(self, name: str, **env: str) -> None:
        self.services[name] = Service(name, {**self._env, **env}, self.folder / f"{name}.log")

    def _new_token(self, user: str) -> str:
        command = [BIN / "skyloom-gateway", "new-token", user]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        (self.folder / "tokens.json").write_text(shown.rpartition("SKYLOOM_TOKENS_FILE: ")[2])
        return shown.splitlines()[0].rpartition(" ")[2]

    def sky(self, *arguments: str) -> str:
        env = {
            **self._env,
            "SKYPILOT_API_SERVER_ENDPOINT": self.services["gateway"].url,
            "SKYPILOT_SERVICE_ACCOUNT_TOKEN": self.token,
            "NO_COLOR": "1",
        }
        done = subprocess.run(
            [SKY, *arguments],
            env=env,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{self.words()}"
        return done.stdout

    def words(self) -> str:
        return "\n".join(service.log.read_text()[-3000:] for service in self.services.values())

    def api(self, path: str) -> Any:
        return json.loads(self.services["gateway"].get(f"/api/v1{path}", self.token)[1])


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("apart")
    with ExitStack() as stack:
        database = fresh_database(stack.enter_context(postgres_server(tmp_path_factory.mktemp("pg"))))
        redis = stack.enter_context(_redis(folder))
        made = Deployment(folder, database, redis)
        try:
            yield made
        finally:
            for service in made.services.values():
                if service.process.poll() is None:
                    service.process.kill()
                    service.process.wait()


def test_a_two_node_job_runs_and_belongs_to_the_tokens_owner(deployment: Deployment) -> None:
    task = deployment.folder / "task.yaml"
    task.write_text(
        "num_nodes: 2\nsetup: echo set up\nrun: echo rank $SKYPILOT_NODE_RANK of $SKYPILOT_NUM_NODES\n"
    )
    shown = deployment.sky("launch", "-y", "-c", "far", str(task))
    assert "rank 0 of 2" in shown
    assert "rank 1 of 2" in shown
    [cluster] = deployment.api("/clusters?name=far")["clusters"]
    assert (cluster["status"], cluster["user"], cluster["num_nodes"]) == ("UP", "alice", 2)
    assert "again" in deployment.sky("exec", "far", "echo again")
    info = deployment.api("/info")
    assert (info["status"], info["user"], info["store"]) == ("healthy", "alice", "postgresql")
    assert info["bus"].split()[0] in ("redis", "valkey")


def test_a_service_that_was_killed_is_missed_and_welcomed_back(deployment: Deployment) -> None:
    provisioner, gateway = deployment.services["provisioner"], deployment.services["gateway"]
    provisioner.process.kill()
    provisioner.process.wait(10)
    status, body = gateway.get("/api/v1/clusters", deployment.token)
    assert (status, json.loads(body)["code"]) == (503, "unavailable")
    assert "the provisioner cannot be reached" in body
    assert gateway.get("/readyz")[0] == 503
    assert gateway.get("/healthz")[0] == 200
    port = provisioner.url.rpartition(":")[2]
    provisioner.env["SKYLOOM_PORT"] = port
    provisioner.start()
    assert gateway.get("/readyz")[0] == 200
    # Its clusters are where they were.
    assert "after the crash" in deployment.sky("exec", "far", "echo after the crash")


@pytest.mark.parametrize("name", ["optimizer", "provisioner", "gateway"])
def test_each_service_has_its_probes_and_is_closed(deployment: Deployment, name: str) -> None:
    service = deployment.services[name]
    assert json.loads(service.get("/healthz")[1]) == {"status": "ok", "service": name}
    assert service.get("/readyz")[0] == 200
    assert service.get("/metrics")[0] == 401
    token = deployment.token if name == "gateway" else SERVICE_TOKEN
    status, text = service.get("/metrics", token)
    assert status == 200
    assert "skyloom_http_requests_total" in text
    other = SERVICE_TOKEN if name == "gateway" else deployment.token
    assert service.get("/metrics", other)[0] == 401


def test_no_secret_is_in_any_log(deployment: Deployment) -> None:
    text = "".join(service.log.read_text() for service in deployment.services.values())
    for secret in (deployment.token, SERVICE_TOKEN, REDIS_PASSWORD):
        assert secret not in text


def test_the_end(deployment: Deployment) -> None:
    """Down first; then each service stops when told, in any order, and says nothing alarming."""
    deployment.sky("down", "-y", "far")
    assert deployment.api("/clusters").get("clusters", []) == []
    began = time.monotonic()
    assert [service.stop() for service in deployment.services.values()] == [0, 0, 0]
    assert time.monotonic() - began < 15
    assert "Traceback" not in deployment.words()


@pytest.mark.parametrize("name", ["optimizer", "provisioner", "gateway"])
def test_a_service_without_its_token_says_what_to_set(name: str, tmp_path: Path) -> None:
    env = {"PATH": os.environ["PATH"], "SKYLOOM_HOME": str(tmp_path), "SKYLOOM_PORT": "x"}
    done = subprocess.run(
        [BIN / f"skyloom-{name}"], env=env, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 2
    assert (
        f"skyloom-{name}: SKYLOOM_SERVICE_TOKEN: missing; set it, or SKYLOOM_SERVICE_TOKEN_FILE"
        in done.stderr
    )
    assert "SKYLOOM_PORT: 'x' is not valid" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        env = {"PATH": os.environ["PATH"], "SKYLOOM_HOME": str(tmp_path), "SKYLOOM_PORT": port}
        env["SKYLOOM_SERVICE_TOKEN"] = SERVICE_TOKEN
        command = [BIN / "skyloom-gateway"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use; set SKYLOOM_PORT" in done.stderr
