"""The providers under test. Each maker gives a fresh, empty world and the place where a node's files lie (None = nowhere)."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from skyloom_common.contracts.plan import Offer
from skyloom_common.core.clock import SystemClock
from skyloom_common.core.errors import InstanceNotFound
from skyloom_provisioner.providers.base import Provider
from skyloom_provisioner.providers.fake.agents import FakeAgents
from skyloom_provisioner.providers.fake.provider import FakeProvider
from skyloom_provisioner.providers.local.provider import LocalProvider

OFFER = Offer(
    cloud="fake", instance_type="small", region="r", zone="z", vcpus=1, memory_gib=1, price_per_hour=0.1
)


@dataclass
class Subject:
    """`again()` gives the provider as a new process would see it."""

    provider: Provider
    root: Path | None = None
    agents: FakeAgents | None = None

    def again(self) -> Provider:
        if self.root is None:
            return self.provider
        return LocalProvider(self.root, SystemClock(), self.provider._bundle)  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def agent_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("agent") / "agent.pyz"
    subprocess.run([sys.executable, "-m", "skyloom_agent.bundle", "--out", str(path)], check=True, timeout=60)
    return path


@pytest.fixture(params=["fake", pytest.param("local", marks=pytest.mark.integration)])
def subject(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Subject]:
    if request.param == "fake":
        agents = FakeAgents()
        yield Subject(FakeProvider(SystemClock(), offer_list=[OFFER], agents=agents), agents=agents)
        return
    file = request.getfixturevalue("agent_file")
    provider = LocalProvider(tmp_path / "local", SystemClock(), lambda: file)
    yield Subject(provider, root=tmp_path / "local")
    asyncio.run(_remove_all(provider))


async def _remove_all(provider: LocalProvider) -> None:
    for record in provider._records():
        try:
            await provider.delete(record["id"])
        except InstanceNotFound:
            continue
