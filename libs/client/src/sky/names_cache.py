"""The clusters' names as last seen, for shell completion. Losing it costs nothing; it must not fail a command."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from skyloom_common.core.home import skyloom_home


def _path() -> Path:
    return skyloom_home() / "cache" / "clusters"


def read() -> list[str]:
    try:
        return _path().read_text(encoding="utf-8").split()
    except OSError:
        return []


def replace(names: Iterable[str]) -> None:
    """Writes the names when they changed."""
    wanted = sorted(set(names))
    if wanted == read():
        return
    path = _path()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f"{path.name}.{os.getpid()}")
        scratch.write_text("\n".join(wanted) + "\n", encoding="utf-8")
        scratch.replace(path)


def add(name: str) -> None:
    replace([*read(), name])


def remove(name: str) -> None:
    replace([other for other in read() if other != name])


def has_ssh_aliases() -> bool:
    """Cheaper than loading ssh_config, which most machines never need."""
    return (skyloom_home() / "ssh").is_dir()
