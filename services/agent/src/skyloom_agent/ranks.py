"""The ranks of this node: prepares, starts, stops and watches their runners. Knows no job, no queue and no other node.

All truth is in the rank's directory (home/.sky/ranks/<uid>/): spec.json and script.sh while it runs, `lock` held by the
runner and naming its processes, result.json at the end. So a new agent finds everything again by looking.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Optional, Union

from skyloom_agent import environment, procs
from skyloom_agent.model import SETUP, RankSpec, RankState, check_uid
from skyloom_agent.paths import Paths, read_json, write_atomic
from skyloom_agent.signals import Signal
from skyloom_common.core.errors import Conflict, NotFound

log = logging.getLogger(__name__)

READ_SIZE = 256 * 1024
LOCK_BYTES = 256
PREPARED_SECONDS = 120.0
KILL_MARGIN_SECONDS = 4.5
ALIVE_SECONDS = 2.0
RUNTIME = str(Path(__file__).resolve().parent.parent)
BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from skyloom_agent.runner import main; main(sys.argv[2], int(sys.argv[3]))"


class Rank:
    """One rank as this agent sees it. `changed` fires on new output and on every change of state."""

    def __init__(self, uid: str, directory: Path) -> None:
        self.uid = uid
        self.directory = directory
        self.changed = Signal()
        self.state = RankState(uid, "prepared")
        self.since = time.monotonic()
        self.kill_at: Optional[float] = None
        self.process: Optional[subprocess.Popen[bytes]] = None
        self.pidfd = -1
        self.seen_size = -1
        self.cleaning = False
        about = read_json(directory / "about.json") or {}
        self.log = Path(about.get("log", os.devnull))
        self.marker = str(about.get("marker", ""))
        self.grace = float(about.get("grace", 5.0))

    @property
    def active(self) -> bool:
        return self.state.status in ("prepared", "running")

    @property
    def lock(self) -> Path:
        return self.directory / "lock"


class RankTable:
    def __init__(self, paths: Paths, node_id: str, inherited: Mapping[str, str]) -> None:
        self._paths = paths
        self._node_id = node_id
        self._inherited = dict(inherited)
        self._ranks: dict[str, Rank] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def load(self) -> None:
        """Finds again what ran before this agent started."""
        for directory in sorted(self._paths.ranks.iterdir()):
            if not (directory / "about.json").exists():
                shutil.rmtree(directory, ignore_errors=True)  # Its preparation was never answered.
                continue
            rank = Rank(directory.name, directory)
            self._ranks[rank.uid] = rank
            if not self._was_started(rank):
                continue
            rank.state = RankState(rank.uid, "running")
            self.refresh(rank.uid)
            self._watch_runner(rank)

    def _was_started(self, rank: Rank) -> bool:
        """A lock that nobody holds and nobody has written into belongs to a start that did not happen."""
        if not rank.lock.exists():
            return False
        return self._holder(rank) is not None or bool(_lock_content(rank.lock.read_bytes()))

    @property
    def active_count(self) -> int:
        return sum(1 for rank in self._ranks.values() if rank.active)

    def knows(self, rank: Rank) -> bool:
        return self._ranks.get(rank.uid) is rank

    def rank(self, uid: str) -> Rank:
        try:
            return self._ranks[uid]
        except KeyError:
            raise NotFound(f"rank {uid[:60]} is not on this node") from None

    # --- the gang's steps; each may be repeated ---

    def prepare(self, spec: RankSpec) -> RankState:
        known = self._ranks.get(check_uid(spec.uid))
        if known and known.state.status != "prepared":
            return known.state
        directory = self._paths.ranks / spec.uid
        try:
            self._write_spec(directory, spec)
        except (OSError, ValueError) as error:
            shutil.rmtree(directory, ignore_errors=True)
            raise Conflict(f"the node could not prepare the job: {error}") from error
        self._ranks[spec.uid] = Rank(spec.uid, directory)
        return self._ranks[spec.uid].state

    def _write_spec(self, directory: Path, spec: RankSpec) -> None:
        self._paths.workdir.mkdir(parents=True, exist_ok=True)
        directory.mkdir(mode=0o700, exist_ok=True)
        output = self._paths.inside(spec.log)
        output.parent.mkdir(parents=True, exist_ok=True)
        script = directory / "script.sh"
        write_atomic(script, spec.script.encode(), sync=False)
        marker = procs.marker_of(self._node_id, spec.job_uid, spec.phase)
        inside = {
            "uid": spec.uid,
            "argv": environment.command(script, self._paths.home),
            "cwd": str(self._paths.home),
            "env": environment.process_env(self._paths.home, self._inherited, spec.env, marker),
            "log": str(output),
            "marker": marker,
            "grace_seconds": spec.grace_seconds,
            "keep_daemons": spec.phase == SETUP,
            "notify": self._paths.socket.name,
        }
        write_atomic(directory / "spec.json", json.dumps(inside).encode(), sync=False)
        # The last file: with it the rank is prepared, also for the next agent.
        about = {"log": str(output), "marker": marker, "grace": spec.grace_seconds}
        write_atomic(directory / "about.json", json.dumps(about).encode(), sync=False)

    def start(self, uid: str) -> RankState:
        rank = self.rank(uid)
        if rank.state.status != "prepared":
            return rank.state
        fd = os.open(rank.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.pwrite(fd, b" " * LOCK_BYTES, 0)
            rank.process = self._spawn(rank, fd)
        except OSError as error:
            raise Conflict(f"the node could not start the job: {error}") from error
        finally:
            os.close(fd)
        rank.state = RankState(uid, "running")
        self._watch_runner(rank)
        rank.changed.fire()
        return rank.state

    def _spawn(self, rank: Rank, lock: int) -> subprocess.Popen[bytes]:
        """The lock goes to the runner before it exists, so there is no moment in which a live runner lacks it."""
        argv = [sys.executable, "-I", "-S", "-c", BOOT, RUNTIME, str(rank.directory), str(lock)]
        with open(rank.directory / "runner.log", "ab") as stderr:
            return subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                cwd=self._paths.state,
                env=environment.base_env(self._paths.home, self._inherited),
                pass_fds=(lock,),
                start_new_session=True,
            )

    def stop(self, uid: str) -> RankState:
        """Asks for the end and returns; the state says when it came. A rank that never started ends here."""
        rank = self._ranks.get(check_uid(uid))
        if rank is None:
            return RankState(uid, "finished", stopped=True)
        if rank.state.status == "prepared":
            self._set(rank, RankState(uid, "finished", stopped=True))
        elif rank.state.status == "running" and rank.kill_at is None:
            rank.kill_at = time.monotonic() + rank.grace + KILL_MARGIN_SECONDS
            self._signal_runner(rank, signal.SIGTERM)
        return rank.state

    def release(self, uid: str) -> None:
        """Forgets a rank that has ended; refused while it runs."""
        rank = self._ranks.get(check_uid(uid))
        if rank is None:
            return
        if rank.state.status == "running":
            raise Conflict(f"rank {uid} still runs")
        self._forget(rank)

    def _forget(self, rank: Rank) -> None:
        self._unwatch(rank)
        shutil.rmtree(rank.directory, ignore_errors=True)
        self._ranks.pop(rank.uid, None)
        rank.changed.fire()

    # --- what becomes of them ---

    def refresh(self, uid: str, what: str = "") -> None:
        """Looks at the rank's files. Called when the runner says something, when it dies, and now and then."""
        rank = self._ranks.get(uid)
        if rank is None:
            return
        if rank.state.status == "running" and what != "output":
            self._look(rank)
        rank.changed.fire()

    def _look(self, rank: Rank) -> None:
        result = read_json(rank.directory / "result.json")
        if result is not None:
            self._set(rank, _finished(rank.uid, rank.state.pid, result))
            return
        held = self._holder(rank)
        if held is None:
            self._runner_died(rank)
        elif held.get("pid") and not rank.state.pid:
            self._set(rank, RankState(rank.uid, "running", pid=int(held["pid"])))

    def _set(self, rank: Rank, state: RankState) -> None:
        rank.state = state
        rank.changed.fire()

    def _holder(self, rank: Rank) -> Optional[dict[str, Any]]:
        """What the live runner wrote into its lock; None when nobody holds it."""
        try:
            fd = os.open(rank.lock, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return None
        except BlockingIOError:
            return _lock_content(os.pread(fd, LOCK_BYTES, 0))
        finally:
            os.close(fd)

    def _runner_died(self, rank: Rank) -> None:
        if rank.cleaning:
            return
        # It may have ended properly between our two looks.
        result = read_json(rank.directory / "result.json")
        if result is not None:
            self._set(rank, _finished(rank.uid, rank.state.pid, result))
            return
        rank.cleaning = True
        self._background(self._clean_after(rank))

    async def _clean_after(self, rank: Rank) -> None:
        content = _lock_content(rank.lock.read_bytes()) if rank.lock.exists() else {}
        left = await asyncio.get_running_loop().run_in_executor(None, _kill_orphans, rank.marker, content)
        error = "its runner was killed"
        if left:
            error += f"; processes {sorted(left)} could not be ended"
        for name in ("spec.json", "script.sh"):
            (rank.directory / name).unlink(missing_ok=True)
        stopped = rank.kill_at is not None
        self._set(
            rank, RankState(rank.uid, "lost", pid=int(content.get("pid", 0)), error=error, stopped=stopped)
        )

    def _watch_runner(self, rank: Rank) -> None:
        """Linux tells at once when the runner is gone; elsewhere `reconcile` finds it out."""
        held = self._holder(rank)
        pid = rank.process.pid if rank.process else int((held or {}).get("runner", 0))
        if held is None or not pid or not hasattr(os, "pidfd_open"):
            return
        try:
            rank.pidfd = os.pidfd_open(pid)
        except OSError:
            return  # It just ended; the next look finds its result.
        asyncio.get_running_loop().add_reader(rank.pidfd, self._runner_gone, rank)

    def _runner_gone(self, rank: Rank) -> None:
        self._unwatch(rank)
        self.refresh(rank.uid)

    def _unwatch(self, rank: Rank) -> None:
        if rank.pidfd >= 0:
            asyncio.get_running_loop().remove_reader(rank.pidfd)
            os.close(rank.pidfd)
            rank.pidfd = -1
        if rank.process:
            rank.process.poll()

    def _signal_runner(self, rank: Rank, number: int) -> None:
        held = self._holder(rank)
        pid = int((held or {}).get("runner", 0)) or (
            rank.process.pid if held is not None and rank.process else 0
        )
        if pid:
            procs.signal_all({pid}, number)

    def reconcile(self) -> None:
        """The safety net under every notice: looks at all active ranks, ends what should have ended long ago."""
        now = time.monotonic()
        for rank in list(self._ranks.values()):
            if rank.state.status == "prepared" and now - rank.since > PREPARED_SECONDS:
                self._forget(rank)
            elif rank.state.status == "running":
                self._look(rank)
                self._look_at_output(rank)
                if rank.kill_at is not None and now > rank.kill_at:
                    self._signal_runner(rank, signal.SIGKILL)

    def _look_at_output(self, rank: Rank) -> None:
        size = rank.log.stat().st_size if rank.log.exists() else 0
        if size != rank.seen_size:
            rank.seen_size = size
            rank.changed.fire()

    async def follow(self, uid: str, offset: int) -> AsyncIterator[Union[bytes, RankState]]:
        """The rank's output from `offset` on, between its states; ends after the final state. b"" says it is alive."""
        rank = self.rank(uid)
        told: Optional[RankState] = None
        with open(rank.log, "ab+", buffering=0) as file:
            while True:
                seen, state = rank.changed.version, rank.state
                if state != told and state.status in ("prepared", "running"):
                    told = state
                    yield state
                data = os.pread(file.fileno(), READ_SIZE, offset)
                if data:
                    offset += len(data)
                    yield data
                elif state.status in ("finished", "lost"):
                    yield state
                    return
                elif not self.knows(rank):
                    raise NotFound(f"rank {uid} was released")
                elif not await rank.changed.wait(seen, ALIVE_SECONDS):
                    yield b""

    # --- the end of the node ---

    async def end_all(self) -> None:
        """Stops every rank and then whatever else of this node's jobs lives, daemons of a setup included."""
        for uid in list(self._ranks):
            self.stop(uid)
        deadline = time.monotonic() + max([rank.grace for rank in self._ranks.values()], default=0.0) + 5.0
        while any(rank.active for rank in self._ranks.values()) and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
            self.reconcile()
        await asyncio.get_running_loop().run_in_executor(None, _kill_marked, f"{self._node_id}:")

    def close(self) -> None:
        for rank in self._ranks.values():
            self._unwatch(rank)

    def _background(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _finished(uid: str, pid: int, result: Mapping[str, Any]) -> RankState:
    return RankState(
        uid,
        "finished",
        pid=pid or int(result.get("pid", 0)),
        exit_code=result.get("exit_code"),
        stopped=bool(result.get("stopped")),
        error=str(result.get("error", "")),
        lost_bytes=int(result.get("lost_bytes", 0)),
    )


def _lock_content(data: bytes) -> dict[str, Any]:
    try:
        content = json.loads(data.strip() or b"{}")
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _kill_orphans(marker: str, content: Mapping[str, Any]) -> set[int]:
    """The session number is only believed within the boot in which it was written: numbers come again."""
    session = int(content.get("pid", 0)) if content.get("boot") == procs.kernel_boot() else 0

    def find() -> set[int]:
        return procs.marked(marker) | (procs.in_session(session) if session else set())

    return procs.kill_until_gone(find, 3.0, lambda: None)


def _kill_marked(prefix: str) -> set[int]:
    return procs.kill_until_gone(lambda: procs.marked(prefix, prefix=True), 3.0, lambda: None)
