"""The local stack's process: single, found by its files, ready or failed in one word, gone without remains.

Light to import: the embedded Redis starts while the services are still being loaded.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import socket
import sys
from pathlib import Path

from skyloom_common.service.env import SettingsError
from skyloom_common.service.logs import configure_logging
from skyloom_common.service.run import bind, run_until_signal, say
from skyloom_standalone.reserve import release
from skyloom_standalone.settings import (
    PREFERRED_PORT,
    Options,
    StandaloneSettings,
    read_options,
    read_settings,
)
from skyloom_standalone.state import AlreadyRunning, Ready, single_instance

_log = logging.getLogger("skyloom.standalone")
NAME = "standalone"
_LOG_BYTES, _LOG_FILES = 10 << 20, 3


def main(arguments: list[str] | None = None) -> None:
    options = read_options(sys.argv[1:] if arguments is None else arguments)
    if options.detach:
        from skyloom_standalone.detach import start_detached

        sys.exit(start_detached(options))
    sys.exit(run(options))


def run(options: Options) -> int:
    """0 after a stop that was asked for; 2 for a bad setting, 3 when another one runs, 1 for anything else."""
    ready = Ready(options.ready_fd)
    try:
        settings = read_settings(options)
    except SettingsError as error:
        return _fail(ready, " ".join(error.problems), 2)
    try:
        with single_instance(settings.home):
            return _run_single(settings, ready)
    except AlreadyRunning as error:
        return _fail(
            ready, str(error), 3, "Stop it with 'sky api stop', or set SKYLOOM_HOME to another directory."
        )
    except OSError as error:
        return _fail(ready, f"the state directory {settings.home} cannot be used: {error}", 1)


def _run_single(settings: StandaloneSettings, ready: Ready) -> int:
    os.umask(0o077)
    release(settings.home)
    _log_to_file(settings)
    try:
        sock = _listen(settings)
    except OSError as error:
        where = f"{settings.host}:{PREFERRED_PORT if settings.port is None else settings.port}"
        return _fail(
            ready, f"cannot listen on {where}: {error.strerror}", 1, "Choose another port with --port N."
        )

    async def serve_all(stop: object) -> None:
        from skyloom_standalone.stack import Stack

        await Stack(settings, sock, ready).run(stop)  # type: ignore[arg-type]

    try:
        run_until_signal(serve_all)
    except Exception as error:
        _log.exception("the server ended")
        message = getattr(error, "message", None) or f"{type(error).__name__}: {error}"
        return _fail(ready, message, 1, getattr(error, "hint", None) or f"See {settings.log_file}.")
    return 0


def _fail(ready: Ready, message: str, code: int, hint: str | None = None) -> int:
    ready.failed(message, hint)
    say(NAME, message if hint is None else f"{message} {hint}")
    return code


def _listen(settings: StandaloneSettings) -> socket.socket:
    """The preferred port, else a free one; a port that was asked for is that one or none."""
    if settings.port is not None:
        return bind(settings.host, settings.port)
    try:
        return bind(settings.host, PREFERRED_PORT)
    except OSError:
        return bind(settings.host, 0)


def _log_to_file(settings: StandaloneSettings) -> None:
    settings.log_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handler = _PrivateLog(settings.log_file)
    configure_logging(settings.log_level, secrets=_secrets(settings), handler=handler)
    _log.info("starting version=%s pid=%d home=%s", _version(), os.getpid(), settings.home)


def _secrets(settings: StandaloneSettings) -> tuple[str, ...]:
    token = settings.home / "token"
    return (settings.service_token, token.read_text().strip() if token.exists() else "")


class _PrivateLog(logging.handlers.RotatingFileHandler):
    """Only its owner may read it, also after a rotation."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, maxBytes=_LOG_BYTES, backupCount=_LOG_FILES, encoding="utf-8", delay=True)


def _version() -> str:
    from importlib.metadata import version

    return version("skyloom-standalone")
