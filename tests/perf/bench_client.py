"""How long people wait for the client alone: whole processes, medians, warm; the server answers from memory at once."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

RUNS = 21
CLUSTERS = 100
Row = tuple[str, float, str, str | None]


def run() -> list[Row]:
    sky = str(Path(sys.executable).parent / "sky")
    with tempfile.TemporaryDirectory() as home, _server() as endpoint:
        environment = {
            **os.environ, "HOME": home, "SKYLOOM_HOME": home, "SKYLOOM_API_SERVER_ENDPOINT": endpoint, "SKYLOOM_TOKEN": "t",
        }  # fmt: skip
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        return [
            ("sky --help", _median([sky, "--help"], environment), "ms", "<= 60"),
            (
                "sky status, 100 clusters, canned server",
                _median([sky, "status"], environment),
                "ms",
                "<= 150",
            ),
            ("sky launch --help", _median([sky, "launch", "--help"], environment), "ms", None),
            (
                "python -c 'import sky'",
                _median([sys.executable, "-c", "import sky"], environment),
                "ms",
                None,
            ),
            ("python -c pass", _median([sys.executable, "-c", "pass"], environment), "ms", None),
        ]


def _median(command: list[str], environment: dict[str, str]) -> float:
    times = []
    for _ in range(RUNS + 1):
        began = time.perf_counter()
        subprocess.run(
            command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times[1:])


@contextmanager
def _server() -> Iterator[str]:
    """Answers every GET with a hundred clusters, from a process-wide constant."""
    body = json.dumps({"clusters": [_cluster(number) for number in range(CLUSTERS)]}).encode()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def _cluster(number: int) -> dict[str, Any]:
    node = {
        "rank": 0,
        "id": f"n-{number}",
        "status": "UP",
        "address": "127.0.8.1",
        "heartbeat_age_seconds": 0.4,
    }
    return {
        "id": f"c-{number}", "name": f"cluster-{number}", "status": "UP", "user": "ann", "num_nodes": 2,
        "launched_at": 1.7e9, "resources": "2x(cpus=4, mem=16GB)", "cloud": "local", "region": "local",
        "instance_type": "local", "price_per_hour": 0.0, "autostop": {"idle_minutes": 10}, "head_ip": "127.0.8.1",
        "nodes": [node, {**node, "rank": 1}], "heartbeat_age_seconds": 0.4, "last_event": "up", "version": 3,
    }  # fmt: skip


if __name__ == "__main__":
    for name, value, unit, bar in run():
        print(f"{name:<45} {value:8.1f} {unit}  {bar or ''}")
