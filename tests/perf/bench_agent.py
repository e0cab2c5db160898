"""The agent's bars: how fast it starts, what it weighs, how quickly a line and a job come through it.

`run()` gives rows (name, value, unit, bar): a number is at most, ">= n" at least, None is only shown.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from skyloom_agent import bundle

TOKEN = "bench"
HOST = "127.77.0.1"
Row = tuple[str, float, str, str | float | None]
_keys = itertools.count()

PRINTER = """
import sys, time
for number in range(300):
    sys.stdout.write(f"{time.monotonic()}\\n")
    sys.stdout.flush()
    time.sleep(0.01)
"""


class Bench:
    def __init__(self, folder: Path, cluster: int) -> None:
        self.pyz = bundle.build(folder)
        self.homes = [folder / f"n{rank}" for rank in range(cluster)]
        self.processes = [self._start(rank) for rank in range(cluster)]
        self._introduce()

    def _start(self, rank: int) -> subprocess.Popen[bytes]:
        home = self.homes[rank]
        home.mkdir(exist_ok=True)
        config = home / "config.json"
        values = {"node_id": f"bench-{os.getpid()}-{rank}", "token": TOKEN, "home": str(home), "port": 0}
        config.write_text(json.dumps({**values, "listen_host": f"127.77.0.{rank + 1}", "cpus": 64.0}))
        config.chmod(0o600)
        return self.start_again(rank)

    def start_again(self, rank: int) -> subprocess.Popen[bytes]:
        ready = self.homes[rank] / ".sky" / "agent.json"
        ready.unlink(missing_ok=True)
        command = [sys.executable, str(self.pyz), "--config", str(self.homes[rank] / "config.json")]
        env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=env)
        deadline = time.monotonic() + 20
        while not ready.exists():
            if time.monotonic() > deadline or process.poll() is not None:
                raise RuntimeError("the agent did not start")
            time.sleep(0.002)
        return process

    def url(self, rank: int) -> str:
        return str(json.loads((self.homes[rank] / ".sky" / "agent.json").read_text())["url"])

    def _introduce(self) -> None:
        peers = [
            {"rank": rank, "node_id": str(rank), "address": f"127.77.0.{rank + 1}", "url": self.url(rank)}
            for rank in range(len(self.homes))
        ]
        for rank in range(len(self.homes)):
            body = {"cluster_name": "b", "cluster_id": "b", "rank": rank, "generation": 1, "peers": peers}
            self.request("PUT", "/v1/cluster", body, rank)

    def open(self, method: str, path: str, body: Any = None, rank: int = 0) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(urlsplit(self.url(rank)).netloc, timeout=60)
        payload = None if body is None else json.dumps(body)
        connection.request(method, path, payload, {"Authorization": f"Bearer {TOKEN}"})
        return connection.getresponse()

    def request(self, method: str, path: str, body: Any = None, rank: int = 0) -> Any:
        return json.loads(self.open(method, path, body, rank).read())

    def submit(self, run: str, num_nodes: int = 1) -> int:
        body = {"key": str(next(_keys)), "name": "bench", "user": "b", "run": run, "num_nodes": num_nodes}
        return int(self.request("POST", "/v1/jobs", body)["job_id"])

    def end(self) -> None:
        for rank, process in enumerate(self.processes):
            if process.poll() is None:
                self.open("POST", "/v1/shutdown", rank=rank).read()
                process.wait(20)


@contextmanager
def bench(cluster: int) -> Iterator[Bench]:
    with tempfile.TemporaryDirectory() as folder:
        made = Bench(Path(folder), cluster)
        try:
            yield made
        finally:
            made.end()


def start_seconds(made: Bench, times: int = 5) -> float:
    """From exec to listening, its files unpacked and compiled."""
    took = []
    for _ in range(times):
        made.processes[0].send_signal(signal.SIGTERM)
        made.processes[0].wait(10)
        began = time.monotonic()
        made.processes[0] = made.start_again(0)
        took.append(time.monotonic() - began)
    return statistics.median(took)


def first_start_seconds(made: Bench) -> float:
    """On a node that never ran this agent: it unpacks and compiles itself."""
    for cached in (made.homes[0] / ".sky" / "runtime").iterdir():
        shutil.rmtree(cached)
    return start_seconds(made, 1)


def resident_mb(made: Bench) -> float:
    status = Path(f"/proc/{made.processes[0].pid}/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS"))


def line_p99_ms(made: Bench, rank: int) -> float:
    """Printed by a rank, seen by a follower of the merged log on the head."""
    script = f"[ $SKYPILOT_NODE_RANK = {rank} ] || exit 0\nexec {sys.executable} -c '{PRINTER}'"
    job_id = made.submit(script, num_nodes=rank + 1)
    response = made.open("GET", f"/v1/jobs/{job_id}/logs?follow=1")
    late = []
    for line in response:
        late.append(time.monotonic() - float(line.rpartition(b" ")[2]))
    return 1000 * statistics.quantiles(late[10:], n=100)[98]


def running_ms(made: Bench) -> float:
    """From the submit to RUNNING, as told by the heartbeats."""
    took = []
    for _ in range(5):
        watch = made.open("GET", "/v1/watch")
        watch.readline()
        began = time.monotonic()
        job_id = made.submit("sleep 0.2")
        while not any(
            job["job_id"] == job_id and job["status"] == "RUNNING"
            for job in json.loads(watch.readline()).get("jobs", [])
        ):
            pass
        took.append(time.monotonic() - began)
        made.open("GET", f"/v1/jobs/{job_id}/logs?follow=1").read()
    return 1000 * statistics.median(took)


def output_mb_per_second(made: Bench) -> float:
    """A million lines of 100 bytes, from the job's start to the follower's last byte."""
    script = f"{sys.executable} -c \"import sys\nblock = ('x' * 99 + chr(10)) * 1000\nfor _ in range(1000): sys.stdout.write(block)\""
    began = time.monotonic()
    job_id = made.submit(script)
    size = sum(len(part) for part in iter(made.open("GET", f"/v1/jobs/{job_id}/logs?follow=1").read1, b""))
    if size < 100_000_000:
        raise RuntimeError(f"only {size} bytes came")
    return 100 / (time.monotonic() - began)


def run() -> list[Row]:
    with bench(2) as made:
        rows: list[Row] = [
            ("agent: RSS, idle", resident_mb(made), "MB", 40.0),
            ("agent: first start on a node", first_start_seconds(made), "s", 1.0),
            ("agent: start", start_seconds(made), "s", 1.0),
            ("agent: submit to RUNNING", running_ms(made), "ms", 150.0),
            ("agent: line to follower, head, p99", line_p99_ms(made, 0), "ms", 50.0),
            ("agent: line to follower, worker, p99", line_p99_ms(made, 1), "ms", 50.0),
            ("agent: 1 M lines of 100 bytes to a follower", output_mb_per_second(made), "MB/s", ">= 50"),
            ("agent: RSS after 100 MB of output", resident_mb(made), "MB", None),
        ]
    return rows


if __name__ == "__main__":
    for name, value, unit, bar in run():
        print(f"{name:50} {value:8.2f} {unit:5} {'' if bar is None else f'bar {bar}'}")
