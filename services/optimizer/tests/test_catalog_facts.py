"""The bundled catalog holds what is known to be true, with where it comes from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from skyloom_common.core.errors import InvalidRequest
from skyloom_optimizer.catalog.info import catalog_info
from skyloom_optimizer.catalog.load import Catalog
from skyloom_optimizer.gpus import AcceleratorQuery, list_accelerators
from skyloom_optimizer.snapshot import OfferSnapshot


def types_of(snapshot: OfferSnapshot, name: str, count: float) -> set[tuple[str, str]]:
    rows = list_accelerators(AcceleratorQuery(name, count), snapshot).offers
    return {(row.cloud, row.instance_type) for row in rows}


@pytest.mark.parametrize(
    ("name", "count", "expected"),
    [
        (
            "A100",
            8,
            {
                ("aws", "p4d.24xlarge"),
                ("gcp", "a2-highgpu-8g"),
                ("azure", "Standard_ND96asr_v4"),
                ("lambda", "gpu_8x_a100"),
            },
        ),
        (
            "A100-80GB",
            8,
            {("aws", "p4de.24xlarge"), ("gcp", "a2-ultragpu-8g"), ("azure", "Standard_ND96amsr_A100_v4")},
        ),
        ("A100", 16, {("gcp", "a2-megagpu-16g")}),
        (
            "H100",
            8,
            {("aws", "p5.48xlarge"), ("gcp", "a3-highgpu-8g"), ("azure", "Standard_ND96isr_H100_v5")},
        ),
        ("H200", 8, {("aws", "p5e.48xlarge"), ("gcp", "a3-ultragpu-8g")}),
        ("V100", 8, {("aws", "p3.16xlarge")}),
        ("T4", 1, {("aws", "g4dn.xlarge"), ("azure", "Standard_NC4as_T4_v3")}),
        ("L4", 1, {("aws", "g6.xlarge"), ("gcp", "g2-standard-4")}),
        ("tpu-v5litepod-8", 1, {("gcp", "tpu-v5litepod-8")}),
        ("Trainium", 16, {("aws", "trn1.32xlarge")}),
    ],
)
def test_known_machines_are_listed(
    snapshot: OfferSnapshot, name: str, count: float, expected: set[tuple[str, str]]
) -> None:
    assert expected <= types_of(snapshot, name, count)


def test_sizes_of_a_known_machine(snapshot: OfferSnapshot) -> None:
    (number,) = snapshot.machine_number["p4d.24xlarge"]
    machines = snapshot.machines
    assert (machines.vcpus[number], machines.memory_gib[number]) == (96, 1152)
    assert (machines.accelerator_count[number], machines.accelerator_memory_gib[number]) == (8, 40)


def test_every_price_has_a_source_and_a_date(catalog: Catalog, snapshot: OfferSnapshot) -> None:
    for prices in (snapshot.on_demand, snapshot.spot):
        for code in np.unique(prices.source[~np.isnan(prices.price)]).tolist():
            assert snapshot.sources[code].code
            assert snapshot.sources[code].as_of >= "2023"
    explained = {source.code for source in catalog.sources}
    assert {source.code for source in snapshot.sources} - {""} == explained
    assert all(source.description and source.licence and source.kind for source in catalog.sources)


def test_tables_beside_the_offers(catalog: Catalog) -> None:
    regions = {(region.cloud, region.name): region for region in catalog.regions}
    assert regions["aws", "us-east-1"].latitude == pytest.approx(38.9, abs=1.5)
    assert any(tier.cloud == "aws" and tier.price_per_gib == 0.09 for tier in catalog.egress)
    band = catalog.interruptions["aws", "us-east-1", "p3.2xlarge"]
    assert 0 <= band.low_percent < band.high_percent <= 100
    assert "us-east1-b" in catalog.snapshot.known_zones["gcp", "us-east1"]


def test_catalog_info_counts(catalog: Catalog) -> None:
    info = catalog_info(catalog)
    assert info.offers == sum(cloud.offers for cloud in info.clouds) > 190_000
    assert len(info.clouds) == 62
    aws = next(cloud for cloud in info.clouds if cloud.name == "aws")
    assert aws.oldest < aws.newest
    assert aws.priced < aws.offers


def test_government_and_opt_in_places_are_marked(snapshot: OfferSnapshot) -> None:
    places = snapshot.places
    marked = {places.region[number] for number in np.flatnonzero(places.restricted)}
    assert {"us-gov-west-1", "usgovvirginia", "us-east7"} <= marked
    open_regions = {places.region[number] for number in np.flatnonzero(~places.restricted)}
    assert {"us-east-1", "eastus", "us-east1", "europe-west4"} <= open_regions


def test_overview_lists_families_in_order(snapshot: OfferSnapshot) -> None:
    few = list_accelerators(AcceleratorQuery(), snapshot).summaries
    every = list_accelerators(AcceleratorQuery(every=True), snapshot).summaries
    assert {row.family for row in few} == {"common", "google_tpu"}
    assert [row.family for row in every] == sorted(row.family for row in every)
    assert len(every) > len(few)
    a100 = next(row for row in few if row.accelerator == "A100")
    assert a100.counts == (1.0, 2.0, 4.0, 8.0, 16.0)
    assert {"aws", "gcp", "azure"} <= set(a100.clouds)


def test_offers_of_a_device_are_sorted_by_the_clouds_cheapest(snapshot: OfferSnapshot) -> None:
    rows = list_accelerators(AcceleratorQuery("h100", 8, require_price=True), snapshot).offers
    firsts = {}
    for row in rows:
        firsts.setdefault(row.cloud, row.price_per_hour or float("inf"))
    assert list(firsts.values()) == sorted(firsts.values())
    assert all(row.accelerator == "H100" and row.count == 8 for row in rows)


def test_all_regions_of_a_device(snapshot: OfferSnapshot) -> None:
    query = AcceleratorQuery("A100", 8, cloud="aws", all_regions=True)
    rows = list_accelerators(query, snapshot).offers
    regions = [row.region for row in rows]
    assert len(set(regions)) == len(regions) > 10
    one = list_accelerators(AcceleratorQuery("A100", 8, cloud="aws", region="us-east-1"), snapshot).offers
    assert [row.region for row in one] == ["us-east-1"]
    assert one[0].price_per_hour == next(row.price_per_hour for row in rows if row.region == "us-east-1")


def test_filters_name_what_is_wrong(snapshot: OfferSnapshot) -> None:
    with pytest.raises(InvalidRequest, match="cloud: 'awz' is not in the catalog; did you mean 'aws'"):
        list_accelerators(AcceleratorQuery("A100", cloud="awz"), snapshot)
    with pytest.raises(InvalidRequest, match="region: 'us-east-99' is not a region on aws"):
        list_accelerators(AcceleratorQuery("A100", cloud="aws", region="us-east-99"), snapshot)
    with pytest.raises(InvalidRequest, match="count: -1 is not above 0"):
        list_accelerators(AcceleratorQuery("A100", count=-1), snapshot)
    unknown = list_accelerators(AcceleratorQuery("H1000"), snapshot)
    assert unknown.offers == ()
    assert "did you mean 'H100'" in unknown.hints[0]


def test_the_docs_list_every_source(catalog: Catalog) -> None:
    page = (Path(__file__).parents[3] / "docs" / "catalog.md").read_text()
    for source in catalog.sources:
        assert f"| `{source.code}` | {source.kind} | {source.as_of} |" in page
