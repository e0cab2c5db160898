"""What one endpoint's answers, failures and probes say about it: circuit breaker, ejection, probe verdict, slow start.

Times are handed in. No I/O, no timers: `verdict` is asked by the sweep.
"""

from __future__ import annotations

from typing import Final

from skyloom_lb.settings import Health

READY: Final = "ready"
DRAINING: Final = "draining"
OPEN: Final = "open"
EJECTED: Final = "ejected"
UNHEALTHY: Final = "unhealthy"
WARMING: Final = "warming"

_FIRST_SHARE = 0.1


class Signals:
    __slots__ = (
        "_opened", "consecutive", "ejected_reason", "ejected_until", "ejections", "last_failure", "open_until",
        "probe_failures", "probed_healthy", "settings", "warm_since", "window_failures", "window_latency",
        "window_requests",
    )  # fmt: skip

    def __init__(self, settings: Health, warm_since: float | None = None) -> None:
        self.settings = settings
        self.consecutive = 0
        self.last_failure = ""
        self.open_until = 0.0
        self._opened = 0
        self.ejected_until = 0.0
        self.ejected_reason = ""
        self.ejections = 0
        self.probe_failures = 0
        self.probed_healthy = True
        self.warm_since = warm_since
        self.window_requests = 0
        self.window_failures = 0
        self.window_latency = 0.0

    def success(self, latency: float) -> None:
        self.window_requests += 1
        self.window_latency += latency
        if self.consecutive or self._opened:
            self.consecutive = 0
            self._opened = 0

    def failure(self, reason: str, now: float) -> bool:
        """True when this opened the circuit. Each opening in a row lasts twice as long."""
        self.window_requests += 1
        self.window_failures += 1
        self.consecutive += 1
        self.last_failure = reason
        if self.consecutive < self.settings.failures or now < self.open_until:
            return False
        seconds = min(
            self.settings.open_seconds * 2.0 ** min(self._opened, 16), self.settings.max_open_seconds
        )
        self.open_until = now + seconds
        self._opened += 1
        self.ejections += 1
        # One more failure after it closes again opens it at once.
        self.consecutive = self.settings.failures - 1
        return True

    def eject(self, reason: str, now: float) -> None:
        self.ejected_until = now + self.settings.eject_seconds
        self.ejected_reason = reason
        self.ejections += 1

    def probed(self, ok: bool, reason: str = "") -> None:
        """A probe that succeeds closes the circuit early: somebody has looked."""
        if ok:
            self.probe_failures = 0
            self.probed_healthy = True
            self.open_until = 0.0
        else:
            self.probe_failures += 1
            self.last_failure = reason
            if self.probe_failures >= self.settings.probe_failures:
                self.probed_healthy = False

    def verdict(self, now: float) -> tuple[str, str]:
        """State and the reason of it, for people."""
        if not self.probed_healthy:
            return UNHEALTHY, f"{self.probe_failures} probes failed in a row: {self.last_failure}"
        if now < self.open_until:
            return OPEN, f"circuit open for {self.open_until - now:.1f} s more: {self.last_failure}"
        if now < self.ejected_until:
            return EJECTED, f"ejected for {self.ejected_until - now:.1f} s more: {self.ejected_reason}"
        if self.share(now) < 1.0:
            return WARMING, f"slow start, {self.share(now):.0%} of its weight"
        return READY, ""

    def share(self, now: float) -> float:
        """Of its weight, while it warms up."""
        seconds = self.settings.slow_start_seconds
        if self.warm_since is None or seconds <= 0:
            return 1.0
        done = (now - self.warm_since) / seconds
        if done >= 1.0:
            self.warm_since = None
            return 1.0
        return max(_FIRST_SHARE, done)
