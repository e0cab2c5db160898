"""A deterministic OpenAI-compatible engine, for examples and for fault tests: standard library only, no model.

The next token is a function of all text so far, as with a greedy language model. So whoever continues a broken answer by
sending "prompt + text so far" (or the token ids so far) to another copy of this engine must get exactly the text that
the first one would have gone on with; a client can check every token.

    python engine.py --port 8000 --model tiny --tokens-per-second 50

Faults: POST /engine/faults {"mode": MODE, "after_tokens": N, "times": K}. MODE is one of FAULTS; `times` 0 = until cleared.
GET /engine/stats tells what was served. A request header `X-Engine-Fault: MODE[:N]` makes only that request fail.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

FAULTS = {
    "status": "answers 500",
    "busy": "answers 429 with Retry-After",
    "reset": "resets the connection before any byte",
    "hang_headers": "accepts the request and never answers",
    "garbage": "answers with bytes that are no HTTP",
    "big_headers": "sends a megabyte of headers",
    "wrong_length": "announces more than it sends, then closes",
    "early": "answers before it has read the body, then closes",
    "close_idle": "answers, announces keep-alive, closes at once",
    "die": "streams N tokens, then resets the connection",
    "half_chunk": "streams N tokens, then half a chunk, then closes",
    "hang_mid": "streams N tokens, then nothing more",
    "exit": "streams N tokens, then the whole process ends",
    "half_utf8": "streams N tokens, then half a character of an event, then resets the connection",
    "end_early": "streams N tokens, then ends the answer as if it were complete",
    "error_event": "streams N tokens, then an error event and [DONE], as an engine whose worker died",
    "die_at_end": "streams every token and the finish, then resets the connection before usage and [DONE]",
}
_WORDS = [
    *("sky", "loom", "cloud", "thread", "weave", "node", "rank", "spot", "zone", "price", "plan", "offer"),
    *(
        "lease",
        "drain",
        "probe",
        "route",
        "token",
        "cache",
        "prefix",
        "batch",
        "grad",
        "epoch",
        "loss",
        "tensor",
    ),
    *("shard", "ring", "mesh", "queue", "event", "ledger", "quota", "saga", "naïve", "云"),
]
_MASK = (1 << 61) - 1
_BASE = 1_000_003
_FIRST_BYTE = 1000
_LONGEST = 1024


def advance(state: int, text: str) -> int:
    """The state after `text`: a rolling hash, so that only the text matters, not how it was cut into pieces."""
    for byte in text.encode():
        state = (state * _BASE + byte + 1) & _MASK
    return state


def token_of(state: int) -> tuple[int, str]:
    """(id, text) of the token that follows a text whose state is `state`."""
    number = (_mixed(state) >> 17) % (len(_WORDS) * 10)
    return number, word_of(number)


def _mixed(state: int) -> int:
    return (state ^ (state >> 29)) * 0xBF58476D1CE4E5B9 & _MASK


def stops(state: int) -> bool:
    """Whether a text of this state is at its end: about one token in 48 is the last one."""
    return (_mixed(state) >> 40) % 48 == 0


def word_of(number: int) -> str:
    return f" {_WORDS[number // 10]}{number % 10}"


def ids_of(prompt: str) -> list[int]:
    """The prompt as token ids: one a byte, above those of the words."""
    return [_FIRST_BYTE + byte for byte in prompt.encode()]


def text_of(ids: list[int]) -> str:
    """What token ids stand for, those of a prompt and those of an answer."""
    parts = [bytes([one - _FIRST_BYTE]) if one >= _FIRST_BYTE else word_of(one).encode() for one in ids]
    return b"".join(parts).decode("utf-8", "replace")


def prompt_tokens(prompt: str) -> int:
    """Every token of an answer begins with a blank, so that counts add up when an answer becomes a prompt."""
    return 1 + prompt.count(" ")


def until_stop(prompt: str, most: int = 1024) -> list[tuple[int, str]]:
    """The tokens of a chat answer whose length nobody limited."""
    state, tokens = advance(0, prompt), []
    while len(tokens) < most and not (tokens and stops(state)):
        token = token_of(state)
        tokens.append(token)
        state = advance(state, token[1])
    return tokens


def generate(prompt: str, count: int) -> list[tuple[int, str]]:
    """The `count` tokens that follow `prompt`: what a client may compare a served answer with."""
    state, tokens = advance(0, prompt), []
    for _ in range(count):
        token = token_of(state)
        tokens.append(token)
        state = advance(state, token[1])
    return tokens


def render(messages: list[dict[str, Any]], *, continue_final: bool = False) -> str:
    """The prompt that chat messages stand for; with `continue_final` the last message is left open."""
    parts = [f"<{one.get('role')}>{_content(one)}" for one in messages]
    text = "</>".join(parts)
    return text if continue_final else text + "</><assistant>"


def _content(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content + (json.dumps(message["tool_calls"]) if message.get("tool_calls") else "")
    return "".join(
        part.get("text", "")
        if part.get("type") == "text"
        else f"[{part.get('type')}:{json.dumps(part, sort_keys=True)}]"
        for part in content
    )


_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


@dataclass
class Fault:
    mode: str
    after_tokens: int = 0
    times: int = 1


@dataclass
class Settings:
    model: str = "tiny"
    tokens_per_second: float = 0.0
    """0 = as fast as it can."""
    first_token_seconds: float = 0.0
    api_key: str = ""
    ready_after_seconds: float = 0.0


@dataclass
class Stats:
    requests: int = 0
    in_flight: int = 0
    most_in_flight: int = 0
    tokens: int = 0
    cancelled: int = 0
    faults: int = 0
    by_path: dict[str, int] = field(default_factory=dict)


class Hangup(Exception):
    """The connection is to be closed now; `reset` without the polite end."""

    def __init__(self, reset: bool = False) -> None:
        self.reset = reset


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        value = json.loads(self.body or b"{}")
        if not isinstance(value, dict):
            raise ValueError("the body is not a JSON object")
        return value


class Engine:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.stats = Stats()
        self.faults: list[Fault] = []
        self.started = time.monotonic()
        self._seen: dict[str, int] = {}

    async def serve(self, host: str, port: int) -> asyncio.AbstractServer:
        return await asyncio.start_server(self._connection, host, port, limit=1 << 20)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._exchange(reader, writer):
                pass
        except Hangup as hangup:
            if hangup.reset:
                writer.transport.abort()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            writer.transport.abort()
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise
            return False
        lines = head.decode("latin-1").split("\r\n")
        method, path, _ = lines[0].split(" ", 2)
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines[1:] if line)
        }
        fault = self._fault(path, headers)
        if fault is not None and fault.mode == "early":
            await _answer(writer, 200, {"early": True}, close=True)
            raise Hangup
        if headers.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request = Request(method, path.partition("?")[0], headers, await _body(reader, headers))
        self.stats.requests += 1
        self.stats.by_path[request.path] = self.stats.by_path.get(request.path, 0) + 1
        self.stats.in_flight += 1
        self.stats.most_in_flight = max(self.stats.most_in_flight, self.stats.in_flight)
        try:
            await self._dispatch(request, writer, fault)
        except (ConnectionError, asyncio.CancelledError):
            self.stats.cancelled += 1
            raise
        finally:
            self.stats.in_flight -= 1
        if fault is not None and fault.mode == "close_idle":
            raise Hangup
        return headers.get("connection", "").lower() != "close"

    def _fault(self, path: str, headers: dict[str, str]) -> Fault | None:
        if path.startswith("/engine/") or path == "/health":
            return None
        named = headers.get("x-engine-fault")
        if named:
            mode, _, after = named.partition(":")
            return Fault(mode, int(after or 0))
        if not self.faults:
            return None
        fault = self.faults[0]
        self.stats.faults += 1
        if fault.times == 1:
            self.faults.pop(0)
        elif fault.times > 1:
            self.faults[0] = Fault(fault.mode, fault.after_tokens, fault.times - 1)
        return fault

    async def _dispatch(self, request: Request, writer: asyncio.StreamWriter, fault: Fault | None) -> None:
        if fault is not None:
            await _misbehave(fault, writer)
        route = (request.method, request.path)
        if route == ("GET", "/health"):
            ready = time.monotonic() - self.started >= self.settings.ready_after_seconds
            await _answer(writer, 200 if ready else 503, {"ready": ready})
        elif route == ("GET", "/engine/stats"):
            await _answer(writer, 200, self.stats.__dict__)
        elif route == ("POST", "/engine/faults"):
            data = request.json()
            self.faults = [Fault(**data)] if data.get("mode") else []
            await _answer(writer, 200, {"faults": len(self.faults)})
        elif (
            self.settings.api_key
            and request.headers.get("authorization") != f"Bearer {self.settings.api_key}"
        ):
            await _answer(writer, 401, _error("invalid API key", "invalid_api_key"))
        elif route == ("GET", "/v1/models"):
            await _answer(
                writer, 200, {"object": "list", "data": [{"id": self.settings.model, "object": "model"}]}
            )
        elif request.method == "POST" and request.path in ("/v1/chat/completions", "/v1/completions"):
            await self._complete(request, writer, fault)
        elif route == ("POST", "/v1/responses"):
            await self._respond(request, writer, fault)
        elif route == ("POST", "/v1/embeddings"):
            await _answer(writer, 200, self._embed(request.json()))
        elif request.path.startswith("/echo"):
            body = {
                "method": request.method,
                "path": request.path,
                "headers": request.headers,
                "length": len(request.body),
            }
            await _answer(writer, 200, body, head=request.method == "HEAD")
        else:
            await _answer(writer, 404, _error(f"no route {request.method} {request.path}", "not_found"))

    def _embed(self, data: dict[str, Any]) -> dict[str, Any]:
        inputs = data.get("input") or []
        texts = [inputs] if isinstance(inputs, str) else inputs
        rows = []
        for index, text in enumerate(texts):
            state = advance(0, str(text))
            rows.append(
                {
                    "object": "embedding",
                    "index": index,
                    "embedding": [((state >> bit) & 255) / 255 for bit in range(0, 56, 7)],
                }
            )
        used = sum(len(str(text).split()) for text in texts)
        return {
            "object": "list",
            "model": self.settings.model,
            "data": rows,
            "usage": {"prompt_tokens": used, "total_tokens": used},
        }

    async def _complete(self, request: Request, writer: asyncio.StreamWriter, fault: Fault | None) -> None:
        try:
            job = _Job.of(request.json(), request.path.startswith("/v1/chat"), self.settings.model)
        except (ValueError, KeyError, TypeError) as error:
            await _answer(writer, 400, _error(f"bad request: {error}", "invalid_request_error"))
            return
        job.cached_tokens = self._seen.get(job.prompt[:512], 0)
        self._seen[job.prompt[:512]] = prompt_tokens(job.prompt)
        if job.stream:
            await self._stream(job, writer, fault)
            return
        answers = (
            [] if job.tool is not None else [await self._all(job, index) for index in range(job.choices)]
        )
        await _answer(
            writer, 200, job.whole(answers), short=fault is not None and fault.mode == "wrong_length"
        )

    async def _all(self, job: _Job, index: int) -> list[tuple[int, str]]:
        return [token async for token in self._tokens(job, index)]

    async def _tokens(self, job: _Job, index: int = 0) -> AsyncIterator[tuple[int, str]]:
        if self.settings.first_token_seconds:
            await asyncio.sleep(self.settings.first_token_seconds)
        pause = 1 / self.settings.tokens_per_second if self.settings.tokens_per_second else 0.0
        state = advance(0, job.prompt + "\0" * index)
        for number in range(job.max_tokens or _LONGEST):
            if number + job.continued and not job.max_tokens and stops(state):
                return
            token = token_of(state)
            state = advance(state, token[1])
            self.stats.tokens += 1
            yield token
            await asyncio.sleep(pause)

    async def _stream(self, job: _Job, writer: asyncio.StreamWriter, fault: Fault | None) -> None:
        writer.write(_STREAM_HEAD)
        sent = 0
        for index in range(job.choices) if job.chat else ():
            role = job.piece({"role": "assistant", "content": ""}, index=index)
            _chunk(writer, {**role, "prompt_token_ids": ids_of(job.prompt)} if job.with_ids else role)
        if job.tool is not None:
            sent = await self._stream_tool(job, writer, fault)
        for index in range(job.choices) if job.tool is None else ():
            async for number, text in self._tokens(job, index):
                if fault is not None and sent >= fault.after_tokens and await _break_off(fault.mode, writer):
                    return
                _chunk(writer, job.token_piece(number, text, index, first=sent == 0))
                await writer.drain()
                sent += 1
            _chunk(writer, job.piece({}, finish=job.finish, index=index))
        if fault is not None and fault.mode == "die_at_end":
            await writer.drain()
            raise Hangup(reset=True)
        if job.include_usage:
            _chunk(writer, {**job.base(stream=True), "choices": [], "usage": job.usage(sent)})
        _chunk(writer, None)
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    async def _stream_tool(self, job: _Job, writer: asyncio.StreamWriter, fault: Fault | None) -> int:
        call = job.tool_call()
        arguments = call["function"]["arguments"]
        _chunk(
            writer,
            job.piece(
                {"tool_calls": [{"index": 0, **call, "function": {**call["function"], "arguments": ""}}]}
            ),
        )
        for at in range(0, len(arguments), 4):
            if fault is not None and at // 4 >= fault.after_tokens and await _break_off(fault.mode, writer):
                return 0
            piece = {"index": 0, "function": {"arguments": arguments[at : at + 4]}}
            _chunk(writer, job.piece({"tool_calls": [piece]}))
            await writer.drain()
        _chunk(writer, job.piece({}, finish="tool_calls"))
        return -(-len(arguments) // 4)

    async def _respond(self, request: Request, writer: asyncio.StreamWriter, fault: Fault | None) -> None:
        """/v1/responses, as much of it as a balancer could notice."""
        data = request.json()
        given = data.get("input") or ""
        messages = [{"role": "user", "content": given}] if isinstance(given, str) else given
        limit = int(data.get("max_output_tokens") or 16)
        job = _Job.of(
            {"messages": messages, "max_tokens": limit, "model": data.get("model")}, True, self.settings.model
        )
        tokens = await self._all(job, 0)
        whole = job.response(tokens)
        if not data.get("stream"):
            await _answer(writer, 200, whole)
            return
        writer.write(_STREAM_HEAD)
        _event(
            writer,
            {"type": "response.created", "response": {**whole, "status": "in_progress", "usage": None}},
        )
        for sent, (_, text) in enumerate(tokens):
            if fault is not None and sent >= fault.after_tokens and await _break_off(fault.mode, writer):
                return
            _event(writer, {"type": "response.output_text.delta", "item_id": "msg_0", "output_index": 0,
                            "content_index": 0, "delta": text, "logprobs": [], "sequence_number": sent + 1})  # fmt: skip
            await writer.drain()
        _event(writer, {"type": "response.completed", "response": whole, "sequence_number": len(tokens) + 1})
        writer.write(b"0\r\n\r\n")
        await writer.drain()


@dataclass
class _Job:
    """One completion: what to continue, how long, and the shape of the answer."""

    prompt: str
    chat: bool
    model: str
    max_tokens: int
    stream: bool
    include_usage: bool
    with_ids: bool
    tool: str | None
    choices: int = 1
    logprobs: bool = False
    continued: bool = False
    cached_tokens: int = 0

    @classmethod
    def of(cls, data: dict[str, Any], chat: bool, model: str) -> _Job:
        if chat:
            prompt = render(data["messages"], continue_final=bool(data.get("continue_final_message")))
        else:
            given = data["prompt"]
            if isinstance(given, list) and given and isinstance(given[0], str):
                given = given[0]
            prompt = given if isinstance(given, str) else text_of([int(number) for number in given])
        tools = data.get("tools") or []
        wants_tool = (
            bool(tools)
            and data.get("tool_choice", "auto") != "none"
            and data["messages"][-1].get("role") == "user"
        )
        return cls(
            prompt=prompt,
            chat=chat,
            model=str(data.get("model") or model),
            max_tokens=int(
                data.get("max_completion_tokens") or data.get("max_tokens") or (0 if chat else 16)
            ),
            stream=bool(data.get("stream")),
            include_usage=bool((data.get("stream_options") or {}).get("include_usage")),
            with_ids=bool(data.get("return_token_ids")),
            tool=tools[0]["function"]["name"] if wants_tool else None,
            choices=int(data.get("n") or 1),
            logprobs=bool(data.get("logprobs")),
            continued=bool(data.get("continue_final_message")),
        )

    @property
    def finish(self) -> str:
        return "length" if self.max_tokens else "stop"

    def base(self, *, stream: bool) -> dict[str, Any]:
        kind = "chat.completion" if self.chat else "text_completion"
        return {
            "id": f"cmpl-{advance(0, self.prompt):x}",
            "object": kind + (".chunk" if stream and self.chat else ""),
            "created": 0,
            "model": self.model,
        }

    def usage(self, completion: int) -> dict[str, Any]:
        prompt = prompt_tokens(self.prompt)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": min(prompt, self.cached_tokens)},
        }

    def token_piece(self, number: int, text: str, index: int, *, first: bool) -> dict[str, Any]:
        made = self.piece({"content": text}, ids=[number], index=index)
        if self.logprobs:
            made["choices"][0]["logprobs"] = _logprobs([(number, text)], self.chat)
        if first and self.with_ids and not self.chat:
            made["choices"][0]["prompt_token_ids"] = ids_of(self.prompt)
        return made

    def piece(
        self,
        delta: dict[str, Any],
        *,
        ids: list[int] | None = None,
        finish: str | None = None,
        index: int = 0,
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "finish_reason": finish}
        choice |= {"delta": delta} if self.chat else {"text": delta.get("content", "")}
        if self.with_ids and ids is not None:
            choice["token_ids"] = ids
        return {**self.base(stream=True), "choices": [choice]}

    def tool_call(self) -> dict[str, Any]:
        arguments = json.dumps({"seed": advance(0, self.prompt) % 1000, "unit": "tokens"})
        return {"id": "call_0", "type": "function", "function": {"name": self.tool, "arguments": arguments}}

    def whole(self, answers: list[list[tuple[int, str]]]) -> dict[str, Any]:
        choices = [self._choice(index, tokens) for index, tokens in enumerate(answers or [[]])]
        used = self.usage(sum(map(len, answers)))
        return {**self.base(stream=False), "choices": choices, "usage": used}

    def _choice(self, index: int, tokens: list[tuple[int, str]]) -> dict[str, Any]:
        text = "".join(word for _, word in tokens)
        message: dict[str, Any] = {"role": "assistant", "content": text}
        finish = self.finish
        if self.tool is not None:
            message, finish = (
                {"role": "assistant", "content": None, "tool_calls": [self.tool_call()]},
                "tool_calls",
            )
        choice: dict[str, Any] = {"index": index, "finish_reason": finish, "logprobs": None}
        choice |= {"message": message} if self.chat else {"text": text}
        if self.logprobs:
            choice["logprobs"] = _logprobs(tokens, self.chat)
        if self.with_ids:
            choice["token_ids"] = [number for number, _ in tokens]
        return choice

    def response(self, tokens: list[tuple[int, str]]) -> dict[str, Any]:
        text = {"type": "output_text", "text": "".join(word for _, word in tokens), "annotations": []}
        used = self.usage(len(tokens))
        return {
            "id": f"resp_{advance(0, self.prompt):x}",
            "object": "response",
            "created_at": 0,
            "status": "completed",
            "model": self.model,
            "output": [
                {
                    "type": "message",
                    "id": "msg_0",
                    "role": "assistant",
                    "status": "completed",
                    "content": [text],
                }
            ],
            "parallel_tool_calls": False,
            "tool_choice": "auto",
            "tools": [],
            "usage": {
                "input_tokens": used["prompt_tokens"],
                "input_tokens_details": used["prompt_tokens_details"],
                "output_tokens": used["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": used["total_tokens"],
            },
        }


def _logprobs(tokens: list[tuple[int, str]], chat: bool) -> dict[str, Any]:
    """Made up, but from the token alone."""
    if not chat:
        return {
            "tokens": [text for _, text in tokens],
            "token_logprobs": [-number / 100 for number, _ in tokens],
        }
    return {
        "content": [
            {"token": text, "logprob": -number / 100, "bytes": list(text.encode()), "top_logprobs": []}
            for number, text in tokens
        ]
    }


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding", "").lower() != "chunked":
        return await reader.readexactly(int(headers.get("content-length", 0)))
    parts = []
    while True:
        size = int((await reader.readline()).split(b";")[0], 16)
        data = await reader.readexactly(size + 2)
        if size == 0:
            return b"".join(parts)
        parts.append(data[:-2])


def _chunk(writer: asyncio.StreamWriter, data: dict[str, Any] | None) -> None:
    text = b"[DONE]" if data is None else _json(data)
    _write_chunk(writer, b"data: " + text + b"\n\n")


def _event(writer: asyncio.StreamWriter, data: dict[str, Any]) -> None:
    _write_chunk(writer, b"event: " + data["type"].encode() + b"\ndata: " + _json(data) + b"\n\n")


def _write_chunk(writer: asyncio.StreamWriter, text: bytes) -> None:
    writer.write(b"%x\r\n%b\r\n" % (len(text), text))


def _json(data: dict[str, Any]) -> bytes:
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode()


def _error(message: str, code: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "code": code}}


async def _answer(
    writer: asyncio.StreamWriter,
    status: int,
    data: dict[str, Any],
    *,
    close: bool = False,
    short: bool = False,
    head: bool = False,
) -> None:
    body = json.dumps(data).encode()
    reason = {
        200: "OK",
        400: "Bad Request",
        401: "Unauthorized",
        404: "Not Found",
        429: "Too Many Requests",
    }.get(status, "Error")
    lines = [
        f"HTTP/1.1 {status} {reason}",
        "Content-Type: application/json",
        f"Content-Length: {len(body) + 10 * short}",
    ]
    lines += ["Connection: close"] * close + ["Retry-After: 1"] * (status == 429)
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + (b"" if head else body))
    await writer.drain()
    if short:
        raise Hangup


async def _misbehave(fault: Fault, writer: asyncio.StreamWriter) -> None:
    """Faults that come before an answer; the others are made where the answer is."""
    mode = fault.mode
    if mode in ("status", "busy"):
        await _answer(writer, 500 if mode == "status" else 429, _error("told to fail", "fault"))
        raise Hangup
    if mode == "reset":
        raise Hangup(reset=True)
    if mode == "hang_headers":
        await asyncio.sleep(3600)
    if mode == "garbage":
        writer.write(b"\x00\x01\x02 this is not HTTP\r\n\r\n")
        await writer.drain()
        raise Hangup
    if mode == "big_headers":
        writer.write(
            b"HTTP/1.1 200 OK\r\n" + b"X-Big: " + b"a" * (1 << 20) + b"\r\nContent-Length: 0\r\n\r\n"
        )
        await writer.drain()
        raise Hangup


async def _break_off(mode: str, writer: asyncio.StreamWriter) -> bool:
    """Faults in the middle of a stream. True: the answer is over; False: the mode is none of them."""
    await writer.drain()
    if mode == "die":
        raise Hangup(reset=True)
    if mode in ("half_chunk", "half_utf8"):
        half = b'data: {"id": "half' if mode == "half_chunk" else '{"text": "云'.encode()[:-1]
        writer.write(b"40\r\n" + half)
        await writer.drain()
        raise Hangup(reset=mode == "half_utf8")
    if mode == "hang_mid":
        await asyncio.sleep(3600)
    if mode == "exit":
        os._exit(1)
    if mode == "error_event":
        _chunk(writer, {"error": {"message": "the worker died", "type": "InternalServerError", "code": 500}})
        _chunk(writer, None)
    if mode in ("error_event", "end_early"):
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True
    return False


async def _main(arguments: argparse.Namespace) -> None:
    settings = Settings(
        model=arguments.model,
        tokens_per_second=arguments.tokens_per_second,
        first_token_seconds=arguments.first_token_seconds,
        api_key=os.environ.get("ENGINE_API_KEY", ""),
        ready_after_seconds=arguments.ready_after_seconds,
    )
    server = await Engine(settings).serve(arguments.host, arguments.port)
    print(f"engine: {settings.model} on port {server.sockets[0].getsockname()[1]}", flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 = a free one, printed at start")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--tokens-per-second", type=float, default=0.0)
    parser.add_argument("--first-token-seconds", type=float, default=0.0)
    parser.add_argument("--ready-after-seconds", type=float, default=0.0)
    try:
        asyncio.run(_main(parser.parse_args()))
    except KeyboardInterrupt:
        sys.exit(130)
