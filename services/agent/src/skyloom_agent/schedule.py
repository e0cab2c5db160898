"""Which waiting jobs start now, and where. A function of a snapshot: no clock, no I/O.

Strictly first in, first out: the first job that does not fit blocks those behind it. A job that can never fit is told so
at once, wherever it stands. Ranks of one job go to different nodes, lowest stable index first. Amounts are counted in
ten-thousandths, so that fractions add up exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Optional

from skyloom_agent.model import Place
from skyloom_common.contracts.jobs import JobDemand

UNIT = 10_000
TURN = "waiting for its turn; jobs start in the order they came"


@dataclass(frozen=True)
class NodeCapacity:
    """What a node hands out. `rank` is its stable index. `gpu_names`: what each of its GPUs is called there."""

    rank: int
    cpus: float
    memory_gib: float
    gpus: int
    gpu_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunningJob:
    job_id: int
    demand: JobDemand
    places: tuple[Place, ...]


@dataclass(frozen=True)
class WaitingJob:
    job_id: int
    demand: JobDemand
    num_nodes: int


@dataclass(frozen=True)
class Snapshot:
    """`nodes`: those whose capacity is known; `cluster_size`: how many there are in all. `waiting` in order of arrival."""

    nodes: tuple[NodeCapacity, ...]
    cluster_size: int
    running: tuple[RunningJob, ...]
    waiting: tuple[WaitingJob, ...]


@dataclass(frozen=True)
class Start:
    job_id: int
    places: tuple[Place, ...]


@dataclass(frozen=True)
class Schedule:
    """`waits` and `never` say why, for people."""

    starts: tuple[Start, ...]
    waits: tuple[tuple[int, str], ...]
    never: tuple[tuple[int, str], ...]


def schedule(snapshot: Snapshot) -> Schedule:
    accounts = [_Account(node) for node in snapshot.nodes]
    by_rank = {account.node.rank: account for account in accounts}
    for job in snapshot.running:
        for place in job.places:
            if place.node in by_rank:
                by_rank[place.node].take(job.demand, place.gpus)
    starts: list[Start] = []
    waits: list[tuple[int, str]] = []
    never: list[tuple[int, str]] = []
    busy = [job.job_id for job in snapshot.running]
    blocked = False
    verdicts: dict[tuple[JobDemand, int], str] = {}
    for waiting in snapshot.waiting:
        asked = (waiting.demand, waiting.num_nodes)
        if asked not in verdicts:
            verdicts[asked] = why_never(waiting, snapshot)
        reason = verdicts[asked]
        if reason:
            never.append((waiting.job_id, reason))
        elif blocked:
            waits.append((waiting.job_id, TURN))
        else:
            places = _place(waiting, accounts)
            if places:
                starts.append(Start(waiting.job_id, places))
                busy.append(waiting.job_id)
            else:
                blocked = True
                waits.append((waiting.job_id, _why_waits(waiting, snapshot, accounts, busy)))
    return Schedule(tuple(starts), tuple(waits), tuple(never))


def behind_others(job: WaitingJob, snapshot: Snapshot) -> Schedule:
    """For a job that came while others waited: nothing overtakes, so there is nothing else to decide."""
    reason = why_never(job, snapshot)
    told = ((job.job_id, reason or TURN),)
    return Schedule((), (), told) if reason else Schedule((), told, ())


def why_never(job: WaitingJob, snapshot: Snapshot) -> str:
    """Why the job can never start on this cluster; empty when it can, or when that is not known yet."""
    if job.num_nodes > snapshot.cluster_size:
        return f"num_nodes: the job needs {job.num_nodes} nodes and the cluster has {snapshot.cluster_size}"
    gpus = job.demand.gpus
    if gpus > 1 and gpus != int(gpus):
        return f"accelerators: {gpus:g} GPUs cannot be given; above one the count must be whole"
    unknown = snapshot.cluster_size - len(snapshot.nodes)
    fitting = sum(1 for node in snapshot.nodes if not _lacks(job.demand, _Account(node)))
    if fitting + unknown >= job.num_nodes:
        return ""
    biggest = max(snapshot.nodes, key=lambda node: (node.gpus, node.cpus, node.memory_gib))
    return (
        f"the job needs {_describe(job.demand)} on {_count(job.num_nodes, 'node')} and {_count(fitting, 'node')} "
        f"of the cluster {'has' if fitting == 1 else 'have'} that; the biggest has {_capacity(biggest)}"
    )


class _Account:
    """What is left on one node."""

    def __init__(self, node: NodeCapacity) -> None:
        self.node = node
        self.cpus = _units(node.cpus)
        self.memory = _units(node.memory_gib)
        self.gpus = [UNIT] * node.gpus

    def take(self, demand: JobDemand, gpus: tuple[int, ...]) -> None:
        self.cpus -= _units(demand.cpus)
        self.memory -= _units(demand.memory_gib)
        share = _gpu_share(demand)
        for index in gpus:
            if index < len(self.gpus):
                self.gpus[index] -= share

    def find_gpus(self, demand: JobDemand) -> Optional[tuple[int, ...]]:
        """Devices for the demand: a fraction goes where the least that suffices is left, whole ones to untouched devices."""
        if demand.gpus <= 0:
            return ()
        share = _gpu_share(demand)
        able = [index for index, left in enumerate(self.gpus) if left >= share]
        if share < UNIT:
            able.sort(key=lambda index: (self.gpus[index], index))
            return tuple(able[:1]) or None
        count = math.ceil(demand.gpus)
        return tuple(able[:count]) if len(able) >= count else None


def _place(job: WaitingJob, accounts: list[_Account]) -> Optional[tuple[Place, ...]]:
    able = [account for account in accounts if not _lacks(job.demand, account)]
    if len(able) < job.num_nodes:
        return None
    places = []
    for account in able[: job.num_nodes]:
        gpus = account.find_gpus(job.demand) or ()
        account.take(job.demand, gpus)
        places.append(Place(account.node.rank, gpus))
    return tuple(places)


def _lacks(demand: JobDemand, account: _Account) -> str:
    """What is missing on the node, e.g. "1 CPU"; empty when the demand fits."""
    missing = []
    if _units(demand.cpus) > account.cpus:
        missing.append(_cpus(demand.cpus))
    if _units(demand.memory_gib) > account.memory:
        missing.append(f"{demand.memory_gib:g} GiB of memory")
    if account.find_gpus(demand) is None:
        missing.append(_count(demand.gpus, "GPU"))
    return " and ".join(missing)


def _why_waits(job: WaitingJob, snapshot: Snapshot, accounts: list[_Account], busy: list[int]) -> str:
    unknown = snapshot.cluster_size - len(snapshot.nodes)
    if unknown and not busy:
        known = {node.rank for node in snapshot.nodes}
        absent = next(rank for rank in range(snapshot.cluster_size) if rank not in known)
        return f"waiting for node {absent} to answer"
    lacking = [(account.node.rank, _lacks(job.demand, account)) for account in accounts]
    short = [(rank, what) for rank, what in lacking if what]
    rank, what = short[0] if short else (0, _describe(job.demand))
    where = f"on node {rank}" if len(short) == 1 else f"on {_count(job.num_nodes, 'node')}"
    return f"waiting for {what} {where}; {_jobs(busy)}"


def _jobs(busy: list[int]) -> str:
    if len(busy) == 1:
        return f"job {busy[0]} runs"
    shown = ", ".join(str(job_id) for job_id in busy[:5])
    return f"jobs {shown}{', ...' if len(busy) > 5 else ''} run"


def _units(amount: float) -> int:
    return round(amount * UNIT)


def _gpu_share(demand: JobDemand) -> int:
    """What the demand takes of each of its devices."""
    return UNIT if demand.gpus >= 1 else _units(demand.gpus)


def _describe(demand: JobDemand) -> str:
    parts = [_cpus(demand.cpus)]
    if demand.memory_gib:
        parts.append(f"{demand.memory_gib:g} GiB of memory")
    if demand.gpus:
        parts.append(_count(demand.gpus, "GPU"))
    return ", ".join(parts)


def _capacity(node: NodeCapacity) -> str:
    return f"{_cpus(node.cpus)}, {node.memory_gib:g} GiB of memory, {_count(node.gpus, 'GPU')}"


def _cpus(amount: float) -> str:
    return _count(amount, "CPU")


def _count(amount: float, what: str) -> str:
    return f"{amount:g} {what}{'' if amount == 1 else 's'}"
