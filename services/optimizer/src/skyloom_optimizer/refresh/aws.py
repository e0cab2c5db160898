"""AWS: prices from the price list API, sizes and zones from EC2 of each region, spot prices of the last hour.

Uses boto3 and the credentials that it finds: pricing:GetProducts, ec2:DescribeInstanceTypes, DescribeInstanceTypeOfferings,
DescribeAvailabilityZones, DescribeRegions, DescribeSpotPriceHistory. Zones are zone ids: names differ between accounts.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from skyloom_optimizer.refresh.aws_bulk import AwsBulkFeed
from skyloom_optimizer.refresh.model import (
    Feed,
    FeedError,
    FeedInfo,
    FeedNotConfigured,
    FeedRow,
    FeedUnavailable,
    Known,
)
from skyloom_optimizer.refresh.settings import FeedSettings
from skyloom_optimizer.refresh.transport import FeedHttp

PRICING_REGION = "us-east-1"
_MISSING = ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound")
_BUSY = {
    "Throttling",
    "ThrottlingException",
    "RequestLimitExceeded",
    "TooManyRequestsException",
    "ServiceUnavailable",
}
_PRODUCTS = {
    "operatingSystem": "Linux", "tenancy": "Shared", "preInstalledSw": "NA", "capacitystatus": "Used",
    "marketoption": "OnDemand",
}  # fmt: skip
_HOUR = "Hrs"
MakeClient = Callable[[str, str], Any]


class AwsFeed:
    """`make_client(service, region)` gives a boto3 client."""

    info = FeedInfo(
        "aws",
        "aws-api",
        "AWS price list API and EC2 of each region, on-demand and spot, Linux, shared tenancy",
    )

    def __init__(self, make_client: MakeClient, now: Callable[[], dt.datetime]) -> None:
        self._make_client = make_client
        self._now = now
        self._pricing: Any = None

    def parts(self, known: Known, all_regions: bool) -> Sequence[str]:
        if not all_regions:
            return known.regions
        answer = _called(
            "ec2", PRICING_REGION, lambda: self._client("ec2", PRICING_REGION).describe_regions()
        )
        return sorted(_text(item, "RegionName") for item in _list(answer, "Regions"))

    def close(self) -> None:
        return

    def fetch(self, part: str) -> Sequence[FeedRow]:
        ec2 = self._client("ec2", part)
        sizes = {
            _text(item, "InstanceType"): item
            for item in self._pages(ec2, part, "describe_instance_types", "InstanceTypes")
        }
        zones = self._zones(ec2, part)
        spot = self._spot(ec2, part, zones)
        prices, currency = self._on_demand(part)
        rows = []
        offerings = self._pages(
            ec2,
            part,
            "describe_instance_type_offerings",
            "InstanceTypeOfferings",
            LocationType="availability-zone-id",
        )
        for item in offerings:
            name, zone = _text(item, "InstanceType"), _text(item, "Location")
            rows.append(
                FeedRow(
                    part,
                    name,
                    zone,
                    price=prices.get(name),
                    spot_price=spot.get((zone, name)),
                    currency=currency,
                    **_specs(sizes.get(name, {})),
                )
            )
        return rows

    def _zones(self, ec2: Any, region: str) -> dict[str, str]:
        """Name to id."""
        answer = _called("ec2", region, ec2.describe_availability_zones)
        return {_text(item, "ZoneName"): _text(item, "ZoneId") for item in _list(answer, "AvailabilityZones")}

    def _spot(self, ec2: Any, region: str, zones: Mapping[str, str]) -> dict[tuple[str, str], float]:
        """The newest price of each zone and type."""
        newest: dict[tuple[str, str], tuple[Any, float]] = {}
        now = self._now()
        items = self._pages(
            ec2, region, "describe_spot_price_history", "SpotPriceHistory",
            StartTime=now, EndTime=now, ProductDescriptions=["Linux/UNIX"],
        )  # fmt: skip
        for item in items:
            zone = item.get("AvailabilityZoneId") or zones.get(_text(item, "AvailabilityZone"))
            if not zone:
                continue
            key, at = (zone, _text(item, "InstanceType")), item.get("Timestamp")
            price = _price(item.get("SpotPrice"), "SpotPrice")
            if key not in newest or newest[key][0] < at:
                newest[key] = (at, price)
        return {key: price for key, (_, price) in newest.items()}

    def _on_demand(self, region: str) -> tuple[dict[str, float], str]:
        """Price by type, and the currency of all of them."""
        if self._pricing is None:
            self._pricing = self._client("pricing", PRICING_REGION)
        filters = [
            {"Type": "TERM_MATCH", "Field": name, "Value": value}
            for name, value in {**_PRODUCTS, "regionCode": region}.items()
        ]
        prices: dict[str, float] = {}
        currency = "USD"
        for document in self._pages(
            self._pricing,
            PRICING_REGION,
            "get_products",
            "PriceList",
            ServiceCode="AmazonEC2",
            Filters=filters,
        ):
            found = product_price(document)
            if found is not None:
                name, price, unit = found
                prices[name] = price
                currency = unit if unit != "USD" else currency
        return prices, currency

    def _pages(self, client: Any, region: str, call: str, key: str, **arguments: Any) -> Iterator[Any]:
        pages = iter(client.get_paginator(call).paginate(**arguments))
        while True:
            page = _called(call, region, lambda: next(pages, None))
            if page is None:
                return
            yield from _list(page, key)

    def _client(self, service: str, region: str) -> Any:
        return _called(service, region, lambda: self._make_client(service, region))


def make_feed(settings: FeedSettings) -> Feed:
    """Without boto3 or credentials the public price list files."""
    try:
        import boto3
        from botocore.config import Config
    except ImportError:
        return AwsBulkFeed(FeedHttp(), settings.urls["aws_bulk"])
    session = boto3.session.Session()
    if session.get_credentials() is None:
        return AwsBulkFeed(FeedHttp(), settings.urls["aws_bulk"])
    config = Config(
        retries={"mode": "standard", "total_max_attempts": 6}, connect_timeout=10, read_timeout=60
    )

    def client(service: str, region: str) -> Any:
        url = settings.aws_pricing_url if service == "pricing" else settings.aws_url
        return session.client(service, region_name=region, endpoint_url=url or None, config=config)

    return AwsFeed(client, lambda: dt.datetime.now(dt.UTC))


def product_price(document: Any) -> tuple[str, float, str] | None:
    """(type, dollars an hour, currency) of one price list document, as text or parsed; None: not a plain hourly price.

    The bulk files hold the same documents: product attributes, and terms by offer with a price dimension each.
    """
    try:
        item = json.loads(document) if isinstance(document, str) else document
        attributes = item["product"]["attributes"]
        terms = item["terms"].get("OnDemand", {})
        dimensions = [dimension for term in terms.values() for dimension in term["priceDimensions"].values()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FeedError(f"a document of the AWS price list cannot be read: {error!r}") from error
    hourly = [dimension for dimension in dimensions if dimension.get("unit") == _HOUR]
    if not hourly or not attributes.get("instanceType"):
        return None
    (currency, amount), *_ = sorted(
        hourly[0].get("pricePerUnit", {}).items(), key=lambda pair: pair[0] != "USD"
    ) or [("", "")]
    return attributes["instanceType"], _price(amount, "pricePerUnit"), currency


def _specs(item: Mapping[str, Any]) -> dict[str, Any]:
    """From DescribeInstanceTypes; nothing where the type is not described."""
    if not item:
        return {}
    try:
        arch = item["ProcessorInfo"]["SupportedArchitectures"]
        specs: dict[str, Any] = {
            "vcpus": float(item["VCpuInfo"]["DefaultVCpus"]),
            "memory_gib": item["MemoryInfo"]["SizeInMiB"] / 1024,
            "arch": next((name for name in ("x86_64", "arm64") if name in arch), arch[-1]),
        }
        return specs | _device(item)
    except (KeyError, TypeError, IndexError) as error:
        raise FeedError(f"DescribeInstanceTypes: {item.get('InstanceType')} lacks {error}") from error


def _device(item: Mapping[str, Any]) -> dict[str, Any]:
    """The first of GPUs, Neuron devices and inference accelerators."""
    for info, key in (
        ("GpuInfo", "Gpus"),
        ("NeuronInfo", "NeuronDevices"),
        ("InferenceAcceleratorInfo", "Accelerators"),
    ):
        devices = item.get(info, {}).get(key, [])
        if devices:
            device = devices[0]
            memory = device.get("MemoryInfo", {}).get("SizeInMiB")
            return {
                "accelerator": device["Name"],
                "accelerator_count": float(device.get("LogicalGpuCount") or device["Count"]),
                "accelerator_memory_gib": memory / 1024 if memory else None,
            }
    return {"accelerator": "", "accelerator_count": 0.0}


def _called(what: str, region: str, call: Callable[[], Any]) -> Any:
    """boto3's errors as ours: the one place that knows them."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        return call()
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        words = f"AWS {what} in {region}: {error}"
        raise (FeedUnavailable if code in _BUSY else FeedError)(words) from error
    except BotoCoreError as error:
        name = type(error).__name__
        if name in _MISSING:
            raise FeedNotConfigured(f"AWS credentials: {error}", hint="Set them up: aws configure") from error
        kind = FeedUnavailable if "Connect" in name or "Timeout" in name or "Endpoint" in name else FeedError
        raise kind(f"AWS {what} in {region}: {error}") from error


def _list(page: Mapping[str, Any], key: str) -> list[Any]:
    found = page.get(key)
    if not isinstance(found, list):
        raise FeedError(f"AWS: an answer has no {key}")
    return found


def _text(item: Mapping[str, Any], key: str) -> str:
    value = item.get(key)
    if not isinstance(value, str) or not value:
        raise FeedError(f"AWS: {key} is {value!r}")
    return value


def _price(value: Any, what: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise FeedError(f"AWS: {what} is {value!r}, which is not a price") from None
