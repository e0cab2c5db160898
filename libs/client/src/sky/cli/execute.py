"""sky exec: a task or command on a cluster that is up, without provisioning and without setup."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sky.cli import options
from sky.cli.output import say, show

if TYPE_CHECKING:
    from sky.api import Gateway
    from skyloom_common.contracts.operations import Operation

IGNORED = ("cpus", "memory", "disk_size", "disk_tier", "local_disk", "ports")


@click.command(
    "exec", help="Run a task or command on an existing cluster. ENTRYPOINT: a task file, or a command."
)
@options.ENTRYPOINT
@click.option(
    "-c",
    "--cluster",
    "--cluster-name",
    "cluster",
    default=None,
    hidden=True,
    shell_complete=options.complete_clusters,
)
@options.TASK_OPTIONS
@click.option(
    "-d/-no-d", "--detach-run/--no-detach-run", "detach", default=False, help="Do not follow the log."
)
@options.ASYNC
@options.CONFIG
def exec_command(entrypoint: tuple[str, ...], cluster: str | None, **flags: Any) -> int:
    overrides = options.take_overrides(flags)
    words = list(entrypoint)
    if cluster is None:
        if not words:
            raise click.UsageError("Missing argument 'CLUSTER'. For example: sky exec my-cluster 'echo hi'")
        cluster = words.pop(0)
    if not words:
        raise click.UsageError("Missing argument 'ENTRYPOINT...'. For example: sky exec my-cluster 'echo hi'")
    for name in IGNORED:
        if overrides[name]:
            say(f"--{name.replace('_', '-')} is ignored: exec runs on the machines that the cluster has.")
            overrides[name] = () if name == "ports" else None
    return _run(cluster, tuple(words), overrides, flags)


def _submit(
    cluster: str, words: tuple[str, ...], overrides: dict[str, Any], config: tuple[str, ...]
) -> tuple[Operation, Gateway]:
    from sky.cli import entry, session
    from sky.net.transport import new_key

    command = entry.plain_command(words, overrides, config)
    if command is not None:
        # What people type all day: its request is two texts, and building the task contracts would cost a third of the wait.
        api = session.gateway(config)
        request = {"task": {"run": command}, "command": entry.typed_command()}
        return api.exec_wire(cluster, request, key=new_key()), api
    from skyloom_common.contracts.clusters import ExecRequest

    task = entry.load(words, overrides, config=config)
    api = session.gateway(config)
    mounts = entry.upload(api.transport, task, workdir_only=True)
    return api.exec(cluster, ExecRequest(task, mounts, entry.typed_command()), key=new_key()), api


def _run(cluster: str, words: tuple[str, ...], overrides: dict[str, Any], flags: dict[str, Any]) -> int:
    from sky.cli import launch, session
    from sky.naming import cluster_name

    cluster = cluster_name(cluster)
    operation, api = _submit(cluster, words, overrides, flags["config"])
    if flags["async_"]:
        show(operation.id)
        return 0
    with session.leaving_operation(operation):
        operation = session.wait(api, operation, f"Submitting to {cluster}")
        return launch.finish(api, cluster, operation, detach=flags["detach"])
