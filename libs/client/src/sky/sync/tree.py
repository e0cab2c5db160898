"""A scanned tree with the hashes of its files: what a manifest is made of. Reads files, sends nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sky.sync.cache import HashCache
from sky.sync.scan import Found, Scan, scan
from skyloom_common.contracts.files import FILE, Entry, encode_manifest, manifest_id, split_hashes
from skyloom_common.contracts.task.model import SyncSpec
from skyloom_common.core.chunks import CHUNK_SIZE, FileChanged, Stamp, hash_open_file, stamp_of
from skyloom_common.core.errors import Conflict, InvalidRequest
from skyloom_common.core.home import skyloom_home

READS = 3
"""How often a file is read again that changes under the reader."""


class FileKeepsChanging(Conflict):
    """A file was written each time it was read, so no consistent copy of it could be made."""

    code = "file_keeps_changing"


@dataclass(frozen=True)
class Place:
    """Where the bytes of a chunk lie."""

    path: str
    offset: int
    length: int
    stamp: Stamp


class Tree:
    def __init__(self, scanned: Scan, entries: list[Entry], stamps: dict[str, Stamp]) -> None:
        self.scanned = scanned
        self.entries = entries
        self.text = encode_manifest(entries)
        self.id = manifest_id(self.text)
        self._stamps = stamps

    @property
    def files(self) -> int:
        return len(self._stamps)

    @property
    def bytes_total(self) -> int:
        return sum(entry[3] for entry in self.entries)

    def places(self, names: Iterable[str]) -> dict[str, Place]:
        """Where each of the chunks can be read, in tree order."""
        wanted = set(names)
        found: dict[str, Place] = {}
        for path, kind, _, size, data in self.entries:
            if kind != FILE or not wanted:
                continue
            for index, name in enumerate((data,) if len(data) == 64 else split_hashes(data)):
                if name in wanted:
                    wanted.discard(name)
                    at = index * CHUNK_SIZE
                    found[name] = Place(path, at, min(CHUNK_SIZE, size - at), self._stamps[path])
        return found

    def read(self, place: Place) -> bytes:
        """Raises FileChanged when the file is no longer the one that was hashed."""
        try:
            fd = os.open(self.scanned.full_path(place.path), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise FileChanged from error
        try:
            data = os.pread(fd, place.length, place.offset)
            if len(data) != place.length or stamp_of(os.fstat(fd)) != place.stamp:
                raise FileChanged
            return data
        finally:
            os.close(fd)


def read_tree(path: str, sync: SyncSpec | None = None, cache_folder: Path | None = None) -> Tree:
    """The tree as it is now; files that are as they were at the last call are not read."""
    scanned = scan(path, sync)
    cache = HashCache(cache_folder or skyloom_home() / "cache" / "trees", scanned.root)
    entries: list[Entry] = []
    stamps: dict[str, Stamp] = {}
    for item in scanned.found:
        if item.kind != FILE:
            entries.append((item.path, item.kind, item.mode, 0, item.target))
            continue
        assert item.stamp is not None
        stamp, hashes = item.stamp, cache.get(item.path, item.stamp)
        if hashes is None:
            read = _read_hashes(scanned, item, cache)
            if read is None:
                continue
            stamp, hashes = read
        stamps[item.path] = stamp
        entries.append((item.path, FILE, item.mode, stamp[2], hashes))
    cache.save()
    return Tree(scanned, entries, stamps)


def forget_hashes(tree: Tree, paths: Iterable[str], cache_folder: Path | None = None) -> None:
    """After a server found that bytes do not fit to a remembered hash."""
    cache = HashCache(cache_folder or skyloom_home() / "cache" / "trees", tree.scanned.root)
    cache.keep_all()
    for path in paths:
        cache.forget(path)
    cache.save()


def _read_hashes(scanned: Scan, item: Found, cache: HashCache) -> tuple[Stamp, str] | None:
    """(stamp, hashes), or None when the file is gone."""
    for _ in range(READS):
        started = time.time_ns()
        try:
            stamp, hashes = _hash_file(scanned.full_path(item.path))
        except FileChanged:
            continue
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InvalidRequest(
                f"{item.path} cannot be read: {error.strerror}",
                hint="Make it readable, or name it in .skyignore.",
            ) from error
        cache.put(item.path, stamp, hashes, started)
        return stamp, hashes
    raise keeps_changing(item.path)


def keeps_changing(path: str) -> FileKeepsChanging:
    return FileKeepsChanging(
        f"{path} was changed each of the {READS} times it was read, so it cannot be sent",
        hint="Stop what writes it, or name it in .skyignore.",
    )


def _hash_file(path: str) -> tuple[Stamp, str]:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return hash_open_file(fd)
    finally:
        os.close(fd)
