"""The last two steps of launch and exec: files to the nodes, then the job to the head agent. Both may be repeated."""

from __future__ import annotations

import asyncio
from typing import Any

from skyloom_common.contracts.clusters import ExecRequest, LaunchRequest, MountRef
from skyloom_common.core.errors import AgentUnreachable, ClusterNotUp
from skyloom_common.saga import Outputs, Saga, Step
from skyloom_provisioner.clusters.rows import ClusterState
from skyloom_provisioner.clusters.text import counted, size_text
from skyloom_provisioner.decide.mode import LaunchMode
from skyloom_provisioner.files import push_mounts
from skyloom_provisioner.jobs.mapping import job_of
from skyloom_provisioner.operations.context import OperationContext
from skyloom_provisioner.operations.kinds import Kind
from skyloom_provisioner.operations.rows import LAUNCH

_REVIVALS = 3


async def prepare_exec(context: OperationContext, outputs: Outputs) -> dict[str, Any]:
    cluster = (await context.cluster()).cluster
    if not cluster.is_up:
        raise ClusterNotUp(
            f"cluster {cluster.name!r} is {cluster.status}, exec needs it UP",
            hint=f"Run `sky start {cluster.name}`, or `sky launch -c {cluster.name}`.",
            details={"status": cluster.status},
        )
    if context.request.get("command"):
        await context.parts.clusters.change(context.lease, cluster, last_use=context.request["command"])
    return {"mode": LaunchMode.REUSE.value}


async def sync(context: OperationContext, outputs: Outputs) -> None:
    mounts = _mounts(context, outputs)
    if not mounts:
        return
    state = await context.cluster()
    await context.say("syncing", f"syncing files to {counted(len(state.nodes), 'node')}")
    sent = await _with_revival(context, lambda current: _push(context, current, mounts))
    await context.say("syncing", f"files are in place ({size_text(sent)} sent)", data={"bytes_sent": sent})


def _mounts(context: OperationContext, outputs: Outputs) -> tuple[MountRef, ...]:
    if context.row.kind == LAUNCH:
        request: LaunchRequest = context.decode(LaunchRequest)
        return () if _is_fast(request, outputs) else request.mounts
    execution: ExecRequest = context.decode(ExecRequest)
    return tuple(mount for mount in execution.mounts if mount.kind == "workdir")


def _is_fast(request: LaunchRequest, outputs: Outputs) -> bool:
    return request.fast and outputs["prepare"]["mode"] == LaunchMode.REUSE.value


async def _push(context: OperationContext, state: ClusterState, mounts: tuple[MountRef, ...]) -> int:
    parts = context.parts
    clients = [await parts.agents.client(node) for node in state.nodes]
    progress = _Progress(context)
    reporting = asyncio.create_task(progress.report())
    try:
        results = await push_mounts([client.http for client in clients], parts.files, mounts, progress.seen)
    finally:
        reporting.cancel()
        await asyncio.gather(reporting, return_exceptions=True)
    return sum(result.bytes_sent for result in results)


class _Progress:
    """One event a second at most while files go out."""

    def __init__(self, context: OperationContext) -> None:
        self._context = context
        self._state: dict[tuple[int, str], tuple[int, int]] = {}

    def seen(self, node: int, mount: MountRef, sent: int, total: int) -> None:
        self._state[node, mount.destination] = (sent, total)

    async def report(self) -> None:
        told = 0
        while True:
            await self._context.parts.clock.sleep(1.0)
            sent, total = (sum(values) for values in zip((0, 0), *self._state.values(), strict=True))
            if sent != told:
                told = sent
                sentence = f"{size_text(sent)} of {size_text(total)} sent"
                await self._context.say("syncing", sentence, data={"bytes_sent": sent, "bytes_total": total})


async def submit(context: OperationContext, outputs: Outputs) -> dict[str, Any]:
    """The operation's id is the job's key: a repeated submit gives the same job."""
    with_setup = context.row.kind == LAUNCH
    request = context.decode(LaunchRequest if with_setup else ExecRequest)
    if with_setup and (request.no_setup or _is_fast(request, outputs)):
        with_setup = False
    if request.task.run is None and not (with_setup and request.task.setup):
        return {"job_id": None}
    await context.say("submitting", "submitting the job")

    async def hand_over(state: ClusterState) -> int:
        job = job_of(request.task, context.row, state.cluster, with_setup=with_setup)
        assert state.head is not None
        accepted = await (await context.parts.agents.client(state.head)).submit(job)
        if not accepted.status.is_final:
            context.parts.live.submitted(state.head.id, accepted.job_id)
        return accepted.job_id

    job_id = await _with_revival(context, hand_over)
    context.checkpoint("job_submitted")
    return {"job_id": job_id}


async def _with_revival(context: OperationContext, work: Any) -> Any:
    """An agent that does not answer is started again, a few times, before this operation fails."""
    for trial in range(_REVIVALS + 1):
        state = await context.cluster()
        try:
            return await work(state)
        except AgentUnreachable as error:
            if trial == _REVIVALS:
                raise
            await context.say(
                context.row.phase or "submitting", f"{error.message}; starting it again", level="warning"
            )
            await context.parts.reviver.revive(context.lease, state)
    raise AssertionError("unreachable")


EXEC_KIND = Kind(
    Saga(
        "exec",
        (Step("prepare", prepare_exec), Step("sync", sync), Step("submit", submit)),
    ),
    lambda context, outputs: {"cluster": context.row.target, "job_id": outputs["submit"]["job_id"]},
    repeatable=True,
)
