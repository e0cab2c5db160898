"""The command against a real local stack: the one place where nothing is pretended. Slow, so few and long."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.slow]
pytest.importorskip("skyloom_standalone")


class Stack:
    def __init__(self, home: Path) -> None:
        self.home = home
        self.environment = {
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("SKYLOOM_", "SKYPILOT_"))
            },
            "SKYLOOM_HOME": str(home / "s"),
            "HOME": str(home),
        }

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "sky.cli.main", *words]
        return subprocess.Popen(
            command, env=self.environment, cwd=self.home, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, bufsize=0,
        )  # fmt: skip

    def sky(self, *words: str, code: int = 0) -> str:
        process = self.start(*words)
        out, err = process.communicate(timeout=90)
        assert process.returncode == code, (
            f"sky {' '.join(words)}: {process.returncode}\n{out!r}\n{err.decode()}"
        )
        return out.decode()

    def kill_server(self) -> None:
        pid = int(json.loads((self.home / "s" / "api.json").read_text())["pid"])
        os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    made = Stack(tmp_path_factory.mktemp("real"))
    try:
        yield made
    finally:
        if (made.home / "s" / "api.json").exists():
            made.start("down", "-a", "-y").communicate(timeout=90)
            made.start("api", "stop").communicate(timeout=60)


def test_from_nothing_to_a_log(stack: Stack) -> None:
    """No server runs: the first command starts it."""
    work = stack.home / "work"
    work.mkdir()
    (work / "data.txt").write_text("from the workdir\n")
    out = stack.sky("launch", "-y", "-c", "real", "--workdir", "work", "cat data.txt; exit 0")
    assert out.splitlines()[-1].endswith("from the workdir")
    assert "== Optimizer ==" in out
    rows = json.loads(stack.sky("status", "-o", "json"))
    assert [(row["name"], row["status"]) for row in rows] == [("real", "UP")]
    assert stack.sky("status", "--ip", "real").startswith("127.")


def test_exit_codes_of_jobs(stack: Stack) -> None:
    stack.sky("exec", "real", "exit 3", code=100)
    stack.sky("logs", "real", "--status", code=100)
    stack.sky("logs", "real", "999", code=102)
    stack.sky("exec", "real", "-d", "sleep 60")
    stack.sky("logs", "real", "--status", code=101)
    stack.sky("cancel", "-y", "real")
    stack.sky("logs", "real", "--status", code=103)


def test_a_follower_survives_a_killed_server(stack: Stack) -> None:
    """kill -9 in the middle of a log, a new server: every line once, and the exit code."""
    script = "for i in $(seq 1 1500); do echo line-$i; sleep 0.002; done; exit 4"
    follower = stack.start("exec", "real", script)
    assert follower.stdout is not None
    first = follower.stdout.readline()
    assert first.rstrip().endswith(b"line-1")
    stack.kill_server()
    stack.sky("api", "start")
    rest, err = follower.communicate(timeout=90)
    lines = [line.rpartition(b"line-")[2] for line in (first + rest).splitlines()]
    assert lines == [b"%d" % number for number in range(1, 1501)]
    assert b"broke" in err
    assert follower.returncode == 100


def test_the_sdk_in_another_process(stack: Stack) -> None:
    program = (
        "import sky; job, handle = sky.get(sky.exec(sky.Task(run='echo from python'), 'real'));"
        "print(handle.cluster_name, sky.tail_logs('real', job))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=stack.environment, capture_output=True, timeout=60, check=True
    )
    assert b"from python" in done.stdout
    assert done.stdout.endswith(b"real 0\n")


def test_down_leaves_nothing(stack: Stack) -> None:
    stack.sky("down", "-y", "real")
    assert json.loads(stack.sky("status", "-o", "json")) == []
    stack.sky("api", "stop")
    assert not (stack.home / "s" / "api.json").exists()
    deadline = time.monotonic() + 10
    while (left := processes_of(stack)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []


def processes_of(stack: Stack) -> list[Any]:
    """Whatever still mentions this stack's home on its command line or in its environment."""
    found = []
    mark = str(stack.home).encode()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (entry / "cmdline").read_bytes() or mark in (entry / "environ").read_bytes():
                found.append((entry.name, (entry / "cmdline").read_bytes()))
        except OSError:
            continue
    return [item for item in found if int(item[0]) != os.getpid()]
