"""Limits as the settings and the keys file write them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, TypeVar

from skyloom_common.core.errors import InvalidRequest
from skyloom_common.core.wire import from_wire

T = TypeVar("T")
_FIELD = re.compile(r"[a-z_]{0,20}(?:\[\d+\])*")
_SHORT = 12


@dataclass(frozen=True)
class Limits:
    """0 = no limit. `concurrency` is shared out evenly among the workers of one balancer."""

    concurrency: int = 0
    requests_per_minute: float = 0.0
    tokens_per_minute: float = 0.0

    @property
    def any(self) -> bool:
        return bool(self.concurrency or self.requests_per_minute or self.tokens_per_minute)


@dataclass(frozen=True)
class ServiceLimits:
    """A service's limits, its queue, and how long a request waits for a service that has no endpoint.

    `hold_seconds` 0 = not at all. `keep_alive_seconds`: how often a held stream hears from us.
    """

    concurrency: int = 0
    requests_per_minute: float = 0.0
    tokens_per_minute: float = 0.0
    queue: int = 1000
    queue_seconds: float = 30.0
    hold_seconds: float = 0.0
    hold_requests: int = 1000
    keep_alive_seconds: float = 10.0

    @property
    def limits(self) -> Limits:
        return Limits(self.concurrency, self.requests_per_minute, self.tokens_per_minute)


def service_limits(name: str, data: Mapping[str, Any]) -> ServiceLimits:
    return not_negative(
        from_wire(ServiceLimits, dict(data), strict=True, path=f"services.{name}.limits"),
        f"services.{name}.limits",
    )


def from_wire_unseen(cls: type[T], data: Any, path: str) -> T:
    """`from_wire` for settings beside which secrets stand: a wrong one may be a secret in the wrong place, so it is not shown."""
    try:
        return from_wire(cls, data, strict=True, path=path)
    except InvalidRequest as error:
        where, words = str(error.details.get("field", path)), error.message
    unknown = words.removeprefix(f"{where}: unknown field")
    if unknown != words:
        where, words = path + _known_part(where.removeprefix(path)), "unknown field" + unknown
    elif " is not " in words:
        words = "what is there is not " + words.rpartition(" is not ")[2]
    else:
        words = words.removeprefix(f"{where}: ")
    raise InvalidRequest(f"{where}: {words}", details={"field": where})


def _known_part(where: str) -> str:
    """The name of a field that nobody knows may be a secret too."""
    parts = where.split(".")
    known = list(takewhile(_FIELD.fullmatch, parts))
    return ".".join(known if len(known) == len(parts) else [*known, "…"])


def shown(value: str) -> str:
    """For messages: what is long or begins like a key may be one."""
    return repr(value) if len(value) <= _SHORT and not value.startswith("sk") else "what is there"


def not_negative(limits: T, where: str) -> T:
    for one in dataclasses.fields(limits):  # type: ignore[arg-type]
        if getattr(limits, one.name) < 0:
            raise InvalidRequest(f"{where}.{one.name}: {getattr(limits, one.name):g} is below 0")
    return limits
