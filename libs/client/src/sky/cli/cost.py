"""sky cost-report: what clusters have cost, from prices as they were when they started."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from sky.cli import options
from sky.cli.output import ago, duration, print_json, say, show, table

if TYPE_CHECKING:
    from skyloom_common.contracts.clusters import CostRow

HEADER = ["NAME", "LAUNCHED", "DURATION", "RESOURCES", "STATUS", "COST/hr", "COST (est.)"]
SHOWN = 5


@click.command("cost-report", help="Show what clusters have cost.")
@click.option("-a", "--all", "all_", is_flag=True, help="All clusters, not only the five newest.")
@click.option(
    "--days", type=click.IntRange(min=0), default=30, show_default=True, help="Of so many days; 0 = ever."
)
@options.OUTPUT
@options.CONFIG
def cost_report(all_: bool, days: int, output: str, config: tuple[str, ...]) -> int:
    from sky.cli.session import gateway

    report = gateway(config).cost_report(days)
    if output == "json":
        print_json(report)
        return 0
    rows = sorted(report.rows, key=lambda row: -row.launched_at)
    if not rows:
        show("No cluster ran in this period.")
        return 0
    shown = rows if all_ else rows[:SHOWN]
    show(table(HEADER, [_row(row) for row in shown], color_column="STATUS"))
    show(f"\nTotal: $ {report.total_cost:.2f}")
    if len(rows) > len(shown):
        say(f"{len(rows) - len(shown)} more: sky cost-report --all")
    return 0


def _row(row: CostRow) -> list[str]:
    return [
        row.name,
        ago(row.launched_at),
        duration(row.duration_seconds),
        row.resources or f"{row.num_nodes}x",
        row.status,
        "-" if row.price_per_hour is None else f"$ {row.price_per_hour:.2f}",
        "-" if row.cost is None else f"$ {row.cost:.2f}",
    ]
