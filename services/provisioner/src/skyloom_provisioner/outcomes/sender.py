"""Tells the optimizer what waits in the outbox; called when something was added, and now and then.

An outcome may be told twice (by a process that died before it crossed it out, by two replicas at once): the optimizer
records each id once. Nothing here is waited for by a launch.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge

from skyloom_common.clients.optimizer import OptimizerClient
from skyloom_common.contracts.plan import LaunchOutcome
from skyloom_common.core.clock import Clock
from skyloom_common.core.errors import InvalidRequest, SkyloomError, Unavailable
from skyloom_common.reconcile import DONE, Result
from skyloom_provisioner.outcomes.outbox import Outbox

_log = logging.getLogger(__name__)
KEY = "outcomes"
USEFUL_SECONDS = 28 * 86400.0
"""What is older teaches the optimizer nothing any more."""
_BATCH = 100


class OutcomeMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.told = Counter(
            "skyloom_outcomes_told",
            "Outcomes of launches and nodes that were sent to the optimizer, by result",
            ["result"],
            registry=registry,
        )
        self.dropped = Counter(
            "skyloom_outcomes_dropped", "Outcomes that were refused or too old", registry=registry
        )
        self.waiting = Gauge(
            "skyloom_outcomes_waiting", "Outcomes that the optimizer does not know yet", registry=registry
        )


class OutcomeSender:
    def __init__(
        self, outbox: Outbox, optimizer: OptimizerClient, clock: Clock, metrics: OutcomeMetrics
    ) -> None:
        self._outbox = outbox
        self._optimizer = optimizer
        self._clock = clock
        self._metrics = metrics

    async def keys(self) -> set[str]:
        return {KEY}

    async def reconcile(self, key: str) -> Result:
        """Until nothing waits. Raises what kept the optimizer from hearing it, so that the runner backs off."""
        while batch := await self._outbox.waiting(_BATCH):
            self._metrics.waiting.set(await self._outbox.count())
            if not await self._drop_old(batch):
                await self._tell_all(batch)
        self._metrics.waiting.set(0)
        return DONE

    async def _tell_all(self, batch: Sequence[LaunchOutcome]) -> None:
        done: list[str] = []
        failure: SkyloomError | None = None
        try:
            for outcome in batch:
                try:
                    await self._tell(outcome)
                    done.append(outcome.id)
                except Unavailable:
                    raise
                except SkyloomError as error:  # this one; the others need not wait for it
                    failure = failure or error
        finally:
            if done:
                await self._outbox.told(done)
        if failure is not None:
            raise failure

    async def _tell(self, outcome: LaunchOutcome) -> None:
        try:
            await self._optimizer.record_outcome(outcome)
            self._metrics.told.labels(outcome.result).inc()
        except InvalidRequest as error:
            self._metrics.dropped.inc()
            _log.warning("the optimizer refuses outcome %s: %s", outcome.id, error)

    async def _drop_old(self, batch: Sequence[LaunchOutcome]) -> bool:
        edge = self._clock.now() - USEFUL_SECONDS
        if batch[0].at >= edge:
            return False
        dropped = await self._outbox.drop_before(edge)
        self._metrics.dropped.inc(dropped)
        _log.warning("%d outcomes were too old to be told", dropped)
        return True
