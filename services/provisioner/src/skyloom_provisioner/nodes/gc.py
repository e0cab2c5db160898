"""The garbage collector: whatever carries our tag at a provider and has no row is removed.

Rows are written before anything is created and go only after absence was confirmed, so an instance without one is a leftover.
"""

from __future__ import annotations

import asyncio
import logging

from skyloom_common.core.clock import Clock
from skyloom_common.core.errors import InstanceNotFound, SkyloomError
from skyloom_provisioner.clusters.store import ClusterStore
from skyloom_provisioner.deployment import Deployment
from skyloom_provisioner.polling import finish_even_if_cancelled
from skyloom_provisioner.providers.base import NODE_TAG, Instance, Provider
from skyloom_provisioner.providers.registry import Providers

_log = logging.getLogger(__name__)


class GarbageCollector:
    def __init__(
        self,
        providers: Providers,
        clusters: ClusterStore,
        deployment: Deployment,
        clock: Clock,
        *,
        every: float,
    ) -> None:
        self._providers = providers
        self._clusters = clusters
        self._deployment = deployment
        self._clock = clock
        self._every = every
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="garbage-collector")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def collect(self) -> list[str]:
        """One round; the ids of what was removed."""
        removed: list[str] = []
        for provider in self._providers:
            try:
                removed += await self._collect(provider)
            except SkyloomError as error:
                _log.warning("garbage collection at %s: %s", provider.name, error)
        return removed

    async def _collect(self, provider: Provider) -> list[str]:
        listed = await provider.list(self._deployment.id)
        rows = (
            await self._clusters.node_ids()
        )  # after the listing: what has no row now had none while it was made
        orphans = [instance for instance in listed if instance.tags.get(NODE_TAG) not in rows]
        return [instance.id for instance in orphans if await self._delete(provider, instance)]

    async def _delete(self, provider: Provider, instance: Instance) -> bool:
        _log.warning("%s instance %s has no owner any more and is removed", provider.name, instance.id)
        try:
            await finish_even_if_cancelled(provider.delete(instance.id))
        except InstanceNotFound:
            return True
        except SkyloomError as error:
            _log.warning("%s instance %s: %s", provider.name, instance.id, error)
            return False
        return True

    async def _run(self) -> None:
        while True:
            try:
                await self.collect()
            except SkyloomError as error:
                _log.warning("garbage collection: %s", error)
            await self._clock.sleep(self._every)
