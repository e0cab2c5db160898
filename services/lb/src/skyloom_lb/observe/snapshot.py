"""All counts of one process as JSON-able data, and the sum of several: one page shows every worker."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from skyloom_lb.balancer import Balancer

_NOT_SUMMED = frozenset(
    (
        "state",
        "reason",
        "url",
        "weight",
        "latency_ewma",
        "known_good",
        "draining",
        "healthy",
        "informed",
        "ask",
    )
)


def snapshot(balancer: Balancer) -> dict[str, Any]:
    return {
        "services": {
            name: {
                "stats": service.stats.dump(),
                "active": service.active,
                "waiting": service.waiting,
                "endpoints": {
                    backend.id: endpoint_row(backend)
                    for backend in [*service.backends.values(), *service.leaving]
                },
            }
            for name, service in balancer.services.items()
        },
        "models": balancer.models.dump(),
        "keys": balancer.keys.dump(),
        "early": dict(balancer.early),
        "connections": len(balancer.fronts),
        "log_dropped": balancer.access_log.dropped if balancer.access_log is not None else 0,
        "draining": balancer.draining,
        "extra": _extra(balancer),
        "limits": getattr(balancer.front, "limits_trouble", ""),
    }


def _extra(balancer: Balancer) -> dict[str, Any]:
    """Counters of the front: any mapping of names to numbers."""
    counters = getattr(balancer.front, "counters", None)
    return dict(counters()) if counters is not None else {}


def endpoint_row(backend: Any) -> dict[str, Any]:
    return {
        "url": backend.url,
        "state": backend.state,
        "reason": backend.reason,
        "kept": int(backend.kept),
        "weight": backend.weight,
        "effective_weight": backend.effective_weight,
        "in_flight": backend.in_flight,
        "idle_connections": backend.pool.idle_count(),
        "latency_ewma": round(backend.latency, 6),
        "last_failure": backend.signals.last_failure,
        "stats": backend.stats.dump(),
    }


def add(one: Any, other: Any, name: str = "") -> Any:
    """Numbers are added, mappings and lists element by element; words and states are the first one's."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = list(dict.fromkeys([*one, *other]))
        return {key: add(one[key], other[key], key) if key in one and key in other else one.get(key, other.get(key))
                for key in keys}  # fmt: skip
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [add(first, second) for first, second in zip(one, other, strict=True)]
    if name in _NOT_SUMMED or isinstance(one, (str, bool)) or name == "effective_weight":
        return one
    return one + other if isinstance(one, (int, float)) and isinstance(other, (int, float)) else one


def total(snapshots: list[dict[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for one in snapshots:
        result = cast("dict[str, Any]", add(result, one)) if result else one
    return result or {
        "services": {},
        "models": {},
        "keys": {},
        "early": {},
        "connections": 0,
        "at": time.time(),
    }


def _counts(extra: dict[str, Any]) -> dict[str, Any]:
    """Without the gauges: what is true of a worker now is not true of a dead one."""
    return {name: value for name, value in extra.items() if not name.startswith("now_")}


def past(one: dict[str, Any]) -> dict[str, Any]:
    """What a worker that is gone leaves behind: its counts, none of what it was doing. An endpoint without a state is one that
    no living worker has."""
    gone = {**one, "connections": 0, "extra": _counts(one.get("extra", {})), "limits": ""}
    gone |= {"sources": {}, "source_trouble": {}, "eligible": {}}
    gone["services"] = {
        name: {
            **service,
            "active": 0,
            "waiting": 0,
            "endpoints": {id: {"stats": row["stats"]} for id, row in service["endpoints"].items()},
        }
        for name, service in one["services"].items()
    }
    return gone


def living(service: dict[str, Any]) -> dict[str, Any]:
    """Endpoints that a living worker has."""
    return {id: row for id, row in service["endpoints"].items() if "state" in row}
