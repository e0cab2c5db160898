"""Collects everything that is wrong with a task before saying so once. Knows no field of the task.

A `Field` is a value together with where it stands; parsers ask it for its parts and tell it what is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Optional, Union

from skyloom_common.core.errors import InvalidTask
from skyloom_common.core.text import did_you_mean, nearest

Path = tuple[Union[str, int], ...]
Position = tuple[int, int]

HIDDEN = "<redacted>"
_SHOWN_CHARS = 60
_SHOWN_PROBLEMS = 50
_SECRET_SECTIONS = ("secrets", "--secret")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong. `right` completes the sentence "...; use RIGHT"."""

    field: str
    message: str
    right: Optional[str] = None
    value: Any = None
    file: Optional[str] = None
    line: Optional[int] = None
    column: Optional[int] = None

    def sentence(self) -> str:
        """`task.yaml:7: resources.disk_size: '500-' is not a size; use ...`."""
        where = ":".join(str(part) for part in (self.file, self.line) if part is not None)
        parts = [part for part in (where, self.field) if part]
        tail = f"; use {self.right}" if self.right else ""
        return ": ".join([*parts, f"{self.message}{tail}"])

    def to_wire(self) -> dict[str, Any]:
        """Every key always present: programs need not ask which are."""
        return {
            "file": self.file,
            "line": self.line,
            "column": self.column,
            "field": self.field,
            "value": self.value,
            "message": self.message,
            "right": self.right,
        }


class Problems:
    """What was found so far, and where each value of the text stands (line and column count from 1)."""

    def __init__(
        self, filename: Optional[str] = None, positions: Optional[Mapping[Path, Position]] = None
    ) -> None:
        self.filename = filename
        self.positions: Mapping[Path, Position] = positions or {}
        self.found: list[Problem] = []
        self._hidden: tuple[str, ...] = ()

    def hide(self, secrets: Iterable[str]) -> None:
        """These texts never appear in a problem."""
        self._hidden = tuple(sorted({text for text in secrets if text}, key=len, reverse=True))

    def add(self, path: Path, message: str, right: Optional[str] = None, value: Any = None) -> None:
        line, column = self.position(path) or (None, None)
        if path and path[0] in _SECRET_SECTIONS and value is not None:
            value = HIDDEN
        self.found.append(
            Problem(
                field=path_text(path),
                message=self._masked(message),
                right=right,
                value=self._masked(value) if isinstance(value, str) else _plain(value),
                file=self.filename,
                line=line,
                column=column,
            )
        )

    def add_at(self, position: Position, message: str, right: Optional[str] = None, field: str = "") -> None:
        """For what has no path: a fault of the text itself."""
        line, column = position
        self.found.append(Problem(field, message, right, None, self.filename, line, column))

    def position(self, path: Path) -> Optional[Position]:
        """Of the path, or of the nearest thing around it that has one."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.positions:
                return self.positions[path[:end]]
        return None

    def raise_if_any(self) -> None:
        if self.found:
            raise self.error()

    def error(self) -> InvalidTask:
        found = sorted(self.found, key=lambda problem: (problem.line or 0, problem.column or 0))
        return InvalidTask(_report(found), details={"problems": [problem.to_wire() for problem in found]})

    def _masked(self, text: str) -> str:
        for secret in self._hidden:
            text = text.replace(secret, HIDDEN)
        return text


class Field:
    """A value, its path, and where to report what is wrong with it."""

    __slots__ = ("path", "report", "value")

    def __init__(self, value: Any, path: Path, report: Problems) -> None:
        self.value = value
        self.path = path
        self.report = report

    def child(self, key: Union[str, int], value: Any) -> Field:
        return Field(value, (*self.path, key), self.report)

    def get(self, key: str) -> Optional[Field]:
        """The part of that name, or None when it is not there or null. Only for mappings."""
        value = self.value.get(key)
        return None if value is None else self.child(key, value)

    def items(self) -> Iterator[tuple[str, Field]]:
        for key, value in self.value.items():
            yield str(key), self.child(str(key), value)

    def elements(self) -> Iterator[Field]:
        for index, value in enumerate(self.value):
            yield self.child(index, value)

    def refuse(self, message: str, right: Optional[str] = None) -> None:
        self.report.add(self.path, message, right, self.value)

    def refuse_value(self, is_not: str, right: Optional[str] = None) -> None:
        """`'500-' is not a size; use ...`, with the value shortened, or hidden when it is a secret."""
        self.refuse(f"{self.shown()} is not {is_not}", right)

    def shown(self) -> str:
        return HIDDEN if self.path and self.path[0] in _SECRET_SECTIONS else shown(self.value)

    def is_mapping(self, right: str) -> bool:
        """True for a mapping; else the problem is reported."""
        if isinstance(self.value, Mapping):
            return True
        self.refuse_value("a mapping", right)
        return False

    def only(self, known: Iterable[str], hints: Optional[Mapping[str, str]] = None) -> None:
        """Reports every key that is not known, with the nearest that is; keys that begin with `_` are never reported."""
        names = tuple(known)
        for key, field in self.items():
            if key in names or key.startswith("_"):
                continue
            hint = (hints or {}).get(key)
            if hint is not None:
                field.refuse("unknown field", hint)
                continue
            guess = did_you_mean(key, names)
            right = nearest(key, names) if guess else None
            self.report.add(
                field.path, f"unknown field{guess}" if right else _unknown(names), None, field.value
            )


def _unknown(names: tuple[str, ...]) -> str:
    return f"unknown field; known here: {', '.join(names)}" if len(names) <= 12 else "unknown field"


def shown(value: Any) -> str:
    """A value for people: short, on one line."""
    if value is None:
        return "nothing"
    text = repr(str(value)) if isinstance(value, (str, bool, int, float)) else _kind(value)
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 3] + "..."


def path_text(path: Path) -> str:
    """`resources.any_of[0].cpus`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    return f"a {type(value).__name__}"


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, (bool, int, float, str)) else shown(value)


def _report(found: list[Problem]) -> str:
    if len(found) == 1:
        return found[0].sentence()
    lines = [problem.sentence() for problem in found[:_SHOWN_PROBLEMS]]
    if len(found) > _SHOWN_PROBLEMS:
        lines.append(f"... and {len(found) - _SHOWN_PROBLEMS} more")
    return "\n".join([f"{len(found)} problems:", *(f"  {line}" for line in lines)])
