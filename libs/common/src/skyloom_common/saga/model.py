"""What a saga is and what its log keeps."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Generic, Optional, Protocol, TypeVar

C = TypeVar("C")
Outputs = dict[str, dict[str, Any]]
"""Step name to what its `do` returned."""


@dataclass(frozen=True)
class Step(Generic[C]):
    """`do(context, outputs)` returns a JSON-able mapping or None. `undo` must also cope with a `do` that only began."""

    name: str
    do: Callable[[C, Outputs], Awaitable[Optional[dict[str, Any]]]]
    undo: Optional[Callable[[C, Outputs], Awaitable[None]]] = None


@dataclass(frozen=True)
class Saga(Generic[C]):
    name: str
    steps: tuple[Step[C], ...]
    keep_from: Optional[str] = None
    """Name of the first step whose failure leaves what the steps before it made."""

    def __post_init__(self) -> None:
        names = [step.name for step in self.steps]
        if len(set(names)) != len(names) or (self.keep_from and self.keep_from not in names):
            raise ValueError(
                f"saga {self.name}: step names must be unique and keep_from one of them: {names}"
            )


@dataclass(frozen=True)
class SagaState:
    """`position`: the step that is being done, or (undoing) the next one to undo. `error`: wire form of the first failure."""

    position: int = 0
    undoing: bool = False
    undo_down_to: int = 0
    outputs: dict[str, Any] = field(default_factory=dict)
    error: Optional[dict[str, Any]] = None


class SagaLog(Protocol):
    async def load(self) -> Optional[SagaState]: ...

    async def save(self, state: SagaState, step: str) -> None:
        """Durable when it returns. `step`: what begins now ("" at the end)."""
        ...


class MemoryLog:
    """Keeps the state as long as the object lives; for tests and for sagas that nobody resumes."""

    def __init__(self) -> None:
        self.state: Optional[SagaState] = None
        self.steps: list[str] = []

    async def load(self) -> Optional[SagaState]:
        return self.state

    async def save(self, state: SagaState, step: str) -> None:
        self.state = state
        self.steps.append(("undo " if state.undoing else "") + step)
