"""Reads the text of a task file: size, encoding, YAML syntax. Knows nothing about tasks.

Composed from parser events instead of with a loader, because a loader builds first and asks later: here depth, aliases,
duplicate keys and tags are judged while the values are built, and every value keeps its line.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, Optional, Union

from skyloom_common.contracts.task.problems import Path, Position, Problems
from skyloom_common.core.errors import InvalidTask

MAX_BYTES = 1_000_000
MAX_DEPTH = 64
MAX_VALUES = 100_000
MAX_ALIASED_VALUES = 10_000
_PREPASS_ROUNDS = 100

_SET_WITH_COUNT = re.compile(r"(\b(?:accelerators|gpus)\s*:\s+)(\{[^{}:#'\"]*\}\s*:\s*[0-9][0-9.]*)")


@dataclass
class Document:
    """One YAML document as plain Python values, with the positions of its parts."""

    value: Any
    positions: dict[Path, Position] = field(default_factory=dict)


def read_text(
    source: Union[str, bytes, os.PathLike[str]], filename: Optional[str]
) -> tuple[str, Optional[str]]:
    """The text and the name to blame. A string is a path when it is one line and names a file or ends in .yaml/.yml."""
    if isinstance(source, str) and not _is_path(source):
        return _checked_text(source, filename), filename
    if isinstance(source, bytes):
        return _decoded(source, filename), filename
    name = filename or os.fspath(source)
    path = FilePath(source).expanduser()
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_BYTES:
                raise _whole_file_problem(name, _too_large(size))
            data = file.read(MAX_BYTES + 1)  # a pipe has no size, and a file may grow
    except FileNotFoundError as error:
        raise _whole_file_problem(name, "there is no such file") from error
    except IsADirectoryError as error:
        raise _whole_file_problem(name, "it is a directory, not a task file") from error
    except OSError as error:
        raise _whole_file_problem(name, f"it cannot be read: {error.strerror}") from error
    return _decoded(data, name), name


def load_documents(text: str, filename: Optional[str]) -> tuple[list[Document], Problems]:
    """Every document of the text, and repeated keys as problems (the first one counts).

    Raises InvalidTask for broken YAML and for YAML that is too deep or too big.
    """
    import yaml

    for _ in range(_PREPASS_ROUNDS):
        report = Problems(filename)
        try:
            documents = _Composer(text, report).documents()
        except yaml.MarkedYAMLError as error:
            repaired = _quote_set_with_count(text, error)
            if repaired is None:
                raise _syntax_error(error, report) from error
            text = repaired
            continue
        except yaml.reader.ReaderError as error:
            raise _whole_file_problem(
                filename, f"character {error.position} is not allowed in YAML"
            ) from error
        return documents, report
    raise _whole_file_problem(filename, "too many accelerators of the form {A,B}:N in one file")


def _is_path(source: str) -> bool:
    if "\n" in source or "\x00" in source or len(source) > 4096:
        return False
    return source.endswith((".yaml", ".yml")) or os.path.isfile(os.path.expanduser(source))


def _checked_text(text: str, filename: Optional[str]) -> str:
    size = len(text) if len(text) > MAX_BYTES else len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_BYTES:
        raise _whole_file_problem(filename, _too_large(size))
    return text


def _decoded(data: bytes, name: Optional[str]) -> str:
    if len(data) > MAX_BYTES:
        raise _whole_file_problem(name, _too_large(len(data)))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        report = Problems(name)
        report.add_at((line, 1), f"byte {error.start} is not UTF-8", "UTF-8 as the encoding of a task file")
        raise report.error() from error


def _too_large(size: int) -> str:
    return (
        f"{size:,} bytes are more than a task file may have ({MAX_BYTES:,}); "
        "put data into a file of its own and name it in file_mounts"
    )


def _whole_file_problem(filename: Optional[str], message: str) -> InvalidTask:
    report = Problems(filename)
    report.add((), message)
    return report.error()


def _syntax_error(error: Any, report: Problems) -> InvalidTask:
    mark = error.problem_mark or error.context_mark
    words = " ".join(str(part) for part in (error.context, error.problem) if part)
    report.add_at((mark.line + 1, mark.column + 1) if mark else (1, 1), f"this is not valid YAML: {words}")
    return report.error()


def _quote_set_with_count(text: str, error: Any) -> Optional[str]:
    """`accelerators: {A100,V100}:8` is not YAML; quoted it is, on the same line. Only the line that failed is touched."""
    lines = text.split("\n")
    marks = [mark.line for mark in (error.problem_mark, error.context_mark) if mark is not None]
    for number in dict.fromkeys(near for mark in marks for near in (mark, mark - 1)):
        if 0 <= number < len(lines):
            repaired = _SET_WITH_COUNT.sub(r"\1'\2'", lines[number])
            if repaired != lines[number]:
                lines[number] = repaired
                return "\n".join(lines)
    return None


class _Composer:
    """Events to values. `report` takes what is wrong but can be stepped over; what cannot raises."""

    def __init__(self, text: str, report: Problems) -> None:
        import yaml

        loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        self._yaml: Any = yaml
        self._events: Iterator[Any] = iter(yaml.parse(text, Loader=loader))
        self._resolvers: dict[Optional[str], list[tuple[str, Any]]] = yaml.SafeLoader.yaml_implicit_resolvers
        self._constructor: Any = yaml.constructor.SafeConstructor()
        self._report = report
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._aliased = 0
        self._made = 0
        self._positions: dict[Path, Position] = {}

    def documents(self) -> list[Document]:
        found: list[Document] = []
        for event in self._events:
            if isinstance(event, self._yaml.DocumentStartEvent):
                self._positions, self._anchors = {}, {}
                value = self._compose(next(self._events), ())
                found.append(Document(value, self._positions))
        return found

    def _compose(self, event: Any, path: Path) -> Any:
        if isinstance(event, self._yaml.AliasEvent):
            return self._alias(event)
        if len(path) > MAX_DEPTH:
            raise self._stop(event, f"nested deeper than {MAX_DEPTH} levels")
        self._positions.setdefault(path, _position(event))
        made_before = self._made
        self._made += 1
        if self._made > MAX_VALUES:
            raise self._stop(event, f"more than {MAX_VALUES:,} values")
        if isinstance(event, self._yaml.ScalarEvent):
            value = self._scalar(event)
        elif isinstance(event, self._yaml.SequenceStartEvent):
            self._check_tag(event, "seq")
            value = self._sequence(path)
        else:
            self._check_tag(event, "map", "set")
            value = self._mapping(path)
        if event.anchor:
            self._anchors[event.anchor] = (value, self._made - made_before)
        return value

    def _alias(self, event: Any) -> Any:
        if event.anchor not in self._anchors:
            raise self._stop(event, f"the alias *{event.anchor} has no anchor before it")
        value, size = self._anchors[event.anchor]
        self._made += size
        self._aliased += size
        if self._aliased > MAX_ALIASED_VALUES:
            raise self._stop(event, f"aliases that expand to more than {MAX_ALIASED_VALUES:,} values")
        return value

    def _sequence(self, path: Path) -> list[Any]:
        items: list[Any] = []
        for event in self._events:
            if isinstance(event, self._yaml.SequenceEndEvent):
                break
            items.append(self._compose(event, (*path, len(items))))
        return items

    def _mapping(self, path: Path) -> dict[str, Any]:
        own: dict[str, Any] = {}
        lines: dict[str, int] = {}
        merged: list[dict[str, Any]] = []
        for event in self._events:
            if isinstance(event, self._yaml.MappingEndEvent):
                break
            if not isinstance(event, self._yaml.ScalarEvent):
                raise self._stop(event, "a list or mapping cannot be a key")
            key = event.value
            if key == "<<" and event.implicit[0]:
                merged.extend(self._merge_source(event, self._compose(next(self._events), (*path, key))))
                continue
            self._positions[(*path, key)] = _position(event)
            value = self._compose(next(self._events), (*path, key))
            if key in own:
                self._report_duplicate(path, key, lines[key], event)
                continue
            own[key], lines[key] = value, event.start_mark.line + 1
        for source in merged:
            for key, value in source.items():
                own.setdefault(key, value)
        return own

    def _merge_source(self, event: Any, value: Any) -> list[dict[str, Any]]:
        sources = value if isinstance(value, list) else [value]
        if not all(isinstance(source, dict) for source in sources):
            raise self._stop(event, "<< can only merge mappings")
        return sources

    def _report_duplicate(self, path: Path, key: str, first: int, event: Any) -> None:
        line, column = _position(event)
        text = f"given twice, on line {first} and on line {line}"
        from skyloom_common.contracts.task.problems import path_text

        self._report.add_at((line, column), text, "it once", path_text((*path, key)))

    def _scalar(self, event: Any) -> Any:
        text: str = event.value
        tag = event.tag if event.tag not in (None, "!") else None
        if tag is None:
            tag = self._resolved(text) if event.implicit[0] else "tag:yaml.org,2002:str"
        kind = tag.rpartition(":")[2] if tag.startswith("tag:yaml.org,2002:") else tag
        if kind in ("str", "timestamp", "value"):
            return text
        if kind not in ("null", "bool", "int", "float"):
            raise self._stop(event, f"the tag {event.tag} is not allowed in a task file")
        if kind in ("int", "float") and ":" in text:
            return text  # base-60 numbers: whoever writes 12:30 means the text
        node = self._yaml.ScalarNode(tag, text, event.start_mark, event.end_mark)
        try:
            return getattr(self._constructor, f"construct_yaml_{kind}")(node)
        except (ValueError, KeyError) as error:
            raise self._stop(event, f"{text!r} is not a YAML {kind}") from error

    def _resolved(self, text: str) -> str:
        for tag, pattern in self._resolvers.get(text[:1], ()):
            if pattern.match(text):
                return tag
        return "tag:yaml.org,2002:str"

    def _check_tag(self, event: Any, *allowed: str) -> None:
        if event.tag not in (None, "!") and event.tag not in {
            f"tag:yaml.org,2002:{name}" for name in allowed
        }:
            raise self._stop(event, f"the tag {event.tag} is not allowed in a task file")

    def _stop(self, event: Any, message: str) -> InvalidTask:
        self._report.add_at(_position(event), message)
        return self._report.error()


def _position(event: Any) -> Position:
    return event.start_mark.line + 1, event.start_mark.column + 1
