"""sky status: clusters as rows, or one bare value of one cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sky.cli import options
from sky.cli.output import ago, duration, minutes, paint, print_json, say, shorten, show, table

if TYPE_CHECKING:
    from sky.api import Gateway
    from sky.cli.rows import ClusterRow

STALE_SECONDS = 60.0
COMMAND_WIDTH = 40


@click.command(help="Show clusters. CLUSTERS: names or globs; all when none is given.")
@options.clusters_argument()
@click.option("-v", "--verbose", is_flag=True, help="More columns.")
@click.option("-a", "--all", "all_", is_flag=True, hidden=True)
@click.option("-r", "--refresh", is_flag=True, help="Ask the nodes instead of their last word.")
@click.option("--ip", is_flag=True, help="Print the head node's address only.")
@click.option("--endpoints", is_flag=True, help="Print the endpoints only.")
@click.option(
    "--endpoint", type=int, default=None, metavar="PORT", help="Print the endpoint of one port only."
)
@click.option("--show-managed-jobs/--no-show-managed-jobs", default=True, hidden=True)
@click.option("--show-services/--no-show-services", default=True, hidden=True)
@click.option("--show-pools/--no-show-pools", default=True, hidden=True)
@options.ALL_USERS
@options.OUTPUT
@options.CONFIG
def status(clusters: tuple[str, ...], **flags: Any) -> int:
    from sky.cli.session import gateway

    wanted = [flags["ip"], flags["endpoints"], flags["endpoint"] is not None]
    if sum(wanted) > 1 or (any(wanted) and flags["refresh"]):
        raise _value_error(
            "--ip, --endpoints, --endpoint and --refresh cannot be combined; give one of them."
        )
    if any(wanted):
        return _bare_value(gateway(flags["config"]), clusters, flags)
    api = gateway(flags["config"])
    answer = api.clusters_wire(clusters, all_users=flags["all_users"], refresh=flags["refresh"])
    rows = _rows(answer)
    _remember(rows, everything=not clusters and not flags["all_users"])
    if flags["output"] == "json":
        from skyloom_common.contracts.clusters import Cluster
        from skyloom_common.core.wire import from_wire

        print_json([from_wire(Cluster, row) for row in answer])
        return _missing(clusters, rows)
    _print_rows(rows, flags, named=bool(clusters))
    return _missing(clusters, rows)


def _rows(answer: list[dict[str, Any]]) -> list[ClusterRow]:
    from sky.cli.rows import ClusterRow

    return [ClusterRow(row) for row in answer]


def _value_error(message: str) -> Exception:
    from sky.exceptions import ClientError

    return ClientError(message)


def _bare_value(api: Gateway, names: tuple[str, ...], flags: dict[str, Any]) -> int:
    flag = "--ip" if flags["ip"] else "--endpoints" if flags["endpoints"] else "--endpoint"
    rows = _rows(api.clusters_wire(names)) if names else []
    absent = _absent(names, rows)
    if len(rows) != 1 or absent:
        found = "none was given" if not names else f"{len(rows)} match"
        found += f" and {', '.join(map(repr, absent))} does not exist" if absent else ""
        raise _value_error(f"{flag} needs exactly one cluster, but {found}: sky status {flag} NAME")
    cluster = rows[0]
    if flags["ip"]:
        return _print_ip(cluster)
    if flags["endpoints"]:
        for port, url in sorted(cluster.endpoints.items()):
            show(f"{port}: {url}")
        return 0 if cluster.endpoints else _no_endpoint(cluster, None)
    port = str(flags["endpoint"])
    if port not in cluster.endpoints:
        return _no_endpoint(cluster, port)
    show(cluster.endpoints[port])
    return 0


def _print_ip(cluster: ClusterRow) -> int:
    if cluster.status != "UP" or not cluster.head_ip:
        raise _value_error(f"Cluster {cluster.name!r} is {cluster.status}: it has no address now.")
    show(cluster.head_ip)
    return 0


def _no_endpoint(cluster: ClusterRow, port: str | None) -> int:
    opened = ", ".join(sorted(cluster.endpoints)) or "none"
    asked = f"port {port}" if port else "any port"
    raise _value_error(f"Cluster {cluster.name!r} has no endpoint for {asked}; its ports are: {opened}.")


def _missing(names: tuple[str, ...], rows: list[ClusterRow]) -> int:
    """Names (not globs) that match nothing are said; exit 1 when all of them do."""
    absent = _absent(names, rows)
    for name in absent:
        say(f"Cluster {name!r} does not exist.")
    return 1 if absent and not rows else 0


def _absent(names: tuple[str, ...], rows: list[ClusterRow]) -> list[str]:
    found = {row.name for row in rows}
    return [name for name in names if not set("*?[") & set(name) and name not in found]


def _print_rows(rows: list[ClusterRow], flags: dict[str, Any], *, named: bool) -> None:
    show(paint("Clusters", "bold"))
    if not rows and named:
        show("No clusters match.")
        return
    if not rows:
        show("No existing clusters.  To make one: sky launch -c NAME 'echo hi'")
        return
    header, cells = columns(rows, verbose=flags["verbose"] or flags["all_"], users=flags["all_users"])
    show(table(header, cells, color_column="STATUS"))
    _hints(rows, flags["refresh"])


def columns(rows: list[ClusterRow], *, verbose: bool, users: bool) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the clusters table (compat §5)."""
    import time

    now = time.time()
    workspaces = verbose or len({row.workspace for row in rows}) > 1
    header = ["NAME"]
    header += ["USER"] if users else []
    header += ["WORKSPACE"] if workspaces else []
    header += ["INFRA", "RESOURCES", "STATUS", "AUTOSTOP", "LAUNCHED"]
    header += ["HEAD_IP", "HEARD", "COMMAND", "LAST_EVENT"] if verbose else []
    cells = []
    for row in sorted(rows, key=lambda item: (-item.launched_at, item.name)):
        line = [row.name]
        line += [row.user] if users else []
        line += [row.workspace] if workspaces else []
        line += [
            infra(row),
            row.resources or _resources(row),
            shown_status(row),
            autostop(row),
            ago(row.launched_at, now),
        ]
        if verbose:
            heard = row.heartbeat_age_seconds
            line += [row.head_ip, f"{duration(heard)} ago" if heard is not None else "-"]
            line += [shorten(row.last_use, COMMAND_WIDTH), row.last_event]
        cells.append(line)
    return header, cells


def shown_status(row: ClusterRow) -> str:
    return "UNHEALTHY" if row.unhealthy else row.status


def infra(row: ClusterRow) -> str:
    """AWS (us-east-1)"""
    from sky.cli.plan_table import cloud_name

    if not row.cloud:
        return "-"
    place = row.zone or row.region
    return f"{cloud_name(row.cloud)} ({place})" if place and place != row.cloud else cloud_name(row.cloud)


def _resources(row: ClusterRow) -> str:
    return f"{row.num_nodes}x({row.instance_type or '-'})"


def autostop(row: ClusterRow) -> str:
    """10m, 2h, 5m (down), -"""
    if row.idle_minutes is None:
        return "-"
    return minutes(row.idle_minutes) + (" (down)" if row.goes_down else "")


def _hints(rows: list[ClusterRow], refreshed: bool) -> None:
    for row in rows:
        if row.unhealthy and row.status_message:
            say(f"{row.name}: {row.status_message}")
    scheduled = sum(1 for row in rows if row.idle_minutes is not None)
    stale = [
        row.name for row in rows if (row.heartbeat_age_seconds or 0) > STALE_SECONDS and row.status == "UP"
    ]
    if stale and not refreshed:
        say(f"Not heard from for more than a minute: {', '.join(stale)}.  To ask again: sky status --refresh")
    elif scheduled and not refreshed:
        many = "clusters have" if scheduled > 1 else "cluster has"
        say(f"{scheduled} {many} autostop set; for their state at this moment: sky status --refresh")


def _remember(rows: list[ClusterRow], *, everything: bool) -> None:
    """Names for shell completion; SSH aliases where a provider has SSH, and none of what is gone."""
    from sky import names_cache

    if everything:
        names_cache.replace([row.name for row in rows])
    if any(row.ssh for row in rows) or names_cache.has_ssh_aliases():
        from sky import ssh_config

        for row in rows:
            ssh_config.write(row)
        if everything:
            ssh_config.keep_only([row.name for row in rows if row.ssh])
