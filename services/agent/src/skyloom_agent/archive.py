"""A directory as a tar stream, file by file and block by block; files that grow meanwhile are cut at their first size."""

from __future__ import annotations

import os
import tarfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

BLOCK = 256 * 1024


async def tar_stream(directory: Path) -> AsyncIterator[bytes]:
    """Regular files and directories below `directory`, named from its own name on."""
    for path in _walk(directory):
        name = str(path.relative_to(directory.parent))
        if path.is_dir():
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.mtime = tarfile.DIRTYPE, 0o755, int(path.stat().st_mtime)
            yield info.tobuf(tarfile.PAX_FORMAT)
        else:
            for part in _file(path, name):
                yield part
    yield b"\0" * (2 * tarfile.BLOCKSIZE)


def _walk(directory: Path) -> Iterator[Path]:
    if directory.is_dir():
        yield directory
    for parent, folders, files in os.walk(directory):
        for name in sorted(folders) + sorted(files):
            path = Path(parent, name)
            if not path.is_symlink() and (path.is_dir() or path.is_file()):
                yield path


def _file(path: Path, name: str) -> Iterator[bytes]:
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = status.st_size, 0o644, int(status.st_mtime)
        yield info.tobuf(tarfile.PAX_FORMAT)
        left = info.size
        while left > 0:
            # Shorter than it was: the size is promised already, so the rest is filled up.
            part = file.read(min(BLOCK, left)) or b"\0" * min(BLOCK, left)
            left -= len(part)
            yield part
        yield b"\0" * (-info.size % tarfile.BLOCKSIZE)
