"""stop, down and autostop: the operations that end what costs, or say when to."""

from __future__ import annotations

import logging
from typing import Any

from skyloom_common.contracts.clusters import AutostopRequest, ClusterStatus
from skyloom_common.contracts.jobs import CancelJobs
from skyloom_common.core.errors import Conflict, InvalidRequest, NotFound, SkyloomError
from skyloom_common.saga import Outputs, Saga, Step
from skyloom_common.store.lease import LeaseLost
from skyloom_provisioner.clusters.idle import autostop_now
from skyloom_provisioner.clusters.rows import ClusterState, Goal
from skyloom_provisioner.clusters.text import counted
from skyloom_provisioner.operations.context import OperationContext
from skyloom_provisioner.operations.kinds import Kind
from skyloom_provisioner.operations.launch import stop_nodes, tear_down
from skyloom_provisioner.polling import poll
from skyloom_provisioner.providers.base import features
from skyloom_provisioner.providers.registry import Providers

_log = logging.getLogger(__name__)
_GRACE_SECONDS = 600.0


def check_can_stop(providers: Providers, cloud: str) -> None:
    if "stop" not in features(providers.get(cloud)):
        raise InvalidRequest(
            f"stop: {cloud} cannot stop instances and keep their disks",
            hint="Use `sky down`, or add --down to the autostop.",
        )


async def recheck(context: OperationContext, outputs: Outputs) -> dict[str, Any]:
    """An automatic stop is only a stop while its reason still holds: a job may have come in between.
    What has begun (before a crash) is finished."""
    state = await context.find_cluster()
    if state is None or not context.request.get("automatic") or state.cluster.goal != Goal.UP.value:
        return {"needed": True}
    decision = autostop_now(context.parts.clock, context.parts.live, state)
    if decision.action is not None:
        return {"needed": True}
    if state.cluster.status == ClusterStatus.AUTOSTOPPING.value:
        await context.parts.clusters.change(context.lease, state.cluster, status=ClusterStatus.UP.value)
    await context.say("checking", "the cluster is in use again and stays up")
    return {"needed": False}


async def end_jobs(context: OperationContext, outputs: Outputs) -> None:
    """graceful: jobs get their SIGTERM and time to end before the machine goes."""
    state = await context.find_cluster()
    if not context.request.get("graceful") or state is None or not state.cluster.is_up or state.head is None:
        return
    client = await context.parts.agents.client(state.head)
    await context.say("stopping_jobs", "ending the jobs")
    await client.cancel(CancelJobs(all=True))

    async def ended() -> bool | None:
        return True if all(job.status.is_final for job in await client.jobs()) else None

    limit = context.request.get("graceful_timeout_seconds") or _GRACE_SECONDS
    if await poll(ended, clock=context.parts.clock, timeout=limit) is None:
        await context.say("stopping_jobs", f"some jobs did not end within {limit:.0f} s", level="warning")


async def stop(context: OperationContext, outputs: Outputs) -> None:
    if not outputs["recheck"]["needed"]:
        return
    state = await context.cluster()
    if state.cluster.status == ClusterStatus.STOPPED.value:
        return
    check_can_stop(context.parts.providers, state.nodes[0].provider if state.nodes else "")
    await context.say("stopping", f"stopping {counted(len(state.nodes), 'node')}")
    try:
        await stop_nodes(context, state)
    except SkyloomError as error:
        await _remember_failure(context, f"stop failed: {error.message}", error)
        raise


async def down(context: OperationContext, outputs: Outputs) -> None:
    state = await context.find_cluster() if outputs["recheck"]["needed"] else None
    if state is None:
        return
    await context.say("terminating", f"terminating {counted(len(state.nodes), 'node')}")
    try:
        await tear_down(context, state)
    except LeaseLost:
        raise
    except SkyloomError as error:
        if not context.request.get("purge"):
            await _remember_failure(context, f"teardown failed: {error.message}", error)
            raise
        await context.say("terminating", f"purging the record although {error.message}", level="warning")
        await _purge(context, state)


async def _purge(context: OperationContext, state: ClusterState) -> None:
    """The rows go; what is left at the provider has our tag and no row, so the garbage collector goes on with it."""
    await context.parts.clusters.drop_cluster(context.lease, state.cluster.id)


async def _remember_failure(context: OperationContext, sentence: str, error: SkyloomError) -> None:
    if isinstance(error, (LeaseLost, NotFound)):
        return
    state = await context.find_cluster()
    if state is not None:
        values = {"status": ClusterStatus.INIT.value, "unhealthy": True, "status_message": sentence}
        await context.parts.clusters.change(context.lease, state.cluster, **values)


async def set_autostop(context: OperationContext, outputs: Outputs) -> None:
    state = await context.cluster()
    request: AutostopRequest = context.decode(AutostopRequest)
    spec = request.autostop if request.autostop is not None and request.autostop.enabled else None
    if state.cluster.goal == Goal.GONE.value:
        raise Conflict(f"cluster {state.cluster.name!r} is being terminated")
    if spec is not None and not spec.down and state.cluster.offer is not None:
        check_can_stop(context.parts.providers, state.cluster.offer.cloud)
    await context.parts.clusters.change(
        context.lease, state.cluster, autostop=spec, autostop_set_at=context.parts.clock.now()
    )


def _nothing(context: OperationContext, outputs: Outputs) -> dict[str, Any]:
    return {}


STOP_KIND = Kind(
    Saga("stop", (Step("recheck", recheck), Step("end_jobs", end_jobs), Step("stop", stop))),
    _nothing,
    repeatable=True,
)
DOWN_KIND = Kind(
    Saga("down", (Step("recheck", recheck), Step("end_jobs", end_jobs), Step("down", down))),
    _nothing,
    repeatable=True,
)
AUTOSTOP_KIND = Kind(Saga("autostop", (Step("set", set_autostop),)), _nothing, repeatable=True)
