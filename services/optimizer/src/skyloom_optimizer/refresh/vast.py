"""Vast: the offers that hosts make at this moment (POST /bundles/), as the cheapest of each size, device and place.

A market of single machines: an offer of the catalog stands for those that look alike, and its price is the lowest now.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from skyloom_optimizer.refresh.model import WHOLE_CLOUD, FeedInfo, FeedRow, Known
from skyloom_optimizer.refresh.settings import FeedSettings
from skyloom_optimizer.refresh.transport import FeedHttp, field

_LIMIT = 5000
_QUERY: dict[str, Any] = {
    "verified": {"eq": True}, "rentable": {"eq": True}, "external": {"eq": False}, "type": "ondemand",
    "order": [["dph_total", "asc"]], "limit": _LIMIT,
}  # fmt: skip
_CPU_STEPS = (4, 8, 16, 32, 64, 128, 256)


class VastFeed:
    info = FeedInfo(
        "vast",
        "vast-api",
        "Vast.ai offers (console.vast.ai), lowest price of each size and place",
        market=True,
    )

    def __init__(self, http: FeedHttp, url: str) -> None:
        self._http = http
        self._url = f"{url}/bundles/"

    def parts(self, known: Known, all_regions: bool) -> Sequence[str]:
        return [WHOLE_CLOUD]

    def close(self) -> None:
        self._http.close()

    def fetch(self, part: str) -> Sequence[FeedRow]:
        best: dict[tuple[str, str], FeedRow] = {}
        for item in field(self._http.post(self._url, _QUERY), "offers", list, self._url):
            row = self._row(item)
            if row is None:
                continue
            key = (row.region, row.instance_type)
            if key not in best or (row.price or 0) < (best[key].price or 0):
                best[key] = row
        return [best[key] for key in sorted(best)]

    def _row(self, item: Mapping[str, Any]) -> FeedRow | None:
        where = f"{self._url}: offer {item.get('id') if isinstance(item, dict) else item!r}"
        name = field(item, "gpu_name", str, where)
        count = field(item, "num_gpus", (int, float), where)
        cores, whole = item.get("cpu_cores_effective"), item.get("cpu_cores")
        if not cores or not whole or not count:
            return None
        memory = field(item, "cpu_ram", (int, float), where) / 1024 * cores / whole
        vcpus = _step(cores)
        gib = _step(memory)
        if not vcpus or not gib:
            return None
        device_gib = field(item, "gpu_ram", (int, float), where) / 1024
        bid = item.get("min_bid")
        price = float(field(item, "dph_total", (int, float), where))
        return FeedRow(
            region=_region(item.get("geolocation")),
            instance_type=f"{count:g}x-{name.replace(' ', '_')}-{vcpus}-{gib * 1024}",
            vcpus=float(vcpus),
            memory_gib=float(gib),
            accelerator=_device(name, device_gib),
            accelerator_count=float(count),
            accelerator_memory_gib=round(device_gib),
            arch="x86_64",
            price=price,
            spot_price=float(bid) if isinstance(bid, (int, float)) and 0 < bid < price else None,
        )


def _step(value: float) -> int:
    """The largest step that the machine has at least; 0 for less than the smallest."""
    return max((step for step in _CPU_STEPS if step <= value + 0.5), default=0)


def _device(name: str, memory_gib: float) -> str:
    """`A100 SXM4` is two cards; the memory says which."""
    if name.startswith("A100"):
        return "A100-80GB" if memory_gib > 60 else "A100"
    for board in (" SXM5", " SXM4", " SXM", " PCIE", " PCIe"):
        name = name.removesuffix(board)
    return name.replace("Q RTX", "RTX").replace("RTX A", "RTXA").replace("Tesla ", "")


def _region(text: Any) -> str:
    return str(text).strip() if text else ""


def make_feed(settings: FeedSettings) -> VastFeed:
    return VastFeed(FeedHttp(), settings.urls["vast"])
