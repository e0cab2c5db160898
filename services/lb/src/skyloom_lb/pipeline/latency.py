"""The moving average that latency policies look at: it jumps up at once, and comes down over seconds (peak EWMA)."""

from __future__ import annotations

import math
from collections.abc import Iterable

from skyloom_lb.pipeline.model import LiveEndpoint

TAU_SECONDS = 10.0


def observe_latency(endpoint: LiveEndpoint, sample: float, now: float) -> None:
    if sample >= endpoint.latency:
        endpoint.latency = sample
    else:
        keep = math.exp(-(now - endpoint.latency_at) / TAU_SECONDS)
        endpoint.latency = endpoint.latency * keep + sample * (1.0 - keep)
    endpoint.latency_at = now


def observe_wait(endpoint: LiveEndpoint, waited: float, now: float) -> None:
    """It gave no answer within `waited` seconds: as bad as one after that time, and never good news."""
    if waited > endpoint.latency:
        observe_latency(endpoint, waited, now)


def guess_latency(endpoint: LiveEndpoint, usual: float) -> bool:
    """Asked and never heard of: it counts as usual until it answers, or a hanging one would look best for ever."""
    if endpoint.latency_at or not usual or endpoint.latency == usual:
        return False
    endpoint.latency = usual
    return True


def forget_latency(endpoint: LiveEndpoint, usual: float, now: float) -> bool:
    """An endpoint that nobody chooses drifts towards the usual latency: it would otherwise never be tried again."""
    idle = now - endpoint.latency_at
    if not endpoint.latency_at or endpoint.in_flight or endpoint.latency <= usual or idle < 1.0:
        return False
    keep = math.exp(-idle / TAU_SECONDS)
    endpoint.latency = usual + (endpoint.latency - usual) * keep
    endpoint.latency_at = now
    return True


def usual_latency(endpoints: Iterable[LiveEndpoint]) -> float:
    """Median of those observed, 0 when none was."""
    known = sorted(one.latency for one in endpoints if one.latency_at)
    return known[len(known) // 2] if known else 0.0
