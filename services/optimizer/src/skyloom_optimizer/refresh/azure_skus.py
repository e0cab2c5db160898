"""Azure's sizes: the Resource SKUs of a subscription. Prices come from elsewhere (azure.py); nothing here decides what is sold."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from skyloom_optimizer.refresh.model import FeedError, FeedNotConfigured
from skyloom_optimizer.refresh.settings import FeedSettings
from skyloom_optimizer.refresh.transport import FeedHttp, field

API_VERSION = "2021-07-01"
_SCOPE = "https://management.azure.com/.default"
_MAX_PAGES = 200
_ARCH = {"x64": "x86_64", "arm64": "arm64"}
# The name of a newer size says what its device is; the capabilities only how many there are.
_DEVICE = re.compile(r"_(A10|A100|H100|H200|GB200|GB300|B200|T4|V710|MI300X)_", re.IGNORECASE)


class AzureSkus:
    def __init__(self, http: FeedHttp, url: str, subscription: str) -> None:
        self._http = http
        self._url = f"{url.rstrip('/')}/subscriptions/{subscription}/providers/Microsoft.Compute/skus"

    def close(self) -> None:
        self._http.close()

    def sizes(self, region: str) -> dict[str, dict[str, Any]]:
        """What FeedRow knows of a size, by the name of the type."""
        params = {"api-version": API_VERSION, "$filter": f"location eq '{region}'"}
        url, found, seen = self._url, {}, set()
        while url:
            page = self._http.get(url, params)
            for item in field(page, "value", list, self._url):
                if field(item, "resourceType", str, self._url) == "virtualMachines":
                    found[field(item, "name", str, self._url)] = _size(item, self._url)
            seen.add(url)
            url, params = page.get("nextLink") or "", {}
            if url in seen or len(seen) > _MAX_PAGES:
                raise FeedError(f"{self._url}: its pages do not end")
        if not found:
            raise FeedError(f"{self._url}: no machine is listed in {region}")
        return found


def _size(item: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A capability that is not listed is not known."""
    name = item["name"]
    values = {
        field(entry, "name", str, where): field(entry, "value", str, where)
        for entry in field(item, "capabilities", list, where)
    }
    found: dict[str, Any] = {
        "vcpus": _number(values, "vCPUs", name),
        "memory_gib": _number(values, "MemoryGB", name),
        "arch": _ARCH.get(values.get("CpuArchitectureType", "").lower(), ""),
    }
    return found | _device(name, _number(values, "GPUs", name))


def _device(name: str, count: float | None) -> dict[str, Any]:
    if count is None or not count:
        return {"accelerator": "", "accelerator_count": 0.0} if not name.startswith("Standard_N") else {}
    match = _DEVICE.search(name)
    if match is None:
        return {}
    device = match.group(1).upper()
    # The A100 of the NC sizes is the large one; ND sizes before it say which one they have in another way.
    large = device == "A100" and (name.startswith("Standard_NC") or "amsr" in name)
    return {
        "accelerator": "A100-80GB" if large else device,
        "accelerator_count": count,
        "accelerator_memory_gib": 80.0 if large else None,
    }


def _number(values: Mapping[str, str], key: str, name: str) -> float | None:
    text = values.get(key)
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        raise FeedError(f"Azure SKU {name}: {key} is {text!r}, which is not a number") from None


def make_skus(settings: FeedSettings) -> AzureSkus | None:
    """None where no subscription is named: sizes stay as they are known then."""
    if not settings.azure_subscription:
        return None
    token = settings.azure_token or _default_token()
    http = FeedHttp(headers={"Authorization": f"Bearer {token}"})
    return AzureSkus(http, settings.urls["azure_skus"], settings.azure_subscription)


def _default_token() -> str:
    try:
        from azure.core.exceptions import ClientAuthenticationError
        from azure.identity import DefaultAzureCredential
    except ImportError as error:
        raise FeedNotConfigured(
            "azure-identity is not installed",
            hint="Install it: pip install skyloom[azure], set SKYLOOM_FEED_AZURE_TOKEN, or unset AZURE_SUBSCRIPTION_ID.",
        ) from error
    try:
        return str(DefaultAzureCredential().get_token(_SCOPE).token)
    except ClientAuthenticationError as error:
        raise FeedNotConfigured(f"Azure credentials: {error}", hint="Sign in: az login") from error
