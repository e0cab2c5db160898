"""Shows what an operation does: a spinner on a terminal, plain lines where the output is piped. Everything on stderr."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeVar

from sky.cli.output import paint, say, use_color

FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
PERIOD = 0.1
T = TypeVar("T")


def is_terminal() -> bool:
    return sys.stderr.isatty()


class Progress:
    """A line that changes on a terminal, or lines where it cannot. `update` twice with the same text says it once."""

    def __init__(self, text: str = "") -> None:
        self._text = text
        self._said = ""
        self.live = is_terminal()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        if self.live:
            self._thread = threading.Thread(target=self._spin, daemon=True)
            self._thread.start()
        elif self._text:
            self._plain(self._text)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._erase()

    def update(self, text: str) -> None:
        """What is being done now."""
        with self._lock:
            self._text = text
        if not self.live:
            self._plain(text)

    def note(self, text: str) -> None:
        """A line that stays."""
        if not self.live:
            self._plain(text)
            return
        with self._lock:
            self._erase()
            say(text)

    def _plain(self, text: str) -> None:
        if text != self._said:
            self._said = text
            say(text)

    def _spin(self) -> None:
        frame = 0
        while not self._stop.wait(PERIOD):
            with self._lock:
                self._draw(FRAMES[frame % len(FRAMES)])
            frame += 1

    def _draw(self, frame: str) -> None:
        import shutil

        room = shutil.get_terminal_size().columns - 12
        seconds = int(time.monotonic() - self._began)
        text = self._text if len(self._text) <= room else self._text[: room - 1] + "…"
        frame = paint(frame, "cyan", sys.stderr)
        sys.stderr.write(
            f"\r\x1b[K{frame} {text} {seconds}s" if use_color(sys.stderr) else f"\r\x1b[K{frame} {text}"
        )
        sys.stderr.flush()

    def _erase(self) -> None:
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()


def bar(done: int, total: int, columns: int = 24) -> str:
    """[#####-----]  52%"""
    share = 1.0 if total <= 0 else min(1.0, done / total)
    full = int(share * columns)
    return f"[{'#' * full}{'-' * (columns - full)}] {share:4.0%}"


def spinning(text: str) -> Callable[[Callable[[], T]], T]:
    """Runs something under a spinner."""

    def run(work: Callable[[], T]) -> T:
        with Progress(text):
            return work()

    return run
