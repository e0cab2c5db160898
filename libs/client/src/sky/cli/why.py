"""sky why: the chain of causes behind a plan, a cluster, a job or a request, in the words of whoever said no."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sky.cli import options
from sky.cli.output import print_json, show

if TYPE_CHECKING:
    from sky.api import Gateway
    from skyloom_common.contracts.clusters import Cluster
    from skyloom_common.contracts.jobs import Job
    from skyloom_common.contracts.operations import Operation, OperationEvent

Causes = dict[str, Any]
OPERATIONS_SHOWN = 3
_TELLING = ("provisioning",)
"""Phases of which also the plain events say why: where it was tried, and what came of it."""


@click.command(
    help="Say why. THING: a task file (why it would run where it would), a cluster, or a request's id. JOB: a job of that cluster."
)
@click.argument("thing")
@click.argument("job", type=int, required=False)
@options.TASK_OPTIONS
@options.BUCKET
@click.option("-v", "--verbose", is_flag=True, help="Of a task file: every candidate and every reason apart.")
@options.OUTPUT
@options.CONFIG
def why(
    thing: str,
    job: int | None,
    verbose: bool,
    bucket: tuple[str, ...],
    output: str,
    config: tuple[str, ...],
    **flags: Any,
) -> int:
    from sky.cli.session import gateway

    overrides = options.take_overrides(flags)
    api = gateway(config)
    if job is None and Path(thing).expanduser().is_file():
        causes, lines = _of_task(api, thing, overrides, config, verbose, bucket)
    elif job is not None:
        causes, lines = _of_job(api, thing, job)
    else:
        causes, lines = _of_cluster_or_request(api, thing)
    if output == "json":
        print_json(causes)
    else:
        show("\n".join(lines))
    return 0


def explain_lines(plan: Any, every: bool = False) -> str:
    """A plan's reasons for a terminal, for `sky launch --explain` too."""
    from skyloom_common.contracts.explain import lines

    return "\n".join(lines(plan, every=every))


def _of_task(
    api: Gateway,
    path: str,
    overrides: dict[str, Any],
    config: tuple[str, ...],
    every: bool,
    buckets: tuple[str, ...],
) -> tuple[Causes, list[str]]:
    from sky import plans
    from sky.cli import entry
    from skyloom_common.contracts import explain

    file = entry.several((path,), overrides)
    if file is not None:
        from sky.cli import graph

        together = graph.make_plan(api, file, buckets)
        return graph.data(together), list(graph.lines(together))
    task = entry.load((path,), overrides, config=config, yes=True, dryrun=True)
    plan = plans.make_plan(api, task)
    return explain.data(plan), list(explain.lines(plan, every=every))


def _of_job(api: Gateway, cluster: str, job_id: int) -> tuple[Causes, list[str]]:
    from skyloom_common.core.errors import JobDoesNotExist

    found = next((one for one in api.jobs(cluster) if one.job_id == job_id), None)
    if found is None:
        raise JobDoesNotExist(f"cluster {cluster!r} has no job {job_id}", hint=f"sky queue {cluster}")
    return {"job": found}, _job_lines(found)


def _job_lines(job: Job) -> list[str]:
    lines = [
        f"Job {job.job_id} ({job.name}) is {job.status.value}." + (f" {job.reason}" if job.reason else "")
    ]
    failure = job.failure
    if failure is not None:
        code = f" with exit code {failure.exit_code}" if failure.exit_code is not None else ""
        lines.append(
            f"  because rank {failure.rank} on {failure.node} failed first, in {failure.phase}{code}: {failure.reason}"
        )
        lines += [f"    | {line}" for line in failure.last_lines]
        others = [
            str(rank)
            for rank, code_ in enumerate(job.exit_codes)
            if rank != failure.rank and code_ not in (0, None)
        ]
        if others:
            lines.append(f"  rank {', '.join(others)} was stopped because of that")
    return lines


def _of_cluster_or_request(api: Gateway, thing: str) -> tuple[Causes, list[str]]:
    cluster = api.cluster(thing) if _may_be_a_cluster(thing) else None
    operations = (
        api.operations(all_status=True, limit=OPERATIONS_SHOWN, cluster=thing)
        if _may_be_a_cluster(thing)
        else ()
    )
    if cluster is None and not operations:
        operation = api.operation(thing)
        events = _events(api, operation)
        return {"operation": operation, "events": events}, _operation_lines(operation, events)
    lines: list[str] = []
    if cluster is None:
        lines.append(f"Cluster {thing!r} does not exist now.")
    else:
        message = f": {cluster.status_message}" if cluster.status_message else ""
        lines.append(f"Cluster {thing!r} is {cluster.status.value}{_where(cluster)}{message}")
        lines += [
            f"  node {node.rank}: {node.status}, {node.problem}" for node in cluster.nodes if node.problem
        ]
        if cluster.last_event:
            lines.append(f"  last event: {cluster.last_event}")
    told = {operation.id: _events(api, operation) for operation in operations}
    for operation in operations:
        lines += _operation_lines(operation, told[operation.id])
    return {"cluster": cluster, "operations": operations, "events": told}, lines


def _where(cluster: Cluster) -> str:
    """` on aws/us-east-1 p4d.24xlarge [spot], $2.47 an hour`"""
    place = "/".join(part for part in (cluster.cloud, cluster.region, cluster.zone) if part)
    if not place:
        return ""
    machine = "" if cluster.instance_type in ("", cluster.cloud) else f" {cluster.instance_type}"
    price = "" if cluster.price_per_hour is None else f", ${cluster.price_per_hour:.2f} an hour"
    return f" on {place}{machine}{' [spot]' if cluster.use_spot else ''}{price}"


def _may_be_a_cluster(thing: str) -> bool:
    from skyloom_common.core.errors import InvalidRequest
    from skyloom_common.core.names import check_cluster_name

    try:
        check_cluster_name(thing)
    except InvalidRequest:
        return False
    return True


def _events(api: Gateway, operation: Operation) -> list[OperationEvent]:
    """What is told so far; an operation that still runs is not waited for."""
    if not operation.status.is_final:
        return []
    from sky.net.follow import operation_events

    return list(operation_events(api.transport, operation.id))


def _operation_lines(operation: Operation, events: list[OperationEvent]) -> list[str]:
    state = (
        operation.status.value
        if operation.status.is_final
        else f"{operation.status.value}, {operation.phase}"
    )
    lines = [f"{operation.kind} of {operation.target} ({operation.id[:10]}): {state}"]
    # The error itself comes below, with its hint.
    final = operation.error.message if operation.error is not None else ""
    told = [event for event in events if event.level != "info" or event.phase in _TELLING]
    lines += [f"  {event.phase}: {event.message}" for event in told if not (final and final in event.message)]
    if operation.error is not None:
        from sky.cli.output import error_text
        from skyloom_common.core.errors import SkyloomError
        from skyloom_common.core.wire import to_wire

        error = SkyloomError.from_wire(to_wire(operation.error))
        lines += [f"  {line}" for line in error_text(error).splitlines()]
    return lines
