"""The server's own log file as a stream: its last lines, then what is added, across rotations."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

from skyloom_common.core.errors import NotFound

_PIECE = 1 << 16
_LOOK_EVERY = 0.25


async def read_log(path: Path | None, *, tail: int | None, follow: bool) -> AsyncIterator[bytes]:
    """Raises NotFound before the first piece when there is no such file."""
    if path is None or not path.is_file():
        raise NotFound(
            "this server keeps no log file of its own",
            hint="Look at the output of the process or container that runs skyloom-gateway.",
        )
    file = open(path, "rb")  # noqa: SIM115 - it may be replaced while we follow
    try:
        file.seek(_start_of(file.fileno(), tail))
        while True:
            while piece := file.read(_PIECE):
                yield piece
            if not follow:
                return
            await asyncio.sleep(_LOOK_EVERY)
            if _was_replaced(path, file.fileno()):
                file.close()
                file = open(path, "rb")  # noqa: SIM115
    finally:
        file.close()


def _start_of(descriptor: int, tail: int | None) -> int:
    """Where the last `tail` lines begin; None = the whole file."""
    position = os.fstat(descriptor).st_size
    if tail is None:
        return 0
    missing = tail + 1
    while position > 0:
        begin = max(0, position - _PIECE)
        piece = os.pread(descriptor, position - begin, begin)
        at = len(piece)
        while missing and (at := piece.rfind(b"\n", 0, at)) >= 0:
            missing -= 1
            if not missing:
                return begin + at + 1
        position = begin
    return 0


def _was_replaced(path: Path, descriptor: int) -> bool:
    try:
        now = path.stat()
    except FileNotFoundError:
        return False
    mine = os.fstat(descriptor)
    return (now.st_ino, now.st_dev) != (mine.st_ino, mine.st_dev)
