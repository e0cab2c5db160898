"""An operation as its row, and the contract made of it. What is secret in a row never gets into the contract."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Row

from skyloom_common.contracts.operations import ErrorBody, Operation, OperationEvent, OperationStatus
from skyloom_common.core.wire import from_wire

LAUNCH, EXEC, START, STOP, DOWN, AUTOSTOP = "launch", "exec", "start", "stop", "down", "autostop"


@dataclass(frozen=True)
class OperationRow:
    seq: int
    id: str
    kind: str
    target: str
    user: str
    status: OperationStatus
    phase: str
    created_at: float
    updated_at: float
    finished_at: float | None
    cancel_requested: bool
    abandoned: bool
    error: dict[str, Any] | None
    result: dict[str, Any] | None
    request: dict[str, Any] | None
    sealed_secrets: str | None = field(repr=False)
    saga: dict[str, Any] | None
    scratch: dict[str, Any] | None
    fingerprint: str

    @classmethod
    def of(cls, row: Row[Any]) -> OperationRow:
        known = row._mapping
        values = {name: known[name] for name in cls.__dataclass_fields__}
        return cls(**{**values, "status": OperationStatus(values["status"])})

    def view(self) -> Operation:
        return Operation(
            id=self.id,
            kind=self.kind,
            target=self.target,
            user=self.user,
            status=self.status,
            created_at=self.created_at,
            phase=self.phase,
            updated_at=self.updated_at,
            finished_at=self.finished_at,
            cancel_requested=self.cancel_requested,
            error=from_wire(ErrorBody, self.error) if self.error else None,
            result=self.result or {},
        )


def event_of(row: Row[Any]) -> OperationEvent:
    return OperationEvent(
        operation_id=row.operation_id,
        seq=row.seq,
        at=row.at,
        phase=row.phase,
        message=row.message,
        level=row.level,
        data=row.data or {},
        status=OperationStatus(row.status) if row.status else None,
    )
