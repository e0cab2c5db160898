"""What stands around the text of a stream's events. It is the same in nearly all of them, so that an event that begins and ends
like the one before it need not be parsed: without a quote between the two it is one JSON string, and nothing else is new.

Pure. A shape is believed only after another text was put into it and parsed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson

from skyloom_lb.exchange import Steady

_PROBE = "\0probe"
_ATTEMPTS = 8


class Shape(NamedTuple):
    """`before` ends with the quote that begins the text, `after` begins with the one that ends it."""

    before: bytes
    after: bytes


def shape_of(event: bytes, text: str) -> Shape | None:
    """The shape of one event of a completion (`data: {...}` and an empty line) whose only choice brings `text` and nothing else."""
    quoted = b'"%b"' % text.encode()
    at = event.find(quoted)
    if at < 0 or not event.startswith(b"data:") or event.find(b"\n") != len(event) - 2:
        return None
    made = Shape(event[: at + 1], event[at + len(quoted) - 1 :])
    data = orjson.loads(event[5:-2])
    _holder(data)[_name(data)] = _PROBE
    tried = made.before[5:] + orjson.dumps(_PROBE)[1:-1] + made.after[:-2]
    return made if orjson.loads(tried) == data else None


def _holder(data: dict[str, Any]) -> dict[str, Any]:
    choice: dict[str, Any] = data["choices"][0]
    delta: dict[str, Any] | None = choice.get("delta")
    return choice if delta is None else delta


def _name(data: dict[str, Any]) -> str:
    return "text" if data["choices"][0].get("delta") is None else "content"


class Shapes:
    """Learns how one stream's events look now: as they come, and as the client gets them."""

    __slots__ = ("_at", "_left")

    def __init__(self) -> None:
        self._left = _ATTEMPTS
        self._at = 0

    def learn(self, raw: bytes, given: bytes, text: str, tokens: int) -> Steady | None:
        """`tokens` so far: an engine whose events always differ is not asked for ever, one that often pays is."""
        if tokens - self._at > 2:
            self._left = _ATTEMPTS
        self._at = tokens
        if not self._left:
            return None
        self._left -= 1
        seen = shape_of(raw, text)
        if seen is None or given is raw:
            return Steady(*seen) if seen is not None else None
        onto = shape_of(given, text)
        return Steady(*seen, onto) if onto is not None else None
