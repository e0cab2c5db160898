"""The real thing as a process: start, reload, certificates, descriptors, drain."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import ssl
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from skyloom_lb.loop import ASYNCIO, UVLOOP
from skyloom_testing_lb import Start, balancers

pytestmark = pytest.mark.integration
LOOPS = (ASYNCIO, UVLOOP)


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    async with balancers() as make:
        yield make


async def wire(kit: Any, port: int, **options: Any) -> Any:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, **options)
    return kit.Wire(reader, writer)


async def test_wrong_settings_end_with_a_sentence() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "skyloom_lb.main", "--policy", "fastest", stderr=asyncio.subprocess.PIPE
    )
    _, words = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 2
    assert words.startswith(b"skyloom-lb: policy: 'fastest' is unknown")
    assert b"Traceback" not in words


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (("--port", "{used}"), 1, "host, port: 127.0.0.1:{used} cannot be listened on: is used by another"),
        (("--admin-port", "{used}"), 1, "admin_host, admin_port: 127.0.0.1:{used} cannot be listened on"),
        (
            ("--certfile", "/no/c", "--keyfile", "/no/k"),
            2,
            "certfile, keyfile: /no/c and /no/k are not a PEM",
        ),
        (("--access-log", "/no/log"), 1, "access_log: /no/log cannot be written: No such file"),
    ],
)
async def test_what_the_system_refuses_is_told_in_a_sentence(
    kit: Any, start: Start, tmp_path: Path, workers: str, flags: tuple[str, ...], code: int, words: str
) -> None:
    used, log = (await kit.endpoint()).port, tmp_path / "log"
    given = [one.format(used=used) for one in flags]
    lb = await start("--endpoint", "http://127.0.0.1:1", "--workers", workers, *given, wait=False, log=log)
    assert await asyncio.wait_for(lb.process.wait(), 20) == code
    said = [line for line in log.read_text().splitlines() if " INFO " not in line]
    assert len(said) == 1 and said[0].startswith("skyloom-lb: " + words.format(used=used)), said


async def test_a_balancer_that_never_knew_an_endpoint_is_not_ready(
    kit: Any, start: Start, tmp_path: Path
) -> None:
    file = tmp_path / "endpoints.yaml"
    lb = await start("--endpoints-file", str(file), wait=False)
    async with asyncio.timeout(20):
        while (answer := await lb.get("/readyz"))[0] == 0:
            await asyncio.sleep(0.05)
    assert answer[0] == 503 and "No such file" in json.loads(answer[1])["last_known_good"]["file"]
    assert await lb.counted('skyloom_lb_source_trouble{source="file"}') == 1
    file.write_text("[]")
    assert (await lb.ready())["last_known_good"] == {}
    assert await lb.counted('skyloom_lb_source_trouble{source="file"}') == 0
    file.write_text("")
    await lb.until_counted('skyloom_lb_source_trouble{source="file"}', 1.0)
    assert "write [] for no endpoints" in (await lb.ready())["last_known_good"]["file"]


async def test_nobody_outside_is_served_without_keys_unless_told_so() -> None:
    async def run(*flags: str) -> tuple[int | None, bytes]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "skyloom_lb.main", "--admin-port", "-1", "--port", "1", *flags,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        _, words = await asyncio.wait_for(process.communicate(), 20)
        return process.returncode, words

    code, words = await run("--host", "0.0.0.0", "--endpoint", "http://127.0.0.1:1", "--workers", "2")
    assert code == 2 and words.startswith(b"skyloom-lb: host: 0.0.0.0 is reachable from outside")
    assert b"--keys-file" in words and b"--open" in words and b"Traceback" not in words


async def test_an_open_balancer_says_so(kit: Any, start: Start, tmp_path: Path) -> None:
    endpoint = await kit.endpoint()
    lb = await start("--endpoint", endpoint.url, "--host", "0.0.0.0", "--open")
    assert (await lb.ready())["open"] is True
    local = await start("--endpoint", endpoint.url, SKYLOOM_LB_OPEN="1")
    assert (await local.ready())["open"] is False
    (tmp_path / "keys.yaml").write_text("keys: []")
    keyed = await start(
        "--endpoint", endpoint.url, "--host", "0.0.0.0", "--keys-file", str(tmp_path / "keys.yaml")
    )
    assert (await keyed.ready())["open"] is False
    one = await wire(kit, keyed.port)
    await one.send(kit.post(target=b"/echo"))
    assert (await one.message()).status == 401


async def test_a_reload_does_not_open_an_address(kit: Any, start: Start, tmp_path: Path) -> None:
    """Not even by saying that it listens elsewhere now."""
    endpoint = await kit.endpoint()
    keys, config = tmp_path / "keys.yaml", tmp_path / "lb.yaml"
    keys.write_text("keys: []")
    rest = f"services: {{default: {{endpoints: [{endpoint.url}]}}}}\n"
    config.write_text(f"host: 0.0.0.0\nkeys_file: {keys}\n{rest}")
    lb = await start("--config", str(config), "--host", "", SKYLOOM_LB_HOST="")
    one = await wire(kit, lb.port)

    async def status() -> int:
        await one.send(kit.post(target=b"/echo"))
        return int((await one.message()).status)

    assert await status() == 401
    for host in ("0.0.0.0", "127.0.0.1"):
        config.write_text(f"host: {host}\n{rest}")
        lb.signal(signal.SIGHUP)
        await asyncio.sleep(0.3)
        assert await status() == 401
    config.write_text(f"host: 0.0.0.0\nopen: true\n{rest}")
    lb.signal(signal.SIGHUP)
    async with asyncio.timeout(10):
        while await status() != 200:
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("loop", LOOPS)
async def test_more_clients_than_descriptors(kit: Any, start: Start, loop: str) -> None:
    """Those without a descriptor wait or are told; when others leave, everything goes on."""
    endpoint = await kit.endpoint()
    lb = await start("--endpoint", endpoint.url, "--max-connections", "10000", "--event-loop", loop, files=80)
    first = await wire(kit, lb.port)
    await first.send(kit.post(target=b"/echo"))
    assert (await first.message()).status == 200
    crowd = [await wire(kit, lb.port) for _ in range(150)]
    for _ in range(3):
        await first.send(kit.post(target=b"/echo"))
        assert (await first.message()).status in (200, 503)
    for one in crowd[:120]:
        one.reset()
    for one in (first, *crowd[120:], await wire(kit, lb.port)):
        await one.send(kit.post(target=b"/echo"))
        assert (await one.message()).status == 200
    assert lb.process.returncode is None


async def test_sigterm_under_500_streams_loses_none(kit: Any, start: Start) -> None:
    go, running = asyncio.Event(), 0

    async def stream(one: Any) -> None:
        nonlocal running
        await endpoint.request(one)
        await one.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        running += 1
        await go.wait()
        for number in range(3):
            await one.send(b"9\r\ndata: %d\n\n\r\n" % number)
        await one.send(b"0\r\n\r\n")

    endpoint = await kit.endpoint(stream)
    lb = await start("--endpoint", endpoint.url, "--drain-seconds", "20")
    wires = [await wire(kit, lb.port) for _ in range(500)]
    idle = await wire(kit, lb.port)
    for one in wires:
        await one.send(kit.post(target=b"/echo"))
    await kit.until(lambda: running == 500, 20)
    lb.process.send_signal(signal.SIGTERM)
    assert await idle.ended() == b""
    with pytest.raises(OSError):
        await wire(kit, lb.port)
    assert (await lb.get("/readyz"))[0] == 503
    go.set()
    for one in wires:
        got = await one.message()
        assert got.body == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"
        assert await one.ended() == b""
    assert await asyncio.wait_for(lb.process.wait(), 10) == 0


async def test_drain_has_a_bound(kit: Any, start: Start) -> None:
    async def hangs(one: Any) -> None:
        await endpoint.request(one)
        await one.reader.read()

    endpoint = await kit.endpoint(hangs)
    lb = await start("--endpoint", endpoint.url, "--drain-seconds", "0.5")
    one = await wire(kit, lb.port)
    await one.send(kit.post(target=b"/echo"))
    await kit.until(lambda: endpoint.requests)
    lb.process.send_signal(signal.SIGTERM)
    assert await one.ended() == b""
    assert await asyncio.wait_for(lb.process.wait(), 5) == 0


async def test_settings_are_reloaded_without_a_dropped_connection(
    kit: Any, start: Start, tmp_path: Path
) -> None:
    first, second = await kit.endpoint(), await kit.endpoint()
    config, access = tmp_path / "lb.yaml", tmp_path / "access.jsonl"
    config.write_text(f"services: {{default: {{endpoints: [{first.url}]}}}}\n")
    lb = await start("--config", str(config), "--access-log", str(access), "--admin-token", "t0k")
    one = await wire(kit, lb.port)

    async def served_by(endpoint: Any) -> bool:
        await one.send(kit.post(target=b"/echo"))
        return (await one.message()).body == b"%d 2" % endpoint.port

    assert await served_by(first)
    config.write_text(f"services: {{default: {{endpoints: [{second.url}], policy: round_robin}}}}\n")
    lb.process.send_signal(signal.SIGHUP)
    async with asyncio.timeout(10):
        while not await served_by(second):
            await asyncio.sleep(0.02)
    config.write_text("services: {default: {policy: nonsense}}\n")
    lb.process.send_signal(signal.SIGHUP)
    assert await served_by(second)
    assert (await lb.get("/metrics"))[0] == 401
    assert (await lb.get("/metrics", "wrong"))[0] == 401
    status, text = await lb.get("/debug/endpoints", "t0k")
    assert status == 200
    assert next(iter(json.loads(text)["default"].values()))["state"] in ("ready", "warming")
    rows: list[Any] = []
    async with asyncio.timeout(10):
        while len(rows) < 3:
            rows = [json.loads(line) for line in access.read_text().splitlines()] if access.exists() else []
            await asyncio.sleep(0.05)
    assert rows[0]["service"] == "default"
    assert rows[0]["status"] == 200
    assert rows[0]["lane"] == "fast"


async def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    made = await asyncio.create_subprocess_exec(
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
        "-keyout", str(key), "-out", str(cert), "-days", "2", "-subj", f"/CN={name}",
        "-addext", "subjectAltName=IP:127.0.0.1",
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert await made.wait() == 0
    return cert, key


async def test_tls_and_a_replaced_certificate(kit: Any, start: Start, tmp_path: Path) -> None:
    cert, key = await certificate(tmp_path, "one")
    endpoint = await kit.endpoint()
    lb = await start("--endpoint", endpoint.url, "--certfile", str(cert), "--keyfile", str(key))

    async def subject() -> tuple[str, Any]:
        context = ssl.create_default_context(cafile=str(cert))
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        one = await wire(kit, lb.port, ssl=context)
        raw = one.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return ssl.DER_cert_to_PEM_cert(raw).strip(), one

    before, kept = await subject()
    assert before == cert.read_text().strip()
    await kept.send(kit.post(b"x" * 100_000, target=b"/echo"))
    assert (await kept.message()).status == 200
    assert endpoint.requests[0].get(b"x-forwarded-proto") == b"https"
    await kept.send(kit.get(extra=b"Connection: X-Odd\r\n"))
    assert (await kept.message()).status == 200, "the careful lane takes over under TLS too"
    new_cert, new_key = await certificate(tmp_path, "two")
    os.replace(new_key, key)
    os.replace(new_cert, cert)
    async with asyncio.timeout(10):
        while (await subject())[0] != cert.read_text().strip():
            await asyncio.sleep(0.1)
    await kept.send(kit.post(target=b"/echo"))
    assert (await kept.message()).status == 200, "connections of before go on"
