"""The service's side of refreshing: starts the process, follows it, swaps the catalog, feeds the price history.

The process (run.py) fetches and computes; it must not run in here, where plans are answered in milliseconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import sys
from pathlib import Path

from skyloom_common.contracts.catalog import CatalogRefresh, CatalogRefreshRequest
from skyloom_common.core.clock import Clock
from skyloom_common.core.errors import InvalidRequest, StoreUnavailable
from skyloom_common.core.ids import new_id
from skyloom_common.core.text import did_you_mean
from skyloom_optimizer.history.store import PriceHistoryStore
from skyloom_optimizer.refresh.feeds import FEEDS
from skyloom_optimizer.refresh.files import RefreshFiles, read_observed, remove
from skyloom_optimizer.refresh.live import LiveCatalog
from skyloom_optimizer.refresh.metrics import CatalogMetrics
from skyloom_optimizer.refresh.model import RefreshRunning
from skyloom_optimizer.refresh.shared import SharedParts

_FAILED = "the refresh ended before it was done; what it had fetched is kept for the next one"
_SHOW_EVERY = 600.0
_LONGEST_RUN = 6 * 3600.0


class RefreshService:
    """Make one per app; `run_forever` until cancelled, then `close`."""

    def __init__(
        self,
        files: RefreshFiles,
        live: LiveCatalog,
        base: Path,
        history: PriceHistoryStore,
        metrics: CatalogMetrics,
        clock: Clock,
        shared: SharedParts | None = None,
        poll_seconds: float = 15.0,
    ) -> None:
        self._files = files
        self._live = live
        self._base = base
        self._history = history
        self._metrics = metrics
        self._clock = clock
        self._shared = shared
        self._poll_seconds = poll_seconds
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None
        self._run_id = ""
        self._tried_rebuild = ""
        self._shown_at: float | None = None
        self._log = logging.getLogger(__name__)

    # --- what the routes ask ---

    async def start(self, request: CatalogRefreshRequest) -> CatalogRefresh:
        """Starts a refresh and returns at once. Raises InvalidRequest, RefreshRunning."""
        clouds = tuple(dict.fromkeys(cloud.lower() for cloud in request.clouds))
        for cloud in clouds:
            if cloud not in FEEDS:
                known = ", ".join(sorted(FEEDS))
                raise InvalidRequest(
                    f"clouds: {cloud!r} has no price feed (these have: {known}){did_you_mean(cloud, FEEDS)}",
                    details={"field": "clouds"},
                )
        if self._is_busy() or await asyncio.to_thread(self._files.is_running) or await self._runs_elsewhere():
            raise RefreshRunning("a refresh is running already", hint="See its progress: sky catalog status")
        run_id = new_id()
        flags = [f"--cloud={cloud}" for cloud in clouds]
        flags += ["--all-regions"] if request.all_regions else []
        flags += ["--force"] if request.force else []
        begun = CatalogRefresh(run_id, "running", self._clock.now())
        self._files.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._files.write_report(begun)
        await self._tell()
        self._run_id = run_id
        await self._start_process(run_id, [*flags, "--id", run_id])
        return begun

    async def report(self) -> CatalogRefresh | None:
        """The last refresh, of whichever replica; one whose process is gone without a word has failed."""
        own = self._own_report()
        other = None if self._shared is None else await self._shared.told()
        if other is not None and (own is None or other.started_at > own.started_at):
            return other
        return own

    def _own_report(self) -> CatalogRefresh | None:
        """Running until its catalog is in use: who waits for the end sees the new prices at once."""
        report = self._files.report()
        if report is not None and report.id == self._run_id and self._is_busy():
            return dataclasses.replace(report, status="running")
        if report is None or report.status != "running" or self._is_busy() or self._files.is_running():
            return report
        return dataclasses.replace(report, status="failed", message=_FAILED)

    async def _runs_elsewhere(self) -> bool:
        """A replica that died in the middle must not stop the others for ever."""
        other = None if self._shared is None else await self._shared.told()
        recent = other is not None and self._clock.now() - other.started_at < _LONGEST_RUN
        own = self._files.report()
        return (
            other is not None and recent and other.status == "running" and (own is None or own.id != other.id)
        )

    async def _tell(self) -> None:
        report = self._own_report()
        if self._shared is None or report is None:
            return
        try:
            await self._shared.tell(report)
        except StoreUnavailable as error:
            self._log.warning("other replicas do not know of this refresh yet: %s", error)

    # --- its own life ---

    async def run_forever(self) -> None:
        """Looks for what others changed: a refresh by a timer or an operator, the own list, another base."""
        while True:
            try:
                await self.look_once()
            except Exception:
                self._log.exception("looking for catalog changes failed; the catalog stays as it is")
            await asyncio.sleep(self._poll_seconds)

    async def look_once(self) -> None:
        await self._swap()
        await self._take_observed()
        if self._is_busy():
            await self._tell()
        if await self._share() and not self._is_busy():
            await self._start_process("rebuild", ["--rebuild"])
        loaded = self._live.current
        if loaded.outdated and not self._is_busy() and self._tried_rebuild != loaded.catalog.version:
            self._tried_rebuild = loaded.catalog.version
            await self._start_process("rebuild", ["--rebuild"])

    async def wait(self) -> None:
        """Until the process that was started here has ended and its catalog is in use."""
        if self._watch is not None:
            await asyncio.shield(self._watch)

    async def close(self) -> None:
        """The process is asked to end; what it has fetched stays."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
        if self._watch is not None:
            await asyncio.wait({self._watch}, timeout=10)

    def _is_busy(self) -> bool:
        return self._watch is not None and not self._watch.done()

    async def _start_process(self, run_id: str, flags: list[str]) -> None:
        where = ["--home", str(self._files.folder.parent), "--base", str(self._base)]
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "skyloom_optimizer.refresh.run", *where, *flags,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        self._watch = asyncio.create_task(self._follow(self._process, run_id))

    async def _follow(self, process: asyncio.subprocess.Process, run_id: str) -> None:
        output, _ = await process.communicate()
        lines = output.decode("utf-8", "replace").strip().splitlines()
        for line in lines[-20:]:
            self._log.info("refresh %s: %s", run_id, line)
        await self._swap()
        await self._share()
        await self._take_observed()
        report = self._files.report()
        if report is None or report.id != run_id:
            return
        if report.status == "running":
            words = lines[-1] if lines else _FAILED
            report = dataclasses.replace(report, status="failed", message=words, ended_at=self._clock.now())
            self._files.write_report(report)
        self._run_id = ""
        self._metrics.count(report)
        await self._tell()

    async def _share(self) -> bool:
        """True when parts of other replicas came in."""
        try:
            return self._shared is not None and await self._shared.sync()
        except StoreUnavailable as error:
            self._log.warning("accepted parts are shared later: %s", error)
            return False

    async def _swap(self) -> None:
        changed = await asyncio.to_thread(self._live.reload_if_changed)
        moment = self._clock.monotonic()
        if changed or self._shown_at is None or moment - self._shown_at > _SHOW_EVERY:
            self._shown_at = moment
            self._metrics.show(self._live.current, self._clock.now())

    async def _take_observed(self) -> None:
        """Into the history, once: a file is removed after its rows are in; seen twice they change nothing."""
        for path in self._files.observed():
            body = await asyncio.to_thread(read_observed, path)
            if body is not None:
                try:
                    await self._history.record(body["at"], body["rows"])
                except StoreUnavailable as error:
                    self._log.warning("prices seen are kept for later: %s", error)
                    return
            remove(path)
