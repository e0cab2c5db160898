"""The optimizer's table: what was weighed, what it costs, what was chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sky.cli.output import money, number, paint, say, show, table

if TYPE_CHECKING:
    from skyloom_common.contracts.plan import Candidate, Plan
    from skyloom_common.contracts.task.model import TaskSpec

HEADER = ["CLOUD", "INSTANCE", "vCPUs", "Mem(GB)", "ACCELERATORS", "REGION/ZONE", "COST ($)", "CHOSEN"]
SHOWN = 10
NAMES = {
    "aws": "AWS", "gcp": "GCP", "azure": "Azure", "kubernetes": "Kubernetes", "local": "Local", "oci": "OCI",
    "ibm": "IBM", "lambda": "Lambda", "runpod": "RunPod", "fluidstack": "Fluidstack", "vast": "Vast", "do": "DO",
    "ssh": "SSH", "nebius": "Nebius", "cudo": "Cudo", "paperspace": "Paperspace", "hyperbolic": "Hyperbolic",
}  # fmt: skip


def cloud_name(cloud: str) -> str:
    """A cloud as people write it."""
    return NAMES.get(cloud.lower(), cloud.capitalize() if cloud.islower() else cloud)


def show_plan(plan: Plan, task: TaskSpec) -> None:
    """Prints the table of seeds and compat §5, with the reasons for what is not in it when nothing is."""
    if not plan.candidates:
        return
    show(paint("== Optimizer ==", "bold"))
    chosen = plan.candidates[0]
    total = plan.total_cost_per_hour if plan.total_cost_per_hour is not None else chosen.cost_per_hour
    show(f"Estimated cost: {'unknown' if total is None else f'${_trim(total)} / hour'}")
    nodes = chosen.num_nodes
    show(f"Considered resources ({nodes} node{'s' if nodes != 1 else ''}):")
    show(
        table(
            HEADER, [_row(candidate, index == 0) for index, candidate in enumerate(_best(plan))], rules=True
        )
    )
    for hint in plan.hints:
        say(hint)


def _best(plan: Plan) -> list[Candidate]:
    """The first candidate of every cloud (and capacity type), in the plan's order."""
    seen: set[tuple[str, str, bool]] = set()
    out = []
    for candidate in plan.candidates:
        key = (candidate.offer.cloud, candidate.offer.accelerator or "", candidate.offer.use_spot)
        if key not in seen:
            seen.add(key)
            out.append(candidate)
    return out[:SHOWN]


def _row(candidate: Candidate, chosen: bool) -> list[str]:
    offer = candidate.offer
    spot = "[Spot]" if offer.use_spot else ""
    accelerators = f"{offer.accelerator}:{number(offer.accelerator_count)}" if offer.accelerator else "-"
    cost = candidate.cost_per_hour
    return [
        cloud_name(offer.cloud),
        f"{offer.instance_type}{spot}",
        number(offer.vcpus),
        number(offer.memory_gib),
        accelerators,
        offer.zone or offer.region or "-",
        money(cost),
        "✔" if chosen else " ",
    ]


def _trim(value: float) -> str:
    """0.0, 1.22, 12.5: as people write an estimate."""
    text = f"{value:.2f}".rstrip("0")
    return text + "0" if text.endswith(".") else text
