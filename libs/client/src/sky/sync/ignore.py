"""Ignore patterns as git reads them: the text of a .gitignore or .skyignore in, a verdict about a path out. Touches no disk.

The last matching pattern of a file decides; `!pattern` takes a path back. Who walks the tree must not enter an ignored
directory, so nothing below it can be taken back, as with git.
One difference of .skyignore: a pattern with a slash in its middle matches at any depth unless it begins with a slash.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

_CLASSES = {
    "alnum": "a-zA-Z0-9",
    "alpha": "a-zA-Z",
    "blank": " \\t",
    "cntrl": "\\x00-\\x1f\\x7f",
    "digit": "0-9",
    "graph": "\\x21-\\x7e",
    "lower": "a-z",
    "print": "\\x20-\\x7e",
    "punct": "!-/:-@\\[-`{-~",
    "space": "\\s",
    "upper": "A-Z",
    "xdigit": "0-9a-fA-F",
}
_NOTHING = "(?!)"


class _Pattern:
    """`by_name`: matched against the last part of a path only, which is what nearly all patterns are."""

    __slots__ = ("by_name", "directories_only", "expression", "match", "negated")

    def __init__(self, expression: str, *, by_name: bool, directories_only: bool, negated: bool) -> None:
        self.expression = expression
        self.match = re.compile(expression, re.DOTALL).fullmatch
        self.by_name = by_name
        self.directories_only = directories_only
        self.negated = negated


class IgnoreRules:
    """The patterns of one file. Paths given to it are relative to the directory that the file speaks about."""

    def __init__(self, lines: Iterable[str], *, any_depth: bool = False) -> None:
        parsed = [_parse(line, any_depth) for line in lines]
        self._last_first = [pattern for pattern in reversed(parsed) if pattern is not None]
        # Most paths match nothing at all: one look by two joined expressions spares one look for each pattern.
        self._any_name = _joined(pattern for pattern in self._last_first if pattern.by_name)
        self._any_path = _joined(pattern for pattern in self._last_first if not pattern.by_name)

    def __bool__(self) -> bool:
        return bool(self._last_first)

    def verdict(self, path: str, name: str, is_directory: bool) -> bool | None:
        """True: ignored; False: taken back by `!`; None: these rules do not speak of it. `name` is the path's last part."""
        if not path.isascii():
            path, name = _bytewise(path), _bytewise(name)
        if not (self._any_name and self._any_name(name)) and not (self._any_path and self._any_path(path)):
            return None
        for pattern in self._last_first:
            if pattern.directories_only and not is_directory:
                continue
            if pattern.match(name if pattern.by_name else path):
                return not pattern.negated
        return None


def _bytewise(text: str) -> str:
    """One character for each byte: git counts bytes, so `?` is half an é."""
    return text.encode("utf-8", "surrogateescape").decode("latin-1")


def _joined(patterns: Iterable[_Pattern]) -> Callable[[str], object] | None:
    expressions = [f"(?:{pattern.expression})" for pattern in patterns]
    return re.compile("|".join(expressions), re.DOTALL).fullmatch if expressions else None


def _parse(line: str, any_depth: bool) -> _Pattern | None:
    text = _without_trailing_spaces(_bytewise(line).rstrip("\n").removesuffix("\r"))
    if not text or text.startswith("#"):
        return None
    negated = text.startswith("!")
    if negated:
        text = text[1:]
    directories_only = text.endswith("/")
    if directories_only:
        text = text[:-1]
    if not text:
        return None
    anchored = "/" in text
    if any_depth and anchored and not text.startswith(("/", "**/")):
        text = "**/" + text
    expression = _expression(text.removeprefix("/"), by_name=not anchored)
    return _Pattern(expression, by_name=not anchored, directories_only=directories_only, negated=negated)


def _without_trailing_spaces(text: str) -> str:
    end = len(text)
    while end and text[end - 1] == " ":
        before = end - 1
        while before and text[before - 1] == "\\":
            before -= 1
        if (end - 1 - before) % 2:
            break
        end -= 1
    return text[:end]


def _expression(text: str, *, by_name: bool) -> str:
    out: list[str] = []
    at = 0
    while at < len(text):
        char = text[at]
        if char == "*":
            piece, at = _stars(text, at, by_name)
        elif char == "?":
            piece, at = "[^/]", at + 1
        elif char == "[":
            piece, at = _bracket(text, at)
        elif char == "\\":
            # A backslash at the very end can match nothing.
            piece, at = (re.escape(text[at + 1]), at + 2) if at + 1 < len(text) else (_NOTHING, at + 1)
        else:
            piece, at = re.escape(char), at + 1
        out.append(piece)
    return "".join(out)


def _stars(text: str, at: int, by_name: bool) -> tuple[str, int]:
    """`**` is special only as a whole path part; anything else of several stars is one star."""
    end = at
    while end < len(text) and text[end] == "*":
        end += 1
    whole_part = (at == 0 or text[at - 1] == "/") and (end == len(text) or text[end] == "/")
    if end - at < 2 or by_name or not whole_part:
        return "[^/]*", end
    if end == len(text):
        return ".*" if at == 0 else ".+", end
    return "(?:.*/)?", end + 1


def _bracket(text: str, at: int) -> tuple[str, int]:
    """A `[...]` set; one that never closes matches nothing."""
    inside: list[str] = []
    at += 1
    negated = at < len(text) and text[at] in "!^"
    if negated:
        at += 1
    first = True
    while at < len(text) and (first or text[at] != "]"):
        first = False
        if text.startswith("[:", at) and (close := text.find(":]", at + 2)) > 0:
            name = text[at + 2 : close]
            if name not in _CLASSES:
                return _NOTHING, len(text)
            inside.append(_CLASSES[name])
            at = close + 2
            continue
        low, at = _literal(text, at)
        if at + 1 < len(text) and text[at] == "-" and text[at + 1] != "]":
            high, at = _literal(text, at + 1)
            if low <= high:
                inside.append(f"{re.escape(low)}-{re.escape(high)}")
        else:
            inside.append(re.escape(low))
    if at >= len(text):
        return _NOTHING, len(text)
    body = "".join(inside)
    if negated:
        return f"(?:(?!/)[^{body}])" if body else "[^/]", at + 1
    return f"(?:(?!/)[{body}])" if body else _NOTHING, at + 1


def _literal(text: str, at: int) -> tuple[str, int]:
    if text[at] == "\\" and at + 1 < len(text):
        return text[at + 1], at + 2
    return text[at], at + 1
