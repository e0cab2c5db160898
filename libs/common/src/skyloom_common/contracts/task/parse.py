"""Task files and task mappings in, contracts out, with every problem at once. Touches no path but the file it is given.

What depends on this machine (does `workdir` exist?) or on values still to come (an env left empty) is for `validate`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Optional, Union

from skyloom_common.contracts.task import scalars, taskfields
from skyloom_common.contracts.task.model import TaskFile, TaskSpec
from skyloom_common.contracts.task.problems import Field, Problems, path_text, shown
from skyloom_common.contracts.task.source import Document, load_documents, read_text
from skyloom_common.contracts.task.variables import Given

HEADER = ("name", "execution", "primary_tasks", "termination_delay", "inter_connection")
_GROUP_NAME = re.compile(r"[A-Za-z0-9_-]+")

Variables = Mapping[str, Optional[str]]


def parse_task_file(
    text_or_path: Union[str, bytes, os.PathLike[str]],
    *,
    filename: Optional[str] = None,
    env_overrides: Optional[Variables] = None,
    secret_overrides: Optional[Variables] = None,
    client_env: Optional[Mapping[str, str]] = None,
) -> TaskFile:
    """One task, a pipeline or a job group. Raises InvalidTask with every problem in `details["problems"]`.

    A one-line string that names a file or ends in .yaml/.yml is a path, any other string is the text itself.
    The overrides hold what the client adds (`--env`, `--secret`); None there means "as in `client_env`".
    They apply to every task of the file. A name that the file lists under secrets stays a secret.
    """
    given = Given(env_overrides or {}, secret_overrides or {}, client_env or {})
    text, name = read_text(text_or_path, filename)
    documents, repeated = load_documents(text, name)
    while documents and documents[-1].value is None:
        documents.pop()  # a file that ends with `---`
    if not documents:
        report = Problems(name)
        report.add((), "the file is empty", "at least `run: COMMAND`")
        raise report.error()
    return _file(documents, name, given, [repeated])


def parse_task_mapping(
    mapping: Mapping[str, Any],
    *,
    filename: Optional[str] = None,
    env_overrides: Optional[Variables] = None,
    secret_overrides: Optional[Variables] = None,
    client_env: Optional[Mapping[str, str]] = None,
) -> TaskSpec:
    """The same from Python: the fields of the YAML as a mapping. Tuples and sets are welcome where lists are."""
    report = Problems(filename)
    field = Field(mapping, (), report)
    given = Given(env_overrides or {}, secret_overrides or {}, client_env or {})
    spec = taskfields.task(field, given) if field.is_mapping("the fields of a task") else TaskSpec()
    report.raise_if_any()
    return spec


def _file(documents: list[Document], name: Optional[str], given: Given, found: list[Problems]) -> TaskFile:
    header, bodies = _split_header(documents)
    file = _header(header, name, found) if header is not None else TaskFile(tasks=())
    tasks: list[TaskSpec] = []
    lines: list[dict[str, int]] = []
    for document in bodies:
        report = Problems(name, document.positions)
        found.append(report)
        tasks.append(_document(document, report, given, is_only=len(documents) == 1))
        lines.append(_lines(document))
    named = _named(tasks, file)
    file = replace(file, tasks=tuple(named), filename=name, lines=tuple(lines))
    _check_file(file, header, found, name)
    _raise_all(found)
    return file


def _split_header(documents: list[Document]) -> tuple[Optional[Document], list[Document]]:
    """The first document is a header when it says how to run the others, or only names them."""
    first = documents[0]
    keys = set(first.value) if isinstance(first.value, dict) else set()
    if "execution" in keys or (len(documents) > 1 and keys and keys <= set(HEADER)):
        return first, documents[1:]
    return None, documents


def _document(document: Document, report: Problems, given: Given, *, is_only: bool) -> TaskSpec:
    field = Field(document.value, (), report)
    if isinstance(document.value, str) and is_only:
        field.refuse(
            f"{shown(document.value)} is a command, not a task file", "`run: COMMAND` in a task file"
        )
        return TaskSpec()
    if document.value is None:
        return TaskSpec()
    return taskfields.task(field, given) if field.is_mapping("the fields of a task") else TaskSpec()


def _header(document: Document, name: Optional[str], found: list[Problems]) -> TaskFile:
    report = Problems(name, document.positions)
    found.append(report)
    field = Field(document.value, (), report)
    values: dict[str, Any] = {"notices": _notices(field)}
    execution = field.get("execution")
    if execution is not None:
        values["execution"] = scalars.choice(execution, ("serial", "parallel")) or "serial"
    is_group = values.get("execution") == "parallel"
    title = field.get("name")
    if title is not None:
        values["name"] = _group_name(title) if is_group else taskfields.task_name(title)
    elif is_group:
        field.refuse("name is missing", "name: NAME in the header of a job group")
    for key, parse in _HEADER_PARSERS.items():
        item = field.get(key)
        value = None if item is None else parse(item)
        if value is not None and is_group:
            values[key] = value
        elif item is not None and not is_group:
            item.refuse(f"{key} without execution: parallel", "it only in the header of a job group")
    return TaskFile(tasks=(), **values)


def _notices(field: Field) -> tuple[str, ...]:
    unknown = [key for key in field.value if key not in HEADER]
    return tuple(f"{key} in the header of several tasks is not known and ignored" for key in unknown)


def _group_name(field: Field) -> Optional[str]:
    if isinstance(field.value, str) and _GROUP_NAME.fullmatch(field.value):
        return field.value
    field.refuse_value("the name of a job group", "letters, digits, - and _")
    return None


def _delays(field: Field) -> dict[str, float]:
    if isinstance(field.value, Mapping):
        found = {key: scalars.seconds(item) for key, item in field.items()}
        return {key: value for key, value in found.items() if value is not None}
    delay = scalars.seconds(field)
    return {} if delay is None else {"default": delay}


def _named(tasks: list[TaskSpec], file: TaskFile) -> list[TaskSpec]:
    """In a pipeline, tasks without a name are numbered."""
    if file.name is None or file.execution != "serial":
        return tasks
    return [
        task if task.name else replace(task, name=f"{file.name}-{index}") for index, task in enumerate(tasks)
    ]


def _check_file(
    file: TaskFile, header: Optional[Document], found: list[Problems], name: Optional[str]
) -> None:
    if header is None:
        return
    report = Problems(name, header.positions)
    found.append(report)
    if not file.tasks:
        report.add((), "a header without tasks", "one more document (after `---`) for each task")
    if file.execution != "parallel":
        return
    names = [task.name for task in file.tasks]
    if None in names:
        report.add((), f"task {names.index(None) + 1} of the group has no name", "a name of its own for each")
    for twice in sorted({one for one in names if one is not None and names.count(one) > 1}):
        report.add(("name",), f"two tasks of the group are named {twice!r}", "a name of its own for each")
    for index, primary in enumerate(file.primary_tasks):
        if primary not in names:
            report.add(
                ("primary_tasks", index),
                f"{primary!r} is no task of this group",
                "the name of one of its tasks",
            )
    for task in file.termination_delay:
        if task != "default" and task not in names:
            report.add(
                ("termination_delay", task),
                f"{task!r} is no task of this group",
                "default, or the name of a task",
            )


def _lines(document: Document) -> dict[str, int]:
    """Field to line, as deep as later checks look."""
    return {
        path_text(path): line
        for path, (line, _) in document.positions.items()
        if 0 < len(path) <= _LINE_DEPTH
    }


def _raise_all(found: list[Problems]) -> None:
    every = [problem for report in found for problem in report.found]
    if every:
        report = Problems()
        report.found = every
        raise report.error()


_LINE_DEPTH = 3
_HEADER_PARSERS: dict[str, Any] = {
    "primary_tasks": lambda item: scalars.texts(item, "a list of task names"),
    "termination_delay": _delays,
    "inter_connection": scalars.boolean,
}

__all__ = ["parse_task_file", "parse_task_mapping"]
