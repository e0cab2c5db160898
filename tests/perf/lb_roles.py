"""Processes that the load balancer's bench starts: bare aiohttp loops to compare with, a stream server, a stream client, and the
controller that a peer's balancer asks.

The loops to compare with run on asyncio's event loop, as one begins; what makes and watches streams is as quick as it can be.
`python lb_roles.py bare|lean|controller PORT TARGET...` · `stream PORT SECONDS` · `watch URL-PORT STREAMS SECONDS` (prints a JSON line).
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import sys
import time
from typing import Any

from aiohttp import ClientSession, TCPConnector, web
from multidict import CIMultiDict

from skyloom_lb.loop import run

CHUNKS_PER_SECOND = 20
SECRET = b"sk-bench-0123456789abcdef"
"""The key that `bench_lb` writes into the balancer's keys file."""
EVENT = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":'
    b'[{"index":0,"delta":{"content":"%.6f "},"finish_reason":null}]}\n\n'
)
SENT = b'"content":"'
"""Each chunk says when it was sent, as an engine's says a token."""


HOP_BY_HOP = {
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding", "upgrade",
    "host", "content-length",
}  # fmt: skip


def kept(headers: Any) -> list[tuple[str, str]]:
    return [(name, value) for name, value in headers.items() if name.lower() not in HOP_BY_HOP]


async def bare(port: int, targets: list[str]) -> None:
    """What one writes first: aiohttp's server and client in a loop, headers and body passed on as they come.

    No keys, no counts, no model names, no retries, no time-outs of its own.
    """
    turn = itertools.cycle(targets)
    session = ClientSession(connector=TCPConnector(limit=0), auto_decompress=False)

    async def handle(request: web.Request) -> web.StreamResponse:
        url, body = next(turn) + request.path_qs, await request.read()
        async with session.request(
            request.method, url, headers=kept(request.headers), data=body, allow_redirects=False
        ) as answer:
            response = web.StreamResponse(status=answer.status, headers=CIMultiDict(kept(answer.headers)))
            response.content_length = answer.content_length
            await response.prepare(request)
            async for part in answer.content.iter_any():
                await response.write(part)
            await response.write_eof()
            return response

    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{path:.*}", handle)
    await serve(web.AppRunner(app, access_log=None), port)


async def lean(port: int, targets: list[str]) -> None:
    """Less than a proxy: whole bodies only and no headers passed on, aiohttp's low-level server."""
    turn = itertools.cycle(targets)
    session = ClientSession(connector=TCPConnector(limit=0))

    async def handle(request: web.BaseRequest) -> web.Response:
        body = await request.read()
        async with session.request(request.method, next(turn) + request.path, data=body) as answer:
            return web.Response(
                status=answer.status, body=await answer.read(), content_type="application/json"
            )

    await serve(web.ServerRunner(web.Server(handle, access_log=None)), port)


async def controller(port: int, replicas: list[str]) -> None:
    """Tells SkyServe's balancer that these are its replicas, each time it asks."""

    async def tell(request: web.BaseRequest) -> web.Response:
        return web.json_response({"replica_info": {url: {"gpu_type": "unknown"} for url in replicas}})

    await serve(web.ServerRunner(web.Server(tell, access_log=None)), port)


async def serve(runner: web.BaseRunner[Any], port: int) -> None:
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=4096).start()
    await asyncio.Event().wait()


class Streamer(asyncio.Protocol):
    """Each request gets an endless stream; all of one server's streams tick at times of their own."""

    def __init__(self, streams: dict[int, list[Streamer]]) -> None:
        self.streams = streams
        self.slot = -1

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if b"\r\n\r\n" in data and self.slot < 0:
            self.transport.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            self.slot = min(self.streams, key=lambda slot: len(self.streams[slot]))
            self.streams[self.slot].append(self)

    def connection_lost(self, error: Exception | None) -> None:
        if self.slot >= 0:
            self.streams[self.slot].remove(self)


async def stream(port: int, seconds: float) -> int:
    """Every stream gets a chunk each 50 ms; in each millisecond it is the turn of a fiftieth of them."""
    slots: dict[int, list[Streamer]] = {slot: [] for slot in range(1000 // CHUNKS_PER_SECOND)}
    loop = asyncio.get_running_loop()
    await loop.create_server(lambda: Streamer(slots), "127.0.0.1", port, backlog=4096)
    began, tick = loop.time(), 0
    while loop.time() - began < seconds:
        await asyncio.sleep(0.001)
        due = int((loop.time() - began) * 1000)
        while tick < due:
            for one in slots[tick % len(slots)]:
                event = EVENT % time.monotonic()
                one.transport.write(b"%x\r\n%b\r\n" % (len(event), event))
            tick += 1
    return 0


class Watcher(asyncio.Protocol):
    def __init__(self, delays: list[float], merged: list[int]) -> None:
        self.delays, self.merged = delays, merged

    def connection_made(self, transport: Any) -> None:
        body = b'{"model":"m","stream":true}'
        transport.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: b\r\nContent-Type: application/json\r\n"
            b"Authorization: Bearer %b\r\nContent-Length: %d\r\n\r\n%b" % (SECRET, len(body), body)
        )

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        at = data.find(SENT)
        while at >= 0:
            at += len(SENT)
            self.delays.append(now - float(data[at : data.index(b" ", at)]))
            at = data.find(SENT, at)
        for part in data.split(b"data: ")[1:-1]:
            # Between two events of one read there must be the end of one chunk and the head of the next.
            self.merged.append(part.endswith(b"\n\n"))


async def watch(port: int, streams: int, seconds: float) -> int:
    loop = asyncio.get_running_loop()
    delays: list[float] = []
    merged: list[int] = []
    for number in range(streams):
        await loop.create_connection(lambda: Watcher(delays, merged), "127.0.0.1", port)
        if number % 50 == 49:
            await asyncio.sleep(0.02)
    await asyncio.sleep(1.0)
    delays.clear()
    merged.clear()
    await asyncio.sleep(seconds)
    delays.sort()
    print(
        json.dumps(
            {
                "events": len(delays),
                "merged": sum(merged),
                "p50": delays[len(delays) // 2],
                "p99": delays[len(delays) * 99 // 100],
            }
        ),
        flush=True,
    )
    return 0


if __name__ == "__main__":
    role, *given = sys.argv[1:]
    if role in ("bare", "lean", "controller"):
        serves = {"bare": bare, "lean": lean, "controller": controller}[role]
        asyncio.run(serves(int(given[0]), given[1:]))
    elif role == "stream":
        run(stream(int(given[0]), float(given[1])))
    else:
        gc.disable()  # a halt of ours would be taken for one of the balancer's
        run(watch(int(given[0]), int(given[1]), float(given[2])))
