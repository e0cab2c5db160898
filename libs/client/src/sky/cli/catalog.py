"""sky catalog status, sky catalog refresh: how old prices are, and asking the clouds for current ones.

The refresh runs on the server; here it is only started, followed and shown.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from sky.cli import options
from sky.cli.output import ago, money, paint, print_json, say, show, table

if TYPE_CHECKING:
    from sky.api import Gateway
    from skyloom_common.contracts.catalog import (
        CatalogChange,
        CatalogCloud,
        CatalogInfo,
        CatalogRefresh,
        CatalogSchedule,
        CloudRefresh,
    )

POLL_SECONDS = 1.0
PATIENCE = 30
CHANGES_SHOWN = 20
FULL_DATE = len("2026-01-01")
_GOOD = ("succeeded", "partly")


@click.command(help="Show how old the prices of each cloud are, and how the last refresh went.")
@click.option("--cloud", "clouds", multiple=True, help="Only this cloud; may be repeated.")
@click.option("-v", "--verbose", is_flag=True, help="The changes of the last refresh, too.")
@options.OUTPUT
@options.CONFIG
def status(clouds: tuple[str, ...], verbose: bool, output: str, config: tuple[str, ...]) -> int:
    from sky.cli.session import gateway

    found = gateway(config).catalog()
    if output == "json":
        print_json(found)
        return 0
    wanted = {cloud.lower() for cloud in clouds}
    rows = [_cloud(cloud) for cloud in _stalest_first(found.clouds) if not wanted or cloud.name in wanted]
    show(
        table(["CLOUD", "OFFERS", "PRICED", "SPOT", "REGIONS", "OLDEST", "NEWEST", "AGE", "REFRESHED"], rows)
    )
    if any(len(cloud.newest) < FULL_DATE or "/" in cloud.newest for cloud in found.clouds if cloud.newest):
        say(
            "AGE is that of the newest price. A date without day or month counts from its first day: 2026 is 2026-01-01."
        )
    _show_own(found)
    _show_schedule(found.schedule)
    if found.refresh is not None:
        show("")
        _show_refresh(found.refresh, verbose)
    return 0


@click.command(help="Ask clouds for their current prices. A bad answer never replaces a good price.")
@click.option("--cloud", "clouds", multiple=True, help="Only this cloud; may be repeated. All by default.")
@click.option("--all-regions", is_flag=True, help="Every region, also those that need an opt-in.")
@click.option("--force", is_flag=True, help="Believe prices that jump far, and lists that became short.")
@click.option("--async", "async_call", is_flag=True, help="Do not wait for the end.")
@click.option("-v", "--verbose", is_flag=True, help="Every change that is known, not only the largest.")
@options.OUTPUT
@options.CONFIG
def refresh(
    clouds: tuple[str, ...],
    all_regions: bool,
    force: bool,
    async_call: bool,
    verbose: bool,
    output: str,
    config: tuple[str, ...],
) -> int:
    from sky.cli.session import gateway
    from skyloom_common.contracts.catalog import CatalogRefreshRequest

    api = gateway(config)
    names = tuple(cloud.lower() for cloud in clouds)
    report = api.refresh_catalog(CatalogRefreshRequest(names, all_regions, force))
    if async_call:
        say("The refresh runs on the server. See how it goes: sky catalog status")
        return 0
    report = _follow(api, report)
    if output == "json":
        print_json(report)
    else:
        _show_refresh(report, verbose)
    return 0 if report.status in _GOOD else 1


def _follow(api: Gateway, begun: CatalogRefresh) -> CatalogRefresh:
    """Until it has ended; Ctrl-C ends the waiting only."""
    from sky.cli.progress import Progress

    report, strangers = begun, 0
    try:
        with Progress("Asking clouds for their prices") as progress:
            while report.status == "running":
                time.sleep(POLL_SECONDS)
                now = api.catalog().refresh
                if now is None or now.id != begun.id:
                    # Another replica may not know of it yet.
                    strangers += 1
                    if strangers > PATIENCE:
                        break
                    continue
                report = now
                progress.update(_progress(report.clouds))
    except KeyboardInterrupt:
        say("\nStopped waiting; the refresh goes on. See how it goes: sky catalog status")
        raise
    return report


def _progress(clouds: Sequence[CloudRefresh]) -> str:
    running = next((cloud for cloud in clouds if cloud.status == "running"), None)
    if running is None:
        return "Asking clouds for their prices"
    return f"{running.cloud}: {running.parts_done} of {running.parts or '?'} parts"


def _stalest_first(clouds: Sequence[CatalogCloud]) -> list[CatalogCloud]:
    return sorted(clouds, key=lambda cloud: (-(cloud.age_days or 0), cloud.name))


def _cloud(cloud: CatalogCloud) -> list[object]:
    age = "-" if cloud.age_days is None else f"{cloud.age_days}d"
    counts = (cloud.offers, cloud.priced, cloud.spot_priced, cloud.regions)
    dates = (cloud.oldest, cloud.newest)
    return [cloud.name, *(f"{count:,}" for count in counts), *dates, age, ago(cloud.refreshed_at)]


def _show_own(found: CatalogInfo) -> None:
    say(
        f"Catalog version {found.version}: {found.offers:,} offers, {found.own_offers} own prices and offers."
    )
    for problem in found.problems:
        say(paint("Problem: ", "yellow") + problem)


def _show_schedule(schedule: CatalogSchedule | None) -> None:
    if schedule is None:
        say("Prices are refreshed when you ask for it: sky catalog refresh")
        return
    what = ", ".join(schedule.clouds) or "every cloud that has a feed"
    wait = max(0.0, (schedule.next_at or 0.0) - time.time())
    due = "running" if schedule.last_status == "running" else f"next in {wait / 3600:.1f} h"
    say(f"Refreshed by itself every {schedule.every_seconds / 3600:g} h ({what}); {due}.")
    if schedule.failures:
        say(
            paint("Problem: ", "yellow")
            + f"refreshing by itself failed {schedule.failures} times in a row, earlier prices stay: {schedule.message}"
        )


def _show_refresh(report: CatalogRefresh, verbose: bool) -> None:
    words = {"running": "is running", "succeeded": "succeeded", "partly": "succeeded in part"}.get(
        report.status, "failed"
    )
    say(f"Refresh of {ago(report.started_at)} {words}." + (f" {report.message}" if report.message else ""))
    if report.clouds:
        header = ["CLOUD", "STATUS", "OFFERS", "NEW", "GONE", "UP", "DOWN", "HELD", "PARTS"]
        show(table(header, [_refreshed(cloud) for cloud in report.clouds]))
    for cloud in report.clouds:
        if cloud.message:
            say(f"{cloud.cloud}: {cloud.message}")
        for part, reason in list(cloud.refused.items())[: None if verbose else 5]:
            say(f"{cloud.cloud} {part}: not taken: {reason}")
        for note in cloud.notes if verbose else ():
            say(f"{cloud.cloud}: earlier price kept: {note}")
    changes = [change for cloud in report.clouds for change in cloud.changes]
    if changes:
        show("")
        show(
            table(
                ["CHANGE", "CLOUD", "WHERE", "INSTANCE_TYPE", "PRICING", "BEFORE", "AFTER", ""],
                _changes(changes, verbose),
            )
        )


def _refreshed(cloud: CloudRefresh) -> list[object]:
    counts = (cloud.offers, cloud.new, cloud.gone, cloud.up, cloud.down, cloud.held)
    parts = f"{cloud.parts_done}/{cloud.parts}"
    resumed = f" ({cloud.parts_resumed} resumed)" if cloud.parts_resumed else ""
    return [cloud.cloud, cloud.status.replace("_", " "), *(f"{count:,}" for count in counts), parts + resumed]


def _changes(changes: Sequence[CatalogChange], verbose: bool) -> list[list[object]]:
    """The dearest first: they matter most."""
    shown = sorted(changes, key=lambda change: -max(change.before or 0, change.after or 0))
    return [_change(change) for change in (shown if verbose else shown[:CHANGES_SHOWN])]


def _change(change: CatalogChange) -> list[object]:
    percent = ""
    if change.before and change.after:
        percent = f"{(change.after - change.before) / change.before:+.0%}"
    pricing = "spot" if change.use_spot else "on-demand"
    where = change.zone or change.region
    return [
        change.kind, change.cloud, where, change.instance_type, pricing, money(change.before), money(change.after),
        percent,
    ]  # fmt: skip
