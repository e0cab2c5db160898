"""An SSH alias per cluster: one file each under $SKYLOOM_HOME/ssh/, and one Include line in ~/.ssh/config.

Nothing is written where the provider has no SSH; the Include line goes with the last alias. It must not touch any other line.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skyloom_common.core.home import skyloom_home
from skyloom_common.core.names import check_cluster_name

if TYPE_CHECKING:
    from typing import Protocol

    class HasSsh(Protocol):
        """A cluster, as a contract or as a row."""

        @property
        def name(self) -> str: ...
        @property
        def ssh(self) -> dict[str, Any] | None: ...


MARK = "# Added by Skyloom: aliases of its clusters"
DEFAULTS = ("StrictHostKeyChecking accept-new", "ServerAliveInterval 30", "LogLevel ERROR")
OPTIONS = {
    "host": "HostName",
    "port": "Port",
    "user": "User",
    "identity_file": "IdentityFile",
    "proxy_command": "ProxyCommand",
}


def directory() -> Path:
    return skyloom_home() / "ssh"


def write(cluster: HasSsh) -> None:
    """The cluster's aliases as it says now; removes them when it has no SSH."""
    hosts = (cluster.ssh or {}).get("hosts") or []
    if not hosts:
        remove(cluster.name)
        return
    text = "\n".join(_block(host) for host in hosts)
    path = directory() / check_cluster_name(cluster.name)
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    directory().mkdir(parents=True, exist_ok=True, mode=0o700)
    _replace(path, text)
    _include()


def remove(name: str) -> None:
    path = directory() / check_cluster_name(name)
    if path.is_file():
        path.unlink()
        _tidy()


def keep_only(names: Iterable[str]) -> None:
    """Removes the aliases of every other cluster."""
    wanted = set(names)
    if not directory().is_dir():
        return
    for path in directory().iterdir():
        if path.name not in wanted:
            path.unlink()
    _tidy()


def _block(host: dict[str, Any]) -> str:
    lines = [f"Host {_word(host['name'])}"]
    lines += [f"  {OPTIONS[key]} {_line(host[key])}" for key in OPTIONS if host.get(key)]
    lines += [f"  {line}" for line in DEFAULTS]
    return "\n".join(lines) + "\n"


def _word(value: Any) -> str:
    return check_cluster_name(str(value))


def _line(value: Any) -> str:
    """What a server sends must not become a second directive."""
    text = str(value)
    if "\n" in text or "\r" in text:
        raise ValueError("an SSH setting may not contain a line break")
    return text


def _config() -> Path:
    return Path.home() / ".ssh" / "config"


def _include_lines() -> list[str]:
    return [MARK, f"Include {directory()}/*"]


def _include() -> None:
    """Include must stand before the first Host to hold for all hosts."""
    path = _config()
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    lines = _include_lines()
    if lines[1] in text.splitlines():
        return
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    _replace(path, "\n".join([*lines, "", text]) if text else "\n".join(lines) + "\n")


def _tidy() -> None:
    """Without aliases, without Include line."""
    if any(directory().iterdir()):
        return
    directory().rmdir()
    path = _config()
    if not path.is_file():
        return
    text = path.read_text(encoding="utf-8")
    ours = "\n".join(_include_lines()) + "\n"
    if ours in text:
        _replace(path, text.replace(ours, "", 1).lstrip("\n"))


def _replace(path: Path, text: str) -> None:
    """Whole or not at all, readable by its owner only."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    if path.is_symlink():
        path = path.resolve()
    scratch.replace(path)
