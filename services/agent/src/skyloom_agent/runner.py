"""Runs one rank of one job and outlives the agent: `main(DIR, LOCK)`, started by the agent with the rank's lock as an open file.

It reads DIR/spec.json, starts the command in a session of its own, appends what it prints to the log, and leaves
DIR/result.json. It tells the agent by datagrams, and nobody depends on them: all truth is in files. While it lives it
holds the lock; a free lock without a result means that it was killed. It must start in a blink, so it imports little,
and it must never wait for anybody: not for the agent, not for a full disk, not for a daemon that keeps stdout open.

It stays one file although long: it is one loop and what that loop does.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import select
import signal
import socket
import sys
import time
from typing import Any, Optional

from skyloom_agent import procs

READ_SIZE = 256 * 1024
PIPE_SIZE = 1024 * 1024
RESULT_BYTES = 4096
LOCK_BYTES = 256
QUIET_SECONDS = 0.002
DRAIN_SECONDS = 0.5
LEFTOVER_SECONDS = 1.0
KILL_SECONDS = 3.0
TICK_SECONDS = 0.02
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
F_SETPIPE_SZ = 1031
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class Log:
    """Appends to the rank's log. When the disk is full it drops, counts, and says so once there is space again."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self.lost = 0
        self._gap = 0
        self._why = ""

    def write(self, data: bytes) -> None:
        left = memoryview(data)
        try:
            self.close_gap()
            while left:
                left = left[os.write(self._fd, left) :]
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            self._gap += len(left)
            self.lost += len(left)
            self._why = os.strerror(error.errno)

    def close_gap(self) -> None:
        """Says how much is missing; raises (and writes nothing) while there is still no space."""
        if not self._gap:
            return
        note = f"\n[skyloom: {self._gap} bytes of output are missing here: {self._why}]\n".encode()
        end = os.fstat(self._fd).st_size
        if os.write(self._fd, note) != len(note):
            os.ftruncate(self._fd, end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._gap = 0


class Notifier:
    """Datagrams to the agent. Output is told at most once per QUIET_SECONDS; a full queue is tried again."""

    def __init__(self, uid: str, path: str) -> None:
        self._uid = uid
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._pending = False
        self._last = 0.0

    def tell(self, what: str) -> bool:
        """False when the agent's queue is full just now. An agent that is away reads the files when it is back."""
        try:
            self._socket.sendto(f"{self._uid} {what}".encode(), self._path)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def output(self, now: float) -> None:
        self._pending = True
        self.flush(now)

    def flush(self, now: float) -> None:
        if self._pending and now - self._last >= QUIET_SECONDS:
            self._last = now
            self._pending = not self.tell("output")

    def due(self, now: float) -> Optional[float]:
        return max(0.0, self._last + QUIET_SECONDS - now) if self._pending else None


class Result:
    """The space for the result is taken beforehand, so that a full disk cannot swallow an exit code."""

    def __init__(self, directory: str) -> None:
        self._path = os.path.join(directory, "result.json")
        self._fd = os.open(self._path + ".tmp", os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        os.write(self._fd, b" " * RESULT_BYTES)
        os.fsync(self._fd)

    def write(self, values: dict[str, Any]) -> None:
        os.pwrite(self._fd, json.dumps(values).encode().ljust(RESULT_BYTES), 0)
        os.fsync(self._fd)
        os.rename(self._path + ".tmp", self._path)


class Runner:
    def __init__(self, directory: str, lock: int) -> None:
        self._dir = directory
        self._lock = lock
        with open(os.path.join(directory, "spec.json"), "rb") as file:
            self._spec: dict[str, Any] = json.load(file)
        self._result = Result(directory)
        self._log = Log(self._spec["log"])
        self._tell = Notifier(self._spec["uid"], self._spec["notify"])
        self._poll = select.poll()
        self._began = time.monotonic()
        self._pid = 0
        self._exit: Optional[int] = None
        self._exited_at = 0.0
        self._childless = False
        self._pipe = -1
        self._stopping = False
        self._stop_asked = False
        self._kill_at: Optional[float] = None
        self._killed = False

    def run(self) -> None:
        wake = self._catch_signals()
        error = self._start()
        if error:
            self._finish(error=error)
            return
        self._poll.register(wake, select.POLLIN)
        self._poll.register(self._pipe, select.POLLIN | select.POLLHUP)
        while not self._step(wake):
            pass
        self._finish()
        if self._leaves_daemons:
            self._swallow()

    # --- starting ---

    def _catch_signals(self) -> int:
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.signal(signal.SIGTERM, self._on_term)
        for ignored in (signal.SIGHUP, signal.SIGINT):
            signal.signal(ignored, signal.SIG_IGN)
        return reader

    def _on_term(self, number: int, frame: object) -> None:
        self._stop_asked = True

    def _start(self) -> str:
        """Starts the command; an empty string, or why it could not be started."""
        _prctl(PR_SET_CHILD_SUBREAPER, 1)
        self._write_names()
        output, child_end = os.pipe()
        failed, failed_child = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            self._become_command(child_end, failed_child)
        os.close(child_end)
        os.close(failed_child)
        error = os.read(failed, 4096).decode("utf-8", "replace")
        os.close(failed)
        self._pipe = output
        os.set_blocking(output, False)
        try:
            fcntl.fcntl(output, F_SETPIPE_SZ, PIPE_SIZE)
        except OSError:
            pass  # Over the user's pipe budget: the default size works too.
        if not error:
            self._write_names()
            self._tell.tell("started")
        return error

    def _become_command(self, output: int, failed: int) -> None:
        try:
            # Killed before it has its mark in its environment, it could not be found by anybody.
            _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            os.setsid()
            for number in (
                signal.SIGPIPE,
                signal.SIGXFSZ,
                signal.SIGHUP,
                signal.SIGINT,
                signal.SIGTERM,
                signal.SIGCHLD,
            ):
                signal.signal(number, signal.SIG_DFL)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.chdir(self._spec["cwd"])
            os.umask(0o022)
            argv = self._spec["argv"]
            os.execve(argv[0], argv, self._spec["env"])
        except BaseException as error:
            os.write(failed, f"{type(error).__name__}: {error}".encode()[:4000])
        finally:
            os._exit(127)

    def _write_names(self) -> None:
        """Into the lock file, over space that is there already: it works on a full disk.

        Once before the command is started: a lock without a name means that it never was.
        """
        names = {"runner": os.getpid(), "pid": self._pid, "boot": procs.kernel_boot()}
        os.pwrite(self._lock, json.dumps(names).encode().ljust(LOCK_BYTES), 0)

    # --- the loop ---

    def _step(self, wake: int) -> bool:
        """One turn; True when the job is over."""
        for fd, _ in self._poll.poll(self._timeout_ms()):
            if fd == wake:
                _drain(wake)
                self._reap()
            else:
                self._read_output()
        now = time.monotonic()
        self._tell.flush(now)
        if self._stop_asked and not self._stopping:
            self._begin_stop(now)
        if self._kill_at is not None and now >= self._kill_at:
            self._kill_everything()
        return self._exit is not None and self._is_over(now)

    def _timeout_ms(self) -> Optional[float]:
        now = time.monotonic()
        waits = [self._tell.due(now)]
        if self._kill_at is not None:
            waits.append(max(0.0, self._kill_at - now))
        if self._exit is not None:
            waits.append(TICK_SECONDS)
        known = [wait for wait in waits if wait is not None]
        return min(known) * 1000 + 0.5 if known else None

    def _read_output(self) -> None:
        if self._pipe < 0:
            return
        try:
            data = os.read(self._pipe, READ_SIZE)
        except BlockingIOError:
            return
        if not data:
            self._poll.unregister(self._pipe)
            os.close(self._pipe)
            self._pipe = -1
            return
        self._log.write(data)
        self._tell.output(time.monotonic())

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self._childless = True
                return
            if pid == 0:
                return
            if pid == self._pid:
                self._exit = _exit_code(status)
                self._exited_at = time.monotonic()

    # --- the end ---

    @property
    def _leaves_daemons(self) -> bool:
        """What a setup that went well leaves running stays until the node is shut down."""
        return bool(self._spec["keep_daemons"]) and self._exit == 0 and not self._stopping

    def _begin_stop(self, now: float) -> None:
        self._stopping = True
        self._kill_at = now + float(self._spec["grace_seconds"])
        self._terminate(self._find())

    def _terminate(self, pids: set[int]) -> None:
        try:
            os.killpg(self._pid, signal.SIGTERM)
        except (ProcessLookupError, PermissionError):
            pass  # The group is empty; what left it is signalled one by one.
        procs.signal_all({pid for pid in pids if _group(pid) != self._pid}, signal.SIGTERM)

    def _is_over(self, now: float) -> bool:
        """The main process has ended: wait for the rest of its output, then end what it left behind."""
        self._reap()
        if self._killed or (self._childless and self._pipe < 0):
            return True
        since = now - self._exited_at
        if self._leaves_daemons:
            return self._pipe < 0 or since >= DRAIN_SECONDS
        if self._childless and since >= TICK_SECONDS and not self._find():
            return True
        if self._kill_at is None and since >= DRAIN_SECONDS:
            self._kill_at = now + LEFTOVER_SECONDS
            self._terminate(self._find())
        return False

    def _kill_everything(self) -> None:
        self._kill_at, self._killed = None, True
        try:
            os.killpg(self._pid, signal.SIGKILL)  # All there is where /proc is missing.
        except (ProcessLookupError, PermissionError):
            pass
        procs.kill_until_gone(self._find, KILL_SECONDS, self._reap)
        self._reap()
        if self._exit is None:
            self._exit, self._exited_at = 128 + signal.SIGKILL, time.monotonic()

    def _find(self) -> set[int]:
        return (
            procs.descendants(os.getpid()) | procs.in_session(self._pid) | procs.marked(self._spec["marker"])
        )

    def _finish(self, error: str = "") -> None:
        while self._pipe >= 0 and not error and _readable(self._pipe):
            self._read_output()
        try:
            self._log.close_gap()
        except OSError as full:
            if full.errno not in NO_SPACE:
                raise
        self._result.write(
            {
                "pid": self._pid,
                "exit_code": None if error else self._exit,
                "error": error,
                "stopped": self._stopping,
                "seconds": time.monotonic() - self._began,
                "ended_at": time.time(),
                "lost_bytes": self._log.lost,
            }
        )
        for name in ("spec.json", "script.sh"):
            try:
                os.unlink(os.path.join(self._dir, name))
            except FileNotFoundError:
                pass
        self._tell.tell("finished")

    def _swallow(self) -> None:
        """A daemon of the setup may still print: without a reader it would die of SIGPIPE."""
        if self._pipe < 0:
            return
        os.set_blocking(self._pipe, True)
        while os.read(self._pipe, READ_SIZE):
            pass


def _prctl(option: int, value: int) -> None:
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _exit_code(status: int) -> int:
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return 0


def _drain(fd: int) -> None:
    try:
        while os.read(fd, 4096):
            pass
    except BlockingIOError:
        return


def _readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN | select.POLLHUP)
    return bool(poll.poll(0))


def main(directory: str, lock: int) -> None:
    try:
        os.set_inheritable(lock, False)
        Runner(directory, lock).run()
    except BaseException:
        sys.excepthook(*sys.exc_info())  # stderr is runner.log; the agent sees a free lock and no result.
        os._exit(1)
    os._exit(0)
