"""What happens to a cluster that is up: agents and machines that die, idleness, restarts of the provisioner."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from skyloom_common.contracts.clusters import ExecRequest, LaunchRequest, StopRequest
from skyloom_common.contracts.jobs import Job, JobStatus
from skyloom_common.contracts.operations import OperationStatus
from skyloom_common.contracts.task.model import AutostopSpec, TaskSpec, WaitFor

pytestmark = pytest.mark.integration  # many starts of a whole service; no process of its own
ONE = TaskSpec(run="echo hi")
TWO = TaskSpec(run="echo hi", num_nodes=2)


async def launched(rig: Any, task: TaskSpec = ONE, **more: Any) -> Any:
    done = await rig.finished(await rig.client.launch("c", LaunchRequest(task, **more)))
    assert done.status is OperationStatus.SUCCEEDED, done.error
    return done


async def cluster(rig: Any) -> Any:
    found = await rig.client.clusters(["c"])
    return found[0] if found else None


async def heard(rig: Any, seconds: float = 5) -> None:
    async def every_node() -> bool:
        return all(node.heartbeat_age_seconds is not None for node in (await cluster(rig)).nodes)

    await rig.until(every_node, seconds)


async def test_heartbeats_carry_ages_and_jobs(started: Any) -> None:
    await launched(started, TWO)
    await heard(started)
    shown = await cluster(started)
    assert shown.heartbeat_age_seconds < 5
    started.agent_of().finish(JobStatus.FAILED)
    clusters = started.provisioner.parts.clusters

    async def cached() -> bool:
        return [job.status for job in await clusters.cached_jobs(shown.id)] == [JobStatus.FAILED]

    await started.until(cached)


async def test_no_row_is_written_for_heartbeats_that_say_nothing_new(started: Any) -> None:
    await launched(started)
    await heard(started)
    before = started.provisioner.parts.clusters.version
    for _ in range(20):
        started.agent_of().push()
        await asyncio.sleep(0.005)
    assert started.provisioner.parts.clusters.version == before


async def test_an_agent_that_dies_is_started_again_and_its_jobs_are_still_there(started: Any) -> None:
    await launched(started, TWO)
    await heard(started)
    instance = started.provider.created[0]
    boot = started.agents.by_instance[instance].boot_id
    started.agents.kill(instance)
    await started.until(lambda: started.agents.by_instance[instance].alive)
    assert started.agents.by_instance[instance].boot_id != boot

    async def healthy() -> bool:
        shown = await cluster(started)
        return shown.status.value == "UP" and not shown.unhealthy

    await started.until(healthy)
    jobs = (await started.client.jobs("c")).jobs
    assert [job.status for job in jobs] == [JobStatus.RUNNING]
    ranks = {agent.membership.rank for agent in started.agents.by_instance.values()}
    assert (
        ranks == {0, 1}
        and len({agent.membership.generation for agent in started.agents.by_instance.values()}) == 1
    )


async def test_exec_on_a_cluster_whose_agent_just_died_starts_it_again(started: Any) -> None:
    await launched(started)
    started.agents.kill(started.provider.created[0])
    done = await started.finished(await started.client.exec("c", ExecRequest(ONE)))
    assert done.status is OperationStatus.SUCCEEDED and done.result["job_id"] == 2


async def test_a_lost_machine_makes_the_cluster_unhealthy_and_launch_repairs_it(started: Any) -> None:
    await launched(started, TWO)
    await heard(started)
    lost = started.provider.created[1]
    started.provider.vanish(lost)
    started.agents.kill(lost)

    async def unhealthy() -> Any:
        shown = await cluster(started)
        return shown if shown.unhealthy else None

    shown = await started.until(unhealthy)
    assert shown.status.value == "INIT" and f"instance {lost} is gone" in shown.status_message
    assert [node.status for node in shown.nodes] == ["UP", "TERMINATED"]
    await launched(started, TWO)
    shown = await cluster(started)
    assert (shown.status.value, shown.unhealthy, len(shown.nodes)) == ("UP", False, 2)
    assert lost not in [instance.id for instance in started.provider.instances]
    assert len(started.provider.instances) == 2


async def test_a_cluster_of_which_nothing_is_left_is_forgotten_and_billed_to_here(started: Any) -> None:
    await launched(started, TWO)
    await heard(started)
    for instance in list(started.provider.created):
        started.provider.vanish(instance)
        started.agents.kill(instance)

    async def gone() -> bool:
        return await cluster(started) is None

    await started.until(gone)
    (row,) = (await started.client.cost_report()).rows
    assert row.status == "TERMINATED"


async def test_watches_resume_after_a_restart(started: Any) -> None:
    await launched(started, TWO)
    await started.crash()
    await started.start()
    await heard(started)
    assert (await cluster(started)).status.value == "UP"


async def test_an_unreachable_node_is_shown_and_comes_back(started: Any) -> None:
    await launched(started)
    await heard(started)
    started.provisioner.parts.reviver._agent_seconds = 0.05
    instance = started.provider.created[0]
    started.agents.refuse_start.add(instance)
    started.agents.kill(instance)

    async def status(value: str) -> bool:
        return (await cluster(started)).nodes[0].status == value

    async def unhealthy() -> bool:
        return (await cluster(started)).unhealthy

    await started.until(lambda: status("UNREACHABLE"))
    await started.until(unhealthy)
    started.agents.refuse_start.clear()

    async def well_again() -> bool:
        shown = await cluster(started)
        return (shown.status.value, shown.unhealthy, shown.nodes[0].status) == ("UP", False, "UP")

    await started.until(well_again)


# --- autostop ---


@pytest.mark.parametrize("down", [False, True])
async def test_an_idle_cluster_stops_or_goes(started: Any, down: bool) -> None:
    await launched(started, autostop=AutostopSpec(idle_minutes=0, down=down))
    await _pretend_up_for(started, 3600)
    agent = started.agent_of()
    agent.idle_jobs = agent.idle_ssh = 600.0
    agent.finish()

    async def ended() -> bool:
        shown = await cluster(started)
        return shown is None if down else shown is not None and shown.status.value == "STOPPED"

    await started.until(ended)
    kinds = [operation.kind for operation in await started.client.operations(all=True)]
    assert kinds == ["down" if down else "stop", "launch"]
    if not down:
        assert "idle" in (await cluster(started)).last_event


async def test_a_job_that_was_just_submitted_keeps_the_cluster_although_old_heartbeats_say_idle(
    started: Any,
) -> None:
    await launched(started, autostop=AutostopSpec(idle_minutes=0, down=True))
    await _pretend_up_for(started, 3600)
    started.agent_of().idle_jobs = started.agent_of().idle_ssh = 600.0
    for _ in range(20):
        started.provisioner.runner.wake("c")
        await asyncio.sleep(0.005)
    assert (await cluster(started)).status.value == "UP"
    assert len(await started.client.operations(all=True)) == 1


async def test_a_job_that_comes_between_decision_and_stop_keeps_the_cluster(started: Any) -> None:
    await launched(started, autostop=AutostopSpec(idle_minutes=1, down=True))
    await _pretend_up_for(started, 3600)
    started.agent_of().idle_jobs = started.agent_of().idle_ssh = 600.0
    parts = started.provisioner.parts
    create = parts.operations.create

    async def a_job_comes_first(new: Any) -> Any:
        if new.request.get("automatic"):
            parts.operations.create = create
            await started.client.exec("c", ExecRequest(ONE))
        return await create(new)

    parts.operations.create = a_job_comes_first
    started.agent_of().finish()

    async def decided() -> Any:
        listed = await started.client.operations(all=True)
        return next((one for one in listed if one.kind == "down" and one.status.is_final), None)

    operation = await started.until(decided)
    assert operation.status is OperationStatus.SUCCEEDED
    assert (await cluster(started)).status.value == "UP"


async def test_ssh_sessions_and_wait_for(started: Any) -> None:
    await launched(started, autostop=AutostopSpec(idle_minutes=1, wait_for=WaitFor.JOBS_AND_SSH))
    await _pretend_up_for(started, 3600)
    agent = started.agent_of()
    agent.idle_jobs, agent.idle_ssh = 600.0, 0.0
    agent.finish()
    await started.until(
        lambda: not started.provisioner.parts.live.nodes[agent.config.node_id].heartbeat.active_jobs
    )
    started.provisioner.runner.wake("c")
    await started.until(started.provisioner.runner.is_idle)
    assert (await cluster(started)).status.value == "UP"


async def _pretend_up_for(rig: Any, seconds: float) -> None:
    """The cluster came up long ago, and its autostop was set then."""
    parts = rig.provisioner.parts
    await rig.until(rig.provisioner.runner.is_idle)
    state = await parts.clusters.get("c")
    lease = await rig.provisioner.keeper.acquire("c")
    then = parts.clock.now() - seconds
    await parts.clusters.change(lease, state.cluster, up_since=then, autostop_set_at=then)


async def test_the_collector_removes_what_no_row_owns_and_nothing_else(started: Any) -> None:
    await launched(started, TWO)
    operation = await started.client.launch("other", LaunchRequest(ONE))
    await started.finished(operation)
    lease = await started.provisioner.keeper.acquire("other")
    other = await started.provisioner.parts.clusters.get("other")
    started.provisioner.watches.drop("other")
    await started.provisioner.parts.clusters.drop_cluster(lease, other.cluster.id)
    removed = await started.provisioner.collector.collect()
    assert removed == [other.nodes[0].instance_id]
    assert len(started.provider.instances) == 2
    assert await started.provisioner.collector.collect() == []


async def test_a_stopped_cluster_still_lists_its_jobs(started: Any) -> None:
    await launched(started)
    await heard(started)
    await started.finished(await started.client.stop("c", StopRequest()))
    assert [job.job_id for job in (await started.client.jobs("c")).jobs] == [1]


async def test_late_news_of_a_job_is_dropped(started: Any) -> None:
    await launched(started)
    await heard(started)
    shown = await cluster(started)
    lease = await started.provisioner.keeper.acquire("c")
    clusters = started.provisioner.parts.clusters
    newer = Job(7, "t", "u", JobStatus.SUCCEEDED, 0.0, version=5)
    for job in (newer, replace(newer, status=JobStatus.RUNNING, version=3), newer):
        await clusters.save_jobs(lease, shown.id, [job])
    assert newer in await clusters.cached_jobs(shown.id)


async def test_another_nodes_agent_at_the_address_is_not_taken_for_this_one(started: Any) -> None:
    start = started.agents.start

    async def somebody_else(instance: Any, config: Any) -> None:
        await start(
            instance, replace(config, node_id="somebody-else") if instance.zone == "easta" else config
        )

    started.agents.start = somebody_else
    started.provisioner.parts.lifecycle._limits = replace(started.limits, agent=0.1)
    await launched(started)
    assert [instance.zone for instance in started.provider.instances] == ["eastb"]


async def test_a_heartbeat_in_another_nodes_name_ends_the_stream(started: Any) -> None:
    await launched(started)
    await heard(started)
    agent = started.agent_of()
    right = agent.config
    agent.config = replace(right, node_id="somebody-else")
    agent.push()
    state = await started.provisioner.parts.clusters.get("c")
    await started.until(lambda: started.provisioner.watches.silent(state))
    assert "somebody-else" not in started.provisioner.parts.live.nodes
