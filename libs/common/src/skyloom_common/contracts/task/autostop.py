"""The forms of `autostop`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable, Optional

from skyloom_common.contracts.task import scalars
from skyloom_common.contracts.task.model import AutostopSpec, WaitFor
from skyloom_common.contracts.task.problems import Field

KEYS = ("idle_minutes", "down", "wait_for", "max_lifetime", "hook", "hook_timeout")
_RIGHT = "true, false, minutes such as 10, a time such as 2h, or a mapping {idle_minutes: 10, down: true}"


def autostop(field: Field) -> Optional[AutostopSpec]:
    value = field.value
    if isinstance(value, bool):
        return AutostopSpec(enabled=value)
    if isinstance(value, Mapping):
        return _from_mapping(field)
    minutes = scalars.minutes(field, _RIGHT)
    return None if minutes is None else AutostopSpec(idle_minutes=minutes)


def _from_mapping(field: Field) -> Optional[AutostopSpec]:
    field.only((*KEYS, "enabled"))
    values: dict[str, Any] = {}
    for key, item in field.items():
        if item.value is not None and key in _PARSERS:
            values[key] = _PARSERS[key](item)
    given = {key: value for key, value in values.items() if value is not None}
    if "max_lifetime" in given:
        given["max_lifetime_minutes"] = given.pop("max_lifetime")
    if "wait_for" in given:
        given["wait_for"] = WaitFor(given["wait_for"])
    if given.get("enabled") is False:
        return AutostopSpec(enabled=False)
    return AutostopSpec(**given)


_PARSERS: dict[str, Callable[[Field], Any]] = {
    "enabled": scalars.boolean,
    "idle_minutes": lambda item: scalars.minutes(item, "minutes from 0 such as 10, or a time such as 2h"),
    "down": scalars.boolean,
    "wait_for": lambda item: scalars.choice(item, [member.value for member in WaitFor]),
    "max_lifetime": lambda item: scalars.minutes(item, "a time such as 8h, or minutes"),
    "hook": lambda item: scalars.text(item, "a script"),
    "hook_timeout": lambda item: scalars.integer(item, "seconds from 1", low=1),
}
