"""Logs for the SDK: into a stream, or as lines."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

from sky.api import Gateway
from sky.net.follow import LogStream
from sky.net.transport import quote, read_pieces
from skyloom_common.contracts.jobs import Job, JobExitCode


def find_job(api: Gateway, cluster: str, job_id: int | None) -> Job | None:
    """The job of that number, or the newest."""
    jobs = api.jobs(cluster)
    if job_id is None:
        return max(jobs, key=lambda job: job.job_id, default=None)
    return next((job for job in jobs if job.job_id == job_id), None)


def open_log(
    api: Gateway,
    cluster: str,
    job_id: int,
    *,
    follow: bool = True,
    tail: int | None = None,
    on_reconnect: Callable[[], None] | None = None,
) -> LogStream:
    """The job's log, which survives broken connections and ends with the job."""

    def is_over() -> bool:
        job = find_job(api, cluster, job_id)
        return job is None or job.status.is_final

    path = f"/clusters/{quote(cluster)}/jobs/{job_id}/logs"
    return LogStream(
        api.transport, path, follow=follow, tail=tail, is_over=is_over, on_reconnect=on_reconnect
    )


def tail(
    api: Gateway,
    cluster: str,
    job_id: int | None,
    follow: bool,
    lines: int,
    stream: IO[Any] | None,
    preload: bool,
) -> int | Iterator[str]:
    job = find_job(api, cluster, job_id)
    if job is None:
        return int(JobExitCode.NOT_FOUND) if preload else iter(())
    log = open_log(api, cluster, job.job_id, follow=follow, tail=lines or None)
    if not preload:
        return as_lines(log)
    copy(log, stream)
    ended = find_job(api, cluster, job.job_id)
    return int(JobExitCode.of(ended.status if ended else None))


def provision(
    api: Gateway, cluster: str, worker: int | None, follow: bool, lines: int, stream: IO[Any] | None
) -> int:
    query = {"follow": follow, "tail": lines or None}  # one log tells of all nodes, `worker` too
    copy(
        read_pieces(api.transport.open("GET", f"/clusters/{quote(cluster)}/provision-logs", query=query)),
        stream,
    )
    return 0


def server(api: Gateway, follow: bool, lines: int | None) -> None:
    query = {"follow": follow, "tail": lines or None}
    copy(read_pieces(api.transport.open("GET", "/server-logs", query=query)), None)


def copy(pieces: Iterable[bytes], stream: IO[Any] | None) -> None:
    """Bytes as they are where the stream takes bytes, else as UTF-8 text."""
    stream = stream or sys.stdout
    raw: Any = getattr(stream, "buffer", stream)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    as_text = False
    stream.flush()
    for piece in pieces:
        if not as_text:
            try:
                raw.write(piece)
                raw.flush()
                continue
            except TypeError:
                as_text = True
        raw.write(decoder.decode(piece))
        raw.flush()


def as_lines(pieces: Iterable[bytes]) -> Iterator[str]:
    """Lines with their line ends; the last one may have none."""
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield (line + b"\n").decode("utf-8", "replace")
    if rest:
        yield rest.decode("utf-8", "replace")
