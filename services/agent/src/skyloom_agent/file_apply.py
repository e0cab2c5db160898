"""Puts a surveyed tree in place. First everything is made ready aside, on the same disk; only then names change.

So a full disk, a missing chunk or a dead connection leaves the destination as it was. Every file is replaced by one rename:
a reader sees the old one or the new one. Below the destination nothing is followed through a symlink.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from typing import Optional

from skyloom_agent.file_survey import Source, Survey, os_path
from skyloom_common.contracts.files import DIRECTORY, FILE, LINK, Entry, split_hashes
from skyloom_common.core.chunks import CHUNK_SIZE, HASH_DIGITS, stamp_of

_PIECE = 256 * 1024
_NO_KERNEL_COPY = (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class ChunksMissing(Exception):
    """Chunks that are neither staged nor (any more) in a file of the destination. Nothing was changed."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(f"{len(names)} chunks")
        self.names = names


def missing_chunks(survey: Survey, chunks: str) -> list[str]:
    """What must be sent before `apply` can work. `chunks`: the directory of received chunks."""
    return [
        name
        for name, size in survey.needed.items()
        if name not in survey.sources and not has(chunks, name, size)
    ]


def has(chunks: str, name: str, size: int) -> bool:
    try:
        return os.stat(f"{chunks}/{name}").st_size == size
    except FileNotFoundError:
        return False


def apply(root: str, survey: Survey, chunks: str) -> None:
    """Makes the changed entries of the survey so. Raises ChunksMissing or OSError."""
    missing = missing_chunks(survey, chunks)
    if missing:
        raise ChunksMissing(missing)
    os.makedirs(root, mode=0o755, exist_ok=True)
    stage = _stage_directory(root, chunks)
    os.mkdir(stage, 0o700)
    try:
        staged = _Stager(root, survey, chunks, stage).run()
        _Committer(root, stage, staged).run(survey)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _stage_directory(root: str, chunks: str) -> str:
    same_disk = os.stat(root).st_dev == os.stat(chunks).st_dev
    return f"{chunks}/stage-{uuid.uuid4().hex}" if same_disk else f"{root}/.skyloom-sync-{uuid.uuid4().hex}"


class _Stager:
    """Makes each new file, complete and with its mode, beside the destination."""

    def __init__(self, root: str, survey: Survey, chunks: str, stage: str) -> None:
        self._root = os_path(root)
        self._survey = survey
        self._chunks = chunks
        self._stage = stage
        self._may_move = stage.startswith(chunks + "/")
        self._uses = _count_uses(survey)
        self._count = 0

    def run(self) -> dict[str, str]:
        """Path in the tree -> ready file."""
        staged: dict[str, str] = {}
        for entry in self._survey.changed:
            if entry[1] == FILE and entry[0] not in self._survey.mode_only:
                staged[entry[0]] = self._file(entry)
        return staged

    def _file(self, entry: Entry) -> str:
        _, _, mode, size, hashes = entry
        if len(hashes) == HASH_DIGITS and self._may_move and self._uses[hashes] == 1:
            ready = f"{self._chunks}/{hashes}"
            if has(self._chunks, hashes, size):
                os.chmod(ready, mode)
                return ready
        self._count += 1
        ready = f"{self._stage}/{self._count}"
        fd = os.open(ready, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            left = size
            for name in split_hashes(hashes):
                self._chunk(name, min(left, CHUNK_SIZE), fd)
                left -= CHUNK_SIZE
            os.fchmod(fd, mode)
        finally:
            os.close(fd)
        return ready

    def _chunk(self, name: str, length: int, out: int) -> None:
        received = f"{self._chunks}/{name}"
        self._uses[name] -= 1
        if has(self._chunks, name, length):
            with _opened(received) as fd:
                copied = _copy(fd, 0, length, out)
            if self._uses[name] == 0:
                # Copied for the last time: a big file must not need its size twice.
                os.unlink(received)
        else:
            source = self._survey.sources.get(name)
            copied = source is not None and self._from_source(source, length, out)
        if not copied:
            raise ChunksMissing([name])

    def _from_source(self, source: Source, length: int, out: int) -> bool:
        """Whether the file is still the one that was hashed, also after it was copied from."""
        try:
            with _opened(self._root + b"/" + os_path(source.path)) as fd:
                return (
                    stamp_of(os.fstat(fd)) == source.stamp
                    and _copy(fd, source.offset, length, out)
                    and stamp_of(os.fstat(fd)) == source.stamp
                )
        except FileNotFoundError:
            return False


def _count_uses(survey: Survey) -> dict[str, int]:
    uses: dict[str, int] = {}
    for path, kind, _, _, hashes in survey.changed:
        if kind == FILE and path not in survey.mode_only:
            for name in split_hashes(hashes):
                uses[name] = uses.get(name, 0) + 1
    return uses


@contextlib.contextmanager
def _opened(path: object) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)  # type: ignore[arg-type]
    try:
        yield fd
    finally:
        os.close(fd)


def _copy(source: int, offset: int, length: int, target: int) -> bool:
    """Appends a range to `target`, inside the kernel where it can; False when the source is too short."""
    kernel_copy = getattr(os, "copy_file_range", None)
    while length:
        copied = 0
        if kernel_copy is not None:
            try:
                copied = kernel_copy(source, target, length, offset_src=offset)
            except OSError as error:
                if error.errno not in _NO_KERNEL_COPY:
                    raise
                kernel_copy = None
        if copied == 0:
            data = os.pread(source, min(length, _PIECE), offset)
            if not data:
                return False
            copied = os.write(target, data)
        offset += copied
        length -= copied
    return True


class _Committer:
    """Renames what is ready into place, in tree order, holding the directories on the way open."""

    def __init__(self, root: str, stage: str, staged: dict[str, str]) -> None:
        self._root = root
        self._stage = stage
        self._staged = staged
        self._open: list[tuple[str, int]] = []
        self._modes: list[tuple[str, int]] = []
        """Directories that were made writable for the while, and their right modes."""

    def run(self, survey: Survey) -> None:
        self._open.append(("", os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)))
        try:
            for entry in survey.changed:
                self._put(entry)
        finally:
            for path, mode in reversed(self._modes):
                with self._in_parent(path) as (parent, name):
                    os.chmod(name, mode, dir_fd=parent)
            while self._open:
                os.close(self._open.pop()[1])

    def _put(self, entry: Entry) -> None:
        path, kind, mode, _, target = entry
        with self._in_parent(path) as (parent, name):
            if kind == DIRECTORY:
                self._directory(path, parent, name, mode)
            elif kind == LINK:
                ready = f"{self._stage}/link"
                os.symlink(os_path(target), ready)
                self._replace(ready, parent, name)
            elif path in self._staged:
                self._replace(self._staged[path], parent, name)
            else:
                os.chmod(name, mode, dir_fd=parent)

    def _directory(self, path: str, parent: int, name: bytes, mode: int) -> None:
        present = _lstat(name, parent)
        if present is not None and not stat.S_ISDIR(present.st_mode):
            os.unlink(name, dir_fd=parent)
            present = None
        if present is None:
            os.mkdir(name, 0o700, dir_fd=parent)
        os.chmod(name, mode | 0o700, dir_fd=parent)
        if mode & 0o700 != 0o700:
            self._modes.append((path, mode))

    def _replace(self, ready: str, parent: int, name: bytes) -> None:
        try:
            os.replace(ready, name, dst_dir_fd=parent)
        except IsADirectoryError:
            os.rmdir(name, dir_fd=parent)
            os.replace(ready, name, dst_dir_fd=parent)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            # Another mount of the same disk: renames stop at its edge.
            self._copy_over(ready, parent, name)

    def _copy_over(self, ready: str, parent: int, name: bytes) -> None:
        aside = f".skyloom-{uuid.uuid4().hex}".encode()
        try:
            if os.path.islink(ready):
                os.symlink(os.readlink(ready), aside, dir_fd=parent)
            else:
                with _opened(ready) as source:
                    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                    fd = os.open(aside, flags, 0o600, dir_fd=parent)
                    try:
                        _copy(source, 0, os.fstat(source).st_size, fd)
                        os.fchmod(fd, stat.S_IMODE(os.fstat(source).st_mode))
                    finally:
                        os.close(fd)
            os.replace(aside, name, src_dir_fd=parent, dst_dir_fd=parent)
            os.unlink(ready)
        except OSError:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(aside, dir_fd=parent)
            raise

    @contextlib.contextmanager
    def _in_parent(self, path: str) -> Iterator[tuple[int, bytes]]:
        """(descriptor of the directory that holds `path`, its name there)."""
        while not path.startswith(self._open[-1][0]):
            os.close(self._open.pop()[1])
        *folders, name = path[len(self._open[-1][0]) :].split("/")
        for folder in folders:
            self._enter(folder)
        try:
            yield self._open[-1][1], os_path(name)
        except OSError as error:
            error.filename = path
            raise

    def _enter(self, folder: str) -> None:
        prefix, parent = self._open[-1]
        inside = prefix + folder
        fd = os.open(os_path(folder), _DIRECTORY_FLAGS, dir_fd=parent)
        mode = stat.S_IMODE(os.fstat(fd).st_mode)
        if mode & 0o300 != 0o300:
            with contextlib.suppress(PermissionError):
                os.fchmod(fd, mode | 0o700)
                self._modes.append((inside, mode))
        self._open.append((inside + "/", fd))


def _lstat(name: bytes, parent: int) -> Optional[os.stat_result]:
    try:
        return os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return None
