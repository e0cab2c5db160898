"""sky.serve: services. Named here so that programs can be written; not supported yet."""

from __future__ import annotations

import sys
import types
from typing import Any

from sky.serve.client.sdk import (
    down,
    status,
    sync_down_logs,
    tail_logs,
    terminate_replica,
    up,
    update,
)
from sky.serve.statuses import ReplicaStatus, ServiceComponent, ServiceStatus, UpdateMode

__all__ = [
    "ReplicaStatus", "ServiceComponent", "ServiceStatus", "UpdateMode", "down", "status", "sync_down_logs",
    "tail_logs", "terminate_replica", "up", "update",
]  # fmt: skip


class _CallableModule(types.ModuleType):
    """`sky.serve(model, config)` is written in the wild: the module answers to a call, too."""

    def __call__(self, *_args: Any, **_kwargs: Any) -> Any:
        from sky.unsupported import later

        return later("sky.serve(...)")()


sys.modules[__name__].__class__ = _CallableModule
