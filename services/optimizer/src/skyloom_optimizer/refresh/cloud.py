"""Refreshes one cloud: fetch what is not fetched yet, judge each part, accept or refuse it, say what changed.

It must not write the catalog: that is done once for all that was accepted (run.py).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from skyloom_common.contracts.catalog import CloudRefresh
from skyloom_optimizer.catalog.csvform import Row
from skyloom_optimizer.refresh.diff import diff
from skyloom_optimizer.refresh.files import RefreshFiles
from skyloom_optimizer.refresh.merge import Accepted, CloudRows, SourceRow, finished, prices_of, staying
from skyloom_optimizer.refresh.model import (
    Feed,
    FeedError,
    FeedNotConfigured,
    FeedRow,
    FeedUnavailable,
    Known,
)
from skyloom_optimizer.refresh.sanity import Rules, judge

GIVE_UP_AFTER = 3
_NOTES_KEPT = 20
Report = Callable[[CloudRefresh], None]


@dataclass
class _Outcome:
    accepted: list[Accepted] = field(default_factory=list)
    before: list[Row] = field(default_factory=list)
    after: list[Row] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    held: int = 0


class CloudRefresher:
    """`report` is told after each part, so that others can follow."""

    def __init__(
        self, feed: Feed, before: CloudRows, files: RefreshFiles, rules: Rules, now: float, report: Report
    ) -> None:
        self._feed = feed
        self._before = before
        self._files = files
        self._rules = rules
        self._now = now
        self._report = report
        self._date = dt.datetime.fromtimestamp(now, dt.UTC).date().isoformat()
        self._state = CloudRefresh(feed.info.cloud, "running")
        accepted = [item for item in files.accepted() if item.cloud == feed.info.cloud]
        self._earlier = {source[0]: source for item in accepted for source in item.sources}

    def run(self, known: Known, all_regions: bool, force: bool) -> tuple[CloudRefresh, list[Accepted]]:
        """What became of it, and the parts to take into the catalog. Does not raise FeedError."""
        try:
            parts = self._feed.parts(known, all_regions)
            fetched = self._fetch_all(parts)
        except FeedError as error:
            return self._failed(error), []
        outcome = _Outcome(refused=dict(self._state.refused))
        for part, rows in fetched.items():
            self._judge(part, rows, force, outcome)
        return self._final(outcome), outcome.accepted

    def _say(self, **changes: object) -> None:
        self._state = replace(self._state, **changes)  # type: ignore[arg-type]
        self._report(self._state)

    def _fetch_all(self, parts: Sequence[str]) -> dict[str, Sequence[FeedRow]]:
        """Raises where there is nothing to go on with. A cloud that falls silent is not asked any further."""
        self._say(parts=len(parts))
        fetched: dict[str, Sequence[FeedRow]] = {}
        silent = 0
        for part in parts:
            if silent >= GIVE_UP_AFTER:
                self._refuse(part, "not asked: the cloud stopped answering")
                continue
            try:
                fetched[part] = self._fetch(part)
                silent = 0
            except FeedNotConfigured:
                raise
            except FeedError as error:
                if len(parts) == 1:
                    raise
                silent = silent + 1 if isinstance(error, FeedUnavailable) else 0
                self._refuse(part, error.message)
        return fetched

    def _fetch(self, part: str) -> Sequence[FeedRow]:
        cloud, done = self._feed.info.cloud, self._state.parts_done + 1
        rows: Sequence[FeedRow] | None = self._files.fetched(cloud, part)
        if rows is not None:
            self._say(parts_done=done, parts_resumed=self._state.parts_resumed + 1)
            return rows
        rows = self._feed.fetch(part)
        self._files.save_fetched(cloud, part, rows)
        self._say(parts_done=done)
        return rows

    def _refuse(self, part: str, reason: str) -> None:
        self._say(refused={**self._state.refused, part: reason})

    def _judge(self, part: str, rows: Sequence[FeedRow], force: bool, outcome: _Outcome) -> None:
        info, earlier = self._feed.info, self._before.of_part(part)
        stay = staying(info, rows, earlier)
        replaced = [row for row in earlier if row not in stay]
        verdict = judge(info, rows, prices_of(replaced), self._rules, force=force)
        outcome.notes += verdict.notes
        outcome.held += verdict.held
        if verdict.refused:
            outcome.refused[part] = verdict.refused
            return
        code = f"{info.source}-{self._date}"
        source = (code, "quoted", self._date, info.licence or "none stated", info.description)
        done = [*finished(self._before, info, part, verdict.rows, code), *sorted(stay)]
        outcome.accepted.append(
            Accepted(info.cloud, part, self._now, code, done, self._sources(done, source))
        )
        outcome.before += earlier
        outcome.after += done

    def _sources(self, rows: Sequence[Row], own: SourceRow) -> list[SourceRow]:
        """Its own, and earlier refreshes' that a kept price still names."""
        used = {row[12] for row in rows} | {row[13] for row in rows}
        return [source for code, source in sorted({**self._earlier, own[0]: own}.items()) if code in used]

    def _final(self, outcome: _Outcome) -> CloudRefresh:
        changes = diff(prices_of(outcome.before), prices_of(outcome.after))
        if not outcome.accepted:
            part, reason = next(iter(outcome.refused.items()), ("", "nothing was fetched"))
            status, message = "failed", f"{part}: {reason}" if part else reason
        else:
            status, message = "refreshed", ""
        return replace(
            self._state,
            status=status,
            message=message,
            refused=outcome.refused,
            offers=len(outcome.after),
            new=changes.new,
            gone=changes.gone,
            up=changes.up,
            down=changes.down,
            held=outcome.held,
            changes=changes.changes,
            notes=tuple(outcome.notes[:_NOTES_KEPT]),
        )

    def _failed(self, error: FeedError) -> CloudRefresh:
        missing = isinstance(error, FeedNotConfigured)
        message = error.message + (f". {error.hint}" if error.hint else "")
        return replace(self._state, status="not_configured" if missing else "failed", message=message)
