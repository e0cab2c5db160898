"""Every import contract of the root pyproject.toml can fail: a copy that breaks each of them is refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Contract -> a module that breaks it, and what is in it.
BREAKERS = {
    "Inside common, imports go downwards": (
        "skyloom_common/core/upwards.py",
        "import skyloom_common.contracts",
    ),
    "A service never imports another; sky imports none": (
        "skyloom_lb/sideways.py",
        "import skyloom_optimizer",
    ),
    "Nothing imports standalone, and common imports no member": (
        "skyloom_gateway/up.py",
        "import skyloom_standalone",
    ),
    "sky and the agent use only core, contracts and clients": (
        "skyloom_agent/deep.py",
        "import skyloom_common.bus",
    ),
    "What runs on other people's machines needs no server libraries": ("sky/heavy.py", "import pydantic"),
    "Decision modules import no I/O": ("skyloom_lb/pipeline.py", "import skyloom_lb.helper"),
    "A cloud's SDK appears in its provider and nowhere else": (
        "skyloom_provisioner/providers/gcp/stray.py",
        "import boto3",
    ),
    "Clouds do not know each other": (
        "skyloom_provisioner/providers/fake/peek.py",
        "import skyloom_provisioner.providers.local",
    ),
    "Production does not import the testing kit": (
        "skyloom_gateway/shortcut.py",
        "import skyloom_common.testing",
    ),
}
HELPERS = {
    "skyloom_provisioner/providers/local/__init__.py": "",
    "skyloom_lb/helper.py": "import asyncio",
    "skyloom_provisioner/providers/aws/allowed.py": "import boto3",
}

pytestmark = pytest.mark.integration


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    for source in (*ROOT.glob("libs/*/src"), *ROOT.glob("services/*/src")):
        shutil.copytree(source, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def write(sources: Path, name: str, text: str) -> None:
    path = sources / name
    path.parent.mkdir(parents=True, exist_ok=True)
    for package in path.relative_to(sources).parents[:-1]:
        (sources / package / "__init__.py").touch()
    path.write_text(f"{text}\n", encoding="utf-8")


def lint_imports(sources: Path) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command as run; run()",
        "--no-cache",
    ]
    return subprocess.run(
        [*command, "--config", str(ROOT / "pyproject.toml")],
        cwd=sources,
        env={**os.environ, "PYTHONPATH": str(sources), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_contract_is_broken_by_what_it_forbids(sources: Path) -> None:
    for name, text in (*BREAKERS.values(), *HELPERS.items()):
        write(sources, name, text)
    report = lint_imports(sources)
    assert report.returncode == 1, report.stderr
    for contract in BREAKERS:
        assert f"{contract} BROKEN" in report.stdout, contract
    assert " KEPT" not in report.stdout, "a contract has no breaker here"
    assert "providers.aws.allowed" not in report.stdout, "a provider may use its own cloud's SDK"


def test_the_sources_as_they_are_keep_every_contract(sources: Path) -> None:
    report = lint_imports(sources)
    assert report.returncode == 0, report.stdout + report.stderr
    assert report.stdout.count(" KEPT") == len(BREAKERS)
