"""The local stack's process from outside: start, word, files, second instance, ports, stop, sudden death."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from skyloom_testing_stack import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]


class Standalone:
    """One home; `start` gives the word that came through the ready descriptor."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.env = {**os.environ, "SKYLOOM_HOME": str(home), "HOME": str(home.parent)}
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, *arguments: str, **env: str) -> dict[str, Any]:
        reader, writer = os.pipe()
        process = subprocess.Popen(
            [sys.executable, "-m", "skyloom_standalone", "--ready-fd", str(writer), *arguments],
            env={**self.env, **env},
            pass_fds=[writer],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        self.started.append(process)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            return dict(json.loads(pipe.readline()))

    @property
    def process(self) -> subprocess.Popen[bytes]:
        return self.started[-1]

    def stop(self) -> float:
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) == 0
        return time.monotonic() - began

    def api(self) -> dict[str, Any]:
        return dict(json.loads((self.home / "api.json").read_text()))

    def get(self, path: str, token: str | None = None) -> tuple[int, bytes]:
        with_token = (self.home / "token").read_text().strip() if token is None else token
        connection = http.client.HTTPConnection(self.api()["url"].removeprefix("http://"), timeout=10)
        connection.request("GET", path, headers={"Authorization": f"Bearer {with_token}"})
        answer = connection.getresponse()
        return answer.status, answer.read()

    def redis(self) -> list[psutil.Process]:
        """Servers on this home's socket, whoever their parent is by now."""
        found = []
        for process in psutil.process_iter(["cmdline", "status"]):
            line = " ".join(process.info["cmdline"] or ())
            if str(self.home / "run") in line and "skyloom_standalone" not in line:
                found.append(process)
        return found


@pytest.fixture
def standalone(tmp_path: Path) -> Iterator[Standalone]:
    made = Standalone(tmp_path / "h")
    yield made
    for process in made.started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_start_word_files_and_stop(standalone: Standalone) -> None:
    word = standalone.start("--port", "0")
    home = standalone.home
    assert word == {"url": standalone.api()["url"], "pid": standalone.process.pid}
    assert standalone.api()["pid"] == standalone.process.pid
    assert standalone.api()["version"]
    for private in ("api.json", "token", "logs/server.log", "db/provisioner.db", "standalone.lock"):
        assert _mode(home / private) == 0o600, private
    for folder in ("", "logs", "db", "run"):
        assert _mode(home / folder) == 0o700, folder
    status, body = standalone.get("/api/v1/info")
    info = json.loads(body)
    assert (status, info["status"], info["store"]) == (200, "healthy", "sqlite")
    assert info["bus"].split()[0] in ("valkey", "redis")
    assert standalone.get("/api/v1/info", "wrong")[0] == 401
    assert b"ready at" in standalone.get("/api/v1/server-logs?tail=50")[1]
    # The services behind the gateway listen nowhere.
    ports = {
        c.laddr.port
        for process in (
            psutil.Process(standalone.process.pid),
            *psutil.Process(standalone.process.pid).children(),
        )
        for c in process.net_connections("tcp")
        if c.status == psutil.CONN_LISTEN
    }
    assert ports == {int(word["url"].rpartition(":")[2])}
    assert standalone.stop() < 5
    assert not (home / "api.json").exists()
    assert standalone.redis() == []
    token = (home / "token").read_text()
    standalone.start("--port", "0")
    assert (home / "token").read_text() == token
    standalone.stop()


def test_no_secret_is_in_the_log_or_on_a_command_line(standalone: Standalone) -> None:
    standalone.start("--port", "0", SKYLOOM_LOG_LEVEL="DEBUG")
    token = (standalone.home / "token").read_text().strip()
    standalone.get("/api/v1/clusters")
    standalone.get("/api/v1/clusters?token=" + token)
    log = (standalone.home / "logs" / "server.log").read_text()
    assert "path=/api/v1/clusters" in log
    assert token not in log
    secret = (standalone.home / "secret").read_text().strip()
    processes = [psutil.Process(standalone.process.pid), *psutil.Process(standalone.process.pid).children()]
    for process in processes:
        seen = " ".join(process.cmdline()) + str(process.environ())
        assert token not in seen
        assert secret not in seen
    standalone.stop()


def test_a_second_one_is_told_of_the_first(standalone: Standalone) -> None:
    first = standalone.start("--port", "0")
    error = standalone.start("--port", "0")["error"]
    assert first["url"] in error["message"]
    assert str(first["pid"]) in error["message"]
    assert "sky api stop" in error["hint"]
    second = standalone.started.pop()
    assert second.wait(10) == 3
    second.communicate()
    assert standalone.get("/api/v1/info")[0] == 200
    standalone.stop()


def test_ports_that_are_taken(standalone: Standalone) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        error = standalone.start("--port", str(port))["error"]
        assert error["message"] == f"cannot listen on 127.0.0.1:{port}: Address already in use"
        assert standalone.process.wait(10) == 1
    preferred = _hold_preferred_port()
    try:
        word = standalone.start()
        assert not word["url"].endswith(":46580")
        assert standalone.get("/api/v1/info")[0] == 200
        standalone.stop()
    finally:
        if preferred is not None:
            preferred.close()


def _hold_preferred_port() -> socket.socket | None:
    """None: somebody else holds it, which serves as well."""
    try:
        return socket.create_server(("127.0.0.1", 46580))
    except OSError:
        return None


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"SKYLOOM_PORT": "many"}, "SKYLOOM_PORT: 'many' is not valid"),
        ({"REDIS_URL": "tcp://x"}, "REDIS_URL: 'tcp://x' is not valid"),
        ({"REDIS_URL": "redis://127.0.0.1:1"}, None),
        ({"SKYLOOM_HOME": "/proc/none"}, "the state directory /proc/none cannot be used"),
    ],
)
def test_a_bad_setting_is_one_clear_word(
    standalone: Standalone, env: dict[str, str], words: str | None
) -> None:
    word = standalone.start("--port", "0", **env)
    if words is None:
        # A bus that is away costs latency, not the start.
        assert "url" in word
        standalone.stop()
        return
    assert words in word["error"]["message"]
    assert standalone.process.wait(10) in (1, 2)


def test_sudden_death_leaves_nothing_and_blocks_nobody(standalone: Standalone) -> None:
    standalone.start("--port", "0")
    assert len(standalone.redis()) == 1
    standalone.process.kill()
    standalone.process.wait(10)
    wait_until(lambda: not standalone.redis(), seconds=5, what="the embedded Redis died with its parent")
    word = standalone.start("--port", "0")
    assert standalone.api()["pid"] == word["pid"]
    assert standalone.get("/api/v1/info")[0] == 200
    standalone.stop()


def test_redis_killed_comes_back_under_the_same_address(standalone: Standalone) -> None:
    standalone.start("--port", "0")
    [redis] = standalone.redis()
    redis.kill()
    wait_until(
        lambda: [p for p in standalone.redis() if p.pid != redis.pid], seconds=5, what="a new Redis runs"
    )

    def healthy() -> bool:
        info = json.loads(standalone.get("/api/v1/info")[1])
        return bool(info["status"] == "healthy" and info["bus"].split()[0] in ("valkey", "redis"))

    wait_until(healthy, seconds=10, what="the server is healthy again")
    standalone.stop()


def test_a_full_disk_leaves_room_for_another_start(standalone: Standalone) -> None:
    """What was set aside is given back when it starts, whatever filled the disk meanwhile."""
    standalone.start("--port", "0")
    reserve = standalone.home / "run" / "reserve"
    wait_until(reserve.exists, seconds=10, what="room is set aside")
    wait_until(lambda: reserve.stat().st_blocks * 512 >= 4 << 20, seconds=5, what="it is really taken")
    standalone.process.kill()
    standalone.process.wait(10)
    os.utime(reserve, (1, 1))
    standalone.start("--port", "0")
    assert not reserve.exists() or reserve.stat().st_mtime > 1
    standalone.stop()


def test_open_streams_do_not_hold_up_a_stop(standalone: Standalone) -> None:
    word = standalone.start("--port", "0")
    host, _, port = word["url"].removeprefix("http://").partition(":")
    token = (standalone.home / "token").read_text().strip()
    with socket.create_connection((host, int(port))) as follower:
        request = (
            f"GET /api/v1/server-logs?follow=1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n"
        )
        follower.sendall(request.encode())
        assert b"200 OK" in follower.recv(65536)
        assert standalone.stop() < 5


def test_detached_it_outlives_its_starter(standalone: Standalone) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "skyloom_standalone", "--detach", "--port", "0"],
        env=standalone.env,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    server = psutil.Process(standalone.api()["pid"])
    try:
        assert done.stdout.strip() == standalone.api()["url"]
        assert standalone.get("/api/v1/info")[0] == 200
        assert os.getsid(server.pid) == server.pid
        again = subprocess.run(
            [sys.executable, "-m", "skyloom_standalone", "--detach"],
            env=standalone.env, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert again.returncode == 3
        assert "running already" in again.stderr
    finally:
        server.terminate()
        server.wait(20)
    assert standalone.redis() == []
