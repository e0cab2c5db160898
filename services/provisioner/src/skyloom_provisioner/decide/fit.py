"""Does an existing cluster satisfy a request? Same or smaller fits; anything else is named."""

from __future__ import annotations

from dataclasses import replace

from skyloom_common.contracts.plan import Offer
from skyloom_common.contracts.task.expand import alternatives
from skyloom_common.contracts.task.model import AcceleratorSpec, Quantity, ResourcesSpec
from skyloom_common.contracts.task.places import PARTS, Place, place_text, places_of, same_name


def misfits(resources: ResourcesSpec, num_nodes: int, offer: Offer, has_nodes: int) -> list[str]:
    """Empty = it fits. Otherwise one short phrase per thing that the cluster lacks."""
    problems = []
    if num_nodes > has_nodes:
        problems.append(f"num_nodes: {num_nodes} asked, the cluster has {has_nodes}")
    per_choice = [_lacks(choice, offer) for choice in alternatives(resources)[0]]
    if not any(not lacks for lacks in per_choice):
        problems.extend(sorted(per_choice, key=_number_of)[0])
    return problems


def _number_of(lacks: list[str]) -> int:
    return len(lacks)


def _lacks(wanted: ResourcesSpec, offer: Offer) -> list[str]:
    problems: list[str] = []
    problems += _elsewhere(wanted, offer)
    has_type = offer.instance_type
    if wanted.instance_type and wanted.instance_type.lower() != has_type.lower():
        problems.append(
            f"instance_type: {wanted.instance_type} asked, the cluster is in {has_type or 'none'}"
        )
    problems += _smaller("cpus", wanted.cpus, offer.vcpus)
    memory = wanted.memory
    if memory is not None and memory.per_cpu:
        memory = replace(memory, value=memory.value * (offer.vcpus or 0), per_cpu=False)
    problems += _smaller("memory", memory, offer.memory_gib)
    if wanted.use_spot is not None and wanted.use_spot != offer.use_spot:
        problems.append(f"use_spot: {wanted.use_spot} asked, the cluster has {offer.use_spot}")
    if wanted.accelerators and not any(_has(accelerator, offer) for accelerator in wanted.accelerators):
        asked_names = ", ".join(_shown(accelerator) for accelerator in wanted.accelerators)
        own = f"{offer.accelerator}:{offer.accelerator_count:g}" if offer.accelerator else "none"
        problems.append(f"accelerators: {asked_names} asked, the cluster has {own}")
    return problems


def _elsewhere(wanted: ResourcesSpec, offer: Offer) -> list[str]:
    """The part of the place that is wrong, or the whole list where several places would do."""
    named = places_of(wanted)
    if any(not _wrong_parts(place, offer) for place in named):
        return []
    if len(named) > 1:
        here = place_text((offer.cloud, offer.region, offer.zone))
        return [f"infra: {' or '.join(map(place_text, named))} asked, the cluster is in {here}"]
    return [
        f"{name}: {getattr(named[0], name)} asked, the cluster is in {getattr(offer, name) or 'none'}"
        for name in _wrong_parts(named[0], offer)
    ]


def _wrong_parts(place: Place, offer: Offer) -> list[str]:
    pairs = ((name, getattr(place, name), getattr(offer, name)) for name in PARTS)
    return [name for name, asked, has in pairs if asked is not None and not same_name(asked, has)]


def _smaller(name: str, wanted: Quantity | None, has: float | None) -> list[str]:
    if wanted is None or has is None or wanted.value <= has:
        return []
    return [f"{name}: {wanted.value:g} asked, the cluster has {has:g}"]


def _has(wanted: AcceleratorSpec, offer: Offer) -> bool:
    if not offer.accelerator or wanted.count > offer.accelerator_count:
        return False
    if wanted.name is not None:
        return wanted.name.lower() == offer.accelerator.lower()
    return (offer.accelerator_memory_gib or 0) >= (wanted.memory_gib or 0)


def _shown(accelerator: AcceleratorSpec) -> str:
    return f"{accelerator.name or f'{accelerator.memory_gib:g}GB'}:{accelerator.count:g}"
