"""The contract of providers/base.py, on every provider."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from skyloom_common.contracts.agent import AgentConfig
from skyloom_common.contracts.task.model import Quantity, ResourcesSpec
from skyloom_common.core.errors import AgentUnreachable, InstanceNotFound, ProviderError
from skyloom_provisioner.providers.base import (
    CLUSTER_TAG,
    DEPLOYMENT_TAG,
    NODE_TAG,
    Instance,
    InstanceRequest,
    InstanceStatus,
    OfferQuery,
    Provider,
    SupportsStop,
    features,
)

CONFIG = AgentConfig(node_id="n1", token="t" * 32, home="", heartbeat_seconds=1)


async def rent(provider: Provider, token: str = "token-1", rank: int = 0, deployment: str = "d1") -> Instance:
    offer = (await provider.offers(OfferQuery()))[0]
    tags = {DEPLOYMENT_TAG: deployment, CLUSTER_TAG: "c1", NODE_TAG: token}
    return await provider.create(InstanceRequest(token=token, name=f"demo-{rank}", offer=offer, tags=tags))


async def until(look: Callable[[], Awaitable[Any]], seconds: float = 20) -> Any:
    async with asyncio.timeout(seconds):
        while not (found := await look()):
            await asyncio.sleep(0.01)
        return found


async def until_gone(provider: Provider, id: str) -> None:
    async def gone() -> bool:
        try:
            await provider.delete(id)
        except InstanceNotFound:
            return True
        return False

    await until(gone)


async def until_status(provider: Provider, id: str, status: InstanceStatus) -> None:
    async def there() -> bool:
        return (await provider.get(id)).status is status

    await until(there)


async def test_it_is_a_provider_and_says_what_it_can(subject: Any) -> None:
    assert isinstance(subject.provider, Provider)
    assert (await subject.provider.check()).enabled
    assert ("stop" in features(subject.provider)) == isinstance(subject.provider, SupportsStop)


async def test_offers_carry_its_name(subject: Any) -> None:
    query = OfferQuery(ResourcesSpec(cpus=Quantity(1), memory=Quantity(1)))
    offers = await subject.provider.offers(query)
    assert offers and {offer.cloud for offer in offers} == {subject.provider.name}
    assert any(offer.vcpus == 1 and offer.memory_gib == 1 for offer in offers)


async def test_create_gives_a_running_tagged_addressed_instance(subject: Any) -> None:
    instance = await rent(subject.provider)
    await until_status(subject.provider, instance.id, InstanceStatus.RUNNING)
    now = await subject.provider.get(instance.id)
    assert now.tags[NODE_TAG] == "token-1" and now.tags[DEPLOYMENT_TAG] == "d1" and now.address


async def test_the_same_token_is_the_same_instance_also_for_another_process_and_at_once(subject: Any) -> None:
    first, second = await asyncio.gather(rent(subject.provider), rent(subject.provider))
    third = await rent(subject.again())
    assert first.id == second.id == third.id
    assert len(await subject.provider.list("d1")) == 1


async def test_instances_have_addresses_of_their_own(subject: Any) -> None:
    rented = await asyncio.gather(*(rent(subject.provider, f"t{rank}", rank) for rank in range(4)))
    assert len({instance.address for instance in rented}) == 4
    assert len({instance.id for instance in rented}) == 4


async def test_the_list_shows_our_deployment_and_no_other(subject: Any) -> None:
    mine = await rent(subject.provider, "a")
    await rent(subject.provider, "b", deployment="d2")
    listed = await subject.again().list("d1")
    assert [instance.id for instance in listed] == [mine.id] and dict(listed[0].tags)[NODE_TAG] == "a"


async def test_delete_is_repeated_until_the_instance_is_truly_gone(subject: Any) -> None:
    instance = await rent(subject.provider)
    await until_gone(subject.provider, instance.id)
    for call in (subject.provider.get, subject.provider.delete):
        with pytest.raises(InstanceNotFound):
            await call(instance.id)
    assert await subject.provider.list("d1") == []
    if subject.root is not None:
        assert [path.name for path in subject.root.iterdir()] == [".lock"]


@pytest.mark.parametrize("id", ["nothing", "../etc", "a/b", ""])
async def test_ids_that_are_none_of_its_are_refused(subject: Any, id: str) -> None:
    for verb in ("get", "delete", "stop", "start"):
        with pytest.raises(ProviderError):
            await getattr(subject.provider, verb)(id)


async def test_the_agent_comes_up_once_and_comes_back(subject: Any) -> None:
    instance = await rent(subject.provider)
    await until_status(subject.provider, instance.id, InstanceStatus.RUNNING)
    with pytest.raises(AgentUnreachable):
        await subject.provider.channel(instance)
    await subject.provider.bootstrap(instance, CONFIG)
    url = await until(lambda: _channel(subject.provider, instance))
    assert url.startswith("http://")
    await asyncio.gather(*(subject.again().bootstrap(instance, CONFIG) for _ in range(2)))
    assert await _channel(subject.again(), instance) == url


async def _channel(provider: Provider, instance: Instance) -> str | None:
    try:
        return await provider.channel(instance)
    except AgentUnreachable:
        return None


async def test_stop_ends_the_agent_and_start_brings_the_disk_back(subject: Any) -> None:
    provider = subject.provider
    if not isinstance(provider, SupportsStop):
        pytest.skip(f"{provider.name} cannot stop")
    instance = await rent(provider)
    await until_status(provider, instance.id, InstanceStatus.RUNNING)
    await provider.bootstrap(instance, CONFIG)
    await until(lambda: _channel(provider, instance))
    if subject.root is not None:
        (subject.root / instance.id / "home" / "kept.txt").write_text("kept")
    for _ in range(2):
        await provider.stop(instance.id)
    await until_status(provider, instance.id, InstanceStatus.STOPPED)
    assert await _channel(provider, instance) is None
    for _ in range(2):
        await provider.start(instance.id)
    await until_status(provider, instance.id, InstanceStatus.RUNNING)
    await provider.bootstrap(instance, CONFIG)
    await until(lambda: _channel(provider, instance))
    if subject.root is not None:
        assert (subject.root / instance.id / "home" / "kept.txt").read_text() == "kept"
