"""What services, agents and versions agreed upon is in the golden files; `make golden` rewrites them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMES = [
    "openapi-optimizer.json",
    "openapi-provisioner.json",
    "openapi-gateway.json",
    "agent.json",
    "events.json",
]


@pytest.fixture
def golden(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """scripts/golden.py as a module; scripts are not on the path otherwise."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    spec = importlib.util.spec_from_file_location("golden", ROOT / "scripts" / "golden.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("members", None)


@pytest.mark.parametrize("name", NAMES)
def test_the_code_says_what_the_golden_file_says(golden: ModuleType, name: str) -> None:
    assert golden.difference(name) == "", "read the difference; if it is meant, run 'make golden'"


def test_every_golden_file_has_its_source_and_the_other_way_round(golden: ModuleType) -> None:
    assert {path.name for path in golden.GOLDEN.iterdir()} == set(golden.DOCUMENTS) == set(NAMES)
