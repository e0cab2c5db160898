"""One label for each task where dollars add up and hours are the longest path: a bound by mixes of paths, and branch and bound with it.

Along a mix of paths (weights that sum to one path) hours add up like dollars, and no longest path is shorter than that: so the best
labels for a mix are a bound, for any mix. Their own bound is the dual of `labels_dual`, which is kept while the mix moves, in ever
smaller steps, towards the longest path of what it chooses. Labels that cannot be part of anything better go. What then is open is
split: a task whose choice changes from mix to mix has the label it had most often, or it has not.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from skyloom_optimizer.solvers.graph import Floats, Graph, Ints, Mask
from skyloom_optimizer.solvers.labels_dual import Dual

_FIRST_ROUNDS = 100
_ROUNDS = 15
_STEP = 4.0
_LATER_STEP = 30
_LOOK = 5
_SEEN = 20
_PATIENCE = 40
_LITTLE = 0.02
_WORTH = 0.9
_SAME = 1e-9
_MOST_COMBINATIONS = 48


@dataclass(frozen=True)
class Goal:
    """`per_usd` x dollars + `per_hour` x hours. What differs by less than `grain` of the whole counts as equal."""

    per_usd: float
    per_hour: float
    grain: float = 1e-9

    def value(self, graph: Graph, labels: Sequence[int]) -> float:
        return self.per_usd * graph.usd(labels) + self.per_hour * graph.hours(labels)


@dataclass
class _Branch:
    """Labels that are left (`names`: their original numbers), the dual, and the mix of paths: weights of tasks and links."""

    graph: Graph
    names: list[Ints]
    dual: Dual
    tasks: Floats
    links: Floats
    decided: frozenset[int] = frozenset()
    """Links of which the search has settled whether they take long."""

    def keep(self, masks: Sequence[Mask]) -> _Branch:
        names = [own[mask] for own, mask in zip(self.names, masks, strict=True)]
        return _Branch(
            self.graph.keep(masks), names, self.dual.kept(masks), self.tasks, self.links, self.decided
        )

    def mix(self, tasks: Sequence[int], links: Sequence[int], step: float, per_hour: float) -> None:
        """Moves the mix towards a path."""
        more_tasks, more_links = -step * self.tasks, -step * self.links
        more_tasks[list(tasks)] += step
        more_links[list(links)] += step
        self.tasks, self.links = self.tasks + more_tasks, self.links + more_links
        for task in np.flatnonzero(more_tasks).tolist():
            hours = self.graph.own[task].hours
            self.dual.node[task] = self.dual.node[task] + per_hour * more_tasks[task] * hours
        for link in np.flatnonzero(more_links).tolist():
            self.dual.add_to_edge(link, per_hour * more_links[link] * self.graph.links[link].hours)


@dataclass(frozen=True)
class _Seen:
    """What a round chose, and how long each task and link took."""

    labels: list[int]
    tasks: list[float]
    links: list[float]


@dataclass(frozen=True)
class _Open:
    """Half of a branch that is still to be looked at. `masks`: labels that it keeps; `link`: pairs of labels that are not wanted."""

    branch: _Branch
    floor: float
    masks: tuple[Mask, ...]
    link: int = -1
    unwanted: Mask | None = None

    def taken(self, large: float) -> _Branch:
        """`large`: more than any answer that is looked for."""
        found = self.branch.keep(self.masks)
        if self.unwanted is not None:
            found.dual.add_to_edge(self.link, np.where(self.unwanted, large, 0.0))
            found.decided = self.branch.decided | {self.link}
        return found


class PathSearch:
    """The best answer so far and what is proven about the rest. Tasks are numbered in an order in which they can run."""

    def __init__(self, goal: Goal, expired: Callable[[], bool]) -> None:
        self._goal, self._expired = goal, expired
        self.labels: tuple[int, ...] = ()
        self.value = float("inf")
        self.branches = 0

    def run(self, graph: Graph, names: list[Ints]) -> float:
        """A bound on every answer; `labels` and `value` are the best found."""
        waiting, given_up = self._halves(self._root(graph, names), -np.inf, _FIRST_ROUNDS), np.inf
        while waiting:
            item = waiting.pop()
            if item.floor >= self._enough:
                continue
            if self._expired():
                given_up = min(given_up, item.floor)
            else:
                waiting += self._halves(item.taken(10 * self.value), item.floor, _ROUNDS)
        return float(min(given_up, self._enough))

    @property
    def _enough(self) -> float:
        """A bound from here on proves that nothing is better."""
        return self.value - self._goal.grain * max(1.0, abs(self.value))

    def _root(self, graph: Graph, names: list[Ints]) -> _Branch:
        usd, hours = self._goal.per_usd, self._goal.per_hour
        labels = [int((usd * item.usd + hours * item.hours).argmin()) for item in graph.own]
        self._offer(graph, labels, names)
        path = graph.longest(*graph.took(labels))
        node = [usd * item.usd for item in graph.own]
        edge = [usd * link.usd for link in graph.links]
        dual = Dual(node, edge, [(link.source, link.target) for link in graph.links])
        root = _Branch(graph, names, dual, np.zeros(len(node)), np.zeros(len(edge)))
        root.mix(*path, 1.0, hours)
        return root

    def _offer(self, graph: Graph, labels: Sequence[int], names: Sequence[Ints]) -> None:
        value = self._goal.value(graph, labels)
        if value < self.value:
            self.value = value
            self.labels = tuple(int(own[label]) for own, label in zip(names, labels, strict=True))

    def _halves(self, branch: _Branch, floor: float, rounds: int) -> list[_Open]:
        """Bounds a branch. Where it is still open: its halves, the likelier one last."""
        self.branches += 1
        seen: list[_Seen] = []
        step = _LATER_STEP if self.branches > 1 else 0
        floors: list[float] = []
        for number in range(rounds):
            branch.dual.sweep(True)
            branch.dual.sweep(False)
            floor = max(floor, branch.dual.bound())
            labels = branch.dual.decode()
            self._offer(branch.graph, labels, branch.names)
            if floor >= self._enough:
                return []
            floors.append(floor)
            if number % _LOOK == _LOOK - 1:
                less = self._fewer(branch)
                if less is None:
                    return []
                if less is not branch:
                    branch, seen, labels = less, [], less.dual.decode()
            seen.append(_Seen(labels, *branch.graph.took(labels)))
            if self._expired() or self._stalled(floors):
                break
            path = branch.graph.longest(seen[-1].tasks, seen[-1].links)
            branch.mix(*path, _STEP / (step + number + 2 + _STEP), self._goal.per_hour)
        return self._split(branch, floor, seen[-_SEEN:])

    def _stalled(self, floors: Sequence[float]) -> bool:
        """Whether the last rounds closed hardly any of what is open."""
        if len(floors) <= _PATIENCE:
            return False
        return floors[-1] - floors[-1 - _PATIENCE] < _LITTLE * (self.value - floors[-1])

    def _fewer(self, branch: _Branch) -> _Branch | None:
        """Without labels that are part of nothing better; None where a task has none left."""
        masks = [least < self._enough for least in branch.dual.label_bounds()]
        if not all(mask.any() for mask in masks):
            return None
        left = sum(int(mask.sum()) for mask in masks)
        return branch.keep(masks) if left < _WORTH * sum(map(len, masks)) else branch

    def _split(self, branch: _Branch, floor: float, seen: Sequence[_Seen]) -> list[_Open]:
        """Where hours change most from mix to mix, on paths with a weight: into short and long. Else by the label of a task."""
        if math.prod(len(own) for own in branch.names) <= _MOST_COMBINATIONS:
            for labels in product(*(range(len(own)) for own in branch.names)):
                self._offer(branch.graph, labels, branch.names)
            return []
        tasks = np.std([item.tasks for item in seen], axis=0) * (branch.tasks > 0)
        links = np.std([item.links for item in seen], axis=0) * (branch.links > 0)
        links[list(branch.decided)] = 0.0
        if links.max(initial=0.0) > max(tasks.max(), _SAME):
            link = int(links.argmax())
            hours, took = branch.graph.links[link].hours, [item.links[link] for item in seen]
            return self._halved(branch, floor, hours, took, link=link)
        if tasks.max() > _SAME:
            task = int(tasks.argmax())
            hours, took = branch.graph.own[task].hours, [item.tasks[task] for item in seen]
            return self._halved(branch, floor, hours, took, task=task)
        return self._by_label(branch, floor, seen)

    def _halved(
        self,
        branch: _Branch,
        floor: float,
        hours: Floats,
        took: Sequence[float],
        link: int = -1,
        task: int = -1,
    ) -> list[_Open]:
        """Short and long hours of a link or a task; what was chosen more often comes last, and so is looked at first."""
        middle = (min(took) + max(took)) / 2
        short = hours <= middle
        sides = [short, ~short] if 2 * sum(t <= middle for t in took) < len(took) else [~short, short]
        every = tuple(np.ones(len(own), dtype=bool) for own in branch.names)
        if link >= 0:
            return [_Open(branch, floor, every, link, ~side) for side in sides]
        return [_Open(branch, floor, (*every[:task], side, *every[task + 1 :])) for side in sides]

    def _by_label(self, branch: _Branch, floor: float, seen: Sequence[_Seen]) -> list[_Open]:
        """On the task that changes its label most often: it has the label that it had most often, or it has not."""
        counts = [Counter(item.labels[task] for item in seen) for task in range(len(branch.names))]
        open_tasks = [task for task, own in enumerate(branch.names) if len(own) > 1]
        task = max(open_tasks, key=lambda number: (len(counts[number]), -len(branch.names[number])))
        every = tuple(np.ones(len(own), dtype=bool) for own in branch.names)
        has = np.arange(len(branch.names[task])) == counts[task].most_common(1)[0][0]
        return [_Open(branch, floor, (*every[:task], side, *every[task + 1 :])) for side in (~has, has)]
