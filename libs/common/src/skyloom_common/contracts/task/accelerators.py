"""The forms of `accelerators` (and its alias `gpus`). Names are kept as written: the catalog knows how each is spelled."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Optional

from skyloom_common.contracts.task.model import AcceleratorSpec
from skyloom_common.contracts.task.problems import Field
from skyloom_common.contracts.task.scalars import as_number, parse_size, tidy

_RIGHT = "NAME or NAME:COUNT such as H100:8, a mapping {H100: 8, A100: 8}, a list ['H100:8', 'A100:8'] or a memory such as 80GB+"
_MEMORY = re.compile(
    r"(?:(?P<vendor>[A-Za-z]+):)?(?P<memory>[0-9]+(?:\.[0-9]+)?\s*[KMGTP](?:i?B|i)?)(?P<plus>\+)?(?::(?P<count>[^:]*))?",
    re.IGNORECASE,
)
# With wildcards: any device whose name fits.
_NAME = re.compile(r"(?P<name>[A-Za-z*][A-Za-z0-9_.\-/*?]*)(?::(?P<count>[^:]*))?")
_SET = re.compile(r"\{(?P<names>[^{}]*)\}(?:\s*:\s*(?P<count>.*))?")


def accelerators(field: Field) -> tuple[tuple[AcceleratorSpec, ...], bool]:
    """The alternatives, each once, and whether their order is a preference."""
    value = field.value
    ordered = False
    if isinstance(value, str):
        found = _from_text(field)
    elif isinstance(value, Mapping):
        found = [_one(item, key, count=item.value) for key, item in field.items()]
    elif isinstance(value, (list, tuple)):
        found = [_one(item, item.value) for item in field.elements()]
        ordered = True
    elif isinstance(value, (set, frozenset)):
        found = [_one(field, item) for item in sorted(value, key=str)]
    else:
        field.refuse_value("an accelerator", _RIGHT)
        found = []
    unique = tuple(dict.fromkeys(item for item in found if item is not None))
    return unique, ordered and len(unique) > 1


def accelerator_text(item: AcceleratorSpec) -> str:
    """`H100:8`, `nvidia:80GB+:4`: the form that reads back as the same."""
    return f"{device_text(item)}:{tidy(item.count)}"


def device_text(item: AcceleratorSpec) -> str:
    """The same without the count."""
    if item.name is not None:
        return item.name
    vendor = f"{item.vendor}:" if item.vendor else ""
    return f"{vendor}{tidy(item.memory_gib or 0.0)}GB{'+' if item.memory_at_least else ''}"


def _from_text(field: Field) -> list[Optional[AcceleratorSpec]]:
    several = _SET.fullmatch(field.value.strip())
    if not several:
        return [_one(field, field.value)]
    count = several["count"]
    names = [name.strip().strip("'\"") for name in several["names"].split(",") if name.strip()]
    if not names:
        field.refuse_value("an accelerator", _RIGHT)
    if count is not None and any(":" in name for name in names):
        field.refuse_value("an accelerator", "one count, behind the braces: {A100,V100}:8")
        return []
    return [_one(field, name, count=count) for name in names]


def _one(field: Field, wanted: Any, count: Any = None) -> Optional[AcceleratorSpec]:
    match = _match(wanted)
    if match is None or (count is not None and match["count"] is not None):
        field.refuse(f"{_shown(field, wanted)} is not an accelerator", _RIGHT)
        return None
    amount = _count(field, match["count"] if count is None else count)
    if amount is None:
        return None
    groups = match.groupdict()
    if groups.get("name"):
        return AcceleratorSpec(name=groups["name"], count=amount)
    size = parse_size(groups["memory"])
    if size is None or size.value <= 0:
        field.refuse(f"{_shown(field, wanted)} is not an accelerator", _RIGHT)
        return None
    vendor = groups["vendor"].lower() if groups["vendor"] else None
    return AcceleratorSpec(
        count=amount, memory_gib=size.value, memory_at_least=bool(groups["plus"]), vendor=vendor
    )


def _match(wanted: Any) -> Optional[re.Match[str]]:
    if not isinstance(wanted, str):
        return None
    return _MEMORY.fullmatch(wanted.strip()) or _NAME.fullmatch(wanted.strip())


def _count(field: Field, value: Any) -> Optional[float]:
    if value is None:
        return 1.0
    number = as_number(value.strip() if isinstance(value, str) else value)
    if number is not None and number > 0:
        return number
    field.refuse(
        f"{_shown(field, value)} is not a number of accelerators", "a count above 0 such as 8 or 0.5"
    )
    return None


def _shown(field: Field, value: Any) -> str:
    return Field(value, field.path, field.report).shown()
