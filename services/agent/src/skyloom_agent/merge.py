"""Many ranks' outputs into one log, by blocks and never by lines; exactly once across a kill -9.

`LineMerger` is pure: blocks in, prefixed bytes out. `Ledger` remembers on disk how much of the merged log counts and how
much of each source went into it. `Merge` ties them to files: write, then commit; after a crash the uncommitted tail is
cut off and made again. Nobody is shown more than what is committed.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
import zlib
from pathlib import Path
from typing import Callable, Optional

from skyloom_agent.signals import Signal

BLOCK = 256 * 1024
TURN_SECONDS = 1.0
NOBODY = 0xFFFFFFFF


class LineMerger:
    """`holder` is the source in the middle of a line: only it may go on, until its line ends or is broken."""

    def __init__(self, holder: Optional[int] = None) -> None:
        self.holder = holder

    def take(self, source: int, prefix: bytes, block: bytes) -> bytes:
        assert block and self.holder in (None, source)
        start = b"" if self.holder == source else prefix
        if block.endswith(b"\n"):
            self.holder = None
            return start + block[:-1].replace(b"\n", b"\n" + prefix) + b"\n"
        self.holder = source
        return start + block.replace(b"\n", b"\n" + prefix)

    def break_line(self) -> bytes:
        self.holder = None
        return b"\n"


class Ledger:
    """Two slots of a fixed size, written in turn over space that is there already; the newest whole one counts."""

    def __init__(self, path: Path, sources: int) -> None:
        self._layout = struct.Struct(f"<QQI{sources}Q")
        self._size = self._layout.size + 4
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._sequence = 0
        self.committed = 0
        self.holder: Optional[int] = None
        self.offsets = [0] * sources
        if os.fstat(self._fd).st_size < 2 * self._size:
            os.pwrite(self._fd, b"\0" * (2 * self._size), 0)
        self._load()

    @property
    def is_new(self) -> bool:
        return self._sequence == 0

    def commit(self) -> None:
        self._sequence += 1
        holder = NOBODY if self.holder is None else self.holder
        body = self._layout.pack(self._sequence, self.committed, holder, *self.offsets)
        slot = self._sequence % 2
        os.pwrite(self._fd, body + struct.pack("<I", zlib.crc32(body)), slot * self._size)

    def close(self) -> None:
        os.close(self._fd)

    def _load(self) -> None:
        for slot in (0, 1):
            data = os.pread(self._fd, self._size, slot * self._size)
            body, check = data[:-4], data[-4:]
            if struct.pack("<I", zlib.crc32(body)) != check:
                continue
            sequence, committed, holder, *offsets = self._layout.unpack(body)
            if sequence > self._sequence:
                self._sequence, self.committed, self.offsets = sequence, committed, offsets
                self.holder = None if holder == NOBODY else holder


class Source:
    """One rank's own log. It has no prefix until its process id is known, and counts as quiet until then."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.prefix: Optional[bytes] = None
        self.ended = False
        self._fd = -1

    def read(self, offset: int) -> bytes:
        return os.pread(self._fd, BLOCK, offset) if self._opened() else b""

    def has_more(self, offset: int) -> bool:
        return self._opened() and os.fstat(self._fd).st_size > offset

    def _opened(self) -> bool:
        if self._fd < 0:
            with contextlib.suppress(FileNotFoundError):
                self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        return self._fd >= 0

    def again(self) -> Source:
        """The same log for another merge."""
        return Source(self.path)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Merge:
    """`step()` moves what there is; `poke` fires when there may be more, `grown` when readers may see more."""

    def __init__(
        self, output: Path, ledger: Path, sources: list[Source], clock: Callable[[], float] = time.monotonic
    ) -> None:
        output.parent.mkdir(parents=True, exist_ok=True)
        self.output = output
        self.sources = sources
        self.poke = Signal()
        self.grown = Signal()
        self.ended = False
        self._clock = clock
        self._ledger = Ledger(ledger, len(sources))
        self._fd = os.open(output, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if self._ledger.is_new:
            # Nothing is known of what is there, so nothing of it is cut off.
            self._ledger.committed = os.fstat(self._fd).st_size
            self._ledger.commit()
        os.ftruncate(self._fd, self._ledger.committed)
        self._lines = LineMerger(self._ledger.holder)
        self._turn_began = clock()
        self._turn = 0

    @property
    def committed(self) -> int:
        return self._ledger.committed

    @property
    def drained(self) -> bool:
        """Everything that will ever come is in the log."""
        return self._lines.holder is None and all(
            source.ended and not source.has_more(self._ledger.offsets[index])
            for index, source in enumerate(self.sources)
        )

    def step(self) -> bool:
        """One block of one source; False when there is nothing to do now. OSError: no space, nothing was changed."""
        if self._release_holder():
            return True
        many = len(self.sources)
        for turn in range(many):
            index = (self._turn + turn) % many
            block = self._block(index)
            if block:
                self._turn = (index + 1) % many
                self._append(index, block)
                return True
        return False

    def wait_seconds(self) -> Optional[float]:
        """How long until a line that keeps others waiting is broken; None: nobody waits."""
        if self._lines.holder is None or not self._others_wait():
            return None
        return max(0.0, self._turn_began + TURN_SECONDS - self._clock())

    def close(self) -> None:
        for source in self.sources:
            source.close()
        self._ledger.close()
        os.close(self._fd)
        self.ended = True
        self.grown.fire()

    def _block(self, index: int) -> bytes:
        source = self.sources[index]
        holder = self._lines.holder
        if source.prefix is None or holder not in (None, index):
            return b""
        block = source.read(self._ledger.offsets[index])
        # Whole lines first, so that two busy ranks do not keep each other waiting in the middle of one.
        cut = block.rfind(b"\n") + 1
        return block[:cut] if cut and len(self.sources) > 1 else block

    def _release_holder(self) -> bool:
        """Ends the line of a source that has ended inside it, or that kept the others waiting too long."""
        holder = self._lines.holder
        if holder is None:
            return False
        finished = self.sources[holder].ended and not self.sources[holder].has_more(
            self._ledger.offsets[holder]
        )
        if not finished and not self._too_long():
            return False
        self._write(self._lines.break_line(), holder)
        return True

    def _too_long(self) -> bool:
        return self._clock() - self._turn_began >= TURN_SECONDS and self._others_wait()

    def _others_wait(self) -> bool:
        return any(
            index != self._lines.holder
            and source.prefix is not None
            and source.has_more(self._ledger.offsets[index])
            for index, source in enumerate(self.sources)
        )

    def _append(self, index: int, block: bytes) -> None:
        before = self._lines.holder
        prefix = self.sources[index].prefix
        assert prefix is not None
        data = self._lines.take(index, prefix, block)
        if before is None and self._lines.holder is not None:
            self._turn_began = self._clock()
        self._write(data, before, index, len(block))

    def _write(self, data: bytes, before: Optional[int], index: int = 0, consumed: int = 0) -> None:
        at = self._ledger.committed
        left = memoryview(data)
        try:
            while left:
                done = os.pwrite(self._fd, left, at)
                left, at = left[done:], at + done
        except OSError:
            self._lines.holder = before
            raise
        self._ledger.committed = at
        self._ledger.holder = self._lines.holder
        self._ledger.offsets[index] += consumed
        self._ledger.commit()
        self.grown.fire()
