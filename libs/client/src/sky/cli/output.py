"""What the commands print with: sentences, colours, aligned tables, times for people. It must not ask a server anything.

Results go to stdout; progress, hints and errors go to stderr, so that `sky exec c 'date' | wc` counts the job's output.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Sequence
from typing import IO, Any

GAP = "  "
COLORS = {"red": "31", "green": "32", "yellow": "33", "cyan": "36", "bold": "1", "dim": "2"}
STATUS_COLORS = {
    "UP": "green", "SUCCEEDED": "green", "RUNNING": "green", "INIT": "cyan", "PENDING": "cyan", "SETTING_UP": "cyan",
    "AUTOSTOPPING": "yellow", "STOPPED": "yellow", "CANCELLED": "yellow", "UNHEALTHY": "red", "FAILED": "red",
    "FAILED_SETUP": "red", "FAILED_DRIVER": "red",
}  # fmt: skip


def say(text: str) -> None:
    """A line for the person at the terminal."""
    print(text, file=sys.stderr, flush=True)


def show(text: str) -> None:
    """A line of the result."""
    print(text)


def use_color(stream: IO[str]) -> bool:
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and stream.isatty()


def paint(text: str, color: str, stream: IO[str] | None = None) -> str:
    """The text in a colour where the stream shows colours."""
    if not color or not use_color(stream or sys.stdout):
        return text
    return f"\x1b[{COLORS[color]}m{text}\x1b[0m"


def error_text(error: BaseException) -> str:
    """One sentence, and what to do about it."""
    message = getattr(error, "message", None)
    if message is None:
        text = str(error)
        message = f"{type(error).__name__}: {text}" if text else type(error).__name__
    lines = [paint("Error: ", "red", sys.stderr) + str(message)]
    details = getattr(error, "details", None) or {}
    lines += [f"  - {problem}" for problem in _problems(details) if problem not in str(message)]
    hint = getattr(error, "hint", None)
    if hint:
        lines.append(f"Hint: {hint}")
    return "\n".join(lines)


def _problems(details: dict[str, Any]) -> list[str]:
    out = []
    for problem in details.get("problems") or []:
        out.append(str(problem.get("message") or problem) if isinstance(problem, dict) else str(problem))
    for attempt in details.get("attempts") or []:
        out.append(_attempt(attempt))
    return out


def _attempt(attempt: Any) -> str:
    if not isinstance(attempt, dict):
        return str(attempt)
    error = attempt.get("error")
    message = attempt.get("message") or attempt.get("reason") or (
        error.get("message") if isinstance(error, dict) else error
    )  # fmt: skip
    place = "/".join(
        str(attempt[key]) for key in ("cloud", "region", "zone", "instance_type") if attempt.get(key)
    )
    return f"{place or attempt.get('candidate') or 'attempt'}: {message or attempt}"


# --- tables ---


def width(text: str) -> int:
    """Columns of a terminal that a text takes: CJK characters take two, combining marks none."""
    if text.isascii():
        return len(text)
    import unicodedata

    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in text
    )


def pad(text: str, columns: int) -> str:
    return text + " " * (columns - width(text))


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    color_column: str | None = None,
    rules: bool = False,
) -> str:
    """Left-aligned columns, two spaces apart; statuses coloured in `color_column` on a terminal, `rules` between the parts."""
    cells = [["-" if cell is None or cell == "" else _one_line(cell) for cell in row] for row in rows]
    widths = [max(width(line[i]) for line in [list(header), *cells]) for i in range(len(header))]
    colored = header.index(color_column) if color_column in header else -1
    lines = [_line(row, widths, colored) for row in cells]
    head = paint(_line(header, widths, -1), "bold")
    if not rules:
        return "\n".join([head, *lines])
    rule = "-" * (sum(widths) + len(GAP) * (len(widths) - 1))
    return "\n".join([rule, head, rule, *lines, rule])


def _line(cells: Sequence[str], widths: Sequence[int], colored: int) -> str:
    padded = [pad(cell, columns) for cell, columns in zip(cells, widths, strict=True)]
    if colored >= 0:
        padded[colored] = paint(padded[colored], STATUS_COLORS.get(cells[colored], ""))
    return GAP.join(padded).rstrip()


def _one_line(cell: Any) -> str:
    """Control characters in what a server sent must not move the cursor."""
    text = str(cell)
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)


def shorten(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def print_json(value: Any) -> None:
    """Contracts with all their fields, null where there is nothing to say: programs find the same keys in every row."""
    import json

    from skyloom_common.core.wire import to_full_wire

    print(json.dumps(to_full_wire(value), indent=2, ensure_ascii=False))


# --- times and numbers ---


def ago(at: float | None, now: float | None = None) -> str:
    """'5 mins ago'; '-' for never."""
    if not at:
        return "-"
    seconds = (time.time() if now is None else now) - at
    if seconds < 10:
        return "just now"
    if seconds < 60:
        return f"{int(seconds)} secs ago"
    for size, name in ((60, "min"), (3600, "hr"), (86400, "day")):
        count = int(seconds // size)
        if (name == "min" and count < 60) or (name == "hr" and count < 24) or name == "day":
            return f"{count} {name}{'s' if count != 1 else ''} ago"
    raise AssertionError("unreachable")


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    from skyloom_common.core.text import age

    return age(seconds)


def number(value: float | None) -> str:
    """4 rather than 4.0; '-' for unknown."""
    if value is None:
        return "-"
    return str(int(value)) if value == int(value) else f"{value:.2f}".rstrip("0").rstrip(".")


def money(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def minutes(value: int) -> str:
    """10m, 2h, 1d: as autostop is shown."""
    for size, unit in ((1440, "d"), (60, "h")):
        if value and value % size == 0:
            return f"{value // size}{unit}"
    return f"{value}m"
