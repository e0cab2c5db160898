"""Why nothing fits, as small as possible: sets of requirements that contradict each other, smallest first.

Pure. A set is found by deletion: requirements are dropped one after another, and stay dropped where nothing fits even so; what
is left is minimal. Further sets are looked for without one member of a set already found.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from skyloom_common.contracts.plan import Conflict
from skyloom_common.contracts.task.model import Quantity
from skyloom_common.contracts.task.places import PARTS, listed
from skyloom_optimizer.feasible import feasible_only
from skyloom_optimizer.gate import Gate
from skyloom_optimizer.names import number_text
from skyloom_optimizer.needs import Need, accelerator_text, placed, quantity_text, wholes, without
from skyloom_optimizer.snapshot import OfferSnapshot

_SPEC_FIELDS = (
    "infra",
    "cloud",
    "region",
    "zone",
    "instance_type",
    "cpus",
    "memory",
    "max_hourly_cost",
    "use_spot",
    "image_id",
    "ports",
    "disk_tier",
    "network_tier",
    "local_disk",
    "volumes",
)
_DOORS = {
    "enabled": "enabled clouds",
    "blocked": "places tried already",
    "denied": "policy",
    "quotas": "quota",
    "lacks": "features of the providers",
}
_ACCELERATORS = "accelerators"
_ANY_SIZE = Quantity(0.0, at_least=True)
_MOST_CONFLICTS = 4
_MOST_CHECKS = 80


def conflicts_of(needs: Sequence[Need], worlds: Sequence[OfferSnapshot], gate: Gate) -> tuple[Conflict, ...]:
    """Minimal sets over all needs; empty where the offers themselves hold nothing at all."""
    found: dict[tuple[str, ...], Conflict] = {}
    for need in wholes(needs)[:_MOST_CONFLICTS]:
        for fields in _Search(need, worlds, gate).sets():
            words = tuple(field_text(need, gate, name) for name in fields)
            found.setdefault(words, Conflict(words, sentence(words)))
    return tuple(sorted(found.values(), key=lambda item: (len(item.fields), item.fields))[:_MOST_CONFLICTS])


def sentence(fields: Sequence[str]) -> str:
    if len(fields) == 1:
        return f"nothing satisfies {fields[0]}"
    return f"cannot hold together: {', '.join(fields)}"


class _Search:
    """Deletion over the requirements of one need. Answers are remembered: sets overlap."""

    def __init__(self, need: Need, worlds: Sequence[OfferSnapshot], gate: Gate) -> None:
        self._need, self._worlds, self._gate = need, worlds, gate
        spec_fields = [name for name in _SPEC_FIELDS if getattr(need.spec, name) not in (None, False, (), {})]
        doors = [name for name in _DOORS if getattr(gate, name) not in (None, (), {}, [])]
        self._all = (*([_ACCELERATORS] if need.accelerator else []), *spec_fields, *doors)
        self._known: dict[frozenset[str], bool] = {}

    def sets(self) -> list[tuple[str, ...]]:
        if self._fits(frozenset(self._all)):
            return []
        found = [self._shrink(self._all)]
        position = 0
        while position < len(found) < _MOST_CONFLICTS:
            for name in found[position]:
                rest = tuple(other for other in self._all if other != name)
                if not self._fits(frozenset(rest)):
                    smaller = self._shrink(rest)
                    found += [smaller] if smaller not in found else []
            position += 1
        return [fields for fields in found if fields]

    def _shrink(self, fields: tuple[str, ...]) -> tuple[str, ...]:
        kept = list(fields)
        # Places first: what a user is most ready to change should be found last, and so stay in the set.
        for name in fields:
            rest = [other for other in kept if other != name]
            if not self._fits(frozenset(rest)):
                kept = rest
        return tuple(kept)

    def _fits(self, fields: frozenset[str]) -> bool:
        if fields not in self._known:
            if len(self._known) >= _MOST_CHECKS:
                return True
            self._known[fields] = self._look(fields)
        return self._known[fields]

    def _look(self, fields: frozenset[str]) -> bool:
        dropped = [name for name in self._all if name not in fields]
        need = without(self._need, *(name for name in dropped if name in _SPEC_FIELDS))
        if _ACCELERATORS in dropped:
            spec = dataclasses.replace(need.spec, accelerators=())
            need = dataclasses.replace(need, accelerator=None, spec=spec)
        if not need.sized:
            # The size that is taken where nothing is asked is not the user's requirement.
            need = dataclasses.replace(need, spec=dataclasses.replace(need.spec, cpus=_ANY_SIZE))
        gate = self._gate.open(*(name for name in dropped if name in _DOORS))
        return any(
            feasible_only(one, world, gate).machines.any()
            for one in placed(need, self._worlds)
            for world in self._worlds
        )


def field_text(need: Need, gate: Gate, name: str) -> str:
    """A requirement as a user wrote it."""
    if name == _ACCELERATORS and need.accelerator:
        return f"accelerators: {accelerator_text(need.accelerator)}"
    if name == "enabled":
        return f"enabled clouds: {', '.join(sorted(gate.enabled or ())) or 'none'}"
    if name == "denied":
        return f"policy: {gate.denied[0].reason}"
    if name == "quotas":
        return ", ".join(
            f"quota {pool.name}: {number_text(pool.limit)} {pool.unit}" for pool in gate.quotas[:2]
        )
    if name in _DOORS:
        return _DOORS[name]
    value = getattr(need.spec, name)
    if name in ("cpus", "memory"):
        value = quantity_text(value)
    elif name == "ports":
        value = ", ".join(value)
    elif name in ("infra", *PARTS):
        names = value if name == "infra" else listed(value)
        value = names[0] if len(names) == 1 else f"[{', '.join(names)}]"
    elif name == "max_hourly_cost":
        value = number_text(value)
    return f"{name}: {str(value).lower() if isinstance(value, bool) else value}"
