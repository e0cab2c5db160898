"""The bars a person feels, measured from outside: whole `sky` processes against a real local stack, medians, warm."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "kit"))

from skyloom_testing_stack import SKY, Stack, wait_until

Row = tuple[str, float, str, str]
ROUNDS = 7


@contextmanager
def fresh_stack() -> Iterator[Stack]:
    with tempfile.TemporaryDirectory(prefix="skyloom-bench-") as folder:
        work = Path(folder) / "w"
        work.mkdir()
        stack = Stack(Path(folder) / "h", work)
        try:
            yield stack
        finally:
            stack.close()


def seconds_of(stack: Stack, *args: str) -> float:
    started = time.perf_counter()
    stack.sky(*args)
    return time.perf_counter() - started


def run() -> list[Row]:
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with fresh_stack() as stack:
        stack.sky("api", "start")
        rows = [*_starts(stack), *_launch_and_exec(stack), *_line_latency(stack)]
    with fresh_stack() as stack:
        return [*rows, *_status_of_many(stack)]


def _starts(stack: Stack) -> list[Row]:
    helps = statistics.median(seconds_of(stack, "--help") for _ in range(15))
    return [("sky --help, whole process", helps * 1000, "ms", "<= 60")]


def _launch_and_exec(stack: Stack) -> list[Row]:
    """RUNNING = the moment the run script writes its own time, on the same clock as the start of the command."""
    launches, execs = [], []
    for number in range(3):
        launches.append(_to_running(stack, "launch", "-y", "-d", "-c", f"new{number}"))
        stack.sky("down", "-y", f"new{number}")
    stack.sky("launch", "-y", "-c", "warm", "true")
    for _ in range(ROUNDS):
        execs.append(_to_running(stack, "exec", "warm", "-d"))
    return [
        (
            "sky launch on a new one-node local cluster -> job running",
            statistics.median(launches),
            "s",
            "<= 3",
        ),
        ("sky exec -> job running on an existing cluster", statistics.median(execs) * 1000, "ms", "<= 300"),
    ]


def _to_running(stack: Stack, *command: str) -> float:
    mark = stack.work / "mark"
    mark.unlink(missing_ok=True)
    started = time.time()
    stack.sky(*command, f"date +%s.%N > {mark}.new && mv {mark}.new {mark}")
    wait_until(mark.exists, seconds=30, what="the job ran")
    return float(mark.read_text()) - started


def _line_latency(stack: Stack) -> list[Row]:
    """The job prints its clock, the follower's reader takes its own: same machine, same clock."""
    count = 200
    script = f"{sys.executable} -u -c 'import time\nfor i in range({count}): print(\"t=%.6f\" % time.time()); time.sleep(0.02)'"
    stack.sky("exec", "warm", "-d", script)
    follower = subprocess.Popen([SKY, "logs", "warm"], env=stack.env, cwd=stack.work, stdout=subprocess.PIPE)
    assert follower.stdout is not None
    delays = []
    for line in follower.stdout:
        found = re.search(rb"t=(\d+\.\d+)", line)
        if found:
            delays.append(time.time() - float(found[1]))
    follower.wait(30)
    live = sorted(delays[count // 4 :])  # the first ones were written before the follower was there
    if len(delays) < count:
        raise AssertionError(f"{len(delays)} of {count} lines arrived")
    return [
        ("a job's line -> the follower's screen, p50", live[len(live) // 2] * 1000, "ms", ""),
        ("a job's line -> the follower's screen, p99", live[int(len(live) * 0.99)] * 1000, "ms", "<= 100"),
    ]


def _status_of_many(stack: Stack, count: int = 100) -> list[Row]:
    """A stopped cluster's row is copied in the database: what is measured is reading, sending and drawing many."""
    stack.sky("launch", "-y", "-c", "c0", "true")
    stack.sky("stop", "-y", "c0")
    stack.sky("api", "stop")
    with contextlib.closing(sqlite3.connect(stack.home / "db" / "provisioner.db")) as database, database:
        database.row_factory = sqlite3.Row
        row = dict(database.execute("SELECT * FROM clusters WHERE name = 'c0'").fetchone())
        for number in range(1, count):
            row |= {"id": f"{number:026d}", "name": f"c{number}"}
            marks = ", ".join("?" * len(row))
            database.execute(f"INSERT INTO clusters ({', '.join(row)}) VALUES ({marks})", list(row.values()))
    stack.sky("api", "start")
    if stack.sky("status").count("STOPPED") != count:
        raise AssertionError(f"sky status does not show {count} clusters")
    shown = statistics.median(seconds_of(stack, "status") for _ in range(15))
    return [(f"sky status, local stack with {count} clusters, whole process", shown * 1000, "ms", "<= 150")]


if __name__ == "__main__":
    for row in run():
        print(row)
