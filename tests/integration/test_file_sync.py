"""Files all the way: the client's upload, the store's routes, the push and the agent's handlers, over real HTTP on loopback."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from sky.net import transport as transport_module
from sky.sync import UploadResult, upload_tree
from sky.sync import upload as upload_module
from skyloom_agent.file_trees import FileTrees
from skyloom_agent.files import add_file_routes
from skyloom_agent.http_server import HttpServer
from skyloom_agent.router import Router
from skyloom_common.contracts.clusters import MountRef
from skyloom_common.contracts.files import FilesMissing, FileStoreFull
from skyloom_common.core.chunks import CHUNK_SIZE
from skyloom_common.core.errors import AgentUnreachable, PermissionDenied, SkyloomError
from skyloom_common.service.responses import error_response
from skyloom_provisioner.files import FileStore, push_mounts, push_tree, router

pytestmark = pytest.mark.integration

TOKEN = "token-of-the-cluster"


class CountingTransport(transport_module.Transport):
    """Speaks to the store's routes directly, and notes what it sends."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(endpoint)
        self.sent: list[tuple[str, str, int]] = []
        self.break_after: int | None = None

    def call(self, method: str, path: str, **options: Any) -> bytes:
        if path == upload_module.CHUNKS and self.break_after is not None:
            if self.break_after == 0:
                raise ConnectionError("the network went away")
            self.break_after -= 1
        self.sent.append((method, path, len(options.get("body") or b"")))
        return super().call(method, path, **options)


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "store")


@pytest.fixture
def transport(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[CountingTransport]:
    monkeypatch.setattr(transport_module, "API_PREFIX", "/v1")
    app = FastAPI()
    app.include_router(router(store))
    app.add_exception_handler(SkyloomError, lambda request, error: error_response(error))
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", access_log=False)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    client = CountingTransport(f"http://127.0.0.1:{port}")
    yield client
    client.close()
    server.should_exit = True
    thread.join(10)


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


class Node:
    def __init__(self, home: Path) -> None:
        self.home = home
        home.mkdir()

    async def start(self) -> None:
        routes = Router()
        add_file_routes(routes, FileTrees(self.home, confine_to_home=True))
        self.server = HttpServer(routes, TOKEN)
        port = await self.server.listen("127.0.0.1", 0)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        self.http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers)

    async def close(self) -> None:
        await self.http.aclose()
        await self.server.close()


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    node = Node(tmp_path / "node")
    await node.start()
    yield node
    await node.close()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    tree.mkdir()
    return tree


async def upload(transport: CountingTransport, path: Path, **options: Any) -> UploadResult:
    return await asyncio.to_thread(upload_tree, transport, str(path), **options)


def same(left: Path, right: Path) -> bool:
    def listing(root: Path) -> dict[str, Any]:
        return {
            str(path.relative_to(root)): (path.lstat().st_mode, os.readlink(path) if path.is_symlink() else path.is_file() and path.read_bytes())
            for path in root.rglob("*")
        }  # fmt: skip

    return listing(left) == listing(right)


def workdir(result: UploadResult) -> MountRef:
    return MountRef("~/sky_workdir", result.manifest_id, "workdir", result.is_file)


def fill(tree: Path, folders: int, per_folder: int) -> None:
    for folder in range(folders):
        (tree / f"pkg{folder:03}").mkdir()
        for number in range(per_folder):
            (tree / f"pkg{folder:03}/mod{number:03}.py").write_text(
                f"VALUE = {folder * 1000 + number}\n" * 20
            )


@pytest.mark.slow
async def test_ten_thousand_files_go_once_and_then_only_an_id(
    transport: CountingTransport, store: FileStore, node: Node, tree: Path
) -> None:
    fill(tree, 100, 100)
    (tree / "latest").symlink_to(tree / "pkg007/mod001.py")
    (tree / "run.sh").write_text("#!/bin/sh\n")
    (tree / "run.sh").chmod(0o755)
    (tree / ".gitignore").write_text("*.log\n!keep.log\n")
    for name in ("drop.log", "keep.log"):
        (tree / name).write_text(name)
    result = await upload(transport, tree)
    pushed = await push_tree(node.http, store, workdir(result))
    assert (result.files, result.chunks_sent, pushed.chunks_sent) == (10_003, 10_003, 10_003)
    there = node.home / "sky_workdir"
    assert not (there / "drop.log").exists()
    assert os.readlink(there / "latest") == "pkg007/mod001.py"
    (tree / "drop.log").unlink()
    (tree / "latest").unlink()
    (tree / "latest").symlink_to("pkg007/mod001.py")
    assert same(tree, there)

    transport.sent.clear()
    again = await upload(transport, tree)
    assert again.manifest_id == result.manifest_id
    assert [(method, path) for method, path, _ in transport.sent] == [("POST", "/files/manifests")]
    assert transport.sent[0][2] < 100 and again.chunks_sent == 0
    assert await push_tree(node.http, store, workdir(again)) == type(pushed)(0, 0, 0)


async def test_one_changed_chunk_of_a_big_file_is_one_chunk_on_both_ways(
    transport: CountingTransport, store: FileStore, node: Node, tree: Path
) -> None:
    data = bytearray(random.Random(1).randbytes(6 * CHUNK_SIZE + 1000))
    (tree / "model.bin").write_bytes(data)
    await push_tree(node.http, store, workdir(await upload(transport, tree)))
    data[3 * CHUNK_SIZE + 17] ^= 1
    (tree / "model.bin").write_bytes(data)
    result = await upload(transport, tree)
    pushed = await push_tree(node.http, store, workdir(result))
    assert (result.chunks_sent, pushed.chunks_sent, pushed.bytes_sent) == (1, 1, CHUNK_SIZE)
    assert (node.home / "sky_workdir/model.bin").read_bytes() == data


async def test_progress_ends_at_the_total(
    transport: CountingTransport, store: FileStore, node: Node, tree: Path
) -> None:
    (tree / "a").write_bytes(random.Random(2).randbytes(5 * CHUNK_SIZE))
    up: list[tuple[int, int]] = []
    down: list[tuple[int, int]] = []
    result = await upload(transport, tree, progress=lambda done, total: up.append((done, total)))
    await push_tree(node.http, store, workdir(result), lambda done, total: down.append((done, total)))
    for seen in (up, down):
        assert len(seen) > 1 and seen == sorted(seen) and seen[-1] == (5 * CHUNK_SIZE, 5 * CHUNK_SIZE)


async def test_an_interrupted_upload_goes_on_where_it_broke(
    transport: CountingTransport, store: FileStore, node: Node, tree: Path
) -> None:
    (tree / "big").write_bytes(random.Random(3).randbytes(8 * CHUNK_SIZE))
    transport.break_after = 2
    with pytest.raises(ConnectionError):
        await upload(transport, tree)
    transport.break_after = None
    result = await upload(transport, tree)
    assert 0 < result.chunks_sent < 8
    await push_tree(node.http, store, workdir(result))
    assert same(tree, node.home / "sky_workdir")


async def test_an_interrupted_push_goes_on_where_it_broke(
    transport: CountingTransport, store: FileStore, node: Node, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "big").write_bytes(random.Random(4).randbytes(8 * CHUNK_SIZE))
    result = await upload(transport, tree)
    real, reads = store.read, []

    def breaking(name: str) -> bytes:
        reads.append(name)
        if len(reads) == 4:
            raise httpx.ReadError("the disk of the server hiccups")
        return real(name)

    monkeypatch.setattr(store, "read", breaking)
    with pytest.raises(AgentUnreachable):
        await push_tree(node.http, store, workdir(result))
    assert not (node.home / "sky_workdir").exists()
    monkeypatch.setattr(store, "read", real)
    pushed = await push_tree(node.http, store, workdir(result))
    assert 0 < pushed.chunks_sent < 8
    assert same(tree, node.home / "sky_workdir")


async def test_a_chunk_spoilt_on_the_servers_disk_is_found_and_sent_again_by_the_next_launch(
    transport: CountingTransport, store: FileStore, node: Node, tree: Path
) -> None:
    (tree / "a").write_text("one")
    (tree / "b").write_text("two")
    result = await upload(transport, tree)
    chunk = next(path for path in store.folder.rglob("chunks/*/*") if path.read_bytes() == b"one")
    chunk.write_bytes(b"onE")
    with pytest.raises(FilesMissing, match="damaged in the file store"):
        await push_tree(node.http, store, workdir(result))
    assert not (node.home / "sky_workdir").exists()
    assert (await upload(transport, tree)).chunks_sent == 1
    await push_tree(node.http, store, workdir(result))
    assert same(tree, node.home / "sky_workdir")


async def test_a_file_written_while_it_is_sent_is_sent_as_it_is_at_last(
    transport: CountingTransport, store: FileStore, node: Node, tree: Path
) -> None:
    (tree / "a").write_bytes(bytes(10))
    (tree / "b").write_bytes(bytes(20))

    def edit(done: list[int] = []) -> None:  # noqa: B006
        if not done:
            done.append(1)
            (tree / "b").write_bytes(b"new content")

    real = transport._send

    def sending(*args: Any) -> Any:
        edit()
        return real(*args)

    transport._send = sending  # type: ignore[method-assign,assignment]
    result = await upload(transport, tree)
    await push_tree(node.http, store, workdir(result))
    assert same(tree, node.home / "sky_workdir")


async def test_a_full_store_is_told_to_the_uploader(
    transport: CountingTransport, store: FileStore, tree: Path
) -> None:
    store.max_bytes = 3 * CHUNK_SIZE
    (tree / "big").write_bytes(random.Random(5).randbytes(8 * CHUNK_SIZE))
    with pytest.raises(FileStoreFull, match="limit"):
        await upload(transport, tree)


async def test_mounts_go_to_all_nodes_side_by_side(
    transport: CountingTransport, store: FileStore, tmp_path: Path, tree: Path
) -> None:
    nodes = [Node(tmp_path / f"node{number}") for number in range(3)]
    for node in nodes:
        await node.start()
    fill(tree, 3, 10)
    single = tmp_path / "app.cfg"
    single.write_text("x = 1\n")
    first, second = await upload(transport, tree), await upload(transport, single)
    mounts = [workdir(first), MountRef("~/etc/app.conf", second.manifest_id, "file_mount", second.is_file)]
    seen: set[tuple[int, str]] = set()
    try:
        results = await push_mounts(
            [node.http for node in nodes],
            store,
            mounts,
            lambda index, mount, sent, total: seen.add((index, mount.kind)),
        )
    finally:
        for node in nodes:
            await node.close()
    assert len(results) == 6 and len(seen) == 6
    for node in nodes:
        assert same(tree, node.home / "sky_workdir")
        assert (node.home / "etc/app.conf").read_text() == "x = 1\n"


async def test_one_refusing_node_ends_the_sync_and_says_why(
    transport: CountingTransport, store: FileStore, node: Node, tree: Path
) -> None:
    (tree / "f").write_text("1")
    result = await upload(transport, tree)
    with pytest.raises(PermissionDenied, match="outside of the node's home"):
        await push_mounts([node.http], store, [MountRef("/data", result.manifest_id)])


async def test_the_agents_file_routes_need_its_token(node: Node) -> None:
    for method, path in (
        ("POST", "/v1/files/plan"),
        ("PUT", "/v1/files/chunks"),
        ("POST", "/v1/files/apply"),
    ):
        answer = await node.http.request(method, path, headers={"Authorization": "Bearer wrong"})
        assert answer.status_code == 401


async def test_a_node_with_a_full_disk_is_understood_by_the_pusher(
    transport: CountingTransport, store: FileStore, node: Node, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The refusal comes in the middle of a long request and must arrive as a sentence, not as a broken connection."""
    (tree / "big").write_bytes(random.Random(6).randbytes(20 * CHUNK_SIZE))
    result = await upload(transport, tree)

    def no_space(self: FileTrees, path: str, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    # The manifest is written first, by the same function: it fails at once there; then only at the chunks.
    with monkeypatch.context() as patch:
        patch.setattr(FileTrees, "_write", no_space)
        with pytest.raises(SkyloomError, match="disk is full"):
            await push_tree(node.http, store, workdir(result))
    real = FileTrees._write
    monkeypatch.setattr(
        FileTrees,
        "_write",
        lambda self, path, data: (no_space if "chunks" in path else real)(self, path, data),
    )
    with pytest.raises(SkyloomError, match="disk is full"):
        await push_tree(node.http, store, workdir(result))
    assert list((node.home / ".sky/files/chunks").iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_gigabyte_needs_little_memory_on_the_way(tmp_path: Path) -> None:
    """RSS of a process in which client, store and agent all work on it: two batches here, a chunk or two there."""
    if shutil.disk_usage(tmp_path).free < 5 * 2**30:
        pytest.skip("less than 5 GiB free for three copies of a gigabyte")
    script = Path(__file__).with_name("file_sync_big.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=280, check=False
    )
    for name in ("tree", "store", "node"):
        shutil.rmtree(tmp_path / name, ignore_errors=True)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["upload_growth"] < 80 * 2**20
    assert figures["push_growth"] < 80 * 2**20
    assert figures["again_seconds"] < 2
