"""Who takes part in a job: its ranks, where they run and what each is given; and letting all of them go at the end."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Protocol

from skyloom_agent import environment, joblogs
from skyloom_agent.cluster import Cluster
from skyloom_agent.gang import Member
from skyloom_agent.model import RUN, SETUP, JobRecord, RankSpec, rank_uid
from skyloom_agent.paths import Paths
from skyloom_agent.schedule import NodeCapacity
from skyloom_common.core.errors import SkyloomError

log = logging.getLogger(__name__)

RELEASE_RETRY_SECONDS = (0.2, 1.0, 5.0, 15.0, 60.0)


class Board(Protocol):
    """Where the job's record is kept; every change is seen by whoever watches the queue."""

    def get(self, job_id: int) -> JobRecord: ...

    def change(self, record: JobRecord, soon: bool = False) -> None: ...

    def secrets(self, record: JobRecord) -> dict[str, str]: ...


class Roster:
    def __init__(
        self, job_id: int, board: Board, cluster: Cluster, paths: Paths, grace_seconds: float
    ) -> None:
        self._job_id = job_id
        self._board = board
        self._cluster = cluster
        self._paths = paths
        self._grace = grace_seconds

    @property
    def record(self) -> JobRecord:
        return self._board.get(self._job_id)

    def members(self, phase: str) -> list[Member]:
        record = self.record
        if phase == SETUP:
            nodes = list(range(record.cluster_size)) if record.submit.setup else []
        else:
            nodes = [place.node for place in record.places] if record.submit.run else []
        return [self._member(phase, rank, node) for rank, node in enumerate(nodes)]

    def _member(self, phase: str, rank: int, node: int) -> Member:
        record = self.record
        return Member(
            rank=rank,
            node_index=node,
            uid=rank_uid(record.uid, phase, rank),
            spec=lambda: self._spec(phase, rank, node),
            node=lambda: self._cluster.node(node),
            output=self._paths.home / joblogs.rank_log(record, phase, rank, node),
        )

    def _spec(self, phase: str, rank: int, node: int) -> RankSpec:
        record = self.record
        if phase == SETUP and node != 0:
            output = f"{joblogs.job_dir(record)}/tasks/setup.log"
        else:
            output = joblogs.rank_log(record, phase, rank, node)
        return RankSpec(
            uid=rank_uid(record.uid, phase, rank),
            job_id=record.job.job_id,
            job_uid=record.uid,
            phase=phase,
            rank=rank,
            script=(record.submit.setup if phase == SETUP else record.submit.run) or "",
            log=output,
            env=self._env(phase, rank, node),
            grace_seconds=self._grace,
        )

    def _env(self, phase: str, rank: int, node: int) -> dict[str, str]:
        record = self.record
        envs = {**record.submit.envs, **self._board.secrets(record)}
        all_ips = self._cluster.addresses()
        gpus = record.demand.gpus
        if phase == SETUP:
            return environment.setup_env(
                envs,
                rank=rank,
                ips=all_ips,
                head_ip=all_ips[0],
                num_nodes=record.job.num_nodes,
                gpus_asked=gpus,
            )
        capacity = self._cluster.capacities.get(node)
        place = record.places[rank]
        return environment.run_env(
            envs,
            job_id=record.job.job_id,
            rank=rank,
            ips=[self.address(place.node) for place in record.places],
            head_ip=all_ips[0],
            gpus_asked=gpus,
            gpus=_names(capacity, place.gpus) if capacity and capacity.gpus else None,
        )

    def address(self, node: int) -> str:
        return self._cluster.peer(node).address

    async def release(self) -> None:
        """No node keeps anything of the job: what still runs there is ended. Repeats until every node was reached."""
        members = self.members(SETUP) + self.members(RUN)
        await asyncio.gather(*(self._release_member(member) for member in members))
        self._board.change(slim(self.record))

    async def _release_member(self, member: Member) -> None:
        """A node that left the cluster keeps nothing."""
        attempt = 0
        while member.node_index < self._cluster.size:
            try:
                node = member.node()
                await node.stop(member.uid)
                await node.release(member.uid)
                return
            except SkyloomError as error:
                wait = RELEASE_RETRY_SECONDS[min(attempt, len(RELEASE_RETRY_SECONDS) - 1)]
                log.info("rank %s is not released yet: %s", member.uid, error)
            attempt += 1
            await asyncio.sleep(wait)


def _names(capacity: NodeCapacity, gpus: tuple[int, ...]) -> tuple[str, ...]:
    """The queue counts a node's GPUs from 0; on a machine that several nodes share they are called otherwise."""
    names = capacity.gpu_names
    return tuple(names[gpu] if gpu < len(names) else str(gpu) for gpu in gpus)


def slim(record: JobRecord) -> JobRecord:
    """A job that is over and released: what it was to do is not kept, only what became of it."""
    return replace(record, released=True, submit=replace(record.submit, setup=None, run=None, envs={}))
