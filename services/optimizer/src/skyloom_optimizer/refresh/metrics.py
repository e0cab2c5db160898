"""Gauges and counters of the catalog, on the registry of its app."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

from skyloom_common.contracts.catalog import CatalogRefresh
from skyloom_optimizer.catalog.info import cloud_infos
from skyloom_optimizer.refresh.live import Loaded

_DAY = 86400.0


class CatalogMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._age = Gauge(
            "skyloom_catalog_age_seconds",
            "Since the newest price of a cloud was seen",
            ["cloud"],
            registry=registry,
        )
        self._offers = Gauge("skyloom_catalog_offers", "Offers in the catalog", ["cloud"], registry=registry)
        self._own = Gauge("skyloom_catalog_own_offers", "Own prices and offers in force", registry=registry)
        self._problems = Gauge("skyloom_catalog_problems", "Faults of own lists and files", registry=registry)
        self._outcomes = Counter(
            "skyloom_catalog_refresh_total",
            "Refreshes by cloud and outcome",
            ["cloud", "outcome"],
            registry=registry,
        )
        self._refused = Counter(
            "skyloom_catalog_refused_parts_total",
            "Answers that were not believed",
            ["cloud"],
            registry=registry,
        )

        self._due = Gauge(
            "skyloom_catalog_next_refresh_timestamp_seconds",
            "When the catalog is refreshed by itself next; 0 where it is not",
            registry=registry,
        )
        self._failures = Gauge(
            "skyloom_catalog_refresh_failures_in_a_row",
            "Refreshes by itself that failed since the last good one",
            registry=registry,
        )

    def turn(self, due: float, failures: int) -> None:
        self._due.set(due)
        self._failures.set(failures)

    def show(self, loaded: Loaded, now: float) -> None:
        for cloud in cloud_infos(loaded.catalog, now, loaded.refreshed):
            self._offers.labels(cloud.name).set(cloud.offers)
            if cloud.age_days is not None:
                self._age.labels(cloud.name).set(cloud.age_days * _DAY)
        self._own.set(loaded.own)
        self._problems.set(len(loaded.problems))

    def count(self, report: CatalogRefresh) -> None:
        for cloud in report.clouds:
            self._outcomes.labels(cloud.cloud, cloud.status).inc()
            if cloud.refused:
                self._refused.labels(cloud.cloud).inc(len(cloud.refused))
