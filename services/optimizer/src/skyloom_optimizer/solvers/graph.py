"""A graph of tasks as numbers: dollars and hours of each label of each task, and of each link between two. Dollars add up, hours run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Timed:
    """Of each label of one task."""

    usd: Floats
    hours: Floats


@dataclass(frozen=True)
class Link:
    """`usd[a, b]`, `hours[a, b]` of the transfer when source has label a and target b."""

    source: int
    target: int
    usd: Floats
    hours: Floats


@dataclass(frozen=True)
class Graph:
    """`order`: a topological order of the tasks."""

    order: tuple[int, ...]
    own: tuple[Timed, ...]
    links: tuple[Link, ...]

    @cached_property
    def is_chain(self) -> bool:
        """Every task has at most one predecessor and one successor, and all hang together: hours add up."""
        pairs = {(link.source, link.target) for link in self.links}
        if len(pairs) != len(self.links) or len(pairs) != len(self.own) - 1:
            return False
        starts, ends = [source for source, _ in pairs], [target for _, target in pairs]
        return len(set(starts)) == len(starts) and len(set(ends)) == len(ends)

    def usd(self, labels: Sequence[int]) -> float:
        total = sum(float(item.usd[label]) for item, label in zip(self.own, labels, strict=True))
        return total + sum(float(link.usd[labels[link.source], labels[link.target]]) for link in self.links)

    def ends(self, labels: Sequence[int]) -> list[float]:
        """When each task ends."""
        ready = [0.0] * len(self.own)
        ends = [0.0] * len(self.own)
        for task in self.order:
            ends[task] = ready[task] + float(self.own[task].hours[labels[task]])
            for link in self.links:
                if link.source == task:
                    took = float(link.hours[labels[task], labels[link.target]])
                    ready[link.target] = max(ready[link.target], ends[task] + took)
        return ends

    def hours(self, labels: Sequence[int]) -> float:
        return max(self.ends(labels))

    def least_hours(self) -> float:
        """The longest path when everything is at its fastest."""
        ready = [0.0] * len(self.own)
        ends = [0.0] * len(self.own)
        for task in self.order:
            ends[task] = ready[task] + float(self.own[task].hours.min())
            for link in self.links:
                if link.source == task:
                    ready[link.target] = max(ready[link.target], ends[task] + float(link.hours.min()))
        return max(ends)

    def took(self, labels: Sequence[int]) -> tuple[list[float], list[float]]:
        """Hours of each task and of each link."""
        own = [float(item.hours[label]) for item, label in zip(self.own, labels, strict=True)]
        return own, [float(link.hours[labels[link.source], labels[link.target]]) for link in self.links]

    def longest(self, own: Sequence[float], links: Sequence[float]) -> tuple[list[int], list[int]]:
        """Tasks and links of a longest path, when tasks and links take so long."""
        ready, via = [0.0] * len(own), [-1] * len(own)
        for task in self.order:
            end = ready[task] + own[task]
            for number, target in self._after[task]:
                if end + links[number] > ready[target]:
                    ready[target], via[target] = end + links[number], number
        task = max(range(len(own)), key=lambda number: ready[number] + own[number])
        tasks, path = [task], []
        while via[task] >= 0:
            path.append(via[task])
            task = self.links[via[task]].source
            tasks.append(task)
        return tasks, path

    @cached_property
    def _after(self) -> list[list[tuple[int, int]]]:
        found: list[list[tuple[int, int]]] = [[] for _ in self.own]
        for number, link in enumerate(self.links):
            found[link.source].append((number, link.target))
        return found

    @cached_property
    def core(self) -> tuple[Graph, list[Ints]]:
        """Tasks numbered in the order in which they can run, without labels that nothing needs; and the labels' numbers."""
        position = {task: number for number, task in enumerate(self.order)}
        own = tuple(self.own[task] for task in self.order)
        links = tuple(Link(position[k.source], position[k.target], k.usd, k.hours) for k in self.links)
        return reduced(Graph(tuple(range(len(own))), own, links))

    def keep(self, masks: Sequence[Mask]) -> Graph:
        own = tuple(Timed(t.usd[mask], t.hours[mask]) for t, mask in zip(self.own, masks, strict=True))
        links = tuple(
            Link(
                k.source,
                k.target,
                k.usd[np.ix_(masks[k.source], masks[k.target])],
                k.hours[np.ix_(masks[k.source], masks[k.target])],
            )
            for k in self.links
        )
        return Graph(self.order, own, links)


def reduced(graph: Graph) -> tuple[Graph, list[Ints]]:
    """Without labels for which another is never worse, neither in dollars nor in hours."""
    kept = [np.arange(len(item.usd)) for item in graph.own]
    for task, item in enumerate(graph.own):
        usd = [
            link.usd if link.source == task else link.usd.T
            for link in graph.links
            if task in (link.source, link.target)
        ]
        keep = np.ones(len(item.usd), dtype=bool)
        far = item.usd + sum((cost.max(axis=1) for cost in usd), np.zeros(len(item.usd)))
        picks = [*np.argsort(far, kind="stable")[:8], *np.argsort(item.usd, kind="stable")[:8]]
        picks += [*np.lexsort((far, item.hours))[:8]]
        for best in dict.fromkeys(int(label) for label in picks):
            if not keep[best]:
                continue
            dearer = (
                item.usd[best]
                - item.usd
                + sum((np.max(c[best] - c, axis=1) for c in usd), np.zeros(len(keep)))
            )
            longer = item.hours[best] - item.hours
            # Hours on different edges lie on different paths: the worst of each side counts.
            before = [
                np.max(link.hours.T[best] - link.hours.T, axis=1)
                for link in graph.links
                if link.target == task
            ]
            after = [
                np.max(link.hours[best] - link.hours, axis=1) for link in graph.links if link.source == task
            ]
            zero = np.zeros(len(keep))
            late = longer + np.maximum.reduce([*before, zero]) + np.maximum.reduce([*after, zero])
            gone = (dearer <= 0) & (late <= 0)
            gone[best] = False
            keep &= ~gone
        kept[task] = np.flatnonzero(keep)
    masks = [np.isin(np.arange(len(t.usd)), names) for t, names in zip(graph.own, kept, strict=True)]
    return graph.keep(masks), kept
