"""The decision for a graph of tasks: where each runs, so that compute, disks, transfers and restarts together cost (or take) least.

Pure. Cost is a sum over tasks and edges, which `solvers.labels` solves exactly for any graph; so is time on a chain. Time on other
graphs is the longest path: `solvers.schedule`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import urlsplit

import numpy as np

from skyloom_common.contracts.dag import DagPlan, DagPlanRequest, DagPoint, DagTask, Placement, Transfer
from skyloom_common.contracts.plan import Breakdown, Proof
from skyloom_common.core.errors import InvalidRequest
from skyloom_common.core.text import did_you_mean
from skyloom_optimizer.choices import Choices, NoChoice, PlaceIndex, check_task, choices_of
from skyloom_optimizer.egress import EgressMatrix, transfer_hours
from skyloom_optimizer.feasible import check_blocked
from skyloom_optimizer.gate import gate_of
from skyloom_optimizer.market import Market
from skyloom_optimizer.memory import AvailabilityMemory
from skyloom_optimizer.plan import NO_MARKET, NOTHING_KNOWN, check_objective, worlds_of
from skyloom_optimizer.snapshot import Ints, OfferSnapshot
from skyloom_optimizer.solvers import labels as label_solver
from skyloom_optimizer.solvers import schedule
from skyloom_optimizer.solvers.deadline import Clock, Deadline
from skyloom_optimizer.solvers.graph import Graph, Link, Timed
from skyloom_optimizer.weigh import Weigher

OBJECTIVES = ("cost", "time", "both", "weighted")
MOST_TASKS = 200
GIB_PER_GB = 1e9 / 2**30
# Where only the scheme of a bucket is known, its cloud follows.
_SCHEMES = {
    "s3": "aws",
    "gs": "gcp",
    "r2": "cloudflare-r2",
    "cos": "ibm",
    "oci": "oci",
    "nebius": "nebius",
    "azure": "azure",
    "https": "azure",
}


@dataclass(frozen=True)
class _Flow:
    """Data between a task and a task or a bucket; `bucket` is the other end then."""

    source: str
    target: str
    gib: float


@dataclass(frozen=True)
class _Solved:
    chosen: tuple[int, ...]
    usd: float
    hours: float
    proof: Proof


def plan_dag(
    request: DagPlanRequest,
    snapshot: OfferSnapshot,
    memory: AvailabilityMemory = NOTHING_KNOWN,
    market: Market = NO_MARKET,
    clock: Clock = time.monotonic,
) -> DagPlan:
    """One place for each task. Raises InvalidRequest for a graph that is none, and for names that do not exist."""
    order, deadline = _check(request), Deadline(request.time_limit_seconds, clock)
    worlds = worlds_of(request, snapshot)
    index = PlaceIndex(worlds)
    buckets = _buckets(request, index)
    choices, missing = _all_choices(request, worlds, index, memory, market)
    considered = sum(len(world) for world in worlds)
    if missing:
        return _without_places(request, missing, considered, snapshot.version)
    return _Problem(request, order, choices, index, buckets, market, deadline).plan(
        considered, snapshot.version
    )


def _check(request: DagPlanRequest) -> list[int]:
    """The tasks' numbers in an order in which they can run."""
    check_objective(request.objective, OBJECTIVES)
    check_blocked(request.blocked)
    if not request.tasks:
        raise InvalidRequest("tasks: none; a graph has at least one")
    if len(request.tasks) > MOST_TASKS:
        raise InvalidRequest(f"tasks: {len(request.tasks)}; at most {MOST_TASKS} in one graph")
    if request.usd_per_hour < 0 or not 0 < request.gbits_per_second < 1e6:
        raise InvalidRequest("usd_per_hour must be at least 0, and gbits_per_second above 0")
    names = [item.name for item in request.tasks]
    for name in names:
        if names.count(name) > 1:
            raise InvalidRequest(f"tasks: {name!r} comes twice; names are unique")
    for item in request.tasks:
        check_task(item.name, item.task, item.run)
    for edge in request.edges:
        for end in (edge.source, edge.target):
            if end not in names:
                raise InvalidRequest(f"edges: {end!r} is not a task{did_you_mean(end, names)}")
        if not 0 <= edge.gib < 1e12:
            raise InvalidRequest(f"edges: gib {edge.gib} of {edge.source} -> {edge.target} is not at least 0")
    return _topological(names, request)


def _topological(names: Sequence[str], request: DagPlanRequest) -> list[int]:
    number = {name: position for position, name in enumerate(names)}
    waiting = dict.fromkeys(range(len(names)), 0)
    for edge in request.edges:
        waiting[number[edge.target]] += 1
    order: list[int] = []
    ready = [position for position, count in waiting.items() if count == 0]
    while ready:
        order.append(ready.pop(0))
        for edge in request.edges:
            if number[edge.source] == order[-1]:
                waiting[number[edge.target]] -= 1
                if waiting[number[edge.target]] == 0:
                    ready.append(number[edge.target])
    if len(order) < len(names):
        stuck = [names[position] for position in sorted(set(range(len(names))) - set(order))]
        raise InvalidRequest(f"edges: a circle among {', '.join(stuck)}; a graph of tasks has none")
    return order


def _buckets(request: DagPlanRequest, index: PlaceIndex) -> dict[str, int]:
    """Place number of each bucket that a task names."""
    known = {bucket.uri.rstrip("/"): (bucket.cloud, bucket.region) for bucket in request.buckets}
    found: dict[str, int] = {}
    for item in request.tasks:
        for uri in (*item.task.inputs, *item.task.outputs):
            root = next(
                (name for name in known if uri.rstrip("/") == name or uri.startswith(f"{name}/")), None
            )
            cloud = _SCHEMES.get(urlsplit(uri).scheme, "")
            if root is None and not cloud:
                raise InvalidRequest(
                    f"{item.name}: the place of {uri!r} is not known; name its cloud and region in buckets"
                )
            found[uri] = index.number(known[root] if root is not None else (cloud, ""))
    return found


def _all_choices(
    request: DagPlanRequest,
    worlds: Sequence[OfferSnapshot],
    index: PlaceIndex,
    memory: AvailabilityMemory,
    market: Market,
) -> tuple[list[Choices], dict[str, NoChoice]]:
    """Equal tasks share one search."""
    known: dict[str, Choices | NoChoice] = {}
    choices: list[Choices] = []
    missing: dict[str, NoChoice] = {}
    for item in request.tasks:
        key = repr((item.task.resources, item.task.num_nodes, item.run))
        if key not in known:
            weigher = Weigher(item.run, item.task.num_nodes, memory, market, request.disk_usd_per_gib_month)
            gate = gate_of(request, item.task.num_nodes)
            timed = request.objective != "cost"
            known[key] = choices_of(item.task, worlds, gate, weigher, index, timed=timed)
        found = known[key]
        if isinstance(found, NoChoice):
            missing[item.name] = found
        else:
            choices.append(found)
    return choices, missing


def _without_places(
    request: DagPlanRequest, missing: dict[str, NoChoice], considered: int, version: str
) -> DagPlan:
    return DagPlan(
        objective=request.objective,
        rejected={name: item.rejected for name, item in missing.items()},
        conflicts=tuple(conflict for item in missing.values() for conflict in item.conflicts),
        hints=tuple(f"{name}: {hint}" for name, item in missing.items() for hint in item.hints),
        considered=considered,
        catalog_version=version,
    )


class _Problem:
    """The numbers of one graph: costs and hours of choices, and of transfers between them."""

    def __init__(
        self,
        request: DagPlanRequest,
        order: list[int],
        choices: list[Choices],
        index: PlaceIndex,
        buckets: dict[str, int],
        market: Market,
        deadline: Deadline,
    ) -> None:
        self.request, self.order, self.choices, self.buckets = request, order, choices, buckets
        self.deadline = deadline
        self.number = {item.name: position for position, item in enumerate(request.tasks)}
        self.places, self.renumbered = _used_places(choices, buckets, index)
        self.matrix = EgressMatrix(market.egress, self.places)
        self.at = [self.renumbered[found.place] for found in choices]
        self.flows = [_Flow(edge.source, edge.target, edge.gib) for edge in request.edges]

    def plan(self, considered: int, version: str) -> DagPlan:
        points: tuple[DagPoint, ...] = ()
        if self.request.objective == "both":
            cheap = self._solve(1.0, 0.0, self.deadline.part(0.3))
            fast = self._solve(0.0, 1.0, self.deadline.part(0.4))
            points = (DagPoint("cost", cheap.usd, cheap.hours), DagPoint("time", fast.usd, fast.hours))
            saved = cheap.hours - fast.hours
            price = (fast.usd - cheap.usd) / saved if saved > 1e-9 else 0.0
            solved = cheap if saved <= 1e-9 else fast
            if price > 1e-9:
                solved = self._solve(1.0, price, self.deadline)
        elif self.request.objective == "time":
            solved = self._solve(0.0, 1.0, self.deadline)
        else:
            weight = self.request.usd_per_hour if self.request.objective == "weighted" else 0.0
            solved = self._solve(1.0, weight, self.deadline)
        return self._answer(solved, points, considered, version)

    def _solve(self, per_usd: float, per_hour: float, until: Deadline) -> _Solved:
        """Least per_usd x dollars + per_hour x hours. Where only time counts, dollars decide between equally fast plans."""
        own, links, graph = self._own, self._links, self._graph
        if per_hour == 0 or graph.is_chain:
            tie = 1.0 if per_usd else 1e-6
            unary = [per_hour * item.hours + max(per_usd, tie) * item.usd for item in own]
            edges = [
                label_solver.Edge(
                    link.source, link.target, per_hour * link.hours + max(per_usd, tie) * link.usd
                )
                for link in links
            ]
            found = label_solver.solve(unary, edges, until.passed)
            return self._solved(graph, found.labels, found.value, found.bound, found.method)
        answer = schedule.solve(graph, per_usd, per_hour, until.passed)
        return self._solved(graph, answer.labels, answer.value, answer.bound, answer.method)

    @cached_property
    def _graph(self) -> Graph:
        return Graph(tuple(self.order), tuple(self._own), tuple(self._links))

    def _solved(
        self, graph: Graph, chosen: Sequence[int], value: float, bound: float, method: str
    ) -> _Solved:
        usd, hours = graph.usd(chosen), graph.hours(chosen)
        gap = (value - bound) / value if value > 0 else 0.0
        return _Solved(tuple(chosen), usd, hours, Proof(value, bound, max(gap, 0.0), method))

    @cached_property
    def _own(self) -> list[Timed]:
        """Cost of each choice with its buckets, and its hours with their transfers (inputs before, outputs after)."""
        found = []
        for item, choices, at in zip(self.request.tasks, self.choices, self.at, strict=True):
            usd, hours = choices.value.copy(), choices.hours.copy()
            for _, place, gib, inward in self._bucket_flows(item):
                cost, took = self.matrix.usd(gib), self.matrix.hours(gib, self.request.gbits_per_second)
                usd += cost[place, at] if inward else cost[at, place]
                hours += took[place, at] if inward else took[at, place]
            found.append(Timed(usd, hours))
        return found

    def _bucket_flows(self, item: DagTask) -> list[tuple[str, int, float, bool]]:
        """(URI, place, GiB, into the task?)."""
        flows = [(uri, gb, True) for uri, gb in item.task.inputs.items()]
        flows += [(uri, gb, False) for uri, gb in item.task.outputs.items()]
        return [
            (uri, int(self.renumbered[self.buckets[uri]]), gb * GIB_PER_GB, inward)
            for uri, gb, inward in flows
            if gb
        ]

    @cached_property
    def _links(self) -> list[Link]:
        links = []
        for flow in self.flows:
            i, j = self.number[flow.source], self.number[flow.target]
            window = np.ix_(self.at[i], self.at[j])
            usd = self.matrix.usd(flow.gib)[window]
            hours = self.matrix.hours(flow.gib, self.request.gbits_per_second)[window]
            links.append(Link(i, j, usd, hours))
        return links

    def _answer(
        self, solved: _Solved, points: tuple[DagPoint, ...], considered: int, version: str
    ) -> DagPlan:
        graph = self._graph
        ends = graph.ends(solved.chosen)
        transfers = self._transfers(solved.chosen)
        paid: dict[str, float] = {}
        for item in transfers:
            payer = item.source if item.source in self.number else item.target
            paid[payer] = paid.get(payer, 0.0) + item.usd
        placements = [self._placement(solved, number, ends, paid) for number in self.order]
        parts = [placement.breakdown for placement in placements]
        total = Breakdown(
            *(
                sum(getattr(part, name) for part in parts)
                for name in ("compute", "disk", "egress", "restarts")
            )
        )
        return DagPlan(
            placements=tuple(placements),
            transfers=tuple(transfers),
            objective=self.request.objective,
            usd=total.total,
            hours=max(ends),
            breakdown=total,
            proof=solved.proof,
            points=points,
            hints=self._hints(),
            considered=considered,
            catalog_version=version,
        )

    def _placement(
        self, solved: _Solved, number: int, ends: Sequence[float], paid: dict[str, float]
    ) -> Placement:
        item, choices, choice = self.request.tasks[number], self.choices[number], solved.chosen[number]
        own = choices.breakdown(choice)
        parts = Breakdown(own.compute, own.disk, paid.get(item.name, 0.0), own.restarts)
        reason = self._reason(number, choice)
        candidate = choices.candidate(choice, item.task.num_nodes, reason)
        hours = float(self._own[number].hours[choice])
        return Placement(item.name, candidate, parts, ends[number] - hours, ends[number], reason)

    def _reason(self, number: int, choice: int) -> str:
        """Alone it would be somewhere else: then its data holds it here."""
        choices = self.choices[number]
        cheapest = int(choices.value.argmin())
        more = float(choices.usd[choice] - choices.usd[cheapest])
        if more < 0.005:
            return "the cheapest by itself"
        other = "/".join(part for part in self.places[int(self.at[number][cheapest])] if part)
        why = (
            "to be near its data"
            if self.request.objective == "cost"
            else "to be done sooner or near its data"
        )
        return f"${more:.2f} more than on {other}, {why}"

    def _transfers(self, chosen: Sequence[int]) -> list[Transfer]:
        speed = self.request.gbits_per_second
        found = []
        at = [int(places[choice]) for places, choice in zip(self.at, chosen, strict=True)]
        for flow in self.flows:
            ends = (at[self.number[flow.source]], at[self.number[flow.target]])
            found.append(self._transfer(flow, *ends, speed))
        for position, item in enumerate(self.request.tasks):
            for uri, place, gib, inward in self._bucket_flows(item):
                flow = _Flow(uri, item.name, gib) if inward else _Flow(item.name, uri, gib)
                ends = (place, at[position]) if inward else (at[position], place)
                found.append(self._transfer(flow, *ends, speed))
        return [item for item in found if item.gib]

    def _transfer(self, flow: _Flow, source: int, target: int, speed: float) -> Transfer:
        usd = self.matrix.usd_between(flow.gib, source, target)
        hours = 0.0 if source == target else transfer_hours(flow.gib, speed)
        return Transfer(flow.source, flow.target, flow.gib, usd, hours)

    def _hints(self) -> tuple[str, ...]:
        unknown = sorted(
            uri for uri, place in self.buckets.items() if not self.places[int(self.renumbered[place])][1]
        )
        return tuple(f"the region of {uri} is not known; name it in buckets" for uri in unknown)


def _used_places(
    choices: Sequence[Choices], buckets: dict[str, int], index: PlaceIndex
) -> tuple[list[tuple[str, str]], Ints]:
    """Only places that some task or bucket can be in, renumbered."""
    used = np.unique(
        np.concatenate([*(item.place for item in choices), np.array([*buckets.values()], dtype=np.int64)])
    )
    renumbered = np.full(len(index.places), -1, dtype=np.int64)
    renumbered[used] = np.arange(len(used))
    return [index.places[place] for place in used.tolist()], renumbered
