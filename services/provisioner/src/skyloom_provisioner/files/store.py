"""Chunks and manifests on disk: FOLDER/chunks/aa/<sha256> and FOLDER/manifests/<id>. Blocking; callers use threads.

Whatever has its name is whole: it was written aside and renamed. Nothing is synced to disk one by one: what a power cut
damages has another length or another hash, counts as missing, and is sent again.
It knows no operation, no node and no HTTP.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import logging
import os
import threading
import time
import uuid
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from skyloom_common.contracts.file_frames import Frame
from skyloom_common.contracts.files import (
    CorruptChunk,
    FilesMissing,
    FileStoreFull,
    ManifestAnswer,
    check_id,
    needed_chunks,
    parse_manifest,
    unpack_entries,
)

log = logging.getLogger(__name__)

DEFAULT_MAX_BYTES = 20 * 1024**3
RECENT_SECONDS = 3600.0
"""A manifest used within this time is never evicted: somebody may be about to launch with it."""
LOW_WATER = 0.9
_FULL = (errno.ENOSPC, errno.EDQUOT)


class FileStore:
    """`max_bytes`: of chunks; the least recently used trees go when more is needed."""

    def __init__(self, folder: Path, *, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._chunks = folder / "chunks"
        self._manifests = folder / "manifests"
        self._incoming = folder / "incoming"
        self._lock = threading.Lock()
        self._size: int | None = None
        self._pins: dict[str, tuple[str, ...]] = {}
        self._complete: set[str] = set()
        self._made: set[str] = set()
        self._prefix = f"{uuid.uuid4().hex}-"
        self._numbers = itertools.count()

    # --- manifests ---

    def ask(self, manifest_id: str) -> ManifestAnswer:
        """What is still missing of a tree; `known` False when its manifest is not here. Counts as a use."""
        path = self._manifest_path(manifest_id)
        try:
            os.utime(path)
        except FileNotFoundError:
            return ManifestAnswer(manifest_id, known=False)
        if manifest_id in self._complete:
            return ManifestAnswer(manifest_id)
        return self._answer(manifest_id, self.chunk_sizes(manifest_id))

    def add_manifest(self, packed: bytes) -> ManifestAnswer:
        """Validates and keeps a manifest."""
        manifest_id, entries = parse_manifest(packed)
        self._write(str(self._manifest_path(manifest_id)), packed)
        return self._answer(manifest_id, needed_chunks(entries))

    def packed_manifest(self, manifest_id: str) -> bytes:
        """As it travels. Raises FilesMissing."""
        try:
            return self._manifest_path(manifest_id).read_bytes()
        except FileNotFoundError:
            raise _gone(manifest_id) from None

    def chunk_sizes(self, manifest_id: str) -> dict[str, int]:
        """Every chunk of a tree and its length. Raises FilesMissing when the manifest is gone."""
        return needed_chunks(unpack_entries(self.packed_manifest(manifest_id), manifest_id))

    def require(self, manifest_id: str) -> None:
        """Raises FilesMissing unless the whole tree is here. Counts as a use."""
        answer = self.ask(check_id(manifest_id))
        if not answer.known or answer.missing:
            raise _gone(manifest_id)

    def _answer(self, manifest_id: str, sizes: dict[str, int]) -> ManifestAnswer:
        missing = tuple(name for name, size in sizes.items() if not self._has(name, size))
        if not missing:
            self._complete.add(manifest_id)
        return ManifestAnswer(manifest_id, missing)

    # --- chunks ---

    def put(self, frames: Iterable[Frame]) -> int:
        """Keeps the chunks; how many were new. A corrupt one is refused after the others were kept."""
        fresh = [frame for frame in frames if not os.path.exists(self._path(frame.name))]
        self._make_room(sum(len(frame.payload) for frame in fresh))
        stored, corrupt = 0, None
        for frame in fresh:
            try:
                data = frame.chunk()
            except CorruptChunk as error:
                corrupt = error
                continue
            self._write(self._path(frame.name), data)
            stored += 1
            with self._lock:
                self._size = (self._size or 0) + len(data)
        if corrupt is not None:
            raise corrupt
        return stored

    def read(self, name: str) -> bytes:
        """The bytes of a chunk, unchecked: the receiver checks. Raises FilesMissing."""
        try:
            with open(self._path(name), "rb", buffering=0) as file:
                return file.read()
        except FileNotFoundError:
            raise FilesMissing(f"chunk {name[:12]} is not in the file store any more", hint=_AGAIN) from None

    def drop_damaged(self, manifest_id: str) -> int:
        """Removes those chunks of a tree whose content is not what their name says; how many there were."""
        dropped = 0
        for name, size in self.chunk_sizes(manifest_id).items():
            path = self._path(name)
            with contextlib.suppress(FileNotFoundError):
                data = Path(path).read_bytes()
                if len(data) != size or hashlib.sha256(data).hexdigest() != name:
                    log.error("chunk %s is damaged on disk; removed, it will be asked for again", name)
                    self._remove(path, len(data))
                    dropped += 1
        if dropped:
            self._complete.clear()
        return dropped

    # --- what must stay ---

    def pin(self, owner: str, manifest_ids: Collection[str]) -> None:
        """These trees are not evicted until `unpin(owner)`. The owner is an operation; pin again after a restart."""
        self._pins[owner] = tuple(manifest_ids)

    def unpin(self, owner: str) -> None:
        self._pins.pop(owner, None)

    @contextlib.contextmanager
    def using(self, manifest_ids: Collection[str]) -> Iterator[None]:
        owner = uuid.uuid4().hex
        self.pin(owner, manifest_ids)
        try:
            yield
        finally:
            self.unpin(owner)

    # --- room ---

    def size(self) -> int:
        """Bytes of all chunks; counted on disk once, then kept."""
        with self._lock:
            if self._size is None:
                self._sweep_incoming()
                self._size = sum(size for _, size, _ in self._all_chunks())
            return self._size

    def _make_room(self, needed: int) -> None:
        if self.size() + needed <= self.max_bytes:
            return
        self.evict(int(self.max_bytes * LOW_WATER) - needed)
        if self.size() + needed > self.max_bytes:
            raise FileStoreFull(
                f"the file store has reached its limit of {self.max_bytes} bytes, and all of it is in use",
                hint="Send fewer files (.skyignore), wait for running launches, or raise the limit.",
            )

    def evict(self, goal: int) -> int:
        """Removes the least recently used trees until `goal` bytes are left, never one that is pinned or recent."""
        with self._lock:
            before = self._size or 0
            recent = time.time() - RECENT_SECONDS
            pinned = {manifest_id for pins in self._pins.values() for manifest_id in pins}
            kept, others = self._by_last_use(pinned, recent)
            uses: dict[str, int] = {}
            for manifest_id in (*kept, *others):
                for name in self._names(manifest_id):
                    uses[name] = uses.get(name, 0) + 1
            for path, size, modified in list(self._all_chunks()):
                if os.path.basename(path) not in uses and modified < recent:
                    self._remove_locked(path, size)
            for manifest_id in others:
                if (self._size or 0) <= goal:
                    break
                self._drop_tree(manifest_id, uses)
            freed = before - (self._size or 0)
        if freed:
            log.info("file store: %d bytes freed, %d left", freed, before - freed)
        return freed

    def _by_last_use(self, pinned: Collection[str], recent: float) -> tuple[list[str], list[str]]:
        """(those that must stay, the others with the least recently used first)."""
        kept, others = [], []
        with contextlib.suppress(FileNotFoundError):
            for item in os.scandir(self._manifests):
                with contextlib.suppress(FileNotFoundError):
                    used = item.stat().st_mtime
                    if item.name in pinned or used >= recent:
                        kept.append(item.name)
                    else:
                        others.append((used, item.name))
        return kept, [name for _, name in sorted(others)]

    def _names(self, manifest_id: str) -> list[str]:
        try:
            return list(self.chunk_sizes(manifest_id))
        except FilesMissing:
            return []

    def _drop_tree(self, manifest_id: str, uses: dict[str, int]) -> None:
        names = self._names(manifest_id)
        # The manifest first: after a crash its chunks belong to nobody and go at the next eviction.
        self._manifest_path(manifest_id).unlink(missing_ok=True)
        self._complete.discard(manifest_id)
        for name in names:
            uses[name] -= 1
            if uses[name] == 0:
                path = self._path(name)
                with contextlib.suppress(FileNotFoundError):
                    self._remove_locked(path, os.stat(path).st_size)

    def _remove(self, path: str, size: int) -> None:
        with self._lock:
            self._remove_locked(path, size)

    def _remove_locked(self, path: str, size: int) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        self._size = max(0, (self._size or 0) - size)

    def _all_chunks(self) -> Iterator[tuple[str, int, float]]:
        """(path, bytes, time of arrival)."""
        with contextlib.suppress(FileNotFoundError):
            for group in os.scandir(self._chunks):
                for item in os.scandir(group.path):
                    with contextlib.suppress(FileNotFoundError):
                        status = item.stat()
                        yield item.path, status.st_size, status.st_mtime

    def _sweep_incoming(self) -> None:
        """What a killed process had half written. Another process may be writing, so only what is old."""
        with contextlib.suppress(FileNotFoundError):
            for item in os.scandir(self._incoming):
                if item.stat().st_mtime < time.time() - RECENT_SECONDS:
                    os.unlink(item.path)

    # --- paths ---

    def _manifest_path(self, manifest_id: str) -> Path:
        return self._manifests / check_id(manifest_id)

    def _path(self, name: str) -> str:
        return f"{self._chunks}/{name[:2]}/{name}"

    def _has(self, name: str, size: int) -> bool:
        try:
            return os.stat(self._path(name)).st_size == size
        except FileNotFoundError:
            return False

    def _write(self, path: str, data: bytes) -> None:
        """Whole or not at all."""
        self._make_folder(str(self._incoming))
        self._make_folder(os.path.dirname(path))
        temporary = f"{self._incoming}/{self._prefix}{next(self._numbers)}"
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                _write_all(fd, data)
            finally:
                os.close(fd)
            os.replace(temporary, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            if error.errno in _FULL:
                raise FileStoreFull(
                    f"the disk under {self.folder} is full; nothing of this chunk was kept",
                    hint="Free disk space on the server and launch again: what arrived is not sent twice.",
                ) from error
            raise

    def _make_folder(self, folder: str) -> None:
        if folder not in self._made:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            self._made.add(folder)


_AGAIN = "Launch again: the client sends what is missing."


def _gone(manifest_id: str) -> FilesMissing:
    return FilesMissing(
        f"the files of manifest {manifest_id[:12]} are not (all) in the file store", hint=_AGAIN
    )


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
