"""Asking for a plan, for the commands and the SDK."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from sky.api import Gateway
from skyloom_common.contracts.plan import Candidate, Plan, PlanRequest
from skyloom_common.contracts.task.model import TaskSpec

if TYPE_CHECKING:
    from sky.resources import Resources

REASONS = 5
"""Shown in the sentence; the rest is in the error's details."""


def make_plan(
    api: Gateway, task: TaskSpec, enabled: tuple[str, ...] | None = None, *, objective: str = "cost"
) -> Plan:
    """Where the task could run: on what is enabled, or (None) anywhere in the catalog."""
    return api.plan(PlanRequest(task=task, enabled=enabled, objective=objective))


def enabled_names(api: Gateway) -> tuple[str, ...]:
    return tuple(item.name for item in api.infra() if item.enabled)


def require_candidates(plan: Plan, enabled: Collection[str] | None = None) -> None:
    """Raises ResourcesUnavailableError when nothing fits, with the reasons of what is enabled (None: of everything)."""
    if plan.candidates:
        return
    from sky.exceptions import ResourcesUnavailableError

    told = [one for one in plan.rejected if enabled is None or one.cloud in enabled] or list(plan.rejected)
    reasons = [f"{one.cloud}: {one.reason}" if one.cloud else one.reason for one in told]
    more = f" (and {len(reasons) - REASONS} more)" if len(reasons) > REASONS else ""
    raise ResourcesUnavailableError(
        "Nothing can run this task: " + "; ".join(reasons[:REASONS]) + more
        if reasons
        else "Nothing can run this task.",
        hint="; ".join(plan.hints)
        or "sky check shows what is enabled; sky launch --dryrun plans over everything",
        details={"rejected": reasons},
    )


def resources_of(candidate: Candidate) -> Resources:
    """A chosen place as launchable Resources."""
    from sky.resources import Resources

    offer = candidate.offer
    known: dict[str, Any] = {
        "cloud": offer.cloud, "region": offer.region or None, "zone": offer.zone or None,
        "instance_type": offer.instance_type, "use_spot": offer.use_spot or None,
        "accelerators": {offer.accelerator: offer.accelerator_count} if offer.accelerator else None,
    }  # fmt: skip
    return Resources(**{name: value for name, value in known.items() if value is not None})
