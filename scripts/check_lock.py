"""Tells what the members ask for and requirements/dev.lock does not hold; needs no network.

Extras that no default installation takes (clouds) are not in the lock file and not looked at.
"""

from __future__ import annotations

import sys
from collections import defaultdict

from members import LOCK, Member, dev_requirements, members, root
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCKED_EXTRAS = {"clients", "service", "solver"}


def locked_versions() -> dict[str, set[str]]:
    versions: defaultdict[str, set[str]] = defaultdict(set)
    for line in LOCK.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, version = line.split(";")[0].strip().split("==")
            versions[canonicalize_name(name)].add(version)
    return dict(versions)


def asked_by(member: Member) -> list[str]:
    extras: dict[str, list[str]] = member.project.get("optional-dependencies", {})
    locked = [line for extra, lines in extras.items() if extra in LOCKED_EXTRAS for line in lines]
    return [*member.project.get("dependencies", []), *locked]


def wrong(line: str, locked: dict[str, set[str]], ours: dict[str, str]) -> str | None:
    asked = Requirement(line)
    name = canonicalize_name(asked.name)
    found = {ours[name]} if name in ours else locked.get(name)
    if found is None:
        return f"'{line}' is not in {LOCK.name}"
    if not all(asked.specifier.contains(version, prereleases=True) for version in found):
        return f"'{line}' does not admit {', '.join(sorted(found))}"
    return None


def main() -> int:
    everybody = [root(), *members()]
    ours: dict[str, str] = {canonicalize_name(member.name): member.version for member in everybody}
    locked = locked_versions()
    asked = [(member.name, line) for member in everybody for line in asked_by(member)]
    asked += [("dependency group dev", line) for line in dev_requirements()]
    problems = [f"{who}: {problem}" for who, line in asked if (problem := wrong(line, locked, ours))]
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        print("Run 'make lock', then 'make setup'.", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
