"""The list of failure cases names tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent


def test_every_failure_case_has_its_tests() -> None:
    text = (HERE.parent / "README.md").read_text(encoding="utf-8")
    _, _, table = text.partition("## Failure cases")
    rows = [line for line in table.split("\n## ")[0].splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 24
    there = {
        name
        for path in HERE.glob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(encoding="utf-8"), re.M)
    }
    named = {row: re.findall(r"`(test_\w+)`", row) for row in rows}
    assert all(named.values())
    assert {name for names in named.values() for name in names} - there == set()
