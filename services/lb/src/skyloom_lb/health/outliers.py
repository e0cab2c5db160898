"""Who stands out among its peers, and how many may be taken out at once. Pure functions of one window's counts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median

from skyloom_lb.health.signals import Signals
from skyloom_lb.settings import Health

KEPT_SHARE = 0.05
"""Weight of a bad endpoint that the floor keeps in: enough to notice that it is back."""


def outliers(windows: Mapping[str, Signals], health: Health) -> dict[str, str]:
    """Endpoint id to the reason why it should be ejected."""
    found: dict[str, str] = {}
    for id, window in windows.items():
        if window.window_requests < health.min_requests:
            continue
        share = window.window_failures / window.window_requests
        if share >= health.error_share:
            found[id] = f"{share:.0%} of {window.window_requests} requests failed ({window.last_failure})"
    if health.latency_factor > 0:
        found.update(_slow(windows, health, found))
    return found


def _slow(windows: Mapping[str, Signals], health: Health, found: Mapping[str, str]) -> dict[str, str]:
    means = {
        id: window.window_latency / (window.window_requests - window.window_failures)
        for id, window in windows.items()
        if id not in found and window.window_requests - window.window_failures >= health.min_requests
    }
    if len(means) < 3:
        return {}
    usual = median(means.values())
    return {
        id: f"first byte after {mean:.3f} s, its peers' median is {usual:.3f} s"
        for id, mean in means.items()
        if usual > 0 and mean > health.latency_factor * usual
    }


def kept_by_floor(good: int, bad: Sequence[str], floor: float) -> Sequence[str]:
    """Which of the bad (least bad first) stay in all the same."""
    if not bad:
        return ()
    wanted = math.ceil((good + len(bad)) * floor)
    return bad[: max(0, wanted - good)] if good else bad[: max(1, wanted)]
