"""The local server's bars: cold start, what all its processes weigh when idle, and status calls per second.

The calls come from another process over 20 kept-alive connections; the 10 clusters are real ones of the local provider.
`run()` gives rows (name, value, unit, bar).
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

Row = tuple[str, float, str, str]
CLIENTS, CLUSTERS, SECONDS, STARTS = 20, 10, 5.0, 5
IDLE_SECONDS = 10.0


class Server:
    """A whole local stack in a home of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._environ = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SKYLOOM_", "SKYPILOT_")) and name not in ("DATABASE_URL", "REDIS_URL")
        }
        self._environ.pop("PYTHONDONTWRITEBYTECODE", None)
        self._environ["SKYLOOM_HOME"] = str(home)

    def start(self) -> float:
        """Seconds from nothing to the server's own word that it answers."""
        reader, writer = os.pipe()
        began = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "skyloom_standalone", "--port", "0", "--ready-fd", str(writer)],
            env=self._environ,
            pass_fds=[writer],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(writer)
        with os.fdopen(reader) as pipe:
            word = json.loads(pipe.readline())
        took = time.perf_counter() - began
        self.url: str = word["url"]
        self.token = (self.home / "token").read_text().strip()
        return took

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)

    def tree(self) -> list[psutil.Process]:
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def call(self, method: str, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            f"{self.url}/api/v1{path}",
            None if body is None else json.dumps(body).encode(),
            {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def wait_for(self, operations: list[str]) -> None:
        deadline = time.monotonic() + 180
        while operations:
            found = self.call("GET", f"/operations/{operations[0]}")
            if found["status"] == "SUCCEEDED":
                operations = operations[1:]
                continue
            if found["status"] in ("FAILED", "CANCELLED") or time.monotonic() > deadline:
                raise RuntimeError(f"{found['target']}: {found}")
            time.sleep(0.2)


def pss_mb(server: Server) -> float:
    total = 0
    for process in server.tree():
        rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        total += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return total / 1024


def idle_cpu_percent(server: Server) -> float:
    def used() -> float:
        return sum(sum(process.cpu_times()[:2]) for process in server.tree())

    before = used()
    time.sleep(IDLE_SECONDS)
    return 100 * (used() - before) / IDLE_SECONDS


@contextmanager
def clusters(server: Server, count: int) -> Iterator[None]:
    names = [f"bench{number}" for number in range(count)]
    resources: dict[str, Any] = {"task": {"name": "b"}}
    try:
        server.wait_for([server.call("POST", f"/clusters/{name}/launch", resources)["id"] for name in names])
        yield
    finally:
        server.wait_for([server.call("POST", f"/clusters/{name}/down", {})["id"] for name in names])


def load(server: Server) -> tuple[float, list[float]]:
    """Calls per second and each call's milliseconds, from a process of its own."""
    command = [sys.executable, __file__, server.url, server.token, str(CLIENTS), str(SECONDS)]
    found = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=120).stdout)
    return found["per_second"], found["milliseconds"]


async def _client(host: str, port: int, token: str, until: float, took: list[float]) -> None:
    reader, writer = await asyncio.open_connection(host, port)
    request = (
        f"GET /api/v1/clusters HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
    )
    while (began := time.perf_counter()) < until:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(head.decode())
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        body = await reader.readexactly(length)
        took.append(1000 * (time.perf_counter() - began))
    assert json.loads(body)["clusters"]
    writer.close()


async def _load(url: str, token: str, clients: int, seconds: float) -> None:
    host, port = url.removeprefix("http://").split(":")
    took: list[float] = []
    began = time.perf_counter()
    await asyncio.gather(*(_client(host, int(port), token, began + seconds, took) for _ in range(clients)))
    per_second = len(took) / (time.perf_counter() - began)
    print(json.dumps({"per_second": per_second, "milliseconds": took}))


def run() -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="skyloom-bench-") as folder:
        server = Server(Path(folder) / "h")
        cold = []
        for number in range(STARTS):
            cold.append(server.start())
            if number < STARTS - 1:
                server.stop()
        try:
            time.sleep(3)
            weight, busy = pss_mb(server), idle_cpu_percent(server)
            with clusters(server, CLUSTERS):
                rates = [load(server) for _ in range(3)]
                after = pss_mb(server)
        finally:
            server.stop()
    per_second, milliseconds = sorted(rates)[1]
    tail = statistics.quantiles(milliseconds, n=100)
    return [
        ("server: cold start (Valkey, migrations, all services)", statistics.median(cold), "s", "<= 2"),
        ("server: all processes when idle, PSS", weight, "MB", "<= 256"),
        ("server: all processes when idle, CPU of one core", busy, "%", "<= 2"),
        (f"server: status calls, {CLIENTS} clients, {CLUSTERS} clusters", per_second, "calls/s", ">= 500"),
        ("server: status call, p50", tail[49], "ms", ""),
        ("server: status call, p99", tail[98], "ms", ""),
        (f"server: PSS with {CLUSTERS} clusters (agents are not its own)", after, "MB", ""),
    ]


if __name__ == "__main__":
    if len(sys.argv) == 5:
        asyncio.run(_load(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
    else:
        for row in run():
            print(row)
