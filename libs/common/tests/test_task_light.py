"""What carries the task spec stays light: no YAML before it is needed, quick to parse, and Python 3.9 can run it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from skyloom_common.contracts.task.parse import parse_task_file

HERE = Path(__file__).parent
SOURCES = HERE.parents[0] / "src"
NORMAL = (HERE / "data" / "task" / "02-cheapest-of-three-clouds.yaml").read_text()
CODE = (
    "import sys; import skyloom_common.contracts.task.parse, skyloom_common.contracts.task.write, "
    "skyloom_common.contracts.task.expand, skyloom_common.contracts.task.support; print('yaml' in sys.modules)"
)


def test_importing_the_parser_does_not_import_yaml() -> None:
    found = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, check=True, timeout=60
    )
    assert found.stdout.strip() == "False"


def test_a_normal_file_parses_in_a_few_milliseconds() -> None:
    parse_task_file(NORMAL)
    best = min(_timed() for _ in range(20))
    assert best < 0.005


def _timed() -> float:
    started = time.perf_counter()
    parse_task_file(NORMAL)
    return time.perf_counter() - started


def _python39() -> str | None:
    """One that starts: a version manager's stand-in may be on PATH without a version behind it."""
    on_path = shutil.which("python3.9")
    if on_path is None:
        return None
    behind = Path(on_path).parents[1].glob("versions/3.9.*/bin/python")
    for python in (on_path, *map(str, behind)):
        if subprocess.run([python, "-c", ""], capture_output=True, timeout=60, check=False).returncode == 0:
            return python
    return None


@pytest.mark.integration
def test_python_3_9_reads_and_writes_every_file(tmp_path: Path) -> None:
    python = _python39()
    if python is None:
        pytest.skip("no Python 3.9 on this machine")
    # The C parser of this interpreter is no use to another one; its Python half is enough.
    shutil.copytree(
        Path(yaml.__file__).parent, tmp_path / "yaml", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    script = (
        "import sys\n"
        "from skyloom_common.contracts.task.expand import alternatives, apply_overrides\n"
        "from skyloom_common.contracts.task.model import TaskFile\n"
        "from skyloom_common.contracts.task.parse import parse_task_file\n"
        "from skyloom_common.contracts.task.support import unsupported_at_launch\n"
        "from skyloom_common.contracts.task.validate import validate_task\n"
        "from skyloom_common.contracts.task.write import task_file_to_yaml\n"
        "from skyloom_common.core.wire import dumps, loads\n"
        "for path in sys.argv[1:]:\n"
        "    file = parse_task_file(path)\n"
        "    assert parse_task_file(task_file_to_yaml(file)) == file\n"
        "    assert loads(TaskFile, dumps(file)) == file\n"
        "    for task in file.tasks:\n"
        "        alternatives(apply_overrides(task, {'cpus': '4+'}).resources)\n"
        "        unsupported_at_launch(task, features=())\n"
        "print('ok')\n"
    )
    files = [str(path) for path in sorted((HERE / "data" / "task").glob("*.yaml"))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SOURCES), str(tmp_path)])}
    found = subprocess.run(
        [python, "-W", "error", "-c", script, *files],
        capture_output=True,
        text=True,
        timeout=100,
        env=environment,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == "ok"
