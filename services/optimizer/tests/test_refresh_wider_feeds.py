"""AWS' public price files, Azure's sizes, Google's TPUs and slices of machines: in the documented formats, and malformed."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from skyloom_optimizer.refresh.aws_bulk import AwsBulkFeed
from skyloom_optimizer.refresh.azure import AzureFeed
from skyloom_optimizer.refresh.azure_skus import AzureSkus, make_skus
from skyloom_optimizer.refresh.gcp import GcpFeed
from skyloom_optimizer.refresh.merge import staying
from skyloom_optimizer.refresh.model import (
    FeedError,
    FeedInfo,
    FeedNotConfigured,
    FeedRow,
    FeedUnavailable,
    Known,
)
from skyloom_optimizer.refresh.settings import FeedSettings
from skyloom_optimizer.refresh.transport import FeedHttp

pytestmark = pytest.mark.integration
Answer = tuple[int, dict[str, str], bytes]


def ok(body: Any) -> Answer:
    return 200, {"Content-Type": "application/json"}, json.dumps(body).encode()


@pytest.fixture
def http() -> Any:
    client = FeedHttp(sleep=lambda seconds: None, now=lambda: 0.0, timeout=5)
    yield client
    client.close()


# --- AWS price list files ---

COLUMNS = [
    "SKU", "OfferTermCode", "RateCode", "TermType", "PriceDescription", "EffectiveDate", "StartingRange", "EndingRange",
    "Unit", "PricePerUnit", "Currency", "Product Family", "serviceCode", "Location", "Location Type", "Instance Type",
    "Instance Family", "vCPU", "Physical Processor", "Memory", "Tenancy", "Operating System", "GPU", "operation",
    "CapacityStatus", "MarketOption", "Pre Installed S/W", "Region Code",
]  # fmt: skip
PREFACE = [
    ("FormatVersion", "v1.0"), ("Disclaimer", 'For "information", only'), ("Publication Date", "2026-11-20T18:32:21Z"),
    ("Version", "20261120183221"), ("OfferCode", "AmazonEC2"),
]  # fmt: skip
VERSION = "/offers/v1.0/aws/AmazonEC2/20261120183221"
P5 = {
    "Instance Type": "p5.48xlarge",
    "Instance Family": "GPU instance",
    "vCPU": "192",
    "Memory": "2,048 GiB",
    "GPU": "8",
}
C7G = {
    "Instance Type": "c7g.large", "Instance Family": "Compute optimized", "vCPU": "2", "Memory": "4 GiB", "GPU": "",
    "Physical Processor": "AWS Graviton3 Processor",
}  # fmt: skip


def line(price: str, **more: str) -> list[str]:
    usual = {
        "SKU": "ABC", "TermType": "OnDemand", "Unit": "Hrs", "PricePerUnit": price, "Currency": "USD",
        "Product Family": "Compute Instance", "Location Type": "AWS Region", "Tenancy": "Shared",
        "Operating System": "Linux", "CapacityStatus": "Used", "Pre Installed S/W": "NA", "MarketOption": "OnDemand",
        "Physical Processor": "Intel Xeon", "operation": "RunInstances",
    }  # fmt: skip
    return [(usual | more).get(column, "") for column in COLUMNS]


def table(*rows: list[str], columns: list[str] = COLUMNS) -> bytes:
    quoted = [*PREFACE, columns, *rows]
    return "\n".join(",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in quoted).encode()


LINES = [
    line("55.0400000000", **P5),
    line("60.0000000000", **P5 | {"Tenancy": "Dedicated"}),
    line("0.0000000000", **P5 | {"CapacityStatus": "AllocatedCapacityReservation"}),
    line("58.0000000000", **P5 | {"Operating System": "Windows"}),
    line("30.0000000000", **P5 | {"TermType": "Reserved"}),
    line("66.0000000000", **P5 | {"Location Type": "AWS Local Zone"}),
    line("0.0725000000", **C7G),
    line("0.1000000000", **{"Product Family": "Data Transfer"}),
]


class Files:
    def __init__(self, body: bytes) -> None:
        self.body = body

    def __call__(self, method: str, path: str, query: dict[str, list[str]], body: bytes) -> Answer:
        if path == "/offers/v1.0/aws/AmazonEC2/current/region_index.json":
            regions = {
                name: {"regionCode": name, "currentVersionUrl": f"{VERSION}/{name}/index.json"}
                for name in ("us-east-1", "eu-central-1", "af-south-1")
            }
            return ok(
                {"formatVersion": "v1.0", "publicationDate": "2026-11-20T18:32:21Z", "regions": regions}
            )
        assert path == f"{VERSION}/us-east-1/index.csv"
        return 200, {"Content-Type": "text/csv"}, self.body


KNOWN = Known(
    ["us-east-1"],
    ["us-east-1", "eu-central-1"],
    {("us-east-1", "p5.48xlarge"): ["use1-atl2-az1", "use1-az4", "use1-az6"]},
)


def aws(feed_server: Any, http: FeedHttp, body: bytes) -> AwsBulkFeed:
    feed_server.answer = Files(body)
    feed = AwsBulkFeed(http, feed_server.url)
    assert feed.parts(KNOWN, False) == ["us-east-1"]
    return feed


def test_aws_files_price_the_zones_that_are_known(feed_server: Any, http: FeedHttp) -> None:
    feed = aws(feed_server, http, table(*LINES))
    rows = feed.fetch("us-east-1")
    p5 = FeedRow("us-east-1", "p5.48xlarge", "use1-az4", 192, 2048, arch="x86_64", price=55.04)
    c7g = FeedRow(
        "us-east-1", "c7g.large", "", 2, 4, accelerator="", accelerator_count=0.0, arch="arm64", price=0.0725
    )
    assert rows == [c7g, p5, replace(p5, zone="use1-az6")]
    assert feed.parts(KNOWN, True) == ["af-south-1", "eu-central-1", "us-east-1"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "no line begins with SKU"),
        (b"<html>\n<body>sorry</body>", "no line begins with SKU"),
        (table(columns=COLUMNS[:9]), "the column 'Operating System' is missing"),
        (table([*LINES[0], "more"]), "line 2 has 29 columns, not 28"),
        (table(LINES[0][:-3]), "has 25 columns, not 28"),
        (table(line("cheap", **P5)), "PricePerUnit of p5.48xlarge is 'cheap'"),
    ],
)
def test_aws_files_that_are_none(feed_server: Any, http: FeedHttp, body: bytes, words: str) -> None:
    with pytest.raises(FeedError, match=words):
        aws(feed_server, http, body).fetch("us-east-1")


def test_aws_files_in_another_currency_or_cut_short(feed_server: Any, http: FeedHttp) -> None:
    feed = aws(feed_server, http, table(line("400.0", **P5 | {"Currency": "CNY"})))
    assert feed.fetch("us-east-1")[0].currency == "CNY"
    files = feed_server.answer

    def cut(method: str, path: str, query: Any, body: bytes) -> Answer:
        status, headers, content = files(method, path, query, body)
        return status, {**headers, "Content-Length": str(len(content) + 1000)}, content

    feed_server.answer = cut
    with pytest.raises(FeedUnavailable, match="cut short"):
        feed.fetch("us-east-1")
    feed_server.answer = lambda *_: ok({"regions": {"us-east-1": {}}})
    with pytest.raises(FeedError, match="currentVersionUrl"):
        feed.parts(KNOWN, False)
    with pytest.raises(FeedError, match="does not list mars-1"):
        feed.fetch("mars-1")


def row(zone: str, name: str) -> tuple[str, ...]:
    return ("x", "r", zone, name, "8", "32", "", "", "", "", "1", "", "s", "")


def test_what_a_feed_need_not_list_stays() -> None:
    earlier = [row("a", "tpu-v4-8"), row("a", "n2"), row("b", "tpu-v4-8"), row("b", "tpu-v2-8")]
    listed = [FeedRow("r", "n2", "a"), FeedRow("r", "tpu-v2-8", "b")]
    plain = FeedInfo("x", "s", "")
    assert staying(plain, listed, earlier) == set()
    assert staying(replace(plain, stays=("*",)), listed, earlier) == {earlier[0], earlier[2]}
    assert staying(replace(plain, stays_where_none=("tpu-*",)), listed, earlier) == {earlier[0]}


# --- Azure sizes ---


def size(name: str, kind: str = "virtualMachines", **capabilities: str) -> dict[str, Any]:
    return {
        "resourceType": kind, "name": name, "tier": "Standard", "size": name, "family": "x", "locations": ["westeurope"],
        "locationInfo": [{"location": "westeurope", "zones": ["1", "2"], "zoneDetails": []}],
        "capabilities": [{"name": key, "value": value} for key, value in capabilities.items()], "restrictions": [],
    }  # fmt: skip


SIZES = [
    size("Standard_LRS", "disks"),
    size("Standard_D2s_v5", vCPUs="2", MemoryGB="8", CpuArchitectureType="x64"),
    size("Standard_D2ps_v5", vCPUs="2", MemoryGB="8", CpuArchitectureType="Arm64"),
    size("Standard_ND96isr_H100_v5", vCPUs="96", MemoryGB="1900", GPUs="8", CpuArchitectureType="x64"),
    size("Standard_NC24ads_A100_v4", vCPUs="24", MemoryGB="220", GPUs="1", CpuArchitectureType="x64"),
    size("Standard_NC6", vCPUs="6", MemoryGB="56", GPUs="1"),
    size("Standard_New", CpuArchitectureType="x64"),
]


def skus(feed_server: Any, http: FeedHttp) -> AzureSkus:
    def answer(method: str, path: str, query: dict[str, list[str]], body: bytes) -> Answer:
        if "page" in query:
            return ok({"value": SIZES[3:]})
        assert path == "/subscriptions/sub-1/providers/Microsoft.Compute/skus"
        assert query["$filter"] == ["location eq 'westeurope'"] and query["api-version"] == ["2021-07-01"]
        return ok({"value": SIZES[:3], "nextLink": f"{feed_server.url}{path}?page=2"})

    feed_server.answer = answer
    return AzureSkus(http, feed_server.url, "sub-1")


def test_azure_sizes(feed_server: Any, http: FeedHttp) -> None:
    found = skus(feed_server, http).sizes("westeurope")
    none = {"accelerator": "", "accelerator_count": 0.0}
    assert found["Standard_D2s_v5"] == {"vcpus": 2, "memory_gib": 8, "arch": "x86_64", **none}
    assert found["Standard_D2ps_v5"]["arch"] == "arm64" and "Standard_LRS" not in found
    assert found["Standard_ND96isr_H100_v5"]["accelerator"] == "H100"
    assert found["Standard_ND96isr_H100_v5"]["accelerator_count"] == 8
    assert found["Standard_NC24ads_A100_v4"]["accelerator"] == "A100-80GB"
    assert "accelerator" not in found["Standard_NC6"], "its name does not say which"
    assert found["Standard_New"]["vcpus"] is None


def test_azure_prices_and_sizes_are_joined(feed_server: Any, http: FeedHttp) -> None:
    listed = skus(feed_server, http)
    sizes = feed_server.answer
    item = {
        "currencyCode": "USD", "retailPrice": 98.32, "armSkuName": "Standard_ND96isr_H100_v5", "meterName": "x", "skuName": "x",
        "productName": "Virtual Machines", "unitOfMeasure": "1 Hour", "type": "Consumption",
    }  # fmt: skip
    items = [item, {**item, "armSkuName": "Standard_Secret", "retailPrice": 1.0}]
    feed_server.answer = lambda method, path, query, body: (
        ok({"Items": items}) if path == "/prices" else sizes(method, path, query, body)
    )
    rows = {
        row.instance_type: row
        for row in AzureFeed(http, f"{feed_server.url}/prices", listed).fetch("westeurope")
    }
    nd = rows["Standard_ND96isr_H100_v5"]
    assert (nd.price, nd.vcpus, nd.accelerator, nd.accelerator_count) == (98.32, 96, "H100", 8)
    assert rows["Standard_Secret"] == FeedRow("westeurope", "Standard_Secret", price=1.0)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "'value' is None"),
        ({"value": [{"name": "x"}]}, "resourceType"),
        ({"value": [size("x", vCPUs="many")]}, "vCPUs is 'many'"),
        ({"value": [{**size("x"), "capabilities": [{"name": "vCPUs"}]}]}, "'value' is None"),
        ({"value": []}, "no machine is listed"),
    ],
)
def test_azure_sizes_that_are_none(feed_server: Any, http: FeedHttp, body: Any, words: str) -> None:
    feed_server.answer = lambda *_: ok(body)
    with pytest.raises(FeedError, match=words):
        AzureSkus(http, feed_server.url, "s").sizes("westeurope")


def test_azure_sizes_are_asked_for_with_a_subscription_only(feed_server: Any, http: FeedHttp) -> None:
    assert make_skus(FeedSettings.from_env({})) is None
    assert (
        make_skus(FeedSettings.from_env({"AZURE_SUBSCRIPTION_ID": "s", "SKYLOOM_FEED_AZURE_TOKEN": "t"}))
        is not None
    )
    feed_server.answer = lambda *_: (403, {}, b"")
    with pytest.raises(FeedNotConfigured):
        AzureSkus(http, feed_server.url, "s").sizes("westeurope")


# --- Google: slices of machines, TPUs ---


def sku(text: str, price: float, usage: str = "OnDemand", group: str = "GPU") -> dict[str, Any]:
    units, nanos = divmod(round(price * 1e9), 10**9)
    rate = {"startUsageAmount": 0, "unitPrice": {"currencyCode": "USD", "units": str(units), "nanos": nanos}}
    return {
        "skuId": "X", "description": text, "serviceRegions": ["us-east5"],
        "category": {"resourceFamily": "Compute", "resourceGroup": group, "usageType": usage},
        "pricingInfo": [{"pricingExpression": {"usageUnit": "h", "tieredRates": [rate]}}],
    }  # fmt: skip


FILLER = [
    sku(f"{family} Instance {part} running in Columbus", 0.01, group="CPU")
    for family in ("N1 Predefined", "N2", "C3", "E2", "T2D")
    for part in ("Core", "Ram")
]
COMPUTE = [
    *FILLER,
    sku("Spot Preemptible A4 Nvidia B200 (1 gpu slice) running in Columbus", 4.9542, "OnDemand"),
    sku("A4 Nvidia B200 (1 gpu slice) running in Columbus", 16.11),
    sku("DWS Calendar Mode A4 Nvidia B200 (1 gpu slice) running in Columbus", 9.0),
    sku("TpuV5e running in Columbus", 1.2, group="TPU"),
    sku("TpuV5e attached to Spot Preemptible VMs running in Columbus", 0.5, "Preemptible", "TPU"),
    sku("Reserved TpuV5e in Columbus", 0.1, group="TPU"),
    sku("TpuV6e DWS Defined Duration running in Columbus", 0.1, group="TPU"),
    sku("TpuV6e running in Columbus", 2.7, group="TPU"),
]
CLOUD_TPU = [
    sku("Tpu-v2 accelerator running in Columbus", 4.5, group="TPU"),
    sku("Tpu-v2 Pod running in Columbus", 6.0, group="TPU"),
    sku("Preemptible Tpu-v4 Pod running in Columbus", 4.0, "Preemptible", "TPU"),
]


def slice_of(kind: str, topology: str) -> dict[str, Any]:
    name = f"projects/p/locations/us-east5-a/acceleratorTypes/{kind}"
    return {"name": name, "type": kind, "acceleratorConfigs": [{"type": "V4", "topology": topology}]}


TPUS = [
    slice_of("v5litepod-8", "2x4"), slice_of("v6e-4", "2x2"), slice_of("v2-8", "2x2"), slice_of("v2-32", "4x4"),
    slice_of("v4-16", "2x2x2"), slice_of("v5p-8", "2x2x1"),
]  # fmt: skip
A4 = {
    "name": "a4-highgpu-8g", "guestCpus": 224, "memoryMb": 3968 * 1024, "architecture": "X86_64",
    "accelerators": [{"guestAcceleratorType": "nvidia-b200", "guestAcceleratorCount": 8}],
}  # fmt: skip


class Google:
    def __init__(self) -> None:
        self.tpus: Answer = ok({"acceleratorTypes": TPUS, "unreachable": []})

    def __call__(self, method: str, path: str, query: dict[str, list[str]], body: bytes) -> Answer:
        if path.endswith("6F81-5844-456A/skus"):
            return ok({"skus": COMPUTE})
        if path.endswith("E000-3F24-B8AA/skus"):
            return ok({"skus": CLOUD_TPU})
        if path.endswith("/zones"):
            region = "https://www.googleapis.com/compute/v1/projects/p/regions/us-east5"
            return ok({"items": [{"name": "us-east5-a", "region": region}]})
        if path == "/v2/projects/p/locations/us-east5-a/acceleratorTypes":
            return self.tpus
        return ok({"items": [A4]} if path.endswith("/machineTypes") else {})


def google(feed_server: Any, http: FeedHttp, cloud: Google) -> GcpFeed:
    feed_server.answer = cloud
    return GcpFeed(http, feed_server.url, feed_server.url, "p", feed_server.url)


def test_google_sells_new_machines_by_the_slice_of_a_device(feed_server: Any, http: FeedHttp) -> None:
    rows = {row.instance_type: row for row in google(feed_server, http, Google()).fetch("us-east5")}
    a4 = rows["a4-highgpu-8g"]
    assert a4.spot_price == pytest.approx(8 * 4.9542) and a4.price is None, "it is not sold by the hour"
    assert (a4.accelerator, a4.accelerator_count, a4.accelerator_memory_gib) == ("B200", 8, 180)


def test_google_tpus_by_the_chip(feed_server: Any, http: FeedHttp) -> None:
    rows = {row.instance_type: row for row in google(feed_server, http, Google()).fetch("us-east5")}
    prices = {name: (row.price, row.spot_price) for name, row in rows.items() if name.startswith("tpu-")}
    assert prices == {
        "tpu-v5litepod-8": (9.6, 4.0),
        "tpu-v6e-4": (10.8, None),
        "tpu-v2-8": (4.5, None),
        "tpu-v2-32": (24.0, None),
        "tpu-v4-16": (None, 8.0),
        "tpu-v5p-8": (None, None),
    }
    assert (rows["tpu-v2-8"].accelerator, rows["tpu-v2-8"].zone) == ("tpu-v2-8", "us-east5-a")


@pytest.mark.parametrize("status", [403, 404])
def test_google_without_the_tpu_api_goes_on_with_the_tpus_that_are_known(
    feed_server: Any, http: FeedHttp, status: int
) -> None:
    cloud = Google()
    cloud.tpus = (status, {}, b"Cloud TPU API has not been used in project p before or it is disabled")
    feed = google(feed_server, http, cloud)
    rows = feed.fetch("us-east5")
    assert [row.instance_type for row in rows] == ["a4-highgpu-8g"]
    known = [row("us-east5-a", "tpu-v2-8"), row("us-east5-a", "n1-old")]
    assert staying(feed.info, rows, known) == {known[0]}


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ({"type": "gpu"}, "'gpu' is not the name of a TPU type"),
        ({}, "None is not the name"),
        (slice_of("v2-8", "round"), "topology 'round'"),
        ({"type": "v2-8"}, "topology ''"),
    ],
)
def test_google_tpus_that_are_none(feed_server: Any, http: FeedHttp, item: Any, words: str) -> None:
    cloud = Google()
    cloud.tpus = ok({"acceleratorTypes": [item]})
    with pytest.raises(FeedError, match=words):
        google(feed_server, http, cloud).fetch("us-east5")
