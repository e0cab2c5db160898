"""Feeds against answers in the clouds' own formats, served on the loopback: pages, throttling, and what is malformed."""

from __future__ import annotations

import datetime as dt
import json
import urllib.parse
from typing import Any

import pytest

from skyloom_optimizer.refresh.azure import AzureFeed
from skyloom_optimizer.refresh.gcp import GcpFeed
from skyloom_optimizer.refresh.lambda_cloud import LambdaFeed
from skyloom_optimizer.refresh.model import (
    WHOLE_CLOUD,
    FeedError,
    FeedNotConfigured,
    FeedRow,
    FeedUnavailable,
    Known,
)
from skyloom_optimizer.refresh.transport import ATTEMPTS, FeedHttp
from skyloom_optimizer.refresh.vast import VastFeed

pytestmark = pytest.mark.integration
Answer = tuple[int, dict[str, str], bytes]


def ok(body: Any) -> Answer:
    return 200, {"Content-Type": "application/json"}, json.dumps(body).encode()


def azure_item(name: str, price: float, **more: Any) -> dict[str, Any]:
    return {
        "currencyCode": "USD", "tierMinimumUnits": 0.0, "retailPrice": price, "unitPrice": price,
        "armRegionName": "westeurope", "location": "EU West", "effectiveStartDate": "2026-01-01T00:00:00Z",
        "meterId": "00000000-0000-0000-0000-000000000000", "meterName": name.removeprefix("Standard_"),
        "productId": "DZH318Z0BQ4W", "skuId": "DZH318Z0BQ4W/00G1", "productName": "Virtual Machines Dsv5 Series",
        "skuName": name.removeprefix("Standard_"), "serviceName": "Virtual Machines", "serviceId": "DZH313Z7MMC8",
        "serviceFamily": "Compute", "unitOfMeasure": "1 Hour", "type": "Consumption",
        "isPrimaryMeterRegion": True, "armSkuName": name, **more,
    }  # fmt: skip


class Sleeps(list[float]):
    def __call__(self, seconds: float) -> None:
        self.append(seconds)


@pytest.fixture
def sleeps() -> Sleeps:
    return Sleeps()


@pytest.fixture
def http(sleeps: Sleeps) -> Any:
    client = FeedHttp(sleep=sleeps, now=lambda: 0.0, timeout=5)
    yield client
    client.close()


# --- azure ---


def azure_pages(url: str) -> Any:
    first = [
        azure_item("Standard_D2s_v5", 0.115),
        azure_item("Standard_D2s_v5", 0.207, productName="Virtual Machines Dsv5 Series Windows"),
        azure_item("Standard_D2s_v5", 0.021, meterName="D2s v5 Spot", skuName="D2s v5 Spot"),
        azure_item("Standard_D2s_v5", 0.023, meterName="D2s v5 Low Priority", skuName="D2s v5 Low Priority"),
    ]
    second = [
        azure_item("Standard_D4s_v5", 0.23),
        azure_item("Standard_D4s_v5", 500.0, unitOfMeasure="1 Month"),
    ]

    def answer(method: str, path: str, query: dict[str, list[str]], body: bytes) -> Answer:
        skip = query.get("$skip")
        following = None if skip else f"{url}/api/retail/prices?$filter=x&$skip=1000"
        items = second if skip else first
        return ok({"BillingCurrency": "USD", "Items": items, "NextPageLink": following, "Count": len(items)})

    return answer


def test_azure_reads_every_page_and_only_linux_machines_by_the_hour(feed_server: Any, http: FeedHttp) -> None:
    feed_server.answer = azure_pages(feed_server.url)
    feed = AzureFeed(http, f"{feed_server.url}/api/retail/prices")
    assert feed.fetch("westeurope") == [
        FeedRow("westeurope", "Standard_D2s_v5", price=0.115, spot_price=0.021),
        FeedRow("westeurope", "Standard_D4s_v5", price=0.23),
    ]
    assert "armRegionName eq 'westeurope'" in feed_server.asked[0][2]["$filter"][0]
    assert len(feed_server.asked) == 2


def test_azure_tells_another_currency(feed_server: Any, http: FeedHttp) -> None:
    item = azure_item("Standard_D2s_v5", 0.1, currencyCode="EUR")
    feed_server.answer = lambda *_: ok({"Items": [item], "NextPageLink": None})
    assert AzureFeed(http, feed_server.url).fetch("westeurope")[0].currency == "EUR"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"<html>Service busy</html>", "not JSON"),
        (b'{"Items": [{"armSkuName": "Standard_D2s_v5", ', "not JSON"),
        (b"[]", "an object was expected"),
        (b"{}", "'Items' is None"),
        (
            json.dumps({"Items": [azure_item("Standard_D2s_v5", "cheap")]}).encode(),
            "'retailPrice' is 'cheap'",
        ),  # type: ignore[arg-type]
        (
            json.dumps({"Items": [azure_item("Standard_D2s_v5", 1, currencyCode=None)]}).encode(),
            "currencyCode",
        ),
    ],
)
def test_a_malformed_answer_is_named(feed_server: Any, http: FeedHttp, body: bytes, words: str) -> None:
    feed_server.answer = lambda *_: (200, {}, body)
    with pytest.raises(FeedError, match=words):
        AzureFeed(http, feed_server.url).fetch("westeurope")


def test_pages_that_do_not_end_are_an_error(feed_server: Any, http: FeedHttp) -> None:
    item = azure_item("Standard_D2s_v5", 0.1)
    feed_server.answer = lambda *_: ok({"Items": [item], "NextPageLink": f"{feed_server.url}/again?page=1"})
    with pytest.raises(FeedError, match="do not end"):
        AzureFeed(http, feed_server.url).fetch("westeurope")


def test_throttling_is_waited_out_as_long_as_asked(feed_server: Any, http: FeedHttp, sleeps: Sleeps) -> None:
    answers: list[Answer] = [
        (429, {"Retry-After": "7"}, b"{}"),
        (503, {"Retry-After": "Thu, 01 Jan 1970 00:00:11 GMT"}, b""),
        (500, {}, b""),
        ok({"Items": [azure_item("Standard_D2s_v5", 0.1)]}),
    ]
    feed_server.answer = lambda *_: answers.pop(0)
    assert len(AzureFeed(http, feed_server.url).fetch("westeurope")) == 1
    assert sleeps == [7.0, 11.0, 4.0]


def test_it_gives_up_after_some_attempts_and_at_once_when_asked_to_come_back_much_later(
    feed_server: Any, http: FeedHttp, sleeps: Sleeps
) -> None:
    feed_server.answer = lambda *_: (429, {}, b"")
    with pytest.raises(FeedUnavailable, match="429"):
        http.get(feed_server.url)
    assert len(feed_server.asked) == ATTEMPTS and len(sleeps) == ATTEMPTS - 1
    feed_server.answer = lambda *_: (429, {"Retry-After": "3600"}, b"")
    with pytest.raises(FeedUnavailable, match="3600 seconds"):
        http.get(feed_server.url)
    assert len(feed_server.asked) == ATTEMPTS + 1


def test_an_answer_cut_short_is_not_an_answer(feed_server: Any, http: FeedHttp) -> None:
    feed_server.answer = lambda *_: (200, {"Content-Length": "100000"}, b'{"Items": []')
    with pytest.raises(FeedUnavailable):
        http.get(feed_server.url)


def test_refused_credentials_are_not_tried_again_and_keys_are_not_shown(
    feed_server: Any, http: FeedHttp
) -> None:
    feed_server.answer = lambda *_: (403, {}, b"")
    with pytest.raises(FeedNotConfigured) as error:
        http.get(f"{feed_server.url}/skus?key=secret")
    assert "secret" not in error.value.message and len(feed_server.asked) == 1


# --- lambda, vast ---


def test_lambda(feed_server: Any, http: FeedHttp) -> None:
    gh200 = {
        "instance_type": {
            "name": "gpu_1x_gh200", "description": "1x GH200 (96 GB)", "gpu_description": "GH200 (96 GB)",
            "price_cents_per_hour": 149, "specs": {"vcpus": 64, "memory_gib": 432, "storage_gib": 4096, "gpus": 1},
        },
        "regions_with_capacity_available": [{"name": "us-east-3", "description": "Washington, DC, USA"}],
    }  # fmt: skip
    feed_server.answer = lambda *_: ok({"data": {"gpu_1x_gh200": gh200}})
    feed = LambdaFeed(http, f"{feed_server.url}/api/v1")
    assert feed.parts(Known(["us-west-1"], ["us-west-1"]), False) == [WHOLE_CLOUD]
    rows = feed.fetch(WHOLE_CLOUD)
    assert [row.region for row in rows] == ["us-east-3", "us-west-1"]
    assert rows[0].price == 1.49 and rows[0].arch == "arm64"
    assert (rows[0].accelerator, rows[0].accelerator_count, rows[0].accelerator_memory_gib) == (
        "GH200",
        1,
        96,
    )
    del gh200["instance_type"]["price_cents_per_hour"]
    with pytest.raises(FeedError, match="price_cents_per_hour"):
        feed.fetch(WHOLE_CLOUD)


def test_vast_keeps_the_cheapest_of_what_looks_alike(feed_server: Any, http: FeedHttp) -> None:
    offer = {
        "id": 1, "gpu_name": "RTX 4090", "num_gpus": 2, "gpu_ram": 24564, "cpu_cores": 64, "cpu_cores_effective": 32.0,
        "cpu_ram": 257815, "dph_base": 0.71, "dph_total": 0.75, "min_bid": 0.3, "geolocation": "Czechia, CZ", "rentable": True,
    }  # fmt: skip
    offers = [offer, {**offer, "id": 2, "dph_total": 0.69}, {**offer, "id": 3, "cpu_cores": None}]
    feed_server.answer = lambda *_: ok({"offers": offers})
    (row,) = VastFeed(http, feed_server.url).fetch(WHOLE_CLOUD)
    assert (row.instance_type, row.region, row.price, row.spot_price) == (
        "2x-RTX_4090-32-65536",
        "Czechia, CZ",
        0.69,
        0.3,
    )
    assert json.loads(feed_server.asked[0][3])["rentable"] == {"eq": True}


# --- gcp ---


def sku(
    description: str, price: float, usage: str = "OnDemand", unit: str = "h", **more: Any
) -> dict[str, Any]:
    units, nanos = divmod(round(price * 1e9), 10**9)
    rate = {"startUsageAmount": 0, "unitPrice": {"currencyCode": "USD", "units": str(units), "nanos": nanos}}
    return {
        "name": "services/6F81-5844-456A/skus/X", "skuId": "X", "description": description,
        "category": {"serviceDisplayName": "Compute Engine", "resourceFamily": "Compute", "resourceGroup": "CPU", "usageType": usage},
        "serviceRegions": ["us-central1"], "geoTaxonomy": {"type": "REGIONAL", "regions": ["us-central1"]},
        "pricingInfo": [{"summary": "", "pricingExpression": {"usageUnit": unit, "tieredRates": [rate]}}], **more,
    }  # fmt: skip


SKUS = [
    sku("N2 Instance Core running in Iowa", 0.03),
    sku("N2 Instance Ram running in Iowa", 0.004),
    sku("N2 Custom Instance Core running in Iowa", 9.0),
    sku("Spot Preemptible N2 Instance Core running in Iowa", 0.01, "Preemptible"),
    sku("Spot Preemptible N2 Instance Ram running in Iowa", 0.001, "Preemptible"),
    sku("Commitment v1: N2 Cpu in Iowa for 1 Year", 0.02, "Commit1Yr"),
    sku("N1 Predefined Instance Core running in Iowa", 0.02),
    sku("N1 Predefined Instance Ram running in Iowa", 0.002),
    sku("Nvidia Tesla T4 GPU running in Iowa", 0.35),
    sku("G2 Instance Core running in Iowa", 0.025),
    sku("G2 Instance Ram running in Iowa", 0.003),
    sku("Nvidia L4 GPU running in Iowa", 0.56),
    sku("SSD backed Local Storage in Iowa", 0.0876, unit="GiBy.mo"),
]
N2 = {"name": "n2-standard-2", "guestCpus": 2, "memoryMb": 8192, "architecture": "X86_64"}
N1 = {"name": "n1-highmem-4", "guestCpus": 4, "memoryMb": 26624}
G2 = {
    "name": "g2-standard-4", "guestCpus": 4, "memoryMb": 16384, "bundledLocalSsds": {"partitionCount": 1},
    "accelerators": [{"guestAcceleratorType": "nvidia-l4", "guestAcceleratorCount": 1}],
}  # fmt: skip


def gcp(method: str, path: str, query: dict[str, list[str]], body: bytes) -> Answer:
    if path.endswith("/skus"):
        return ok({"skus": SKUS[7:]} if "pageToken" in query else {"skus": SKUS[:7], "nextPageToken": "t"})
    if path.endswith("/zones"):
        region = "https://www.googleapis.com/compute/v1/projects/p/regions/us-central1"
        return ok({"items": [{"name": "us-central1-a", "region": region, "status": "UP"}]})
    if path.endswith("/machineTypes"):
        return ok({"items": [N2, N1, G2]})
    assert path == "/compute/v1/projects/p/zones/us-central1-a/acceleratorTypes"
    return ok({"items": [{"name": "nvidia-tesla-t4", "maximumCardsPerInstance": 4}]})


def test_gcp_sums_the_parts_of_each_machine(feed_server: Any, http: FeedHttp) -> None:
    feed_server.answer = gcp
    feed = GcpFeed(http, feed_server.url, feed_server.url, "p")
    assert feed.parts(Known(["us-central1"], ["us-central1"]), False) == ["us-central1"]
    rows = {row.instance_type: row for row in feed.fetch("us-central1")}
    assert rows["n2-standard-2"].price == pytest.approx(2 * 0.03 + 8 * 0.004)
    assert rows["n2-standard-2"].spot_price == pytest.approx(2 * 0.01 + 8 * 0.001)
    assert rows["n1-highmem-4+t4x1"].price == pytest.approx(4 * 0.02 + 26 * 0.002 + 0.35)
    assert rows["g2-standard-4"].price == pytest.approx(
        4 * 0.025 + 16 * 0.003 + 0.56 + 375 * 0.0876 / 730, abs=1e-6
    )
    assert rows["g2-standard-4"].spot_price is None
    assert (rows["g2-standard-4"].accelerator, rows["g2-standard-4"].zone) == ("L4", "us-central1-a")


@pytest.mark.parametrize(
    ("skus", "words"),
    [
        ([], "only 0 prices"),
        ([{"description": "N2 Instance Core"}], "cannot be read"),
        ("x", "'skus' is 'x'"),
    ],
)
def test_gcp_without_a_usable_price_list(feed_server: Any, http: FeedHttp, skus: Any, words: str) -> None:
    feed_server.answer = lambda m, path, q, b: (
        ok({"skus": skus}) if path.endswith("/skus") else gcp(m, path, q, b)
    )
    with pytest.raises(FeedError, match=words):
        GcpFeed(http, feed_server.url, feed_server.url, "p").fetch("us-central1")


# --- aws: real boto3 ---

EC2 = '<?xml version="1.0" encoding="UTF-8"?><{name}Response xmlns="http://ec2.amazonaws.com/doc/2016-11-15/">{body}</{name}Response>'
P5 = """<item><instanceType>p5.48xlarge</instanceType><vCpuInfo><defaultVCpus>192</defaultVCpus></vCpuInfo>
<memoryInfo><sizeInMiB>2097152</sizeInMiB></memoryInfo><processorInfo><supportedArchitectures><item>x86_64</item>
</supportedArchitectures></processorInfo><gpuInfo><gpus><item><name>H100</name><manufacturer>NVIDIA</manufacturer><count>8</count>
<memoryInfo><sizeInMiB>81920</sizeInMiB></memoryInfo></item></gpus></gpuInfo></item>"""
C7G = """<item><instanceType>c7g.large</instanceType><vCpuInfo><defaultVCpus>2</defaultVCpus></vCpuInfo>
<memoryInfo><sizeInMiB>4096</sizeInMiB></memoryInfo><processorInfo><supportedArchitectures><item>arm64</item>
</supportedArchitectures></processorInfo></item>"""


def spot_item(name: str, zone: str, price: str, at: str) -> str:
    return (
        f"<item><instanceType>{name}</instanceType><productDescription>Linux/UNIX</productDescription>"
        f"<spotPrice>{price}</spotPrice><timestamp>{at}</timestamp><availabilityZone>{zone}</availabilityZone></item>"
    )


def offering(name: str, zone: str) -> str:
    return f"<item><instanceType>{name}</instanceType><locationType>availability-zone-id</locationType><location>{zone}</location></item>"


def product(name: str, price: str, currency: str = "USD") -> str:
    dimension = {"unit": "Hrs", "description": "per hour", "pricePerUnit": {currency: price}}
    terms = {"OnDemand": {"SKU.JRTCKXETXF": {"priceDimensions": {"SKU.JRTCKXETXF.6YS6EN2CT7": dimension}}}}
    return json.dumps({"product": {"sku": "SKU", "attributes": {"instanceType": name}}, "terms": terms})


class Aws:
    """EC2's query protocol and the price list's JSON protocol, with pages."""

    def __init__(self) -> None:
        self.products = [product("p5.48xlarge", "55.0400000000"), product("c7g.large", "0.0725000000")]
        self.error = ""

    def __call__(self, method: str, path: str, query: dict[str, list[str]], body: bytes) -> Answer:
        if body.startswith(b"{"):
            start = int(json.loads(body).get("NextToken", 0))
            page: dict[str, Any] = {"FormatVersion": "aws_v1", "PriceList": self.products[start : start + 1]}
            page |= {"NextToken": str(start + 1)} if start + 1 < len(self.products) else {}
            return 200, {"Content-Type": "application/x-amz-json-1.1"}, json.dumps(page).encode()
        form = urllib.parse.parse_qs(body.decode())
        name = form["Action"][0]
        if self.error:
            text = f"<Response><Errors><Error><Code>{self.error}</Code><Message>no</Message></Error></Errors></Response>"
            return 400, {}, text.encode()
        return 200, {"Content-Type": "text/xml"}, EC2.format(name=name, body=self.body(name, form)).encode()

    def body(self, name: str, form: dict[str, list[str]]) -> str:
        if name == "DescribeInstanceTypes":
            more = "NextToken" not in form
            return f"<instanceTypeSet>{P5 if more else C7G}</instanceTypeSet>" + (
                "<nextToken>2</nextToken>" if more else ""
            )
        if name == "DescribeAvailabilityZones":
            return "<availabilityZoneInfo><item><zoneName>us-east-1a</zoneName><zoneId>use1-az4</zoneId></item></availabilityZoneInfo>"
        if name == "DescribeSpotPriceHistory":
            old = spot_item("p5.48xlarge", "us-east-1a", "30.0", "2026-11-20T08:00:00Z")
            new = spot_item("p5.48xlarge", "us-east-1a", "20.5", "2026-11-22T08:00:00Z")
            return f"<spotPriceHistorySet>{new}{old}</spotPriceHistorySet><nextToken/>"
        assert name == "DescribeInstanceTypeOfferings", name
        items = (
            offering("p5.48xlarge", "use1-az4")
            + offering("c7g.large", "use1-az4")
            + offering("x1.new", "use1-az4")
        )
        return f"<instanceTypeOfferingSet>{items}</instanceTypeOfferingSet>"


@pytest.fixture
def aws(feed_server: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    boto3 = pytest.importorskip("boto3")
    from botocore.config import Config

    from skyloom_optimizer.refresh.aws import AwsFeed

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    config = Config(retries={"total_max_attempts": 1})
    session = boto3.session.Session()

    def client(service: str, region: str) -> Any:
        return session.client(service, region_name=region, endpoint_url=feed_server.url, config=config)

    feed_server.answer = Aws()
    return AwsFeed(client, lambda: dt.datetime(2026, 11, 22, 9, tzinfo=dt.UTC)), feed_server.answer


def test_aws_joins_offerings_sizes_and_both_prices(aws: Any) -> None:
    feed, _ = aws
    rows = {row.instance_type: row for row in feed.fetch("us-east-1")}
    assert set(rows) == {"p5.48xlarge", "c7g.large", "x1.new"}
    p5 = rows["p5.48xlarge"]
    assert (p5.zone, p5.price, p5.spot_price, p5.currency) == ("use1-az4", 55.04, 20.5, "USD")
    assert (p5.vcpus, p5.memory_gib, p5.accelerator, p5.accelerator_count, p5.accelerator_memory_gib) == (
        192,
        2048,
        "H100",
        8,
        80,
    )
    assert (rows["c7g.large"].arch, rows["c7g.large"].accelerator, rows["c7g.large"].price) == (
        "arm64",
        "",
        0.0725,
    )
    assert rows["x1.new"].price is None and rows["x1.new"].vcpus is None


def test_aws_tells_another_currency_and_what_it_cannot_read(aws: Any) -> None:
    feed, cloud = aws
    cloud.products = [product("p5.48xlarge", "55.04", "CNY")]
    assert feed.fetch("us-east-1")[0].currency == "CNY"
    for bad in ('{"product": {}}', '{"product', json.dumps({"product": None, "terms": None})):
        cloud.products = [bad]
        with pytest.raises(FeedError, match="price list"):
            feed.fetch("us-east-1")
    cloud.products = [product("p5.48xlarge", "a lot")]
    with pytest.raises(FeedError, match="not a price"):
        feed.fetch("us-east-1")


@pytest.mark.parametrize(
    ("code", "kind"), [("RequestLimitExceeded", FeedUnavailable), ("AuthFailure", FeedError)]
)
def test_aws_errors(aws: Any, code: str, kind: type[FeedError]) -> None:
    feed, cloud = aws
    cloud.error = code
    with pytest.raises(FeedError, match=code) as error:
        feed.fetch("us-east-1")
    assert type(error.value) is kind


# --- by gpuhunt ---

JARVIS = {
    "server_meta": [
        {
            "gpu_type": "L4", "region": "india-noida-01", "num_free_devices": 2, "effective_num_free_devices": 2,
            "spot_num_free_devices": 0, "price_per_hour": 0.44, "spot_price": 0.29, "vram": "24", "cpus_per_gpu": 28,
            "ram_per_gpu": 124, "workload_type": "vm", "num_gpus": "8",
        }
    ],
    "cpu_meta": {},
}  # fmt: skip


def test_a_cloud_that_gpuhunt_reads(feed_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gpuhunt")
    from skyloom_optimizer.refresh.by_gpuhunt import make_feed

    monkeypatch.delenv("JL_API_KEY", raising=False)
    with pytest.raises(FeedNotConfigured, match="JL_API_KEY"):
        make_feed("jarvislabs")
    monkeypatch.setenv("JL_API_KEY", "x")
    monkeypatch.setenv("JARVISLABS_API_URL", feed_server.url)
    feed_server.answer = lambda *_: ok(JARVIS)
    rows = make_feed("jarvislabs").fetch(WHOLE_CLOUD)
    assert {(row.accelerator, row.accelerator_count, row.price, row.region) for row in rows} == {
        ("L4", 1.0, 0.44, "india-noida-01"), ("L4", 2.0, 0.88, "india-noida-01"),
    }  # fmt: skip
    feed_server.answer = lambda *_: (200, {}, b"<html>")
    with pytest.raises(FeedError, match="jarvislabs \\(by gpuhunt\\)"):
        make_feed("jarvislabs").fetch(WHOLE_CLOUD)
    feed_server.answer = lambda *_: (503, {}, b"")
    with pytest.raises(FeedError):
        make_feed("jarvislabs").fetch(WHOLE_CLOUD)
