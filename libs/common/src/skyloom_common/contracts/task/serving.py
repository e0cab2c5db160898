"""The `service` and `pool` sections."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Callable, Optional, Union

from skyloom_common.contracts.task import scalars
from skyloom_common.contracts.task.accelerators import accelerators
from skyloom_common.contracts.task.model import PoolSpec, ReadinessProbe, ReplicaPolicy, ServiceSpec
from skyloom_common.contracts.task.problems import Field

POLICIES = ("round_robin", "least_load", "instance_aware_least_load")
_SERVICE_KEYS = (
    "readiness_probe", "replicas", "workers", "replica_policy", "load_balancing_policy", "load_balancer", "ports", "tls",
)  # fmt: skip
_PROBE_SECONDS = (
    "initial_delay_seconds", "timeout_seconds", "endpoint_probe_interval_seconds", "consecutive_failure_threshold_timeout",
)  # fmt: skip
_POOL_KEYS = (
    "workers", "min_workers", "max_workers", "queue_length_threshold", "upscale_delay_seconds", "downscale_delay_seconds",
)  # fmt: skip
_COUNT = "a whole number from 0"


def service(field: Field) -> Optional[ServiceSpec]:
    if not field.is_mapping("fields such as {readiness_probe: /health, replicas: 2}"):
        return None
    field.only(_SERVICE_KEYS)
    values: dict[str, Any] = {}
    for key, parse in _SERVICE_PARSERS.items():
        item = field.get(key)
        value = None if item is None else parse(item)
        if value is not None:
            values["replicas" if key == "workers" else key] = value
    policy = values.get("replica_policy")
    if "replicas" in values and policy is not None:
        field.child("replica_policy", None).refuse("replica_policy together with replicas", "one of the two")
    _check_instance_aware(field, policy, values.get("load_balancing_policy"))
    values.update(_tls(field))
    balancer = field.get("load_balancer")
    if balancer is not None and balancer.is_mapping("{stream_timeout_seconds: 120}"):
        balancer.only(("stream_timeout_seconds",))
        limit = balancer.get("stream_timeout_seconds")
        values["stream_timeout_seconds"] = None if limit is None else scalars.seconds(limit)
    return ServiceSpec(**values)


def pool(field: Field) -> Optional[PoolSpec]:
    if not field.is_mapping("{workers: 3} or {min_workers: 1, max_workers: 5}"):
        return None
    field.only(_POOL_KEYS)
    values: dict[str, Any] = {}
    for key, parse in _POOL_PARSERS.items():
        item = field.get(key)
        value = None if item is None else parse(item)
        if value is not None:
            values[key] = value
    _check_pool(field, values)
    return PoolSpec(**values)


def _probe(field: Field) -> ReadinessProbe:
    if isinstance(field.value, str):
        return ReadinessProbe(path=_probe_path(field) or "/")
    if not field.is_mapping("a path such as /health, or a mapping with path"):
        return ReadinessProbe()
    field.only(("path", "post_data", "headers", *_PROBE_SECONDS))
    values: dict[str, Any] = {}
    path = field.get("path")
    if path is None:
        field.refuse("path is missing", "path: /health")
    else:
        values["path"] = _probe_path(path) or "/"
    for key in _PROBE_SECONDS:
        item = field.get(key)
        value = None if item is None else scalars.seconds(item)
        if value is not None:
            values[key] = value
    data, headers = field.get("post_data"), field.get("headers")
    if data is not None:
        values["post_data"] = _post_data(data)
    if headers is not None:
        values["headers"] = scalars.text_map(headers, "header names to text")
    return ReadinessProbe(**values)


def _probe_path(field: Field) -> Optional[str]:
    if isinstance(field.value, str) and field.value.startswith("/"):
        return field.value
    field.refuse_value("a path of the service", "a path that begins with / such as /health")
    return None


def _post_data(field: Field) -> Optional[Union[str, dict[str, Any]]]:
    if isinstance(field.value, Mapping):
        return dict(field.value)
    if isinstance(field.value, str):
        try:
            json.loads(field.value)
        except ValueError:
            field.refuse_value("JSON", 'a mapping, or JSON text such as \'{"prompt": "hi"}\'')
            return None
        return field.value
    field.refuse_value("a body", "a mapping, or JSON text")
    return None


def _policy(field: Field) -> Optional[ReplicaPolicy]:
    if not field.is_mapping("{min_replicas: 1, max_replicas: 5, target_qps_per_replica: 2}"):
        return None
    field.only(_POLICY_PARSERS)
    values: dict[str, Any] = {}
    for key, parse in _POLICY_PARSERS.items():
        item = field.get(key)
        value = None if item is None else parse(item)
        if value is not None:
            values[key] = value
    if field.get("min_replicas") is None:
        field.refuse("min_replicas is missing", "min_replicas: 1")
    _check_policy(field, values)
    values.setdefault("min_replicas", 1)
    return ReplicaPolicy(**values)


def _check_policy(field: Field, values: Mapping[str, Any]) -> None:
    low, high = values.get("min_replicas"), values.get("max_replicas")
    target = values.get("target_qps_per_replica")
    if low is not None and high is not None and high < low:
        field.child("max_replicas", high).refuse(f"{high} is less than min_replicas {low}", f"{low} or more")
    if target is not None and field.get("max_replicas") is None:
        field.refuse("max_replicas is missing", "max_replicas together with target_qps_per_replica")
    if target is None and low is not None and high is not None and high > low:
        field.refuse(
            "target_qps_per_replica is missing", "it to say when to go from min_replicas to max_replicas"
        )


def _check_instance_aware(field: Field, policy: Optional[ReplicaPolicy], balancing: Optional[str]) -> None:
    by_type = policy is not None and isinstance(policy.target_qps_per_replica, dict)
    if by_type != (balancing == POLICIES[2]):
        field.child("load_balancing_policy", None).refuse(
            f"{POLICIES[2]} and a target_qps_per_replica for each accelerator belong together",
            "both or neither",
        )


def _target(field: Field) -> Optional[Union[float, dict[str, float]]]:
    right = "requests per second such as 2.5, or for each accelerator {H100: 10, A100: 4}"
    if not isinstance(field.value, Mapping):
        return scalars.number(field, right)
    found: dict[str, float] = {}
    for key, item in field.items():
        accelerators(Field(key, item.path, item.report))
        rate = scalars.number(item, right)
        if rate is not None:
            found[key] = rate
    return found or None


def _tls(field: Field) -> dict[str, Any]:
    tls = field.get("tls")
    if tls is None or not tls.is_mapping("{keyfile: KEY, certfile: CERT}"):
        return {}
    tls.only(("keyfile", "certfile"))
    found: dict[str, Any] = {}
    for key in ("keyfile", "certfile"):
        item = tls.get(key)
        if item is None:
            tls.refuse(f"{key} is missing", "both keyfile and certfile")
        else:
            found[f"tls_{key}"] = scalars.text(item, "the path of a file")
    return found


def _check_pool(field: Field, values: Mapping[str, Any]) -> None:
    low, high = values.get("min_workers"), values.get("max_workers")
    right = "workers, or both min_workers and max_workers"
    if field.report.found and any(problem.field.startswith("pool.") for problem in field.report.found):
        return
    if "workers" in values and (low is not None or high is not None):
        field.refuse("workers together with min_workers or max_workers", right)
    elif "workers" not in values and (low is None or high is None):
        field.refuse("the number of workers is missing", right)
    elif low is not None and high is not None and low > high:
        field.child("min_workers", low).refuse(f"{low} is more than max_workers {high}", f"{high} or less")
    if "queue_length_threshold" in values and high is None and "workers" in values:
        field.child("queue_length_threshold", None).refuse(
            "queue_length_threshold without max_workers", right
        )


_SERVICE_PARSERS: dict[str, Callable[[Field], Any]] = {
    "readiness_probe": _probe,
    "workers": lambda item: scalars.integer(item, _COUNT, low=0),
    "replicas": lambda item: scalars.integer(item, _COUNT, low=0),
    "replica_policy": _policy,
    "load_balancing_policy": lambda item: scalars.choice(item, POLICIES),
    "ports": lambda item: scalars.integer(item, "one port from 1 to 65535", low=1, high=65535),
}

_POLICY_PARSERS: dict[str, Callable[[Field], Any]] = {
    "min_replicas": lambda item: scalars.integer(item, _COUNT, low=0),
    "max_replicas": lambda item: scalars.integer(item, _COUNT, low=0),
    "num_overprovision": lambda item: scalars.integer(item, _COUNT, low=0),
    "target_qps_per_replica": _target,
    "upscale_delay_seconds": scalars.seconds,
    "downscale_delay_seconds": scalars.seconds,
    "base_ondemand_fallback_replicas": lambda item: scalars.integer(item, _COUNT, low=0),
    "dynamic_ondemand_fallback": scalars.boolean,
    "spot_placer": lambda item: scalars.choice(item, ("dynamic_fallback",)),
}

_POOL_PARSERS: dict[str, Callable[[Field], Any]] = {
    "workers": lambda item: scalars.integer(item, "a whole number from 0", low=0),
    "min_workers": lambda item: scalars.integer(item, "a whole number from 0", low=0),
    "max_workers": lambda item: scalars.integer(item, "a whole number from 1", low=1),
    "queue_length_threshold": lambda item: scalars.integer(item, "a whole number from 1", low=1),
    "upscale_delay_seconds": scalars.seconds,
    "downscale_delay_seconds": scalars.seconds,
}
