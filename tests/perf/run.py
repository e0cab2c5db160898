"""Prints every bar of tests/perf: what was measured, the bar, and whether it was met.

Each `bench_*.py` beside this file has `run() -> list[Row]`. Medians, warm, compiled files allowed. `make bench ARGS="agent client"`
runs only those; `ARGS=--strict` ends non-zero when a bar is missed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).parent
_BAR = re.compile(r"\s*(<=|>=|≤|≥)\s*([\d.]+)")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="only these (bench_NAME.py)")
    parser.add_argument("--strict", action="store_true", help="end with 1 when a bar is missed")
    wanted = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.path.insert(0, str(HERE))
    missed = 0
    for path in sorted(HERE.glob("bench_*.py")):
        name = path.stem.removeprefix("bench_")
        if wanted.names and name not in wanted.names:
            continue
        started = time.monotonic()
        print(f"\n{name}", flush=True)
        try:
            rows = _load(path).run()
        except Exception as error:
            print(f"  did not run: {type(error).__name__}: {error}", flush=True)
            missed += 1
            continue
        missed += _print(rows)
        print(f"  ({time.monotonic() - started:.0f} s)", flush=True)
    print(f"\n{missed} missed" if missed else "\nall bars met")
    return 1 if wanted.strict and missed else 0


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _print(rows: list[tuple[Any, ...]]) -> int:
    """Rows are (name, value, unit, bar); bar: "<= 60", ">= 500", a number (at most) or None / "" (information only)."""
    missed = 0
    for name, value, unit, bar in rows:
        met = _is_met(value, bar)
        missed += met is False
        mark = {True: "ok", False: "MISSED", None: ""}[met]
        shown = bar if isinstance(bar, str) else ("" if bar is None else f"<= {bar:g}")
        number = f"{value:,.2f}" if isinstance(value, float) and abs(value) < 100 else f"{value:,.0f}"
        print(f"  {name:<78} {number:>12} {unit:<10} {shown:<12} {mark}", flush=True)
    return missed


def _is_met(value: float, bar: Any) -> bool | None:
    if bar is None or bar == "":
        return None
    if isinstance(bar, (int, float)):
        return value <= bar
    found = _BAR.match(bar)
    if found is None:
        return None
    limit = float(found[2])
    return value <= limit if found[1] in ("<=", "≤") else value >= limit


if __name__ == "__main__":
    sys.exit(main())
