"""N processes on one port: a supervisor that serves nothing itself, and workers that share the port by SO_REUSEPORT.

The supervisor keeps the port reserved, starts workers again when they die, and answers the admin port with the sum of what its
workers count. It alone reads the settings: a worker gets those that were accepted last, at its start and whenever they change, so
that a file that is wrong by then can neither open an address nor keep a worker away. They talk in JSON lines over a socket pair
(never in arguments or environment, which others can read); a worker whose supervisor is gone drains and ends.
What limits count is in a ledger that all of them map; a dead worker's part of it is cleared.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import orjson

from skyloom_common.core.errors import SkyloomError, Unavailable
from skyloom_common.core.wire import from_wire, to_wire
from skyloom_lb.admin import admin_app
from skyloom_lb.admission.keys import KeyStore
from skyloom_lb.admission.ledger import described, inherited, make_ledger
from skyloom_lb.fronts import key_store, make_front
from skyloom_lb.listener import hold, listen, nobody_listens
from skyloom_lb.loop import run as run_loop
from skyloom_lb.observe.snapshot import past, total
from skyloom_lb.settings import Settings
from skyloom_lb.worker import Worker, spare_the_collector

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
    wanted: Settings
    """What it is to serve with."""
    known_keys: str | None = None
    """The keys file as it was when it was right (hashes, no secrets): it may be wrong when this one starts."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    last: dict[str, Any] | None = None
    failed: SkyloomError | None = None
    """Why it could not start, in its own words."""
    _asked: int = 0
    _given: Settings | None = None

    def tell(self) -> None:
        """Asks for its counts; with the question it gets the settings, unless it has them.

        While it starts it hears nothing but its first question: it takes that off the socket before its loop runs.
        """
        if self._asked and self.last is None:
            return
        self._asked += 1
        question: dict[str, Any] = {"ask": self._asked}
        if self._asked == 1:
            question["known_keys"] = self.known_keys
        if self._given is not self.wanted:
            self._given = self.wanted
            question["settings"] = to_wire(self.wanted)
        self.writer.write(json.dumps(question).encode() + b"\n")

    async def ask(self) -> dict[str, Any] | None:
        """Its counts now; None when it does not answer."""
        async with self.lock:
            try:
                async with asyncio.timeout(_ASK_SECONDS):
                    self.tell()
                    answer = await self._answer()
            except (OSError, TimeoutError):
                return None
        if answer is None:
            return None
        self.last = answer
        if self._given is not self.wanted:
            self.tell()
        return answer

    async def _answer(self) -> dict[str, Any] | None:
        """That to this question: answers to earlier ones may still come. A line that its death cut short is none."""
        try:
            while line := await self.reader.readline():
                answer: dict[str, Any] = orjson.loads(line)
                if "failed" in answer:
                    self.failed = SkyloomError.from_wire(answer["failed"])
                if answer.get("ask") == self._asked:
                    return answer
        except ValueError as error:
            _log.warning("worker %d: an answer cannot be read: %s", self.process.pid, error)
        return None

    def signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)


class Supervisor:
    def __init__(self, settings: Settings, arguments: Sequence[str]) -> None:
        self._settings = settings
        """Those that were accepted last."""
        self._arguments = list(arguments)
        self._children: dict[int, Child] = {}
        self._past: dict[str, Any] = {}
        self._stopping = asyncio.Event()
        self._failed: SkyloomError | None = None
        self._port = settings.port
        self._keys: KeyStore | None = None
        self._ledger, self._ears = make_ledger(settings.workers)

    async def run(self) -> int:
        """Raises SkyloomError when the port is taken or no worker can start."""
        from skyloom_lb.main import Reload, run_admin

        settings = self._settings
        nobody_listens(settings.host, settings.port)
        reserved = listen(settings.host, settings.port, reuse_port=True)
        self._port = reserved.getsockname()[1]
        held = hold(settings.host, self._port)
        self._take(settings)
        reload = Reload(self._arguments, settings, self._take)
        self._hear(reload.now)
        admin = await run_admin(settings, admin_app(self._read, self._ready, settings.admin_token))
        loop = asyncio.get_running_loop()
        keepers = [loop.create_task(self._keep(index)) for index in range(settings.workers)]
        keepers += [loop.create_task(self._keep_snapshots()), loop.create_task(reload.watch())]
        _log.info("%d workers listen on %s:%d", settings.workers, settings.host, self._port)
        await self._stopping.wait()
        for one in (reserved, held):
            if one is not None:
                one.close()
        await self._end(keepers)
        if admin is not None:
            await admin.cleanup()
        if self._failed is not None:
            raise self._failed
        return 0

    def _hear(self, reload: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        loop.add_signal_handler(signal.SIGHUP, reload)

    async def _end(self, keepers: Sequence[asyncio.Task[None]]) -> None:
        self._pass_on(signal.SIGTERM)
        await self._wait_for_all()
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)

    def _take(self, settings: Settings) -> None:
        """For all workers, and for those that will be started."""
        self._keys = key_store(settings, self._keys)
        self._settings = replace(settings, port=self._port)
        for child in self._children.values():
            child.wanted = self._settings
            child.tell()

    async def _keep(self, index: int) -> None:
        """One worker after the other in this place; one that dies at once is started again ever more slowly."""
        pause = 0.1
        while not self._stopping.is_set():
            started = asyncio.get_running_loop().time()
            try:
                child = self._children[index] = await self._start(index)
            except OSError as error:
                self._give_up_or_log(Unavailable(f"a worker cannot be started: {error.strerror or error}"))
                await asyncio.sleep(1.0)
                continue
            code = await child.process.wait()
            if child.last is None:
                await child.ask()  # for its last words
            self._bury(index, child, code)
            lived = asyncio.get_running_loop().time() - started
            pause = 0.1 if lived > 10 else min(5.0, pause * 2)
            await asyncio.sleep(pause)

    def _bury(self, index: int, child: Child, code: int) -> None:
        child.writer.close()
        self._ledger.clear(index)
        if self._stopping.is_set():
            return
        if child.last is None:
            self._give_up_or_log(child.failed or Unavailable(f"a worker ended with {code} before it served"))
        else:
            self._past = total([one for one in (self._past, past(child.last)) if one])
            _log.error("worker %d ended with %d; another one is started", child.process.pid, code)
        del self._children[index]

    def _give_up_or_log(self, error: SkyloomError) -> None:
        """What keeps the first worker from starting keeps all of them; later on it may pass."""
        if self._past or any(child.last for child in self._children.values()):
            _log.error("%s; another worker is started", error.message)
            return
        self._failed = error
        self._stopping.set()

    async def _start(self, index: int) -> Child:
        ours, theirs = socket.socketpair()
        ledger, fds = described(self._ledger, index, self._ears[index])
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "skyloom_lb.workers",
                pass_fds=(theirs.fileno(), *fds),
                env={**os.environ, CONTROL: str(theirs.fileno()), LEDGER: ledger},
            )
        reader, writer = await asyncio.open_connection(sock=ours, limit=_LIMIT)
        known_keys = self._keys.text if self._keys is not None else None
        child = Child(process, reader, writer, self._settings, known_keys)
        child.tell()
        return child

    def _pass_on(self, number: signal.Signals) -> None:
        for child in self._children.values():
            child.signal(number)

    async def _wait_for_all(self) -> None:
        """They drain by themselves; who does not end is killed a little after the bound."""
        waits = [asyncio.ensure_future(child.process.wait()) for child in self._children.values()]
        if waits:
            _, late = await asyncio.wait(waits, timeout=self._settings.drain_seconds + 5)
            if late:
                self._pass_on(signal.SIGKILL)
                await asyncio.wait(late)

    async def _keep_snapshots(self) -> None:
        """So that what a worker counted until a second ago outlives it, and what the keys file was when it was right."""
        while True:
            await asyncio.sleep(1.0)
            if self._keys is not None:
                self._keys.poll()
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


async def work(settings: Settings, control: socket.socket, known_keys: str | None = None) -> int:
    """One worker. Its first answer says that it serves."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    ledger = inherited(os.environ[LEDGER])
    worker = Worker(settings, partial(make_front, ledger=ledger, known_keys=known_keys))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await worker.start(listen(settings.host, settings.port, reuse_port=True))
    reader, writer = await asyncio.open_connection(sock=control, limit=_LIMIT)
    writer.write(_counts(worker, 1))
    talk = loop.create_task(_talk(worker, reader, writer, stop))
    await stop.wait()
    await worker.stop()
    talk.cancel()
    return 0


def _counts(worker: Worker, ask: int) -> bytes:
    return orjson.dumps({**worker.snapshot(), "ask": ask}) + b"\n"


async def _talk(
    worker: Worker, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, stop: asyncio.Event
) -> None:
    """Until the supervisor is gone, however it went: with an answer unread its end is a reset."""
    try:
        while line := await reader.readline():
            question = json.loads(line)
            if "settings" in question:
                _take(worker, question["settings"])
            writer.write(_counts(worker, question["ask"]))
    except (ConnectionError, ValueError):
        _log.warning("the supervisor is gone")
    finally:
        stop.set()


def _take(worker: Worker, settings: dict[str, Any]) -> None:
    """What goes wrong here must not end the talk, and with it the worker."""
    try:
        worker.configure(from_wire(Settings, settings, strict=True))
    except Exception:
        _log.exception("new settings were not taken, or not all of them")


def _main() -> int:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the supervisor's business
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s[%(process)d]: %(message)s"
    )
    spare_the_collector()
    control = socket.socket(fileno=int(os.environ[CONTROL]))
    line = control.makefile("rb").readline()
    if not line:
        return 1  # the supervisor is gone
    question = json.loads(line)
    settings = from_wire(Settings, question["settings"], strict=True)
    try:
        return run_loop(work(settings, control, question["known_keys"]), settings.event_loop)
    except SkyloomError as error:
        _say_why(control, error)
    except OSError as error:
        _say_why(control, Unavailable(f"a worker cannot start: {error.strerror or error}"))
    return 1


def _say_why(control: socket.socket, error: SkyloomError) -> None:
    with contextlib.suppress(OSError):
        control.sendall(orjson.dumps({"failed": error.to_wire()}) + b"\n")


if __name__ == "__main__":
    sys.exit(_main())
