"""Server-sent events: bytes in, events out. Pure; it must not open connections."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

MAX_LINE = 16 << 20


@dataclass(frozen=True)
class ServerEvent:
    id: str
    event: str
    data: str


class SseParser:
    """Feed it what arrives, in any pieces. Comments are dropped; an unfinished event is kept until its blank line."""

    def __init__(self) -> None:
        self._rest = b""
        self._id = ""
        self._event = ""
        self._data: list[str] = []

    def feed(self, piece: bytes) -> Iterator[ServerEvent]:
        self._rest += piece
        if len(self._rest) > MAX_LINE:
            raise ValueError("an event of the server is longer than 16 MB")
        *lines, self._rest = self._rest.split(b"\n")
        for line in lines:
            event = self._line(line.rstrip(b"\r").decode("utf-8", "replace"))
            if event is not None:
                yield event

    def _line(self, line: str) -> ServerEvent | None:
        if not line:
            return self._dispatch()
        if line.startswith(":"):
            return None
        name, _, value = line.partition(":")
        value = value[1:] if value.startswith(" ") else value
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._event = value
        elif name == "id":
            self._id = value
        return None

    def _dispatch(self) -> ServerEvent | None:
        data, name = self._data, self._event
        self._data, self._event = [], ""
        return ServerEvent(self._id, name or "message", "\n".join(data)) if data else None
