"""Real agents as processes: one zipapp, one directory and one loopback address per node."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from skyloom_agent import bundle, procs

TOKEN = "token-of-the-cluster"
_numbers = itertools.count(1)


def eventually(condition: Callable[[], Any], seconds: float = 10.0, what: str = "the condition") -> Any:
    """Waits for a state, with a bound; the first true value."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"{what} did not come true within {seconds:g} s"
        time.sleep(0.02)


class Refused(Exception):
    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(f"{status}: {body}")
        self.status = status
        self.body = body


class AgentProcess:
    def __init__(self, home: Path, pyz: Path, python: str, host: str, **settings: Any) -> None:
        self.home = home
        self.host = host
        self.node_id = f"node-{os.getpid()}-{home.name}-{next(_numbers)}"
        self.config = home / "config.json"
        self.process: subprocess.Popen[bytes] | None = None
        self._command = [python, str(pyz), "--config", str(self.config)]
        home.mkdir(parents=True, exist_ok=True)
        values = {"node_id": self.node_id, "token": TOKEN, "home": str(home), "listen_host": host, "port": 0}
        values |= {"cpus": 8.0, "memory_gib": 16.0, "gpus": 0, "heartbeat_seconds": 1.0, **settings}
        self.config.write_text(json.dumps(values))
        self.config.chmod(0o600)

    @property
    def ready_file(self) -> Path:
        return self.home / ".sky" / "agent.json"

    def start(self, env: dict[str, str] | None = None) -> AgentProcess:
        self.ready_file.unlink(missing_ok=True)
        with open(self.home / "agent.log", "ab") as log:
            self.process = subprocess.Popen(
                self._command, stdout=log, stderr=log, env=env or {**os.environ}, start_new_session=True
            )
        eventually(
            lambda: self.ready_file.exists() or self.process.poll() is not None, 15, "the agent's start"
        )
        assert self.process.poll() is None, self.log_text()
        return self

    def log_text(self) -> str:
        return (self.home / "agent.log").read_text()

    @property
    def url(self) -> str:
        return str(json.loads(self.ready_file.read_text())["url"])

    def kill(self, number: int = signal.SIGKILL) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(20)

    def request(
        self, method: str, path: str, body: Any = None, token: str = TOKEN, timeout: float = 30.0
    ) -> Any:
        connection, response = self.open(method, path, body, token, timeout)
        data = response.read()
        connection.close()
        if response.status >= 400:
            raise Refused(response.status, json.loads(data))
        return json.loads(data)

    def open(
        self, method: str, path: str, body: Any = None, token: str = TOKEN, timeout: float = 30.0
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=timeout)
        payload = None if body is None else json.dumps(body)
        connection.request(method, path, payload, {"Authorization": f"Bearer {token}"})
        return connection, connection.getresponse()

    def submit(self, run: str | None, **fields: Any) -> int:
        body = {"key": f"key-{next(_numbers)}", "name": "job", "user": "me", "run": run, **fields}
        return int(self.request("POST", "/v1/jobs", body)["job_id"])

    def job(self, job_id: int) -> dict[str, Any]:
        return dict(self.request("GET", f"/v1/jobs/{job_id}"))

    def wait(self, job_id: int, *statuses: str, seconds: float = 20.0) -> dict[str, Any]:
        """The job once it has one of the states (default: any final one)."""
        wanted = statuses or ("SUCCEEDED", "FAILED", "FAILED_SETUP", "FAILED_DRIVER", "CANCELLED")
        return dict(
            eventually(
                lambda: (job := self.job(job_id))["status"] in wanted and job,
                seconds,
                f"job {job_id} {wanted}",
            )
        )

    def logs(self, job_id: int, follow: bool = False, timeout: float = 30.0, **query: Any) -> bytes:
        terms = "".join(f"&{name}={value}" for name, value in query.items())
        connection, response = self.open(
            "GET", f"/v1/jobs/{job_id}/logs?follow={int(follow)}{terms}", timeout=timeout
        )
        data = response.read()
        connection.close()
        assert response.status == 200, data
        return data

    def runners_ended(self) -> bool:
        """Kills every runner that holds its lock; one that has just been started may not have written its name yet."""
        ended = True
        for lock in (self.home / ".sky" / "ranks").glob("*/lock"):
            with contextlib.suppress(FileNotFoundError), open(lock, "r+b") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    ended = False
                    name = json.loads(file.read().strip() or b"{}")
                    procs.signal_all({name["runner"]} if name else set(), signal.SIGKILL)
        return ended

    def processes(self) -> set[int]:
        """Everything that runs on this node for a job."""
        return procs.marked(f"{self.node_id}:", prefix=True)


class Nodes:
    """The agents of one test. `cluster(n)` gives n nodes that know each other; the first is the head."""

    def __init__(self, root: Path, pyz: Path) -> None:
        self._root = root
        self._pyz = pyz
        self._agents: list[AgentProcess] = []
        self._subnet = f"127.{20 + os.getpid() % 200}.{next(_numbers) % 250}"

    def make(self, python: str = sys.executable, home: Path | None = None, **settings: Any) -> AgentProcess:
        number = len(self._agents)
        agent = AgentProcess(
            home or self._root / f"n{number}", self._pyz, python, f"{self._subnet}.{number + 1}", **settings
        )
        self._agents.append(agent)
        return agent

    def cluster(self, size: int = 1, **settings: Any) -> list[AgentProcess]:
        agents = [self.make(**settings).start() for _ in range(size)]
        self.introduce(agents)
        return agents

    def introduce(self, agents: list[AgentProcess], generation: int = 1) -> None:
        peers = [
            {"rank": rank, "node_id": agent.node_id, "address": agent.host, "url": agent.url}
            for rank, agent in enumerate(agents)
        ]
        for rank, agent in enumerate(agents):
            membership = {
                "cluster_name": "c",
                "cluster_id": "c1",
                "rank": rank,
                "generation": generation,
                "peers": peers,
            }
            agent.request("PUT", "/v1/cluster", membership)

    def end(self) -> None:
        for agent in self._agents:
            if agent.process and agent.process.poll() is None:
                agent.kill(signal.SIGKILL)
        for agent in self._agents:
            eventually(agent.runners_ended, 5, "the end of the runners")
            procs.kill_until_gone(agent.processes, 5.0, lambda: None)


@pytest.fixture(scope="session")
def agent_pyz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle.build(tmp_path_factory.mktemp("pyz"))


@pytest.fixture
def nodes(tmp_path: Path, agent_pyz: Path) -> Iterator[Nodes]:
    made = Nodes(tmp_path, agent_pyz)
    yield made
    made.end()


@pytest.fixture(name="eventually")
def _eventually() -> Callable[..., Any]:
    return eventually


@pytest.fixture(name="refused")
def _refused() -> type[Refused]:
    return Refused
