"""sky launch: parse, plan, ask, upload, launch, follow. Every decision about machines is the server's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sky.api import Gateway
from sky.cli import options
from sky.cli.output import paint, print_json, say, show

if TYPE_CHECKING:
    from skyloom_common.contracts.clusters import Cluster, LaunchRequest
    from skyloom_common.contracts.operations import Operation
    from skyloom_common.contracts.plan import Plan
    from skyloom_common.contracts.task.model import AutostopSpec, TaskFile, TaskSpec


@click.command(
    help="Run a task on a cluster, making the cluster if needed. ENTRYPOINT: a task file, or a command."
)
@options.ENTRYPOINT
@options.CLUSTER
@options.TASK_OPTIONS
@click.option("--dryrun", is_flag=True, help="Show where it would run; change nothing.")
@click.option("--explain", is_flag=True, help="Say of every candidate, and of what is none, why.")
@click.option("-v", "--verbose", is_flag=True, help="With --explain: every candidate and every reason apart.")
@click.option(
    "-o", "--output", type=click.Choice(["table", "json"]), default="table", help="Form of a dry run's plan."
)
@click.option(
    "-d/-no-d", "--detach-run/--no-detach-run", "detach", default=False, help="Do not follow the log."
)
@click.option("-i", "--idle-minutes-to-autostop", "idle_minutes", type=int, default=None,
              help="Stop (with --down: tear down) after so many idle minutes.")  # fmt: skip
@options.WAIT_FOR
@click.option("--down", is_flag=True, help="Tear down when all jobs have ended (or with -i, when idle).")
@click.option("-r", "--retry-until-up", is_flag=True, help="Try again until there is capacity.")
@click.option("--no-setup", is_flag=True, help="Skip the setup.")
@click.option("--fast", is_flag=True, help="On a running cluster: skip provisioning and setup.")
@click.option("--resize", is_flag=True, help="Let an existing cluster grow to num_nodes (needs -c).")
@click.option(
    "--clone-disk-from", "--clone", "clone_disk_from", default=None, help="Copy this cluster's disk."
)
@click.option("--priority", default=None, help="Priority, a number or a class.")
@click.option("-w", "--workspace", default=None, help="Workspace.")
@click.option("--docker", is_flag=True, hidden=True)
@options.BUCKET
@options.YES
@options.ASYNC
@options.CONFIG
def launch(entrypoint: tuple[str, ...], **flags: Any) -> int:
    from sky.cli import entry
    from sky.naming import cluster_name

    overrides = options.take_overrides(flags)
    if flags["docker"]:
        raise click.UsageError(
            "--docker (the local docker backend) is gone; `sky launch` alone runs on this machine."
        )
    if flags["output"] == "json" and not flags["dryrun"]:
        raise click.UsageError("-o json shows a plan; it needs --dryrun.")
    if flags["resize"] and not flags["cluster"]:
        raise click.UsageError("--resize needs the cluster's name: -c NAME.")
    if flags["workspace"] not in (None, "default"):
        say(f"not supported yet: --workspace {flags['workspace']}")
        return 1
    name = cluster_name(flags["cluster"])
    entry.confirm_name(name, flags["yes"])
    if flags["dryrun"] and (file := entry.several(entrypoint, overrides)):
        return _dryrun_several(file, flags)
    task = entry.load(
        entrypoint,
        overrides,
        config=flags["config"],
        priority=flags["priority"],
        yes=flags["yes"],
        dryrun=flags["dryrun"],
    )
    from sky.cli import session

    api = session.gateway(flags["config"])
    if flags["dryrun"]:
        return _dryrun(api, task, flags)
    existing = api.cluster(name) if flags["cluster"] else None
    _ask(api, task, name, existing, flags)
    return _run(api, name, _request(api, task, flags), flags)


def _dryrun(api: Gateway, task: TaskSpec, flags: dict[str, Any]) -> int:
    from sky import plans
    from sky.cli.plan_table import show_plan

    plan = plans.make_plan(api, task)
    if flags["output"] == "json":
        from skyloom_common.contracts import explain

        print_json(explain.data(plan))
        return 0 if plan.candidates else 1
    show_plan(plan, task)
    _explain(plan, flags)
    plans.require_candidates(plan, explained=flags["explain"])
    say("Dry run: nothing was launched.")
    return 0


def _dryrun_several(file: TaskFile, flags: dict[str, Any]) -> int:
    from sky import plans
    from sky.cli import graph, session

    plan = graph.make_plan(session.gateway(flags["config"]), file, flags["bucket"])
    if flags["output"] == "json":
        print_json(graph.data(plan))
        return 0 if plan.placements else 1
    graph.show_plan(plan)
    if flags["explain"]:
        show("\n".join(graph.lines(plan)))
    plans.require_places(plan)
    say("Dry run: nothing was launched.")
    return 0


def _explain(plan: Plan, flags: dict[str, Any]) -> None:
    if flags["explain"]:
        from sky.cli.why import explain_lines

        show(explain_lines(plan, flags["verbose"]))


def _ask(api: Gateway, task: TaskSpec, name: str, existing: Cluster | None, flags: dict[str, Any]) -> None:
    """The plan of a new cluster, or what will happen to an existing one; then Proceed?"""
    from sky.cli.session import confirm
    from skyloom_common.contracts.clusters import ClusterStatus

    yes = flags["yes"]
    if existing is None:
        from sky import plans
        from sky.cli.plan_table import show_plan

        enabled = plans.enabled_names(api)
        plan = plans.make_plan(api, task, enabled)
        show_plan(plan, task)
        _explain(plan, flags)
        plans.require_candidates(plan, enabled, explained=flags["explain"])
        confirm(f"Launching a new cluster {name!r}. Proceed?", yes)
    elif existing.status is ClusterStatus.STOPPED:
        confirm(f"Restarting the stopped cluster {name!r}. Proceed?", yes)
    elif existing.status is ClusterStatus.UP:
        say(f"Running on the existing cluster {name!r}.")
    else:
        confirm(f"Repairing the cluster {name!r} ({existing.status.value}). Proceed?", yes)


def _request(api: Gateway, task: TaskSpec, flags: dict[str, Any]) -> LaunchRequest:
    from sky.cli import entry
    from skyloom_common.contracts.clusters import LaunchRequest

    return LaunchRequest(
        task=task,
        mounts=entry.upload(api.transport, task),
        autostop=autostop_of(flags["idle_minutes"], flags["down"], flags["wait_for"]),
        retry_until_up=flags["retry_until_up"],
        no_setup=flags["no_setup"],
        fast=flags["fast"],
        resize=flags["resize"],
        clone_disk_from=flags["clone_disk_from"],
        command=entry.typed_command(),
    )


def autostop_of(idle_minutes: int | None, down: bool, wait_for: str | None) -> AutostopSpec | None:
    """What -i, --down and --wait-for ask for; None = nothing was asked. Negative minutes mean never."""
    if idle_minutes is None and not down:
        if wait_for is not None:
            raise click.UsageError("--wait-for says what idle means; it needs -i MINUTES or --down.")
        return None
    from skyloom_common.contracts.task.model import AutostopSpec, WaitFor

    waiting = WaitFor(wait_for.lower()) if wait_for else WaitFor.JOBS_AND_SSH
    minutes = 0 if idle_minutes is None else idle_minutes
    return AutostopSpec(enabled=minutes >= 0, idle_minutes=max(0, minutes), down=down, wait_for=waiting)


def _run(api: Gateway, name: str, request: LaunchRequest, flags: dict[str, Any]) -> int:
    from sky.cli import session
    from sky.net.transport import new_key

    operation = api.launch(name, request, key=new_key())
    if flags["async_"]:
        say(f"Launching {name!r} goes on in the background.  To follow it: sky api logs {operation.id}")
        show(operation.id)
        return 0
    with session.leaving_operation(operation):
        operation = session.wait(api, operation, f"Launching {name}")
        _after_launch(api, name)
        return finish(api, name, operation, detach=flags["detach"])


def _after_launch(api: Gateway, name: str) -> None:
    """The SSH alias and the name for completion: conveniences, written from what the cluster says now."""
    from sky import names_cache, ssh_config

    cluster = api.cluster(name)
    if cluster is not None:
        ssh_config.write(cluster)
        names_cache.add(name)


def finish(api: Gateway, name: str, operation: Operation, *, detach: bool) -> int:
    """Follows the job that a launch or exec submitted; its exit code."""
    from sky.cli import session

    job_id = operation.result.get("job_id")
    if not isinstance(job_id, int):
        say(paint(f"Cluster {name!r} is up.", "green"))
        _useful_commands(name, None)
        return 0
    say(f"Job {job_id} on {name!r} is submitted.")
    if detach:
        _useful_commands(name, job_id)
        return 0
    with session.leaving_job(name, job_id):
        code = session.follow_job(api, name, job_id)
        _say_end(api, name, job_id, code)
    _useful_commands(name, job_id)
    return code


def _say_end(api: Gateway, name: str, job_id: int, code: int) -> None:
    from sky.cli import session

    words = {0: ("finished.", "green"), 100: ("failed.", "red"), 103: ("was cancelled.", "yellow")}
    text, color = words.get(code, ("has not finished.", "yellow"))
    say(paint(f"Job {job_id} {text}", color))
    if code == 100:
        session.describe_end(api, name, job_id)


def _useful_commands(name: str, job_id: int | None) -> None:
    lines = []
    if job_id is not None:
        lines += [
            ("follow its log", f"sky logs {name} {job_id}"),
            ("cancel it", f"sky cancel {name} {job_id}"),
        ]
    lines += [
        ("run something else", f"sky exec {name} 'COMMAND'"),
        ("see its jobs", f"sky queue {name}"),
        ("stop paying", f"sky down {name}"),
    ]
    say("Useful commands:")
    for what, command in lines:
        say(f"  {what + ':':<20} {paint(command, 'bold')}")
