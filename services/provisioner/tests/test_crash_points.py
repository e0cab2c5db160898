"""Death at every point of every operation, then a new process: it finishes or undoes, and nothing is orphaned."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from sqlalchemy import select

from skyloom_common.contracts.clusters import (
    AutostopRequest,
    ExecRequest,
    LaunchRequest,
    StartRequest,
    StopRequest,
)
from skyloom_common.contracts.operations import Operation, OperationStatus
from skyloom_common.contracts.task.model import AutostopSpec, TaskSpec
from skyloom_common.core.errors import InsufficientCapacity, ProviderInvalidRequest, StoreUnavailable
from skyloom_common.reconcile import Backoff
from skyloom_provisioner.clusters.rows import NodeStatus
from skyloom_provisioner.tables import nodes, operations

pytestmark = pytest.mark.integration  # many starts of a whole service; no process of its own

TASK = TaskSpec(name="train", run="echo hi", num_nodes=2, secrets={"KEY": "s3cret"})
LAUNCH_POINTS = [
    "launch.do.prepare",
    "launch.do.provision",
    "launch.cluster_row",
    "launch.intent_rows",
    "launch.instances_running",
    "launch.agents_up",
    "launch.do.up",
    "launch.peers_told",
    "launch.cluster_up",
    "launch.do.sync",
    "launch.do.submit",
    "launch.job_submitted",
    "launch.do.end",
    "launch.finish",
]


async def _begin(rig: Any, verb: str) -> Operation:
    if verb != "launch":
        await rig.start()
        await rig.finished(await rig.client.launch("c", LaunchRequest(TASK)))
        if verb == "start":
            await rig.finished(await rig.client.stop("c", StopRequest()))
        await rig.stop()
    return await rig.start(crash_at=None)


async def _post(rig: Any, verb: str) -> Operation:
    requests = {
        "launch": LaunchRequest(TASK),
        "exec": ExecRequest(TASK),
        "start": StartRequest(),
        "stop": StopRequest(),
        "down": StopRequest(),
        "autostop": AutostopRequest(AutostopSpec(idle_minutes=10)),
    }
    operation: Operation = await getattr(rig.client, verb)("c", requests[verb])
    return operation


async def _assert_nothing_is_orphaned(rig: Any) -> None:
    """Rows and instances are the same set, and no secret outlives its operation."""
    async with rig.provisioner.database.read() as connection:
        rows = (await connection.execute(select(nodes))).all()
        finished = (await connection.execute(select(operations))).all()
    assert sorted(row.instance_id for row in rows) == sorted(
        instance.id for instance in rig.provider.instances
    )
    assert all(row.status in (NodeStatus.UP.value, NodeStatus.STOPPED.value) for row in rows)
    assert all(row.sealed_secrets is None and row.saga is None for row in finished)


@pytest.mark.parametrize("point", LAUNCH_POINTS)
async def test_a_launch_that_dies_is_finished_by_the_next_process(rig: Any, point: str) -> None:
    await rig.start(crash_at=point)
    operation = await _post(rig, "launch")
    await rig.crashed.wait()
    await rig.crash()
    await rig.start()
    done = await rig.finished(operation)
    assert done.status is OperationStatus.SUCCEEDED, done.error
    assert await rig.status("c") == "UP"
    assert len(rig.provider.created) == 2
    assert len(rig.agent_of(0).jobs) == 1
    assert done.result == {"cluster": "c", "job_id": 1}
    await _assert_nothing_is_orphaned(rig)


async def test_what_agents_were_told_by_a_dead_process_is_older_than_what_the_next_one_tells(
    rig: Any,
) -> None:
    rig.agents.die_when_told = 2
    await rig.start(crash_at="launch.peers_told")
    operation = await _post(rig, "launch")
    await rig.crashed.wait()
    await rig.crash()
    told = [rig.agent_of(rank).membership.generation for rank in range(2)]
    await rig.start()
    assert (await rig.finished(operation)).status is OperationStatus.SUCCEEDED
    assert [rig.agent_of(rank).membership.generation for rank in range(2)] == [max(told) + 1] * 2


@pytest.mark.parametrize(
    "point", [point for point in LAUNCH_POINTS if point not in ("launch.do.end", "launch.finish")]
)
async def test_a_cancel_that_comes_while_it_is_dead_undoes_everything(rig: Any, point: str) -> None:
    await rig.start(crash_at=point)
    operation = await _post(rig, "launch")
    await rig.crashed.wait()
    await rig.client.cancel_operation(operation.id)
    await rig.crash()
    await rig.start()
    assert (await rig.finished(operation)).status is OperationStatus.CANCELLED
    assert await rig.status("c") is None
    assert rig.provider.instances == []
    await _assert_nothing_is_orphaned(rig)


UNDO_POINTS = [
    "launch.undo.provision",
    "launch.nodes_removed",
    "launch.undo.prepare",
    "launch.undo.end",
    "launch.finish",
]


@pytest.mark.parametrize("point", UNDO_POINTS)
async def test_a_death_while_undoing_is_undone_by_the_next_process(rig: Any, point: str) -> None:
    rig.provider.fail_next("create", ProviderInvalidRequest("no such image"))
    await rig.start(crash_at=point)
    operation = await _post(rig, "launch")
    await rig.crashed.wait()
    await rig.crash()
    await rig.start()
    done = await rig.finished(operation)
    assert done.status is OperationStatus.FAILED and done.error.code == "provider_invalid_request"
    assert await rig.status("c") is None and rig.provider.instances == []
    await _assert_nothing_is_orphaned(rig)


@pytest.mark.parametrize(
    ("verb", "point", "status"),
    [
        ("exec", "exec.do.prepare", "UP"),
        ("exec", "exec.do.submit", "UP"),
        ("exec", "exec.job_submitted", "UP"),
        ("exec", "exec.finish", "UP"),
        ("stop", "stop.do.stop", "STOPPED"),
        ("stop", "stop.instances_stopped", "STOPPED"),
        ("stop", "stop.finish", "STOPPED"),
        ("start", "start.do.provision", "UP"),
        ("start", "start.instances_started", "UP"),
        ("start", "start.cluster_up", "UP"),
        ("start", "start.finish", "UP"),
        ("down", "down.do.down", None),
        ("down", "down.nodes_removed", None),
        ("down", "down.finish", None),
        ("autostop", "autostop.do.set", "UP"),
        ("autostop", "autostop.finish", "UP"),
    ],
)
async def test_every_other_operation_is_finished_too(
    rig: Any, verb: str, point: str, status: str | None
) -> None:
    await _begin(rig, verb)
    await rig.stop()
    await rig.start(crash_at=point)
    operation = await _post(rig, verb)
    await rig.crashed.wait()
    await rig.crash()
    await rig.start()
    assert (await rig.finished(operation)).status is OperationStatus.SUCCEEDED
    assert await rig.status("c") == status
    assert len(rig.provider.created) == 2
    await _assert_nothing_is_orphaned(rig)
    if verb == "exec":
        keys = Counter(submit.key for agent in rig.agents.by_instance.values() for submit in agent.submits)
        assert keys[operation.id] == 1


@pytest.mark.parametrize("count", [1, 2, 3])
async def test_a_death_between_two_attempts_goes_on_with_the_next_place(rig: Any, count: int) -> None:
    rig.provider.capacity = {("east", "easta", "big"): 1, ("east", "eastb", "big"): 0}
    await rig.start(crash_at="launch.intent_rows", crash_count=count)
    operation = await _post(rig, "launch")
    await rig.crashed.wait()
    await rig.crash()
    await rig.start()
    assert (await rig.finished(operation)).status is OperationStatus.SUCCEEDED
    assert {instance.region for instance in rig.provider.instances} == {"west"}
    await _assert_nothing_is_orphaned(rig)


async def test_an_instance_that_was_created_but_not_written_down_is_found(rig: Any) -> None:
    """Death inside create: the cloud made it, the row does not know its id, and the list shows it late."""
    rig.provider.listing_delay_seconds = 0.3
    create = rig.provider.create

    async def create_and_die(request: Any) -> Any:
        await create(request)
        rig.crashed.set()
        raise InsufficientCapacity("died before the answer came")

    rig.provider.create = create_and_die
    await rig.start()
    operation = await rig.client.launch("c", LaunchRequest(TaskSpec(run="x")))
    await rig.crashed.wait()
    await rig.client.cancel_operation(operation.id)
    await rig.crash()
    del rig.provider.create
    assert len(rig.provider.instances) == 1
    await rig.start()
    assert (await rig.finished(operation)).status is OperationStatus.CANCELLED
    assert rig.provider.instances == []


@pytest.mark.parametrize("position", range(1, 26, 2))
async def test_a_store_that_fails_for_a_moment_costs_time_only(rig: Any, position: int) -> None:
    """The n-th write after the request is refused: the operation is neither lost nor failed nor done twice."""
    await rig.start()
    rig.provisioner.runner._backoff = Backoff(first=0.01, longest=0.05)
    database = rig.provisioner.database
    write, count = database.write, 0

    def failing_write() -> Any:
        nonlocal count
        count += 1
        if count == position + 1:
            raise StoreUnavailable("the database is away")
        return write()

    database.write = failing_write
    done = await rig.finished(await _post(rig, "launch"))
    assert done.status is OperationStatus.SUCCEEDED, done.error
    assert len(rig.provider.created) == 2 and len(rig.agent_of(0).jobs) == 1
    database.write = write
    await _assert_nothing_is_orphaned(rig)
