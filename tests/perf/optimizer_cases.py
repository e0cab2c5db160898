"""Graphs, fleets and recordings for the optimizer's benchmark: random, but always the same for a seed."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from types import ModuleType

from skyloom_common.contracts.dag import Bucket, DagEdge, DagPlanRequest, DagTask
from skyloom_common.contracts.fleet import FleetPlanRequest, FleetTask, Reservation, Spread
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


HOURS = (1.0, 2.0, 4.0, 8.0, 24.0)
HELD = (
    ("aws", "us-east-1", "p4d.24xlarge"),
    ("aws", "us-west-2", "p5.48xlarge"),
    ("aws", "us-east-1", "m5.8xlarge"),
    ("aws", "eu-west-1", "g6.xlarge"),
    ("gcp", "us-central1", "a2-highgpu-8g"),
    ("gcp", "us-central1", "g2-standard-4"),
    ("gcp", "europe-west4", "n2-standard-32"),
    ("azure", "eastus", "Standard_ND96asr_v4"),
    ("azure", "westus2", "Standard_D8s_v5"),
    ("lambda", "us-east-1", "gpu_8x_h100_sxm5"),
)


def _reserved(wanted: FleetPlanRequest, r: Random) -> FleetPlanRequest:
    held = [
        Reservation(f"held {n}", *place, nodes=r.randint(3, 25), price_per_hour=r.choice([0.0, 0.0, 0.5]))
        for n, place in enumerate(HELD)
    ]
    return dataclasses.replace(wanted, reservations=tuple(held))


def _clustered(wanted: FleetPlanRequest, r: Random) -> FleetPlanRequest:
    """Five Kubernetes clusters instead of the pools of five clouds."""
    offers, pools = [], list(wanted.quotas[10:])
    for number in range(5):
        where, device = f"cluster-{number}", r.choice(["A100", "H100", "L4", "V100"])
        offers.append(Offer("kubernetes", "cpu", where, vcpus=96.0, memory_gib=384.0, price_per_hour=0.0))
        offers.append(
            Offer(
                "kubernetes",
                "gpu",
                where,
                accelerator=device,
                accelerator_count=8.0,
                vcpus=128.0,
                memory_gib=1024.0,
                price_per_hour=r.choice([0.0, 2.0]),
            )
        )
        for unit, most in (("vcpus", r.randint(200, 2000)), ("accelerators", r.randint(8, 128))):
            pools.append(QuotaPool(f"{where} {unit}", most, unit, cloud="kubernetes", region=where))
    enabled = (*CLOUDS[5:], "kubernetes")
    return dataclasses.replace(wanted, quotas=tuple(pools), extra_offers=tuple(offers), enabled=enabled)


def _spread(wanted: FleetPlanRequest, r: Random) -> FleetPlanRequest:
    """Fifty services of many copies each instead of single tasks."""
    count = sum(item.count for item in wanted.tasks) // 50
    tasks = []
    for item in wanted.tasks[:50]:
        by, share, least = r.choice(
            [("region", 0.3, 1), ("zone", 0.25, 5), ("cloud", 0.5, 2), ("region", 1.0, 4)]
        )
        tasks.append(dataclasses.replace(item, count=count, spread=Spread(by, share, least)))
    return dataclasses.replace(wanted, tasks=tuple(tasks))


def _ranked(wanted: FleetPlanRequest, r: Random) -> FleetPlanRequest:
    tasks = [dataclasses.replace(item, priority=r.choice([0, 0, 5, 10])) for item in wanted.tasks]
    return dataclasses.replace(wanted, tasks=tuple(tasks))


def _hourly(dollars: float) -> Callable[[FleetPlanRequest, Random], FleetPlanRequest]:
    return lambda wanted, r: dataclasses.replace(wanted, max_usd_per_hour=dollars * r.uniform(0.9, 1.1))


def _in_all(dollars: float) -> Callable[[FleetPlanRequest, Random], FleetPlanRequest]:
    return lambda wanted, r: dataclasses.replace(wanted, max_usd=dollars * r.uniform(0.9, 1.1))


Change = Callable[[FleetPlanRequest, Random], FleetPlanRequest]
VARIETIES: dict[str, tuple[Change, ...]] = {
    "quotas": (),
    "reservations": (_reserved,),
    "Kubernetes": (_clustered,),
    "budget an hour": (_hourly(4000.0),),
    "budget in all": (_in_all(30000.0),),
    "spread": (_spread,),
    "priorities": (_ranked,),
    "everything": (_reserved, _clustered, _ranked, _hourly(6000.0)),
    "everything, spread": (_reserved, _clustered, _ranked, _spread, _hourly(8000.0)),
}
FLEETS = {
    f"{name}, {room}, {runs}": (changes, much, hours)
    for name, changes in VARIETIES.items()
    for room, much in (("room", 14.0), ("crowded", 5.0))
    for runs, hours in (("equal runs", HOURS), ("own runs", None))
}


def variety(name: str, size: int, seed: int) -> FleetPlanRequest:
    """One of FLEETS."""
    changes, room, hours = FLEETS[name]
    wanted = fleet(size, seed, room, hours)
    for change in changes:
        wanted = change(wanted, Random(seed + 1))
    return wanted


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
