"""Refreshes clouds one after the other and writes the catalog after each: what an operator, a timer or the service starts.

    python -m skyloom_optimizer.refresh.run --home DIR [--cloud azure ...] [--all-regions] [--force]

A process of its own, because it computes for seconds while the service answers in milliseconds. Killed at any point it leaves
the old catalog or the new one, and what it had fetched; the next one goes on from there. It must not touch a database.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from skyloom_common.contracts.catalog import CatalogRefresh, CatalogRefreshRequest, CloudRefresh
from skyloom_common.core.home import skyloom_home
from skyloom_common.core.ids import new_id
from skyloom_common.service.env import SettingsError
from skyloom_optimizer.catalog.columns import Container, CorruptContainer
from skyloom_optimizer.catalog.csvform import Row, offer_rows
from skyloom_optimizer.catalog.load import CONTAINER, Catalog, is_restricted
from skyloom_optimizer.refresh.cloud import CloudRefresher
from skyloom_optimizer.refresh.feeds import FEEDS, feed_of
from skyloom_optimizer.refresh.files import RefreshFiles
from skyloom_optimizer.refresh.merge import Accepted, CloudRows, devices_of, merged
from skyloom_optimizer.refresh.model import Feed, FeedError, Known, RefreshRunning
from skyloom_optimizer.refresh.settings import FeedSettings

MakeFeed = Callable[[str], Feed]


class Refresh:
    """One run over some clouds. `make_feed` raises FeedError for a cloud that has none."""

    def __init__(
        self,
        files: RefreshFiles,
        base: Path,
        settings: FeedSettings,
        make_feed: MakeFeed | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._files = files
        self._base = Container(base.read_bytes())
        self._settings = settings
        self._make_feed = make_feed or (lambda cloud: feed_of(cloud, settings))
        self._now = now

    def run(self, request: CatalogRefreshRequest, run_id: str) -> CatalogRefresh:
        """Raises RefreshRunning; whatever goes wrong with a cloud is in the report."""
        clouds = request.clouds or tuple(sorted(FEEDS))
        report = CatalogRefresh(
            run_id, "running", self._now(), clouds=tuple(CloudRefresh(cloud) for cloud in clouds)
        )
        self._files.write_report(report)
        for position, cloud in enumerate(clouds):
            report = self._one(cloud, position, request, report)
            self._files.write_report(report)
        report = replace(report, status=_status(report.clouds), ended_at=self._now())
        self._files.write_report(report)
        return report

    def rebuild(self) -> str:
        """The catalog from the base and all that was accepted before, as after an update of the base; its version."""
        accepted = self._files.accepted()
        times: dict[str, float] = {}
        for item in accepted:
            times[item.cloud] = max(item.at, times.get(item.cloud, 0.0))
        meta = {"base": self._base.sha256, "refreshed": times}
        data = merged(self._base, accepted, meta)
        _check_readable(data)
        self._files.write_container(data)
        return Container(data).sha256[:12]

    def _one(
        self, cloud: str, position: int, request: CatalogRefreshRequest, report: CatalogRefresh
    ) -> CatalogRefresh:
        current = self._current()

        def tell(state: CloudRefresh) -> None:
            self._files.write_report(_with(report, position, state))

        try:
            feed = self._make_feed(cloud)
        except FeedError as error:
            words = error.message + (f". {error.hint}" if error.hint else "")
            missing = "not_configured" if error.code == "feed_not_configured" else "failed"
            return _with(report, position, CloudRefresh(cloud, missing, words))
        rows = [row for row in offer_rows(current) if row[0] == cloud]
        before = CloudRows(cloud, rows, devices_of(current))
        try:
            refresher = CloudRefresher(feed, before, self._files, self._settings.rules, self._now(), tell)
            state, accepted = refresher.run(known_regions(cloud, rows), request.all_regions, request.force)
        finally:
            feed.close()
        version = self._take(cloud, accepted, report.id) if accepted else report.version
        return replace(_with(report, position, state), version=version)

    def _take(self, cloud: str, accepted: Sequence[Accepted], run_id: str) -> str:
        for item in accepted:
            self._files.accept(item)
        version = self.rebuild()
        self._files.observe(f"{run_id}-{cloud}", _seen(accepted))
        self._files.forget_fetched(cloud)
        return version

    def _current(self) -> Container:
        """What planning uses now: differences are told against it."""
        try:
            current = Container(self._files.container.read_bytes())
            current.verify()
        except (OSError, CorruptContainer):
            return self._base
        return current if current.meta.get("base") == self._base.sha256 else self._base


def known_regions(cloud: str, rows: Sequence[Row]) -> Known:
    every = sorted({row[1] for row in rows if row[1]})
    zones: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        zones.setdefault((row[1], row[3]), []).append(row[2])
    return Known([region for region in every if not is_restricted(cloud, region, "")], every, zones)


def _check_readable(data: bytes) -> None:
    """The last gate before the rename: it opens, its sum is right, and a snapshot can be made of it."""
    container = Container(data)
    container.verify()
    Catalog(container).warm()


def _seen(accepted: Sequence[Accepted]) -> list[list[object]]:
    """Prices of these parts that this run has seen itself (not the ones it kept)."""
    return [
        [*row[:4], use_spot, float(price)]
        for item in accepted
        for row in item.rows
        for use_spot, price, source in ((False, row[10], row[12]), (True, row[11], row[13]))
        if price and source == item.source
    ]


def _with(report: CatalogRefresh, position: int, state: CloudRefresh) -> CatalogRefresh:
    clouds = (*report.clouds[:position], state, *report.clouds[position + 1 :])
    return replace(report, clouds=clouds)


def _status(clouds: Sequence[CloudRefresh]) -> str:
    """Clouds without credentials are left out of the judgement unless there is nothing else."""
    tried = [cloud for cloud in clouds if cloud.status != "not_configured"] or list(clouds)
    good = [cloud for cloud in tried if cloud.status == "refreshed"]
    if not good:
        return "failed"
    return "succeeded" if len(good) == len(tried) and not any(cloud.refused for cloud in good) else "partly"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m skyloom_optimizer.refresh.run", description=__doc__)
    parser.add_argument("--home", type=Path, default=skyloom_home())
    parser.add_argument("--base", type=Path, default=CONTAINER, metavar="FILE")
    parser.add_argument("--cloud", action="append", default=[], dest="clouds")
    parser.add_argument("--all-regions", action="store_true")
    parser.add_argument("--force", action="store_true")
    parser.add_argument("--id", default="")
    parser.add_argument(
        "--rebuild", action="store_true", help="no fetching: put accepted parts into the base"
    )
    options = parser.parse_args(argv)
    files = RefreshFiles(options.home)
    try:
        with files.only_one():
            refresh = Refresh(files, options.base, FeedSettings.from_env())
            if options.rebuild:
                sys.stdout.write(f"{files.container}: version {refresh.rebuild()}\n")
                return 0
            request = CatalogRefreshRequest(tuple(options.clouds), options.all_regions, options.force)
            report = refresh.run(request, options.id or new_id())
    except (RefreshRunning, SettingsError, CorruptContainer, OSError) as error:
        sys.stderr.write(f"catalog refresh: {error}\n")
        return 2
    sys.stdout.write("".join(f"{line}\n" for line in _lines(report)))
    return 1 if report.status == "failed" else 0


def _lines(report: CatalogRefresh) -> list[str]:
    return [
        f"{cloud.cloud}: {cloud.status}, {cloud.offers} offers, {cloud.new} new, {cloud.gone} gone, "
        f"{cloud.up} up, {cloud.down} down" + (f" ({cloud.message})" if cloud.message else "")
        for cloud in report.clouds
    ]


if __name__ == "__main__":
    sys.exit(main())
