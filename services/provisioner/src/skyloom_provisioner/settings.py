"""What the provisioner is told by its environment."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from skyloom_common.service.env import Env
from skyloom_common.service.settings import ServiceSettings


@dataclass(frozen=True)
class ProvisionerSettings(ServiceSettings):
    """`agent_bundle` None = made from the installed agent into `home`. `providers` empty = every one that loads.

    `deployment_secret` "" = the file `home/secret`, made at the first start. `crash_at` is for failure tests only:
    the process kills itself at the named point.
    """

    SERVICE: ClassVar[str] = "provisioner"
    DEFAULT_PORT: ClassVar[int] = 46582

    optimizer_url: str = ""
    deployment_secret: str = field(default="", repr=False)
    agent_bundle: Path | None = None
    providers: tuple[str, ...] = ()
    lease_seconds: float = 15.0
    heartbeat_seconds: float = 5.0
    gc_seconds: float = 300.0
    file_store_gib: float = 20.0
    crash_at: str = ""

    @classmethod
    def read_own(cls, env: Env) -> dict[str, Any]:
        bundle = env.text("SKYLOOM_AGENT_BUNDLE")
        return {
            "optimizer_url": env.url("SKYLOOM_OPTIMIZER_URL", "http://127.0.0.1:46581"),
            "deployment_secret": env.secret("SKYLOOM_DEPLOYMENT_SECRET", required=False),
            "agent_bundle": Path(bundle).expanduser().absolute() if bundle else None,
            "providers": tuple(env.text("SKYLOOM_PROVIDERS").replace(",", " ").split()),
            "lease_seconds": env.number("SKYLOOM_LEASE_SECONDS", 15.0, low=1, high=600),
            "heartbeat_seconds": env.number("SKYLOOM_HEARTBEAT_SECONDS", 5.0, low=0.1, high=60),
            "gc_seconds": env.number("SKYLOOM_GC_SECONDS", 300.0, low=1, high=86400),
            "file_store_gib": env.number("SKYLOOM_FILE_STORE_GIB", 20.0, low=0.1, high=1e6),
            "crash_at": env.text("SKYLOOM_CRASH_AT"),
        }
