"""The file store and its routes: nothing wrong gets in, nothing in use goes out, a broken upload goes on."""

from __future__ import annotations

import hashlib
import os
import subprocess
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from starlette.requests import ClientDisconnect
from starlette.requests import Request as StarletteRequest

import skyloom_provisioner.files.store as store_module
from skyloom_common.contracts.file_frames import Frame, encode_frame
from skyloom_common.contracts.files import (
    CorruptChunk,
    Entry,
    FilesMissing,
    FileStoreFull,
    InvalidManifest,
    ManifestAnswer,
    encode_manifest,
    pack_manifest,
)
from skyloom_common.core.errors import InvalidRequest, SkyloomError
from skyloom_common.core.wire import loads
from skyloom_common.service.responses import error_response
from skyloom_provisioner.files import FileStore, router
from skyloom_provisioner.files.routes import receive

HOUR = 3600.0


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def packed(**files: bytes) -> bytes:
    entries: list[Entry] = [(name, "f", 0o644, len(files[name]), sha(files[name])) for name in sorted(files)]
    return pack_manifest(encode_manifest(entries))


def frame(data: bytes) -> Frame:
    return Frame(sha(data), 0, data)


def upload(store: FileStore, **files: bytes) -> str:
    answer = store.add_manifest(packed(**files))
    store.put(frame(data) for data in files.values() if sha(data) in answer.missing)
    return answer.id


def age(store: FileStore, seconds: float) -> None:
    """Everything in the store was last used that long ago."""
    for path in store.folder.rglob("*"):
        if path.is_file():
            used = path.stat().st_mtime - seconds
            os.utime(path, (used, used))


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "files", max_bytes=1000)


def test_a_tree_is_known_when_all_of_it_is_there(store: FileStore) -> None:
    text = packed(a=b"1", b=b"2")
    first = store.add_manifest(text)
    assert set(first.missing) == {sha(b"1"), sha(b"2")}
    assert store.ask(first.id) == first
    with pytest.raises(FilesMissing):
        store.require(first.id)
    store.put([frame(b"1")])
    assert store.ask(first.id).missing == (sha(b"2"),)
    store.put([frame(b"2")])
    assert store.ask(first.id) == ManifestAnswer(first.id)
    store.require(first.id)
    assert store.packed_manifest(first.id) == text
    assert FileStore(store.folder).ask(first.id) == ManifestAnswer(first.id), "also after a restart"


def test_an_unknown_manifest_is_said_to_be_unknown(store: FileStore) -> None:
    assert store.ask(sha(b"?")).known is False
    for call in (store.packed_manifest, store.require, store.chunk_sizes):
        with pytest.raises(FilesMissing):
            call(sha(b"?"))


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "a" * 63, "A" * 64, "a" * 64 + "\n"])
def test_an_id_that_is_no_hash_never_becomes_a_path(store: FileStore, name: str) -> None:
    with pytest.raises(InvalidRequest):
        store.ask(name)


def test_a_bad_manifest_is_not_kept(store: FileStore) -> None:
    with pytest.raises(InvalidManifest):
        store.add_manifest(pack_manifest(encode_manifest([("../a", "f", 0o644, 0, "")])))
    assert not list(store.folder.rglob("manifests/*"))


def test_a_corrupt_chunk_is_refused_and_the_good_ones_are_kept(store: FileStore) -> None:
    with pytest.raises(CorruptChunk):
        store.put([Frame(sha(b"x"), 0, b"y"), frame(b"good")])
    assert store.read(sha(b"good")) == b"good"
    with pytest.raises(FilesMissing):
        store.read(sha(b"x"))


def test_damage_on_disk_is_found_removed_and_asked_for_again(store: FileStore) -> None:
    tree = upload(store, a=b"one", b=b"two")
    path = next(store.folder.rglob(sha(b"one")))
    path.write_bytes(b"onX")
    assert store.drop_damaged(tree) == 1
    assert store.ask(tree).missing == (sha(b"one"),)
    path = next(store.folder.rglob(sha(b"two")))
    path.write_bytes(b"")
    assert FileStore(store.folder).ask(tree).missing == (sha(b"one"), sha(b"two")), "cut off by a power cut"


def test_the_least_recently_used_tree_makes_room(store: FileStore) -> None:
    old, used, new = (upload(store, a=bytes([number]) * 300, shared=b"s" * 100) for number in (1, 2, 3))
    age(store, 2 * HOUR)
    os.utime(store.folder / "manifests" / used, (time.time() - 1.5 * HOUR,) * 2)
    os.utime(store.folder / "manifests" / new, (time.time() - 1.4 * HOUR,) * 2)
    upload(store, b=b"x" * 200)
    assert store.ask(old).known is False
    assert store.ask(used) == ManifestAnswer(used) and store.ask(new) == ManifestAnswer(new)
    assert store.read(sha(b"s" * 100))
    assert store.size() == 900


def test_what_is_pinned_or_recent_stays_and_the_refusal_says_why(store: FileStore) -> None:
    pinned = upload(store, a=b"1" * 500)
    age(store, 2 * HOUR)
    store.pin("operation-1", [pinned])
    recent = upload(store, a=b"2" * 400)
    with pytest.raises(FileStoreFull, match="1000 bytes, and all of it is in use"):
        upload(store, a=b"3" * 200)
    assert store.ask(pinned) == ManifestAnswer(pinned) and store.ask(recent) == ManifestAnswer(recent)
    age(store, 2 * HOUR)
    os.utime(store.folder / "manifests" / pinned, (time.time() - 3 * HOUR,) * 2)
    store.unpin("operation-1")
    upload(store, a=b"3" * 200)
    assert store.ask(pinned).known is False


def test_chunks_of_no_manifest_go_first_but_not_at_once(store: FileStore) -> None:
    store.put([frame(b"o" * 600)])
    with pytest.raises(FileStoreFull):
        upload(store, a=b"1" * 500)
    age(store, 2 * HOUR)
    upload(store, a=b"1" * 500)
    assert store.size() == 500


def test_the_size_is_counted_anew_after_a_restart(store: FileStore) -> None:
    upload(store, a=b"1" * 123, b=b"2" * 77)
    assert store.size() == 200 == FileStore(store.folder).size()


def test_a_full_disk_is_named_and_leaves_no_crumbs(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(fd: int, data: memoryview) -> None:
        os.write(fd, data[:2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module, "_write_all", no_space)
    with pytest.raises(FileStoreFull, match="disk under"):
        store.put([frame(b"12345")])
    assert [path for path in store.folder.rglob("*") if path.is_file()] == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_really_full_disk(tmp_path: Path, small_tmpfs: Path) -> None:
    store = FileStore(small_tmpfs / "files")
    chunks = [os.urandom(300_000) for _ in range(5)]
    with pytest.raises(FileStoreFull):
        store.put(map(frame, chunks))
    kept = [path for path in store.folder.rglob("*") if path.is_file()]
    assert kept and all(sha(path.read_bytes()) == path.name for path in kept)


@pytest.fixture
def small_tmpfs(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if made.returncode != 0:
        pytest.skip(f"a tmpfs cannot be mounted here: {made.stderr.decode().strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def test_many_writers_of_the_same_chunks_and_an_evicter_agree(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "files", max_bytes=10_000_000)
    data = {f"f{number:02}": bytes([number]) * 1000 for number in range(40)}
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(5):
                tree = upload(store, **data)
                store.evict(0)
                store.require(tree)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failures
    assert {name: store.read(sha(value)) for name, value in data.items()} == data


# --- over HTTP ---


@pytest.fixture
async def http(store: FileStore) -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI()
    app.include_router(router(store))
    app.add_exception_handler(SkyloomError, lambda request, error: error_response(error))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://store") as client:
        yield client


async def test_the_routes_take_manifests_questions_and_chunks(http: httpx.AsyncClient) -> None:
    text = packed(a=b"1", b=b"22")
    answer = loads(ManifestAnswer, (await http.post("/v1/files/manifests", content=text)).content)
    assert len(answer.missing) == 2
    body = encode_frame(sha(b"1"), b"1") + encode_frame(sha(b"22"), b"22")
    assert (await http.put("/v1/files/chunks", content=body)).json() == {"received": 2, "stored": 2}
    assert (await http.put("/v1/files/chunks", content=body)).json() == {"received": 2}
    asked = await http.post("/v1/files/manifests", json={"id": answer.id})
    assert loads(ManifestAnswer, asked.content) == ManifestAnswer(answer.id)


@pytest.mark.parametrize(
    "body", [b"", b"{}", b'{"id": "../x"}', b'{"id": 1}', b"\x1f\x8bnot gzip", b'{"id":"a","b":1}']
)
async def test_bad_manifest_requests_are_400(http: httpx.AsyncClient, body: bytes) -> None:
    assert (await http.post("/v1/files/manifests", content=body)).status_code == 400


async def test_bad_frames_are_400_and_keep_what_was_good(http: httpx.AsyncClient, store: FileStore) -> None:
    good = encode_frame(sha(b"1"), b"1")
    answer = await http.put("/v1/files/chunks", content=good + encode_frame(sha(b"2"), b"x"))
    assert (answer.status_code, answer.json()["code"]) == (400, "corrupt_chunk")
    answer = await http.put("/v1/files/chunks", content=encode_frame(sha(b"3"), b"3")[:-1])
    assert answer.status_code == 400
    assert store.read(sha(b"1")) == b"1"


async def test_a_full_store_reads_the_request_to_its_end_before_it_refuses(store: FileStore) -> None:
    read: list[int] = []

    async def body() -> AsyncIterator[bytes]:
        for number in range(50):
            read.append(number)
            data = os.urandom(30_000)
            yield encode_frame(sha(data), data)

    app = FastAPI()
    app.include_router(router(store))
    app.add_exception_handler(SkyloomError, lambda request, error: error_response(error))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://store") as client:
        answer = await client.put("/v1/files/chunks", content=body())
    assert answer.status_code == 507 and "limit" in answer.json()["message"]
    assert len(read) == 50


async def test_whole_frames_of_a_broken_upload_are_kept(store: FileStore) -> None:
    class Broken(StarletteRequest):
        async def stream(self) -> AsyncGenerator[bytes, None]:
            yield encode_frame(sha(b"1"), b"1") + encode_frame(sha(b"2"), b"2")[:-1]
            raise ClientDisconnect

    with pytest.raises(ClientDisconnect):
        await receive(Broken({"type": "http"}), store)
    assert store.read(sha(b"1")) == b"1"
