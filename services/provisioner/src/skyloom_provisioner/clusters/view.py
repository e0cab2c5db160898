"""Clusters as clients see them: rows plus what the agents said last."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace

from skyloom_common.contracts.clusters import Cluster, ClusterStatus, NodeView
from skyloom_common.core.clock import Clock
from skyloom_provisioner.clusters.idle import autostop_now
from skyloom_provisioner.clusters.rows import ClusterState, NodeRow, NodeStatus
from skyloom_provisioner.clusters.text import resources_text
from skyloom_provisioner.nodes.live import LiveView

MOST_ENDPOINTS = 100


def view_of(state: ClusterState, live: LiveView, clock: Clock) -> Cluster:
    """Without what changes by itself; see `with_ages`."""
    row, offer = state.cluster, state.cluster.offer
    price = offer.price_per_hour if offer else None
    return Cluster(
        id=row.id,
        name=row.name,
        status=ClusterStatus(row.status),
        user=row.user,
        num_nodes=row.num_nodes,
        launched_at=row.launched_at,
        resources=resources_text(offer, row.num_nodes),
        status_message=row.status_message,
        unhealthy=row.unhealthy,
        cloud=offer.cloud if offer else "",
        region=offer.region if offer else "",
        zone=offer.zone if offer else "",
        instance_type=offer.instance_type if offer else "",
        use_spot=offer.use_spot if offer else False,
        accelerators={offer.accelerator: offer.accelerator_count} if offer and offer.accelerator else {},
        cpus=offer.vcpus if offer else None,
        memory_gib=offer.memory_gib if offer else None,
        price_per_hour=None if price is None else price * row.num_nodes,
        autostop=row.autostop,
        last_use=row.last_use,
        head_ip=state.head.address if state.head else "",
        nodes=tuple(_node(node) for node in state.nodes),
        endpoints=_endpoints(state),
        status_updated_at=row.status_updated_at,
        last_event=row.last_event,
        labels=dict(row.resources.labels) if row.resources else {},
        version=row.version,
    )


def with_ages(view: Cluster, state: ClusterState, live: LiveView, clock: Clock) -> Cluster:
    """Heartbeat ages, use and idleness as of now."""
    now = clock.now()
    nodes = tuple(_heard(node, row, live, now) for node, row in zip(view.nodes, state.nodes, strict=True))
    ages = [node.heartbeat_age_seconds for node in nodes if node.heartbeat_age_seconds is not None]
    return replace(
        view,
        nodes=nodes,
        heartbeat_age_seconds=max(ages) if ages else None,
        idle_seconds=_rounded(autostop_now(clock, live, state).idle_seconds),
    )


def _node(row: NodeRow) -> NodeView:
    return NodeView(rank=row.rank, id=row.id, status=row.status, address=row.address, problem=row.problem)


def _heard(view: NodeView, row: NodeRow, live: LiveView, now: float) -> NodeView:
    age, known = live.age(row.id), live.nodes.get(row.id)
    if age is None and row.last_seen_at is not None and row.status != NodeStatus.STOPPED.value:
        age = max(0.0, now - row.last_seen_at)
    if known is None:
        return replace(view, heartbeat_age_seconds=_rounded(age))
    use = known.heartbeat.utilization
    gpus = [gpu.utilization_percent for gpu in use.gpus]
    return replace(
        view,
        heartbeat_age_seconds=_rounded(age),
        cpu_percent=use.cpu_percent,
        memory_used_gib=use.memory_used_gib,
        gpu_percent=sum(gpus) / len(gpus) if gpus else None,
    )


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)


def _endpoints(state: ClusterState) -> dict[str, str]:
    """Of every port, those of ranges too; only the first hundred, because a row of `sky status` is no place for thousands."""
    row = state.cluster
    if not row.is_up or state.head is None or row.resources is None:
        return {}
    ports = itertools.islice(_each_port(row.resources.ports), MOST_ENDPOINTS)
    return {str(port): f"http://{state.head.address}:{port}" for port in ports}


def _each_port(ports: Iterable[str]) -> Iterator[int]:
    for text in ports:
        first, _, last = text.partition("-")
        yield from range(int(first), int(last or first) + 1)
