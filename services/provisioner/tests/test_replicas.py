"""Several replicas of the provisioner on one database; and a bus that goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from skyloom_common.contracts.clusters import ExecRequest, LaunchRequest, StopRequest
from skyloom_common.contracts.operations import OperationStatus
from skyloom_common.contracts.task.model import TaskSpec
from skyloom_common.store.lease import LeaseLost

pytestmark = pytest.mark.integration  # many starts of a whole service; no process of its own
ONE = TaskSpec(run="echo hi")


@pytest.fixture
async def pair(rig: Any, any_database_url: str, tmp_path: Path) -> AsyncIterator[tuple[Any, Any]]:
    rig.database_url = any_database_url
    rig.settings = {"lease_seconds": 1.0, "deployment_secret": "one-secret-for-both-replicas"}
    other = replace(rig, home=tmp_path / "other")
    other.provider, other.crashed = rig.provider, asyncio.Event()
    other._number = 100
    await rig.start()
    await other.start()
    yield rig, other
    if not other.crashed.is_set():
        await other.stop()


async def test_two_replicas_share_the_work_and_nothing_is_done_twice(pair: tuple[Any, Any]) -> None:
    names = [f"c{number}" for number in range(6)]
    asked = [(pair[index % 2], name) for index, name in enumerate(names)]
    operations = await asyncio.gather(*(rig.client.launch(name, LaunchRequest(ONE)) for rig, name in asked))
    for (rig, _), operation in zip(reversed(asked), operations, strict=True):
        assert (await rig.finished(operation)).status is OperationStatus.SUCCEEDED
    assert len(pair[0].provider.created) == 6
    for rig in pair:
        assert len(await rig.client.clusters()) == 6
    asked = [(pair[1 - index % 2], name) for index, name in enumerate(names[:2])]
    again = await asyncio.gather(*(rig.client.exec(name, ExecRequest(ONE)) for rig, name in asked))
    done = [await rig.finished(operation) for (rig, _), operation in zip(asked, again, strict=True)]
    assert {operation.result["job_id"] for operation in done} == {2}


async def test_a_cancel_by_the_other_replica_arrives(pair: tuple[Any, Any]) -> None:
    one, two = pair
    one.provider.start_seconds = 3600
    operation = await one.client.launch("c", LaunchRequest(ONE))
    await one.until(lambda: one.provider.instances)
    await two.client.cancel_operation(operation.id)
    assert (await two.finished(operation)).status is OperationStatus.CANCELLED
    assert one.provider.instances == []


async def test_a_replica_takes_over_from_a_dead_one(pair: tuple[Any, Any]) -> None:
    one, two = pair
    one.provider.start_seconds = 1.0
    operation = await one.client.launch("c", LaunchRequest(ONE))
    await one.until(lambda: one.provider.instances)
    one.crashed.set()
    await _die_silently(one)
    assert (await two.finished(operation, seconds=20)).status is OperationStatus.SUCCEEDED
    assert len(one.provider.created) == 1
    await two.finished(await two.client.down("c", StopRequest()))


async def _die_silently(rig: Any) -> None:
    """Its row and its leases stay, only its beats end."""
    provisioner = rig.provisioner
    provisioner.keeper._task.cancel()
    provisioner._look.cancel()
    for part in (provisioner.runner, provisioner.executor, provisioner.collector, provisioner.watches):
        await part.stop()
    await provisioner.outcomes.stop()
    await provisioner.database.close()


async def test_a_former_holder_cannot_write_any_more(pair: tuple[Any, Any]) -> None:
    one, two = pair
    await one.finished(await one.client.launch("c", LaunchRequest(ONE)))
    holder, waiter = (one, two) if "c" in one.provisioner.keeper._held else (two, one)
    old = await holder.provisioner.keeper.acquire("c")
    holder.provisioner.keeper._task.cancel()
    await holder.provisioner.runner.stop()

    async def taken() -> Any:
        return await waiter.provisioner.keeper.acquire("c")

    await waiter.until(taken)
    state = await holder.provisioner.parts.clusters.get("c")
    with pytest.raises(LeaseLost):
        await holder.provisioner.parts.clusters.change(old, state.cluster, last_event="late")


class _AwayBus:
    """As `Bus` behaves while Redis is away: nothing is published, nothing is heard, nothing raises."""

    def __init__(self) -> None:
        self.tried = 0

    async def emit(self, kind: str, key: str, **more: Any) -> bool:
        self.tried += 1
        return False

    async def listen(self, kinds: Any) -> AsyncIterator[Any]:
        await asyncio.sleep(3600)
        yield None

    async def ping(self) -> None: ...


async def test_without_redis_everything_still_happens(rig: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import skyloom_provisioner.main as main

    bus = _AwayBus()
    create: Callable[..., Any] = main.create_app
    monkeypatch.setitem(
        type(rig).start.__globals__, "create_app", lambda *args, **more: create(*args, bus=bus, **more)
    )
    await rig.start()
    done = await rig.finished(await rig.client.launch("c", LaunchRequest(ONE)))
    assert done.status is OperationStatus.SUCCEEDED and bus.tried > 0
