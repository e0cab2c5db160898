"""sky queue and sky cancel: the jobs of clusters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sky.cli import options
from sky.cli.output import ago, duration, print_json, say, show, table

if TYPE_CHECKING:
    from sky.api import Gateway
    from skyloom_common.contracts.clusters import Cluster
    from skyloom_common.contracts.jobs import Job

HEADER = [
    "ID",
    "NAME",
    "USER",
    "SUBMITTED",
    "STARTED",
    "DURATION",
    "RESOURCES",
    "STATUS",
    "LOG",
    "GIT COMMIT",
]


@click.command(
    help="Show the jobs of clusters. CLUSTERS: names or globs; all that are up when none is given."
)
@options.clusters_argument()
@options.ALL_USERS
@click.option("-s", "--skip-finished", is_flag=True, help="Only jobs that have not ended.")
@options.OUTPUT
@options.CONFIG
def queue(
    clusters: tuple[str, ...], all_users: bool, skip_finished: bool, output: str, config: tuple[str, ...]
) -> int:
    from sky.cli.session import gateway

    api = gateway(config)
    found = api.clusters(clusters, all_users=all_users or bool(clusters))
    failures = _say_absent(clusters, found)
    result: dict[str, list[Job]] = {}
    for cluster in found:
        jobs, failed = _jobs_of(api, cluster, named=bool(clusters))
        failures += failed
        if jobs is not None:
            result[cluster.name] = [job for job in jobs if not (skip_finished and job.status.is_final)]
    if output == "json":
        print_json(result)
    elif result or not failures:
        _print(result)
    return 1 if failures else 0


def _say_absent(names: tuple[str, ...], found: tuple[Cluster, ...]) -> int:
    known = {cluster.name for cluster in found}
    absent = [name for name in names if not set("*?[") & set(name) and name not in known]
    for name in absent:
        say(f"Cluster {name!r} does not exist.")
    return len(absent)


def _jobs_of(api: Gateway, cluster: Cluster, *, named: bool) -> tuple[tuple[Job, ...] | None, int]:
    """Its jobs; None and how many failures that is."""
    from skyloom_common.core.errors import SkyloomError

    if not named and cluster.status.value != "UP":
        return None, 0
    try:
        return api.jobs(cluster.name), 0
    except SkyloomError as error:
        say(f"{cluster.name}: {error.message}")
        return None, 1


def _print(result: dict[str, list[Job]]) -> None:
    import time

    if not result:
        show("No jobs: no cluster is up.")
    now = time.time()
    for name, jobs in result.items():
        show(f"\nJob queue of cluster {name}")
        if not jobs:
            show("No jobs.")
            continue
        rows = [_row(job, now) for job in sorted(jobs, key=lambda job: -job.job_id)]
        show(table(HEADER, rows, color_column="STATUS"))
        for job in jobs:
            if job.status.value == "PENDING" and job.reason:
                say(f"Job {job.job_id} waits: {job.reason}")


def _row(job: Job, now: float) -> list[str]:
    return [
        str(job.job_id),
        job.name,
        job.user,
        ago(job.submitted_at, now),
        ago(job.started_at, now),
        duration(job_duration(job, now)),
        job.resources,
        job.status.value,
        job.log_path,
        job.metadata.get("git_commit", "-"),
    ]


def job_duration(job: Job, now: float) -> float | None:
    if job.duration_seconds is not None:
        return job.duration_seconds
    if job.started_at is None:
        return None
    return (job.ended_at or now) - job.started_at


@click.command(help="Cancel jobs on a cluster; without JOBS, the latest one that runs.")
@options.cluster_argument()
@click.argument("jobs", nargs=-1, type=int)
@click.option("-a", "--all", "all_", is_flag=True, help="All my jobs on the cluster.")
@options.ALL_USERS
@options.YES
@options.ASYNC
@options.CONFIG
def cancel(cluster: str, jobs: tuple[int, ...], all_: bool, all_users: bool, yes: bool, **flags: Any) -> int:
    from sky.cli.session import confirm, gateway
    from skyloom_common.contracts.jobs import CancelJobs

    if jobs and (all_ or all_users):
        raise click.UsageError("Give job ids, or --all, or --all-users; not several of them.")
    what = _what(jobs, all_, all_users)
    confirm(f"Cancelling {what} on cluster {cluster!r}. Proceed?", yes)
    api = gateway(flags["config"])
    user = api.info().user or None if all_ and not all_users else None
    request = CancelJobs(job_ids=jobs or None, all=all_ or all_users, user=user)
    cancelled = api.cancel_jobs(cluster, request)
    if not cancelled:
        say(f"Nothing to cancel on {cluster!r} ({what}): it is not running or waiting.")
        return 1 if jobs else 0
    show(f"Cancelled job{'s' if len(cancelled) > 1 else ''} {', '.join(map(str, cancelled))} on {cluster!r}.")
    left = sorted(set(jobs) - set(cancelled))
    for job in left:
        say(f"Job {job} was not cancelled: it has ended, or does not exist.")
    return 1 if left else 0


def _what(jobs: tuple[int, ...], all_: bool, all_users: bool) -> str:
    if all_users:
        return "the jobs of all users"
    if all_:
        return "all your jobs"
    if jobs:
        return f"job{'s' if len(jobs) > 1 else ''} {', '.join(map(str, jobs))}"
    return "the latest running job"
