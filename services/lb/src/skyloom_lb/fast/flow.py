"""The events of a stream that need no look: one chunk, one event, nothing new but its text. This runs for nearly every token of
every stream, so it touches as little as it can. What it does not know goes the way of every other answer.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from time import monotonic
from typing import TYPE_CHECKING

from skyloom_lb.exchange import Steady
from skyloom_lb.observe.stats import BOUNDS, Histogram
from skyloom_lb.wire.chunks import SIZES

if TYPE_CHECKING:
    from skyloom_lb.fast.relay import Exchange

_QUOTE, _BACKSLASH = b'"'[0], b"\\"[0]
"""As numbers: looking for bytes in bytes makes an exception first."""


class Flow:
    __slots__ = (
        "_after", "_before", "_digits", "_exchange", "_gaps", "_start", "_stop", "_transport", "steady",
    )  # fmt: skip

    def __init__(
        self, exchange: Exchange, steady: Steady, gaps: Histogram, transport: asyncio.Transport
    ) -> None:
        self.steady = steady
        self._exchange = exchange
        self._gaps = gaps
        self._transport = transport
        self._before = b"\r\n" + steady.before
        self._after = steady.after + b"\r\n"
        self._digits = 2
        """Of the last chunk's size."""
        self._start, self._stop = len(self._before), -len(self._after)

    def passes(self, data: bytes) -> int:
        """How many bytes of `data` were such events, each whole in its chunk; they have been passed on as they are, together.

        One event nearly always, and about as long as the last one.
        """
        digits, steady = self._digits, self.steady
        if (
            SIZES.get(data[:digits]) != len(data) - digits - 4
            or not data.startswith(self._before, digits)
            or not data.endswith(self._after)
        ):
            return self._several(data)
        text = data[digits + self._start : self._stop]
        if not text or _QUOTE in text or text[-1] == _BACKSLASH:
            return 0
        steady.note(text)
        if steady.onto is None:
            self._pass_on(data)
        else:
            self._pass_on(steady.rewritten(text))
        return len(data)

    def _several(self, data: bytes) -> int:
        before, after, steady, start = self._before, self._after, self.steady, 0
        rewritten = []
        while (line_end := data.find(b"\r\n", start)) > start:
            end = line_end + 4 + SIZES.get(data[start:line_end], 0)
            begin, stop = line_end + self._start, end + self._stop
            if stop <= begin or not data.startswith(before, line_end) or not data.startswith(after, stop):
                break
            text = data[begin:stop]
            if _QUOTE in text or text[-1] == _BACKSLASH:
                break
            steady.note(text)
            rewritten.append(steady.rewritten(text))
            self._digits, start = line_end - start, end
        if start:
            self._pass_on(data[:start] if steady.onto is None else b"".join(rewritten))
        return start

    def _pass_on(self, given: bytes) -> None:
        exchange, gaps, now = self._exchange, self._gaps, monotonic()
        gap = now - exchange.last_read
        gaps.counts[bisect_left(BOUNDS, gap)] += 1
        gaps.total += gap
        exchange.last_read = now
        exchange.bytes_out += len(given)
        if not self._transport.is_closing():
            self._transport.write(given)
