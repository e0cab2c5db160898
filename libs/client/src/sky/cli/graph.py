"""The plan of a file with several tasks: one place for each, what data costs on its way, and why. Plans only; launches nothing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from sky.cli.output import money, number, paint, show, table

if TYPE_CHECKING:
    from sky.api import Gateway
    from skyloom_common.contracts.dag import Bucket, DagPlan, Placement, Transfer
    from skyloom_common.contracts.task.model import TaskFile

HEADER = [
    "TASK",
    "#NODES",
    "CLOUD",
    "INSTANCE",
    "ACCELERATORS",
    "REGION/ZONE",
    "COST ($)",
    "STARTS (h)",
    "ENDS (h)",
]


def make_plan(api: Gateway, file: TaskFile, buckets: Sequence[str] = (), objective: str = "cost") -> DagPlan:
    """A pipeline's tasks come one after the other, those of a job group side by side; data moves by the buckets they name."""
    from sky import plans

    numbers = range(len(file.tasks))
    edges = list(itertools.pairwise(numbers)) if file.execution == "serial" else []
    return plans.make_graph_plan(api, file.tasks, edges, objective=objective, buckets=_places(buckets))


def _places(buckets: Sequence[str]) -> tuple[Bucket, ...]:
    """`s3://data=aws/us-east-1`"""
    from skyloom_common.contracts.dag import Bucket

    found = []
    for text in buckets:
        uri, _, place = text.partition("=")
        cloud, _, region = place.partition("/")
        if "://" not in uri or not cloud:
            raise click.UsageError(
                f"--bucket {text!r}: say URI=CLOUD/REGION, such as s3://data=aws/us-east-1"
            )
        found.append(Bucket(uri, cloud.lower(), region))
    return tuple(found)


def show_plan(plan: DagPlan) -> None:
    if not plan.placements:
        return
    show(paint("== Optimizer ==", "bold"))
    total = "unknown" if plan.usd is None else f"${plan.usd:.2f}"
    hours = "" if plan.hours is None else f" for {plan.hours:g} h"
    show(f"Estimated cost: {total}{hours}{_proof(plan)}")
    show(table(HEADER, [_row(placement) for placement in plan.placements], rules=True))
    for transfer in plan.transfers:
        show(_transfer(transfer))


def data(plan: DagPlan) -> dict[str, Any]:
    return asdict(plan)


def lines(plan: DagPlan) -> Iterator[str]:
    """Why each task is where it is, and what the whole consists of."""
    from skyloom_common.contracts.explain import place_text

    for placement in plan.placements:
        offer = placement.candidate.offer
        price = "price not known" if offer.price_per_hour is None else f"${offer.price_per_hour:.2f} an hour"
        why = placement.reason or placement.candidate.reason
        yield f"{placement.task}: {place_text(offer)}, {price}: {why}"
    if plan.breakdown is not None and plan.usd:
        parts = asdict(plan.breakdown)
        yield "in all: " + ", ".join(
            f"{name} ${value:.2f}" for name, value in parts.items() if value >= 0.005
        )
    for point in plan.points:
        yield f"{point.objective}: ${point.usd:.2f} and {point.hours:g} h"
    yield from (hint.replace("name it in buckets", "say --bucket URI=CLOUD/REGION") for hint in plan.hints)
    for task, rejected in plan.rejected.items():
        yield from _rejected(task, rejected)


def _rejected(task: str, rejected: Sequence[Any]) -> Iterator[str]:
    from skyloom_common.contracts.explain import lines as reasons
    from skyloom_common.contracts.plan import Plan

    for line in reasons(Plan(rejected=tuple(rejected))):
        yield f"{task}: {line}"


def _proof(plan: DagPlan) -> str:
    if plan.proof is None:
        return ""
    return (
        "; proven the best" if plan.proof.optimal else f"; at most {100 * plan.proof.gap:.1f} % from the best"
    )


def _row(placement: Placement) -> list[str]:
    from sky.cli.plan_table import cloud_name

    candidate, offer = placement.candidate, placement.candidate.offer
    accelerators = f"{offer.accelerator}:{number(offer.accelerator_count)}" if offer.accelerator else "-"
    return [
        placement.task,
        str(candidate.num_nodes),
        cloud_name(offer.cloud),
        f"{offer.instance_type}{'[Spot]' if offer.use_spot else ''}",
        accelerators,
        offer.zone or offer.region or "-",
        money(placement.breakdown.total),
        number(placement.start_hours),
        number(placement.end_hours),
    ]


def _transfer(transfer: Transfer) -> str:
    hours = f", {transfer.hours:.2g} h" if transfer.hours else ""
    return f"{transfer.source} -> {transfer.target}: {transfer.gib:,.0f} GiB, ${transfer.usd:.2f}{hours}"
