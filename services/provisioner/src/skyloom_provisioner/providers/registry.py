"""Which providers exist: the built-in ones and those that other distributions bring by entry point."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from skyloom_common.core.clock import Clock
from skyloom_common.core.errors import InvalidRequest
from skyloom_common.core.text import did_you_mean
from skyloom_provisioner.providers.base import Provider

_log = logging.getLogger(__name__)
GROUP = "skyloom.providers"
BUILT_IN = {"local": "skyloom_provisioner.providers.local.provider:make"}


@dataclass(frozen=True)
class ProviderContext:
    """All that a provider may need to be made; `agent_bundle()` gives the path of the agent file."""

    home: Path
    clock: Clock
    agent_bundle: Callable[[], Path]


def load_providers(context: ProviderContext, wanted: tuple[str, ...] = ()) -> dict[str, Provider]:
    """By name. `wanted` empty = all. One that cannot be loaded is left out with a log line, unless it was named."""
    makers: dict[str, Any] = {name: _import(target) for name, target in BUILT_IN.items()}
    for entry in entry_points(group=GROUP):
        if not wanted or entry.name in wanted:
            makers[entry.name] = entry.load
    found: dict[str, Provider] = {}
    for name in wanted or tuple(makers):
        if name not in makers:
            raise InvalidRequest(f"providers: {name!r} is not known{did_you_mean(name, makers)}")
        try:
            found[name] = makers[name]()(context)
        except ImportError as error:
            if name in wanted:
                raise
            _log.warning("provider %s is left out: %s", name, error)
    return found


def _import(target: str) -> Callable[[], Callable[[ProviderContext], Provider]]:
    def load() -> Callable[[ProviderContext], Provider]:
        module, _, name = target.partition(":")
        maker: Callable[[ProviderContext], Provider] = getattr(importlib.import_module(module), name)
        return maker

    return load


class Providers:
    """The loaded ones, by name; unknown names are errors for people."""

    def __init__(self, providers: Mapping[str, Provider]) -> None:
        self._providers = dict(providers)

    def __iter__(self) -> Any:
        return iter(self._providers.values())

    def get(self, name: str) -> Provider:
        if name not in self._providers:
            raise InvalidRequest(
                f"cloud: {name!r} has no provider here{did_you_mean(name, self._providers)}",
                hint="Run `sky check` to see what is enabled.",
            )
        return self._providers[name]

    def names(self) -> tuple[str, ...]:
        return tuple(self._providers)
