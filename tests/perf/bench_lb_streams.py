"""Streams that survive: replicas are killed one after the other under many streams, and clients check every token.

The balancer, its replicas and the clients are processes of their own on loopback. `SKYLOOM_BENCH_SECONDS` and
`SKYLOOM_BENCH_STREAMS` make it shorter or smaller.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "kit"))

import skyloom_testing_engine as engines

STREAMS = int(os.environ.get("SKYLOOM_BENCH_STREAMS", "500"))
SECONDS = float(os.environ.get("SKYLOOM_BENCH_SECONDS", "60"))
KILL_EVERY = 2.0
REPLICAS = 4
TOKENS_PER_SECOND = 10.0
Row = tuple[str, float, str, str | float | None]


def run() -> list[Row]:
    return asyncio.run(_run())


async def _run() -> list[Row]:
    *ports, port = engines.free_ports(REPLICAS + 1)
    replicas = [engines.EngineProcess(one, tokens_per_second=TOKENS_PER_SECOND) for one in ports]
    with tempfile.TemporaryDirectory() as folder:
        balancer = _start(Path(folder) / "lb.yaml", port, replicas)
        try:
            for one in replicas:
                one.start()
            for one in replicas:
                await one.ready()
            return await _measure(balancer, port, replicas)
        finally:
            balancer.send_signal(signal.SIGTERM)
            for one in replicas:
                one.kill()
            balancer.wait(30)


def _start(path: Path, port: int, replicas: list[engines.EngineProcess]) -> subprocess.Popen[bytes]:
    endpoints = [
        {"id": f"r{number}", "url": one.url, "engine": "skyloom-engine"}
        for number, one in enumerate(replicas)
    ]
    settings = {
        "services": {"tiny": {"endpoints": endpoints}},
        "host": "127.0.0.1",
        "port": port,
        "drain_seconds": 2.0,
    }
    path.write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "skyloom_lb.main", "--config", str(path), "--admin-port", "-1"]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


async def _measure(
    balancer: subprocess.Popen[bytes], port: int, replicas: list[engines.EngineProcess]
) -> list[Row]:
    async with asyncio.timeout(20):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                break
            except OSError:
                await asyncio.sleep(0.05)
    seen, watched = engines.Seen(), psutil.Process(balancer.pid)
    ends = time.monotonic() + SECONDS
    before = sum(watched.cpu_times()[:2])
    killer = asyncio.ensure_future(_kill(replicas, ends))
    await asyncio.gather(*(_streams(port, number, seen, ends) for number in range(STREAMS)))
    await killer
    cpu = sum(watched.cpu_times()[:2]) - before
    for words in seen.wrong:
        print(f"    {words}", flush=True)
    gaps = sorted(seen.gaps)
    return [
        (f"replicas killed under {STREAMS} streams", sum(one.kills for one in replicas), "", None),
        ("streams completed", seen.streams, "", None),
        ("tokens checked", seen.tokens, "", None),
        ("broken streams", seen.broken, "", "<= 0"),
        ("missing, duplicate or wrong tokens", seen.tokens_wrong, "", "<= 0"),
        ("usage that does not add up", seen.usage_wrong, "", "<= 0"),
        ("time between two tokens, p50", 1000 * gaps[len(gaps) // 2], "ms", None),
        ("time between two tokens, p99.9", 1000 * gaps[len(gaps) * 999 // 1000], "ms", None),
        ("longest time between two tokens", 1000 * gaps[-1], "ms", None),
        ("balancer memory", watched.memory_info().rss / 2**20, "MB", None),
        ("balancer CPU a token", 1e6 * cpu / max(1, seen.tokens), "µs", None),
    ]


async def _streams(port: int, number: int, seen: engines.Seen, ends: float) -> None:
    await asyncio.sleep(number * 2.0 / STREAMS)
    turn = 0
    while time.monotonic() < ends:
        turn += 1
        messages = [{"role": "user", "content": f"stream {number}, turn {turn}"}]
        limit = {"max_tokens": 60 + number % 60} if number % 4 else {}
        await engines.check_stream(port, {"model": "tiny", "messages": messages, **limit}, seen)


async def _kill(replicas: list[engines.EngineProcess], ends: float) -> None:
    """One every `KILL_EVERY` seconds, the next one as soon as it is its turn; each comes back a moment later."""
    coming_back: dict[int, asyncio.Task[None]] = {}
    turn, next_at = 0, time.monotonic() + KILL_EVERY
    while next_at < ends:
        await asyncio.sleep(max(0.0, next_at - time.monotonic()))
        number = turn % len(replicas)
        if number in coming_back:
            await coming_back[number]  # long done, unless the machine is very busy
        replicas[number].kill()
        coming_back[number] = asyncio.ensure_future(_come_back(replicas[number]))
        turn, next_at = turn + 1, next_at + KILL_EVERY
    await asyncio.gather(*coming_back.values())


async def _come_back(replica: engines.EngineProcess) -> None:
    await asyncio.sleep(KILL_EVERY / 2)
    replica.start()
    await replica.ready()


if __name__ == "__main__":
    for row in run():
        print(row)
