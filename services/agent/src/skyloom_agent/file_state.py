"""What the agent remembers of the files at a destination: their stamps and chunk hashes, so that they are not read again.

One text file per destination, one JSON line per file in tree order, read line by line beside the manifest. Only what a later
write must show in is written down, so whatever is read back may be believed. Losing it costs a reading of the files.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Optional

from skyloom_common.contracts.files import tree_order
from skyloom_common.core.chunks import Stamp, is_settled

TICK_NS = 20_000_000
"""File times of a node's disk are no coarser than this (100 ticks a second, with room)."""
_HEADER = '{"skyloom_files":1}\n'


class Known(NamedTuple):
    path: str
    stamp: Stamp
    hashes: str


def read_state(file: str) -> Iterator[Known]:
    """In tree order; ends early at the first damage."""
    try:
        text = open(file, encoding="ascii")  # noqa: SIM115
    except OSError:
        return
    with text:
        if text.readline() != _HEADER:
            return
        for line in text:
            try:
                path, device, inode, size, modified, changed, hashes = json.loads(line)
            except ValueError:
                return
            yield Known(path, (device, inode, size, modified, changed), hashes)


class Remembered:
    """Looks up paths that come in tree order."""

    def __init__(self, file: str) -> None:
        self._rows = read_state(file)
        self._next: Optional[Known] = next(self._rows, None)

    def get(self, path: str) -> Optional[Known]:
        order = tree_order(path)
        while self._next is not None and tree_order(self._next.path) < order:
            self._next = next(self._rows, None)
        if self._next is not None and self._next.path == path:
            return self._next
        return None


def may_be_remembered(row: Known, looked_at_ns: int) -> bool:
    """Whether every write after the look must have changed the stamp."""
    return is_settled(row.stamp, looked_at_ns, TICK_NS)


def write_state(file: str, rows: Iterable[Known]) -> None:
    """`rows` in tree order, only such that `may_be_remembered`."""
    temporary = f"{file}.{os.getpid()}.tmp"
    encode = json.JSONEncoder(separators=(",", ":")).encode
    try:
        with open(temporary, "w", encoding="ascii") as text:
            text.write(_HEADER)
            for row in rows:
                line: list[Any] = [row.path, *row.stamp, row.hashes]
                text.write(encode(line) + "\n")
        os.replace(temporary, file)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def wait_for_tick() -> None:
    """From here on, a write to a file gets another time than writes before this call did."""
    time.sleep(2 * TICK_NS / 1e9)
