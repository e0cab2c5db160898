"""Shell completion: installing its script, and the names it offers. Offering names must never start a server or wait long."""

from __future__ import annotations

import os
from pathlib import Path

from skyloom_common.core.home import skyloom_home

MARK = "# Skyloom shell completion"
SHELLS = ("bash", "zsh", "fish")
LOOK_TIMEOUT = 0.3


def install(shell: str) -> str:
    """Writes the script and makes the shell read it; a sentence for the user."""
    shell = _resolve(shell)
    path = _script_path(shell)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_script(shell), encoding="utf-8")
    if shell == "fish":
        return f"Completion for fish is installed: {path}"
    rc = _rc_file(shell)
    text = rc.read_text(encoding="utf-8") if rc.is_file() else ""
    if MARK not in text:
        newline = "" if not text or text.endswith("\n") else "\n"
        rc.write_text(f"{text}{newline}{_rc_line(shell, path)}\n", encoding="utf-8")
    return f"Completion for {shell} is installed in {rc}; it works in the next shell (or now: source {rc})"


def uninstall(shell: str) -> str:
    """Removes what `install` wrote, and nothing else."""
    shell = _resolve(shell)
    path = _script_path(shell)
    existed = path.is_file()
    path.unlink(missing_ok=True)
    if shell != "fish":
        rc = _rc_file(shell)
        lines = rc.read_text(encoding="utf-8").splitlines(keepends=True) if rc.is_file() else []
        kept = [line for line in lines if MARK not in line]
        if kept != lines:
            existed = True
            rc.write_text("".join(kept), encoding="utf-8")
    return f"Completion for {shell} is removed." if existed else f"Completion for {shell} was not installed."


def cluster_names() -> list[str]:
    """From the running server when it answers at once, else as last seen."""
    from sky import names_cache

    try:
        found = _ask_server()
    except Exception:
        found = None  # a completion must not print an error into the command line
    return found if found is not None else names_cache.read()


def _ask_server() -> list[str] | None:
    import json

    from sky.connect import find_server, gateway_to

    server = find_server()
    if server is None:
        return None
    body = gateway_to(server).transport.call("GET", "/clusters", timeout=LOOK_TIMEOUT, attempts=1)
    return [str(row["name"]) for row in json.loads(body).get("clusters", [])]


def _script(shell: str) -> str:
    from click.shell_completion import get_completion_class

    from sky.cli.app import cli

    kind = get_completion_class(shell)
    assert kind is not None
    return kind(cli, {}, "sky", "_SKY_COMPLETE").source()


def _resolve(shell: str) -> str:
    if shell != "auto":
        return shell
    name = Path(os.environ.get("SHELL", "")).name
    if name not in SHELLS:
        from sky.exceptions import ClientError

        raise ClientError(f"The shell {name or 'of $SHELL'!r} is not known; name one of {', '.join(SHELLS)}.")
    return name


def _script_path(shell: str) -> Path:
    if shell == "fish":
        config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
        return config / "fish" / "completions" / "sky.fish"
    return skyloom_home() / "completion" / f"sky.{shell}"


def _rc_file(shell: str) -> Path:
    if shell == "zsh":
        return Path(os.environ.get("ZDOTDIR") or Path.home()) / ".zshrc"
    return Path.home() / ".bashrc"


def _rc_line(shell: str, path: Path) -> str:
    return f'[ -r "{path}" ] && source "{path}"  {MARK}'
