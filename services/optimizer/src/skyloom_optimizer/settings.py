"""What the optimizer is told by its environment, beside what every service is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from skyloom_common.service.env import Env
from skyloom_common.service.settings import ServiceSettings
from skyloom_optimizer.catalog.load import CONTAINER
from skyloom_optimizer.refresh.feeds import FEEDS
from skyloom_optimizer.refresh.turns import Timetable


@dataclass(frozen=True)
class OptimizerSettings(ServiceSettings):
    """`catalog`: the container to load; the bundled one unless SKYLOOM_CATALOG names another file.

    `offers`: the deployment's own prices and offers, SKYLOOM_OFFERS or HOME/offers.yaml; it need not exist.
    `timetable`: refreshes by itself, SKYLOOM_REFRESH_HOURS (0 = never) and SKYLOOM_REFRESH_CLOUDS.
    """

    SERVICE: ClassVar[str] = "optimizer"
    DEFAULT_PORT: ClassVar[int] = 46581

    catalog: Path = CONTAINER
    offers: Path | None = None
    timetable: Timetable = field(default_factory=Timetable)

    @property
    def offers_file(self) -> Path:
        return self.offers or self.home / "offers.yaml"

    @classmethod
    def read_own(cls, env: Env) -> dict[str, Any]:
        path = env.path("SKYLOOM_CATALOG", CONTAINER)
        if not path.is_file():
            env.bad(
                f"SKYLOOM_CATALOG: {str(path)!r} is not a file; leave it unset to use the bundled catalog"
            )
        own = env.path("SKYLOOM_OFFERS", Path()) if env.text("SKYLOOM_OFFERS") else None
        if own is not None and not own.is_file():
            env.bad(
                f"SKYLOOM_OFFERS: {str(own)!r} is not a file; leave it unset to use offers.yaml in the home"
            )
        return {"catalog": path, "offers": own, "timetable": _timetable(env)}


def _timetable(env: Env) -> Timetable:
    clouds = tuple(env.text("SKYLOOM_REFRESH_CLOUDS").lower().replace(",", " ").split())
    for cloud in clouds:
        if cloud not in FEEDS:
            known = ", ".join(sorted(FEEDS))
            env.bad(f"SKYLOOM_REFRESH_CLOUDS: {cloud!r} has no price feed (these have: {known})")
    return Timetable(env.number("SKYLOOM_REFRESH_HOURS", 0.0, low=0, high=8760) * 3600, clouds)
