"""From an operation to the value that its request promised."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from sky.api import Gateway
from skyloom_common.contracts.operations import Operation, OperationStatus


def wait_for(
    api: Gateway, operation_id: str, *, on_line: Callable[[str], None] | None = None, tail: int | None = None
) -> Operation:
    """The final operation. `on_line` gets its progress: with `tail`, of what has passed only the last lines."""
    from sky.net.follow import operation_events

    operation = api.operation(operation_id)
    if operation.status.is_final and on_line is None:
        return operation
    held: deque[str] = deque(maxlen=tail)
    for event in operation_events(api.transport, operation.id):
        if on_line is None:
            continue
        line = f"[{event.phase}] {event.message}"
        if tail is None:
            on_line(line)
        else:
            held.append(line)
    for line in held:
        assert on_line is not None
        on_line(line)
    return api.operation(operation.id)


def result_of(api: Gateway, operation: Operation) -> Any:
    """launch and exec: (job id, handle); start: handle; others None. Raises the operation's error."""
    raise_for(operation)
    if operation.kind not in ("launch", "exec", "start"):
        return None
    handle = _handle(api, operation.target)
    if operation.kind == "start":
        return handle
    job_id = operation.result.get("job_id")
    return (job_id if isinstance(job_id, int) else None), handle


def raise_for(operation: Operation) -> None:
    """Raises the error of an operation that did not succeed."""
    if operation.status is OperationStatus.SUCCEEDED:
        return
    from sky import exceptions
    from skyloom_common.core.wire import to_wire

    what = f"The {operation.kind} of {operation.target!r}"
    if operation.status is OperationStatus.CANCELLED:
        raise exceptions.RequestCancelled(f"{what} was cancelled.")
    if operation.error is not None:
        raise exceptions.from_wire(to_wire(operation.error))
    raise exceptions.ApiServerError(f"{what} failed without saying why.")


def _handle(api: Gateway, name: str) -> Any:
    from sky.records import ClusterHandle

    cluster = api.cluster(name)
    return None if cluster is None else ClusterHandle(cluster)
