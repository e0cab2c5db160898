"""Asking for a plan, for the commands and the SDK."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sky.api import Gateway
from skyloom_common.contracts.plan import Candidate, Plan, PlanRequest
from skyloom_common.contracts.task.model import TaskSpec

if TYPE_CHECKING:
    from sky.dag import Dag
    from sky.resources import Resources
    from skyloom_common.contracts.dag import Bucket, DagPlan

REASONS = 3
"""Shown in the sentence; the rest is in the error's details."""


def make_plan(
    api: Gateway, task: TaskSpec, enabled: tuple[str, ...] | None = None, *, objective: str = "cost"
) -> Plan:
    """Where the task could run: on what is enabled, or (None) anywhere in the catalog."""
    return api.plan(PlanRequest(task=task, enabled=enabled, objective=objective))


def make_graph_plan(
    api: Gateway,
    tasks: Sequence[TaskSpec],
    edges: Iterable[tuple[int, int]],
    *,
    objective: str = "cost",
    buckets: tuple[Bucket, ...] = (),
) -> DagPlan:
    """One place for each task, in the order of `tasks`; an edge is a pair of positions: the second comes after the first."""
    from skyloom_common.contracts.dag import DagEdge, DagPlanRequest, DagTask

    names: list[str] = []
    for position, task in enumerate(tasks, 1):
        name = task.name or f"task-{position}"
        names.append(f"{name}-{position}" if name in names else name)
    nodes = tuple(DagTask(name, task) for name, task in zip(names, tasks, strict=True))
    links = tuple(DagEdge(names[before], names[after]) for before, after in edges)
    plan = api.plan_dag(DagPlanRequest(nodes, links, buckets, objective))
    return replace(plan, placements=tuple(sorted(plan.placements, key=lambda one: names.index(one.task))))


def enabled_names(api: Gateway) -> tuple[str, ...]:
    return tuple(item.name for item in api.infra() if item.enabled)


def require_candidates(
    plan: Plan, enabled: Collection[str] | None = None, *, explained: bool = False
) -> None:
    """Raises ResourcesUnavailableError when nothing fits: what is impossible, why on what is enabled, and what would do.

    `explained`: the reasons and what would do have been shown.
    """
    if plan.candidates:
        return
    from sky.exceptions import ResourcesUnavailableError

    sentence, *ways = plan.hints or ("nothing satisfies its resources",)
    told = [f"{one.cloud}: {one.reason}" for one in plan.rejected if one.cloud != "*"]
    own = [f"{one.cloud}: {one.reason}" for one in plan.rejected if enabled and one.cloud in enabled]
    why = f" ({'; '.join(own[:REASONS])})" if own else ""
    raise ResourcesUnavailableError(
        f"Nothing can run this task: {sentence}{why}",
        hint=""
        if explained
        else "; ".join(ways) or "sky check shows what is enabled; --explain says of everything why not",
        details={"rejected": told, "hints": list(plan.hints)},
    )


def require_places(plan: DagPlan) -> None:
    if plan.placements:
        return
    from sky.exceptions import ResourcesUnavailableError

    sentence, *ways = plan.hints or ("nothing satisfies its resources",)
    raise ResourcesUnavailableError(
        f"Nothing can run these tasks: {sentence}", hint="; ".join(ways), details={"hints": list(plan.hints)}
    )


def place_together(api: Gateway, dag: Dag, objective: str) -> None:
    """Gives each task of a graph its `best_resources`: prices and what data costs on its way are weighed together."""
    number = {id(task): position for position, task in enumerate(dag.tasks)}
    edges = [(number[id(before)], number[id(after)]) for before, after in dag.edges]
    plan = make_graph_plan(api, [task.spec for task in dag.tasks], edges, objective=objective)
    require_places(plan)
    for task, placement in zip(dag.tasks, plan.placements, strict=True):
        task.best_resources = resources_of(placement.candidate)


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
