"""The trees that were synced to this node: where a destination lies, what it lacks, chunks as they come, putting in place.

Own files, under HOME/.sky/files: chunks/ (received, not yet used), manifests/ (the last ones), trees/ (what is remembered).
Blocking; the handlers in files.py call it in threads. One plan or apply runs at a time.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Optional

from skyloom_agent import file_apply
from skyloom_agent.file_state import Known, Remembered, may_be_remembered, wait_for_tick, write_state
from skyloom_agent.file_survey import Survey, os_path, survey
from skyloom_common.contracts.file_frames import Frame
from skyloom_common.contracts.files import (
    FILE,
    AppliedTree,
    CorruptChunk,
    Entry,
    FilePlan,
    InvalidManifest,
    NodeDiskFull,
    check_destination,
    check_id,
    unpack_entries,
)
from skyloom_common.core.chunks import stamp_of
from skyloom_common.core.errors import Conflict, InvalidRequest, PermissionDenied

WORKDIR = "sky_workdir"
KEEP_MANIFESTS = 32
STALE_SECONDS = 3600.0
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


class Place:
    """A destination on this node. `root`: the directory that the manifest's paths are relative to."""

    def __init__(self, destination: str, path: str, is_file: bool) -> None:
        self.destination = destination
        self.is_file = is_file
        self.root, self.name = os.path.split(path) if is_file else (path, "")
        self.key = hashlib.sha256(f"{int(is_file)}{path}".encode("utf-8", "surrogateescape")).hexdigest()[:32]

    def entries(self, entries: Iterator[Entry]) -> Iterator[Entry]:
        """The manifest's entries; those of a single file under the name that it is to have here."""
        if not self.is_file:
            yield from entries
            return
        all_of_them = list(entries)
        if len(all_of_them) != 1 or all_of_them[0][1] != FILE:
            raise InvalidManifest(
                f"the manifest for the file {self.destination!r} does not hold just one file"
            )
        yield (self.name, *all_of_them[0][1:])


class FileTrees:
    """`confine_to_home`: this machine is shared with others' nodes, so that only places in the node's home may be written."""

    def __init__(self, home: Path, *, confine_to_home: bool = False) -> None:
        self._home = os.path.realpath(home)
        self._confine = confine_to_home
        self._own = f"{self._home}/.sky"
        base = f"{self._own}/files"
        self._chunks, self._manifests, self._states = f"{base}/chunks", f"{base}/manifests", f"{base}/trees"
        self._lock = threading.Lock()
        self._planned: Optional[tuple[str, str, Survey]] = None
        for folder in (self._chunks, self._manifests, self._states):
            os.makedirs(folder, mode=0o700, exist_ok=True)
        for item in os.scandir(self._chunks):
            if item.name.startswith("stage-"):
                shutil.rmtree(item.path, ignore_errors=True)

    # --- what the provisioner asks ---

    def plan(self, manifest_id: str, destination: str, is_file: bool, packed: bytes = b"") -> FilePlan:
        place = self._place(destination, is_file)
        path = self._manifest_path(manifest_id)
        with self._lock, self._explained(destination):
            if packed:
                self._keep_manifest(path, manifest_id, packed)
            elif not os.path.exists(path):
                return FilePlan(need_manifest=True)
            self._drop_stale_chunks()
            found = self._survey(place, path)
            if not found.changed and found.read:
                self._remember(place, path, found)
            self._planned = (manifest_id, place.key, found)
            missing = file_apply.missing_chunks(found, self._chunks)
        return FilePlan(missing=tuple(missing), changed=len(found.changed) + (not os.path.isdir(place.root)))

    def apply(self, manifest_id: str, destination: str, is_file: bool) -> AppliedTree:
        place = self._place(destination, is_file)
        path = self._manifest_path(manifest_id)
        with self._lock, self._explained(destination):
            if not os.path.exists(path):
                raise Conflict(f"manifest {manifest_id[:12]} is not on the node; plan first")
            found = self._take_planned(manifest_id, place) or self._survey(place, path)
            try:
                file_apply.apply(place.root, found, self._chunks)
            except file_apply.ChunksMissing as missing:
                return AppliedTree(found.entries, 0, tuple(missing.names))
            except OSError as error:
                if error.errno in _FULL:
                    self._drop_chunks(found.needed)
                raise
            self._drop_chunks(found.needed)
            self._remember(place, path, found)
        return AppliedTree(found.entries, len(found.changed))

    def put(self, frames: Iterable[Frame]) -> int:
        """Keeps the chunks; how many were new. Corrupt ones are refused after the others were kept."""
        stored = 0
        corrupt: Optional[CorruptChunk] = None
        for frame in frames:
            path = f"{self._chunks}/{frame.name}"
            if os.path.exists(path):
                continue
            try:
                self._write(path, frame.chunk())
                stored += 1
            except CorruptChunk as error:
                corrupt = error
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                # The sync cannot succeed now: what it has brought so far only takes room from the jobs.
                self._drop_chunks([item.name for item in os.scandir(self._chunks) if item.is_file()])
                raise self._disk_full(self._chunks) from error
        if corrupt is not None:
            raise corrupt
        return stored

    # --- places ---

    def _place(self, destination: str, is_file: bool) -> Place:
        check_destination(destination)
        first, *rest = [part for part in destination.split("/") if part != "."]
        inner = "/".join(part for part in rest if part)
        if first == "~":
            path = os.path.join(self._home, inner)
        elif first == "":
            path = "/" + inner
        else:
            path = os.path.join(self._home, WORKDIR, first, inner)
        path = path.rstrip("/") or "/"
        if is_file and path in ("/", self._home):
            raise InvalidRequest(
                f"file_mounts: destination {destination!r} is a directory; name the file that is to be there"
            )
        self._check_allowed(destination, os.path.realpath(path))
        return Place(destination, path, is_file)

    def _check_allowed(self, destination: str, path: str) -> None:
        if self._confine and not _is_inside(path, self._home):
            right = "~/" + destination.strip("/").replace("../", "")
            raise PermissionDenied(
                f"file_mounts: destination {destination!r} is outside of the node's home, and this node shares its machine "
                f"with others; use {right!r}",
                details={"field": "file_mounts"},
            )
        if _is_inside(path, self._own):
            raise PermissionDenied(
                f"file_mounts: destination {destination!r} is where the node keeps its own state"
            )

    def _survey(self, place: Place, manifest: str) -> Survey:
        entries = place.entries(_entries_of(manifest))
        root = os.path.realpath(place.root)
        if _is_inside(self._own, root):
            entries = _without_own(entries, os.path.relpath(self._own, root), place.destination)
        return survey(place.root, entries, self._state_path(place))

    # --- manifests and what is remembered ---

    def _manifest_path(self, manifest_id: str) -> str:
        return f"{self._manifests}/{check_id(manifest_id)}"

    def _state_path(self, place: Place) -> str:
        return f"{self._states}/{place.key}"

    def _keep_manifest(self, path: str, manifest_id: str, packed: bytes) -> None:
        for _ in unpack_entries(packed, manifest_id):
            pass
        self._write(path, packed)
        kept = sorted(os.scandir(self._manifests), key=lambda item: item.stat().st_mtime, reverse=True)
        for item in kept[KEEP_MANIFESTS:]:
            os.unlink(item.path)

    def _take_planned(self, manifest_id: str, place: Place) -> Optional[Survey]:
        planned, self._planned = self._planned, None
        return planned[2] if planned is not None and planned[:2] == (manifest_id, place.key) else None

    def _remember(self, place: Place, manifest: str, found: Survey) -> None:
        """Losing this costs time only, so a full disk is no reason to fail."""
        if found.changed:
            wait_for_tick()
        with contextlib.suppress(OSError):
            entries = place.entries(_entries_of(manifest))
            write_state(
                self._state_path(place), _known_files(place.root, entries, found, self._state_path(place))
            )

    # --- received chunks ---

    def _write(self, path: str, data: bytes) -> None:
        temporary = f"{path}.{threading.get_ident()}.part"
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
            finally:
                os.close(fd)
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise

    def _drop_chunks(self, names: Iterable[str]) -> None:
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{self._chunks}/{name}")

    def _drop_stale_chunks(self) -> None:
        """What an upload left behind that nobody came back for."""
        before = time.time() - STALE_SECONDS
        for item in os.scandir(self._chunks):
            with contextlib.suppress(FileNotFoundError):
                if item.is_file(follow_symlinks=False) and item.stat().st_mtime < before:
                    os.unlink(item.path)

    # --- errors ---

    @contextlib.contextmanager
    def _explained(self, destination: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = (
                error.filename.decode("utf-8", "replace")
                if isinstance(error.filename, bytes)
                else error.filename
            )
            what = f"{where or destination}: {error.strerror}"
            if error.errno in _FULL:
                raise self._disk_full(destination) from error
            if error.errno in _FORBIDDEN:
                raise PermissionDenied(f"the node may not write to {destination!r} ({what})") from error
            raise Conflict(f"the files cannot be put at {destination!r} on the node ({what})") from error

    def _disk_full(self, where: str) -> NodeDiskFull:
        free = shutil.disk_usage(self._home).free // 2**20
        return NodeDiskFull(
            f"the node's disk is full ({free} MiB free), so the files for {where!r} were not put in place; "
            "what was there before is untouched",
            hint="Free space on the node, or launch with a larger disk_size.",
        )


def _is_inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _without_own(entries: Iterator[Entry], own: str, destination: str) -> Iterator[Entry]:
    for entry in entries:
        if _is_inside(entry[0], own):
            raise PermissionDenied(
                f"file_mounts: {entry[0]!r} for {destination!r} is where the node keeps its own state"
            )
        yield entry


def _entries_of(manifest: str) -> Iterator[Entry]:
    with open(manifest, "rb") as file:
        return unpack_entries(file.read())


def _known_files(root: str, entries: Iterable[Entry], found: Survey, old_state: str) -> Iterator[Known]:
    """What may be remembered of each file of the manifest, in tree order."""
    old = Remembered(old_state)
    written = {entry[0] for entry in found.changed}
    now = time.time_ns()
    for path, kind, _, size, hashes in entries:
        if kind != FILE:
            continue
        row: Optional[Known]
        if path in written:
            status = os.lstat(os_path(root) + b"/" + os_path(path))
            row = Known(path, stamp_of(status), hashes)
            if stat.S_ISREG(status.st_mode) and status.st_size == size and may_be_remembered(row, now):
                yield row
            continue
        row = found.read.get(path)
        if row is None:
            row = old.get(path)
        elif not may_be_remembered(row, found.started_ns):
            continue
        if row is not None:
            yield row
