"""What the local stack is told: by its command line, else by the environment. Light to import."""

from __future__ import annotations

import argparse
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from skyloom_common.core.home import skyloom_home
from skyloom_common.service.env import Env
from skyloom_common.service.settings import LOG_LEVELS

PREFERRED_PORT = 46580


@dataclass(frozen=True)
class StandaloneSettings:
    """`port` None = 46580, or a free one when that is taken. `redis_url` "" = an embedded server of our own."""

    home: Path
    host: str = "127.0.0.1"
    port: int | None = None
    redis_url: str = field(default="", repr=False)
    database_url: str = field(default="", repr=False)
    log_level: str = "INFO"
    grace_seconds: float = 10.0
    service_token: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    """Between the services of this process; a new one at each start."""

    @property
    def log_file(self) -> Path:
        return self.home / "logs" / "server.log"


@dataclass(frozen=True)
class Options:
    """The command line. `ready_fd`: see state.Ready. `detach`: leave the terminal and return when it is ready."""

    ready_fd: int | None
    detach: bool
    host: str | None
    port: int | None


def read_options(arguments: Sequence[str]) -> Options:
    parser = argparse.ArgumentParser(
        prog="skyloom-standalone", description="The whole control plane in one process, for one machine."
    )
    parser.add_argument("--host", help="address to listen on (127.0.0.1)")
    parser.add_argument(
        "--port", type=int, help=f"port ({PREFERRED_PORT}, or a free one where that is taken)"
    )
    parser.add_argument(
        "--ready-fd", type=int, metavar="N", help="write one JSON line here when ready or failed"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--foreground", action="store_true", help="stay in this terminal (the default)")
    how.add_argument("--detach", action="store_true", help="run in the background; return when it is ready")
    parsed = parser.parse_args(arguments)
    if parsed.port is not None and not 0 <= parsed.port <= 65535:
        parser.error(
            f"--port: {parsed.port} is not valid; use a number from 0 to 65535 (for example: {PREFERRED_PORT})"
        )
    return Options(parsed.ready_fd, parsed.detach, parsed.host, parsed.port)


def read_settings(options: Options, environ: Mapping[str, str] | None = None) -> StandaloneSettings:
    """Raises SettingsError."""
    env = Env(environ)
    home = env.path("SKYLOOM_HOME", skyloom_home())
    port = env.integer("SKYLOOM_PORT", -1, low=0, high=65535)
    settings = StandaloneSettings(
        home=home,
        host=options.host or env.text("SKYLOOM_HOST", "127.0.0.1"),
        port=options.port if options.port is not None else (None if port < 0 else port),
        redis_url=env.url("REDIS_URL", schemes=("redis", "rediss", "unix")),
        database_url=env.text("DATABASE_URL"),
        log_level=env.choice("SKYLOOM_LOG_LEVEL", "INFO", LOG_LEVELS),
        grace_seconds=env.number("SKYLOOM_GRACE_SECONDS", 10.0, low=0, high=3600),
    )
    env.check()
    return settings
