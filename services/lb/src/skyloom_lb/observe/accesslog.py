"""The access log: one JSON line a request. The hot path only puts the outcome aside; a thread writes batches.

It never blocks a request and never grows without bound: what a slow disk cannot take is dropped and counted.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import deque
from typing import IO, Any

import orjson

from skyloom_lb.exchange import Outcome

MAX_WAITING = 100_000


class AccessLog:
    def __init__(self, path: str) -> None:
        self.dropped = 0
        self._path = path
        self._waiting: deque[Outcome] = deque()
        self._wake = threading.Event()
        self._stop = False
        self._file: IO[bytes] = self._open()
        self._offset = time.time() - time.monotonic()
        self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)
        self._thread.start()

    def _open(self) -> IO[bytes]:
        return sys.stdout.buffer if self._path == "-" else open(self._path, "ab")

    def add(self, outcome: Outcome) -> None:
        if len(self._waiting) < MAX_WAITING:
            self._waiting.append(outcome)
        else:
            self.dropped += 1

    def sweep(self, now: float) -> None:
        """Wakes the writer when there is something to write."""
        self._offset = time.time() - now
        if self._waiting:
            self._wake.set()

    def reopen(self) -> None:
        """After the file was moved away (SIGHUP)."""
        if self._path != "-":
            old, self._file = self._file, self._open()
            with contextlib.suppress(ValueError):
                old.close()

    def close(self) -> None:
        self._stop = True
        self._wake.set()
        self._thread.join(5.0)

    def _run(self) -> None:
        while not self._stop:
            self._wake.wait()
            self._wake.clear()
            self._write()

    def _write(self) -> None:
        batch = [self._waiting.popleft() for _ in range(len(self._waiting))]
        if not batch:
            return
        try:
            self._file.write(b"".join(map(self._line, batch)))
            self._file.flush()
        except (OSError, ValueError):
            self.dropped += len(batch)

    def _line(self, outcome: Outcome) -> bytes:
        """What cannot be written is no reason to write nothing more."""
        try:
            return orjson.dumps(line(outcome, self._offset)) + b"\n"
        except Exception:
            self.dropped += 1
            return b""


def line(outcome: Outcome, offset: float) -> dict[str, Any]:
    head, route = outcome.head, outcome.route
    row: dict[str, Any] = {
        "at": round(outcome.started + offset, 3),
        "id": outcome.request_id.decode("latin-1"),
        "peer": outcome.peer,
        "lane": outcome.lane,
        "method": head.method.decode("latin-1") if head is not None else "",
        "path": head.path.decode("latin-1") if head is not None else "",
        "status": outcome.status,
        "seconds": round(outcome.ended - outcome.started, 6),
        "bytes_in": outcome.bytes_in,
        "bytes_out": outcome.bytes_out,
    }
    if outcome.first_byte:
        row["first_byte"] = round(outcome.first_byte - outcome.started, 6)
    if route is not None:
        row["service"] = route.service.name
    optional = {
        "endpoint": outcome.endpoint,
        "model": route.model if route is not None else "",
        "key": outcome.principal.id if outcome.principal is not None else "",
        "error": outcome.error,
        "refused": outcome.refused,
        "retries": outcome.retries,
        "resumes": outcome.resumes,
        "prompt_tokens": outcome.prompt_tokens,
        "completion_tokens": outcome.completion_tokens,
        "cached_tokens": outcome.cached_tokens,
        "cost": outcome.cost,
    }
    row.update({name: value for name, value in optional.items() if value})
    return row
