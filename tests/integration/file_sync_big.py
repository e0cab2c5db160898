"""Run by test_file_sync.py in a process of its own: one gigabyte from a client through a store to a node; prints peak memory.

All three parts live in this one process, so that the peak is an upper bound for each of them.
"""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import sys
import threading
import time
from pathlib import Path

import httpx
import uvicorn
from fastapi import FastAPI

from sky.net import transport as transport_module
from sky.sync import upload_tree
from skyloom_agent.file_trees import FileTrees
from skyloom_agent.files import add_file_routes
from skyloom_agent.http_server import HttpServer
from skyloom_agent.router import Router
from skyloom_common.contracts.clusters import MountRef
from skyloom_common.core.chunks import CHUNK_SIZE
from skyloom_provisioner.files import FileStore, push_tree, router

CHUNKS = 256


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def write_sparse(path: Path) -> None:
    """A gigabyte of which every chunk is different, without writing a gigabyte."""
    with path.open("wb") as file:
        for number in range(CHUNKS):
            file.seek(number * CHUNK_SIZE)
            file.write(number.to_bytes(8, "big"))
        file.truncate(CHUNKS * CHUNK_SIZE)


def serve(store: FileStore) -> int:
    app = FastAPI()
    app.include_router(router(store))
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True).start()
    while not server.started:
        time.sleep(0.01)
    return int(sock.getsockname()[1])


async def main(folder: Path) -> dict[str, float]:
    transport_module.API_PREFIX = "/v1"
    tree, home = folder / "tree", folder / "node"
    tree.mkdir()
    home.mkdir()
    write_sparse(tree / "model.bin")
    store = FileStore(folder / "store")
    transport = transport_module.Transport(f"http://127.0.0.1:{serve(store)}")
    routes = Router()
    add_file_routes(routes, FileTrees(home))
    agent = HttpServer(routes, "token")
    port = await agent.listen("127.0.0.1", 0)
    before, started = peak(), time.perf_counter()
    result = await asyncio.to_thread(
        upload_tree, transport, str(tree), cache_folder=folder / "cache", deflate=False
    )
    uploaded = time.perf_counter()
    after_upload = peak()
    headers = {"Authorization": "Bearer token"}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers) as http:
        await push_tree(http, store, MountRef("~/sky_workdir", result.manifest_id))
        pushed = time.perf_counter()
        await push_tree(http, store, MountRef("~/sky_workdir", result.manifest_id))
        again = time.perf_counter()
    await agent.close()
    copy = home / "sky_workdir/model.bin"
    with copy.open("rb") as file:
        for number in range(CHUNKS):
            file.seek(number * CHUNK_SIZE)
            assert file.read(8) == number.to_bytes(8, "big")
    assert copy.stat().st_size == CHUNKS * CHUNK_SIZE
    return {
        "upload_growth": after_upload - before,
        "push_growth": peak() - after_upload,
        "upload_seconds": uploaded - started,
        "push_seconds": pushed - uploaded,
        "again_seconds": again - pushed,
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(Path(sys.argv[1])))))
