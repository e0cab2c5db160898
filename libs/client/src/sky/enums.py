"""The enums that users of the SDK name."""

from __future__ import annotations

import enum

from skyloom_common.contracts.clusters import ClusterStatus
from skyloom_common.contracts.jobs import JobStatus


class OptimizeTarget(enum.Enum):
    COST = 0
    TIME = 1


class StatusRefreshMode(enum.StrEnum):
    NONE = "NONE"
    AUTO = "AUTO"
    FORCE = "FORCE"


class ManagedJobStatus(enum.StrEnum):
    PENDING = "PENDING"
    SUBMITTED = "SUBMITTED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    WINDING_DOWN = "WINDING_DOWN"
    RECOVERING = "RECOVERING"
    CANCELLING = "CANCELLING"
    SUCCEEDED = "SUCCEEDED"
    CANCELLED = "CANCELLED"
    FAILED = "FAILED"
    FAILED_SETUP = "FAILED_SETUP"
    FAILED_PRECHECKS = "FAILED_PRECHECKS"
    FAILED_NO_RESOURCE = "FAILED_NO_RESOURCE"
    FAILED_CONTROLLER = "FAILED_CONTROLLER"

    def is_terminal(self) -> bool:
        return self in (ManagedJobStatus.SUCCEEDED, ManagedJobStatus.CANCELLED) or self.value.startswith(
            "FAILED"
        )


__all__ = ["ClusterStatus", "JobStatus", "ManagedJobStatus", "OptimizeTarget", "StatusRefreshMode"]
