"""Reads a deployment's own prices and offers from YAML. Every fault is named with file, line and field.

It must not look at the catalog: whether a rule matches anything is said where it is applied.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from skyloom_common.contracts.task.accelerators import accelerators
from skyloom_common.contracts.task.problems import Field, Problems
from skyloom_common.contracts.task.scalars import choice, number, text
from skyloom_common.contracts.task.source import load_documents, read_text

_PRICE_FIELDS = ("price_per_hour", "spot_price_per_hour", "discount_percent", "spot_discount_percent")
_RULE_FIELDS = ("cloud", "region", "zone", "instance_type", *_PRICE_FIELDS, "note")
_OFFER_FIELDS = (
    "cloud", "region", "zone", "instance_type", "vcpus", "memory_gib", "accelerators", "accelerator_memory_gib",
    "arch", "price_per_hour", "spot_price_per_hour", "note",
)  # fmt: skip
_ARCHS = ("x86_64", "arm64")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_NAME = "a name as the catalog has it, such as p5.48xlarge"
_DOLLARS = "US dollars an hour, such as 12.5"


@dataclass(frozen=True)
class PriceRule:
    """What is paid for offers of the catalog. Names are shell patterns ("p5.*"); "*" is any."""

    cloud: str
    region: str = "*"
    zone: str = "*"
    instance_type: str = "*"
    price: float | None = None
    spot_price: float | None = None
    discount: float | None = None
    spot_discount: float | None = None
    where: str = ""
    """File and line, for what is said about it later."""


@dataclass(frozen=True)
class PrivateOffer:
    """Something that only this deployment can get; no price = not known, launchable all the same."""

    cloud: str
    instance_type: str
    region: str = ""
    zone: str = ""
    vcpus: float | None = None
    memory_gib: float | None = None
    accelerator: str = ""
    accelerator_count: float = 0.0
    accelerator_memory_gib: float | None = None
    arch: str = ""
    price: float | None = None
    spot_price: float | None = None
    where: str = ""


@dataclass(frozen=True)
class OwnList:
    rules: tuple[PriceRule, ...] = ()
    offers: tuple[PrivateOffer, ...] = ()
    as_of: str = ""
    version: str = ""

    def __len__(self) -> int:
        return len(self.rules) + len(self.offers)


def read_own(path: Path) -> OwnList:
    """The list in a file. Raises InvalidTask naming every fault; an empty file is an empty list."""
    content, name = read_text(path, str(path))
    documents, report = load_documents(content, name)
    report.raise_if_any()
    filled = [document for document in documents if document.value is not None]
    if not filled:
        return OwnList()
    if len(filled) > 1:
        report.add((), "there are several documents in this file", "one, with `prices:` and `offers:` in it")
        report.raise_if_any()
    report.positions = filled[0].positions
    modified = dt.datetime.fromtimestamp(path.stat().st_mtime, dt.UTC).date().isoformat()
    found = _read(Field(filled[0].value, (), report), modified)
    report.raise_if_any()
    version = hashlib.sha256(content.encode()).hexdigest()[:8]
    return OwnList(found.rules, found.offers, found.as_of, version)


def _read(root: Field, modified: str) -> OwnList:
    if not root.is_mapping("`prices:` and `offers:`, each a list"):
        return OwnList()
    root.only(("as_of", "prices", "offers"))
    as_of = root.get("as_of")
    if as_of is not None and not _DATE.fullmatch(str(as_of.value)):
        as_of.refuse_value("a date", "the form 2026-11-30")
    rules = tuple(rule for item in _elements(root, "prices") if (rule := _rule(item)) is not None)
    offers = tuple(offer for item in _elements(root, "offers") if (offer := _offer(item)) is not None)
    _refuse_twins(root, offers)
    return OwnList(rules, offers, modified if as_of is None else str(as_of.value))


def _elements(root: Field, key: str) -> list[Field]:
    field = root.get(key)
    if field is None:
        return []
    if not isinstance(field.value, list):
        field.refuse_value("a list", "one entry for each line that begins with `- `")
        return []
    return [
        item for item in field.elements() if item.is_mapping("fields such as `cloud:` and `instance_type:`")
    ]


def _rule(item: Field) -> PriceRule | None:
    item.only(_RULE_FIELDS)
    cloud = _required(item, "cloud")
    values = {name: _number(item, name, _DOLLARS) for name in _PRICE_FIELDS[:2]}
    values |= {name: _percent(item, name) for name in _PRICE_FIELDS[2:]}
    if all(item.get(name) is None for name in _PRICE_FIELDS):
        item.refuse("no price is given", f"one of {', '.join(_PRICE_FIELDS)}")
    for price, percent in (_PRICE_FIELDS[0::2], _PRICE_FIELDS[1::2]):
        if values[price] is not None and values[percent] is not None:
            item.refuse(f"{price} and {percent} contradict each other", "one of them")
    if cloud is None:
        return None
    return PriceRule(
        cloud=cloud.lower(),
        region=_name(item, "region") or "*",
        zone=_name(item, "zone") or "*",
        instance_type=_name(item, "instance_type") or "*",
        price=values["price_per_hour"],
        spot_price=values["spot_price_per_hour"],
        discount=values["discount_percent"],
        spot_discount=values["spot_discount_percent"],
        where=_where(item),
    )


def _offer(item: Field) -> PrivateOffer | None:
    item.only(_OFFER_FIELDS)
    cloud, kind = _required(item, "cloud"), _required(item, "instance_type")
    device, count = _device(item)
    arch = item.get("arch")
    zone, region = _name(item, "zone"), _name(item, "region")
    if zone and not region:
        item.refuse("zone without region", "both, or the region alone")
    if cloud is None or kind is None:
        return None
    return PrivateOffer(
        cloud=cloud.lower(),
        instance_type=kind,
        region=region,
        zone=zone,
        vcpus=_number(item, "vcpus", "a number of vCPUs", exclusive=True),
        memory_gib=_number(item, "memory_gib", "GiB", exclusive=True),
        accelerator=device,
        accelerator_count=count,
        accelerator_memory_gib=_number(item, "accelerator_memory_gib", "GiB of one device", exclusive=True),
        arch="" if arch is None else choice(arch, _ARCHS) or "",
        price=_number(item, "price_per_hour", _DOLLARS),
        spot_price=_number(item, "spot_price_per_hour", _DOLLARS),
        where=_where(item),
    )


def _device(item: Field) -> tuple[str, float]:
    field = item.get("accelerators")
    if field is None:
        return "", 0.0
    found, _ = accelerators(field)
    if len(found) > 1 or (found and found[0].name is None):
        field.refuse("a machine has one kind of accelerator", "a name and a count such as H100:8")
        return "", 0.0
    return (found[0].name or "", found[0].count) if found else ("", 0.0)


def _refuse_twins(root: Field, offers: tuple[PrivateOffer, ...]) -> None:
    seen: dict[tuple[str, str, str, str], PrivateOffer] = {}
    for offer in offers:
        key = (offer.cloud, offer.region, offer.zone, offer.instance_type)
        if key in seen:
            root.report.add(
                ("offers",),
                f"{offer.instance_type} is listed twice ({seen[key].where}, {offer.where})",
                "one entry",
            )
        seen[key] = offer


def _required(item: Field, key: str) -> str | None:
    field = item.get(key)
    if field is None:
        item.refuse(
            f"{key} is missing", f"{key}: {_NAME if key == 'instance_type' else 'a name such as aws'}"
        )
        return None
    return text(field, _NAME)


def _name(item: Field, key: str) -> str:
    field = item.get(key)
    return "" if field is None else text(field, "a name, in quotes where it begins with *") or ""


def _number(item: Field, key: str, right: str, *, exclusive: bool = False) -> float | None:
    field = item.get(key)
    return None if field is None else number(field, right, exclusive=exclusive)


def _percent(item: Field, key: str) -> float | None:
    value = _number(item, key, "a percentage below 100, such as 18")
    if value is not None and value >= 100:
        item.child(key, value).refuse_value("below 100", "a percentage below 100, such as 18")
        return None
    return value


def _where(item: Field) -> str:
    report: Problems = item.report
    line = report.position(item.path)
    return f"{report.filename}:{line[0]}" if line else str(report.filename)
