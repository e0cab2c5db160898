"""sky catalog status and refresh: tables, exit codes, what is told of parts that were not taken."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from skyloom_common.contracts.catalog import (
    CatalogChange,
    CatalogCloud,
    CatalogInfo,
    CatalogRefresh,
    CatalogRefreshRequest,
    CatalogSchedule,
    CloudRefresh,
)

Sky = Callable[..., Any]
CHANGES = (
    CatalogChange("up", "azure", "westeurope", "", "Standard_ND96isr_H100_v5", False, 80.0, 100.0),
    CatalogChange("gone", "azure", "eastus", "", "Standard_A0", False, 0.02, None),
)
AZURE = CloudRefresh(
    "azure", "refreshed", parts=60, parts_done=60, parts_resumed=12, offers=66446, new=3, gone=81, up=422, held=1,
    refused={"brazilsouth": "the list is empty"}, changes=CHANGES, notes=("Standard_D2s_v5 in eastus: price from $1 to $9",),
)  # fmt: skip
CLOUDS = (
    CatalogCloud("azure", 66446, 1779, 63, 66000, 55000, "2026-11-22", "2026-11-22", 0),
    CatalogCloud("scp", 443, 73, 7, 443, 0, "2023-05", "2023-05", 1270),
)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sky.cli.catalog.POLL_SECONDS", 0.0)


def info(status: str = "partly", **more: Any) -> CatalogInfo:
    refresh = CatalogRefresh("r1", status, time.time() - 5, clouds=(AZURE,), **more)
    azure = replace(CLOUDS[0], refreshed_at=time.time() - 120)
    return CatalogInfo("abc123", 190525, 7000, 79, (azure, *CLOUDS[1:]), own_offers=2, refresh=refresh)


def test_status_shows_the_stalest_first(fake: Any, sky: Sky) -> None:
    fake.catalog = [replace(info(), problems=("offers.yaml:3: prices[0].prize: unknown field",))]
    ran = sky("catalog", "status")
    assert ran.code == 0
    lines = ran.out.splitlines()
    header = ["CLOUD", "OFFERS", "PRICED", "SPOT", "REGIONS", "OLDEST", "NEWEST", "AGE", "REFRESHED"]
    assert lines[0].split() == header and lines[2].split()[5:7] == ["2026-11-22", "2026-11-22"]
    assert lines[1].split()[:2] == ["scp", "443"] and "1270d" in lines[1]
    assert lines[2].split()[:2] == ["azure", "66,446"] and "2 mins ago" in lines[2]
    assert "2 own prices" in ran.err and "offers.yaml:3" in ran.err
    assert sky("catalog", "status", "--cloud", "scp").out.splitlines()[1].startswith("scp")
    assert json.loads(sky("catalog", "status", "-o", "json").out)["version"] == "abc123"


def test_status_says_how_coarse_dates_count_and_when_prices_are_refreshed(fake: Any, sky: Sky) -> None:
    dated = replace(info(), clouds=CLOUDS[:1])
    fake.catalog = [info(), dated]
    assert "counts from its first day" in sky("catalog", "status").err
    said = sky("catalog", "status").err
    assert "counts from its first day" not in said
    assert "Prices are refreshed when you ask for it: sky catalog refresh" in said
    schedule = CatalogSchedule(86400.0, ("aws", "azure"), time.time() + 7200, time.time(), "done")
    fake.catalog = [replace(dated, schedule=schedule)]
    assert "Refreshed by itself every 24 h (aws, azure); next in 2.0 h." in sky("catalog", "status").err
    failed = replace(schedule, clouds=(), last_status="failed", failures=2, message="aws: sorry")
    fake.catalog = [replace(dated, schedule=failed)]
    said = sky("catalog", "status").err
    assert (
        "every cloud that has a feed" in said and "failed 2 times in a row" in said and "aws: sorry" in said
    )


def test_refresh_follows_to_the_end_and_tells_what_changed(fake: Any, sky: Sky) -> None:
    fake.catalog = [info("running"), info("running"), info()]
    ran = sky("catalog", "refresh", "--cloud", "Azure", "--all-regions")
    assert ran.code == 0
    assert fake.refresh_asked == [CatalogRefreshRequest(("azure",), True, False)]
    assert "60/60 (12 resumed)" in ran.out
    assert "up" in ran.out and "100.00" in ran.out and "+25%" in ran.out
    assert "azure brazilsouth: not taken: the list is empty" in ran.err
    assert "price from $1" not in ran.err
    assert "price from $1" in sky("catalog", "refresh", "-v").err


def test_a_failed_refresh_is_exit_code_one_and_async_does_not_wait(fake: Any, sky: Sky) -> None:
    fake.catalog = [info("failed", message="nothing answers")]
    ran = sky("catalog", "refresh", "--force")
    assert ran.code == 1 and "failed. nothing answers" in ran.err
    assert fake.refresh_asked[0].force
    assert sky("catalog", "refresh", "--async").code == 0


def test_changes_as_json(fake: Any, sky: Sky) -> None:
    fake.catalog = [info()]
    found = json.loads(sky("catalog", "refresh", "-o", "json").out)
    assert found["clouds"][0]["changes"][0]["after"] == 100.0
