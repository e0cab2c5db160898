"""Types for admin policies: code that sees each request before it is carried out, changes it, or raises.

This version defines the types, so that policies can be written and tested; no server calls them yet.
"""

from __future__ import annotations

import abc
import enum
from dataclasses import dataclass, field
from typing import Any

from sky.task import Task


class Config(dict[str, Any]):
    """A configuration with nested access."""

    def get_nested(self, keys: tuple[str, ...] | list[str], default_value: Any = None) -> Any:
        value: Any = self
        for key in keys:
            if not isinstance(value, dict) or key not in value:
                return default_value
            value = value[key]
        return value

    def set_nested(self, keys: tuple[str, ...] | list[str], value: Any) -> None:
        *parents, last = keys
        inner: dict[str, Any] = self
        for key in parents:
            inner = inner.setdefault(key, {})
        inner[last] = value


class AdminPolicyRequestName(enum.Enum):
    VALIDATE = "validate"
    OPTIMIZE = "optimize"
    CLUSTER_LAUNCH = "cluster_launch"
    CLUSTER_EXEC = "cluster_exec"
    JOBS_LAUNCH = "jobs_launch"
    SERVE_UP = "serve_up"


@dataclass
class RequestOptions:
    cluster_name: str | None = None
    idle_minutes_to_autostop: int | None = None
    down: bool = False
    dryrun: bool = False


@dataclass
class UserRequest:
    """What a user asked for."""

    task: Task
    skypilot_config: Config = field(default_factory=Config)
    request_name: AdminPolicyRequestName = AdminPolicyRequestName.CLUSTER_LAUNCH
    request_options: RequestOptions | None = None
    at_client_side: bool = False
    user: Any = None
    client_api_version: int | None = None
    client_version: str | None = None


@dataclass
class MutatedUserRequest:
    """What is to be done instead."""

    task: Task
    skypilot_config: Config = field(default_factory=Config)


class AdminPolicy(abc.ABC):
    """Raise in `validate_and_mutate` to reject: the user sees UserRequestRejectedByPolicy with your words."""

    @classmethod
    @abc.abstractmethod
    def validate_and_mutate(cls, user_request: UserRequest) -> MutatedUserRequest:
        """The request to carry out."""
