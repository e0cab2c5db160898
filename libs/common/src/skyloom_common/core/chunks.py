"""Files as rows of hashed chunks, and when a remembered hash may be believed. Pure functions over open files and stat results."""

from __future__ import annotations

import hashlib
import os

CHUNK_SIZE = 4 * 1024 * 1024
HASH_DIGITS = 64
_READ = 1024 * 1024

Stamp = tuple[int, int, int, int, int]
"""(device, inode, size, mtime_ns, ctime_ns): while it is the same, so is the content, but see `is_settled`."""


class FileChanged(Exception):
    """The file was written while it was being read."""


def chunk_count(size: int) -> int:
    return (size + CHUNK_SIZE - 1) // CHUNK_SIZE


def stamp_of(status: os.stat_result) -> Stamp:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def is_settled(stamp: Stamp, hashed_at_ns: int, margin_ns: int) -> bool:
    """Whether a later write must show in the stamp. File times are coarse: one within the same tick as our reading would not."""
    return max(stamp[3], stamp[4]) + margin_ns < hashed_at_ns


def hash_open_file(fd: int) -> tuple[Stamp, str]:
    """(stamp, joined chunk hashes) of a whole file. Raises FileChanged when it changed meanwhile."""
    before = stamp_of(os.fstat(fd))
    hashes = []
    left = before[2]
    while left > 0:
        name, length = _hash_chunk(fd, min(left, CHUNK_SIZE))
        hashes.append(name)
        left -= length
    if os.read(fd, 1) or stamp_of(os.fstat(fd)) != before:
        raise FileChanged
    return before, "".join(hashes)


def _hash_chunk(fd: int, length: int) -> tuple[str, int]:
    digest = hashlib.sha256()
    left = length
    while left:
        data = os.read(fd, min(left, _READ))
        if not data:
            raise FileChanged
        digest.update(data)
        left -= len(data)
    return digest.hexdigest(), length
