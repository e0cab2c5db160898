"""Operations: every mutating call's durable record, and the events a client follows by SSE.

A client that lost the connection (or whose server restarted) asks again with the last `seq` it saw.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any, Optional


class OperationStatus(str, enum.Enum):
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def is_final(self) -> bool:
        return self in (OperationStatus.SUCCEEDED, OperationStatus.FAILED, OperationStatus.CANCELLED)


@dataclass(frozen=True)
class ErrorBody:
    """SkyloomError.to_wire() as a contract."""

    code: str
    message: str
    hint: Optional[str] = None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Operation:
    """`kind`: launch, exec, start, stop, down, autostop, cancel_jobs. `target`: the cluster's name.

    `phase`: what it is doing now (see OperationEvent). `result` by kind: launch/exec {"cluster": name, "job_id": int|None},
    start {"cluster": name}, others {}.
    """

    id: str
    kind: str
    target: str
    user: str
    status: OperationStatus
    created_at: float
    phase: str = ""
    updated_at: float = 0.0
    finished_at: Optional[float] = None
    cancel_requested: bool = False
    error: Optional[ErrorBody] = None
    result: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OperationEvent:
    """One step of progress. `seq` counts from 1 without gaps in one operation.

    `phase` of a launch, in order: queued, planning, provisioning, starting_agents, syncing, submitting, done.
    `message`: a sentence for people. `data` for programs (e.g. {"candidate": ..., "attempt": 2, "bytes_sent": ...}).
    The last event has `status` set to the final status.
    """

    operation_id: str
    seq: int
    at: float
    phase: str
    message: str
    level: str = "info"
    data: dict[str, Any] = field(default_factory=dict)
    status: Optional[OperationStatus] = None


@dataclass(frozen=True)
class OperationList:
    operations: tuple[Operation, ...] = ()
