"""Endpoints from a watched YAML or JSON file. What was read last stays good while the file is missing or wrong.

The file is a list of endpoints (of the default service) or a mapping `{services: {NAME: [endpoint, ...]}}`; an endpoint is a
URL or a mapping as in the contract. It is looked at every second: by time, size and inode, so that a replaced file counts.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from skyloom_common.contracts.endpoints import Endpoint
from skyloom_common.core.errors import InvalidRequest
from skyloom_common.core.wire import from_wire
from skyloom_lb.endpoints.check import check_endpoints
from skyloom_lb.settings import DEFAULT_SERVICE, endpoint_mappings, parse_yaml

_log = logging.getLogger(__name__)
Apply = Callable[[str, Sequence[Endpoint] | None], None]
"""A service and its endpoints as the source knows them now; None = the source names it no more."""


def parse_endpoints(text: str, where: str) -> dict[str, tuple[Endpoint, ...]]:
    """Raises InvalidRequest naming what is wrong."""
    data = parse_yaml(text, where)
    if data is None:
        raise InvalidRequest(f"{where}: is empty; write [] for no endpoints")
    if isinstance(data, dict) and isinstance(data.get("services"), dict):
        return {str(name): _endpoints(rows, f"{where}: {name}") for name, rows in data["services"].items()}
    return {DEFAULT_SERVICE: _endpoints(data, where)}


def _endpoints(rows: Any, where: str) -> tuple[Endpoint, ...]:
    found = tuple(from_wire(Endpoint, row, strict=True) for row in endpoint_mappings(rows, where))
    check_endpoints(found, where)
    return found


class FileSource:
    """`poll` is called by its owner's timer; `trouble` says why the last look failed."""

    def __init__(self, path: str, apply: Apply) -> None:
        self.path = Path(path)
        self.trouble = ""
        self.was_read = False
        """At least once, and then it was right."""
        self._apply = apply
        self._seen: tuple[int, int, int] | None = None
        self._services: set[str] = set()

    def poll(self) -> None:
        try:
            stat = os.stat(self.path)
            mark = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if mark == self._seen:
                return
            self._take(parse_endpoints(self.path.read_text(encoding="utf-8"), str(self.path)))
            self._seen = mark
            self.trouble = ""
            self.was_read = True
        except (OSError, UnicodeDecodeError, InvalidRequest) as error:
            words = f"{self.path}: {error}"
            if words != self.trouble:
                _log.warning("the endpoints stay what they were: %s", words)
            self.trouble = words

    def _take(self, services: dict[str, tuple[Endpoint, ...]]) -> None:
        for name, endpoints in services.items():
            self._apply(name, endpoints)
        for name in self._services - set(services):
            self._apply(name, None)
        self._services = set(services)
