"""What is special about nodes on this machine: addresses, processes that hide, leftovers of crashes."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from skyloom_common.contracts.agent import AgentConfig
from skyloom_common.contracts.plan import Offer
from skyloom_common.contracts.task.model import Quantity, ResourcesSpec
from skyloom_common.core.clock import SystemClock
from skyloom_common.core.errors import InstanceNotFound, InsufficientCapacity, ProviderInvalidRequest
from skyloom_provisioner.bundle import AgentBundle
from skyloom_provisioner.providers.base import DEPLOYMENT_TAG, InstanceRequest
from skyloom_provisioner.providers.local import addresses
from skyloom_provisioner.providers.local.machine import Machine, gpu_name, seen
from skyloom_provisioner.providers.local.offers import offers_of
from skyloom_provisioner.providers.local.processes import is_running, node_processes
from skyloom_provisioner.providers.local.provider import LocalProvider

MACHINE = Machine(4, 16, "H200", 4, 140, (0, 1, 2, 3))


def no_bundle() -> Path:
    raise AssertionError("no agent is needed here")


@pytest.fixture
async def provider(tmp_path: Path) -> AsyncIterator[LocalProvider]:
    provider = LocalProvider(tmp_path / "local", SystemClock(), no_bundle, lambda: MACHINE)
    yield provider
    for record in provider._records():
        await provider.delete(record["id"])


async def rent(provider: LocalProvider, token: str = "a", gpus: int = 0) -> Any:
    offer = Offer(cloud="local", instance_type="local", vcpus=1, memory_gib=1, accelerator_count=gpus)
    return await provider.create(InstanceRequest(token, "demo-0", offer, {DEPLOYMENT_TAG: "d"}))


def test_offers_are_cut_to_what_is_asked_for() -> None:
    exact = ResourcesSpec(cpus=Quantity(2), memory=Quantity(4, per_cpu=True))
    assert {(offer.vcpus, offer.memory_gib) for offer in offers_of(MACHINE, exact)} == {(2, 8), (4, 16)}
    too_much = ResourcesSpec(cpus=Quantity(64), any_of=(ResourcesSpec(cpus=Quantity(1)),))
    assert {offer.vcpus for offer in offers_of(MACHINE, too_much)} == {1, 4}
    at_least = ResourcesSpec(cpus=Quantity(2, at_least=True))
    assert {offer.vcpus for offer in offers_of(MACHINE, at_least)} == {4}
    assert {offer.accelerator_count for offer in offers_of(MACHINE, at_least)} == {0, 1, 2, 4}
    assert all(offer.price_per_hour == 0 for offer in offers_of(MACHINE, at_least))


@pytest.mark.parametrize(
    ("full", "short"),
    [
        ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA A100-SXM4-40GB", "A100"),
        ("Tesla V100-SXM2-16GB", "V100"),
        ("NVIDIA GeForce RTX 4090", "RTX4090"),
        ("NVIDIA L4", "L4"),
    ],
)
def test_gpus_have_the_catalogs_names(full: str, short: str) -> None:
    assert gpu_name(full) == short


@pytest.mark.parametrize(
    ("visible", "ours"),
    [(None, (0, 1, 2)), ("2,0", (2, 0)), ("GPU-b", (1,)), ("1,7,2", (1,)), ("", ()), ("-1", ())],
)
def test_a_server_hands_out_only_the_gpus_it_may_see(visible: str | None, ours: tuple[int, ...]) -> None:
    assert seen({0: "GPU-aa", 1: "GPU-bb", 2: "GPU-cc"}, visible) == ours


def test_addresses_avoid_nodes_and_servers() -> None:
    first = addresses.allocate("seed", set())
    assert first.startswith("127.0.") and addresses.allocate("seed", set()) == first
    assert addresses.allocate("seed", {first}) != first
    with socket.socket() as taken:
        taken.bind((first, addresses.AGENT_PORT))
        assert addresses.allocate("seed", set()) != first
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(addresses, "is_free", lambda address, port: False)  # held on every address
        assert addresses.allocate("seed", {first}) not in (first, "127.0.0.1")
    assert addresses.allocate("seed", set(), platform="darwin") == "127.0.0.1"


async def test_gpus_are_handed_out_once(provider: LocalProvider) -> None:
    one, two = await rent(provider, "a", 1), await rent(provider, "b", 3)
    records = {record["id"]: record["gpu_indices"] for record in provider._records()}
    assert records == {one.id: [0], two.id: [1, 2, 3]}
    with pytest.raises(InsufficientCapacity, match="0 of 4 GPUs free"):
        await rent(provider, "c", 1)
    await provider.delete(one.id)
    assert (await rent(provider, "c", 1)).id


async def test_what_is_bigger_than_the_machine_is_refused(provider: LocalProvider) -> None:
    offer = Offer(cloud="local", instance_type="local", vcpus=64, memory_gib=1)
    with pytest.raises(ProviderInvalidRequest, match="smaller"):
        await provider.create(InstanceRequest("t", "demo-0", offer, {}))


async def test_leftovers_of_a_crash_are_swept_and_instances_are_not(provider: LocalProvider) -> None:
    kept = await rent(provider)
    for leftover in (".new-x-1", ".gone-y-2"):
        (provider._root / leftover / "home").mkdir(parents=True)
    assert [instance.id for instance in await provider.list("d")] == [kept.id]
    assert sorted(path.name for path in provider._root.iterdir()) == sorted([".lock", kept.id])


async def test_a_directory_that_a_task_made_unreadable_is_removed(provider: LocalProvider) -> None:
    instance = await rent(provider)
    home = provider._root / instance.id / "home"
    (home / "locked" / "deep").mkdir(parents=True)
    (home / "locked" / "deep" / "file").write_text("x")
    (home / "locked" / "deep").chmod(0)
    (home / "locked").chmod(0o500)
    await provider.delete(instance.id)
    with pytest.raises(InstanceNotFound):
        await provider.get(instance.id)
    assert [path.name for path in provider._root.iterdir()] == [".lock"]


HIDERS = {
    "by its environment": "import os,time; os.chdir('/'); time.sleep(600)",
    "with a clean environment, by its directory": "import os,time; os.execve('/bin/sleep',['sleep','600'],{})",
    "that ignores SIGTERM": "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)",
    "a daemon of a daemon": "import os,time; os.fork() and os._exit(0); os.setsid(); os.fork() and os._exit(0); time.sleep(600)",
}


@pytest.mark.integration
@pytest.mark.parametrize("script", HIDERS.values(), ids=HIDERS.keys())
async def test_every_process_of_a_node_ends_with_it(provider: LocalProvider, script: str) -> None:
    instance = await rent(provider)
    node = provider._root / instance.id
    environment = {"HOME": str(node / "home"), "PATH": os.environ["PATH"], "SKYLOOM_NODE_ID": instance.id}
    process = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", script], cwd=node / "home", env=environment, start_new_session=True
    )
    await _until(lambda: node_processes(node))
    await asyncio.sleep(0.3)
    pids = node_processes(node)
    assert pids
    await provider.delete(instance.id)
    process.wait(5)
    assert not any(is_running(pid) for pid in pids)


@pytest.mark.integration
async def test_processes_of_a_node_whose_directory_was_removed_are_ended(provider: LocalProvider) -> None:
    """They would hold its address and run its jobs for ever: nobody has a record of them any more."""
    for ask in (provider.get, provider.delete):
        instance = await rent(provider)
        node = provider._root / instance.id
        agent = subprocess.Popen(  # noqa: ASYNC220
            ["sleep", "600"], env={"HOME": str(node / "home"), "SKYLOOM_NODE_ID": instance.id}
        )
        shutil.rmtree(node)
        try:
            with pytest.raises(InstanceNotFound):
                await ask(instance.id)
            assert agent.wait(5) == -signal.SIGTERM
        finally:
            agent.kill()
            agent.wait()


async def test_a_persons_shell_in_the_nodes_directory_is_left_alone(provider: LocalProvider) -> None:
    instance = await rent(provider)
    node = provider._root / instance.id
    shell = subprocess.Popen(["sleep", "600"], cwd=node, env={"HOME": "/home/somebody"})  # noqa: ASYNC220
    try:
        await provider.delete(instance.id)
        assert shell.poll() is None
    finally:
        shell.send_signal(signal.SIGKILL)
        shell.wait()


class Killed(BaseException):
    """The end of a process, as seen from inside it."""


@pytest.mark.parametrize("agent_answers", [True, False])
async def test_an_agent_whose_starter_was_killed_is_found_by_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, agent_answers: bool
) -> None:
    """Another one could not take the home, and nobody would know where the first one listens."""
    bundle = AgentBundle(tmp_path / "made")
    provider = LocalProvider(tmp_path / "local", SystemClock(), bundle.path, lambda: MACHINE)
    instance = await rent(provider)
    config = AgentConfig(node_id="n", token="t" * 32, home="")
    run = subprocess.run

    def killed_after(command: list[str], **options: Any) -> None:
        run(command, **options)
        raise Killed

    bundle.path()
    monkeypatch.setattr(subprocess, "run", killed_after)
    with pytest.raises(Killed):
        await provider.bootstrap(instance, config)
    monkeypatch.setattr(subprocess, "run", run)
    path, ready = provider._path(instance.id), provider._path(instance.id) / "home" / ".sky" / "agent.json"
    if agent_answers:
        await _until(ready.exists)
    started = node_processes(path)
    try:
        await LocalProvider(tmp_path / "local", SystemClock(), bundle.path, lambda: MACHINE).bootstrap(
            instance, config
        )
        await _until(ready.exists)
        assert (await provider.channel(instance)).startswith(f"http://{instance.address}:")
        assert set(node_processes(path)) == set(started)
        assert "another agent" not in (path / "agent.log").read_text()
    finally:
        await provider.delete(instance.id)
    assert node_processes(path) == []


async def _until(condition: Any, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


def test_the_agents_environment_holds_nothing_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "SKYLOOM_SERVICE_TOKEN",
        "DATABASE_URL",
        "REDIS_URL",
        "AWS_SECRET_ACCESS_KEY",
        "SKYLOOM_DEPLOYMENT_SECRET",
    ):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("https_proxy", "http://proxy:1")
    provider = LocalProvider(tmp_path, SystemClock(), no_bundle, lambda: MACHINE)
    environment = provider._environment(tmp_path / "n-1", {"gpu_indices": [2]})
    assert "secret" not in environment.values()
    assert (
        environment["HOME"] == str(tmp_path / "n-1" / "home") and environment["CUDA_VISIBLE_DEVICES"] == "2"
    )
    assert environment["https_proxy"] == "http://proxy:1" and "PATH" in environment
    json.dumps(environment)
