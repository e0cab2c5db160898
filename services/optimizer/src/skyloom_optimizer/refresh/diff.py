"""What a refresh changed: new offers, offers that are gone, prices that moved. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from skyloom_common.contracts.catalog import CatalogChange

MOVED = 0.2
Key = tuple[str, str, str, str]
"""cloud, region, zone, instance type"""
Prices = tuple[float | None, float | None]


@dataclass(frozen=True)
class Diff:
    new: int = 0
    gone: int = 0
    up: int = 0
    down: int = 0
    same: int = 0
    changes: tuple[CatalogChange, ...] = ()


def diff(before: Mapping[Key, Prices], after: Mapping[Key, Prices], keep: int = 200) -> Diff:
    """`keep`: how many changes are listed, dearest first; all are counted."""
    changes = [*_new(before, after), *_gone(before, after), *_moved(before, after)]
    count = {kind: sum(change.kind == kind for change in changes) for kind in ("new", "gone", "up", "down")}
    shared = before.keys() & after.keys()
    changes.sort(key=_weight)
    moved = {(c.cloud, c.region, c.zone, c.instance_type) for c in changes if c.kind in ("up", "down")}
    return Diff(**count, same=len(shared) - len(moved), changes=tuple(changes[:keep]))


def _new(before: Mapping[Key, Prices], after: Mapping[Key, Prices]) -> Iterable[CatalogChange]:
    return (CatalogChange("new", *key, False, None, after[key][0]) for key in after.keys() - before.keys())


def _gone(before: Mapping[Key, Prices], after: Mapping[Key, Prices]) -> Iterable[CatalogChange]:
    return (CatalogChange("gone", *key, False, before[key][0], None) for key in before.keys() - after.keys())


def _moved(before: Mapping[Key, Prices], after: Mapping[Key, Prices]) -> Iterable[CatalogChange]:
    for key in before.keys() & after.keys():
        for use_spot in (False, True):
            old, new = before[key][use_spot], after[key][use_spot]
            if old and new and abs(new - old) > MOVED * old:
                yield CatalogChange("up" if new > old else "down", *key, use_spot, old, new)


def _weight(change: CatalogChange) -> tuple[object, ...]:
    largest = max(change.before or 0.0, change.after or 0.0)
    return (
        -largest,
        change.kind,
        change.cloud,
        change.instance_type,
        change.region,
        change.zone,
        change.use_spot,
    )
