"""Where the client's settings come from, and which server they name. Reads files and the environment; starts nothing.

Order, later wins: $SKYLOOM_HOME/config.yaml (else ~/.sky/config.yaml), ./.sky.yaml, --config.
The server: environment, then configuration, then the local stack.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from skyloom_common.core.home import skyloom_home

ENDPOINT_VARIABLES = ("SKYLOOM_API_SERVER_ENDPOINT", "SKYPILOT_API_SERVER_ENDPOINT")
TOKEN_VARIABLES = ("SKYLOOM_TOKEN", "SKYPILOT_SERVICE_ACCOUNT_TOKEN")
CONFIG_VARIABLES = ("SKYLOOM_GLOBAL_CONFIG", "SKYPILOT_GLOBAL_CONFIG")
PROJECT_VARIABLES = ("SKYLOOM_PROJECT_CONFIG", "SKYPILOT_PROJECT_CONFIG")
MAX_CONFIG_BYTES = 4 << 20


class ServerAddress(NamedTuple):
    """`local`: the stack of this machine, which the client may start. `source` is for people."""

    endpoint: str
    token: str | None
    source: str
    local: bool = False


def environment(names: Sequence[str]) -> tuple[str, str] | None:
    """The first of these variables that is set, as (name, value)."""
    return next(((name, os.environ[name]) for name in names if os.environ.get(name)), None)


def user_config_path() -> Path:
    """The file that `sky api login` writes and everything reads."""
    named = environment(CONFIG_VARIABLES)
    return Path(named[1]).expanduser() if named else skyloom_home() / "config.yaml"


def config_files() -> list[Path]:
    """Existing files, weakest first. ~/.sky/config.yaml is read only where ours is absent; it is never written."""
    user = user_config_path()
    if not user.is_file():
        user = Path.home() / ".sky" / "config.yaml"
    project = environment(PROJECT_VARIABLES)
    candidates = [user, Path(project[1]).expanduser() if project else Path(".sky.yaml")]
    return [path for path in candidates if path.is_file()]


def load_config(overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The merged configuration."""
    merged: dict[str, Any] = {}
    for path in config_files():
        merged = merge(merged, read_yaml(path))
    return merge(merged, parse_overrides(overrides))


def read_yaml(path: Path) -> dict[str, Any]:
    from sky.exceptions import InvalidSkyPilotConfigError

    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise InvalidSkyPilotConfigError(f"{path}: larger than 4 MB, which no configuration is")
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidSkyPilotConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise InvalidSkyPilotConfigError(f"{path}: the top level is {type(data).__name__}, not a mapping")
    return data


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """`--config` values: a file's path, or a.b.c=value with the value read as YAML."""
    from sky.exceptions import InvalidSkyPilotConfigError

    merged: dict[str, Any] = {}
    for item in overrides:
        path = Path(item).expanduser()
        if path.is_file():
            merged = merge(merged, read_yaml(path))
            continue
        dotted, sep, text = item.partition("=")
        keys = dotted.split(".")
        if not sep or not all(keys):
            raise InvalidSkyPilotConfigError(
                f"--config {item!r} is neither a readable file nor a key=value pair such as api_server.endpoint=URL"
            )
        import yaml

        value: Any = yaml.safe_load(text) if text else None
        for key in reversed(keys):
            value = {key: value}
        merged = merge(merged, value)
    return merged


def merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings merge, everything else is replaced."""
    out = dict(base)
    for key, value in top.items():
        below = out.get(key)
        out[key] = merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return out


def configured_server(overrides: Sequence[str] = ()) -> ServerAddress | None:
    """The server that somebody named; None = nobody did, the local stack is meant."""
    token = environment(TOKEN_VARIABLES)
    named = environment(ENDPOINT_VARIABLES)
    if named is not None and not overrides:
        return ServerAddress(named[1], token[1] if token else _config_token([]), f"environment {named[0]}")
    if not overrides and not _mentions_server():
        return None
    section = load_config(overrides).get("api_server") or {}
    forced = parse_overrides(overrides).get("api_server") or {}
    if named is not None and "endpoint" not in forced:
        return ServerAddress(named[1], token[1] if token else _of(section), f"environment {named[0]}")
    endpoint = section.get("endpoint")
    if not endpoint:
        return None
    source = "--config" if "endpoint" in forced else "configuration"
    return ServerAddress(str(endpoint), token[1] if token else _of(section), source)


def _of(section: Mapping[str, Any]) -> str | None:
    token = section.get("service_account_token")
    return None if token is None else str(token)


def _config_token(overrides: Sequence[str]) -> str | None:
    return _of(load_config(overrides).get("api_server") or {}) if _mentions_server() else None


def _mentions_server() -> bool:
    """Loading YAML costs more than most commands: only when there is something to find."""
    return any(b"api_server" in path.read_bytes() for path in config_files())
