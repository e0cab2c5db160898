"""What the settings file says about models, prices and engines: `front` of the balancer, `openai` of a service.

Only shapes and their checks; what a name means at run time is in `models`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skyloom_common.core.errors import InvalidRequest
from skyloom_lb.admission.config import Limits, from_wire_unseen, shown

_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
AUTO, ON, OFF, TOKENS = "auto", "on", "off", "tokens"
CONTINUES = frozenset(("vllm", "sglang", "skyloom-engine"))
"""Engines that are known to continue an assistant's message and to take `stream_options`."""
COUNTS = CONTINUES | {"openai", "llama.cpp", "tgi", "lmdeploy"}
"""Engines that are known to take `stream_options`."""


@dataclass(frozen=True)
class Price:
    """Per million tokens. `cached` = what a prompt token from the cache costs; None = as any other."""

    prompt: float = 0.0
    completion: float = 0.0
    cached: float | None = None

    def of(self, prompt: int, cached: int, completion: int) -> float:
        cached = min(cached, prompt)
        cached_price = self.prompt if self.cached is None else self.cached
        return (
            (prompt - cached) * self.prompt + cached * cached_price + completion * self.completion
        ) / 1_000_000


@dataclass(frozen=True)
class Target:
    """A service that serves a model; `model` is its name there ("" = the model's own)."""

    service: str
    model: str = ""
    weight: float = 1.0


@dataclass(frozen=True)
class ModelSettings:
    """`to` shares the requests by weight; `fallbacks` are tried in order when the chosen one gives no answer."""

    to: tuple[Target, ...] = ()
    aliases: tuple[str, ...] = ()
    fallbacks: tuple[Target, ...] = ()
    price: Price | None = None
    owned_by: str = "skyloom"


@dataclass(frozen=True)
class FrontSettings:
    """`limits` are those of keys that have none of their own; `default_model` serves requests that name no model."""

    models: dict[str, ModelSettings] = field(default_factory=dict)
    default_model: str = ""
    keys_file: str = ""
    limits: Limits = field(default_factory=Limits)
    max_body_mb: int = 32


@dataclass(frozen=True)
class ServiceOpenAi:
    """`face: false`: the service is not an OpenAI-compatible one, requests reach it as they are.

    `external`: a provider outside; it gets neither the client's key, cookies and address nor a repeated request.
    """

    face: bool = True
    models: tuple[str, ...] = ()
    engine: str = ""
    continuation: str = AUTO
    usage: str = AUTO
    replay: bool | None = None
    external: bool = False
    api_key_env: str = ""
    api_key_file: str = ""
    price: Price | None = None

    def continues(self, engine: str) -> bool:
        if self.continuation == AUTO:
            return engine in CONTINUES
        return self.continuation != OFF

    def counts(self, engine: str) -> bool:
        """Whether `stream_options.include_usage` may be added for an engine."""
        return engine in COUNTS or self.external if self.usage == AUTO else self.usage == ON

    def replays(self) -> bool:
        """Whether a generation may be asked for again: it changes nothing, but a provider bills it."""
        return not self.external if self.replay is None else self.replay


def front_settings(data: Mapping[str, Any]) -> FrontSettings:
    settings = from_wire_unseen(FrontSettings, dict(data), path="front")
    names: dict[str, str] = {}
    for name, model in settings.models.items():
        if not model.to:
            raise InvalidRequest(
                f"front.models.{name}.to: at least one service is wanted, as in [{{service: NAME}}]"
            )
        for one in model.to:
            if one.weight < 0:
                raise InvalidRequest(
                    f"front.models.{name}.to: weight {one.weight:g} of {one.service} is below 0"
                )
        if not any(one.weight for one in model.to):
            raise InvalidRequest(f"front.models.{name}.to: at least one weight must be above 0")
        for called in (name, *model.aliases):
            if called in names:
                raise InvalidRequest(f"front.models: {called!r} is a name of {names[called]} and of {name}")
            names[called] = name
    if settings.default_model and settings.models and settings.default_model not in names:
        raise InvalidRequest(f"front.default_model: {settings.default_model!r} is not one of front.models")
    return settings


def service_settings(name: str, data: Mapping[str, Any]) -> ServiceOpenAi:
    switches = {one: _switch(data[one]) for one in ("continuation", "usage") if one in data}
    settings = from_wire_unseen(ServiceOpenAi, {**data, **switches}, path=f"services.{name}.openai")
    if settings.continuation not in (AUTO, ON, OFF, TOKENS):
        raise InvalidRequest(
            f"services.{name}.openai.continuation: {shown(settings.continuation)} is not auto, on, tokens or off"
        )
    if settings.usage not in (AUTO, ON, OFF):
        raise InvalidRequest(f"services.{name}.openai.usage: {shown(settings.usage)} is not auto, on or off")
    return settings


def _switch(value: Any) -> Any:
    """YAML reads `on` and `off` as truth values."""
    return {True: ON, False: OFF}[value] if isinstance(value, bool) else value


def secret_of(settings: ServiceOpenAi, environ: Mapping[str, str] = os.environ) -> str:
    """The provider's key, read anew at each reload. Never put it into a message."""
    if settings.api_key_file:
        try:
            return Path(settings.api_key_file).read_text(encoding="utf-8").strip()
        except OSError as error:
            where = settings.api_key_file if os.sep in settings.api_key_file else shown(settings.api_key_file)
            raise InvalidRequest(f"api_key_file: {where}: {error.strerror}") from error
    if settings.api_key_env:
        value = environ.get(settings.api_key_env, "")
        if not _VARIABLE.fullmatch(settings.api_key_env):
            raise InvalidRequest(
                "api_key_env: the name of an environment variable is wanted, as in PROVIDER_KEY"
            )
        if not value:
            raise InvalidRequest(f"api_key_env: the environment variable {settings.api_key_env} is not set")
        return value
    return ""
