"""Lambda: GET /instance-types of its public API; every type with its price and the regions that have capacity now.

A type is priced the same everywhere. Regions without capacity at the moment are not listed, so the places that the catalog
knows stay, with the new price: this API says where something is free, not where it is sold.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from skyloom_optimizer.refresh.model import WHOLE_CLOUD, FeedInfo, FeedNotConfigured, FeedRow, Known
from skyloom_optimizer.refresh.settings import FeedSettings
from skyloom_optimizer.refresh.transport import FeedHttp, field

_DEVICE = re.compile(r"(?P<name>.+?) \((?P<memory>\d+) GB.*\)")
_ARM = ("GH200",)


class LambdaFeed:
    info = FeedInfo("lambda", "lambda-api", "Lambda Cloud API, instance types")

    def __init__(self, http: FeedHttp, url: str) -> None:
        self._http = http
        self._url = f"{url}/instance-types"
        self._regions: Sequence[str] = ()

    def parts(self, known: Known, all_regions: bool) -> Sequence[str]:
        self._regions = known.every_region
        return [WHOLE_CLOUD]

    def close(self) -> None:
        self._http.close()

    def fetch(self, part: str) -> Sequence[FeedRow]:
        types = field(self._http.get(self._url), "data", dict, self._url)
        return [row for name, item in sorted(types.items()) for row in self._rows(name, item)]

    def _rows(self, name: str, item: Mapping[str, Any]) -> list[FeedRow]:
        about = field(item, "instance_type", dict, f"{self._url}: {name}")
        cents = field(about, "price_cents_per_hour", (int, float), f"{self._url}: {name}")
        free = [
            field(region, "name", str, self._url)
            for region in item.get("regions_with_capacity_available") or []
        ]
        specs = field(about, "specs", dict, f"{self._url}: {name}")
        common = {
            "instance_type": name,
            "price": cents / 100,
            "vcpus": float(field(specs, "vcpus", (int, float), name)),
            "memory_gib": float(field(specs, "memory_gib", (int, float), name)),
            **_device(about, specs),
        }
        return [FeedRow(region=region, **common) for region in sorted({*self._regions, *free}) or [""]]


def _device(about: Mapping[str, Any], specs: Mapping[str, Any]) -> dict[str, Any]:
    count = float(specs.get("gpus") or 0)
    text = str(about.get("gpu_description") or "")
    match = _DEVICE.fullmatch(text)
    if not count:
        return {"accelerator": "", "accelerator_count": 0.0, "arch": "x86_64"}
    if match is None:
        return {"accelerator": text or None, "accelerator_count": count}
    arch = "arm64" if match["name"].startswith(_ARM) else "x86_64"
    memory = float(match["memory"])
    return {
        "accelerator": match["name"],
        "accelerator_count": count,
        "accelerator_memory_gib": memory,
        "arch": arch,
    }


def make_feed(settings: FeedSettings) -> LambdaFeed:
    key = settings.lambda_key or _key_in_file(settings)
    if not key:
        raise FeedNotConfigured(
            "no Lambda API key was found",
            hint="Set LAMBDA_API_KEY, or put `api_key = ...` into ~/.lambda_cloud/lambda_keys.",
        )
    return LambdaFeed(FeedHttp(headers={"Authorization": f"Bearer {key}"}), settings.urls["lambda"])


def _key_in_file(settings: FeedSettings) -> str:
    try:
        content = (settings.user_home / ".lambda_cloud" / "lambda_keys").read_text()
    except OSError:
        return ""
    match = re.search(r"^\s*api_key\s*=\s*(\S+)", content, re.MULTILINE)
    return match[1] if match else ""
