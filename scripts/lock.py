"""Compiles requirements/dev.lock: every package that `make setup` installs, for Python 3.11 and up.

It names neither hashes nor hosts, so that the file means the same wherever packages are taken from.
`--upgrade` takes the newest versions; without it, versions that still fit stay as they are.
"""

from __future__ import annotations

import subprocess
import sys

from members import LOCK, ROOT, members

HEADER = "# Written by `make lock` from the members' pyproject.toml; do not edit.\n"


def compile_lock(arguments: list[str]) -> None:
    ours = [flag for member in members() for flag in ("--no-emit-package", member.name)]
    command = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", "--group", "dev", "--quiet"]
    form = ["--universal", "--python-version", "3.11", "--no-header", "--no-annotate", "--no-emit-index-url"]
    subprocess.run([*command, *form, *ours, "--output-file", str(LOCK), *arguments], cwd=ROOT, check=True)


def keep_packages_only() -> None:
    lines = LOCK.read_text(encoding="utf-8").splitlines()
    packages = [line for line in lines if line and not line.startswith(("#", "-"))]
    LOCK.write_text(HEADER + "\n".join(packages) + "\n", encoding="utf-8")


if __name__ == "__main__":
    compile_lock(sys.argv[1:])
    keep_packages_only()
    print(f"{LOCK.relative_to(ROOT)}: {LOCK.read_text(encoding='utf-8').count('==')} packages")
