"""What the gateway is told by its environment, beside what every service is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from skyloom_common.service.env import Env
from skyloom_common.service.settings import ServiceSettings


@dataclass(frozen=True)
class GatewaySettings(ServiceSettings):
    """`tokens_file` None = the one token of the local stack, `home/token`. `server_log` None = not kept here."""

    SERVICE: ClassVar[str] = "gateway"
    DEFAULT_PORT: ClassVar[int] = 46580

    provisioner_url: str = "http://127.0.0.1:46582"
    optimizer_url: str = "http://127.0.0.1:46581"
    tokens_file: Path | None = None
    server_log: Path | None = None

    @classmethod
    def read_own(cls, env: Env) -> dict[str, Any]:
        tokens, log = env.text("SKYLOOM_TOKENS_FILE"), env.text("SKYLOOM_SERVER_LOG")
        return {
            "provisioner_url": env.url("SKYLOOM_PROVISIONER_URL", cls.provisioner_url),
            "optimizer_url": env.url("SKYLOOM_OPTIMIZER_URL", cls.optimizer_url),
            "tokens_file": Path(tokens).expanduser().absolute() if tokens else None,
            "server_log": Path(log).expanduser().absolute() if log else None,
        }
