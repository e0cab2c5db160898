"""Starts the balancer: reads the settings, builds everything, ends on SIGTERM after draining, reloads on SIGHUP."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from aiohttp import web

from skyloom_common.core.errors import InvalidRequest, SkyloomError, Unavailable
from skyloom_lb import settings as settings_module
from skyloom_lb.admin import admin_app
from skyloom_lb.fronts import check, is_exposed, make_front
from skyloom_lb.listener import listen, no_port
from skyloom_lb.loop import run
from skyloom_lb.settings import Settings
from skyloom_lb.worker import Worker, spare_the_collector

_log = logging.getLogger("skyloom_lb")


def main(arguments: Sequence[str] | None = None) -> int:
    """2 where what it was told is wrong, 1 where the system refuses: one sentence either way."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        return _run(list(sys.argv[1:] if arguments is None else arguments))
    except SkyloomError as error:
        print(f"skyloom-lb: {error.message}", file=sys.stderr)  # noqa: T201
        return 2 if isinstance(error, InvalidRequest) else 1
    except OSError as error:
        print(f"skyloom-lb: cannot start: {error.strerror or error}", file=sys.stderr)  # noqa: T201
        return 1


def _run(arguments: Sequence[str]) -> int:
    settings = settings_module.load(arguments, os.environ)
    check(settings)
    if is_exposed(settings):
        _log.warning("%s: anybody who reaches this address may use it: there is no keys file", settings.host)
    if settings.workers > 1:
        from skyloom_lb.workers import supervise

        return supervise(settings, arguments)
    spare_the_collector()
    return run(serve(settings, arguments), settings.event_loop)


async def serve(settings: Settings, arguments: Sequence[str]) -> int:
    """One process that is everything; also what a test runs."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    worker = Worker(settings, make_front)
    listener = listen(settings.host, settings.port, reuse_port=False)
    reload = Reload(arguments, settings, worker.configure)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, reload.now)
    await worker.start(listener)
    admin = await start_admin(settings, worker)
    watch = loop.create_task(reload.watch())
    host, port = listener.getsockname()[:2]
    _log.info("listening on %s:%d", host, port)
    await stop.wait()
    _log.info("draining for at most %g s", settings.drain_seconds)
    watch.cancel()
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
    host, port = settings.admin_host, settings.real_admin_port
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        raise Unavailable(no_port("admin_host, admin_port", host, port, error)) from error
    return runner


def readiness(
    snapshots: Sequence[dict[str, Any]], wanted: int, settings: Settings
) -> tuple[bool, dict[str, Any]]:
    """Ready: all workers answer, none drains, and each knows an endpoint or has read every source once. Sources that went away
    later are told, but the last known good endpoints still serve; told is also what else an operator should know: limits
    that are not common now, an address that is open to everybody."""
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
    informed = all(one.get("informed", True) for one in snapshots)
    return len(snapshots) == wanted and informed and not draining, detail


class Reload:
    """Reads the settings again on SIGHUP or when the file changes; wrong ones are logged and change nothing.

    `started`: what cannot change at run time is kept from these, above all where it listens, whatever the file says by now.
    """

    def __init__(self, arguments: Sequence[str], started: Settings, take: Callable[[Settings], None]) -> None:
        self._arguments = list(arguments)
        self._started = started
        self._take = take
        self._path = settings_module.parser().parse_known_args(self._arguments)[0].config or os.environ.get(
            "SKYLOOM_LB_CONFIG", ""
        )
        self._mark = self._look()

    def _look(self) -> tuple[int, int, int] | None:
        with contextlib.suppress(OSError):
            found = os.stat(self._path) if self._path else None
            return (found.st_mtime_ns, found.st_size, found.st_ino) if found else None
        return None

    async def watch(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            if self._look() in (None, self._mark):
                continue
            try:
                self.now()
            except Exception:
                _log.exception("the settings stay what they were")

    def now(self) -> None:
        self._mark = self._look()
        try:
            settings, others = settings_module.load_again(self._arguments, os.environ, self._started)
            check(settings)
            self._take(settings)
        except (SkyloomError, OSError) as error:
            _log.error("the settings stay what they were: %s", error)
            return
        _log.info("settings reloaded")
        if others:
            _log.warning("not before a restart: %s", ", ".join(others))


if __name__ == "__main__":
    sys.exit(main())
