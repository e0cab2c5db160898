"""The real thing: services as processes, nodes as processes, killed with SIGKILL at any point."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from skyloom_common.clients.provisioner import ProvisionerClient
from skyloom_common.contracts.clusters import ExecRequest, LaunchRequest, StopRequest
from skyloom_common.contracts.jobs import Job, JobStatus
from skyloom_common.contracts.operations import Operation, OperationStatus
from skyloom_common.contracts.task.model import ResourcesSpec, TaskSpec
from skyloom_common.core.errors import Unavailable

pytestmark = pytest.mark.integration
TOKEN = "process-test-token-0123456789"
LOCAL = ResourcesSpec(cloud="local")


@dataclass
class Process:
    """One service in a process of its own, on a port that it chose."""

    command: str
    environment: dict[str, str]
    log: Path
    url: str = ""
    popen: subprocess.Popen[bytes] | None = None

    def start(self, **more: str) -> None:
        with open(self.log, "ab") as out:
            at = out.tell()
            self.popen = subprocess.Popen(
                [str(Path(sys.executable).with_name(self.command))],
                env={**self.environment, **more},
                stdout=out,
                stderr=out,
            )
        self.url = self._wait_ready(at)

    def _wait_ready(self, at: int) -> str:
        assert self.popen is not None
        for _ in range(1500):
            text = self.log.read_bytes()[at:].decode()
            if "ready at http" in text:
                return text.split("ready at ")[1].split()[0]
            if self.popen.poll() is not None:
                raise AssertionError(f"{self.command} ended: {text}")
            _sleep(0.02)
        raise AssertionError(f"{self.command} is not ready: {self.log.read_text()}")

    def kill(self) -> None:
        if self.popen is not None:
            self.popen.kill()
            self.popen.wait()

    def wait_killed(self) -> None:
        assert self.popen is not None
        assert self.popen.wait(60) == -signal.SIGKILL


def _sleep(seconds: float) -> None:
    import time

    time.sleep(seconds)


@pytest.fixture(scope="module")
def optimizer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("optimizer")
    process = Process("skyloom-optimizer", _environment(folder, f"sqlite:///{folder}/o.db"), folder / "log")
    process.start()
    yield process
    process.kill()


def _environment(home: Path, database_url: str) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "SKYLOOM_HOME": str(home),
        "SKYLOOM_SERVICE_TOKEN": TOKEN,
        "SKYLOOM_PORT": "0",
        "DATABASE_URL": database_url,
    }


@dataclass
class Deployment:
    home: Path
    process: Process
    clients: list[httpx.AsyncClient] = field(default_factory=list)

    def client(self) -> ProvisionerClient:
        http = httpx.AsyncClient(
            base_url=self.process.url,
            headers={"Authorization": f"Bearer {TOKEN}"},
            timeout=30,
            trust_env=False,
        )
        self.clients.append(http)
        return ProvisionerClient(http)

    def node_processes(self) -> list[psutil.Process]:
        """Of every node, by what they were started with; zombies have ended."""
        found = []
        for process in psutil.process_iter():
            try:
                home = process.environ().get("HOME", "")
                if home.startswith(str(self.home / "local")) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def directories(self) -> list[str]:
        folder = self.home / "local"
        return (
            sorted(path.name for path in folder.iterdir() if path.name != ".lock") if folder.is_dir() else []
        )


@pytest.fixture
async def deployment(tmp_path: Path, any_database_url: str, optimizer: Process) -> AsyncIterator[Deployment]:
    environment = {
        **_environment(tmp_path, any_database_url),
        "SKYLOOM_OPTIMIZER_URL": optimizer.url,
        "SKYLOOM_PROVIDERS": "local",
        "SKYLOOM_HEARTBEAT_SECONDS": "1",
    }
    deployment = Deployment(tmp_path, Process("skyloom-provisioner", environment, tmp_path / "log"))
    yield deployment
    deployment.process.kill()
    for http in deployment.clients:
        await http.aclose()
    for process in deployment.node_processes():
        process.kill()


async def finished(client: ProvisionerClient, operation: Operation, seconds: float = 60) -> Operation:
    async with asyncio.timeout(seconds):
        async for _ in client.operation_events(operation.id):
            pass
    return await client.operation(operation.id)


async def until(look: Callable[[], Awaitable[Any] | Any], seconds: float = 60) -> Any:
    async with asyncio.timeout(seconds):
        while True:
            found = look()
            found = await found if asyncio.iscoroutine(found) else found
            if found:
                return found
            await asyncio.sleep(0.05)


async def job_of(client: ProvisionerClient, name: str = "c") -> Job | None:
    try:
        jobs = (await client.jobs(name)).jobs
    except Unavailable:
        return None
    return max(jobs, key=lambda job: job.job_id, default=None)


POINTS = [
    "launch.do.provision",
    "launch.intent_rows",
    "launch.instances_running",
    "launch.agents_up",
    "launch.cluster_up",
    "launch.job_submitted",
    "launch.finish",
]


DATABASES = [("sqlite", point) for point in POINTS] + [("postgresql", "launch.instances_running")]


@pytest.mark.parametrize(("any_database_url", "point"), DATABASES, indirect=["any_database_url"])
async def test_a_launch_survives_kill_9(deployment: Deployment, point: str) -> None:
    deployment.process.start(SKYLOOM_CRASH_AT=point)
    task = TaskSpec(run="echo done by $SKYPILOT_NODE_RANK", num_nodes=2, resources=LOCAL)
    operation = await deployment.client().launch("c", LaunchRequest(task))
    await asyncio.to_thread(deployment.process.wait_killed)
    await asyncio.to_thread(deployment.process.start)
    client = deployment.client()
    done = await finished(client, operation)
    assert done.status is OperationStatus.SUCCEEDED, done.error
    job = await until(lambda: _final(client))
    assert job.status is JobStatus.SUCCEEDED and job.job_id == 1
    assert len(deployment.directories()) == 2
    down = await finished(client, await client.down("c", StopRequest()))
    assert down.status is OperationStatus.SUCCEEDED
    assert deployment.node_processes() == [] and deployment.directories() == []


async def _final(client: ProvisionerClient) -> Job | None:
    job = await job_of(client)
    return job if job is not None and job.status.is_final else None


@pytest.mark.parametrize("any_database_url", ["sqlite"], indirect=True)
async def test_a_teardown_survives_kill_9(deployment: Deployment) -> None:
    deployment.process.start(SKYLOOM_CRASH_AT="down.do.down")
    client = deployment.client()
    await finished(
        client, await client.launch("c", LaunchRequest(TaskSpec(run="sleep 600", resources=LOCAL)))
    )
    operation = await client.down("c", StopRequest())
    await asyncio.to_thread(deployment.process.wait_killed)
    await asyncio.to_thread(deployment.process.start)
    assert (await finished(deployment.client(), operation)).status is OperationStatus.SUCCEEDED
    assert deployment.node_processes() == [] and deployment.directories() == []


async def test_a_job_outlives_its_agent_and_its_provisioner(deployment: Deployment) -> None:
    await asyncio.to_thread(deployment.process.start)
    client = deployment.client()
    script = "for i in $(seq 1 40); do echo line $i; sleep 0.1; done; exit 7"
    await finished(client, await client.launch("c", LaunchRequest(TaskSpec(run=script, resources=LOCAL))))
    await until(lambda: _running(client))
    (node,) = deployment.directories()
    ready = deployment.home / "local" / node / "home" / ".sky" / "agent.json"
    first = json.loads(ready.read_text())["pid"]
    os.kill(first, signal.SIGKILL)
    await until(lambda: ready.exists() and json.loads(ready.read_text())["pid"] != first)
    deployment.process.kill()
    await asyncio.to_thread(deployment.process.start)
    client = deployment.client()
    job = await until(lambda: _final(client))
    assert job.status is JobStatus.FAILED and job.exit_codes == (7,)
    log = b"".join([piece async for piece in client.job_logs("c", "1", {"follow": 1})]).decode()
    assert [f"line {number}" for number in range(1, 41)] == [
        line.split(") ")[-1] for line in log.split("\n") if "line " in line
    ]
    done = await finished(client, await client.exec("c", ExecRequest(TaskSpec(run="echo again"))))
    assert done.result["job_id"] == 2
    await finished(client, await client.down("c", StopRequest()))
    assert deployment.node_processes() == []


async def _running(client: ProvisionerClient) -> bool:
    job = await job_of(client)
    return job is not None and job.status is JobStatus.RUNNING


@pytest.mark.parametrize("any_database_url", ["sqlite"], indirect=True)
async def test_stop_keeps_the_files_and_start_brings_the_cluster_back(deployment: Deployment) -> None:
    await asyncio.to_thread(deployment.process.start)
    client = deployment.client()
    task = TaskSpec(run="echo kept > ~/kept.txt", num_nodes=2, resources=LOCAL)
    await finished(client, await client.launch("c", LaunchRequest(task)))
    await until(lambda: _final(client))
    await finished(client, await client.stop("c", StopRequest()))
    assert deployment.node_processes() == [] and len(deployment.directories()) == 2
    done = await finished(
        client, await client.launch("c", LaunchRequest(TaskSpec(run="cat ~/kept.txt", num_nodes=2)))
    )
    assert done.status is OperationStatus.SUCCEEDED, done.error
    job = await until(lambda: _second(client))
    assert job.status is JobStatus.SUCCEEDED
    await finished(client, await client.down("c", StopRequest()))
    assert deployment.node_processes() == []


async def _second(client: ProvisionerClient) -> Job | None:
    job = await _final(client)
    return job if job is not None and job.job_id == 2 else None
