"""`envs` and `secrets`: their forms, what the client adds to them, and `$NAME` in the sections that may use it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any, Optional

from skyloom_common.contracts.task import scalars
from skyloom_common.contracts.task.model import ManagedSecret
from skyloom_common.contracts.task.problems import Field

DOCKER_LOGIN = ("SKYPILOT_DOCKER_USERNAME", "SKYPILOT_DOCKER_PASSWORD", "SKYPILOT_DOCKER_SERVER")
SUBSTITUTED = ("file_mounts", "service", "workdir", "volumes")
"""The sections in which `$NAME` and `${NAME}` stand for a variable."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_REFERENCE = re.compile(r"\$(?:\{([A-Za-z_][A-Za-z0-9_]*)\}|([A-Za-z_][A-Za-z0-9_]*))")
_MANAGED = re.compile(r"secrets:(?:(?:personal|workspace|global)\.)?[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Given:
    """What the client adds to a file. A value of None means "as in the client's own environment" (`--env NAME`)."""

    envs: Mapping[str, Optional[str]] = dataclass_field(default_factory=dict)
    secrets: Mapping[str, Optional[str]] = dataclass_field(default_factory=dict)
    client_env: Mapping[str, str] = dataclass_field(default_factory=dict)


def envs(field: Optional[Field]) -> dict[str, Optional[str]]:
    """Name to text. A name left empty is kept with None."""
    if field is None or not field.is_mapping("NAME: VALUE, for example {MODEL: llama}"):
        return {}
    found: dict[str, Optional[str]] = {}
    for name, item in field.items():
        if _is_name(item, name):
            found[name] = _value(item)
    return found


def secrets(field: Optional[Field]) -> dict[str, Optional[str]]:
    """As envs; None is a reference to a managed secret. Also a list of `secrets:NAME`."""
    if field is None:
        return {}
    if isinstance(field.value, (list, tuple)):
        names = [_reference(item) for item in field.elements()]
        return {name: None for name in names if name is not None}
    found: dict[str, Optional[str]] = {}
    if not field.is_mapping("NAME: VALUE, or a list such as ['secrets:HF_TOKEN']"):
        return {}
    for name, item in field.items():
        if name.startswith("secrets:"):
            if item.value is not None:
                item.refuse("a reference with a value", "no value; it is looked up when the task starts")
            elif _reference(Field(name, item.path, item.report)) is not None:
                found[name] = None
        elif _is_name(item, name):
            found[name] = _value(item)
    return found


def managed_secrets(field: Field) -> tuple[ManagedSecret, ...]:
    if isinstance(field.value, (list, tuple)):
        names = [scalars.text(item, "the name of a managed secret") for item in field.elements()]
        return tuple(ManagedSecret(name) for name in dict.fromkeys(names) if name is not None)
    if not field.is_mapping("a list of names, or NAME: {mount_path: PATH}"):
        return ()
    found: list[ManagedSecret] = []
    for name, item in field.items():
        path: Optional[str] = None
        if item.value is not None and item.is_mapping("{mount_path: PATH}"):
            item.only(("mount_path",))
            inner = item.get("mount_path")
            path = None if inner is None else scalars.text(inner, "a path")
        found.append(ManagedSecret(name, path))
    return tuple(found)


def add_given(
    field: Field,
    own_envs: Mapping[str, Optional[str]],
    own_secrets: Mapping[str, Optional[str]],
    given: Given,
) -> tuple[dict[str, Optional[str]], dict[str, Optional[str]]]:
    """Both with the client's values over them. A variable that the file declares as a secret stays one."""
    envs_now, secrets_now = dict(own_envs), dict(own_secrets)
    for name, value in given.envs.items():
        target = secrets_now if name in own_secrets and name not in own_envs else envs_now
        _add(field, "--env", target, name, value, given.client_env)
    for name, value in given.secrets.items():
        _add(field, "--secret", secrets_now, name, value, given.client_env)
    return envs_now, secrets_now


def check_docker_login(field: Field, own_envs: Mapping[str, Any], own_secrets: Mapping[str, Any]) -> None:
    in_envs = [name for name in DOCKER_LOGIN if name in own_envs]
    in_secrets = [name for name in DOCKER_LOGIN if name in own_secrets]
    if not in_envs and not in_secrets:
        return
    if (len(in_envs), len(in_secrets)) not in ((3, 0), (0, 3)):
        section = "secrets" if in_secrets else "envs"
        name = (in_envs or in_secrets)[0]
        field.child("secrets" if not in_envs else "envs", None).child(name, None).refuse(
            "the docker login is not whole", f"{', '.join(DOCKER_LOGIN)}, all three in {section}"
        )


def substitute(value: Any, known: Mapping[str, str]) -> Any:
    """The value with `$NAME` and `${NAME}` replaced in its texts and keys; names that are not known stay as they are."""
    if isinstance(value, str):
        return (
            _REFERENCE.sub(lambda match: known.get(match[1] or match[2], match[0]), value)
            if "$" in value
            else value
        )
    if isinstance(value, Mapping):
        return {substitute(key, known): substitute(item, known) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [substitute(item, known) for item in value]
    return value


def known_values(*sources: Mapping[str, Optional[str]]) -> dict[str, str]:
    """Every variable that has a value; later sources win."""
    return {name: value for source in sources for name, value in source.items() if value is not None}


def _is_name(field: Field, name: str) -> bool:
    if _NAME.fullmatch(name):
        return True
    field.report.add(
        field.path,
        f"{name!r} is not the name of a variable",
        "letters, digits and _, not beginning with a digit",
    )
    return False


def _value(field: Field) -> Optional[str]:
    if field.value is None:
        return None
    if isinstance(field.value, (str, bool, int, float)):
        return scalars.stringified(field.value)
    field.refuse_value("text", "text, a number, true or false; put lists and mappings in quotes")
    return None


def _reference(field: Field) -> Optional[str]:
    if isinstance(field.value, str) and _MANAGED.fullmatch(field.value):
        return field.value
    field.refuse(
        "an item that is no reference to a managed secret", "secrets:NAME (or secrets:workspace.NAME)"
    )
    return None


def _add(
    field: Field,
    flag: str,
    target: dict[str, Optional[str]],
    name: str,
    value: Optional[str],
    client_env: Mapping[str, str],
) -> None:
    where = Field(None, (flag,), field.report).child(name, None)
    if not _is_name(where, name):
        return
    if value is None and name not in client_env:
        where.refuse(f"{name} is not set in this shell", f"{flag} {name}=VALUE")
        return
    target[name] = client_env[name] if value is None else str(value)
