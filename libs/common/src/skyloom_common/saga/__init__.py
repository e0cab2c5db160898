"""Sagas: steps with do and undo, resumed after a crash, undone after a failure or a cancel."""

from skyloom_common.saga.cancel import CancelFlag
from skyloom_common.saga.engine import run_saga
from skyloom_common.saga.model import MemoryLog, Outputs, Saga, SagaLog, SagaState, Step

__all__ = ["CancelFlag", "MemoryLog", "Outputs", "Saga", "SagaLog", "SagaState", "Step", "run_saga"]
