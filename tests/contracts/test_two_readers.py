"""A contract is read by pydantic at a service's edge and by our own codec elsewhere: both must take and refuse the same.

One difference is known and harmless: pydantic turns "2" into 2 where a number is wanted.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from skyloom_common.contracts.clusters import (
    AutostopRequest,
    ExecRequest,
    LaunchRequest,
    StartRequest,
    StopRequest,
)
from skyloom_common.contracts.jobs import CancelJobs, JobSubmit
from skyloom_common.contracts.plan import PlanRequest
from skyloom_common.contracts.task.parse import parse_task_file
from skyloom_common.core import wire
from skyloom_common.core.errors import InvalidRequest

SEEDS = sorted((Path(__file__).parents[2] / "examples" / "seeds").glob("*.yaml"))


@pytest.mark.parametrize("path", SEEDS, ids=lambda path: path.stem)
def test_both_read_the_same_launch(path: Path) -> None:
    for task in parse_task_file(path).tasks:
        body = wire.dumps(LaunchRequest(task=task))
        by_codec = wire.loads(LaunchRequest, body, strict=True)
        by_pydantic = TypeAdapter(LaunchRequest).validate_json(body)
        assert by_codec == LaunchRequest(task=task)
        assert wire.to_wire(by_pydantic) == wire.to_wire(by_codec)


GOOD: list[tuple[type, dict[str, Any]]] = [
    (LaunchRequest, {"task": {}}),
    (
        LaunchRequest,
        {"task": {"resources": {"autostop": {"idle_minutes": 3, "wait_for": "none"}}}, "no_setup": True},
    ),
    (ExecRequest, {"task": {"envs": {"A": None}}, "mounts": [{"destination": "~/x", "manifest_id": "m"}]}),
    (PlanRequest, {"task": {}, "enabled": ["aws"], "blocked": [{"cloud": "gcp"}]}),
    (JobSubmit, {"key": "k", "name": "n", "user": "u", "demand": {"cpus": 1, "gpus": 0.5}}),
    (CancelJobs, {"job_ids": [1, 2]}),
    (StartRequest, {}),
    (StopRequest, {"purge": True}),
    (AutostopRequest, {"autostop": None}),
]
BAD: list[tuple[type, dict[str, Any]]] = [
    (LaunchRequest, {}),
    (LaunchRequest, {"task": {}, "tsk": 1}),
    (LaunchRequest, {"task": []}),
    (LaunchRequest, {"task": {"nam": "x"}}),
    (LaunchRequest, {"task": {"resources": {"cpu": 1}}}),
    (LaunchRequest, {"task": {}, "mounts": [{"destination": "a", "manifest_id": "b", "mode": 1}]}),
    (LaunchRequest, {"task": {"resources": {"autostop": {"wait_for": "rain"}}}}),
    (ExecRequest, {"task": {}, "mounts": [{"destination": "~/x"}]}),
    (JobSubmit, {"key": "k", "name": "n"}),
    (CancelJobs, {"job_ids": ["x"]}),
    (StopRequest, {"purge": "perhaps"}),
]


@pytest.mark.parametrize(("cls", "body"), GOOD)
def test_both_take(cls: type, body: dict[str, Any]) -> None:
    text = json.dumps(body)
    assert wire.to_wire(TypeAdapter(cls).validate_json(text)) == wire.to_wire(
        wire.loads(cls, text, strict=True)
    )


@pytest.mark.parametrize(("cls", "body"), BAD)
def test_both_refuse(cls: type, body: dict[str, Any]) -> None:
    text = json.dumps(copy.deepcopy(body))
    with pytest.raises(InvalidRequest):
        wire.loads(cls, text, strict=True)
    with pytest.raises(ValidationError):
        TypeAdapter(cls).validate_json(text)
