"""A lower bound on what labels cost together: costs are moved between nodes and edges without changing any answer's total.

The bound is the sum of all minima: valid after any move. An edge with a node that has one label left is part of its other node.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from skyloom_optimizer.solvers.labels_problem import Floats, Mask, Problem


class Dual:
    """`ends`: the two nodes of each edge, the lower number first."""

    def __init__(
        self, node: Sequence[Floats], edge: Sequence[Floats], ends: Sequence[tuple[int, int]]
    ) -> None:
        """The arrays become those of the dual."""
        self.node, self.edge, self.ends = list(node), list(edge), ends
        self.before: list[list[int]] = [[] for _ in node]
        self.after: list[list[int]] = [[] for _ in node]
        for number, (i, j) in enumerate(ends):
            cost = self.edge[number]
            if min(cost.shape) == 1:
                self.add_to_edge(number, cost)
                self.edge[number] = np.zeros(cost.shape)
            else:
                self.after[i].append(number)
                self.before[j].append(number)

    @classmethod
    def of(cls, problem: Problem) -> Dual:
        ends = [(edge.i, edge.j) for edge in problem.edges]
        return cls(
            [costs.copy() for costs in problem.unary], [edge.cost.copy() for edge in problem.edges], ends
        )

    def kept(self, masks: Sequence[Mask]) -> Dual:
        """The same moved costs on fewer labels; nothing is shared with this one."""
        node = [costs[mask] for costs, mask in zip(self.node, masks, strict=True)]
        edge = [cost[masks[i]][:, masks[j]] for cost, (i, j) in zip(self.edge, self.ends, strict=True)]
        return Dual(node, edge, self.ends)

    def add_to_edge(self, number: int, cost: Floats) -> None:
        """`cost` by the labels of both ends."""
        i, j = self.ends[number]
        if cost.shape[0] == 1:
            self.node[j] = self.node[j] + cost[0]
        elif cost.shape[1] == 1:
            self.node[i] = self.node[i] + cost[:, 0]
        else:
            self.edge[number] += cost

    def bound(self) -> float:
        nodes = sum(float(costs.min()) for costs in self.node)
        return nodes + sum(float(self.edge[number].min()) for own in self.after for number in own)

    def sweep(self, forward: bool) -> None:
        nodes = range(len(self.node)) if forward else range(len(self.node) - 1, -1, -1)
        for node in nodes:
            incoming, outgoing = self.before[node], self.after[node]
            if not forward:
                incoming, outgoing = outgoing, incoming
            for number in incoming:
                self._pull(number, 1 if forward else 0, node)
            if outgoing:
                for number in outgoing:
                    self._pull(number, 0 if forward else 1, node)
                share = self.node[node] / max(len(incoming), len(outgoing))
                for number in outgoing:
                    self.edge[number] += share[:, None] if forward else share
                    self.node[node] = self.node[node] - share

    def _pull(self, number: int, axis: int, node: int) -> None:
        """What an edge costs at least with each label of its end on this axis becomes part of the node."""
        cost = self.edge[number]
        least = cost.min(axis=1 - axis)
        self.node[node] = self.node[node] + least
        cost -= least[:, None] if axis == 0 else least

    def label_bounds(self) -> list[Floats]:
        """For each node and label: nothing with that label costs less."""
        total = self.bound()
        found = []
        for node, costs in enumerate(self.node):
            least, own = costs.copy(), float(costs.min())
            for numbers, axis in ((self.before[node], 1), (self.after[node], 0)):
                for number in numbers:
                    edge = self.edge[number].min(axis=1 - axis)
                    least = least + edge
                    own += float(edge.min())
            found.append(total - own + least)
        return found

    def decode(self) -> list[int]:
        """Labels one node after the other, given those chosen before."""
        labels: list[int] = []
        for node, costs in enumerate(self.node):
            score = costs
            for number in self.before[node]:
                score = score + self.edge[number][labels[self.ends[number][0]]]
            labels.append(int(score.argmin()))
        return labels
