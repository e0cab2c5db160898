"""What this machine offers: all of it, and pieces cut to the sizes that a request names, at price 0."""

from __future__ import annotations

from skyloom_common.contracts.plan import Offer
from skyloom_common.contracts.task.expand import alternatives
from skyloom_common.contracts.task.model import ResourcesSpec
from skyloom_provisioner.providers.local.machine import Machine


def offers_of(machine: Machine, resources: ResourcesSpec) -> tuple[Offer, ...]:
    sizes = {(machine.vcpus, machine.memory_gib)}
    for wanted in alternatives(resources)[0]:
        sizes.add(_cut(machine, wanted))
    counts = {0, *(count for count in (1, 2, 4, 8, machine.gpu_count) if 0 < count <= machine.gpu_count)}
    return tuple(_offer(machine, *size, count) for size in sorted(sizes) for count in sorted(counts))


def _cut(machine: Machine, wanted: ResourcesSpec) -> tuple[float, float]:
    """The exact size asked for where it fits; "4+" and too much leave the machine's own size."""
    vcpus, memory = machine.vcpus, machine.memory_gib
    if wanted.cpus and not wanted.cpus.at_least and wanted.cpus.value <= machine.vcpus:
        vcpus = wanted.cpus.value
    if wanted.memory and not wanted.memory.at_least:
        asked = wanted.memory.value * (vcpus if wanted.memory.per_cpu else 1)
        memory = asked if asked <= machine.memory_gib else memory
    return vcpus, memory


def _offer(machine: Machine, vcpus: float, memory: float, gpus: int) -> Offer:
    whole = (vcpus, memory) == (machine.vcpus, machine.memory_gib)
    return Offer(
        cloud="local",
        instance_type="local" if whole else f"local-{vcpus:g}cpu-{memory:g}gb",
        vcpus=vcpus,
        memory_gib=memory,
        accelerator=machine.gpu_name if gpus else None,
        accelerator_count=float(gpus),
        accelerator_memory_gib=machine.gpu_memory_gib if gpus else None,
        price_per_hour=0.0,
        source="this machine",
    )
