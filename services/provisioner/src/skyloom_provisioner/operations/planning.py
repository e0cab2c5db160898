"""Completes a plan request with what only the provisioner knows: enabled providers and what they offer right now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from skyloom_common.contracts.dag import DagPlanRequest
from skyloom_common.contracts.plan import Offer, PlanRequest
from skyloom_common.contracts.task.model import ResourcesSpec
from skyloom_provisioner.polling import all_or_first_error
from skyloom_provisioner.providers.base import OfferQuery, Provider
from skyloom_provisioner.providers.registry import Providers


async def full_request(
    providers: Providers, request: PlanRequest, *, only_enabled: bool = False
) -> PlanRequest:
    """A client's `enabled` is kept as given (None = show every cloud of the catalog); a launch takes what is usable."""
    usable = await _usable(providers)
    extra = await _live(usable, request.task.resources)
    enabled = request.enabled
    if only_enabled:
        enabled = tuple(provider.name for provider in usable)
    task = replace(request.task, secrets={})
    return replace(request, task=task, enabled=enabled, extra_offers=(*request.extra_offers, *extra))


async def full_dag_request(providers: Providers, request: DagPlanRequest) -> DagPlanRequest:
    """The same for a graph of tasks: what is there for any of them."""
    usable = await _usable(providers)
    live = await all_or_first_error([_live(usable, item.task.resources) for item in request.tasks])
    extra = dict.fromkeys(offer for offers in live for offer in offers)
    tasks = tuple(replace(item, task=replace(item.task, secrets={})) for item in request.tasks)
    return replace(request, tasks=tasks, extra_offers=(*request.extra_offers, *extra))


async def _usable(providers: Providers) -> list[Provider]:
    checks = await all_or_first_error([provider.check() for provider in providers])
    return [provider for provider, check in zip(providers, checks, strict=True) if check.enabled]


async def _live(usable: Sequence[Provider], resources: ResourcesSpec) -> tuple[Offer, ...]:
    query = OfferQuery(resources)
    live = await all_or_first_error([_offers(provider, query) for provider in usable])
    return tuple(offer for offers in live for offer in offers)


async def _offers(provider: Provider, query: OfferQuery) -> tuple[Offer, ...]:
    return () if provider.has_price_list else tuple(await provider.offers(query))
