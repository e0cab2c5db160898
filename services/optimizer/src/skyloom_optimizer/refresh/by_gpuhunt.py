"""Clouds that the library `gpuhunt` reads well, as feeds. It is optional: `pip install skyloom-optimizer[gpuhunt]`.

Keys are taken from the environment variables that the library names. It has no pages or currencies to check: what it returns
goes through the same rules as any feed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from skyloom_optimizer.refresh.model import (
    WHOLE_CLOUD,
    FeedError,
    FeedInfo,
    FeedNotConfigured,
    FeedRow,
    FeedUnavailable,
    Known,
)

# cloud -> module, class, key in the environment
PROVIDERS = {
    "crusoe": ("crusoe", "CrusoeProvider"),
    "daytona": ("daytona", "DaytonaProvider"),
    "do": ("digitalocean", "DigitalOceanProvider"),
    "jarvislabs": ("jarvislabs", "JarvisLabsProvider"),
    "lium": ("lium", "LiumProvider"),
    "runpod": ("runpod", "RunpodProvider"),
    "seeweb": ("seeweb", "SeewebProvider"),
}


class GpuhuntFeed:
    """`get` returns the library's items."""

    def __init__(self, cloud: str, get: Callable[[], Sequence[Any]], version: str = "") -> None:
        about = f"gpuhunt {version}".strip()
        self.info = FeedInfo(
            cloud, f"{cloud}-gpuhunt", f"Public API of {cloud}, read with {about}", market=True
        )
        self._get = get

    def parts(self, known: Known, all_regions: bool) -> Sequence[str]:
        return [WHOLE_CLOUD]

    def close(self) -> None:
        return

    def fetch(self, part: str) -> Sequence[FeedRow]:
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for item in self._items():
            values = _values(self.info.cloud, item)
            key = (values["region"], values["instance_type"])
            price_key = "spot_price" if item.spot else "price"
            row = found.setdefault(key, values)
            if row.get(price_key) is None or item.price < row[price_key]:
                row[price_key] = float(item.price)
        return [FeedRow(**values) for _, values in sorted(found.items())]

    def _items(self) -> Sequence[Any]:
        import requests

        try:
            return self._get()
        except requests.RequestException as error:
            raise FeedUnavailable(f"{self.info.cloud} (by gpuhunt): {error}") from error
        except Exception as error:
            # The library lets through whatever its parsing raises; none of it may end the refresh of other clouds.
            raise FeedError(f"{self.info.cloud} (by gpuhunt): {type(error).__name__}: {error}") from error


def _values(cloud: str, item: Any) -> dict[str, Any]:
    try:
        region, name = _runpod(item) if cloud == "runpod" else (item.location or "", item.instance_name)
        return {
            "region": region,
            "instance_type": name,
            "vcpus": float(item.cpu) if item.cpu else None,
            "memory_gib": float(item.memory) if item.memory else None,
            "accelerator": item.gpu_name or "",
            "accelerator_count": float(item.gpu_count),
            "accelerator_memory_gib": item.gpu_memory,
            "arch": {"x86": "x86_64", "arm": "arm64"}.get(getattr(item.cpu_arch, "value", ""), ""),
        }
    except (AttributeError, TypeError, ValueError) as error:
        raise FeedError(f"{cloud} (by gpuhunt): an item cannot be read: {error}") from error


def _runpod(item: Any) -> tuple[str, str]:
    """Country and type as the catalog has them: data centres (US-KS-2, EU-RO-1) are secure cloud, countries community."""
    first, _, rest = item.location.partition("-")
    country = rest[:2] if first in ("EU", "EUR", "AP", "OC", "SEA") and rest else first[:2]
    kind = "SECURE" if rest else "COMMUNITY"
    memory = "-80GB" if item.gpu_name == "A100" and item.gpu_memory == 80 else ""
    board = "-SXM" if "SXM" in item.instance_name or "HBM3" in item.instance_name else ""
    device = f"{item.gpu_name}{memory}{board}" if item.gpu_name else f"CPU-{item.instance_name}"
    return country, f"{item.gpu_count or 1}x_{device}_{kind}"


def make_feed(cloud: str) -> GpuhuntFeed:
    module_name, class_name = PROVIDERS[cloud]
    try:
        import gpuhunt
        from gpuhunt._internal.errors import MissingCredsError

        module = importlib.import_module(f"gpuhunt.providers.{module_name}")
    except ImportError as error:
        raise FeedNotConfigured(
            f"{cloud} is read with the library gpuhunt, which is not installed ({error})",
            hint="Install it: pip install skyloom-optimizer[gpuhunt]",
        ) from error
    kind = getattr(module, class_name)
    version = getattr(gpuhunt, "__version__", "")

    def get() -> Sequence[Any]:
        # Making one may ask the cloud already.
        return list((kind.from_env() if hasattr(kind, "from_env") else kind()).get())

    try:
        if hasattr(kind, "from_env"):
            kind.from_env()
    except MissingCredsError as error:
        raise FeedNotConfigured(
            f"{cloud}: {error}", hint="See docs/catalog-refresh.md for the keys."
        ) from error
    return GpuhuntFeed(cloud, get, version)
