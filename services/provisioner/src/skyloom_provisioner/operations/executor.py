"""Runs one operation to its end, from wherever a former process left it, and hands it every wish to cancel.

A saga's state lives in the operation's row; it is erased with the end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from skyloom_common.core.errors import OperationCancelled, SkyloomError, StoreUnavailable
from skyloom_common.core.wire import from_wire
from skyloom_common.saga import CancelFlag, SagaState, run_saga
from skyloom_common.store.lease import Lease, LeaseLost
from skyloom_provisioner.operations.context import OperationContext, Parts
from skyloom_provisioner.operations.kinds import Kind
from skyloom_provisioner.operations.rows import LAUNCH, OperationRow

_log = logging.getLogger(__name__)
_CANCEL_LOOK_SECONDS = 1.0


class _RowLog:
    """The saga's log in the operation's row."""

    def __init__(self, context: OperationContext, *, keep: bool) -> None:
        self._context = context
        self._keep = keep

    async def load(self) -> SagaState | None:
        saved = self._context.row.saga
        return from_wire(SagaState, saved) if saved else None

    async def save(self, state: SagaState, step: str) -> None:
        context = self._context
        if self._keep:
            await context.parts.operations.save(context.lease, context.row.id, saga=asdict(state))
        context.checkpoint(f"{'undo' if state.undoing else 'do'}.{step or 'end'}")


def _manifests(row: OperationRow) -> list[str]:
    return [mount["manifest_id"] for mount in (row.request or {}).get("mounts", ())]


class Executor:
    def __init__(self, parts: Parts, kinds: Mapping[str, Kind]) -> None:
        self._parts = parts
        self._kinds = kinds
        self._running: dict[str, CancelFlag] = {}
        self._abandoned: set[str] = set()
        self._looking: asyncio.Task[None] | None = None

    async def run(self, row: OperationRow, lease: Lease) -> None:
        """Raises LeaseLost and StoreUnavailable (run it again later); every other failure ends the operation."""
        if not await self._parts.operations.begin(lease, row.id):
            return
        flag = self._running[row.id] = CancelFlag(row.cancel_requested)
        if row.abandoned:
            self._abandoned.add(row.id)
        self._look_for_cancels()
        try:
            # However long it waits for capacity, what the client has uploaded for it stays.
            with self._parts.files.using(_manifests(row)):
                await self._run(row, lease, flag)
        finally:
            del self._running[row.id]
            self._abandoned.discard(row.id)

    def cancel_wished(self, id: str) -> None:
        """Called in-process and by events; the truth is read from the row."""
        if id in self._running:
            self._look_for_cancels(at_once=True)

    async def stop(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)

    async def _run(self, row: OperationRow, lease: Lease, flag: CancelFlag) -> None:
        context = OperationContext(self._parts, row, lease, lambda: row.id in self._abandoned)
        kind = self._kinds[row.kind]
        error: SkyloomError | None = None
        result: dict[str, Any] | None = None
        try:
            outputs = await self._run_saga(kind, context, flag)
            result = kind.result(context, outputs)
        except (LeaseLost, StoreUnavailable):
            raise
        except SkyloomError as failure:
            error = failure
            await self._tell_what_stays(context, error)
        context.checkpoint("finish")
        await self._parts.operations.finish(lease, row.id, result, error, _last_words(row, error))

    async def _tell_what_stays(self, context: OperationContext, error: SkyloomError) -> None:
        """A launch that failed after its cluster was up leaves it, and says so: it may cost."""
        state = await context.find_cluster() if context.row.kind == LAUNCH else None
        if state is not None and state.cluster.is_up:
            name = state.cluster.name
            error.hint = " ".join(
                filter(None, (error.hint, f"Cluster {name} is up; `sky down {name}` ends it."))
            )

    async def _run_saga(self, kind: Kind, context: OperationContext, flag: CancelFlag) -> Any:
        async def tell(step: str, error: Exception, pause: float) -> None:
            sentence = f"undoing {step} failed and is tried again in {pause:.0f} s: {error}"
            await context.say("undoing", sentence, level="warning")

        return await run_saga(
            kind.saga,
            context,
            _RowLog(context, keep=not kind.repeatable),
            flag,
            clock=self._parts.clock,
            on_undo_failure=tell,
            abandon=context.abandoned,
            passing=(LeaseLost, StoreUnavailable),
        )

    def _look_for_cancels(self, *, at_once: bool = False) -> None:
        if at_once and self._looking is not None:
            self._looking.cancel()
            self._looking = None
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._keep_looking(at_once), name="cancel-wishes")

    async def _keep_looking(self, at_once: bool) -> None:
        """Only while something runs: the net under the in-process call and the event."""
        while True:
            if not at_once:
                await asyncio.sleep(_CANCEL_LOOK_SECONDS)
            at_once = False
            if not self._running:
                return
            try:
                wishes = await self._parts.operations.cancelled_among(list(self._running))
            except StoreUnavailable as error:
                _log.warning("cannot look for cancel wishes: %s", error)
                continue
            for id, abandoned in wishes.items():
                if abandoned:
                    self._abandoned.add(id)
                if id in self._running:
                    self._running[id].request()


def _last_words(row: OperationRow, error: SkyloomError | None) -> str:
    if error is None:
        return f"{row.kind} of {row.target} is done"
    if isinstance(error, OperationCancelled):
        return f"{row.kind} of {row.target} was cancelled"
    return f"{row.kind} of {row.target} failed: {error.message}"
