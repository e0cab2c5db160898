"""Completes a plan request with what only the provisioner knows: enabled providers and what they offer right now."""

from __future__ import annotations

from dataclasses import replace

from skyloom_common.contracts.plan import Offer, PlanRequest
from skyloom_provisioner.polling import all_or_first_error
from skyloom_provisioner.providers.base import OfferQuery, Provider
from skyloom_provisioner.providers.registry import Providers


async def full_request(
    providers: Providers, request: PlanRequest, *, only_enabled: bool = False
) -> PlanRequest:
    """A client's `enabled` is kept as given (None = show every cloud of the catalog); a launch takes what is usable."""
    checks = await all_or_first_error([provider.check() for provider in providers])
    usable = [provider for provider, check in zip(providers, checks, strict=True) if check.enabled]
    query = OfferQuery(request.task.resources)
    live = await all_or_first_error([_offers(provider, query) for provider in usable])
    extra = tuple(offer for offers in live for offer in offers)
    enabled = request.enabled
    if only_enabled:
        enabled = tuple(provider.name for provider in usable)
    task = replace(request.task, secrets={})
    return replace(request, task=task, enabled=enabled, extra_offers=(*request.extra_offers, *extra))


async def _offers(provider: Provider, query: OfferQuery) -> tuple[Offer, ...]:
    return () if provider.has_price_list else tuple(await provider.offers(query))
