"""sky api: the local server's life, which server is used, and the requests it works on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from sky.cli import options
from sky.cli.output import ago, paint, print_json, say, show, table
from sky.net.transport import without_password

if TYPE_CHECKING:
    from skyloom_common.contracts.operations import Operation

DEFAULT_PORT = 46580
LOOPBACK = ("localhost", "127.0.0.1", "::1")
HOSTS = ("0.0.0.0", "localhost", "127.0.0.1", "::", "::1")
PORT_VARIABLES = ("SKYLOOM_API_SERVER_LOCAL_PORT", "SKYPILOT_API_SERVER_LOCAL_PORT")
CANCEL_PHRASE = "cancel all"
FACTS = (
    "client_version", "endpoint", "source", "status", "error", "server_version", "api_version", "user", "store", "bus",
    "started_at", "services",
)  # fmt: skip
"""Every key of `sky api info -o json`, whatever the server's state."""


@click.command(help="Start the local API server.")
@click.option("--deploy", is_flag=True, help="Listen on all interfaces, for other machines too.")
@click.option("--host", type=click.Choice(HOSTS), default=None, help="Address to listen on (127.0.0.1).")
@click.option(
    "--port", type=int, default=None, help=f"Port ({DEFAULT_PORT}, or another one where that is taken)."
)
@click.option("--foreground", is_flag=True, help="Stay in this terminal; Ctrl-C ends it.")
@click.option("--enable-basic-auth", is_flag=True, hidden=True)
def start(deploy: bool, host: str | None, port: int | None, foreground: bool, enable_basic_auth: bool) -> int:
    from sky import settings, stack
    from sky.cli.progress import spinning

    if enable_basic_auth:
        say("not supported yet: sky api start --enable-basic-auth (the server's token is needed in any case)")
        return 1
    if host is not None and host not in LOOPBACK and not deploy:
        raise click.UsageError(f"--host {host} is reached from other machines: say --deploy too.")
    named = settings.configured_server()
    if named is not None:
        say(f"This client uses {named.endpoint} ({named.source}), not the local server that is started now.")
    arguments = _arguments("0.0.0.0" if deploy and host is None else host, port)
    if foreground:
        stack.require_installed()
        stack.become(arguments)
    already = stack.running()
    if already is None:
        server = spinning("Starting the local API server")(lambda: stack.start(arguments))
        show(f"API server is ready: {server.endpoint}")
    else:
        show(f"API server runs already: {already.endpoint}")
    return 0


def _arguments(host: str | None, port: int | None) -> list[str]:
    wanted = port or next(
        (int(os.environ[n]) for n in PORT_VARIABLES if os.environ.get(n, "").isdigit()), None
    )
    out = ["--host", host] if host else []
    return [*out, "--port", str(wanted)] if wanted is not None else out


@click.command(help="Stop the local API server. Clusters and jobs go on.")
def stop() -> int:
    from sky import settings, stack
    from sky.cli.progress import spinning

    if spinning("Stopping the local API server")(stack.stop):
        show("API server stopped.")
        return 0
    named = settings.configured_server()
    if named is not None:
        say(f"This client uses {named.endpoint} ({named.source}), which it cannot stop.")
        return 1
    show("API server does not run.")
    return 0


@click.command(help="Show which server is used, and how it is.")
@options.OUTPUT
@options.CONFIG
def info(output: str, config: tuple[str, ...]) -> int:
    from sky import __version__, settings, stack
    from sky.connect import gateway_to
    from skyloom_common.core.errors import SkyloomError

    server = settings.configured_server(config) or stack.address()
    facts: dict[str, Any] = {
        "client_version": __version__,
        "endpoint": None,
        "source": "local stack",
        "status": "not running",
    }
    if server is not None:
        facts.update(endpoint=without_password(server.endpoint), source=server.source)
        try:
            answer = gateway_to(server).info()
        except SkyloomError as error:
            facts.update(status="unreachable", error=error.message)
            if server.local and not stack.probe(server):
                facts.update(status="not running", error=None)
        else:
            facts.update(
                status=answer.status, server_version=answer.version, api_version=answer.api_version,
                user=answer.user, store=answer.store, bus=answer.bus, started_at=answer.started_at,
                services=answer.services,
            )  # fmt: skip
    if output == "json":
        print_json({**dict.fromkeys(FACTS), **facts})
    else:
        _print_facts(facts)
    return 0


def _print_facts(facts: dict[str, Any]) -> None:
    lines = [
        ("Client version", facts["client_version"]),
        ("Endpoint", facts["endpoint"] or "none"),
        ("Known from", facts["source"]),
        ("Status", paint(facts["status"], "green" if facts["status"] in ("ok", "healthy") else "yellow")),
        ("Problem", facts.get("error")),
        ("Server version", facts.get("server_version")),
        ("API version", facts.get("api_version")),
        ("User", facts.get("user")),
        ("Store", facts.get("store")),
        ("Bus", facts.get("bus")),
        ("Started", ago(facts.get("started_at")) if facts.get("started_at") else None),
    ]
    for name, value in lines:
        if value not in (None, ""):
            show(f"{name + ':':<16}{value}")
    for name, word in sorted((facts.get("services") or {}).items()):
        show(f"{'  ' + name + ':':<26}{word}")
    if facts["status"] == "not running":
        say("To start it: sky api start (every other command starts it too)")


@click.command(help="Show requests: those in progress, or with -a all of them.")
@click.argument("request_ids", nargs=-1)
@click.option("-a", "--all-status", is_flag=True, help="Finished ones too.")
@click.option("-l", "--limit", default="50", metavar="N|none|all", help="At most so many (50).")
@click.option("-c", "--cluster", default=None, help="Of this cluster only.")
@click.option("-v", "--verbose", is_flag=True, help="Whole ids, phases and errors.")
@options.OUTPUT
@options.CONFIG
def status(
    request_ids: tuple[str, ...], all_status: bool, limit: str, cluster: str | None, **flags: Any
) -> int:
    if limit not in ("none", "all") and not limit.isdigit():
        raise click.UsageError(f"--limit {limit!r} is neither a number nor none.")
    rows = _requests(
        request_ids, all_status, None if limit in ("none", "all") else int(limit), cluster, flags["config"]
    )
    if flags["output"] == "json":
        print_json(rows)
        return 0
    header = ["ID", "User", "Name", "Cluster", "Created", "Status"] + (
        ["Phase", "Error"] if flags["verbose"] else []
    )
    cells = [_request_row(row, flags["verbose"]) for row in rows] or [["-"] * len(header)]
    show(table(header, cells, color_column="Status"))
    return 0


def _requests(
    ids: tuple[str, ...], all_status: bool, limit: int | None, cluster: str | None, config: tuple[str, ...]
) -> list[Operation]:
    """None of the server's requests when the server is not there: that is an answer too."""
    from sky.connect import find_server, gateway_to
    from sky.exceptions import ApiServerConnectionError

    server = find_server(config)
    if server is None:
        return []
    api = gateway_to(server)
    try:
        if ids:
            return [api.operation(prefix) for prefix in ids]
        return list(api.operations(all_status=all_status, limit=limit, cluster=cluster))
    except ApiServerConnectionError as error:
        say(error.message)
        return []


def _request_row(row: Operation, verbose: bool) -> list[str]:
    line = [row.id, row.user, f"sky.{row.kind}", row.target, ago(row.created_at), row.status.value]
    return [*line, row.phase, row.error.message if row.error else "-"] if verbose else line


@click.command(
    help="Show what a request did and does (a prefix of its id is enough), or the server's own log."
)
@click.argument("request_id", required=False)
@click.option("--server-logs", is_flag=True, help="The log of the server itself.")
@click.option("-l", "--log-path", default=None, hidden=True)
@click.option("--tail", type=click.IntRange(min=0), default=None, help="The last lines only.")
@click.option("--follow/--no-follow", default=True, help="Go on until it ends (the default).")
@options.CONFIG
def logs(
    request_id: str | None,
    server_logs: bool,
    log_path: str | None,
    tail: int | None,
    follow: bool,
    config: tuple[str, ...],
) -> int:
    if server_logs and request_id:
        raise click.UsageError("Give a request's id, or --server-logs; not both.")
    if log_path is not None:
        say("not supported yet: sky api logs --log-path")
        return 1
    return (
        _server_logs(tail, follow, config) if server_logs else _request_logs(request_id, tail, follow, config)
    )


def _server_logs(tail: int | None, follow: bool, config: tuple[str, ...]) -> int:
    from sky.cli.session import copy_out, gateway
    from sky.net.transport import read_pieces

    response = gateway(config).transport.open(
        "GET", "/server-logs", query={"follow": follow, "tail": tail or None}
    )
    copy_out(read_pieces(response))
    return 0


def _request_logs(request_id: str | None, tail: int | None, follow: bool, config: tuple[str, ...]) -> int:
    from sky.cli.session import gateway
    from sky.client.results import raise_for
    from sky.net.follow import operation_events

    api = gateway(config)
    if request_id is None:
        newest = api.operations(all_status=True, limit=1)
        if not newest:
            show("There are no requests yet.")
            return 0
        operation = newest[0]
    else:
        operation = api.operation(request_id)
    if not follow and not operation.status.is_final:
        show(f"{operation.kind} {operation.target}: {operation.status.value} {operation.phase}")
        return 0
    lines = []
    for event in operation_events(api.transport, operation.id):
        line = f"[{event.phase}] {event.message}"
        if tail:
            lines.append(line)
        else:
            show(line)
    for line in lines[-tail:] if tail else []:
        show(line)
    raise_for(api.operation(operation.id))
    return 0


@click.command(help="Cancel requests; a prefix of an id is enough.")
@click.argument("request_ids", nargs=-1)
@click.option("-a", "--all", "all_", is_flag=True, help="All my requests.")
@click.option("-u", "--all-users", is_flag=True, help="The requests of all users.")
@options.YES
@options.CONFIG
def cancel(
    request_ids: tuple[str, ...], all_: bool, all_users: bool, yes: bool, config: tuple[str, ...]
) -> int:
    from sky.cli.session import gateway
    from skyloom_common.core.errors import SkyloomError

    if bool(request_ids) == (all_ or all_users):
        raise click.UsageError("Give request ids, or --all, or --all-users.")
    api = gateway(config)
    ids = list(request_ids)
    if not ids:
        if (
            not yes
            and click.prompt(
                f"Type {CANCEL_PHRASE!r} to cancel every request", default="", show_default=False
            )
            != CANCEL_PHRASE
        ):
            raise click.Abort
        me = api.info().user
        ids = [row.id for row in api.operations() if all_users or not me or row.user == me]
    failures = 0
    for request_id in ids:
        try:
            operation = api.cancel_operation(request_id)
        except SkyloomError as error:
            failures += 1
            say(f"{request_id}: {error.message}")
            continue
        if operation.status.is_final and operation.status.value != "CANCELLED":
            failures += 1
            say(
                f"{operation.kind} of {operation.target} ({operation.id}) has ended: {operation.status.value}."
            )
            continue
        show(f"Cancelling {operation.kind} of {operation.target} ({operation.id}).")
    if not ids:
        show("No requests in progress.")
    return 1 if failures else 0


@click.command(help="Use a remote API server from now on.")
@click.option("-e", "--endpoint", default=None, help="http(s)://host[:port]")
@click.option("--relogin", is_flag=True, help="Ask for the token again.")
@click.option("-t", "--token", "--service-account-token", "token", default=None, help="Its token.")
@click.option("--no-browser", is_flag=True, hidden=True)
def login(endpoint: str | None, relogin: bool, token: str | None, no_browser: bool) -> int:
    from sky import login as logins
    from sky import settings

    section = settings.load_config().get("api_server") or {}
    endpoint = endpoint or section.get("endpoint") or click.prompt("Endpoint of the API server")
    if token is None and (
        relogin or not section.get("service_account_token") or endpoint != section.get("endpoint")
    ):
        token = click.prompt("Token", hide_input=True, default="", show_default=False) or None
    elif token is None:
        token = section.get("service_account_token")
    answer = logins.login(str(endpoint), token)
    show(f"Logged in to {without_password(str(endpoint))}" + (f" as {answer.user}." if answer.user else "."))
    return 0


@click.command(help="Forget the remote API server; the local one is used again.")
def logout() -> int:
    from sky import login as logins

    show("Logged out." if logins.logout() else "Not logged in.")
    return 0
