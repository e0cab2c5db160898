"""Brings a tree into the server's file store: its manifest, and the chunks that the server says it lacks.

A broken upload needs no bookkeeping here: the server keeps every chunk that arrived and is asked again what is missing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sky.sync.tree import READS, Place, Tree, forget_hashes, keeps_changing, read_tree
from skyloom_common.contracts.file_frames import encode_frame
from skyloom_common.contracts.files import (
    CorruptChunk,
    FilesMissing,
    ManifestAnswer,
    pack_manifest,
)
from skyloom_common.contracts.task.model import SyncSpec
from skyloom_common.core import wire
from skyloom_common.core.chunks import FileChanged

MANIFESTS, CHUNKS = "/files/manifests", "/files/chunks"
BATCH_BYTES = 8 * 1024 * 1024
ROUNDS = 4
TIMEOUT = 600.0
_LOCAL = ("http://127.", "http://localhost", "http://[::1]", "unix:")

Progress = Callable[[int, int], None]
"""(bytes done, bytes to send); called after each batch."""


class Transport(Protocol):
    """What is needed of sky.net.transport.Transport."""

    endpoint: str

    def call(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = ...,
        key: str | None = ...,
        timeout: float | None = ...,
    ) -> bytes: ...


@dataclass(frozen=True)
class UploadResult:
    """`bytes_sent`: what went over the wire as request bodies, the manifest included. `warnings`: sentences for the user."""

    manifest_id: str
    is_file: bool
    files: int
    bytes_total: int
    bytes_sent: int
    chunks_sent: int
    warnings: tuple[str, ...] = ()


def upload_tree(
    transport: Transport,
    path: str,
    *,
    sync: SyncSpec | None = None,
    progress: Progress | None = None,
    cache_folder: Path | None = None,
    deflate: bool | None = None,
) -> UploadResult:
    """Sends what the server lacks of the file or directory at `path`; when that is nothing, only the manifest's id is sent.

    `deflate` None: what shrinks is deflated unless the server is on this machine.
    A file that changes while it is sent is read again, a few times; then FileKeepsChanging says which.
    """
    if deflate is None:
        deflate = not transport.endpoint.startswith(_LOCAL)
    upload = _Upload(transport, progress or (lambda done, total: None), deflate)
    for _ in range(READS):
        tree = read_tree(path, sync, cache_folder)
        try:
            upload.send(tree)
        except _Changed as changed:
            upload.changed = changed
            forget_hashes(tree, changed.paths, cache_folder)
            continue
        return upload.result(tree)
    assert upload.changed is not None
    raise keeps_changing(upload.changed.paths[0])


class _Changed(Exception):
    def __init__(self, paths: list[str]) -> None:
        super().__init__(paths)
        self.paths = paths


class _Upload:
    def __init__(self, transport: Transport, progress: Progress, deflate: bool) -> None:
        self._transport = transport
        self._progress = progress
        self._deflate = deflate
        self._bytes_sent = 0
        self._chunks_sent = 0
        self.changed: _Changed | None = None

    def result(self, tree: Tree) -> UploadResult:
        return UploadResult(
            manifest_id=tree.id,
            is_file=tree.scanned.is_file,
            files=tree.files,
            bytes_total=tree.bytes_total,
            bytes_sent=self._bytes_sent,
            chunks_sent=self._chunks_sent,
            warnings=tuple(tree.scanned.warnings),
        )

    def send(self, tree: Tree) -> None:
        answer = self._ask(tree.id)
        if not answer.known:
            answer = self._answer(pack_manifest(tree.text))
        for _ in range(ROUNDS):
            if not answer.missing:
                return
            self._send_chunks(tree, answer.missing)
            answer = self._ask(tree.id)
        raise FilesMissing(
            f"the server lost {len(answer.missing)} chunks of {tree.scanned.root} while they were sent"
        )

    def _ask(self, manifest_id: str) -> ManifestAnswer:
        return self._answer(json.dumps({"id": manifest_id}).encode())

    def _answer(self, body: bytes) -> ManifestAnswer:
        self._bytes_sent += len(body)
        # Asking twice does no harm; the key tells the transport so.
        key = os.urandom(16).hex()
        answer = self._transport.call("POST", MANIFESTS, body=body, key=key, timeout=TIMEOUT)
        return wire.loads(ManifestAnswer, answer)

    def _send_chunks(self, tree: Tree, missing: tuple[str, ...]) -> None:
        """Reads the next batch while one is on its way: two batches are in memory, whatever the tree's size."""
        from concurrent.futures import Future, ThreadPoolExecutor

        places = tree.places(missing)
        total = sum(place.length for place in places.values())
        done = 0
        with ThreadPoolExecutor(1) as sender:
            sending: Future[bytes] | None = None
            before = 0
            for paths, frames, plain in self._batches(tree, places):
                if sending is not None:
                    sending.result()
                    done += before
                    self._progress(done, total)
                sending, before = sender.submit(self._put, paths, frames), plain
            if sending is not None:
                sending.result()
            self._progress(total, total)

    def _put(self, paths: list[str], body: bytes) -> bytes:
        try:
            answer = self._transport.call("PUT", CHUNKS, body=body, timeout=TIMEOUT)
        except CorruptChunk as error:
            raise _Changed(paths) from error
        self._bytes_sent += len(body)
        return answer

    def _batches(self, tree: Tree, places: dict[str, Place]) -> Iterator[tuple[list[str], bytes, int]]:
        """(paths, frames, plain bytes) of about BATCH_BYTES each."""
        paths: list[str] = []
        frames: list[bytes] = []
        size = plain = 0
        for name, place in places.items():
            try:
                frame = encode_frame(name, tree.read(place), deflate=self._deflate)
            except FileChanged as error:
                raise _Changed([place.path]) from error
            if frames and size + len(frame) > BATCH_BYTES:
                yield paths, b"".join(frames), plain
                paths, frames, size, plain = [], [], 0, 0
            paths.append(place.path)
            frames.append(frame)
            size += len(frame)
            plain += place.length
            self._chunks_sent += 1
        if frames:
            yield paths, b"".join(frames), plain
