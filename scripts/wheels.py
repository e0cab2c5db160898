"""Builds the wheel of every member and of the meta distribution into dist/ (or the folder named as argument).

It builds with the tools of .venv, so it needs no network.
"""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from members import ROOT, Member, members, root


def build(member: Member, into: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(into)]
    done = subprocess.run(command, cwd=member.folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"The wheel of {member.name} could not be built:\n{done.stdout}{done.stderr}")


def build_all(into: Path) -> list[Path]:
    into.mkdir(parents=True, exist_ok=True)
    for stale in into.glob("skyloom*.whl"):
        stale.unlink()
    with ThreadPoolExecutor(max_workers=2) as pool:
        list(pool.map(lambda member: build(member, into), [root(), *members()]))
    return sorted(into.glob("skyloom*.whl"))


if __name__ == "__main__":
    target = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT / "dist"
    for wheel in build_all(target):
        print(f"{wheel.stat().st_size / 1000:9.1f} kB  {wheel.name}")
