"""Turns a task as written into what can be planned: alternatives merged, command-line overrides applied. Decides nothing."""

from __future__ import annotations

import dataclasses
from typing import Any

from skyloom_common.contracts.task import places
from skyloom_common.contracts.task.model import ResourcesSpec
from skyloom_common.contracts.task.overrides import apply_overrides

__all__ = ["alternatives", "apply_overrides", "split_accelerators"]

ANY_PLACE = places.ANY
"""In an entry of any_of/ordered: this part of the place is free again, whatever the base says."""


def alternatives(resources: ResourcesSpec) -> tuple[tuple[ResourcesSpec, ...], bool]:
    """Complete sets of requirements, and whether their order is a preference (True) or the cheapest wins (False).

    Without any_of and ordered there is one. No result has any_of or ordered; `accelerators` stays as it is.
    """
    base = dataclasses.replace(resources, any_of=(), ordered=())
    entries = resources.ordered or resources.any_of
    if not entries:
        return (_without_wildcards(base),), False
    return tuple(_merged(base, entry) for entry in entries), bool(resources.ordered)


def split_accelerators(resources: ResourcesSpec) -> tuple[ResourcesSpec, ...]:
    """One set of requirements for each accelerator alternative, in the order given."""
    if len(resources.accelerators) <= 1:
        return (resources,)
    return tuple(
        dataclasses.replace(resources, accelerators=(accelerator,), accelerators_ordered=False)
        for accelerator in resources.accelerators
    )


def _merged(base: ResourcesSpec, entry: ResourcesSpec) -> ResourcesSpec:
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(ResourcesSpec):
        value = getattr(entry, field.name)
        if not _is_given(value) or field.name in ("any_of", "ordered", "accelerators_ordered"):
            continue
        changes[field.name] = value
    for name in ("labels", "internal"):
        if name in changes:
            changes[name] = {**getattr(base, name), **changes[name]}
    if "accelerators" in changes:
        changes["accelerators_ordered"] = entry.accelerators_ordered
    if "infra" in changes:
        changes |= dict.fromkeys(places.PARTS)
    elif "cloud" in changes:
        changes["infra"] = ()
    elif base.infra and {"region", "zone"} & changes.keys():
        changes |= places.changed(base.infra, changes.get("region"), changes.get("zone"))
        return dataclasses.replace(base, **changes)
    if "cloud" in changes and changes["cloud"] != base.cloud:
        # A region of another cloud means nothing here.
        changes.setdefault("region", None)
        changes.setdefault("zone", None)
    elif "region" in changes and changes["region"] != base.region:
        changes.setdefault("zone", None)
    return _without_wildcards(dataclasses.replace(base, **changes))


def _is_given(value: Any) -> bool:
    return value is not None and value != () and value != {}


def _without_wildcards(resources: ResourcesSpec) -> ResourcesSpec:
    free: dict[str, Any] = {
        name: None for name in ("cloud", "region", "zone") if getattr(resources, name) == ANY_PLACE
    }
    return dataclasses.replace(resources, **free) if free else resources
