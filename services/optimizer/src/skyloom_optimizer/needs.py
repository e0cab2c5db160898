"""From a task's resources to a flat list of needs: one set of requirements, one accelerator choice each.

Pure. Refuses names that no offer bears; says nothing about what is available.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from skyloom_common.contracts.task.expand import alternatives
from skyloom_common.contracts.task.model import AcceleratorSpec, Quantity, ResourcesSpec
from skyloom_common.contracts.task.placement import CLOUDS, OURS, PRICED
from skyloom_common.contracts.task.places import PARTS, place_text, places_of, same_name
from skyloom_common.core.errors import InvalidRequest
from skyloom_common.core.text import few, nearest_few
from skyloom_optimizer.names import COMMON, number_text
from skyloom_optimizer.snapshot import NO_ACCELERATOR, OfferSnapshot

DEFAULT_CPUS = Quantity(8, at_least=True)
DEFAULT_MEMORY = Quantity(4, at_least=True, per_cpu=True)
TPU_MACHINE = "tpu-vm"
MOST_NEEDS = 200
_SHOWN_NAMES = 12


@dataclass(frozen=True)
class Need:
    """`alternative`: index into the task's alternatives.

    `turn`: needs of an earlier turn are tried first, however dear.
    """

    alternative: int
    turn: int
    spec: ResourcesSpec
    accelerator: AcceleratorSpec | None = None
    listed: ResourcesSpec | None = None
    """The requirements with the whole list of places of which `spec` names one."""

    @property
    def whole(self) -> ResourcesSpec:
        return self.listed or self.spec

    @property
    def use_spot(self) -> bool:
        return bool(self.spec.use_spot)

    @property
    def sized(self) -> bool:
        spec = self.spec
        return self.accelerator is not None or any((spec.cpus, spec.memory, spec.instance_type))

    @property
    def instance_type(self) -> str | None:
        """The machine type asked for; the TPU placeholder type names no machine."""
        name = self.spec.instance_type
        return None if name is None or name.lower() == TPU_MACHINE else name


def needs_of(resources: ResourcesSpec, worlds: Sequence[OfferSnapshot] = ()) -> list[Need]:
    """Every alternative, split by place and accelerator choice, with its turn.

    A place may be a list (`places`); an accelerator name may have wildcards (`A100*`), which stand for every device that
    some world sells.
    """
    found: list[Need] = []
    turn = 0
    specs, in_order = alternatives(resources)
    for number, spec in enumerate(specs):
        for choice in spec.accelerators or (None,):
            for named in _named(choice, worlds):
                found += placed(Need(number, turn, spec, named), worlds)
            turn += spec.accelerators_ordered
        turn += in_order
    if len(found) > MOST_NEEDS:
        raise InvalidRequest(
            f"resources: {len(found)} alternatives; at most {MOST_NEEDS} are weighed in one task; "
            "name fewer accelerators or places"
        )
    return found


def _named(choice: AcceleratorSpec | None, worlds: Sequence[OfferSnapshot]) -> list[AcceleratorSpec | None]:
    """The devices that a name with wildcards stands for; itself where it has none, or stands for nothing."""
    if choice is None or choice.name is None or not ("*" in choice.name or "?" in choice.name):
        return [choice]
    # Those that are never sold in such numbers matter only where all are.
    for count in (choice.count, 0.0):
        sold = _sold(worlds, count)
        names = sorted(name for name in sold if fnmatchcase(name.casefold(), choice.name.casefold()))
        if names:
            return [dataclasses.replace(choice, name=name) for name in names]
    return [choice]


def _sold(worlds: Sequence[OfferSnapshot], count: float) -> set[str]:
    """Devices of which so many are in some machine."""
    return {
        world.accelerators[number].name
        for world in worlds
        for number in np.unique(
            world.machines.accelerator[world.machines.accelerator_count >= count]
        ).tolist()
        if number != NO_ACCELERATOR
    }


def placed(need: Need, worlds: Sequence[OfferSnapshot]) -> list[Need]:
    """One need for each place of a list. Of lists of clouds and regions, only those pairs that exist."""
    spec = need.spec
    named = places_of(spec)
    if len(named) == 1:
        return [need]
    specs = [dataclasses.replace(spec, **place._asdict(), infra=()) for place in named]
    if not spec.infra:
        specs = _without_strangers(specs, worlds)
    return [dataclasses.replace(need, spec=one, listed=spec) for one in specs]


def _without_strangers(specs: list[ResourcesSpec], worlds: Sequence[OfferSnapshot]) -> list[ResourcesSpec]:
    """Without pairs that do not exist although each of their names does, in another pair."""
    good = [one for one in specs if not _place_problems(one, worlds)]
    known = {(name, getattr(one, name)) for one in good for name in PARTS}
    return [
        one for one in specs if one in good or any((name, getattr(one, name)) not in known for name in PARTS)
    ]


def wholes(needs: Sequence[Need]) -> list[Need]:
    """The needs as they were before their lists of places were taken apart."""
    found: list[Need] = []
    for need in needs:
        one = dataclasses.replace(need, spec=need.whole, listed=None)
        if one not in found:
            found.append(one)
    return found


def check_needs(needs: Sequence[Need], worlds: Sequence[OfferSnapshot]) -> tuple[list[Need], list[str]]:
    """Needs whose names all exist, and a sentence for each problem. Raises InvalidRequest if none is left."""
    good: list[Need] = []
    problems: dict[str, None] = {}
    for need in needs:
        found = [
            *_accelerator_problem(need, worlds),
            *_place_problems(need.spec, worlds),
            *_type_problem(need, worlds),
        ]
        problems |= dict.fromkeys(found)
        if not found:
            good.append(need)
    if not good:
        texts = list(problems)
        raise InvalidRequest("; ".join(texts), hint=_next_command(needs), details={"problems": texts})
    return good, list(problems)


def describe(need: Need) -> str:
    """The need in a few words, as a user would write it."""
    spec = need.spec
    words = [accelerator_text(need.accelerator)] if need.accelerator else []
    words += [need.instance_type] if need.instance_type else []
    cpus = spec.cpus if need.sized else DEFAULT_CPUS
    default = "" if need.sized else " (the default)"
    words += [f"cpus: {quantity_text(cpus)}{default}"] if cpus else []
    words += [f"memory: {quantity_text(spec.memory)}"] if spec.memory else []
    words += ["spot"] if need.use_spot else []
    words += [f"for at most ${spec.max_hourly_cost:g} an hour"] if spec.max_hourly_cost is not None else []
    where = [place_text(place) for place in places_of(spec)]
    words += [f"on {few(where)}"] if where != ["*"] else []
    return " ".join(words)


def accelerator_text(wanted: AcceleratorSpec) -> str:
    if wanted.name is not None:
        return f"{wanted.name}:{number_text(wanted.count)}"
    plus = "+" if wanted.memory_at_least else ""
    size = f"{number_text(wanted.memory_gib or 0)}GB{plus}:{number_text(wanted.count)}"
    return f"{wanted.vendor}:{size}" if wanted.vendor else size


def quantity_text(wanted: Quantity) -> str:
    return f"{number_text(wanted.value)}{'x' if wanted.per_cpu else ''}{'+' if wanted.at_least else ''}"


def _accelerator_problem(need: Need, worlds: Sequence[OfferSnapshot]) -> list[str]:
    wanted = need.accelerator
    if wanted is None or wanted.name is None:
        return []
    lookups = [world.names for world in worlds]
    if any(lookup.find(wanted.name, wanted.count) for lookup in lookups):
        return []
    known = {name for lookup in lookups for name in lookup.known()}
    return [_unknown("accelerators", wanted.name, known, "is not a known accelerator", COMMON & known)]


def _place_problems(spec: ResourcesSpec, worlds: Sequence[OfferSnapshot]) -> list[str]:
    stranger = _stranger(spec.cloud, worlds)
    if stranger:
        return [stranger]
    clouds = {spec.cloud} if spec.cloud else {cloud for world in worlds for cloud in world.regions}
    where = f" on {spec.cloud}" if spec.cloud else ""
    regions = {name for world in worlds for cloud in clouds for name in world.regions.get(cloud or "", ())}
    if not regions:
        return []
    problems = []
    if spec.region and not any(same_name(spec.region, name) for name in regions):
        problems.append(_unknown("region", spec.region, regions, f"is not a region{where}"))
    if spec.zone and not any(zone_known(spec.zone, world, clouds) for world in worlds):
        zones = {zone for world in worlds for zone in _zones(world, clouds, spec.region)}
        problems.append(_unknown("zone", spec.zone, zones, f"is not a zone{where}"))
    return problems


def _stranger(cloud: str | None, worlds: Sequence[OfferSnapshot]) -> str | None:
    """For a cloud of which nobody has heard. One that is known but sells nothing here is not a mistake."""
    sellers = {name for world in worlds for name in world.clouds}
    if cloud is None or cloud in sellers or cloud in (*CLOUDS, *PRICED, *OURS):
        return None
    of = sorted({name for world in worlds for name, regions in world.regions.items() if cloud in regions})
    if of:
        return (
            f"infra: {cloud!r} is not a cloud but a region of {few(of)}; use '*/{cloud}' or {of[0]}/{cloud}"
        )
    guesses = nearest_few(cloud, sellers)
    maybe = f"; did you mean {' or '.join(map(repr, guesses))}?" if guesses else ""
    return (
        f"infra: {cloud!r} is not known here: neither a price list nor an offer of your own names it{maybe}"
    )


def zone_known(zone: str, world: OfferSnapshot, clouds: set[str] | set[str | None]) -> bool:
    wanted = zone.lower()
    if any(wanted == name.lower() for name in _zones(world, clouds, None)):
        return True
    return "aws" in clouds and aws_region_of(zone) in world.regions.get("aws", ())


def aws_region_of(zone: str) -> str | None:
    """`us-east-1` for `us-east-1a`: names of AWS zones differ per account, so the catalog has ids instead."""
    match = re.fullmatch(r"([a-z]{2}(?:-[a-z]+)+-\d)[a-f]", zone.lower())
    return match[1] if match else None


def _zones(world: OfferSnapshot, clouds: set[str] | set[str | None], region: str | None) -> set[str]:
    listed = {
        zone
        for (cloud, name), zones in world.known_zones.items()
        if cloud in clouds and (region is None or same_name(region, name))
        for zone in zones
    }
    places = zip(world.places.cloud.tolist(), world.places.region, world.places.zone, strict=True)
    sold = {
        zone
        for cloud, name, zone in places
        if zone and world.clouds[cloud] in clouds and (region is None or same_name(region, name))
    }
    return listed | sold


def _type_problem(need: Need, worlds: Sequence[OfferSnapshot]) -> list[str]:
    name, cloud = need.instance_type, need.spec.cloud
    if name is None or any(machines_named(world, name, cloud) for world in worlds):
        return []
    if cloud and not any(cloud in world.clouds for world in worlds):
        return []
    known = {
        world.machines.name[number]
        for world in worlds
        for numbers in world.machine_number.values()
        for number in numbers
        if cloud is None or world.clouds[int(world.machines.cloud[number])] == cloud
    }
    sellers = sorted(
        {
            world.clouds[int(world.machines.cloud[m])]
            for world in worlds
            for m in machines_named(world, name, None)
        }
    )
    if sellers:
        return [f"instance_type: {name!r} is not sold on {cloud}; it is a machine of {few(sellers)}"]
    # Comparing with thousands of names is slow, and a slip is rarely in the first letters.
    alike = {other for other in known if other[:2].lower() == name[:2].lower()}
    where = f"on {cloud}" if cloud else "on any known cloud"
    return [_unknown("instance_type", name, alike or known, f"is not sold {where}")]


def machines_named(world: OfferSnapshot, name: str, cloud: str | None) -> list[int]:
    numbers = world.machine_number.get(name.lower(), [])
    if cloud is None:
        return numbers
    return [number for number in numbers if world.clouds[int(world.machines.cloud[number])] == cloud]


def _unknown(field: str, value: str, known: set[str], what: str, examples: Collection[str] = ()) -> str:
    guesses = nearest_few(value, known)
    text = f"{field}: {value!r} {what}"
    if guesses:
        return f"{text}; did you mean {' or '.join(map(repr, guesses))}?"
    names = sorted(examples or known)
    if len(known) <= _SHOWN_NAMES:
        return f"{text}; valid: {', '.join(sorted(known))}" if known else text
    return f"{text}; valid are, for example: {', '.join(names[:_SHOWN_NAMES])}"


def _next_command(needs: Sequence[Need]) -> str:
    named = any(need.accelerator and need.accelerator.name for need in needs)
    return "see what exists with: sky gpus list --all" if named else "see what is enabled with: sky check"


def without(need: Need, *fields: str) -> Need:
    """The same need with some requirements dropped."""
    nothing: dict[str, Any] = {name: () if name in ("ports", "volumes", "infra") else None for name in fields}
    spec = dataclasses.replace(need.spec, **nothing)
    return dataclasses.replace(need, spec=spec)
