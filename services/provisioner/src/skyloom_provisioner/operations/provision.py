"""Walks the candidates of the plan until one gives every node with its agent.

What was tried is kept in the operation's row together with the node rows, so that a new process goes on with the same
attempt. The nodes of a failed attempt are gone before the next one begins.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

from skyloom_common.contracts.plan import Candidate, Offer, Plan, PlanRequest
from skyloom_common.core.errors import (
    AgentUnreachable,
    ProviderError,
    ResourcesUnavailable,
    SkyloomError,
    Throttled,
    Unavailable,
)
from skyloom_common.reconcile import Backoff
from skyloom_provisioner.clusters.rows import ClusterState, NodeRow
from skyloom_provisioner.clusters.store import new_node
from skyloom_provisioner.clusters.text import counted, offer_text, resources_text
from skyloom_provisioner.decide.failover import describe_attempt, is_blocked, judge, summarize
from skyloom_provisioner.decide.outcomes import failed
from skyloom_provisioner.operations.context import OperationContext
from skyloom_provisioner.operations.planning import full_request
from skyloom_provisioner.polling import all_or_first_error
from skyloom_provisioner.providers.base import shares_machine

PLACE_FAULTS = (ProviderError, AgentUnreachable)


class Provisioning:
    def __init__(self, context: OperationContext) -> None:
        self._context = context
        self._parts = context.parts
        scratch = context.row.scratch or {}
        self._attempts: list[dict[str, Any]] = scratch.get("attempts", [])
        self._blocked: list[dict[str, Any]] = scratch.get("blocked", [])
        self._throttled = 0
        self._began: float | None = None

    async def walk_candidates(self) -> float | None:
        """Returns with every node rented and its agent answering: how long the attempt took, unless another process began it.
        Raises ResourcesUnavailable and what stops a launch."""
        while True:
            state = await self._context.cluster()
            await self._parts.lifecycle.remove(self._context.lease, state.leaving)
            if not state.nodes:
                candidate = await self._next_candidate()
                if candidate is None:
                    continue
                await self._begin(state, candidate.offer)
                state = await self._context.cluster()
            if await self._attempt(state):
                return None if self._began is None else self._parts.clock.monotonic() - self._began

    async def fill_missing_ranks(self) -> bool:
        """For a repair: the cluster's own offer and nowhere else. True when any was missing."""
        state = await self._context.cluster()
        assert state.cluster.offer is not None
        ranks = set(range(state.cluster.num_nodes)) - {node.rank for node in state.nodes}
        if ranks:
            await self._parts.clusters.change_in_one(
                self._context.lease,
                state.cluster,
                {},
                new_nodes=self._intents(state, state.cluster.offer, sorted(ranks)),
            )
            state = await self._context.cluster()
        created = any(node.created_by == self._context.row.id for node in state.nodes)
        async with failure_reported(self._context, state.cluster.offer):
            await self._bring_up(state, state.nodes)
        return created

    async def _next_candidate(self) -> Candidate | None:
        """None after a pause that `retry_until_up` asked for."""
        await self._context.say("planning", "choosing where to launch")
        plan = await self._plan()
        for candidate in plan.candidates:
            if not is_blocked(candidate.offer, tuple(self._blocked)):
                return candidate
        reasons = [f"{rejection.cloud}: {rejection.reason}" for rejection in plan.rejected]
        sentence = summarize(self._attempts, reasons)
        if not self._context.request.get("retry_until_up"):
            raise ResourcesUnavailable(
                sentence,
                hint="; ".join(plan.hints) or "Run with --retry-until-up to keep trying.",
                details={"attempts": self._attempts, "rejected": reasons[:50]},
            )
        pause = self._parts.retry_seconds
        await self._context.say("planning", f"{sentence}; again in {pause:.0f} s", level="warning")
        await self._parts.clock.sleep(pause)
        self._blocked = []
        await self._save()
        return None

    async def _plan(self) -> Plan:
        request = PlanRequest(task=self._context.task_in_clear(), blocked=tuple(self._blocked))
        request = await full_request(self._parts.providers, request, only_enabled=True)
        failures = 0
        while True:
            try:
                return await self._parts.optimizer.plan(request)
            except Unavailable as error:
                failures += 1
                if failures > 8:
                    raise
                await self._context.say("planning", f"{error.message}; trying again", level="warning")
                await self._parts.clock.sleep(Backoff(0.2, 10).pause(failures))

    async def _begin(self, state: ClusterState, offer: Offer) -> None:
        """Intent: rows, the ledger and the attempt are written before anything is asked of the provider."""
        self._began = self._parts.clock.monotonic()
        count = state.cluster.num_nodes
        text = resources_text(offer, count)

        async def also(connection: Any) -> None:
            await self._parts.clusters.open_usage_in(connection, state.cluster, offer, count, text)
            await self._parts.operations.save_in(
                connection, self._context.lease, self._context.row.id, scratch=self._scratch()
            )

        await self._parts.clusters.change_in_one(
            self._context.lease,
            state.cluster,
            {"offer": offer},
            new_nodes=self._intents(state, offer, range(count)),
            also=also,
        )
        self._context.checkpoint("intent_rows")
        number = len(self._attempts) + 1
        await self._context.say(
            "provisioning",
            f"launching {counted(count, 'node')} on {offer_text(offer)}",
            data={"attempt": number, "offer": offer, "num_nodes": count},
        )
        disk = state.cluster.resources and state.cluster.resources.disk_size
        if disk and shares_machine(self._parts.providers.get(offer.cloud)):
            sentence = f"resources.disk_size ({disk.value:g}) is ignored: {offer.cloud} nodes use this machine's disk"
            await self._context.say("provisioning", sentence, level="warning")

    def _intents(self, state: ClusterState, offer: Offer, ranks: Sequence[int]) -> list[dict[str, Any]]:
        now = self._parts.clock.now()
        return [new_node(state.cluster.id, rank, offer, self._context.row.id, now) for rank in ranks]

    async def _attempt(self, state: ClusterState) -> bool:
        """False when this place is given up; its nodes are gone then."""
        offer = state.nodes[0].offer
        try:
            await self._bring_up(state, state.nodes)
        except Throttled as error:
            self._throttled += 1
            pause = Backoff(1.0, 60.0).pause(self._throttled)
            await self._context.say(
                "provisioning", f"{error.message}; waiting {pause:.0f} s", level="warning"
            )
            await self._parts.clock.sleep(pause)
            return False
        except PLACE_FAULTS as error:
            await self._give_up(state, offer, error)
            return False
        return True

    async def _bring_up(self, state: ClusterState, nodes: Sequence[NodeRow]) -> None:
        lifecycle, lease = self._parts.lifecycle, self._context.lease
        rented = await all_or_first_error([lifecycle.rent(lease, state.cluster, node) for node in nodes])
        self._context.checkpoint("instances_running")
        await self._context.say(
            "starting_agents", f"{len(rented)} of {len(nodes)} instances run; starting the agents"
        )
        await all_or_first_error([lifecycle.start_agent(node) for node in rented])
        self._context.checkpoint("agents_up")

    async def _give_up(self, state: ClusterState, offer: Offer, error: SkyloomError) -> None:
        """What was tried, that its nodes go, and what others learn of it are one write: it happens once."""
        verdict = judge(error, offer)
        await self._context.say(
            "provisioning",
            f"{offer_text(offer)}: {error.message}; {verdict.sentence}",
            level="warning",
            data={"error": error.to_wire(), "offer": offer},
        )
        self._attempts.append(describe_attempt(error, offer, self._parts.clock.now()))
        if verdict.blocked is not None:
            self._blocked.append(verdict.blocked)
        outcome = failed(self._context.row.id, len(self._attempts), offer, error, self._parts.clock.now())

        async def also(connection: Any) -> None:
            await self._parts.operations.save_in(
                connection, self._context.lease, self._context.row.id, scratch=self._scratch()
            )

        await self._parts.clusters.change_nodes(
            self._context.lease,
            [node.id for node in state.nodes],
            outcomes=[outcome] if outcome else [],
            also=also,
            unwanted=True,
        )
        self._context.checkpoint("attempt_failed")
        state = await self._context.cluster()
        await self._parts.lifecycle.remove(self._context.lease, [*state.nodes, *state.leaving])
        if verdict.stop:
            raise error

    def _scratch(self) -> dict[str, Any]:
        return {"attempts": self._attempts, "blocked": self._blocked}

    async def _save(self) -> None:
        await self._parts.operations.save(self._context.lease, self._context.row.id, scratch=self._scratch())


@contextlib.asynccontextmanager
async def failure_reported(context: OperationContext, offer: Offer | None) -> AsyncIterator[None]:
    """Around machines that come up in the one place that they can: what fails there is an outcome of this place too."""
    try:
        yield
    except PLACE_FAULTS as error:
        outcome = failed(context.row.id, 1, offer, error, context.parts.clock.now()) if offer else None
        if outcome is not None:
            await context.parts.clusters.report(context.lease, [outcome])
        raise
