"""Azure: the Retail Prices API (open to everybody). It has prices only; sizes come from the Resource SKUs where a subscription
is named (azure_skus.py), else from what the catalog knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from skyloom_optimizer.refresh.azure_skus import AzureSkus, make_skus
from skyloom_optimizer.refresh.model import FeedError, FeedInfo, FeedRow, Known
from skyloom_optimizer.refresh.settings import FeedSettings
from skyloom_optimizer.refresh.transport import FeedHttp, field

MAX_PAGES = 2000
_FILTER = "serviceName eq 'Virtual Machines' and priceType eq 'Consumption' and armRegionName eq '{region}'"
_NOT_OURS = ("Windows", "Dedicated", "CloudServices", "Cloud Services")
_HOUR = "1 Hour"


class AzureFeed:
    info = FeedInfo(
        "azure", "azure-retail", "Azure Retail Prices API (prices.azure.com), pay as you go and spot"
    )

    def __init__(self, http: FeedHttp, url: str, skus: AzureSkus | None = None) -> None:
        self._http = http
        self._url = url
        self._skus = skus

    def parts(self, known: Known, all_regions: bool) -> Sequence[str]:
        return known.every_region if all_regions else known.regions

    def close(self) -> None:
        self._http.close()
        if self._skus is not None:
            self._skus.close()

    def fetch(self, part: str) -> Sequence[FeedRow]:
        found: dict[str, dict[str, float]] = {}
        currency = "USD"
        for item in self._items(part):
            kind = _capacity(item)
            if kind is None:
                continue
            currency = _one_currency(currency, field(item, "currencyCode", str, self._url))
            price = float(field(item, "retailPrice", (int, float), self._url))
            prices = found.setdefault(field(item, "armSkuName", str, self._url), {})
            # One size can be listed under several meters; a zero is a meter that is not billed yet.
            if price > 0 or kind not in prices:
                prices[kind] = min(price, prices.get(kind) or price) if price > 0 else price
        sizes = self._skus.sizes(part) if self._skus is not None else {}
        return [
            FeedRow(
                part,
                name,
                price=prices.get("on_demand"),
                spot_price=prices.get("spot"),
                currency=currency,
                **sizes.get(name, {}),
            )
            for name, prices in sorted(found.items())
        ]

    def _items(self, region: str) -> list[Mapping[str, Any]]:
        url, params = (
            self._url,
            {"api-version": "2023-01-01-preview", "$filter": _FILTER.format(region=region)},
        )
        items: list[Mapping[str, Any]] = []
        seen: set[str] = set()
        while url:
            page = self._http.get(url, params)
            items += field(page, "Items", list, url)
            url, params = page.get("NextPageLink") or "", {}
            if url in seen or len(seen) > MAX_PAGES:
                raise FeedError(f"{self._url}: the pages of {region} do not end")
            seen.add(url)
        return items


def _capacity(item: Mapping[str, Any]) -> str | None:
    """on_demand or spot; None: not a plain Linux machine by the hour."""
    product, meter = str(item.get("productName", "")), str(item.get("meterName", ""))
    if any(word in product for word in _NOT_OURS) or "Low Priority" in meter:
        return None
    if item.get("type", "Consumption") != "Consumption" or item.get("unitOfMeasure") != _HOUR:
        return None
    return "spot" if meter.endswith("Spot") or " Spot" in str(item.get("skuName", "")) else "on_demand"


def _one_currency(before: str, now: str) -> str:
    return now if now != "USD" else before


def make_feed(settings: FeedSettings) -> AzureFeed:
    return AzureFeed(FeedHttp(), settings.urls["azure"], make_skus(settings))
