"""sky logs: a job's log followed, shown, saved, or only its status."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sky.cli import options
from sky.cli.output import say, show

if TYPE_CHECKING:
    from sky.api import Gateway

FOLLOW_TAIL = 1000
FAILED = 100
HOOKS = ("stop", "preemption", "down")


@click.command(help="Show or follow the log of a job; of the latest one when no id is given.")
@options.cluster_argument()
@click.argument("job_ids", nargs=-1, type=str)
@click.option("--provision", is_flag=True, help="The log of making the cluster.")
@click.option(
    "--hook",
    is_flag=False,
    flag_value="",
    default=None,
    metavar="[stop|preemption|down]",
    help="The log of a hook.",
)
@click.option("--autostop", is_flag=True, hidden=True)
@click.option(
    "-w", "--worker", type=click.IntRange(min=1), default=None, help="With --provision: of this worker."
)
@click.option("-s", "--sync-down", is_flag=True, help="Save the logs under ~/sky_logs.")
@click.option("--status", "only_status", is_flag=True, help="Print the status only; exit with its code.")
@click.option("--follow/--no-follow", default=True, help="Go on until the job ends (the default).")
@click.option(
    "--tail", type=click.IntRange(min=0), default=None, help="Begin with the last lines only; 0 = all."
)
@options.CONFIG
def logs(cluster: str, job_ids: tuple[str, ...], **flags: Any) -> int:
    from sky.cli.session import gateway

    ids = _check(job_ids, flags)
    if flags["hook"] is not None or flags["autostop"]:
        say("not supported yet: sky logs --hook")
        return 1
    api = gateway(flags["config"])
    if flags["provision"]:
        return _provision(api, cluster, flags)
    if flags["sync_down"]:
        return _sync_down(api, cluster, ids)
    if flags["only_status"]:
        return _status(api, cluster, ids)
    return _follow(api, cluster, ids[0] if ids else None, flags)


def _check(job_ids: tuple[str, ...], flags: dict[str, Any]) -> list[int]:
    """Combinations that mean nothing are usage errors."""
    bad = [text for text in job_ids if not text.isdigit()]
    if bad:
        raise click.UsageError(f"Job id {bad[0]!r} is not a number; `sky queue` shows them.")
    if flags["worker"] and not flags["provision"]:
        raise click.UsageError("--worker goes with --provision only.")
    modes = [name for name in ("provision", "sync_down", "only_status", "autostop") if flags[name]]
    modes += ["hook"] if flags["hook"] is not None else []
    if len(modes) > 1:
        names = " and ".join("--" + {"only_status": "status"}.get(m, m).replace("_", "-") for m in modes)
        raise click.UsageError(f"{names} cannot be combined.")
    if flags["hook"] and flags["hook"] not in HOOKS:
        raise click.UsageError(f"--hook {flags['hook']!r} is not one of {', '.join(HOOKS)}.")
    if flags["provision"] and job_ids:
        raise click.UsageError("--provision shows the cluster's log; it takes no job id.")
    if modes and flags["tail"] is not None and not flags["provision"]:
        raise click.UsageError("--tail goes with following or showing a log only.")
    if len(job_ids) > 1 and not flags["sync_down"]:
        raise click.UsageError("Several job ids go with --sync-down only.")
    return [int(text) for text in job_ids]


def _follow(api: Gateway, cluster: str, job_id: int | None, flags: dict[str, Any]) -> int:
    from sky.cli import session
    from sky.client.logs import find_job

    job = find_job(api, cluster, job_id)
    if job is None:
        return _no_job(cluster, job_id)
    tail = flags["tail"]
    if tail is None and flags["follow"]:
        tail = FOLLOW_TAIL
    code = session.follow_job(api, cluster, job.job_id, follow=flags["follow"], tail=tail or None)
    if code == FAILED:
        session.describe_end(api, cluster, job.job_id)
    return code


def _no_job(cluster: str, job_id: int | None) -> int:
    which = "has no job yet" if job_id is None else f"has no job {job_id}"
    say(f"Cluster {cluster!r} {which}; `sky queue {cluster}` shows its jobs.")
    return 102


def _status(api: Gateway, cluster: str, ids: list[int]) -> int:
    from sky.client.logs import find_job
    from skyloom_common.contracts.jobs import JobExitCode

    job = find_job(api, cluster, ids[0] if ids else None)
    if job is None:
        return _no_job(cluster, ids[0] if ids else None)
    show(f"Job {job.job_id}: {job.status.value}")
    return int(JobExitCode.of(job.status))


def _provision(api: Gateway, cluster: str, flags: dict[str, Any]) -> int:
    from sky.cli.session import copy_out
    from sky.net.transport import quote, read_pieces

    if flags["worker"]:
        say(f"One log tells of all nodes; --worker {flags['worker']} shows the same.")
    query = {"follow": flags["follow"], "tail": flags["tail"] or None}
    response = api.transport.open("GET", f"/clusters/{quote(cluster)}/provision-logs", query=query)
    copy_out(read_pieces(response))
    return 0


def _sync_down(api: Gateway, cluster: str, ids: list[int]) -> int:
    from sky import archives
    from sky.client.logs import find_job
    from skyloom_common.core.errors import SkyloomError

    if not ids:
        job = find_job(api, cluster, None)
        if job is None:
            return _no_job(cluster, None)
        ids = [job.job_id]
    failures = 0
    for job_id in ids:
        try:
            show(f"Job {job_id}: {archives.download(api, cluster, job_id)}")
        except SkyloomError as error:
            failures += 1
            say(f"Job {job_id}: {error.message}")
    return 1 if failures else 0
