"""The launch of a cluster: prepare, provision, up, sync, submit.

A new cluster walks the candidates of the plan until one gives all nodes; an existing one is reused, started or repaired.
Failures up to `up` undo everything; later ones keep the cluster, which then is up. A cancel undoes what this launch made.
"""

from __future__ import annotations

from typing import Any

from skyloom_common.contracts.clusters import ClusterStatus, LaunchRequest, StartRequest
from skyloom_common.contracts.task.model import AutostopSpec, TaskSpec
from skyloom_common.contracts.task.support import ignored_at_launch
from skyloom_common.core.errors import AgentUnreachable, ClusterDoesNotExist, ResourcesMismatch
from skyloom_common.core.ids import new_id
from skyloom_common.saga import Outputs, Saga, Step
from skyloom_provisioner.clusters.rows import ClusterState, Goal
from skyloom_provisioner.clusters.text import counted, resources_text
from skyloom_provisioner.decide.fit import misfits
from skyloom_provisioner.decide.mode import LaunchMode, launch_mode
from skyloom_provisioner.decide.outcomes import started
from skyloom_provisioner.nodes.lifecycle import next_generation
from skyloom_provisioner.operations.context import OperationContext
from skyloom_provisioner.operations.kinds import Kind
from skyloom_provisioner.operations.provision import Provisioning, failure_reported
from skyloom_provisioner.operations.rows import LAUNCH
from skyloom_provisioner.operations.submit import submit, sync
from skyloom_provisioner.polling import all_or_first_error

_TRIES_TO_JOIN = 3


async def prepare(context: OperationContext, outputs: Outputs) -> dict[str, Any]:
    """Decides what to do with the cluster of this name; changes nothing except finishing a teardown that failed."""
    state = await context.find_cluster()
    mode = launch_mode(state.cluster.status, state.cluster.goal) if state else LaunchMode.NEW
    if context.row.kind != LAUNCH and state is None:
        raise ClusterDoesNotExist(
            f"cluster {context.row.target!r} does not exist", hint="Run `sky launch` to make it."
        )
    if state is not None and mode is LaunchMode.REPLACE:
        await tear_down(context, state)
        mode = LaunchMode.NEW
    elif state is not None and context.row.kind == LAUNCH:
        _check_fit(context.task_in_clear(), state)
    if context.row.kind == LAUNCH:
        for notice in ignored_at_launch(context.decode(LaunchRequest).task):
            await context.say("planning", notice, level="warning")
    if state is not None and mode is LaunchMode.REUSE and context.row.kind != LAUNCH:
        mode = LaunchMode.REPAIR if context.request.get("force") else mode
    return {"mode": mode.value}


def _check_fit(task: TaskSpec, state: ClusterState) -> None:
    cluster = state.cluster
    if cluster.offer is None:
        return
    problems = misfits(task.resources, task.num_nodes, cluster.offer, cluster.num_nodes)
    if problems:
        raise ResourcesMismatch(
            f"cluster {cluster.name!r} does not fit this task: {'; '.join(problems)}",
            hint=f"Use another name with -c, or `sky down {cluster.name}` first.",
            details={"problems": problems},
        )


async def provision(context: OperationContext, outputs: Outputs) -> dict[str, Any]:
    """`rented`: machines came up, and in so many `seconds` where this process saw the whole of it."""
    mode = LaunchMode(outputs["prepare"]["mode"])
    if mode is LaunchMode.REUSE:
        await context.say("provisioning", f"cluster {context.row.target} is up and is reused")
        return {"rented": False}
    if mode is LaunchMode.NEW:
        await _ensure_row(context)
        return {"rented": True, "seconds": await Provisioning(context).walk_candidates()}
    if mode is LaunchMode.START:
        await _start(context)
        return {"rented": True}
    return {"rented": await _repair(context)}


async def _ensure_row(context: OperationContext) -> None:
    if await context.find_cluster() is not None:
        return
    task, now = context.task_in_clear(), context.parts.clock.now()
    await context.parts.clusters.add_cluster(
        context.lease,
        {
            "id": new_id(),
            "name": context.row.target,
            "user": context.row.user,
            "status": ClusterStatus.INIT.value,
            "status_message": "launching",
            "goal": Goal.UP.value,
            "num_nodes": task.num_nodes,
            "created_by": context.row.id,
            "launched_at": now,
            "status_updated_at": now,
            "resources": task.resources,
            "last_use": context.request.get("command", ""),
        },
    )
    context.checkpoint("cluster_row")


async def _start(context: OperationContext) -> None:
    parts, state = context.parts, await context.cluster()
    await context.say("provisioning", f"starting {counted(len(state.nodes), 'stopped node')}")
    cluster = state.cluster

    async def open_ledger(connection: Any) -> None:
        assert cluster.offer is not None
        await parts.clusters.open_usage_in(
            connection,
            cluster,
            cluster.offer,
            cluster.num_nodes,
            resources_text(cluster.offer, cluster.num_nodes),
        )

    values = {"goal": Goal.UP.value, "status": ClusterStatus.INIT.value, "status_message": "starting"}
    await parts.clusters.change_in_one(context.lease, cluster, values, also=open_ledger)
    async with failure_reported(context, cluster.offer):
        nodes = await all_or_first_error(
            [parts.lifecycle.resume(context.lease, node) for node in state.nodes]
        )
        context.checkpoint("instances_started")
        await context.say("starting_agents", "starting the agents")
        await all_or_first_error([parts.lifecycle.start_agent(node) for node in nodes])


async def _repair(context: OperationContext) -> bool:
    """True when machines were rented. Nodes that are gone are replaced in the same place; agents that died are started again."""
    parts, state = context.parts, await context.cluster()
    why = state.cluster.status_message
    await context.say("provisioning", f"repairing cluster {state.cluster.name}{': ' if why else ''}{why}")
    looked = await all_or_first_error([parts.lifecycle.look(node) for node in state.nodes])
    gone = [node for node, instance in zip(state.nodes, looked, strict=True) if instance is None]
    await parts.lifecycle.remove(context.lease, [*gone, *state.leaving])
    return await Provisioning(context).fill_missing_ranks()


async def up(context: OperationContext, outputs: Outputs) -> dict[str, Any]:
    parts, state = context.parts, await context.cluster()
    values: dict[str, Any] = {}
    if context.row.kind == LAUNCH:
        values["last_use"] = context.request.get("command", "")
    autostop = _autostop(context)
    if autostop is not None:
        values |= {"autostop": autostop if autostop.enabled else None, "autostop_set_at": parts.clock.now()}
    if LaunchMode(outputs["prepare"]["mode"]) is not LaunchMode.REUSE:
        values |= await _join(context, state, outputs.get("provision", {}))
    if values:
        await parts.clusters.change(context.lease, state.cluster, **values)
    if "status" in values:
        parts.watches.watch((await context.cluster()), context.lease)
    context.checkpoint("cluster_up")
    return {"cluster_id": state.cluster.id}


async def _join(
    context: OperationContext, state: ClusterState, provisioned: dict[str, Any]
) -> dict[str, Any]:
    parts, now = context.parts, context.parts.clock.now()
    generation = await _tell_peers(context, state)
    context.checkpoint("peers_told")
    outcomes = []
    if provisioned.get("rented") and state.cluster.offer is not None:
        outcomes.append(started(context.row.id, state.cluster.offer, now, provisioned.get("seconds")))
    await parts.clusters.nodes_up(context.lease, [node.id for node in state.nodes], outcomes)
    return {
        "status": ClusterStatus.UP.value,
        "status_message": "",
        "unhealthy": False,
        "goal": Goal.UP.value,
        "up_since": now,
        "membership_generation": generation,
    }


async def _tell_peers(context: OperationContext, state: ClusterState) -> int:
    """The generation that every agent knows. One that ended since it was started is started again, and all are told anew."""
    lifecycle = context.parts.lifecycle
    for tries_left in reversed(range(_TRIES_TO_JOIN)):
        infos = await all_or_first_error([lifecycle.start_agent(node) for node in state.nodes])
        generation = next_generation(state.cluster, infos)
        try:
            await lifecycle.join(state.cluster, state.nodes, infos, generation)
            break
        except AgentUnreachable as error:
            if not tries_left:
                raise
            await context.say("starting_agents", f"{error.message}; starting it again", level="warning")
    return generation


def _autostop(context: OperationContext) -> AutostopSpec | None:
    """The request's, else the task's; None = leave what the cluster has."""
    if context.row.kind == LAUNCH:
        request: LaunchRequest = context.decode(LaunchRequest)
        return request.autostop or request.task.resources.autostop
    start: StartRequest = context.decode(StartRequest)
    return start.autostop


async def undo_provision(context: OperationContext, outputs: Outputs) -> None:
    mode = LaunchMode(outputs.get("prepare", {}).get("mode", LaunchMode.REUSE.value))
    state = await context.find_cluster()
    if state is None or mode is LaunchMode.REUSE:
        return
    if mode is LaunchMode.NEW:
        await tear_down(context, state)
    elif mode is LaunchMode.START:
        await stop_nodes(context, state)
    else:
        own = [node for node in (*state.nodes, *state.leaving) if node.created_by == context.row.id]
        await context.parts.lifecycle.remove(context.lease, own)


async def stop_nodes(context: OperationContext, state: ClusterState) -> None:
    parts = context.parts
    if state.cluster.goal != Goal.STOPPED.value:
        await parts.clusters.change(context.lease, state.cluster, goal=Goal.STOPPED.value)
    parts.watches.drop(state.cluster.name)
    for node in state.nodes:
        parts.live.forget(node.id)
    await all_or_first_error([parts.lifecycle.stop(context.lease, node) for node in state.nodes])
    context.checkpoint("instances_stopped")
    cluster = (await context.cluster()).cluster

    async def close_ledger(connection: Any) -> None:
        await parts.clusters.close_usage_in(connection, cluster.id)

    values = {
        "status": ClusterStatus.STOPPED.value,
        "status_message": "",
        "unhealthy": False,
        "up_since": None,
        "last_event": context.request.get("automatic") or "stopped",
    }
    await parts.clusters.change_in_one(context.lease, cluster, values, also=close_ledger)


async def tear_down(context: OperationContext, state: ClusterState) -> None:
    """Every node away, confirmed, then the rows. May be repeated from any point."""
    parts, cluster = context.parts, state.cluster
    if cluster.goal != Goal.GONE.value:
        values = {"goal": Goal.GONE.value, "status_message": "terminating"}
        await parts.clusters.change(context.lease, cluster, **values)
    parts.watches.drop(cluster.name)
    never_rented = cluster.up_since is None and all(
        node.instance_id is None for node in (*state.nodes, *state.leaving)
    )
    await parts.lifecycle.remove(context.lease, [*state.nodes, *state.leaving])
    context.checkpoint("nodes_removed")
    for node in (*state.nodes, *state.leaving):
        parts.live.forget(node.id)
    await parts.clusters.drop_cluster(context.lease, cluster.id)
    if never_rented and cluster.created_by == context.row.id:
        await parts.clusters.forget_usage(context.lease, cluster.id)


def _launch_result(context: OperationContext, outputs: Outputs) -> dict[str, Any]:
    return {"cluster": context.row.target, "job_id": outputs.get("submit", {}).get("job_id")}


_TO_UP: tuple[Step[OperationContext], ...] = (
    Step("prepare", prepare),
    Step("provision", provision, undo_provision),
    Step("up", up),
)

LAUNCH_KIND = Kind(
    Saga("launch", (*_TO_UP, Step("sync", sync), Step("submit", submit)), keep_from="sync"), _launch_result
)
START_KIND = Kind(Saga("start", _TO_UP), lambda context, outputs: {"cluster": context.row.target})
