"""What the agent tells about its node: samples of use, and the stream of heartbeats."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Optional

from skyloom_agent import detect
from skyloom_agent.clock import AgentClock
from skyloom_agent.head import Head
from skyloom_agent.idle import IdleMeter
from skyloom_agent.nvml import Nvml
from skyloom_agent.ranks import RankTable
from skyloom_common.contracts.agent import Heartbeat, Utilization
from skyloom_common.core import wire

SAMPLE_SECONDS = 1.0


class Sampler:
    """One sample serves all who ask within a second."""

    def __init__(self, home: Path, nvml: Nvml, clock: AgentClock) -> None:
        self._home = home
        self._nvml = nvml
        self._clock = clock
        self._cpu = detect.CpuMeter()
        self._at: Optional[float] = None
        self._sample = Utilization()

    def sample(self) -> Utilization:
        now = self._clock.monotonic()
        if self._at is None or now - self._at >= SAMPLE_SECONDS:
            self._at = now
            self._sample = Utilization(
                cpu_percent=self._cpu.percent(),
                memory_used_gib=detect.memory_used_gib(),
                disk_free_gib=detect.disk_free_gib(self._home),
                load_1m=detect.load_1m(),
                gpus=self._nvml.use(),
            )
        return self._sample


class Watch:
    """`is_head`: only the head's stream carries jobs. `problem` is asked at each heartbeat."""

    def __init__(
        self,
        node_id: str,
        boot_id: str,
        interval_seconds: float,
        clock: AgentClock,
        head: Head,
        ranks: RankTable,
        idle: IdleMeter,
        sampler: Sampler,
        is_head: Callable[[], bool],
        problem: Callable[[], str],
    ) -> None:
        self._base = Heartbeat(node_id=node_id, boot_id=boot_id, seq=0, at=0.0)
        self._interval = interval_seconds
        self._clock = clock
        self._head = head
        self._ranks = ranks
        self._idle = idle
        self._sampler = sampler
        self._is_head = is_head
        self._problem = problem
        self._began = clock.monotonic()

    async def stream(self) -> AsyncIterator[bytes]:
        """One heartbeat at once, one on every change, one per interval."""
        mark: Optional[int] = None
        seq = 0
        while True:
            seen = self._head.changed.version
            heartbeat, mark = self._heartbeat(seq, mark)
            yield wire.dumps(heartbeat) + b"\n"
            seq += 1
            await self._head.changed.wait(seen, self._interval)

    def _heartbeat(self, seq: int, mark: Optional[int]) -> tuple[Heartbeat, Optional[int]]:
        is_head = self._is_head()
        jobs, mark = self._head.changes_since(mark) if is_head else ([], mark)
        active = self._head.active if is_head else self._ranks.active_count
        if not is_head:
            self._idle.observe(active)
        return (
            replace(
                self._base,
                seq=seq,
                at=self._clock.now(),
                idle_jobs_seconds=self._idle.jobs_seconds(),
                idle_jobs_and_ssh_seconds=self._idle.jobs_and_ssh_seconds(),
                uptime_seconds=self._clock.monotonic() - self._began,
                active_jobs=active,
                jobs=tuple(jobs),
                utilization=self._sampler.sample(),
                problem=self._problem(),
            ),
            mark,
        )
