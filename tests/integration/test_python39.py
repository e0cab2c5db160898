"""What runs on other people's machines imports on Python 3.9, and its annotations can be read there."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import h11
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("skyloom_common.core", "skyloom_common.contracts", "skyloom_agent")
SOURCES = (ROOT / "libs/common/src", ROOT / "services/agent/src")

# Runs on Python 3.9, so it keeps to what that knows.
PROBE = """
import dataclasses, importlib, pkgutil, sys, typing
count = 0
for package in sys.argv[1:]:
    root = importlib.import_module(package)
    names = [info.name for info in pkgutil.walk_packages(root.__path__, package + ".")]
    for name in [package] + [name for name in names if not name.endswith("__main__")]:
        module = importlib.import_module(name)
        for value in list(vars(module).values()):
            if isinstance(value, type) and dataclasses.is_dataclass(value) and value.__module__ == name:
                typing.get_type_hints(value)
                count += 1
print(sys.version_info[:2] == (3, 9), count)
"""

pytestmark = pytest.mark.integration


def python39(home: Path) -> str | None:
    """A 3.9 interpreter that starts: a shim on PATH may not lead to one."""
    found = [shutil.which("python3.9"), *map(str, sorted(home.glob(".pyenv/versions/3.9*/bin/python3.9")))]
    for candidate in filter(None, found):
        if subprocess.run([candidate, "-c", "pass"], capture_output=True, check=False).returncode == 0:
            return candidate
    return None


@pytest.fixture
def pure_dependencies(tmp_path: Path) -> Path:
    """PyYAML and h11 and nothing else, as they lie in the agent's zipapp."""
    for module in (yaml, h11):
        assert module.__file__ is not None
        (tmp_path / module.__name__).symlink_to(Path(module.__file__).parent)
    return tmp_path


def test_core_contracts_and_agent_import_on_python_3_9(developer_home: Path, pure_dependencies: Path) -> None:
    interpreter = python39(developer_home)
    if interpreter is None:
        pytest.skip("no Python 3.9 on PATH or in ~/.pyenv/versions")
    path = os.pathsep.join(map(str, [*SOURCES, pure_dependencies]))
    environment = {"PYTHONPATH": path, "PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [interpreter, "-c", PROBE, *PACKAGES], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    is_39, dataclass_count = done.stdout.split()
    assert is_39 == "True"
    assert int(dataclass_count) > 20
