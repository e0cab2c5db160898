"""Operations as clients see them: launch in all its ways, failover, cancel, order, idempotency, events."""

from __future__ import annotations

import asyncio
from dataclasses import replace
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
from skyloom_common.contracts.operations import OperationStatus
from skyloom_common.contracts.plan import PlanRequest
from skyloom_common.contracts.task.model import AutostopSpec, Quantity, ResourcesSpec, TaskSpec
from skyloom_common.core.errors import (
    AgentUnreachable,
    ClusterDoesNotExist,
    ClusterNotUp,
    Conflict,
    CredentialsInvalid,
    InsufficientCapacity,
    InvalidRequest,
    NotSupportedYet,
    OperationDoesNotExist,
    ProviderError,
    ProviderInvalidRequest,
    QuotaExceeded,
    Throttled,
)
from skyloom_provisioner.nodes.lifecycle import Limits
from skyloom_provisioner.tables import operation_events, operations

TWO = TaskSpec(name="train", run="echo hi", num_nodes=2)
ONE = TaskSpec(run="echo hi")


async def launched(rig: Any, task: TaskSpec = ONE, name: str = "c", **more: Any) -> Any:
    return await rig.finished(await rig.client.launch(name, LaunchRequest(task, **more), user="ann"))


async def test_a_launch_tells_its_phases_in_order_and_ends_up(started: Any) -> None:
    operation = await started.client.launch("c", LaunchRequest(TWO, command="sky launch x.yaml"), user="ann")
    assert operation.status is OperationStatus.PENDING and operation.user == "ann"
    events = await started.events(operation)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    phases = list(dict.fromkeys(event.phase for event in events))
    assert phases == ["queued", "planning", "provisioning", "starting_agents", "submitting", "done"]
    assert [event.status for event in events if event.status] == [OperationStatus.SUCCEEDED]
    (cluster,) = await started.client.clusters()
    assert (cluster.status.value, cluster.num_nodes, cluster.user, cluster.last_use) == (
        "UP",
        2,
        "ann",
        "sky launch x.yaml",
    )
    assert cluster.price_per_hour == 3.0 and cluster.head_ip == cluster.nodes[0].address
    peers = started.agent_of(1).membership.peers
    assert [peer.rank for peer in peers] == [0, 1] and len({peer.address for peer in peers}) == 2


async def test_the_job_gets_its_variables_and_secrets(started: Any) -> None:
    task = TaskSpec(name="t", run="x", setup="y", envs={"A": "1"}, secrets={"KEY": "hush"})
    operation = await launched(started, task)
    (submit,) = started.agent_of().submits
    assert (submit.name, submit.setup, submit.run, submit.key, submit.user) == (
        "t",
        "y",
        "x",
        operation.id,
        "ann",
    )
    assert (
        submit.secrets == {"KEY": "hush"}
        and submit.envs["A"] == "1"
        and submit.envs["SKYPILOT_USER"] == "ann"
    )
    assert submit.envs["SKYPILOT_TASK_ID"].startswith("sky-20") and "-c_" in submit.envs["SKYPILOT_TASK_ID"]
    assert '"cluster_name": "c"' in submit.envs["SKYPILOT_CLUSTER_INFO"]
    assert started.optimizer.requests[0].task.secrets == {}


async def test_secrets_are_sealed_while_it_runs_and_erased_after(started: Any) -> None:
    started.provider.start_seconds = 0.3
    task = TaskSpec(run="x", secrets={"KEY": "hush-hush"})
    operation = await started.client.launch("c", LaunchRequest(task))
    database = started.provisioner.database

    async def everything() -> str:
        async with database.read() as connection:
            found = [
                (await connection.execute(select(table))).all() for table in (operations, operation_events)
            ]
        return repr([dict(row._mapping) for rows in found for row in rows])

    assert "hush-hush" not in await everything() and "gAAAA" in await everything()
    await started.finished(operation)
    assert "hush-hush" not in await everything() and "gAAAA" not in await everything()


async def test_a_second_launch_reuses_the_cluster_and_its_nodes(started: Any) -> None:
    await launched(started, TWO)
    second = await launched(started, ONE)
    assert second.result == {"cluster": "c", "job_id": 2}
    assert len(started.provider.created) == 2


async def test_two_launches_of_one_name_at_once_make_one_cluster(started: Any) -> None:
    first, second = await asyncio.gather(
        *(started.client.launch("c", LaunchRequest(TWO), user=user) for user in ("ann", "bob"))
    )
    done = [await started.finished(first), await started.finished(second)]
    assert [one.status for one in done] == [OperationStatus.SUCCEEDED] * 2
    assert sorted(one.result["job_id"] for one in done) == [1, 2]
    assert len(started.provider.created) == 2


async def test_more_than_the_cluster_has_is_a_mismatch(started: Any) -> None:
    await launched(started, ONE)
    bigger = TaskSpec(run="x", num_nodes=3, resources=ResourcesSpec(cpus=Quantity(64)))
    failed = await launched(started, bigger)
    assert failed.error.code == "resources_mismatch"
    assert (
        "num_nodes: 3 asked, the cluster has 1" in failed.error.message and "cpus: 64" in failed.error.message
    )
    assert await started.status("c") == "UP"


# --- failover ---

SOLD_OUT = InsufficientCapacity("sold out", details={"blocks": "zone", "provider_message": "ICE: none left"})


@pytest.mark.parametrize(
    ("errors", "place"),
    [
        ([SOLD_OUT], "eastb"),
        ([SOLD_OUT, SOLD_OUT], "westa"),
        ([QuotaExceeded("vcpu quota")], "westa"),
        ([ProviderError("strange")], "eastb"),
        ([Throttled("slow down")], "easta"),
    ],
)
async def test_a_failed_attempt_leaves_what_its_error_blocks(
    started: Any, errors: list[Exception], place: str
) -> None:
    for error in errors:
        started.provider.fail_next("create", error)
    done = await launched(started, ONE)
    assert done.status is OperationStatus.SUCCEEDED
    assert [instance.zone for instance in started.provider.instances] == [place]
    results = [outcome.result for outcome in started.optimizer.outcomes]
    assert results[-1] == "ok" and len({outcome.id for outcome in started.optimizer.outcomes}) == len(results)


async def test_partial_nodes_are_gone_before_the_next_attempt(started: Any) -> None:
    started.provider.capacity = {("east", "easta", "big"): 1, ("east", "eastb", "big"): 1}
    done = await launched(started, TWO)
    assert done.status is OperationStatus.SUCCEEDED
    assert {instance.zone for instance in started.provider.instances} == {"westa"}
    assert len(started.provider.instances) == 2
    verbs = [verb for verb, _ in started.provider.calls if verb in ("create", "delete")]
    assert verbs.index("delete") < len(verbs) - 1 - verbs[::-1].index("create")


async def test_no_place_left_lists_every_attempt_in_the_providers_words(started: Any) -> None:
    started.provider.capacity = {(one.region, one.zone, "big"): 0 for one in started.provider.offer_list}
    failed = await launched(started, ONE)
    assert failed.error.code == "resources_unavailable"
    attempts = failed.error.details["attempts"]
    assert [attempt["zone"] for attempt in attempts] == ["easta", "eastb", "westa", "westb"]
    assert all(attempt["provider_message"] == "no capacity for big" for attempt in attempts)
    assert "no capacity for big" in failed.error.message
    assert await started.client.clusters() == () and (await started.client.cost_report()).rows == ()


async def test_bad_credentials_leave_the_cloud_and_a_bad_request_stops(started: Any) -> None:
    started.provider.fail_next("create", CredentialsInvalid("key expired"))
    assert (await launched(started, ONE)).error.code == "resources_unavailable"
    started.provider.fail_next("create", ProviderInvalidRequest("no such image"))
    failed = await launched(started, ONE)
    assert failed.error.code == "provider_invalid_request" and failed.error.message == "no such image"
    assert len([verb for verb, _ in started.provider.calls if verb == "create"]) == 2


async def test_nothing_that_fits_says_why(started: Any) -> None:
    failed = await launched(started, TaskSpec(run="x", resources=ResourcesSpec(cloud="nowhere")))
    assert failed.error.code == "resources_unavailable" and "nothing is big enough" in failed.error.message


async def test_retry_until_up_goes_on_until_there_is_room(started: Any) -> None:
    places = {(one.region, one.zone, "big"): 0 for one in started.provider.offer_list}
    started.provider.capacity = dict(places)
    operation = await started.client.launch("c", LaunchRequest(ONE, retry_until_up=True))
    await started.until(lambda: len(started.optimizer.requests) > 6)
    started.provider.capacity = {}
    assert (await started.finished(operation)).status is OperationStatus.SUCCEEDED


async def test_an_agent_that_never_comes_up_is_a_failed_attempt(started: Any) -> None:
    started.limits = replace(started.limits, agent=0.1)
    start = started.agents.start

    async def not_in_the_first(instance: Any, config: Any) -> None:
        if instance.zone != "easta":
            await start(instance, config)

    started.agents.start = not_in_the_first
    assert (await launched(started, ONE)).status is OperationStatus.SUCCEEDED
    assert [instance.zone for instance in started.provider.instances] == ["eastb"]


async def test_an_optimizer_that_is_away_for_a_moment_is_waited_for(started: Any) -> None:
    started.optimizer.away = 2
    assert (await launched(started, ONE)).status is OperationStatus.SUCCEEDED


async def test_a_submit_that_fails_keeps_the_cluster_and_says_so(started: Any) -> None:
    def refuse(job: Any) -> None:
        raise InvalidRequest("the job asks for 8 GPUs, the node has none")

    started.agents.on_submit = refuse
    failed = await launched(started, ONE)
    assert failed.status is OperationStatus.FAILED and "Cluster c is up" in failed.error.hint
    assert await started.status("c") == "UP"


# --- cancel, order, repetition ---


async def test_a_cancel_in_the_middle_of_a_launch_undoes_it_at_once(started: Any) -> None:
    started.provider.start_seconds = 3600
    operation = await started.client.launch("c", LaunchRequest(TWO))
    await started.until(lambda: len(started.provider.instances) == 2)
    answer = await started.client.cancel_operation(operation.id)
    assert answer.cancel_requested
    assert (await started.finished(operation)).status is OperationStatus.CANCELLED
    assert started.provider.instances == [] and await started.client.clusters() == ()


async def test_a_queued_operation_is_cancelled_without_waiting(started: Any) -> None:
    started.provider.start_seconds = 3600
    await started.client.launch("c", LaunchRequest(ONE))
    queued = await started.client.exec("c", ExecRequest(ONE))
    assert (await started.client.cancel_operation(queued.id)).status is OperationStatus.CANCELLED
    assert [event.status for event in await started.events(queued)][-1] is OperationStatus.CANCELLED


async def test_down_ends_a_launch_that_hangs_and_then_itself(started: Any) -> None:
    started.provider.start_seconds = 3600
    launch = await started.client.launch("c", LaunchRequest(TWO))
    await started.until(lambda: started.provider.instances)
    down = await started.client.down("c", StopRequest())
    assert (await started.finished(down)).status is OperationStatus.SUCCEEDED
    assert (await started.client.operation(launch.id)).status is OperationStatus.CANCELLED
    assert started.provider.instances == []


async def test_undo_that_fails_is_repeated_and_a_purge_gives_it_up_to_the_collector(started: Any) -> None:
    started.provider.start_seconds = 3600
    launch = await started.client.launch("c", LaunchRequest(ONE))
    await started.until(lambda: started.provider.instances)
    started.provider.fail_next("delete", ProviderError("the cloud is away"), times=10_000)
    await started.client.cancel_operation(launch.id)
    await started.until(lambda: sum(verb == "delete" for verb, _ in started.provider.calls) >= 2)
    assert (await started.client.operation(launch.id)).status is OperationStatus.RUNNING
    down = await started.client.down("c", StopRequest(purge=True))
    assert (await started.finished(down)).status is OperationStatus.SUCCEEDED
    assert await started.client.clusters() == () and len(started.provider.instances) == 1
    started.provider._failures.clear()
    assert len(await started.provisioner.collector.collect()) == 1
    assert started.provider.instances == []


async def test_the_same_key_is_the_same_operation_and_another_request_a_conflict(started: Any) -> None:
    ask = started.client.launch
    one = await ask("c", LaunchRequest(ONE), user="ann", key="k1")
    assert (await ask("c", LaunchRequest(ONE), user="ann", key="k1")).id == one.id
    assert (await ask("c", LaunchRequest(ONE), user="bob", key="k1")).id != one.id
    with pytest.raises(Conflict, match="Idempotency-Key"):
        await ask("c", LaunchRequest(TWO), user="ann", key="k1")
    with pytest.raises(Conflict):
        await ask("c", LaunchRequest(replace(ONE, secrets={"A": "other"})), user="ann", key="k1")
    await started.finished(one)
    assert (await ask("c", LaunchRequest(ONE), user="ann", key="k1")).id == one.id


async def test_different_clusters_do_not_wait_for_each_other(started: Any) -> None:
    started.provider.start_seconds = 3600
    await started.client.launch("slow", LaunchRequest(ONE))
    await started.until(lambda: started.provider.instances)
    started.provider.start_seconds = 0
    assert (await launched(started, ONE, "quick")).status is OperationStatus.SUCCEEDED


# --- the other verbs ---


async def test_stop_start_down_and_the_ledger(started: Any) -> None:
    await launched(started, TWO)
    assert (
        await started.finished(await started.client.stop("c", StopRequest()))
    ).status is OperationStatus.SUCCEEDED
    assert await started.status("c") == "STOPPED"
    with pytest.raises(ClusterNotUp):
        await started.client.exec("c", ExecRequest(ONE))
    ledger = await started.provisioner.parts.clusters.usage_since(None)
    assert len(ledger) == 1 and ledger[0].to_at is not None and ledger[0].price_per_hour == 3.0
    await started.finished(await started.client.start("c", StartRequest(AutostopSpec(idle_minutes=9))))
    (cluster,) = await started.client.clusters()
    assert cluster.status.value == "UP" and cluster.autostop.idle_minutes == 9
    assert (await started.finished(await started.client.exec("c", ExecRequest(ONE)))).result["job_id"] == 2
    await started.finished(await started.client.down("c", StopRequest()))
    assert await started.client.clusters() == ()
    (row,) = (await started.client.cost_report()).rows
    assert (row.name, row.status, row.num_nodes, row.price_per_hour) == ("c", "TERMINATED", 2, 3.0)


async def test_launch_starts_a_stopped_cluster(started: Any) -> None:
    await launched(started, TWO)
    await started.finished(await started.client.stop("c", StopRequest()))
    done = await launched(started, ONE)
    assert done.status is OperationStatus.SUCCEEDED and len(started.provider.created) == 2


async def test_an_agent_that_ends_at_its_start_is_started_again(rig: Any) -> None:
    rig.limits = Limits(running=5, agent=30, agent_again=0.02, gone=5, stopped=5)
    rig.agents.die_at_start = 3
    await rig.start()
    done = await launched(rig, ONE)
    assert done.status is OperationStatus.SUCCEEDED and len(rig.provider.created) == 1
    assert [verb for verb, _ in rig.provider.calls].count("bootstrap") >= 4


async def test_an_agent_that_never_answers_is_told_of_with_its_last_words(rig: Any) -> None:
    rig.limits = Limits(running=5, agent=0.1, gone=5, stopped=5)
    await rig.start()
    error = AgentUnreachable("fake: its agent is not running", details={"log": "line 1\nno space left"})
    rig.provider.fail_next("channel", error, times=1000)
    done = await launched(rig, ONE)
    assert done.status is OperationStatus.FAILED
    assert "its agent is not running; its log ends: no space left" in done.error.message
    assert rig.provider.instances == []


@pytest.mark.parametrize(("deaths", "status"), [(2, OperationStatus.SUCCEEDED), (3, OperationStatus.FAILED)])
async def test_an_agent_that_ends_before_it_knows_its_peers_is_started_again(
    started: Any, deaths: int, status: OperationStatus
) -> None:
    started.agents.die_when_told = deaths
    done = await launched(started, ONE)
    assert done.status is status and len(started.provider.created) == 1
    if status is OperationStatus.FAILED:
        assert started.provider.instances == [] and await started.status("c") is None


async def test_a_cancelled_start_leaves_it_stopped(started: Any) -> None:
    await launched(started, TWO)
    await started.finished(await started.client.stop("c", StopRequest()))
    started.agents.refuse_start |= set(started.provider.created)
    for agent in started.agents.by_instance.values():
        agent.alive = False
    operation = await started.client.start("c", StartRequest())
    await started.until(lambda: ("bootstrap", started.provider.created[0]) in started.provider.calls[-20:])
    await started.client.cancel_operation(operation.id)
    assert (await started.finished(operation)).status is OperationStatus.CANCELLED
    assert await started.status("c") == "STOPPED"


async def test_down_of_a_cloud_that_is_away_fails_and_can_be_repeated(started: Any) -> None:
    await launched(started, ONE)
    started.provider.fail_next("delete", ProviderError("the cloud is away"))
    failed = await started.finished(await started.client.down("c", StopRequest()))
    assert failed.status is OperationStatus.FAILED and "the cloud is away" in failed.error.message
    (cluster,) = await started.client.clusters()
    assert cluster.unhealthy and "the cloud is away" in cluster.status_message
    await started.finished(await started.client.down("c", StopRequest()))
    assert started.provider.instances == []


async def test_autostop_is_set_and_cancelled(started: Any) -> None:
    await launched(started, ONE, autostop=AutostopSpec(idle_minutes=5, down=True))
    (cluster,) = await started.client.clusters()
    assert cluster.autostop == AutostopSpec(idle_minutes=5, down=True)
    await started.finished(await started.client.autostop("c", AutostopRequest(None)))
    (cluster,) = await started.client.clusters()
    assert cluster.autostop is None


async def test_what_is_not_supported_is_named_before_anything_is_made(started: Any) -> None:
    task = TaskSpec(run="x", resources=ResourcesSpec(image_id="docker:ubuntu", disk_tier="ultra"))
    with pytest.raises(NotSupportedYet) as caught:
        await started.client.launch("c", LaunchRequest(task))
    assert len(caught.value.details["problems"]) == 2
    assert await started.client.operations(all=True) == ()


async def test_exec_refuses_what_the_job_would_miss(started: Any) -> None:
    await launched(started)
    with pytest.raises(NotSupportedYet, match=r"resources\.image_id"):
        await started.client.exec(
            "c", ExecRequest(TaskSpec(run="x", resources=ResourcesSpec(image_id="docker:u")))
        )
    with pytest.raises(NotSupportedYet, match=r"config\.docker"):
        await started.client.exec(
            "c", ExecRequest(TaskSpec(run="x", config={"docker": {"run_options": ["a"]}}))
        )
    assert len(await started.client.operations(all=True)) == 1


async def test_what_a_cluster_ignores_is_said_while_it_launches(started: Any) -> None:
    task = TaskSpec(run="x", event_callback="echo", resources=ResourcesSpec(priority=3))
    operation = await launched(started, task)
    said = [event.message for event in await started.events(operation) if event.level == "warning"]
    assert [sentence.split()[0] for sentence in said] == ["event_callback", "resources.priority"]


async def test_every_port_of_a_range_has_an_endpoint_up_to_a_bound(started: Any) -> None:
    await launched(
        started, TaskSpec(run="x", resources=ResourcesSpec(ports=("80", "8000-8002", "9000-65535")))
    )
    (cluster,) = await started.client.clusters()
    assert cluster.endpoints["8001"] == f"http://{cluster.head_ip}:8001"
    assert len(cluster.endpoints) == 100


async def test_exec_on_a_stopped_cluster_names_its_status(started: Any) -> None:
    await launched(started)
    await started.finished(await started.client.stop("c", StopRequest()))
    with pytest.raises(ClusterNotUp) as caught:
        await started.client.exec("c", ExecRequest(ONE))
    assert caught.value.details["status"] == "STOPPED"


async def test_a_forced_start_of_a_healthy_cluster_says_so_without_an_empty_reason(started: Any) -> None:
    await launched(started)
    operation = await started.finished(await started.client.start("c", StartRequest(force=True)))
    assert "repairing cluster c" in [event.message for event in await started.events(operation)]


@pytest.mark.parametrize("name", ["a;rm -rf ~", "../x", "$(id)", "-x", "a" * 300])
async def test_names_are_checked_before_they_go_anywhere(started: Any, name: str) -> None:
    with pytest.raises(InvalidRequest):
        await started.client.launch(name, LaunchRequest(ONE))
    answer = await started.client.http.post(f"/v1/clusters/{name.replace('/', '%2F')}/down", json={})
    assert answer.status_code in (400, 404)


async def test_unknown_fields_are_refused_also_deep_inside(started: Any) -> None:
    for body in ({"task": {"run": "x"}, "wat": 1}, {"task": {"run": "x", "wat": 1}}):
        answer = await started.client.http.post("/v1/clusters/c/launch", json=body)
        assert answer.status_code == 400 and "wat" in answer.text


async def test_what_does_not_exist_is_said_so(started: Any) -> None:
    for call in (started.client.stop, started.client.down):
        with pytest.raises(ClusterDoesNotExist):
            await call("nope", StopRequest())
    with pytest.raises(ClusterDoesNotExist):
        await started.client.exec("nope", ExecRequest(ONE))
    with pytest.raises(OperationDoesNotExist):
        await started.client.operation("zzz")


async def test_a_call_without_the_service_token_is_refused(started: Any) -> None:
    answer = await started.client.http.get("/v1/clusters", headers={"Authorization": "Bearer wrong"})
    assert answer.status_code == 401


async def test_infra_shows_what_is_usable_and_why_the_rest_is_not(started: Any) -> None:
    shown = {one.name: one for one in (await started.client.infra()).infra}
    assert shown["fake"].enabled and "stop" in shown["fake"].features
    assert not shown["aws"].enabled and "only its prices" in shown["aws"].reason
    (asked,) = (await started.client.infra(["nimbus"])).infra
    assert (asked.name, asked.enabled, asked.reason) == ("nimbus", False, "not known")


async def test_a_plan_is_completed_with_what_providers_offer_now(started: Any) -> None:
    plan = await started.client.plan(PlanRequest(replace(ONE, secrets={"A": "hush"})))
    assert len(plan.candidates) == 4
    assert (
        started.optimizer.requests[-1].enabled is None and started.optimizer.requests[-1].task.secrets == {}
    )


# --- following ---


async def test_a_reader_resumes_where_its_connection_broke(started: Any) -> None:
    operation = await launched(started, ONE)
    every = await started.events(operation)
    rest = [event async for event in started.client.operation_events(operation.id, after=3)]
    assert rest == every[3:]
    again = [event async for event in started.client.operation_events(operation.id, after=every[-1].seq)]
    assert again == []
    answer = await started.client.http.get(
        f"/v1/operations/{operation.id}/events", headers={"Last-Event-ID": str(every[-1].seq - 1)}
    )
    assert answer.text.count("event: progress") == 1


async def test_followers_see_each_event_as_it_happens(started: Any) -> None:
    started.provider.start_seconds = 3600
    operation = await started.client.launch("c", LaunchRequest(ONE))
    seen: list[str] = []

    async def follow() -> None:
        async for event in started.client.operation_events(operation.id):
            seen.append(event.phase)

    follower = asyncio.create_task(follow())
    await started.until(lambda: "provisioning" in seen)
    await started.client.cancel_operation(operation.id)
    await asyncio.wait_for(follower, 5)
    assert seen[-1] == "done"


async def test_an_operation_is_found_by_its_prefix_and_listed_newest_first(started: Any) -> None:
    first = await launched(started, ONE)
    second = await launched(started, ONE)
    listed = await started.client.operations(all=True)
    assert [one.id for one in listed] == [second.id, first.id]
    assert (
        await started.client.operation(first.id[:24] if first.id[:24] != second.id[:24] else first.id)
    ).id == first.id
    assert await started.client.operations() == ()
    text = b"".join([piece async for piece in started.client.provision_logs("c")]).decode()
    assert "submitting" in text and text.count("\n") >= 3
    answer = await started.client.http.get("/v1/clusters/c/provision-logs", params={"tail": 2})
    assert answer.text.splitlines() == text.splitlines()[-2:]
