"""The root of the command tree in click: commands are imported when they are called, errors become sentences here.

Exit codes: 0, 1 (an error or a declined prompt), 2 (wrong usage), 130 (Ctrl-C), and those of jobs (100 to 103).
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from sky.cli import tree
from sky.cli.output import error_text, say

INTERRUPTED = 130


class LazyGroup(click.Group):
    """A group whose commands are named in `tree` and imported on use."""

    def __init__(self, path: str, **kwargs: Any) -> None:
        super().__init__(name=path.rpartition(" ")[2] or "sky", no_args_is_help=False, **kwargs)
        self.path = path

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name, row in tree.rows(self.path).items() if row[3] != "hidden"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        row = tree.rows(self.path).get(cmd_name)
        if row is None:
            return None
        path = tree.path_of(self.path, cmd_name)
        if path in tree.TREE:
            return _group(path)
        if not row[1]:
            return _unsupported(path, row[2])
        module, _, attribute = row[1].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in tree.rows(self.path) and not args[0].startswith("-"):
            from skyloom_common.core.text import did_you_mean

            hint = did_you_mean(args[0], self.list_commands(ctx))
            ctx.fail(f"No such command {args[0]!r}{hint}.")
        return super().resolve_command(ctx, args)

    def get_help(self, ctx: click.Context) -> str:
        return tree.help_text(self.path)

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> Any:  # type: ignore[override]
        """Runs a command line; every error leaves as one sentence. Exits with `standalone_mode` (the default)."""
        standalone = extra.pop("standalone_mode", True)
        try:
            result = super().main(args, prog_name=prog_name or "sky", standalone_mode=False, **extra)
            code = result if isinstance(result, int) else 0
            sys.stdout.flush()
        except BaseException as error:
            code = exit_code_of(error)
        if standalone:
            sys.exit(code)
        return code


def exit_code_of(error: BaseException) -> int:
    """Says what went wrong on stderr; the exit code for it."""
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, click.Abort) and isinstance(error.__cause__, KeyboardInterrupt):
        return INTERRUPTED  # click makes an Abort of Ctrl-C
    if isinstance(error, click.Abort):
        at_prompt = isinstance(error.__context__, (EOFError, KeyboardInterrupt))
        say("\nAborted." if at_prompt else "Aborted.")
        return 1
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):
        # Whoever read our output has gone; keep the interpreter from complaining about it on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if os.environ.get("SKYLOOM_DEBUG"):
        import traceback

        traceback.print_exception(error)
    say(error_text(error))
    return 1


def _group(path: str) -> LazyGroup:
    return LazyGroup(path, invoke_without_command=True, callback=_show_help, context_settings=CONTEXT)


@click.pass_context
def _show_help(ctx: click.Context) -> None:
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def _unsupported(path: str, about: str) -> click.Command:
    def refuse() -> int:
        say(f"not supported yet: sky {path}")
        return 1

    settings = {**CONTEXT, "ignore_unknown_options": True, "allow_extra_args": True}
    return click.Command(
        path.rpartition(" ")[2],
        callback=refuse,
        help=f"{about} (not supported yet)",
        context_settings=settings,
    )


CONTEXT: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def _print_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        click.echo(tree.version_text())
        ctx.exit()


def _print_commit(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        from sky.cli.commit import commit

        click.echo(commit())
        ctx.exit()


def _completion(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value:
        from sky.cli import completion

        change = completion.install if param.name == "install_shell_completion" else completion.uninstall
        click.echo(change(value))
        ctx.exit()


def _root() -> LazyGroup:
    shells = click.Choice(["bash", "zsh", "fish", "auto"])
    flag: dict[str, Any] = {"is_flag": True, "expose_value": False, "is_eager": True}
    choice: dict[str, Any] = {
        "type": shells,
        "expose_value": False,
        "is_eager": True,
        "callback": _completion,
    }
    return LazyGroup(
        "",
        invoke_without_command=True,
        callback=_show_help,
        context_settings=CONTEXT,
        params=[
            click.Option(["-v", "--version"], callback=_print_version, **flag),
            click.Option(["-c", "--commit"], callback=_print_commit, **flag),
            click.Option(["--install-shell-completion"], **choice),
            click.Option(["--uninstall-shell-completion"], **choice),
        ],
    )


cli = _root()
