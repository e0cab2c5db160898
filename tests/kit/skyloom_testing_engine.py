"""The example engine for tests: its module, its streams without a socket, engines to kill, and a client that checks tokens."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

PATH = Path(__file__).resolve().parents[2] / "examples" / "serve" / "engine.py"


def load() -> ModuleType:
    name = "skyloom_example_engine"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, PATH)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def events(request: dict[str, Any], chat: bool) -> list[bytes]:
    """The events that the engine streams for a request."""
    engine = load()
    job = engine._Job.of(request, chat, "tiny")
    made: list[dict[str, Any]] = []
    if chat:
        role = job.piece({"role": "assistant", "content": ""})
        made.append({**role, "prompt_token_ids": engine.ids_of(job.prompt)} if job.with_ids else role)
    tokens = answer(request, chat)
    for at, (number, text) in enumerate(tokens):
        made.append(job.token_piece(number, text, 0, first=at == 0))
    made.append(job.piece({}, finish=job.finish))
    if job.include_usage:
        made.append({**job.base(stream=True), "choices": [], "usage": job.usage(len(tokens))})
    return [b"data: " + engine._json(one) + b"\n\n" for one in made] + [b"data: [DONE]\n\n"]


def answer(request: dict[str, Any], chat: bool) -> list[tuple[int, str]]:
    """The tokens of the right answer."""
    engine = load()
    job = engine._Job.of(request, chat, "tiny")
    if job.max_tokens:
        found: list[tuple[int, str]] = engine.generate(job.prompt, job.max_tokens)
        return found
    if job.continued and engine.stops(engine.advance(0, job.prompt)):
        return []
    longer: list[tuple[int, str]] = engine.until_stop(job.prompt)
    return longer


class EngineProcess:
    """The engine as a process of its own that can be killed at any moment and started again on the same port."""

    def __init__(self, port: int, *, tokens_per_second: float = 0.0) -> None:
        self.port = port
        self._arguments = ["--port", str(port), "--tokens-per-second", str(tokens_per_second)]
        self.process: subprocess.Popen[bytes] | None = None
        self.kills = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, str(PATH), *self._arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
            self.kills += 1

    async def ready(self, seconds: float = 20.0) -> None:
        async with asyncio.timeout(seconds):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                    writer.close()
                    return
                except OSError:
                    await asyncio.sleep(0.02)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


@dataclass
class Seen:
    """What clients got of many streams; `wrong` says what was wrong, a few examples of each kind."""

    streams: int = 0
    tokens: int = 0
    broken: int = 0
    tokens_wrong: int = 0
    usage_wrong: int = 0
    wrong: list[str] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)

    def note(self, words: str) -> None:
        if len(self.wrong) < 20:
            self.wrong.append(words)


async def check_stream(port: int, request: dict[str, Any], seen: Seen, headers: str = "") -> None:
    """One streamed chat through a balancer, compared token by token with what the engine must say."""
    try:
        texts, usage = await read_stream(port, request, seen, headers)
    except (OSError, ValueError, asyncio.IncompleteReadError, KeyError) as error:
        seen.broken += 1
        seen.note(f"{type(error).__name__}: {error}")
        return
    seen.streams += 1
    seen.tokens += len(texts)
    wanted = [text for _, text in answer(request, True)]
    if texts != wanted:
        same = next(
            (at for at, pair in enumerate(zip(texts, wanted, strict=False)) if pair[0] != pair[1]), -1
        )
        seen.tokens_wrong += abs(len(texts) - len(wanted)) or 1
        seen.note(f"{len(texts)} tokens for {len(wanted)}, the first other one at {same}")
    prompt = load().prompt_tokens(load().render(request["messages"]))
    if usage != [(prompt, len(wanted), prompt + len(wanted))]:
        seen.usage_wrong += 1
        seen.note(f"usage {usage} for {prompt} + {len(wanted)}")


async def read_stream(
    port: int, request: dict[str, Any], seen: Seen, headers: str = ""
) -> tuple[list[str], list[tuple[int, int, int]]]:
    body = json.dumps({**request, "stream": True, "stream_options": {"include_usage": True}}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: lb\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        status = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in status[:16]:
            raise ValueError(f"{status[:40]!r}")
        texts, usage, last, done = [], [], 0.0, False
        async for line in _lines(reader):
            if line == b"data: [DONE]":
                done = True
            elif line.startswith(b"data: "):
                data = json.loads(line[6:])
                if "error" in data or done:
                    raise ValueError(f"{line!r}")
                if data.get("usage"):
                    used = data["usage"]
                    usage.append((used["prompt_tokens"], used["completion_tokens"], used["total_tokens"]))
                for choice in data["choices"]:
                    if text := choice["delta"].get("content"):
                        texts.append(text)
                        now = time.monotonic()
                        if last:
                            seen.gaps.append(now - last)
                        last = now
        if not done:
            raise ValueError("the stream ended without [DONE]")
        return texts, usage
    finally:
        writer.transport.abort()


async def _lines(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    rest = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        rest += (await reader.readexactly(size + 2))[:-2]
        *whole, rest = rest.split(b"\n")
        for line in whole:
            yield line
    if rest:
        raise ValueError(f"half a line: {rest[:80]!r}")
