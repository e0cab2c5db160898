"""What every service is told by its environment: read once in `main`, then passed as arguments.

A service derives its own settings: it sets `SERVICE` and `DEFAULT_PORT`, adds fields and reads them in
`read_own`. Nothing else reads the environment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from skyloom_common.core.home import skyloom_home
from skyloom_common.service.env import Env

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
DATABASE_SCHEMES = (
    "sqlite",
    "sqlite+aiosqlite",
    "postgresql",
    "postgres",
    "postgresql+asyncpg",
    "postgresql+psycopg2",
)


@dataclass(frozen=True)
class ServiceSettings:
    """`port` 0 = any free one. `redis_url` "" = none. URLs may hold passwords: they are not in the repr."""

    SERVICE: ClassVar[str] = "service"
    DEFAULT_PORT: ClassVar[int] = 0

    home: Path
    service_token: str = field(repr=False)
    database_url: str = field(repr=False)
    redis_url: str = field(default="", repr=False)
    host: str = "127.0.0.1"
    port: int = 0
    log_level: str = "INFO"
    grace_seconds: float = 10.0

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **known: Any) -> Self:
        """Settings from the environment; `known` values are taken as they are. Raises SettingsError."""
        env = Env(environ)
        values = cls._read_common(env, known)
        values.update({name: value for name, value in cls.read_own(env).items() if name not in known})
        env.check()
        return cls(**values)

    @classmethod
    def read_own(cls, env: Env) -> dict[str, Any]:
        """The fields that a subclass adds."""
        return {}

    @classmethod
    def _read_common(cls, env: Env, known: dict[str, Any]) -> dict[str, Any]:
        values = dict(known)
        values.setdefault("home", env.path("SKYLOOM_HOME", skyloom_home()))
        if "service_token" not in known:
            values["service_token"] = env.secret("SKYLOOM_SERVICE_TOKEN")
        if "database_url" not in known:
            default = f"sqlite:///{values['home']}/db/{cls.SERVICE}.db"
            values["database_url"] = env.url("DATABASE_URL", default, schemes=DATABASE_SCHEMES)
        if "redis_url" not in known:
            values["redis_url"] = env.url("REDIS_URL", schemes=("redis", "rediss", "unix"))
        if "host" not in known:
            values["host"] = env.text("SKYLOOM_HOST", "127.0.0.1")
        if "port" not in known:
            values["port"] = env.integer("SKYLOOM_PORT", cls.DEFAULT_PORT, low=0, high=65535)
        if "log_level" not in known:
            values["log_level"] = env.choice("SKYLOOM_LOG_LEVEL", "INFO", LOG_LEVELS)
        if "grace_seconds" not in known:
            values["grace_seconds"] = env.number("SKYLOOM_GRACE_SECONDS", 10.0, low=0, high=3600)
        return values
