"""`skyloom-lb` as processes, for tests: started on free ports, ended with the test."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Process:
    def __init__(self, process: asyncio.subprocess.Process, port: int, admin: int) -> None:
        self.process, self.port, self.admin = process, port, admin

    async def get(self, path: str, token: str = "") -> tuple[int, str]:
        """Of the admin port; (0, "") while nobody listens."""

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

    async def ready(self) -> dict[str, Any]:
        async with asyncio.timeout(20):
            while (answer := await self.get("/readyz"))[0] != 200:
                assert self.process.returncode is None, "it ended"
                await asyncio.sleep(0.05)
        return dict(json.loads(answer[1]))

    async def counted(self, name: str) -> float:
        """A metric with its labels, as on the page; 0 when it is not there."""
        page = (await self.get("/metrics"))[1]
        found = [line for line in page.splitlines() if line.startswith(name + " ")]
        return float(found[0].split()[-1]) if found else 0.0

    async def until_counted(self, name: str, expected: float) -> None:
        async with asyncio.timeout(20):
            while await self.counted(name) != expected:
                await asyncio.sleep(0.05)

    @property
    def workers(self) -> list[int]:
        pid = self.process.pid
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


Start = Callable[..., Awaitable[Process]]


@contextlib.asynccontextmanager
async def balancers() -> AsyncIterator[Start]:
    """`start(*flags, files=0, log=None, **environ)`; `files`: its limit of open files; `log`: where its log goes."""
    started: list[Process] = []

    async def start(
        *arguments: str, files: int = 0, wait: bool = True, log: Path | None = None, **environ: str
    ) -> Process:
        port, admin = free_port(), free_port()
        errors = log.open("wb") if log is not None else asyncio.subprocess.DEVNULL
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "skyloom_lb.main",
            *("--host", "127.0.0.1", "--port", str(port), "--admin-port", str(admin), *arguments),
            env={**os.environ, **environ},
            stderr=errors,
            preexec_fn=(lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files)))
            if files
            else None,
        )
        started.append(Process(process, port, admin))
        if wait:
            await started[-1].ready()
        return started[-1]

    try:
        yield start
    finally:
        for one in started:
            if one.process.returncode is None:
                one.process.kill()
                await one.process.wait()
