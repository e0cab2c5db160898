"""Following what lasts longer than a connection: an operation's events, a job's log.

A broken connection or a restarted server is waited out for a bounded time; nothing is lost and nothing comes twice.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from sky.net.transport import Query, Transport
from skyloom_common.contracts.http import LOG_OFFSET
from skyloom_common.contracts.operations import OperationEvent
from skyloom_common.core.errors import Unavailable
from skyloom_common.core.sse import SseReader
from skyloom_common.core.wire import from_wire

if TYPE_CHECKING:
    from sky.net.http1 import Response

GIVE_UP_AFTER = 120.0
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0
EVENTS_TIMEOUT = 90.0
"""The server sends keep-alive comments more often than this."""


class Patience:
    """How long to keep trying: starts anew whenever something arrived."""

    def __init__(
        self,
        give_up_after: float = GIVE_UP_AFTER,
        *,
        sleep: Callable[[float], None] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = give_up_after
        self._sleep = sleep
        self._monotonic = monotonic
        self.arrived()

    def arrived(self) -> None:
        self._since: float | None = None
        self._pause = FIRST_PAUSE

    @property
    def is_first(self) -> bool:
        """Nothing has failed since something last arrived."""
        return self._since is None

    def wait(self, error: Exception) -> None:
        """Sleeps before the next try, or raises `error` when the time is up."""
        now = self._monotonic()
        self._since = now if self._since is None else self._since
        if now - self._since + self._pause > self._limit:
            raise error
        self._sleep(self._pause)
        self._pause = min(LONGEST_PAUSE, self._pause * 2)


class EndedEarly(ConnectionError):
    """A clean end where there should be more: the sender was a moment ahead of what it knows."""


def _may_come_back(error: Exception) -> bool:
    from sky.exceptions import ApiServerConnectionError

    return isinstance(error, (OSError, ApiServerConnectionError, Unavailable))


def operation_events(
    transport: Transport,
    operation_id: str,
    *,
    after: int = 0,
    patience: Patience | None = None,
    on_reconnect: Callable[[], None] | None = None,
) -> Iterator[OperationEvent]:
    """Every event after `after`, once and in order, up to the final one."""
    patience = patience or Patience()
    path = f"/operations/{operation_id}/events"
    while True:
        try:
            headers = {"Accept": "text/event-stream"}
            if after:
                headers["Last-Event-ID"] = str(after)
            response = transport.open(
                "GET", path, headers=headers, query={"after": after} if after else None,
                timeout=EVENTS_TIMEOUT, attempts=1,
            )  # fmt: skip
            for event in _events(response):
                patience.arrived()
                if event.seq <= after:
                    continue
                after = event.seq
                yield event
                if event.status is not None and event.status.is_final:
                    _drain(transport, response)
                    return
            response.close()
            raise EndedEarly("the event stream ended before the operation did")
        except Exception as error:
            if not _may_come_back(error):
                raise
            if on_reconnect is not None and patience.is_first and not isinstance(error, EndedEarly):
                on_reconnect()
            patience.wait(error)
            transport.relocate()


def _events(response: Response) -> Iterator[OperationEvent]:
    parser = SseReader()
    while piece := response.read1():
        for event in parser.feed(piece):
            if event.event in ("progress", "message"):
                yield from_wire(OperationEvent, json.loads(event.data))


def _drain(transport: Transport, response: Response) -> None:
    """The stream ends after its final event: reading that end frees the connection for the next call."""
    response.connection.set_timeout(0.2)
    try:
        while response.read1():
            continue
    except OSError:
        response.close()
        return
    transport.release(response)


class LogStream:
    """The bytes of one log. `offset` is where the next byte lies, so that a new connection goes on exactly there.

    `is_over` is asked when a connection ended: was that the end of the log, or of the connection only?
    """

    def __init__(
        self,
        transport: Transport,
        path: str,
        *,
        query: dict[str, Any] | None = None,
        follow: bool = True,
        tail: int | None = None,
        is_over: Callable[[], bool] | None = None,
        patience: Patience | None = None,
        on_reconnect: Callable[[], None] | None = None,
    ) -> None:
        self._transport = transport
        self._path = path
        self._query = dict(query or {})
        self._follow = follow
        self._tail = tail
        self._is_over = is_over
        self._patience = patience or Patience()
        self._on_reconnect = on_reconnect
        self.offset: int | None = None

    def __iter__(self) -> Iterator[bytes]:
        while True:
            try:
                yield from self._one_connection()
                if not self._follow or self._is_over is None or self._is_over():
                    return
                raise EndedEarly("the log ended before the job did")
            except Exception as error:
                if not _may_come_back(error):
                    raise
                broke = not isinstance(error, EndedEarly)
                if self._on_reconnect is not None and self._patience.is_first and broke:
                    self._on_reconnect()
                self._patience.wait(error)
                self._transport.relocate()

    def _one_connection(self) -> Iterator[bytes]:
        response = self._transport.open("GET", self._path, query=self._where(), timeout=None, attempts=1)
        try:
            self._begin(response)
            while piece := response.read1():
                self._patience.arrived()
                assert self.offset is not None
                self.offset += len(piece)
                yield piece
        finally:
            if response.complete:
                self._transport.release(response)
            else:
                response.close()

    def _where(self) -> Query:
        query: dict[str, Any] = {**self._query, "follow": self._follow}
        if self.offset is not None:
            query["offset"] = self.offset
        elif self._tail:
            query["tail"] = self._tail
        return query

    def _begin(self, response: Response) -> None:
        if self.offset is None:
            begin = response.headers.get(LOG_OFFSET.lower(), "0")
            self.offset = int(begin) if begin.isdigit() else 0
