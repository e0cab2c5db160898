"""Reads settings from the environment and keeps every problem, so that a person sees all of them at once.

It must not keep values of its own or read files other than the ones a *_FILE variable names.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

MIN_SECRET = 16
_YES = {"1", "true", "yes", "on"}
_NO = {"0", "false", "no", "off", ""}


class SettingsError(ValueError):
    """One sentence per bad value, each naming the variable, the value and the right form."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class Env:
    """Ask for values, then `check()`. A bad value yields the default and is reported by `check()`."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        self._environ = os.environ if environ is None else environ
        self.problems: list[str] = []

    def check(self) -> None:
        if self.problems:
            raise SettingsError(self.problems)

    def bad(self, sentence: str) -> None:
        self.problems.append(sentence)

    def text(self, name: str, default: str = "") -> str:
        return self._environ.get(name, "").strip() or default

    def integer(self, name: str, default: int, *, low: int, high: int) -> int:
        raw = self.text(name)
        if not raw:
            return default
        if raw.lstrip("-").isdigit() and low <= int(raw) <= high:
            return int(raw)
        self.bad(
            f"{name}: {raw!r} is not valid; use a whole number from {low} to {high} (for example: {default})"
        )
        return default

    def number(self, name: str, default: float, *, low: float = 0.0, high: float = 1e9) -> float:
        raw = self.text(name)
        try:
            value = float(raw) if raw else default
        except ValueError:
            value = float("nan")
        if low <= value <= high:
            return value
        self.bad(
            f"{name}: {raw!r} is not valid; use a number from {low:g} to {high:g} (for example: {default:g})"
        )
        return default

    def flag(self, name: str, default: bool = False) -> bool:
        raw = self._environ.get(name)
        if raw is None:
            return default
        if raw.strip().lower() in _YES | _NO:
            return raw.strip().lower() in _YES
        self.bad(f"{name}: {raw!r} is not valid; use 1 or 0")
        return default

    def choice(self, name: str, default: str, options: Sequence[str]) -> str:
        raw = self.text(name, default)
        for option in options:
            if raw.lower() == option.lower():
                return option
        self.bad(f"{name}: {raw!r} is not valid; use one of {', '.join(options)}")
        return default

    def url(
        self,
        name: str,
        default: str = "",
        *,
        schemes: Sequence[str] = ("http", "https"),
        required: bool = False,
    ) -> str:
        raw = self.text(name, default)
        if not raw:
            if required:
                self.bad(f"{name}: missing; set it to a URL such as {schemes[0]}://127.0.0.1:46581")
            return ""
        parts = urlsplit(raw)
        if parts.scheme in schemes and (parts.netloc or parts.path):
            return raw.rstrip("/") if parts.scheme in ("http", "https") else raw
        forms = " or ".join(f"{scheme}://" for scheme in schemes)
        self.bad(f"{name}: {_shown_url(raw)} is not valid; it must begin with {forms}")
        return default

    def path(self, name: str, default: Path) -> Path:
        return Path(self.text(name) or default).expanduser().absolute()

    def secret(self, name: str, *, required: bool = True) -> str:
        """`NAME`, or what the file that `NAME_FILE` names holds. The value never appears in a message."""
        value = self.text(name)
        file = self.text(f"{name}_FILE")
        if not value and file:
            try:
                value = Path(file).expanduser().read_text().strip()
            except OSError as error:
                self.bad(f"{name}_FILE: {file!r} cannot be read: {error.strerror}")
                return ""
        if not value:
            if required:
                self.bad(
                    f"{name}: missing; set it, or {name}_FILE, to one secret of at least {MIN_SECRET} "
                    "characters that all services share"
                )
            return ""
        if len(value) < MIN_SECRET or not value.isascii() or not value.isprintable() or " " in value:
            self.bad(f"{name}: too short or not plain text; use at least {MIN_SECRET} letters and digits")
            return ""
        return value


def _shown_url(raw: str) -> str:
    """Without what may be a password."""
    _, at, host = raw.rpartition("@")
    return repr(f"***@{host}" if at else raw)
