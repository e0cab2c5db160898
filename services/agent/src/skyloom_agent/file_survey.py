"""Compares a manifest with what lies at its destination: what would have to be written, and which chunks that needs.

Reads only. Nothing is followed through a symlink below the destination: a link where the manifest has a directory is
something to be replaced.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, Optional

from skyloom_agent.file_state import Known, Remembered, read_state
from skyloom_common.contracts.files import DIRECTORY, FILE, Entry, needed_chunks, split_hashes
from skyloom_common.core.chunks import CHUNK_SIZE, HASH_DIGITS, FileChanged, Stamp, hash_open_file, stamp_of
from skyloom_common.core.errors import Conflict


class Source(NamedTuple):
    """A piece of a file on this node that has the bytes of a chunk, as long as the file keeps this stamp."""

    path: str
    offset: int
    stamp: Stamp


@dataclass
class Survey:
    """`changed`: what to write, in tree order. `mode_only`: those of them whose content is right already.

    `read`: files that had to be hashed, none before `started_ns`. `sources`: needed chunks that lie in files of the destination.
    """

    started_ns: int = field(default_factory=time.time_ns)
    entries: int = 0
    changed: list[Entry] = field(default_factory=list)
    mode_only: set[str] = field(default_factory=set)
    read: dict[str, Known] = field(default_factory=dict)
    needed: dict[str, int] = field(default_factory=dict)
    sources: dict[str, Source] = field(default_factory=dict)


def os_path(path: str) -> bytes:
    """The bytes that the file system has, whatever this process' locale is."""
    return path.encode("utf-8", "surrogateescape")


def survey(root: str, entries: Iterable[Entry], state_file: str) -> Survey:
    """`root`: the directory that the entries' paths are relative to. Raises Conflict for what cannot be put in place."""
    look = _Survey(root, state_file)
    for entry in entries:
        look.entry(entry)
    return look.finish()


class _Survey:
    def __init__(self, root: str, state_file: str) -> None:
        self._root = os_path(root.rstrip("/") + "/")
        self._state_file = state_file
        self._remembered = Remembered(state_file)
        self._new_below: Optional[str] = None
        self._out = Survey()

    def entry(self, entry: Entry) -> None:
        self._out.entries += 1
        path, kind = entry[0], entry[1]
        if self._new_below is not None:
            if path.startswith(self._new_below):
                self._out.changed.append(entry)
                return
            self._new_below = None
        try:
            status = os.lstat(self._root + os_path(path))
        except FileNotFoundError:
            self._missing(entry)
            return
        if kind == FILE:
            self._file(entry, status)
        elif kind == DIRECTORY:
            self._directory(entry, status)
        elif not self._is_same_link(entry, status):
            self._replace(entry, status)

    def finish(self) -> Survey:
        out = self._out
        out.needed = needed_chunks(entry for entry in out.changed if entry[0] not in out.mode_only)
        if out.needed:
            self._find_sources()
        return out

    def _missing(self, entry: Entry) -> None:
        self._out.changed.append(entry)
        if entry[1] == DIRECTORY:
            self._new_below = entry[0] + "/"

    def _directory(self, entry: Entry, status: os.stat_result) -> None:
        if not stat.S_ISDIR(status.st_mode):
            self._missing(entry)
        elif stat.S_IMODE(status.st_mode) & 0o777 != entry[2]:
            self._out.changed.append(entry)

    def _is_same_link(self, entry: Entry, status: os.stat_result) -> bool:
        return stat.S_ISLNK(status.st_mode) and os.readlink(self._root + os_path(entry[0])) == os_path(
            entry[4]
        )

    def _replace(self, entry: Entry, status: os.stat_result) -> None:
        if stat.S_ISDIR(status.st_mode) and os.listdir(self._root + os_path(entry[0])):
            what = "a file" if entry[1] == FILE else "a link"
            raise Conflict(
                f"{entry[0]!r} is a directory with files in it on the node, but {what} is to be put there",
                hint="Remove that directory on the node, or rename one of the two.",
            )
        self._out.changed.append(entry)

    def _file(self, entry: Entry, status: os.stat_result) -> None:
        path, _, mode, size, hashes = entry
        if not stat.S_ISREG(status.st_mode):
            self._replace(entry, status)
            return
        known = self._remembered.get(path)
        if known is None or known.stamp != stamp_of(status):
            # Another size and only one chunk: nothing to be gained by reading it.
            worth = status.st_size == size or status.st_size >= CHUNK_SIZE
            known = self._read(path) if worth else None
        same = known is not None and known.hashes == hashes
        if same and stat.S_IMODE(status.st_mode) & 0o777 == mode:
            return
        self._out.changed.append(entry)
        if same:
            self._out.mode_only.add(path)

    def _read(self, path: str) -> Optional[Known]:
        try:
            fd = os.open(self._root + os_path(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            stamp, hashes = hash_open_file(fd)
        except FileChanged:
            return None
        finally:
            os.close(fd)
        known = Known(path, stamp, hashes)
        self._out.read[path] = known
        return known

    def _find_sources(self) -> None:
        """Chunks that are somewhere in the destination already: an edited big file, a renamed one, a copy."""
        needed, sources = self._out.needed, self._out.sources
        for rows in (self._out.read.values(), read_state(self._state_file)):
            for row in rows:
                names = (row.hashes,) if len(row.hashes) == HASH_DIGITS else split_hashes(row.hashes)
                useful = [index for index, name in enumerate(names) if name in needed and name not in sources]
                if useful and self._is_still(row):
                    for index in useful:
                        sources[names[index]] = Source(row.path, index * CHUNK_SIZE, row.stamp)

    def _is_still(self, row: Known) -> bool:
        try:
            return stamp_of(os.lstat(self._root + os_path(row.path))) == row.stamp
        except OSError:
            return False
