"""The one file the agent is: what is in it, that it is always the same, and that every Python from 3.9 on runs it."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from skyloom_agent import bundle

VERSIONS = ("3.9", "3.10", "3.11", "3.12", "3.13")


def test_the_same_sources_give_the_same_bytes(tmp_path):
    one, two = bundle.build(tmp_path / "one.pyz"), bundle.build(tmp_path / "two.pyz")
    assert one.read_bytes() == two.read_bytes()
    assert one.stat().st_size < 400_000


def test_only_what_a_node_needs_is_in_it(tmp_path):
    path = bundle.build(tmp_path)
    assert path.name == "agent.pyz"
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        text = b"".join(archive.read(name) for name in names)
    assert {name.split("/")[0] for name in names} == {"__main__.py", "skyloom_agent", "skyloom_common", "h11"}
    assert {name.split("/")[1] for name in names if name.startswith("skyloom_common/")} == {
        "__init__.py",
        "core",
        "contracts",
    }
    assert b"import yaml" not in text and b"import pydantic" not in text


def test_the_bundle_command(tmp_path, capsys):
    assert bundle.main(["--out", str(tmp_path / "a.pyz")]) == 0
    assert "a.pyz" in capsys.readouterr().out


@pytest.mark.integration
@pytest.mark.parametrize("version", VERSIONS)
def test_every_python_runs_it(nodes, developer_home: Path, version, monkeypatch):
    found = sorted((developer_home / ".pyenv" / "versions").glob(f"{version}.*/bin/python"))
    if not found:
        pytest.skip(f"Python {version} is not installed under ~/.pyenv")
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    node = nodes.make(python=str(found[-1])).start()
    nodes.introduce([node])
    job_id = node.submit("echo hello; exit 3", setup="echo up", secrets={"S": "x"})
    log = node.logs(job_id, follow=True)
    assert b") hello\n" in log and node.job(job_id)["exit_codes"] == [3]
    assert node.request("GET", "/v1/info")["python"].startswith(version)
    runtime = list((node.home / ".sky" / "runtime").iterdir())
    assert len(runtime) == 1 and runtime[0].stat().st_mode & 0o777 == 0o700
    assert list(runtime[0].glob("skyloom_agent/__pycache__/runner*.pyc")), (
        "the runner starts from compiled files"
    )


@pytest.mark.integration
def test_old_unpacked_agents_do_not_pile_up(nodes):
    """Every new version unpacks itself: the one that runs and the one before it stay."""
    node = nodes.make()
    runtime = node.home / ".sky" / "runtime"
    for age in range(4):
        old = runtime / f"old{age}" / "skyloom_agent"
        old.mkdir(parents=True)
        (old / "runner.py").touch()
        os.utime(old.parent, (1e9 - age, 1e9 - age))
    node.start()
    [ours] = [path for path in runtime.iterdir() if (path / "complete").exists()]
    assert sorted(path.name for path in runtime.iterdir()) == sorted([ours.name, "old0"])
