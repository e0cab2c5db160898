"""A task as the job that the head agent gets. Pure: the same operation always gives the same job."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from skyloom_common.contracts.jobs import JobDemand, JobSubmit
from skyloom_common.contracts.task.model import ResourcesSpec, TaskSpec
from skyloom_provisioner.clusters.rows import ClusterRow
from skyloom_provisioner.operations.rows import OperationRow

DEFAULT_CPUS = 0.5


def job_of(task: TaskSpec, operation: OperationRow, cluster: ClusterRow, *, with_setup: bool) -> JobSubmit:
    demand = demand_of(task.resources, cluster, sized=operation.kind == "exec")
    return JobSubmit(
        key=operation.id,
        name=task.name or "sky-cmd",
        user=operation.user,
        num_nodes=task.num_nodes,
        setup=task.setup if with_setup else None,
        run=task.run,
        envs=_envs(task, operation, cluster),
        secrets={name: value for name, value in task.secrets.items() if value is not None},
        demand=demand,
        resources=demand_text(demand, cluster, task.num_nodes),
        metadata={"operation": operation.id},
    )


def demand_of(resources: ResourcesSpec, cluster: ClusterRow, *, sized: bool) -> JobDemand:
    """`sized`: cpus and memory are the job's own wish (exec) and not the size of the nodes (launch)."""
    cpus, memory = DEFAULT_CPUS, 0.0
    if sized and resources.cpus is not None:
        cpus = resources.cpus.value
    if sized and resources.memory is not None:
        memory = resources.memory.value * (cpus if resources.memory.per_cpu else 1)
    return JobDemand(cpus=cpus, memory_gib=memory, gpus=_gpus(resources, cluster))


def _gpus(resources: ResourcesSpec, cluster: ClusterRow) -> float:
    """The alternative that the cluster satisfies, else the first."""
    wanted = [*resources.accelerators]
    for other in (*resources.any_of, *resources.ordered):
        wanted.extend(other.accelerators)
    own = (cluster.offer.accelerator or "").lower() if cluster.offer else ""
    if not wanted:
        return 0.0
    return next((one.count for one in wanted if (one.name or "").lower() == own), wanted[0].count)


def demand_text(demand: JobDemand, cluster: ClusterRow, num_nodes: int) -> str:
    accelerator = cluster.offer.accelerator if cluster.offer else None
    what = f"{accelerator or 'GPU'}:{demand.gpus:g}" if demand.gpus else f"CPU:{demand.cpus:g}"
    return f"{num_nodes}x[{what}]"


def task_id(operation: OperationRow, cluster: str) -> str:
    """Unique, and the same however often the submit is repeated."""
    when = datetime.fromtimestamp(operation.created_at, UTC).strftime("%Y-%m-%d-%H-%M-%S-%f")
    return f"sky-{when}-{cluster}_{operation.id[-6:]}"


def _envs(task: TaskSpec, operation: OperationRow, cluster: ClusterRow) -> dict[str, str]:
    """A task's own SKYPILOT_TASK_ID is kept; cluster and user are ours to say."""
    offer = cluster.offer
    info = {
        "cluster_name": cluster.name,
        "cloud": offer.cloud if offer else None,
        "region": (offer.region or None) if offer else None,
        "zone": (offer.zone or None) if offer else None,
    }
    given = {name: value for name, value in task.envs.items() if value is not None}
    return {
        "SKYPILOT_TASK_ID": task_id(operation, cluster.name),
        **given,
        "SKYPILOT_CLUSTER_INFO": json.dumps(info),
        "SKYPILOT_USER": operation.user,
    }
