"""Graphs, fleets and recordings for the optimizer's benchmark: random, but always the same for a seed."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from types import ModuleType

from skyloom_common.contracts.dag import Bucket, DagEdge, DagPlanRequest, DagTask
from skyloom_common.contracts.fleet import FleetPlanRequest, FleetTask
from skyloom_common.contracts.plan import LaunchOutcome, Offer, QuotaPool, RunEstimate
from skyloom_common.contracts.task.model import ResourcesSpec, TaskSpec
from skyloom_optimizer.memory import remember
from skyloom_optimizer.plan import plan
from skyloom_optimizer.replay import Recording, recording_of
from skyloom_optimizer.snapshot import snapshot_of
from skyloom_optimizer.testing import at_least, gpu, request

TESTS = Path(__file__).parents[2] / "services" / "optimizer" / "tests"
KINDS = (
    ResourcesSpec(cpus=at_least(8)),
    ResourcesSpec(accelerators=(gpu("A100", 8),)),
    ResourcesSpec(accelerators=(gpu("H100", 8),)),
    ResourcesSpec(cpus=at_least(32), memory=at_least(128)),
    ResourcesSpec(accelerators=(gpu("L4"),)),
    ResourcesSpec(cpus=at_least(4), use_spot=True),
    ResourcesSpec(accelerators=(gpu("A100"), gpu("T4")), use_spot=True),
    ResourcesSpec(accelerators=(gpu("V100", 4),)),
)
CLOUDS = ("aws", "gcp", "azure", "lambda", "runpod", "civo", "do", "verda", "nebius", "vast")
MEMORY_SECONDS = 3 * 86400.0


def graph(size: int, seed: int, *, chain: bool = False) -> DagPlanRequest:
    """Every task may run in any cloud; data between 1 GiB and 5 TiB passes along each edge."""
    r = Random(seed)
    tasks = [_dag_task(r, number) for number in range(size)]
    edges = []
    for number in range(1, size):
        near = range(max(0, number - 8), number)
        sources = [number - 1] if chain else r.sample(near, min(len(near), r.choice([1, 2, 2, 3])))
        edges += [
            DagEdge(f"t{source}", f"t{number}", r.choice([1, 20, 200, 1000, 5000])) for source in sources
        ]
    return DagPlanRequest(tuple(tasks), tuple(edges), buckets=(Bucket("s3://data", "aws", "us-east-1"),))


def _dag_task(r: Random, number: int) -> DagTask:
    inputs = {"s3://data": float(r.choice([50, 500, 2000]))} if r.random() < 0.2 else {}
    task = TaskSpec(resources=r.choice(KINDS), inputs=inputs)
    return DagTask(f"t{number}", task, RunEstimate(hours=round(r.uniform(0.5, 12), 2)))


def fleet(size: int, seed: int, room: float, hours: Sequence[float] | None) -> FleetPlanRequest:
    """Two quota pools for each of ten clouds. `hours` None: every task runs for a time of its own, so none is equal to another."""
    r = Random(seed)
    tasks = []
    for number in range(size):
        task = TaskSpec(resources=r.choice(KINDS), num_nodes=r.choice([1, 1, 1, 2]))
        run = RunEstimate(hours=r.choice(hours) if hours else round(r.uniform(0.5, 24), 2))
        tasks.append(FleetTask(f"t{number}", task, run=run))
    pools = []
    for cloud in CLOUDS:
        pools.append(QuotaPool(f"{cloud} gpu", int(room * r.randint(20, 120)), "accelerators", cloud=cloud))
        pools.append(QuotaPool(f"{cloud} cpu", int(room * r.randint(100, 900)), "vcpus", cloud=cloud))
    return FleetPlanRequest(tuple(tasks), tuple(pools), enabled=CLOUDS)


def recordings() -> dict[str, Recording]:
    data = json.loads((TESTS / "data" / "spot_capacity.json").read_text(encoding="utf-8"))
    return {name: recording_of(item) for name, item in data["sets"].items()}


def arrivals(recording: Recording, every: float, seed: int) -> list[float]:
    """Users come at random moments."""
    r, now, found = Random(seed), 0.0, []
    while (now := now + r.expovariate(1 / every)) < recording.seconds:
        found.append(now)
    return found


def by_memory(offers: Sequence[Offer], outcomes: Sequence[LaunchOutcome], now: float) -> list[Offer]:
    """The order that the planner gives when it remembers the outcomes so far."""
    memory = remember([outcome for outcome in outcomes if outcome.at > now - MEMORY_SECONDS], now)
    wanted = ResourcesSpec(instance_type=offers[0].instance_type, use_spot=True)
    return [item.offer for item in plan(request(wanted), snapshot_of(offers), memory).candidates]


def brute_force() -> ModuleType:
    """The comparison with trying everything, which is a test."""
    path = TESTS / "test_optimal_by_brute_force.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
