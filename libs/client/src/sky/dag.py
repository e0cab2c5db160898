"""sky.Dag: tasks and what comes before what. Single tasks can be launched; chains and groups belong to managed jobs."""

from __future__ import annotations

import enum
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sky.task import Task


class DagExecution(enum.Enum):
    SERIAL = "serial"
    PARALLEL = "parallel"


_open_dags = threading.local()


def current_dag() -> Dag | None:
    """The innermost `with sky.Dag()` of this thread."""
    stack: list[Dag] = getattr(_open_dags, "stack", [])
    return stack[-1] if stack else None


class Dag:
    def __init__(self, name: str | None = None) -> None:
        self.name = name
        self.tasks: list[Task] = []
        self.edges: list[tuple[Task, Task]] = []
        self.pool: str | None = None
        self.execution = DagExecution.SERIAL
        self.primary_tasks: list[str] = []
        self.termination_delay: dict[str, float] = {}
        self.inter_connection: bool | None = None

    def __enter__(self) -> Dag:  # noqa: PYI034
        _open_dags.stack = [*getattr(_open_dags, "stack", []), self]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _open_dags.stack = _open_dags.stack[:-1]

    def add(self, task: Task) -> None:
        if not any(task is other for other in self.tasks):
            self.tasks.append(task)

    def remove(self, task: Task) -> None:
        self.tasks = [other for other in self.tasks if other is not task]
        self.edges = [edge for edge in self.edges if task is not edge[0] and task is not edge[1]]

    def add_edge(self, before: Task, after: Task) -> None:
        self.add(before)
        self.add(after)
        self.edges.append((before, after))

    def get_graph(self) -> dict[Task, list[Task]]:
        """Each task with those that follow it."""
        return {task: [b for a, b in self.edges if a is task] for task in self.tasks}

    def is_chain(self) -> bool:
        """One task after the other, all of them."""
        ins = {id(task): 0 for task in self.tasks}
        outs = dict(ins)
        for before, after in self.edges:
            outs[id(before)] += 1
            ins[id(after)] += 1
        if any(count > 1 for count in [*ins.values(), *outs.values()]):
            return False
        return len(self.tasks) <= 1 or len(self.edges) == len(self.tasks) - 1

    def is_job_group(self) -> bool:
        return self.execution is DagExecution.PARALLEL

    def is_primary_task(self, task: Task) -> bool:
        return not self.primary_tasks or task.name in self.primary_tasks

    def get_termination_delay_secs(self, task_name: str) -> float:
        return self.termination_delay.get(task_name, self.termination_delay.get("default", 0.0))

    def validate(self, **_options: Any) -> None:
        """Raises on a wrong task, or on tasks that wait for each other."""
        for task in self.tasks:
            task.validate()
        self.order()

    def order(self) -> list[Task]:
        """The tasks so that each comes after those it waits for; ValueError on a cycle."""
        waiting = {id(task): sum(1 for _, after in self.edges if after is task) for task in self.tasks}
        ready = [task for task in self.tasks if not waiting[id(task)]]
        out: list[Task] = []
        while ready:
            task = ready.pop(0)
            out.append(task)
            for before, after in self.edges:
                if before is task:
                    waiting[id(after)] -= 1
                    if not waiting[id(after)]:
                        ready.append(after)
        if len(out) != len(self.tasks):
            raise ValueError("The tasks of this Dag wait for each other in a circle.")
        return out

    def __len__(self) -> int:
        return len(self.tasks)

    def __repr__(self) -> str:
        return f"Dag({self.name or ''}: {', '.join(repr(task) for task in self.tasks)})"
