"""The real thing as processes: start, reload, workers, certificates, drain."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import ssl
import sys
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.integration


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Process:
    def __init__(self, process: asyncio.subprocess.Process, port: int, admin: int) -> None:
        self.process, self.port, self.admin = process, port, admin

    async def get(self, path: str, token: str = "") -> tuple[int, str]:
        def fetch() -> tuple[int, str]:
            request = urllib.request.Request(f"http://127.0.0.1:{self.admin}{path}")
            if token:
                request.add_header("Authorization", f"Bearer {token}")
            try:
                with urllib.request.urlopen(request, timeout=5) as answer:
                    return answer.status, answer.read().decode()
            except urllib.error.HTTPError as error:
                return error.code, error.read().decode()
            except OSError:
                return 0, ""

        return await asyncio.to_thread(fetch)

    async def ready(self) -> None:
        async with asyncio.timeout(20):
            while (await self.get("/readyz"))[0] != 200:
                assert self.process.returncode is None, "it ended"
                await asyncio.sleep(0.05)


Start = Callable[..., Awaitable[Process]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    started: list[Process] = []

    async def make(*arguments: str, **environ: str) -> Process:
        port, admin = free_port(), free_port()
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "skyloom_lb.main",
            *("--host", "127.0.0.1", "--port", str(port), "--admin-port", str(admin), *arguments),
            env={**os.environ, **environ},
            stderr=asyncio.subprocess.DEVNULL,
        )
        started.append(Process(process, port, admin))
        await started[-1].ready()
        return started[-1]

    yield make
    for one in started:
        if one.process.returncode is None:
            one.process.kill()
            await one.process.wait()


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


async def test_two_workers_have_one_page_and_survive_a_death(kit: Any, start: Start) -> None:
    endpoint = await kit.endpoint()
    lb = await start("--endpoint", endpoint.url, "--workers", "2", "--drain-seconds", "1")
    asked = 0

    async def ask() -> None:
        nonlocal asked
        one = await wire(kit, lb.port)
        await one.send(kit.post(target=b"/echo"))
        assert (await one.message()).status == 200
        one.close()
        asked += 1

    for _ in range(40):
        await ask()
    await until_counted(lb, 40)
    workers = children(lb.process.pid)
    assert len(workers) == 2
    await asyncio.sleep(
        1.2
    )  # the supervisor asks once a second; what a worker counted since then dies with it
    os.kill(workers[0], signal.SIGKILL)
    async with asyncio.timeout(20):
        while set(children(lb.process.pid)) == set(workers) or len(children(lb.process.pid)) < 2:
            await asyncio.sleep(0.05)
    await lb.ready()
    for _ in range(10):
        await ask()
    await until_counted(lb, 50)
    lb.process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(lb.process.wait(), 15) == 0


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def until_counted(lb: Process, expected: float) -> None:
    """A worker that is slow to answer is missing on one page and there on the next."""
    async with asyncio.timeout(20):
        while await counted(lb) != expected:
            await asyncio.sleep(0.05)


async def counted(lb: Process) -> float:
    page = (await lb.get("/metrics"))[1]
    line = next(
        one for one in page.splitlines() if one.startswith('skyloom_lb_requests_total{service="default"}')
    )
    return float(line.split()[-1])


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
