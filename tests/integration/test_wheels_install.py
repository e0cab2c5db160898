"""The wheels install on their own: the thin client stays thin, and the whole of it brings a working `sky`.

Needs a package index for the dependencies; skipped with the reason where none is reached.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
THIN_CLIENT_LIMIT = 10 * 1000 * 1000
SERVICES = (
    "skyloom-agent",
    "skyloom-gateway",
    "skyloom-optimizer",
    "skyloom-provisioner",
    "skyloom-standalone",
)

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(400)]


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@dataclass(frozen=True)
class Environment:
    """A fresh virtual environment, and the folder of wheels that are put into it."""

    folder: Path
    wheels: Path

    def run(self, script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return run(self.folder / "bin" / script, *arguments)

    def install(self, *names: str) -> None:
        """From files: an index must never be asked for our own distributions."""
        files = [path for name in names for path in self.wheels.glob(f"{name}-0.1.0-*.whl")]
        done = self.run("pip", "install", "-q", *files)
        assert done.returncode == 0, done.stderr

    def size(self) -> int:
        (packages,) = self.folder.glob("lib/python*/site-packages")
        return sum(path.stat().st_size for path in packages.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    built = run(sys.executable, ROOT / "scripts" / "wheels.py", folder)
    assert built.returncode == 0, built.stderr
    return folder


def fresh(folder: Path, wheels: Path) -> Environment:
    venv.create(folder / "venv", with_pip=True)
    environment = Environment(folder / "venv", wheels)
    probe = environment.run("pip", "download", "-q", "--no-deps", "-d", folder / "probe", "click")
    if probe.returncode != 0:
        pytest.skip(f"no package index is reached: {probe.stderr.strip().splitlines()[-1]}")
    return environment


@pytest.fixture(scope="module")
def thin_client(tmp_path_factory: pytest.TempPathFactory, wheels: Path) -> tuple[Environment, int]:
    """An environment with skyloom-client, and how many bytes that took."""
    environment = fresh(tmp_path_factory.mktemp("thin"), wheels)
    before = environment.size()
    environment.install("skyloom_client", "skyloom_common")
    return environment, environment.size() - before


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory, wheels: Path) -> Environment:
    environment = fresh(tmp_path_factory.mktemp("whole"), wheels)
    environment.install("skyloom", "skyloom_*")
    return environment


def required_by(environment: Environment, name: str) -> set[str]:
    shown = environment.run("pip", "show", name).stdout
    (line,) = [line for line in shown.splitlines() if line.startswith("Requires:")]
    return set(line.removeprefix("Requires:").replace(" ", "").split(","))


def test_the_thin_client_is_at_most_ten_megabytes(thin_client: tuple[Environment, int]) -> None:
    _, installed = thin_client
    print(f"skyloom-client with its dependencies: {installed / 1e6:.1f} MB")
    assert installed <= THIN_CLIENT_LIMIT


def test_the_thin_client_alone_answers_help(thin_client: tuple[Environment, int]) -> None:
    environment, _ = thin_client
    helped = environment.run("sky", "--help")
    assert helped.returncode == 0, helped.stderr
    assert "Usage: sky" in helped.stdout


def test_the_meta_distribution_asks_for_client_and_local_stack(everything: Environment) -> None:
    assert required_by(everything, "skyloom") == {"skyloom-client", "skyloom-standalone"}
    services = set(SERVICES) - {"skyloom-standalone"}
    assert services <= required_by(everything, "skyloom-standalone")
    checked = everything.run("pip", "check")
    assert checked.returncode == 0, checked.stdout


def test_the_whole_installation_answers_help(everything: Environment) -> None:
    helped = everything.run("sky", "--help")
    assert helped.returncode == 0, helped.stderr
    assert "Usage: sky" in helped.stdout


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_script_is_there_and_imports(everything: Environment, name: str) -> None:
    assert (everything.folder / "bin" / name).exists()
    imported = everything.run("python", "-c", f"import {name.replace('-', '_')}.main")
    assert imported.returncode == 0, imported.stderr
