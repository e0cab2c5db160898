"""A kind of operation: its saga, and what its result is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from skyloom_common.saga import Outputs, Saga
from skyloom_provisioner.operations.context import OperationContext


@dataclass(frozen=True)
class Kind:
    saga: Saga[OperationContext]
    result: Callable[[OperationContext, Outputs], dict[str, Any]]
    repeatable: bool = False
    """No step has an undo: after a crash it runs again from its first step, so its state need not be kept."""
