"""The wall clock may jump: time-outs, limits, health and holds do not notice; only what is meant by the calendar follows it."""

from __future__ import annotations

import ast
import asyncio
import hashlib
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

import skyloom_lb
from skyloom_lb import fronts
from skyloom_lb.admission.keys import KeyStore
from skyloom_lb.settings import Health, ServiceSettings, Timeouts

WALL = {
    "admission/keys.py": "a key's end is a date",
    "observe/accesslog.py": "for people to read",
    "observe/snapshot.py": "for people to read",
    "openai/front.py": "`created` of a model",
    "openai/state.py": "`created` of a model",
    "redis_side.py": "when a load report was made",
}


def wall_clocks(source: str) -> list[int]:
    """Lines that read the calendar."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            read = f"{node.value.id}.{node.attr}"
            if read in ("time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "time.localtime"):
                found.append(node.lineno)
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            found += [node.lineno for one in node.names if one.name.startswith("time")]
    return found


def test_who_reads_the_wall_clock() -> None:
    root = Path(skyloom_lb.__file__).parent
    readers = {
        path.relative_to(root).as_posix(): wall_clocks(path.read_text())
        for path in sorted(root.rglob("*.py"))
    }
    assert len(readers) > 50
    strangers = {path: lines for path, lines in readers.items() if lines and path not in WALL}
    assert not strangers, f"not {', '.join(strangers)}: durations are of the monotonic clock"
    assert wall_clocks("import time\nx = time.time()") == [2], "the search finds something"


class Wall:
    """`time.time` with a screw."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.offset = 0.0
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + self.offset)


@pytest.mark.parametrize("jump", [86_400.0 * 365, -86_400.0 * 365], ids=["a year on", "a year back"])
async def test_a_jump_ends_nothing_and_gives_nothing(
    kit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    wall = Wall(monkeypatch)
    monkeypatch.setattr(fronts, "KeyStore", partial(KeyStore, clock=lambda: time.time()))
    go = asyncio.Event()

    async def serve(wire: Any) -> None:
        while True:
            request = await endpoint.request(wire)
            if b"stream" not in request.body:
                await wire.send(kit.answer(b"{}"))
                continue
            await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
            await go.wait()
            await wire.send(b"1\r\nb\r\n0\r\n\r\n")

    def row(name: str, **fields: Any) -> dict[str, Any]:
        return {"name": name, "sha256": hashlib.sha256(name.encode()).hexdigest(), **fields}

    endpoint = await kit.endpoint(serve)
    keys = tmp_path / "keys.yaml"
    in_an_hour = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(time.time() + 3600))
    rows = [row("few", limits={"requests_per_minute": 3}), row("brief", expires=in_an_hour), row("free")]
    keys.write_text(yaml.safe_dump({"keys": rows}))
    service = ServiceSettings(
        timeouts=Timeouts(connect=5, first_byte=5, idle=5, total=60),
        health=Health(failures=1, open_seconds=30, slow_start_seconds=0, floor=0.0),
    )
    nowhere = kit.closed_port()
    lb = await kit.lb(
        endpoint, nowhere, service=service, make_front=fronts.make_front, keys_file=str(keys),
        header_seconds=5, body_seconds=5, keep_alive_seconds=5,
    )  # fmt: skip

    def ask(key: bytes, body: bytes = b"{}") -> bytes:
        return bytes(kit.post(body, extra=b"Authorization: Bearer " + key + b"\r\n", target=b"/echo"))

    async def status(key: bytes) -> int:
        return int((await lb.ask(ask(key))).status)

    for _ in range(4):  # also to where nobody is: its circuit opens
        assert await status(b"free") == 200
    lb.worker.balancer.sweep()
    assert lb.service.backends["e1"].state == "open"
    assert [await status(b"few") for _ in range(4)] == [200, 200, 200, 429]
    assert await status(b"brief") == 200
    streams = [await lb.client() for _ in range(3)]
    for one in streams:
        await one.send(ask(b"free", b"stream"))
        await one.head()
    idle, half_head, half_body = [await lb.client() for _ in range(3)]
    await half_head.send(b"POST /echo HTT")
    await half_body.send(ask(b"free", b"xxxxx")[:-2])
    await kit.until(lambda: len(lb.worker.balancer.fronts) >= 6)

    wall.offset = jump
    for _ in range(3):
        lb.worker.balancer.sweep()
        await asyncio.sleep(0)
    assert lb.service.backends["e1"].state == "open", "it has not served its time"
    assert await status(b"few") == 429, "no minute has passed"
    assert await status(b"brief") == (401 if jump > 0 else 200), "a date is a date"
    go.set()
    for one in streams:
        assert b"".join([part async for part in one.chunks()]) == b"ab"
    await idle.send(ask(b"free"))
    assert (await idle.message()).status == 200
    await half_head.send(ask(b"free")[len(b"POST /echo HTT") :])
    assert (await half_head.message()).status == 200
    await half_body.send(b"xx")
    assert (await half_body.message()).status == 200
