"""Requirements one after another: what each leaves, and what it removed from each cloud. Pure; knows no requirement itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from skyloom_common.contracts.plan import Rejection
from skyloom_optimizer.snapshot import Floats, Ints, Mask, OfferSnapshot

# For whom a requirement reports: each cloud it touched; only clouds that it emptied (elsewhere it goes without
# saying that most machines have no such device); or all clouds as one (nobody looks for what he excluded).
EACH, EMPTIED, TOGETHER = "each", "emptied", "together"
_ANYWHERE = "*"

Describe = Callable[[str, int], str]
Figures = Callable[[int], dict[str, float]]


@dataclass(frozen=True)
class Drop:
    code: str
    gone: Mask
    distance: Floats | None
    describe: Describe
    scope: str = EACH
    figures: Figures | None = None


class Sieve:
    """Machines still in the running, and what each requirement removed."""

    def __init__(self, snapshot: OfferSnapshot) -> None:
        self.snapshot = snapshot
        self.alive: Mask = np.ones(len(snapshot.machines), dtype=bool)
        self.drops: list[Drop] = []

    def keep(
        self,
        passing: Mask,
        code: str,
        describe: Describe,
        *,
        distance: Floats | None = None,
        scope: str = EACH,
        figures: Figures | None = None,
    ) -> None:
        gone = self.alive & ~passing
        if gone.any():
            self.drops.append(Drop(code, gone, distance, describe, scope, figures))
            self.alive &= passing

    def narrow(self, passing: Mask) -> None:
        """What others look after is left out without a word."""
        self.alive &= passing

    def rejections(self, rank: Floats) -> tuple[Rejection, ...]:
        """Where a requirement has no distance of its own, the least by `rank` is the nearest miss."""
        found: list[Rejection] = []
        alive = self.snapshot.offers_by_cloud(self.alive)
        for drop in reversed(self.drops):
            alive += self.snapshot.offers_by_cloud(drop.gone)
        for drop in self.drops:
            gone = self.snapshot.offers_by_cloud(drop.gone)
            alive -= gone
            found += self._rejections_of(drop, rank, gone, alive)
        return tuple(found)

    def _rejections_of(self, drop: Drop, rank: Floats, gone: Ints, alive: Ints) -> list[Rejection]:
        """`gone`, `alive`: offers of each cloud that this requirement removed and left."""
        snapshot = self.snapshot
        if drop.scope == TOGETHER:
            near = int(np.argmax(drop.gone))
            return [Rejection(_ANYWHERE, drop.code, drop.describe(_ANYWHERE, near), int(gone.sum()))]
        touched = gone > 0 if drop.scope == EACH else (gone > 0) & (alive == 0)
        distance = rank if drop.distance is None else drop.distance
        nearest = snapshot.least_of_clouds(distance, drop.gone).tolist()
        found = []
        for number in np.flatnonzero(touched).tolist():
            cloud, near = snapshot.clouds[number], nearest[number]
            example = None if drop.scope == EMPTIED else snapshot.machines.name[near]
            numbers = {} if drop.figures is None else drop.figures(near)
            text = drop.describe(cloud, near)
            found.append(Rejection(cloud, drop.code, text, int(gone[number]), example, numbers))
        return found
