"""N processes on one port: a supervisor that serves nothing itself, and workers that share the port by SO_REUSEPORT.

The supervisor keeps the port reserved, starts workers again when they die, passes signals on, and answers the admin port with
the sum of what its workers count. They talk in JSON lines over a socket pair; a worker whose supervisor is gone drains and ends.
What limits count is in a ledger that all of them map; a dead worker's part of it is cleared.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import orjson

from skyloom_lb.admin import admin_app
from skyloom_lb.admission.ledger import described, inherited, make_ledger
from skyloom_lb.fronts import make_front
from skyloom_lb.observe.snapshot import past, total
from skyloom_lb.settings import Settings
from skyloom_lb.worker import Worker, listen, spare_the_collector

CONTROL = "SKYLOOM_LB_CONTROL_FD"
LEDGER = "SKYLOOM_LB_LEDGER"
_ASK_SECONDS = 2.0
_LIMIT = 64 * 1024 * 1024
_log = logging.getLogger("skyloom_lb")


@dataclass
class Child:
    process: asyncio.subprocess.Process
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    last: dict[str, Any] | None = None
    missed_reload: bool = False
    """SIGHUP came before it could hear it."""
    _asked: int = 0

    async def ask(self) -> dict[str, Any] | None:
        """Its counts now; None when it does not answer."""
        async with self.lock:
            self._asked += 1
            try:
                async with asyncio.timeout(_ASK_SECONDS):
                    self.writer.write(b"%d\n" % self._asked)
                    answer = await self._answer()
            except (OSError, TimeoutError):
                return None
        if answer is None:
            return None
        self.last = answer
        if self.missed_reload:
            self.missed_reload = False
            self.tell(signal.SIGHUP)
        return answer

    async def _answer(self) -> dict[str, Any] | None:
        """That to this question: answers to earlier ones may still come."""
        while line := await self.reader.readline():
            answer: dict[str, Any] = orjson.loads(line)
            if answer["ask"] == self._asked:
                return answer
        return None

    def tell(self, number: signal.Signals) -> None:
        if number is signal.SIGHUP and self.last is None:
            self.missed_reload = True  # it would end of it
            return
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)


class Supervisor:
    def __init__(self, settings: Settings, arguments: Sequence[str]) -> None:
        self._settings = settings
        self._arguments = list(arguments)
        self._children: dict[int, Child] = {}
        self._past: dict[str, Any] = {}
        self._stopping = asyncio.Event()
        self._port = settings.port
        self._ledger, self._ears = make_ledger(settings.workers)

    async def run(self) -> int:
        reserved = listen(self._settings.host, self._settings.port, reuse_port=True)
        self._port = reserved.getsockname()[1]
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._pass_on, signal.SIGHUP)
        keepers = [loop.create_task(self._keep(index)) for index in range(self._settings.workers)]
        keepers.append(loop.create_task(self._keep_snapshots()))
        from skyloom_lb.main import run_admin

        admin = await run_admin(
            self._settings, admin_app(self._read, self._ready, self._settings.admin_token)
        )
        _log.info("%d workers listen on %s:%d", self._settings.workers, self._settings.host, self._port)
        await self._stopping.wait()
        reserved.close()
        self._pass_on(signal.SIGTERM)
        await self._wait_for_all()
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)
        if admin is not None:
            await admin.cleanup()
        return 0

    async def _keep(self, index: int) -> None:
        """One worker after the other in this place; one that dies at once is started again ever more slowly."""
        pause = 0.1
        while not self._stopping.is_set():
            started = asyncio.get_running_loop().time()
            try:
                child = await self._start(index)
            except OSError as error:
                _log.error("a worker cannot be started: %s", error.strerror or error)
                await asyncio.sleep(1.0)
                continue
            self._children[index] = child
            code = await child.process.wait()
            child.writer.close()
            self._ledger.clear(index)
            if self._stopping.is_set():
                return
            if child.last is not None:
                self._past = total([one for one in (self._past, past(child.last)) if one])
            del self._children[index]
            _log.error("worker %d ended with %d; another one is started", child.process.pid, code)
            lived = asyncio.get_running_loop().time() - started
            pause = 0.1 if lived > 10 else min(5.0, pause * 2)
            await asyncio.sleep(pause)

    async def _start(self, index: int) -> Child:
        ours, theirs = socket.socketpair()
        ledger, fds = described(self._ledger, index, self._ears[index])
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "skyloom_lb.workers",
                *self._arguments,
                "--port",
                str(self._port),
                pass_fds=(theirs.fileno(), *fds),
                env={**os.environ, CONTROL: str(theirs.fileno()), LEDGER: ledger},
            )
        reader, writer = await asyncio.open_connection(sock=ours, limit=_LIMIT)
        return Child(process, reader, writer)

    def _pass_on(self, number: signal.Signals) -> None:
        for child in self._children.values():
            child.tell(number)

    async def _wait_for_all(self) -> None:
        """They drain by themselves; who does not end is killed a little after the bound."""
        waits = [asyncio.ensure_future(child.process.wait()) for child in self._children.values()]
        if waits:
            _, late = await asyncio.wait(waits, timeout=self._settings.drain_seconds + 5)
            if late:
                self._pass_on(signal.SIGKILL)
                await asyncio.wait(late)

    async def _keep_snapshots(self) -> None:
        """So that what a worker counted until a second ago outlives it."""
        while True:
            await asyncio.sleep(1.0)
            await asyncio.gather(*(child.ask() for child in list(self._children.values())))

    async def _all(self) -> list[dict[str, Any]]:
        answers = await asyncio.gather(*(child.ask() for child in list(self._children.values())))
        return [one for one in answers if one is not None]

    async def _read(self) -> dict[str, Any]:
        """Of a worker that does not answer, what it said last: no count may go backwards."""
        await self._all()
        return total([one for one in (*(child.last for child in self._children.values()), self._past) if one])

    async def _ready(self) -> tuple[bool, dict[str, Any]]:
        from skyloom_lb.main import readiness

        return readiness(await self._all(), self._settings.workers, self._settings)


def supervise(settings: Settings, arguments: Sequence[str]) -> int:
    async def run() -> int:
        return await Supervisor(settings, arguments).run()

    return asyncio.run(run())


async def work(settings: Settings, arguments: Sequence[str]) -> int:
    """One worker, told by the socket it inherited."""
    from skyloom_lb.main import Reload

    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=int(os.environ[CONTROL])))
    ledger = inherited(os.environ[LEDGER])
    worker = Worker(settings, partial(make_front, ledger=ledger))
    reload = Reload(arguments, worker)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, reload.now)
    await worker.start(listen(settings.host, settings.port, reuse_port=True))
    worker.balancer.after_sweep.append(reload.look)
    talk = loop.create_task(_talk(worker, reader, writer, stop))
    await stop.wait()
    await worker.stop()
    talk.cancel()
    return 0


async def _talk(
    worker: Worker, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, stop: asyncio.Event
) -> None:
    """Until the supervisor is gone, however it went: with an answer unread its end is a reset."""
    try:
        while line := await reader.readline():
            writer.write(orjson.dumps({**worker.snapshot(), "ask": int(line)}) + b"\n")
    except ConnectionError:
        _log.warning("the supervisor is gone")
    finally:
        stop.set()


def _main() -> int:
    from skyloom_lb import settings as settings_module

    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s[%(process)d]: %(message)s"
    )
    spare_the_collector()
    return asyncio.run(work(settings_module.load(sys.argv[1:], os.environ), sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(_main())
