"""Refreshing through the service: a real process against a served feed, the swap, the history, and being killed in the middle."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from skyloom_common.contracts.catalog import CatalogInfo, CatalogRefresh, PriceHistory
from skyloom_common.contracts.plan import AcceleratorList
from skyloom_common.core import wire
from skyloom_common.service.run import lifespan_of
from skyloom_optimizer.catalog.build import CONTAINER
from skyloom_optimizer.catalog.columns import Container
from skyloom_optimizer.catalog.csvform import offer_rows
from skyloom_optimizer.main import create_app
from skyloom_optimizer.settings import OptimizerSettings

pytestmark = [pytest.mark.integration, pytest.mark.slow]
TOKEN = "a-token-of-the-tests-0123456789"
ND = "Standard_ND96isr_H100_v5"


class AzurePrices:
    """The catalog's own prices in Azure's format, ND96isr_H100_v5 a quarter dearer. `hold` stops it at a region."""

    def __init__(self) -> None:
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.hold = ""
        self.held = threading.Event()
        self.go_on = threading.Event()
        for row in offer_rows(Container(CONTAINER.read_bytes())):
            if row[0] == "azure":
                self.rows.setdefault(row[1], []).extend(self._items(row))

    def _items(self, row: tuple[str, ...]) -> list[dict[str, Any]]:
        pairs = ((row[10], ""), (row[11], " Spot"))
        return [
            {
                "currencyCode": "USD", "retailPrice": float(price) * (1.25 if row[3] == ND else 1), "armSkuName": row[3],
                "productName": "Virtual Machines", "meterName": f"X{kind}", "skuName": f"X{kind}", "type": "Consumption",
                "unitOfMeasure": "1 Hour",
            }
            for price, kind in pairs if price
        ]  # fmt: skip

    def __call__(self, method: str, path: str, query: dict[str, list[str]], body: bytes) -> Any:
        region = query["$filter"][0].rpartition("armRegionName eq '")[2].rstrip("'")
        if region == self.hold:
            self.held.set()
            self.go_on.wait(30)
        content = json.dumps({"Items": self.rows[region], "NextPageLink": None}).encode()
        return 200, {}, content


@pytest.fixture
def azure(feed_server: Any, monkeypatch: pytest.MonkeyPatch) -> AzurePrices:
    monkeypatch.setenv("SKYLOOM_FEED_AZURE_URL", f"{feed_server.url}/api/retail/prices")
    feed_server.answer = AzurePrices()
    return feed_server.answer  # type: ignore[no-any-return]


@contextlib.asynccontextmanager
async def client_of(home: Path) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(OptimizerSettings.from_env({"SKYLOOM_HOME": str(home), "SKYLOOM_SERVICE_TOKEN": TOKEN}))
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with lifespan_of(app):
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://optimizer", headers=headers
        ) as client:
            yield client


async def info(client: httpx.AsyncClient) -> CatalogInfo:
    return wire.loads(CatalogInfo, (await client.get("/v1/catalog")).content)


async def until(client: httpx.AsyncClient, right: Callable[[CatalogInfo], bool]) -> CatalogInfo:
    end = time.monotonic() + 60
    while not right(found := await info(client)):
        assert time.monotonic() < end, found.refresh
        await asyncio.sleep(0.1)
    return found


def ended(found: CatalogInfo) -> bool:
    return found.refresh is not None and found.refresh.status != "running"


async def price(client: httpx.AsyncClient) -> tuple[float | None, str, int | None]:
    params = {"name": "H100", "count": "8", "cloud": "azure", "region": "westeurope"}
    rows = wire.loads(AcceleratorList, (await client.get("/v1/accelerators", params=params)).content).offers
    return next((row.price_per_hour, row.source, row.age_days) for row in rows if row.instance_type == ND)


async def test_a_refresh_by_the_service_swaps_prices_without_a_restart(
    azure: AzurePrices, tmp_path: Path
) -> None:
    async with client_of(tmp_path) as client:
        before = await info(client)
        old, _, age = await price(client)
        assert old is not None and age is not None and before.refresh is None
        begun = await client.post("/v1/catalog/refresh", json={"clouds": ["azure"]})
        assert begun.status_code == 202, begun.text
        assert wire.loads(CatalogRefresh, begun.content).status == "running"
        again = await client.post("/v1/catalog/refresh", json={"clouds": ["azure"]})
        assert (again.status_code, again.json()["code"]) == (409, "refresh_running")
        found = await until(client, lambda found: ended(found) and found.version != before.version)
        assert found.refresh is not None and found.refresh.status == "succeeded"
        (cloud,) = found.refresh.clouds
        assert cloud.up > 0 and cloud.down == 0 and not cloud.refused
        assert {change.instance_type for change in cloud.changes if change.kind == "up"} == {ND}
        azure_info = next(item for item in found.clouds if item.name == "azure")
        assert (azure_info.age_days, azure_info.refreshed_at) == (0, pytest.approx(time.time(), abs=120))
        new, source, age = await price(client)
        assert new == pytest.approx(old * 1.25) and source.startswith("azure-retail-") and age == 0
        params = {"cloud": "azure", "instance_type": ND, "region": "westeurope"}
        end = time.monotonic() + 30
        while True:
            series = wire.loads(
                PriceHistory, (await client.get("/v1/prices/history", params=params)).content
            ).series
            if series:
                break
            assert time.monotonic() < end
            await asyncio.sleep(0.1)
        assert [item.points[0].price for item in series if not item.use_spot] == [pytest.approx(new)]
        metrics = (await client.get("/metrics")).text
        assert 'skyloom_catalog_refresh_total{cloud="azure",outcome="refreshed"} 1.0' in metrics
        assert 'skyloom_catalog_age_seconds{cloud="azure"} 0.0' in metrics
    async with client_of(tmp_path) as client:
        assert (await price(client))[0] == new


async def test_killed_in_the_middle_it_leaves_the_old_catalog_and_goes_on_later(
    azure: AzurePrices, tmp_path: Path
) -> None:
    azure.hold = sorted(azure.rows)[20]
    home = ["--home", str(tmp_path), "--cloud", "azure", "--all-regions"]
    command = [__import__("sys").executable, "-m", "skyloom_optimizer.refresh.run", *home]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
    assert await asyncio.to_thread(azure.held.wait, 60)
    os.kill(process.pid, signal.SIGKILL)
    await process.wait()
    azure.hold = ""
    azure.go_on.set()
    assert not (tmp_path / "catalog" / "catalog.skycol").exists()
    async with client_of(tmp_path) as client:
        found = await info(client)
        assert (
            found.refresh is not None
            and found.refresh.status == "failed"
            and "kept for the next one" in found.refresh.message
        )
        before = found.version
        await client.post("/v1/catalog/refresh", json={"clouds": ["azure"], "all_regions": True})
        found = await until(client, lambda found: ended(found) and found.version != before)
        assert found.refresh is not None and found.refresh.clouds[0].parts_resumed == 20


async def test_bad_requests_and_a_malformed_feed(
    feed_server: Any, azure: AzurePrices, tmp_path: Path
) -> None:
    async with client_of(tmp_path) as client:
        wrong = await client.post("/v1/catalog/refresh", json={"clouds": ["azur"]})
        assert wrong.status_code == 400 and "did you mean 'azure'" in wrong.json()["message"]
        assert (await client.post("/v1/catalog/refresh", json={"cloud": "azure"})).status_code == 400
        assert (await client.get("/v1/prices/history", params={"cloud": "aws"})).status_code == 400
        before = (await info(client)).version
        feed_server.answer = lambda *_: (200, {}, b"<html>sorry</html>")
        await client.post("/v1/catalog/refresh", json={"clouds": ["azure"]})
        found = await until(client, ended)
        assert found.refresh is not None and found.refresh.status == "failed"
        assert "not JSON" in str(found.refresh.clouds[0].refused)
        assert found.version == before and (await price(client))[2] != 0
