"""Starts the balancer: reads the settings, builds everything, ends on SIGTERM after draining, reloads on SIGHUP."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from aiohttp import web

from skyloom_common.core.errors import SkyloomError
from skyloom_lb import settings as settings_module
from skyloom_lb.admin import admin_app
from skyloom_lb.fronts import check, is_exposed, make_front
from skyloom_lb.settings import Settings
from skyloom_lb.worker import Worker, listen, spare_the_collector

_log = logging.getLogger("skyloom_lb")


def main(arguments: Sequence[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        settings = settings_module.load(given, os.environ)
        check(settings)
    except SkyloomError as error:
        print(f"skyloom-lb: {error.message}", file=sys.stderr)  # noqa: T201
        return 2
    if is_exposed(settings):
        _log.warning("%s: anybody who reaches this address may use it: there is no keys file", settings.host)
    try:
        if settings.workers > 1:
            from skyloom_lb.workers import supervise

            return supervise(settings, given)
        spare_the_collector()
        return asyncio.run(serve(settings, given))
    except OSError as error:
        print(f"skyloom-lb: cannot start: {error.strerror or error}", file=sys.stderr)  # noqa: T201
        return 1


async def serve(settings: Settings, arguments: Sequence[str]) -> int:
    """One process that is everything; also what a test runs."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    worker = Worker(settings, make_front)
    listener = listen(settings.host, settings.port, reuse_port=False)
    reload = Reload(arguments, worker)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, reload.now)
    await worker.start(listener)
    worker.balancer.after_sweep.append(reload.look)
    admin = await start_admin(settings, worker)
    host, port = listener.getsockname()[:2]
    _log.info("listening on %s:%d", host, port)
    await stop.wait()
    _log.info("draining for at most %g s", settings.drain_seconds)
    await worker.stop()
    if admin is not None:
        await admin.cleanup()
    return 0


async def start_admin(settings: Settings, worker: Worker) -> web.AppRunner | None:
    async def read() -> dict[str, Any]:
        return worker.snapshot()

    async def ready() -> tuple[bool, dict[str, Any]]:
        return readiness([worker.snapshot()], 1, worker.settings)

    return await run_admin(settings, admin_app(read, ready, settings.admin_token))


async def run_admin(settings: Settings, app: web.Application) -> web.AppRunner | None:
    if settings.admin_port < 0:
        return None
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, settings.admin_host, settings.real_admin_port).start()
    return runner


def readiness(
    snapshots: Sequence[dict[str, Any]], wanted: int, settings: Settings
) -> tuple[bool, dict[str, Any]]:
    """Ready: all workers answer, none drains. Missing sources are told, but the last known good endpoints still serve; so is
    what else an operator should know: limits that are not common now, an address that is open to everybody."""
    draining = any(one["draining"] for one in snapshots)
    sources = {name: words for one in snapshots for name, words in one["sources"].items()}
    detail = {
        "draining": draining,
        "workers": len(snapshots),
        "eligible": snapshots[0]["eligible"] if snapshots else {},
        "last_known_good": sources,
        "limits": next((one["limits"] for one in snapshots if one["limits"]), ""),
        "open": is_exposed(settings),
    }
    return len(snapshots) == wanted and not draining, detail


class Reload:
    """Reads the settings again on SIGHUP or when the file changes; wrong ones are logged and change nothing."""

    def __init__(self, arguments: Sequence[str], worker: Worker) -> None:
        self._arguments = list(arguments)
        self._worker = worker
        self._host = worker.settings.host  # where it listens, whatever the file says by now
        self._path = settings_module.parser().parse_known_args(self._arguments)[0].config or os.environ.get(
            "SKYLOOM_LB_CONFIG", ""
        )
        self._mark = self._look()
        self._looked = 0.0

    def _look(self) -> float:
        with contextlib.suppress(OSError):
            return os.stat(self._path).st_mtime if self._path else 0.0
        return 0.0

    def look(self, now: float) -> None:
        if self._path and now - self._looked >= 1.0:
            self._looked = now
            if self._look() not in (0.0, self._mark):
                self.now()

    def now(self) -> None:
        self._mark = self._look()
        try:
            settings = replace(settings_module.load(self._arguments, os.environ), host=self._host)
            check(settings)
            self._worker.configure(settings)
            _log.info("settings reloaded")
        except SkyloomError as error:
            _log.error("the settings stay what they were: %s", error.message)


if __name__ == "__main__":
    sys.exit(main())
