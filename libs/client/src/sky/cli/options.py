"""Option sets that several commands share (compat: TASK, EXTRA, COMMON), and the entrypoint argument."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
Decorator = Callable[[F], F]


def complete_clusters(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from sky.cli.completion import cluster_names

    return [name for name in cluster_names() if name.startswith(incomplete)]


def _complete_files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    """Left to the shell, which knows how to."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="dir" if param.name == "workdir" else "file")]


def _complete_entrypoint(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    """The first word of `sky exec` is a cluster."""
    if ctx.info_name == "exec" and not ctx.params.get("cluster") and not ctx.params.get("entrypoint"):
        return complete_clusters(ctx, param, incomplete)
    return _complete_files(ctx, param, incomplete)


YES = click.option("-y", "--yes", is_flag=True, help="Do not ask for confirmation.")
ASYNC = click.option(
    "--async/--no-async", "async_", default=False, help="Print the request's id and return at once."
)
CONFIG = click.option(
    "--config", "config", multiple=True, metavar="PATH_OR_KV",
    help="Configuration for this command: a file, or a.b=value. Repeatable.",
)  # fmt: skip
OUTPUT = click.option(
    "-o", "--output", type=click.Choice(["table", "json"]), default="table", help="Form of the result."
)
BUCKET = click.option(
    "--bucket",
    multiple=True,
    help="Where a bucket of a plan of several tasks lies: URI=CLOUD/REGION. Repeatable.",
)
ALL_USERS = click.option("-u", "--all-users", is_flag=True, help="Clusters of all users, not only mine.")
WAIT_FOR = click.option(
    "--wait-for", type=click.Choice(["jobs_and_ssh", "jobs", "none"], case_sensitive=False), default=None,
    help="What keeps a cluster from being idle.",
)  # fmt: skip
CLUSTER = click.option(
    "-c", "--cluster", "--cluster-name", "cluster", default=None, help="Name of the cluster.",
    shell_complete=complete_clusters,
)  # fmt: skip


def clusters_argument(**settings: Any) -> Decorator[Any]:
    return click.argument("clusters", nargs=-1, shell_complete=complete_clusters, **settings)


def cluster_argument(**settings: Any) -> Decorator[Any]:
    return click.argument("cluster", shell_complete=complete_clusters, **settings)


def options(*decorators: Decorator[Any]) -> Decorator[F]:
    """Several decorators as one, shown in the order given."""

    def apply(function: F) -> F:
        for decorate in reversed(decorators):
            function = decorate(function)
        return function

    return apply


TASK_OPTIONS = options(
    click.option("-n", "--name", default=None, help="Name of the task."),
    click.option("--workdir", default=None, help="Sync this directory (instead of the file's workdir).",
                 shell_complete=_complete_files),
    click.option("--infra", multiple=True,
                 help="Where: cloud[/region[/zone]], k8s/context, ssh/pool; any of a list a,b. Repeatable."),
    click.option("--cloud", multiple=True, hidden=True),
    click.option("--region", multiple=True, hidden=True),
    click.option("--zone", multiple=True, hidden=True),
    click.option("--num-nodes", type=click.IntRange(min=1), default=None, help="Number of nodes."),
    click.option("--cpus", default=None, help="vCPUs per node: 4, 4+."),
    click.option("--memory", default=None, help="Memory per node in GB: 16, 16+."),
    click.option("--disk-size", default=None, help="OS disk in GB: 256, 500+."),
    click.option(
        "--disk-tier", default=None, help="OS disk class.",
        type=click.Choice(["low", "medium", "high", "ultra", "best", "none"], case_sensitive=False),
    ),
    click.option(
        "--network-tier", default=None, help="Network class.",
        type=click.Choice(["standard", "best", "none"], case_sensitive=False),
    ),
    click.option("--use-spot/--no-use-spot", default=None, help="Ask for spot capacity."),
    click.option("--image-id", default=None, help="Image, docker:IMAGE, or none."),
    click.option("--env-file", "env_file", multiple=True, help="File of NAME=VALUE lines. Repeatable.",
                 shell_complete=_complete_files),
    click.option("--env", "env", multiple=True, help="NAME=VALUE, or NAME to take it from here. Repeatable."),
    click.option("--secret-file", "secret_file", multiple=True, help="As --env-file, for secrets. Repeatable.",
                 shell_complete=_complete_files),
    click.option("--secret", "secret", multiple=True, help="As --env, never shown or stored in clear. Repeatable."),
    click.option("--local-disk", default=None, help="Instance-attached disk: [mode:]size[+]."),
    click.option("--gpus", default=None, help="Accelerators: A100:8, V100:0.5."),
    click.option("-t", "--instance-type", default=None, help="Exact machine type."),
    click.option("--ports", multiple=True, help="Ports to open: 8080, 8000-8010. Repeatable."),
    click.option("--git-url", default=None, help="Clone this repository as the workdir."),
    click.option("--git-ref", default=None, help="Branch, tag or commit of --git-url."),
)  # fmt: skip

ENTRYPOINT = click.argument(
    "entrypoint", nargs=-1, type=click.UNPROCESSED, shell_complete=_complete_entrypoint
)
"""Options may follow it (`sky launch task.yaml -c dev`); a command with options of its own is quoted or comes after `--`."""

OVERRIDES = (
    "name", "workdir", "infra", "cloud", "region", "zone", "num_nodes", "cpus", "memory", "disk_size", "disk_tier",
    "network_tier", "use_spot", "image_id", "env_file", "env", "secret_file", "secret", "local_disk", "gpus",
    "instance_type", "ports", "git_url", "git_ref",
)  # fmt: skip


def take_overrides(values: dict[str, Any]) -> dict[str, Any]:
    """Splits the options of TASK_OPTIONS off a command's keyword arguments."""
    return {name: values.pop(name) for name in OVERRIDES}
