"""The logs of one job on the head: where they lie, the merging of its ranks into them, and reading them.

Names (compat): run.log holds everything live; tasks/setup.log the setup; tasks/run.log, or tasks/<rank>-head.log and
tasks/<rank>-worker<N>.log on a cluster of several nodes, are each rank's own bytes.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from skyloom_agent.merge import Merge, Source
from skyloom_agent.model import RUN, SETUP, JobRecord, log_dir_name
from skyloom_agent.paths import Paths
from skyloom_agent.signals import Signal

READ_SIZE = 256 * 1024
NO_SPACE_SECONDS = 1.0
STEPS_AT_ONCE = 8


def node_name(index: int) -> str:
    return "head" if index == 0 else f"worker{index}"


def job_dir(record: JobRecord) -> str:
    """Relative to the node's home."""
    return f"sky_logs/{log_dir_name(record.job.job_id, record.job.name)}"


def rank_log(record: JobRecord, phase: str, rank: int, node: int) -> str:
    """Where the rank's own bytes lie on the head, relative to its home."""
    if phase == SETUP:
        return f".sky/jobs/{record.uid}/setup-{rank}.log"
    if record.cluster_size == 1:
        return f"{job_dir(record)}/tasks/run.log"
    return f"{job_dir(record)}/tasks/{rank}-{node_name(node)}.log"


def prefix(record: JobRecord, phase: str, rank: int, node: int, ip: str, pid: int) -> bytes:
    if phase == SETUP:
        place = "setup" if record.cluster_size == 1 else f"setup {node_name(node)}"
        text = f"({place}, pid={pid}) "
    elif record.job.num_nodes == 1:
        text = f"({record.job.name}, pid={pid}) "
    else:
        where = "" if node == 0 else f", ip={ip}"
        text = f"({node_name(node)}, rank={rank}, pid={pid}{where}) "
    return text.encode()


@dataclass
class LogView:
    """One log as a reader sees it: so many bytes may be shown, `grown` fires on more, `over` = nothing will come."""

    path: Path
    size: Callable[[], int]
    grown: Signal
    over: Callable[[], bool]


class JobLogs:
    """Alive while the job is set up and runs."""

    def __init__(self, paths: Paths, record: JobRecord) -> None:
        self._private = paths.jobs / record.uid
        self._private.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory = paths.home / job_dir(record)
        setup_size = record.cluster_size if record.submit.setup else 0
        self.sources: dict[tuple[str, int], Source] = {}
        for rank in range(setup_size):
            self.sources[SETUP, rank] = Source(paths.home / rank_log(record, SETUP, rank, rank))
        for rank, place in enumerate(record.places):
            path = paths.home / rank_log(record, RUN, rank, place.node)
            path.parent.mkdir(parents=True, exist_ok=True)
            self.sources[RUN, rank] = Source(path)
        self.merges = {
            RUN: Merge(directory / "run.log", self._private / "run.ledger", list(self.sources.values()))
        }
        if setup_size:
            setups = [source.again() for key, source in self.sources.items() if key[0] == SETUP]
            self.merges[SETUP] = Merge(
                directory / "tasks" / "setup.log", self._private / "setup.ledger", setups
            )
        self._pumps = [asyncio.ensure_future(self._pump(merge)) for merge in self.merges.values()]
        self.problem = ""

    def name_source(self, phase: str, rank: int, text: bytes) -> None:
        for source in self._read_twice(phase, rank):
            source.prefix = text
        self.poke()

    def end_source(self, phase: str, rank: int) -> None:
        for source in self._read_twice(phase, rank):
            source.ended = True
        self.poke()

    def poke(self) -> None:
        for merge in self.merges.values():
            merge.poke.fire()

    async def finish(self, seconds: float) -> None:
        """No more will come: waits until all of it is merged, but not for a full disk."""
        for merge in self.merges.values():
            for source in merge.sources:
                source.ended = True
                source.prefix = source.prefix or b"(pid=?) "
        self.poke()
        await asyncio.wait(self._pumps, timeout=seconds)

    async def close_when_merged(self) -> None:
        """A full disk may have kept the merging back; it goes on when there is space."""
        await asyncio.wait(self._pumps)
        for merge in self.merges.values():
            merge.close()
        for name in ("run.ledger", "setup.ledger"):
            (self._private / name).unlink(missing_ok=True)

    def wake_readers(self) -> None:
        for merge in self.merges.values():
            merge.grown.fire()
            merge.poke.fire()

    def _read_twice(self, phase: str, rank: int) -> list[Source]:
        """A setup goes into its own log and into the job's."""
        own = [self.sources[phase, rank]]
        return [*own, self.merges[SETUP].sources[rank]] if phase == SETUP else own

    async def _pump(self, merge: Merge) -> None:
        steps = 0
        while not merge.drained:
            seen = merge.poke.version
            try:
                moved = merge.step()
                self.problem = ""
            except OSError as error:
                self.problem = f"{merge.output.name} cannot be written: {error.strerror}"
                await asyncio.sleep(NO_SPACE_SECONDS)
                continue
            steps += 1
            if not moved:
                await merge.poke.wait(seen, merge.wait_seconds())
            elif steps % STEPS_AT_ONCE == 0:
                await asyncio.sleep(0)


async def read_log(view: LogView, offset: int, follow: bool) -> AsyncIterator[bytes]:
    """The log from a byte on; with `follow` until nothing will come any more."""
    fd = -1
    try:
        while True:
            seen, over, size = view.grown.version, view.over(), view.size()
            if offset < size and fd < 0:
                fd = os.open(view.path, os.O_RDONLY | os.O_CLOEXEC)
            data = os.pread(fd, min(READ_SIZE, size - offset), offset) if offset < size else b""
            if data:
                offset += len(data)
                yield data
            elif over or not follow:
                return
            else:
                await view.grown.wait(seen)
    finally:
        if fd >= 0:
            os.close(fd)


def file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def tail_offset(path: Path, size: int, lines: int) -> int:
    """Where the last `lines` lines of the first `size` bytes begin; reads from the end, block by block."""
    if lines <= 0 or size == 0:
        return 0
    with open(path, "rb") as file:
        end, missing = size, lines
        while end > 0:
            start = max(0, end - READ_SIZE)
            block = os.pread(file.fileno(), end - start, start)
            # The newline that ends the log ends its last line; it does not begin another.
            stop = len(block) - 1 if end == size else len(block)
            found = block.count(b"\n", 0, stop)
            if found >= missing:
                for _ in range(missing):
                    stop = block.rfind(b"\n", 0, stop)
                return start + stop + 1
            missing -= found
            end = start
    return 0


def last_lines(path: Path, lines: int = 10, limit: int = 4000) -> tuple[str, ...]:
    """What a rank last said, for people: few lines, none of them long."""
    size = file_size(path)
    if not size:
        return ()
    start = max(tail_offset(path, size, lines), size - limit)
    with open(path, "rb") as file:
        text = os.pread(file.fileno(), size - start, start).decode("utf-8", "replace")
    return tuple(line[:500] for line in text.splitlines())
