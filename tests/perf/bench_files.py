"""Files to a node: client, store and agent over HTTP on loopback, in this process."""

from __future__ import annotations

import asyncio
import os
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import uvicorn
from fastapi import FastAPI

from sky.net import transport as transport_module
from sky.sync import UploadResult, upload_tree
from skyloom_agent.file_trees import FileTrees
from skyloom_agent.files import add_file_routes
from skyloom_agent.http_server import HttpServer
from skyloom_agent.router import Router
from skyloom_common.contracts.clusters import MountRef
from skyloom_common.contracts.files import parse_manifest
from skyloom_common.core.chunks import CHUNK_SIZE
from skyloom_provisioner.files import FileStore, push_tree, router

Row = tuple[str, float, str, str]
ROUNDS = 5
BIG_CHUNKS = 64


class Route:
    """A client, a store and a node; `sync` brings a tree from the first to the last."""

    def __init__(self, folder: Path, http: httpx.AsyncClient, store: FileStore, port: int) -> None:
        self.folder = folder
        self.store = store
        self._http = http
        self._transport = transport_module.Transport(f"http://127.0.0.1:{port}")

    async def sync(self, tree: Path) -> UploadResult:
        cache = self.folder / "cache"
        result = await asyncio.to_thread(upload_tree, self._transport, str(tree), cache_folder=cache)
        await push_tree(self._http, self.store, MountRef(f"~/{tree.name}", result.manifest_id))
        return result


def run() -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="skyloom-bench-files-") as folder:
        return asyncio.run(_run(Path(folder)))


async def _run(folder: Path) -> list[Row]:
    prefix, transport_module.API_PREFIX = transport_module.API_PREFIX, "/v1"
    store, home = FileStore(folder / "store"), folder / "node"
    home.mkdir()
    server, port = _serve(store)
    routes = Router()
    add_file_routes(routes, FileTrees(home))
    agent = HttpServer(routes, "token")
    agent_port = await agent.listen("127.0.0.1", 0)
    base, headers = f"http://127.0.0.1:{agent_port}", {"Authorization": "Bearer token"}
    try:
        async with httpx.AsyncClient(base_url=base, headers=headers) as http:
            path = Route(folder, http, store, port)
            return [*await _small_files(path), *await _big_file(path)]
    finally:
        await agent.close()
        server.should_exit = True
        transport_module.API_PREFIX = prefix


async def _small_files(path: Route) -> list[Row]:
    tree = path.folder / "small"
    for group in range(100):
        (tree / f"pkg{group:03}").mkdir(parents=True)
        for number in range(100):
            (tree / f"pkg{group:03}/mod{number:03}.py").write_text(f"VALUE = {group * 1000 + number}\n" * 20)
    disk = _creation_seconds(path.folder / "raw")
    first = await _seconds(lambda: path.sync(tree))
    # Files younger than two seconds are read once more before their hashes are trusted.
    await asyncio.sleep(2.1)
    await path.sync(tree)
    again = statistics.median([await _seconds(lambda: path.sync(tree)) for _ in range(ROUNDS)])
    result = await path.sync(tree)
    packed = path.store.packed_manifest(result.manifest_id)
    parse = statistics.median([_parse_seconds(packed) for _ in range(ROUNDS)])
    return [
        ("creating 20,000 files on this disk, as a first sync must", disk, "s", ""),
        ("first sync of 10,000 small files, beyond that", first - disk, "s", "<= 5"),
        ("unchanged sync of 10,000 files, end to end", again, "s", "<= 1"),
        ("bytes that an unchanged sync uploads", result.bytes_sent, "bytes", "<= 200"),
        ("manifest of 10,000 files, parsed and validated", parse * 1000, "ms", "<= 100"),
    ]


async def _big_file(path: Route) -> list[Row]:
    tree = path.folder / "big"
    tree.mkdir()
    file = tree / "model.bin"
    with file.open("wb") as out:
        for number in range(BIG_CHUNKS):
            out.seek(number * CHUNK_SIZE)
            out.write(number.to_bytes(8, "big"))
        out.truncate(BIG_CHUNKS * CHUNK_SIZE)
    size = BIG_CHUNKS * CHUNK_SIZE / 1e6
    first = await _seconds(lambda: path.sync(tree))
    with file.open("r+b") as out:
        out.seek(17 * CHUNK_SIZE + 5)
        out.write(b"edited")
    changed = time.perf_counter()
    result = await path.sync(tree)
    return [
        ("first sync of a 256 MB file", size / first, "MB/s", ""),
        ("the same file with one byte run changed", time.perf_counter() - changed, "s", "<= 3"),
        ("chunks that this uploads", result.chunks_sent, "chunks", "<= 1"),
    ]


def _serve(store: FileStore) -> tuple[uvicorn.Server, int]:
    app = FastAPI()
    app.include_router(router(store))
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True).start()
    while not server.started:
        time.sleep(0.01)
    return server, int(sock.getsockname()[1])


def _creation_seconds(folder: Path) -> float:
    """What the file system alone takes: 10,000 chunks in the store and 10,000 files on the node. It varies a lot."""
    folder.mkdir()
    started = time.perf_counter()
    for number in range(20_000):
        fd = os.open(f"{folder}/{number}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(fd, bytes(200))
        os.close(fd)
    return time.perf_counter() - started


async def _seconds(work: Callable[[], Awaitable[object]]) -> float:
    started = time.perf_counter()
    await work()
    return time.perf_counter() - started


def _parse_seconds(packed: bytes) -> float:
    started = time.perf_counter()
    parse_manifest(packed)
    return time.perf_counter() - started
