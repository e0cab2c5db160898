"""Server-sent events: bytes in, events out. Pure: it opens no connection, so the CLI and the services share it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from skyloom_common.core.errors import RemoteError

MAX_EVENT = 16 << 20


@dataclass(frozen=True)
class ServerEvent:
    id: str
    event: str
    data: str


class SseReader:
    """Feed it what arrives, in any pieces. Comments are dropped; an unfinished event waits for its blank line."""

    def __init__(self) -> None:
        self._rest = b""
        self._id = ""
        self._event = ""
        self._data: list[str] = []

    def feed(self, piece: bytes) -> Iterator[ServerEvent]:
        *lines, self._rest = (self._rest + piece).split(b"\n")
        if len(self._rest) > MAX_EVENT:
            raise RemoteError(f"an event is longer than {MAX_EVENT} bytes")
        for raw in lines:
            line = raw.rstrip(b"\r").decode("utf-8", "replace")
            if line:
                self._field(line)
            elif self._data:
                yield ServerEvent(self._id, self._event or "message", "\n".join(self._data))
                self._event, self._data = "", []

    def _field(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value[1:] if value.startswith(" ") else value
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._event = value
        elif name == "id":
            self._id = value
