"""Remembering a remote API server in the user's configuration. The file then holds a token: only its owner reads it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from sky import settings
from sky.connect import gateway_to
from sky.settings import ServerAddress

if TYPE_CHECKING:
    from pathlib import Path

    from skyloom_common.contracts.clusters import ServerInfo


def login(endpoint: str, token: str | None) -> ServerInfo:
    """Checks that the server takes the token, then remembers both."""
    answer = gateway_to(ServerAddress(endpoint, token, "sky api login")).info()
    path = settings.user_config_path()
    config = settings.read_yaml(path) if path.is_file() else {}
    section = {
        key: value
        for key, value in (config.get("api_server") or {}).items()
        if key != "service_account_token"
    }
    section["endpoint"] = endpoint.rstrip("/")
    if token:
        section["service_account_token"] = token
    _write(path, {**config, "api_server": section})
    return answer


def logout() -> bool:
    """Forgets endpoint and token; False = there were none."""
    path = settings.user_config_path()
    if not path.is_file():
        return False
    config = settings.read_yaml(path)
    section = dict(config.get("api_server") or {})
    if not {"endpoint", "service_account_token"} & set(section):
        return False
    section.pop("endpoint", None)
    section.pop("service_account_token", None)
    rest = {key: value for key, value in config.items() if key != "api_server"}
    _write(path, {**rest, "api_server": section} if section else rest)
    return True


def _write(path: Path, config: dict[str, Any]) -> None:
    import yaml

    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        yaml.safe_dump(config, file, sort_keys=False, allow_unicode=True)
    scratch.replace(path)
