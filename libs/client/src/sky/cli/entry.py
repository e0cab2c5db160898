"""From what was typed to a task: a file or a command, with the options laid over it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sky.cli.output import say

if TYPE_CHECKING:
    from sky.net.transport import Transport
    from skyloom_common.contracts.clusters import MountRef
    from skyloom_common.contracts.task.model import TaskFile, TaskSpec

TASK_FILE_SUFFIXES = (".yaml", ".yml")
PLACE_FLAGS = ("cloud", "region", "zone")


def load(
    entrypoint: Sequence[str],
    overrides: dict[str, Any],
    *,
    config: Sequence[str] = (),
    priority: str | None = None,
    yes: bool = False,
    dryrun: bool = False,
) -> TaskSpec:
    """The one task that was meant, validated on this machine. Raises InvalidTask, or a usage error (exit 2)."""
    if overrides["git_url"] and overrides["workdir"]:
        raise click.UsageError("--workdir and --git-url cannot be combined; give one of them.")
    overrides = _prepared({**overrides, "priority": priority})
    path = _task_file(entrypoint, yes)
    lines: dict[str, int] = {}
    if path is None:
        task = _command_task(entrypoint, overrides)
    else:
        task, lines = _file_task(path, overrides)
    task = _with_config(task, config)
    _validate(task, path, lines, dryrun)
    return task


def several(entrypoint: Sequence[str], overrides: dict[str, Any]) -> TaskFile | None:
    """The file, where it holds several tasks; None for everything else. For who only plans: nothing runs several at once here."""
    path = _task_file(entrypoint, yes=True)
    if path is None:
        return None
    from skyloom_common.contracts.task.parse import parse_task_file
    from skyloom_common.contracts.task.validate import validate_task_file

    prepared = _prepared(dict(overrides))
    envs, secrets = prepared.pop("env"), prepared.pop("secret")
    prepared.pop("env_file")
    file = parse_task_file(path, env_overrides=envs, secret_overrides=secrets, client_env=os.environ)
    if len(file.tasks) < 2:
        return None
    if prepared:
        flags = ", ".join("--" + name.replace("_", "-") for name in prepared)
        say(f"{flags}: ignored, because {path} holds {len(file.tasks)} tasks.")
    for notice in file.notices:
        say(notice)
    validate_task_file(file, require_envs=False)
    return file


def plain_command(entrypoint: Sequence[str], overrides: dict[str, Any], config: Sequence[str]) -> str | None:
    """The shell text, when that is all there is to the task."""
    if config or any(value is not None and value != () for value in overrides.values()):
        return None
    if not entrypoint or _task_file(entrypoint, yes=False) is not None:
        return None
    return _shell_text(entrypoint)


def _shell_text(entrypoint: Sequence[str]) -> str:
    """One word is shell text as it stands; several are what the shell has already taken apart."""
    return " ".join(entrypoint)


def confirm_name(cluster: str, yes: bool) -> None:
    """`-c task.yaml` is nearly always a file that lost its place."""
    if cluster.lower().endswith(TASK_FILE_SUFFIXES) and not yes:
        click.confirm(
            f"{cluster!r} looks like a task file. Use it as the cluster's name?", default=False, abort=True
        )


def _prepared(overrides: dict[str, Any]) -> dict[str, Any]:
    """Options as `apply_overrides` takes them: only what was given, env and secret as mappings."""
    from_files = _dotenv(overrides.pop("env_file"))
    secret_files = _dotenv(overrides.pop("secret_file"))
    envs = {**from_files, **_pairs(overrides.pop("env"), "--env")}
    secrets = {**secret_files, **_pairs(overrides.pop("secret"), "--secret")}
    given = {name: value for name, value in overrides.items() if value is not None and value != ()}
    if "ports" in given:
        given["ports"] = list(given["ports"])
    for name in ("infra", *PLACE_FLAGS):
        if name in given:
            given[name] = given[name][0] if len(given[name]) == 1 else list(given[name])
    old = [f"--{name}" for name in PLACE_FLAGS if name in given]
    if old and "infra" in given:
        raise ValueError(f"{', '.join(old)} and --infra say the same thing; give --infra only.")
    if old:
        say(f"{', '.join(old)}: deprecated, say --infra cloud/region/zone.")
    return {**given, "env": envs, "secret": secrets, "env_file": from_files}


def _pairs(items: Sequence[str], flag: str) -> dict[str, str]:
    out: dict[str, str] = {}
    for item in items:
        name, sep, value = item.partition("=")
        if not name:
            raise click.UsageError(f"{flag} {item!r} has no name; say {flag} NAME=VALUE, or {flag} NAME.")
        if not sep:
            if name not in os.environ:
                raise click.UsageError(
                    f"{flag} {name}: there is no {name} in this shell's environment; say {name}=VALUE."
                )
            value = os.environ[name]
        out[name] = value
    return out


def _dotenv(paths: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE lines; `export`, comments, blank lines and quotes as shells have them."""
    out: dict[str, str] = {}
    for path in paths:
        try:
            lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise click.UsageError(f"{path}: cannot be read: {error}") from error
        for count, line in enumerate(lines, 1):
            text = line.strip().removeprefix("export ").strip()
            if not text or text.startswith("#"):
                continue
            name, sep, value = text.partition("=")
            if not sep or not name.strip().isidentifier():
                raise click.UsageError(f"{path}:{count}: {line[:40]!r} is not NAME=VALUE.")
            out[name.strip()] = _unquoted(value.strip())
    return out


def _unquoted(value: str) -> str:
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
        return value[1:-1]
    return value.split(" #", 1)[0].rstrip()


def _task_file(entrypoint: Sequence[str], yes: bool) -> Path | None:
    """The file, when the entrypoint is one; None for a command."""
    if len(entrypoint) != 1:
        return None
    word = entrypoint[0]
    if word.startswith("recipes:"):
        from sky.exceptions import NotSupportedError

        raise NotSupportedError(f"not supported yet: {word} (stored recipes)")
    path = Path(word).expanduser()
    looks_like_file = word.lower().endswith(TASK_FILE_SUFFIXES) and not set(word) & set(" \t\n;|&")
    if looks_like_file and not path.is_file():
        message = f"{word!r} looks like a task file, but there is no such file."
        if yes:
            raise click.UsageError(message)
        click.confirm(f"{message} Run it as a command?", default=False, abort=True)
        return None
    if not _is_file(path):
        return None
    return path if looks_like_file or _is_mapping(path) else None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False  # a command may be longer than a name can be


def _is_mapping(path: Path) -> bool:
    """Other names than *.yaml: a task file when its text is a YAML mapping, else a program to run."""
    import yaml

    if path.stat().st_size > 1_000_000 or os.access(path, os.X_OK):
        return False
    try:
        first = next(iter(yaml.safe_load_all(path.read_text(encoding="utf-8"))), None)
    except (yaml.YAMLError, UnicodeDecodeError, OSError):
        return False
    return isinstance(first, dict)


def _command_task(entrypoint: Sequence[str], overrides: dict[str, Any]) -> TaskSpec:
    from skyloom_common.contracts.task.model import TaskSpec

    task = TaskSpec(run=_shell_text(entrypoint) or None)
    overrides = {name: value for name, value in overrides.items() if name != "env_file" and value != {}}
    if not overrides:
        return task
    from skyloom_common.contracts.task.overrides import apply_overrides

    return apply_overrides(task, overrides)


def _file_task(path: Path, overrides: dict[str, Any]) -> tuple[TaskSpec, dict[str, int]]:
    """The task, and the line of each of its fields."""
    from skyloom_common.contracts.task.overrides import apply_overrides
    from skyloom_common.contracts.task.parse import parse_task_file

    envs, secrets = overrides.pop("env"), overrides.pop("secret")
    overrides.pop("env_file")
    file = parse_task_file(path, env_overrides=envs, secret_overrides=secrets, client_env=os.environ)
    for notice in file.notices:
        say(notice)
    if len(file.tasks) != 1:
        raise click.UsageError(
            f"{path} holds {len(file.tasks)} tasks; launch and exec take one. For all of them: sky jobs launch {path}; "
            f"where they would run: sky launch --dryrun {path}"
        )
    task = apply_overrides(file.tasks[0], overrides) if overrides else file.tasks[0]
    return task, file.lines[0] if file.lines else {}


def _with_config(task: TaskSpec, config: Sequence[str]) -> TaskSpec:
    """What --config says about tasks goes with the task; what it says about this client stays here."""
    if not config:
        return task
    from sky.settings import merge, parse_overrides

    given = {key: value for key, value in parse_overrides(config).items() if key != "api_server"}
    return replace(task, config=merge(given, task.config)) if given else task


def _validate(task: TaskSpec, path: Path | None, lines: dict[str, int], dryrun: bool) -> None:
    """Local paths exist, variables have values, images fit their place. A bare command has none of these."""
    if path is None and task.workdir is None and not task.envs and task.resources.image_id is None:
        return
    from skyloom_common.contracts.task.validate import validate_task

    validate_task(task, filename=str(path) if path else None, lines=lines, require_envs=not dryrun)


def typed_command() -> str:
    """What the user typed, for `last_use`; values of variables and secrets are left out."""
    words = ["sky", *sys.argv[1:]]
    out, hide = [], False
    for word in words:
        flag, sep, value = word.partition("=")
        if hide:
            out.append(word.partition("=")[0])
            hide = False
        elif flag in ("--env", "--secret") and sep:
            out.append(f"{flag}={value.partition('=')[0]}")
        else:
            out.append(word)
            hide = word in ("--env", "--secret")
    return " ".join(map(_quoted, out))[:400]


def _quoted(word: str) -> str:
    """As it would have to be typed again."""
    if word.replace("-", "").replace("_", "").replace(".", "").replace("/", "").replace("=", "").isalnum():
        return word
    import shlex

    return shlex.quote(word)


def upload(transport: Transport, task: TaskSpec, *, workdir_only: bool = False) -> tuple[MountRef, ...]:
    """Uploads the local parts of a task under a progress bar."""
    from sky import uploads

    if not uploads.local_sources(task, workdir_only=workdir_only):
        return ()
    from sky.cli.progress import Progress, bar

    with Progress("Uploading") as progress:

        def report(path: str, done: int, total: int) -> None:
            if progress.live or done >= total:
                progress.update(f"Uploading {path} {bar(done, total)}")

        return uploads.upload_mounts(
            transport, task, workdir_only=workdir_only, progress=report, warn=progress.note
        )
