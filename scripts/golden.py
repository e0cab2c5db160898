"""Rewrites the golden files in tests/contracts/golden: what services, agents and versions have agreed upon.

That is the OpenAPI document of every service, the events, and the models of the agent's API.
A golden file changes only by `make golden`, so that a change of a contract is seen in a diff.
`--check` writes nothing and fails when a file is not what the code says today.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import json
import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

from members import ROOT
from pydantic import TypeAdapter

GOLDEN = ROOT / "tests" / "contracts" / "golden"


class NoDocument(Exception):
    """The code does not offer what a golden file is written from."""


def openapi(factory: str) -> dict[str, Any]:
    """`factory` names a function without arguments that returns a service's FastAPI app and does no I/O."""
    module_name, _, function = factory.partition(":")
    try:
        app = getattr(importlib.import_module(module_name), function)()
    except (ImportError, AttributeError) as error:
        raise NoDocument(f"{factory}() did not return the app of its service: {error}") from error
    document: dict[str, Any] = app.openapi()
    return document


def _models(module: ModuleType) -> dict[str, Any]:
    own = [value for value in vars(module).values() if getattr(value, "__module__", "") == module.__name__]
    classes = [value for value in own if isinstance(value, type) and dataclasses.is_dataclass(value)]
    return {model.__name__: TypeAdapter(model).json_schema() for model in classes}


def models(module_name: str) -> dict[str, Any]:
    return {"models": _models(importlib.import_module(module_name))}


def events(module_name: str) -> dict[str, Any]:
    module = importlib.import_module(module_name)
    kinds = sorted(value for name, value in vars(module).items() if name.isupper() and isinstance(value, str))
    return {"kinds": kinds, "models": _models(module)}


DOCUMENTS: dict[str, Callable[[], dict[str, Any]]] = {
    "openapi-optimizer.json": partial(openapi, "skyloom_optimizer.main:openapi_app"),
    "openapi-provisioner.json": partial(openapi, "skyloom_provisioner.main:openapi_app"),
    "openapi-gateway.json": partial(openapi, "skyloom_gateway.main:openapi_app"),
    "agent.json": partial(models, "skyloom_common.contracts.agent"),
    "events.json": partial(events, "skyloom_common.contracts.events"),
}


def text(name: str) -> str:
    return json.dumps(DOCUMENTS[name](), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def write(name: str) -> None:
    path = GOLDEN / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text(name), encoding="utf-8")
    print(f"wrote {path.relative_to(ROOT)}")


def difference(name: str) -> str:
    path = GOLDEN / name
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    today = text(name).splitlines()
    return "\n".join(
        difflib.unified_diff(before.splitlines(), today, f"golden/{name}", "the code today", lineterm="")
    )


def main(arguments: list[str]) -> int:
    failures: list[str] = []
    for name in DOCUMENTS:
        try:
            if "--check" not in arguments:
                write(name)
            elif changed := difference(name):
                failures.append(changed)
        except NoDocument as error:
            failures.append(f"{name}: {error}")
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
