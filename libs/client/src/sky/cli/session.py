"""What every command does around its own work: connect, wait for operations, follow a job's log, confirm."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import click

from sky.api import Gateway
from sky.cli.output import say

if TYPE_CHECKING:
    from sky.settings import ServerAddress
    from skyloom_common.contracts.operations import Operation, OperationEvent


def gateway(config: Sequence[str] = ()) -> Gateway:
    """The gateway; starts the local stack under a spinner when it is needed and does not run."""
    from sky.connect import connect

    return connect(config, starting=_starting)


def _starting(start: Callable[[], ServerAddress]) -> ServerAddress:
    from sky.cli.progress import spinning

    return spinning("Starting the local API server")(start)


def confirm(question: str, yes: bool, *, default: bool = True) -> None:
    """Asks unless `yes`; a No aborts with exit code 1."""
    if not yes:
        click.confirm(question, default=default, abort=True, err=False)


def wait(api: Gateway, operation: Operation, text: str = "") -> Operation:
    """Shows the operation's progress to its end; the final operation. Raises its error.

    Ctrl-C stops the waiting only: the operation goes on, and the user is told how to come back to it.
    """
    from sky.client.results import raise_for

    with leaving_operation(operation):
        if not operation.status.is_final:
            _show_progress(api, operation, text)
            operation = api.operation(operation.id)
    raise_for(operation)
    return operation


def _show_progress(api: Gateway, operation: Operation, text: str) -> None:
    from sky.cli.progress import Progress
    from sky.net.follow import operation_events

    with Progress(text or f"{operation.kind} {operation.target}") as progress:
        events = operation_events(
            api.transport,
            operation.id,
            on_reconnect=lambda: progress.update("The connection to the API server broke; trying again"),
        )
        for event in events:
            _show_event(progress, event)


@contextlib.contextmanager
def leaving(*lines: str) -> Iterator[None]:
    """What Ctrl-C leaves behind, said once: of blocks that lie in each other the inner one speaks."""
    try:
        yield
    except KeyboardInterrupt as error:
        if not error.args:
            sys.stdout.flush()
            say("\n" + "\n".join(lines))
        raise KeyboardInterrupt("said") from error


def leaving_operation(operation: Operation) -> contextlib.AbstractContextManager[None]:
    return leaving(
        f"Stopped waiting; the {operation.kind} of {operation.target!r} goes on.",
        f"To come back to it:  sky api logs {operation.id}",
        f"To cancel it:        sky api cancel {operation.id}",
    )


def leaving_job(cluster: str, job_id: int) -> contextlib.AbstractContextManager[None]:
    return leaving(
        f"Stopped following; job {job_id} on {cluster!r} goes on.",
        f"To follow it again:  sky logs {cluster} {job_id}",
        f"To cancel it:        sky cancel {cluster} {job_id}",
    )


def _show_event(progress: object, event: OperationEvent) -> None:
    from sky.cli.progress import Progress, bar

    assert isinstance(progress, Progress)
    text = event.message or event.phase
    sent, total = event.data.get("bytes_sent"), event.data.get("bytes_total")
    if isinstance(sent, int) and isinstance(total, int) and total:
        text = f"{text} {bar(sent, total)}"
    if event.status is not None and event.status.is_final:
        return
    if event.level in ("warning", "error"):
        progress.note(text)
    else:
        progress.update(text)


def follow_job(
    api: Gateway, cluster: str, job_id: int, *, follow: bool = True, tail: int | None = None
) -> int:
    """Copies the job's log to stdout, byte for byte; the exit code of `sky logs` (§7)."""
    from sky.client.logs import find_job, open_log
    from skyloom_common.contracts.jobs import JobExitCode

    with leaving_job(cluster, job_id):
        stream = open_log(api, cluster, job_id, follow=follow, tail=tail, on_reconnect=_say_reconnecting)
        copy_out(stream)
        job = find_job(api, cluster, job_id)
    return int(JobExitCode.of(job.status if job else None))


def _say_reconnecting() -> None:
    say("[sky] The connection to the API server broke; trying again ...")


def copy_out(pieces: Iterable[bytes]) -> None:
    """Bytes to stdout as they come, whatever they are."""
    sys.stdout.flush()
    out = sys.stdout.buffer
    for piece in pieces:
        out.write(piece)
        out.flush()


def describe_end(api: Gateway, cluster: str, job_id: int) -> None:
    """Says why a job failed: rank, node, exit code, last lines."""
    from sky.client.logs import find_job

    job = find_job(api, cluster, job_id)
    if job is None:
        return
    if job.failure is None:
        if job.reason:
            say(f"Job {job_id} failed: {job.reason}")
        return
    failure = job.failure
    code = f"exit code {failure.exit_code}" if failure.exit_code is not None else failure.reason
    say(f"Job {job_id} failed first on rank {failure.rank} ({failure.node}) in {failure.phase}: {code}.")
    if failure.exit_code is not None and failure.reason and str(failure.exit_code) not in failure.reason:
        say(f"  {failure.reason}")
