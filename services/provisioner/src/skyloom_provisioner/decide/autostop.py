"""When an idle or old cluster stops paying.

Idle means what `wait_for` says; the countdown begins anew with a job, its end, a new setting or a restart: it can
therefore never be longer than the time since any of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from skyloom_common.contracts.task.model import AutostopSpec, WaitFor

LEAST_IDLE_SECONDS = 5.0
"""Also for "as soon as idle": whoever follows the last job sees its end before the machine goes."""


@dataclass(frozen=True)
class Idleness:
    """Seconds. `jobs`/`jobs_and_ssh` None = not known now (the agent does not answer)."""

    since_set: float
    since_up: float
    jobs: float | None = None
    jobs_and_ssh: float | None = None
    busy: bool = False
    """An operation is waiting for this cluster: it is about to be used."""


@dataclass(frozen=True)
class AutostopDecision:
    """`action` "stop" or "down" = now. Otherwise `check_after` says when to ask again at the latest (None = no need)."""

    action: str | None = None
    reason: str = ""
    check_after: float | None = None
    idle_seconds: float | None = None


def decide_autostop(spec: AutostopSpec | None, idleness: Idleness) -> AutostopDecision:
    if spec is None or not spec.enabled:
        return AutostopDecision()
    action = "down" if spec.down else "stop"
    idle = idle_seconds(spec.wait_for, idleness)
    lifetime_left = _left(spec.max_lifetime_minutes, idleness.since_up)
    if lifetime_left is not None and lifetime_left <= 0:
        reason = f"its maximum lifetime of {spec.max_lifetime_minutes} minutes has passed"
        return AutostopDecision(action, reason, idle_seconds=idle)
    if idle is None or idleness.busy:
        return AutostopDecision(check_after=lifetime_left, idle_seconds=idle)
    idle_left = max(spec.idle_minutes * 60.0, LEAST_IDLE_SECONDS) - idle
    if idle_left <= 0:
        return AutostopDecision(action, f"it was idle for {int(idle // 60)} minutes", idle_seconds=idle)
    left = [max(idle_left, 0.5), *([lifetime_left] if lifetime_left is not None else [])]
    return AutostopDecision(check_after=min(left), idle_seconds=idle)


def idle_seconds(wait_for: WaitFor, idleness: Idleness) -> float | None:
    anchor = min(idleness.since_set, idleness.since_up)
    if wait_for is WaitFor.NONE:
        return anchor
    measured = idleness.jobs if wait_for is WaitFor.JOBS else idleness.jobs_and_ssh
    return None if measured is None else min(measured, anchor)


def _left(minutes: int | None, since_up: float) -> float | None:
    return None if minutes is None else minutes * 60.0 - since_up
