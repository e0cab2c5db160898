"""Since when nobody uses the node. Monotonic time, kept on disk so that a new agent goes on counting."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

from skyloom_agent.clock import AgentClock
from skyloom_agent.paths import read_json, write_atomic

log = logging.getLogger(__name__)

KEEP_SECONDS = 60.0


class IdleMeter:
    """`ssh_sessions` counts interactive sessions on this node; a node that shares its machine passes one that says 0."""

    def __init__(self, path: Path, clock: AgentClock, ssh_sessions: Callable[[], int]) -> None:
        self._path = path
        self._clock = clock
        self._ssh_sessions = ssh_sessions
        now = clock.monotonic()
        self._jobs_until = self._ssh_until = now
        self._active = False
        kept = read_json(path)
        if isinstance(kept, dict) and kept.get("boot") == clock.boot:
            self._jobs_until = min(now, float(kept.get("jobs_until", now)))
            self._ssh_until = min(now, float(kept.get("ssh_until", now)))

    def observe(self, active_jobs: int) -> None:
        """To be called whenever a job changed."""
        was_active, self._active = self._active, active_jobs > 0
        if self._active or was_active:
            self._jobs_until = self._clock.monotonic()
        if was_active and not self._active:
            self._keep()

    def look_for_sessions(self) -> None:
        """To be called now and then."""
        if not self._ssh_sessions():
            return
        now, had = self._clock.monotonic(), self._ssh_until
        self._ssh_until = now
        if now - had > KEEP_SECONDS:
            self._keep()

    def jobs_seconds(self) -> float:
        return 0.0 if self._active else max(0.0, self._clock.monotonic() - self._jobs_until)

    def jobs_and_ssh_seconds(self) -> float:
        return min(self.jobs_seconds(), max(0.0, self._clock.monotonic() - self._ssh_until))

    def _keep(self) -> None:
        kept = {"boot": self._clock.boot, "jobs_until": self._jobs_until, "ssh_until": self._ssh_until}
        try:
            write_atomic(self._path, json.dumps(kept).encode())
        except OSError as error:
            log.warning("the idle time is not kept: %s", error)
