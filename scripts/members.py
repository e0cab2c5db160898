"""Where the members of this repository are and what their pyproject.toml say; read by the other scripts."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements" / "dev.lock"


@dataclass(frozen=True)
class Member:
    folder: Path
    name: str
    version: str
    project: dict[str, Any]


def _pyproject(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))


def read(folder: Path) -> Member:
    project = _pyproject(folder)["project"]
    return Member(folder, project["name"], project["version"], project)


def members() -> list[Member]:
    folders = sorted(
        path.parent for place in ("libs", "services") for path in ROOT.glob(f"{place}/*/pyproject.toml")
    )
    return [read(folder) for folder in folders]


def root() -> Member:
    return read(ROOT)


def dev_requirements() -> list[str]:
    group: list[str] = _pyproject(ROOT)["dependency-groups"]["dev"]
    return group
