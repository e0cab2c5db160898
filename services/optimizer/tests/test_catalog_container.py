"""The container: what goes in comes out, the same bytes each time, and damage is noticed."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from skyloom_optimizer.catalog import build, columns, csvform
from skyloom_optimizer.catalog.columns import Container, CorruptContainer

OFFERINGS = """\
cloud,region,zone,instance_type,vcpus,memory_gib,accelerator_name,accelerator_count,accelerator_memory_gib,arch,\
price_usd_hour,spot_price_usd_hour,price_source,spot_source,comment
red,r1,r1a,big,8,32.5,,,,x86_64,0.4,0.10,list,list,first
red,r1,r1b,big,8,32.5,,,,x86_64,0.4,,list,,
red,r2,,gpu,16,64,A100,0.25,40,x86_64,29362.176,,list,,
blue,,,odd,,,tpu-v2-8,1,,,,,,,"no price, no size"
"""
FILES = {
    "offerings": OFFERINGS,
    "accelerators": (
        "name,aliases,memory_gib,vendor,fp16_bf16_dense_tflops,tflops_source,cuda_compute_capability\n"
        "A100,A100-40GB;A100 SXM,40,NVIDIA,312,table,8.0\n"
    ),
    "regions": (
        "cloud,region,display_name,city,country,continent,latitude,longitude\n"
        "red,r1,Red One,Ville,FR,Europe,-48.85661400,2.5\nred,r2,,,,,,\n"
    ),
    "zones": "cloud,region,zone\nred,r1,r1a\nred,r1,r1b\n",
    "spot_interruption": "cloud,region,instance_type,band_low_pct,band_high_pct,savings_pct\nred,r1,big,5,10,70\n",
    "egress": "cloud,from_scope,to_scope,usd_per_gib,tier_start_gib,source\nred,default,internet,0.09,0,page\n",
    "gcp_accelerator_components": ",".join(csvform.PLAIN_TABLES["gcp_accelerator_components"]) + "\n",
    "sources": "code,kind,as_of,licence,description\nlist,quoted,2026-01,none stated,a price list\n",
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "source", FILES)


def write(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / f"{name}.csv").write_text(text)
    return folder


def test_building_twice_gives_the_same_bytes(source: Path) -> None:
    assert build.build(source) == build.build(source)


def test_the_order_of_rows_does_not_matter(source: Path, tmp_path: Path) -> None:
    header, *rows = OFFERINGS.splitlines(keepends=True)
    other = write(tmp_path / "other", FILES | {"offerings": header + "".join(reversed(rows))})
    assert build.build(other) == build.build(source)


def test_gzipped_offerings_are_read(source: Path, tmp_path: Path) -> None:
    expected = build.build(source)
    plain = source / "offerings.csv"
    (source / "offerings.csv.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    assert build.build(source) == expected


def test_export_then_build_is_the_same_container(source: Path, tmp_path: Path) -> None:
    data = build.build(source)
    csvform.write_source(Container(data), tmp_path / "export")
    assert build.build(tmp_path / "export") == data


@pytest.mark.slow
def test_the_bundled_catalog_round_trips(tmp_path: Path) -> None:
    bundled = Container(build.CONTAINER.read_bytes())
    bundled.verify()
    csvform.write_source(bundled, tmp_path)
    assert Container(build.build(tmp_path)).sha256 == bundled.sha256


def test_numbers_are_exact(source: Path) -> None:
    offers = Container(build.build(source)).table("offers", ["price_usd_hour"])
    column = offers["price_usd_hour"]
    assert isinstance(column, columns.NumberColumn)
    assert sorted(column.texts()) == ["", "0.4", "0.4", "29362.176"]
    assert 29362.176 in column.floats.tolist()


@pytest.mark.parametrize(
    ("scaled", "decimals", "text"),
    [(0, 0, "0"), (5, 3, "0.005"), (-48856614, 6, "-48.856614"), (12000, 3, "12"), (120, 0, "120")],
)
def test_decimal_text(scaled: int, decimals: int, text: str) -> None:
    assert columns.decimal_text(scaled, decimals) == text


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("offerings", "cloud,region\n", "offerings.csv: line 1: the column 'zone' is missing"),
        ("offerings", OFFERINGS + "red,r3\n", "offerings.csv: line 6: 2 values for 15 columns"),
        (
            "offerings",
            OFFERINGS.replace("0.10", "cheap"),
            "column spot_price_usd_hour: 'cheap' is not a number",
        ),
        ("offerings", OFFERINGS.replace("0.10", "NaN"), "'NaN' is not a finite number"),
        ("offerings", OFFERINGS.replace("r1b", "r1a"), "1 rows repeat"),
        ("sources", FILES["sources"].replace("list,", "other,"), "price_source 'list' is not in sources.csv"),
    ],
)
def test_a_bad_source_is_refused_with_its_place(tmp_path: Path, name: str, text: str, message: str) -> None:
    folder = write(tmp_path / "bad", FILES | {name: text})
    with pytest.raises(csvform.BadSource) as caught:
        build.build(folder)
    assert message in str(caught.value)


def test_a_bad_source_leaves_the_old_container(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "catalog.skycol"
    assert build.main(["--source", str(source), "--container", str(target)]) == 0
    before = target.read_bytes()
    (source / "offerings.csv").write_text(OFFERINGS + "short\n")
    assert build.main(["--source", str(source), "--container", str(target)]) == 1
    assert target.read_bytes() == before


def test_damage_is_noticed(source: Path) -> None:
    data = build.build(source)
    for broken in (b"", b"PK\3\4" + data[4:], data[:-1], data[:20]):
        with pytest.raises(CorruptContainer):
            Container(broken)
    flipped = bytearray(data)
    flipped[-8] ^= 0xFF
    with pytest.raises(CorruptContainer):
        Container(bytes(flipped)).verify()


def test_an_implausible_price_is_kept_but_not_used(tmp_path: Path) -> None:
    header = OFFERINGS.splitlines(keepends=True)[0]
    rows = "".join(
        f"red,r{number},,big,8,32,,,,x86_64,{price},,list,,\n"
        for number, price in enumerate(["1.0", "1.1", "0.9", "1.0", "0.1"])
    )
    container = Container(build.build(write(tmp_path / "typo", FILES | {"offerings": header + rows})))
    doubtful = container.table("doubtful")["offer"]
    price = container.table("offers")["price_usd_hour"]
    assert isinstance(doubtful, columns.IndexColumn)
    assert isinstance(price, columns.NumberColumn)
    assert [price.floats[row] for row in doubtful.values] == [0.1]
