"""The SDK's classes and the contracts: mappings in, contracts out, with errors that are ValueErrors too."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

from skyloom_common.contracts.task.model import ResourcesSpec, TaskFile, TaskSpec
from skyloom_common.core.errors import InvalidTask


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """An InvalidTask leaves as InvalidSkyPilotConfigError, which old code catches as a ValueError."""
    from sky.exceptions import InvalidSkyPilotConfigError

    try:
        yield
    except InvalidSkyPilotConfigError:
        raise
    except InvalidTask as error:
        raise InvalidSkyPilotConfigError(error.message, hint=error.hint, details=error.details) from None


def parse_task(config: Mapping[str, Any], **overrides: Any) -> TaskSpec:
    from skyloom_common.contracts.task.parse import parse_task_mapping

    with user_errors():
        return parse_task_mapping(config, client_env=os.environ, **overrides)


def parse_file(text_or_path: Any, **overrides: Any) -> TaskFile:
    from skyloom_common.contracts.task.parse import parse_task_file

    with user_errors():
        return parse_task_file(text_or_path, client_env=os.environ, **overrides)


def parse_resources(config: Mapping[str, Any]) -> ResourcesSpec:
    return parse_task({"resources": dict(config)}).resources


def check_task(spec: TaskSpec, *, workdir_only: bool = False) -> None:
    """Paths exist, variables have values."""
    from dataclasses import replace

    from skyloom_common.contracts.task.validate import validate_task

    with user_errors():
        validate_task(replace(spec, file_mounts={}) if workdir_only else spec)
