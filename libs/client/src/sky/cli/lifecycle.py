"""sky stop, start, down, autostop: one request per cluster, all followed together, exit code 1 when any of them failed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from sky.cli import options
from sky.cli.output import paint, say, show

if TYPE_CHECKING:
    from sky.api import Gateway
    from skyloom_common.contracts.clusters import Cluster
    from skyloom_common.contracts.operations import Operation

ALL = click.option("-a", "--all", "all_", is_flag=True, help="All my clusters.")
GRACEFUL = options.options(
    click.option("--graceful", is_flag=True, help="Let cached mounts finish their uploads first."),
    click.option("--graceful-timeout", type=float, default=None, metavar="SEC", help="At most so long."),
)
DEFAULT_IDLE_MINUTES = 5
Act = Callable[["Gateway", str], "Operation"]


@click.command(help="Stop clusters: the machines end, their disks stay.")
@options.clusters_argument()
@ALL
@options.ALL_USERS
@options.YES
@GRACEFUL
@options.ASYNC
@options.CONFIG
def stop(clusters: tuple[str, ...], graceful: bool, graceful_timeout: float | None, **flags: Any) -> int:
    def act(api: Gateway, name: str) -> Operation:
        from skyloom_common.contracts.clusters import StopRequest

        return api.stop(name, StopRequest(graceful=graceful, graceful_timeout_seconds=graceful_timeout))

    return _each(clusters, flags, "Stopping", "stopped", act)


@click.command(help="Tear clusters down: machines, disks and records are gone afterwards.")
@options.clusters_argument()
@ALL
@options.ALL_USERS
@options.YES
@click.option("-p", "--purge", is_flag=True, help="Drop the record even when the provider's call fails.")
@GRACEFUL
@options.ASYNC
@options.CONFIG
def down(
    clusters: tuple[str, ...], purge: bool, graceful: bool, graceful_timeout: float | None, **flags: Any
) -> int:
    def act(api: Gateway, name: str) -> Operation:
        from skyloom_common.contracts.clusters import StopRequest

        request = StopRequest(purge=purge, graceful=graceful, graceful_timeout_seconds=graceful_timeout)
        return api.down(name, request)

    def forget(api: Gateway, name: str) -> None:
        from sky import names_cache

        names_cache.remove(name)
        if names_cache.has_ssh_aliases():
            from sky import ssh_config

            ssh_config.remove(name)

    return _each(clusters, flags, "Tearing down", "gone", act, forget)


@click.command(help="Start stopped clusters again.")
@options.clusters_argument()
@ALL
@options.YES
@click.option(
    "-i", "--idle-minutes-to-autostop", "idle_minutes", type=int, default=None, help="Autostop from now on."
)
@options.WAIT_FOR
@click.option("--down", "down_", is_flag=True, help="With -i: tear down instead of stopping.")
@click.option("-r", "--retry-until-up", is_flag=True, help="Try again until there is capacity.")
@click.option("-f", "--force", is_flag=True, help="Also when it is up: renew what runs on the nodes.")
@options.ASYNC
@options.CONFIG
def start(clusters: tuple[str, ...], **flags: Any) -> int:
    from sky.cli.launch import autostop_of

    if flags["down_"] and flags["idle_minutes"] is None:
        raise click.UsageError(
            "--down needs -i MINUTES: a cluster that was just started is not to go at once."
        )
    spec = autostop_of(flags["idle_minutes"], flags["down_"], flags["wait_for"])

    def act(api: Gateway, name: str) -> Operation:
        from skyloom_common.contracts.clusters import StartRequest

        return api.start(name, StartRequest(spec, flags["retry_until_up"], flags["force"]))

    def alias(api: Gateway, name: str) -> None:
        from sky import ssh_config

        cluster = api.cluster(name)
        if cluster is not None and cluster.ssh:
            ssh_config.write(cluster)

    return _each(clusters, flags, "Starting", "up", act, alias, only=None if flags["force"] else _startable)


def _startable(cluster: Cluster) -> str | None:
    return f"Cluster {cluster.name!r} is up already." if cluster.status.value == "UP" else None


@click.command(help="Stop or tear down clusters when they have been idle; counts from now.")
@options.clusters_argument()
@ALL
@options.ALL_USERS
@click.option(
    "-i", "--idle-minutes", type=int, default=None, help="Minutes of idleness (5); negative cancels."
)
@options.WAIT_FOR
@click.option("--cancel", is_flag=True, help="Never stop by itself.")
@click.option("--down", "down_", is_flag=True, help="Tear down instead of stopping.")
@options.YES
@options.ASYNC
@options.CONFIG
def autostop(
    clusters: tuple[str, ...], idle_minutes: int | None, cancel: bool, down_: bool, **flags: Any
) -> int:
    from sky.cli.launch import autostop_of

    if cancel and idle_minutes is not None:
        raise click.UsageError("--cancel and --idle-minutes cannot be combined.")
    count = DEFAULT_IDLE_MINUTES if idle_minutes is None else idle_minutes
    spec = None if cancel or count < 0 else autostop_of(count, down_, flags["wait_for"])

    def act(api: Gateway, name: str) -> Operation:
        from skyloom_common.contracts.clusters import AutostopRequest

        return api.autostop(name, AutostopRequest(spec))

    doing, done = ("Cancelling", "cancelled") if spec is None else ("Setting", "set")
    return _each(clusters, flags, f"{doing} autostop of", done, act)


def _each(
    names: tuple[str, ...],
    flags: dict[str, Any],
    doing: str,
    done: str,
    act: Act,
    afterwards: Callable[[Gateway, str], None] | None = None,
    *,
    only: Callable[[Cluster], str | None] | None = None,
) -> int:
    """Selects, asks, sends every request, then follows them in turn."""
    from sky.cli.session import confirm, gateway

    if not names and not flags["all_"] and not flags.get("all_users"):
        raise click.UsageError("Missing argument 'CLUSTERS...': give names or globs, or --all.")
    if names and flags["all_"]:
        raise click.UsageError("Give clusters, or --all; not both.")
    api = gateway(flags["config"])
    chosen, passed, failures = _select(api, names, flags, only)
    if not chosen:
        show("Nothing to do." if failures or passed else "No clusters match.")
        return 1 if failures else 0
    many = f"{len(chosen)} clusters: {', '.join(chosen)}" if len(chosen) > 1 else f"cluster {chosen[0]!r}"
    confirm(f"{doing} {many}. Proceed?", flags["yes"])
    sent = [(name, _try(name, lambda name=name: act(api, name))) for name in chosen]  # type: ignore[misc]
    failures += sum(1 for _, operation in sent if operation is None)
    started = [(name, operation) for name, operation in sent if operation is not None]
    if flags["async_"]:
        for _, operation in started:
            show(operation.id)
        return 1 if failures else 0
    for name, operation in started:
        failures += not _finish(api, name, operation, doing, done, afterwards)
    if failures and len(chosen) > 1:
        say(paint(f"{failures} failed.", "red"))
    return 1 if failures else 0


def _finish(
    api: Gateway,
    name: str,
    operation: Operation,
    doing: str,
    done: str,
    afterwards: Callable[[Gateway, str], None] | None,
) -> bool:
    from sky.cli.session import wait

    if _try(name, lambda: wait(api, operation, f"{doing} {name}")) is None:
        return False
    if afterwards is not None:
        afterwards(api, name)
    show(f"{doing} {name}: {paint(done, 'green')}")
    return True


def _try(name: str, work: Callable[[], Operation]) -> Operation | None:
    """None and a sentence when it failed: the other clusters go on."""
    from sky.cli.output import error_text
    from skyloom_common.core.errors import SkyloomError

    try:
        return work()
    except SkyloomError as error:
        say(f"{name}: {error_text(error)}")
        return None


def _select(
    api: Gateway, names: Sequence[str], flags: dict[str, Any], only: Callable[[Cluster], str | None] | None
) -> tuple[list[str], int, int]:
    """The clusters meant, how many need nothing, and how many names mean nothing."""
    found = api.clusters(names, all_users=bool(flags.get("all_users")) or bool(names))
    known = {cluster.name for cluster in found}
    absent = [name for name in names if not set("*?[") & set(name) and name not in known]
    for name in absent:
        say(f"Cluster {name!r} does not exist.")
    chosen = []
    for cluster in found:
        reason = only(cluster) if only is not None else None
        if reason is None:
            chosen.append(cluster.name)
        elif names:
            show(reason)
    return sorted(chosen), len(found) - len(chosen), len(absent)
