"""GCP: prices from the Cloud Billing catalog, machine and accelerator types of each zone from Compute, TPU slices from Cloud TPU,
all by plain REST.

Where the Cloud TPU API is not enabled, and in zones of which it lists none, the TPUs that are known stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from skyloom_optimizer.refresh.gcp_skus import Machine, PriceParts
from skyloom_optimizer.refresh.gcp_tpus import TPU_SERVICE, Tpu, tpu_row, tpus_of
from skyloom_optimizer.refresh.model import (
    FeedError,
    FeedInfo,
    FeedNotConfigured,
    FeedNotFound,
    FeedRow,
    Known,
)
from skyloom_optimizer.refresh.settings import FeedSettings
from skyloom_optimizer.refresh.transport import FeedHttp, field

COMPUTE_SERVICE = "6F81-5844-456A"
_LEAST_PARTS = 10
_MAX_PAGES = 1000
_DISK_GIB = 375.0
_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
# Machine types that cannot be bought by the hour: a price would promise what nobody sells.
_ONLY_SPOT = ("a3-ultragpu-", "a4-", "a4x-")
_DEVICES = {
    "nvidia-tesla-a100": ("A100", 40.0),
    "nvidia-a100-80gb": ("A100-80GB", 80.0),
    "nvidia-h100-80gb": ("H100", 80.0),
    "nvidia-h100-mega-80gb": ("H100-MEGA", 80.0),
    "nvidia-h200-141gb": ("H200", 141.0),
    "nvidia-b200": ("B200", 180.0),
    "nvidia-l4": ("L4", 24.0),
    "nvidia-rtx-pro-6000": ("RTXPRO6000", 96.0),
    "nvidia-tesla-t4": ("T4", 16.0),
    "nvidia-tesla-v100": ("V100", 16.0),
    "nvidia-tesla-p100": ("P100", 16.0),
    "nvidia-tesla-p4": ("P4", 8.0),
}
# Devices that are attached to an N1 machine: count to the machine that is paired with it.
_ATTACHED = {
    "nvidia-tesla-t4": {1: "n1-highmem-4", 2: "n1-highmem-8", 4: "n1-highmem-32"},
    "nvidia-tesla-p4": {1: "n1-highmem-8", 2: "n1-highmem-16", 4: "n1-highmem-32"},
    "nvidia-tesla-p100": {1: "n1-highmem-8", 2: "n1-highmem-16", 4: "n1-highmem-32"},
    "nvidia-tesla-v100": {1: "n1-highmem-8", 2: "n1-highmem-16", 4: "n1-highmem-32", 8: "n1-highmem-64"},
}


class GcpFeed:
    info = FeedInfo(
        "gcp",
        "gcp-api",
        "Cloud Billing catalog (Compute Engine, Cloud TPU) summed over machine types of Compute and TPU slices",
        stays_where_none=("tpu-*",),
    )

    def __init__(
        self, http: FeedHttp, billing_url: str, compute_url: str, project: str, tpu_url: str = ""
    ) -> None:
        self._http = http
        self._services_url = f"{billing_url}/v1/services"
        self._project_url = f"{compute_url}/compute/v1/projects/{project}"
        self._tpu_url = f"{tpu_url}/v2/projects/{project}/locations" if tpu_url else ""
        self._parts: PriceParts | None = None
        self._zones: dict[str, list[str]] | None = None

    def parts(self, known: Known, all_regions: bool) -> Sequence[str]:
        regions = sorted(self._zones_by_region())
        return regions if all_regions else [region for region in regions if region in set(known.regions)]

    def close(self) -> None:
        self._http.close()

    def fetch(self, part: str) -> Sequence[FeedRow]:
        prices = self._price_parts()
        rows: list[FeedRow] = []
        for zone in self._zones_by_region().get(part, []):
            rows += self._zone_rows(part, zone, prices)
            rows += [tpu_row(part, zone, tpu, prices.tpus) for tpu in self._tpus(zone)]
        return rows

    def _tpus(self, zone: str) -> list[Tpu]:
        """Empty where the API is not to be had. Many zones have no TPUs, which some tell by not being found."""
        if not self._tpu_url:
            return []
        url = f"{self._tpu_url}/{zone}/acceleratorTypes"
        try:
            items = list(self._pages(url, "acceleratorTypes", {}, optional=True))
        except FeedNotConfigured:
            self._tpu_url = ""
            return []
        except FeedNotFound:
            return []
        return list(tpus_of(items, url))

    def _zone_rows(self, region: str, zone: str, prices: PriceParts) -> Iterator[FeedRow]:
        url = f"{self._project_url}/zones/{zone}"
        types = {
            field(item, "name", str, url): item for item in self._pages(f"{url}/machineTypes", "items", {})
        }
        for name, item in sorted(types.items()):
            if item.get("deprecated", {}).get("state") not in ("DELETED", "OBSOLETE"):
                yield _row(region, zone, name, item, _machine(item), prices)
        for accelerator in self._pages(f"{url}/acceleratorTypes", "items", {}):
            device = field(accelerator, "name", str, url)
            for count, host in _ATTACHED.get(device, {}).items():
                if host in types:
                    name = f"{host}+{device.removeprefix('nvidia-tesla-')}x{count}"
                    machine = _machine(types[host], name=host, device=device, devices=float(count))
                    yield _row(region, zone, name, types[host], machine, prices)

    def _zones_by_region(self) -> dict[str, list[str]]:
        if self._zones is None:
            found: dict[str, list[str]] = {}
            for item in self._pages(f"{self._project_url}/zones", "items", {}):
                region = field(item, "region", str, "zones").rpartition("/")[2]
                found.setdefault(region, []).append(field(item, "name", str, "zones"))
            self._zones = found
        return self._zones

    def _price_parts(self) -> PriceParts:
        if self._parts is None:
            parts = PriceParts()
            for service in (COMPUTE_SERVICE, *((TPU_SERVICE,) if self._tpu_url else ())):
                url = f"{self._services_url}/{service}/skus"
                parts.add(self._pages(url, "skus", {"currencyCode": "USD", "pageSize": "5000"}))
                if len(parts) < _LEAST_PARTS:
                    raise FeedError(f"{url}: only {len(parts)} prices could be read")
            self._parts = parts
        return self._parts

    def _pages(
        self, url: str, key: str, params: Mapping[str, str], *, optional: bool = False
    ) -> Iterator[dict[str, Any]]:
        token = ""
        for _ in range(_MAX_PAGES):
            page = self._http.get(url, {**params, **({"pageToken": token} if token else {})})
            # A zone without any is told by leaving the list out.
            yield from field(page, key, list, url) if key in page or not (optional or key == "items") else []
            token = page.get("nextPageToken") or ""
            if not token:
                return
        raise FeedError(f"{url}: its pages do not end")


def _machine(item: Mapping[str, Any], name: str = "", device: str = "", devices: float = 0.0) -> Machine:
    built_in = (item.get("accelerators") or [{}])[0]
    name = name or item["name"]
    disks = item.get("bundledLocalSsds", {}).get("partitionCount", 0)
    return Machine(
        name=name,
        cores=float(field(item, "guestCpus", int, name)),
        memory_gib=field(item, "memoryMb", int, name) / 1024,
        device=device or built_in.get("guestAcceleratorType", ""),
        devices=devices or float(built_in.get("guestAcceleratorCount", 0)),
        disk_gib=disks * _DISK_GIB,
    )


def _row(
    region: str, zone: str, name: str, item: Mapping[str, Any], machine: Machine, prices: PriceParts
) -> FeedRow:
    device, memory = _DEVICES.get(machine.device, (machine.device, None))
    on_demand = None if name.startswith(_ONLY_SPOT) else prices.price(machine, region, use_spot=False)
    return FeedRow(
        region=region,
        zone=zone,
        instance_type=name,
        vcpus=machine.cores,
        memory_gib=round(machine.memory_gib, 2),
        accelerator=device,
        accelerator_count=machine.devices,
        accelerator_memory_gib=memory,
        arch={"ARM64": "arm64", "X86_64": "x86_64"}.get(item.get("architecture", ""), ""),
        price=on_demand,
        spot_price=prices.price(machine, region, use_spot=True),
        currency=prices.currency,
    )


def make_feed(settings: FeedSettings) -> GcpFeed:
    token, project = settings.gcp_token, settings.gcp_project
    if not token:
        token, found = _application_default()
        project = project or found
    if not project:
        raise FeedNotConfigured("no GCP project is known", hint="Set GOOGLE_CLOUD_PROJECT.")
    http = FeedHttp(headers={"Authorization": f"Bearer {token}"})
    urls = settings.urls
    return GcpFeed(http, urls["gcp_billing"], urls["gcp_compute"], project, urls["gcp_tpu"])


def _application_default() -> tuple[str, str]:
    """A token and the project of the credentials that the environment has."""
    try:
        import google.auth
        import google.auth.transport.requests
        from google.auth.exceptions import GoogleAuthError
    except ImportError as error:
        raise FeedNotConfigured(
            "google-auth is not installed",
            hint="Install it: pip install skyloom[gcp], or set SKYLOOM_FEED_GCP_TOKEN.",
        ) from error
    try:
        credentials, project = google.auth.default(scopes=[_SCOPE])
        credentials.refresh(google.auth.transport.requests.Request())
    except GoogleAuthError as error:
        raise FeedNotConfigured(
            f"GCP credentials: {error}", hint="Set them up: gcloud auth application-default login"
        ) from error
    return str(credentials.token), project or ""
