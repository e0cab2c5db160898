"""The cost report: what the ledger says, and nothing from today's prices. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from skyloom_common.contracts.clusters import CostReport, CostRow


def cost_report(ledger: Sequence[Any], statuses: dict[str, str], now: float, days: int | None) -> CostReport:
    """`ledger`: usage rows; `statuses`: cluster id to its status, for those that still exist."""
    since = now - days * 86400.0 if days else 0.0
    by_cluster: dict[str, list[Any]] = defaultdict(list)
    for row in ledger:
        by_cluster[row.cluster_id].append(row)
    rows = [_row(entries, statuses.get(id, "TERMINATED"), since, now) for id, entries in by_cluster.items()]
    rows.sort(key=lambda row: row.launched_at, reverse=True)
    return CostReport(tuple(rows), round(sum(row.cost or 0.0 for row in rows), 6), days)


def _row(entries: list[Any], status: str, since: float, now: float) -> CostRow:
    entries = sorted(entries, key=lambda entry: entry.from_at)
    spans = [max(0.0, (entry.to_at or now) - max(entry.from_at, since)) for entry in entries]
    priced = [
        span / 3600.0 * entry.price_per_hour
        for span, entry in zip(spans, entries, strict=True)
        if entry.price_per_hour is not None
    ]
    newest = entries[-1]
    return CostRow(
        name=newest.cluster_name,
        launched_at=entries[0].from_at,
        duration_seconds=round(sum(spans), 1),
        num_nodes=newest.num_nodes,
        resources=newest.resources,
        status=status,
        price_per_hour=newest.price_per_hour,
        cost=round(sum(priced), 6) if priced else None,
        user=newest.user,
    )
