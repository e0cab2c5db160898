"""When the catalog is refreshed by itself: the last turn in, the moment of the next one out. Pure."""

from __future__ import annotations

from dataclasses import dataclass

RUNNING, DONE, FAILED = "running", "done", "failed"
JITTER = 0.1
"""Share of the interval by which turns are spread, so that deployments do not ask a cloud all at once."""
FIRST_RETRY = 900.0


@dataclass(frozen=True)
class Timetable:
    """`every` seconds, 0 = never. No clouds = all that have a feed; those without a key are left out."""

    every: float = 0.0
    clouds: tuple[str, ...] = ()


@dataclass(frozen=True)
class Turn:
    """The last one. `jitter`: what its successor waits beyond the interval. `failures`: in a row, this one included."""

    run_id: str
    status: str
    begun_at: float
    ended_at: float | None = None
    jitter: float = 0.0
    failures: int = 0
    message: str = ""


def next_turn(timetable: Timetable, last: Turn | None, started_at: float) -> float:
    """Unix seconds; in the past where one is due. `started_at`: when this process began to look."""
    if last is None:
        return started_at
    if last.status == RUNNING:  # whoever ran it is gone: what it had fetched is gone on with
        return last.begun_at
    usual = last.begun_at + timetable.every + last.jitter
    if not last.failures:
        return usual
    pause = FIRST_RETRY * 2.0 ** min(last.failures - 1, 20)
    return min(usual, (last.ended_at or last.begun_at) + pause)
