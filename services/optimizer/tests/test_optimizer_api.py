"""The service over its real app: routes, errors, the outcome store, restarts."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from skyloom_common.contracts.catalog import CatalogInfo
from skyloom_common.contracts.dag import DagPlan
from skyloom_common.contracts.fleet import FleetPlan
from skyloom_common.contracts.plan import AcceleratorList, LaunchOutcome, Plan
from skyloom_common.contracts.task.model import ResourcesSpec
from skyloom_common.core import wire
from skyloom_common.core.clock import SystemClock
from skyloom_common.core.errors import InvalidRequest
from skyloom_common.service.env import SettingsError
from skyloom_common.service.run import lifespan_of
from skyloom_common.store import Database, ensure_schema
from skyloom_optimizer.main import SCHEMA, create_app, openapi_app
from skyloom_optimizer.outcomes import MemoryKeeper, OutcomeStore
from skyloom_optimizer.settings import OptimizerSettings
from skyloom_optimizer.testing import at_least, gpu, request

TOKEN = "a-token-of-the-tests-0123456789"


def settings_in(folder: Path) -> OptimizerSettings:
    environ = {"SKYLOOM_HOME": str(folder), "SKYLOOM_SERVICE_TOKEN": TOKEN}
    return OptimizerSettings.from_env(environ)


@contextlib.asynccontextmanager
async def client_of(folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(settings_in(folder))
    async with lifespan_of(app):
        transport = httpx.ASGITransport(app=app)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with httpx.AsyncClient(
            transport=transport, base_url="http://optimizer", headers=headers
        ) as client:
            yield client


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(tmp_path) as http:
        yield http


def outcome(**more: Any) -> dict[str, Any]:
    place = {"cloud": "civo", "region": "global", "zone": "", "instance_type": "gpu-a100-40-xlarge"}
    return {**place, "use_spot": False, "result": "insufficient_capacity", "at": time.time(), **more}


async def first_cloud(client: httpx.AsyncClient) -> str:
    body = wire.to_wire(request(ResourcesSpec(accelerators=(gpu("A100", 8),))))
    response = await client.post("/v1/plans", json=body)
    assert response.status_code == 200, response.text
    answer = wire.loads(Plan, response.content)
    return answer.candidates[0].offer.cloud


async def test_a_plan_over_http(client: httpx.AsyncClient) -> None:
    body = wire.to_wire(request(ResourcesSpec(cpus=at_least(8)), num_nodes=2))
    response = await client.post("/v1/plans", json=body)
    assert response.status_code == 200
    answer = wire.loads(Plan, response.content)
    assert len(answer.candidates) == 50
    assert answer.candidates[0].num_nodes == 2
    assert answer.catalog_version


async def test_an_impossible_request_is_an_answer_with_hints(client: httpx.AsyncClient) -> None:
    body = wire.to_wire(request(ResourcesSpec(accelerators=(gpu("A100", 64),))))
    answer = wire.loads(Plan, (await client.post("/v1/plans", json=body)).content)
    assert answer.candidates == ()
    assert "use num_nodes: 4" in answer.hints[0]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"task": {"resources": {"accelerator": "A100"}}}, 400, "accelerator"),
        ({"task": {"resources": {"accelerators": [{"name": "A10O"}]}}}, 400, "is not a known accelerator"),
        ({"task": {}, "max_candidates": "many"}, 400, "max_candidates"),
        ({"task": {}, "max_candidates": 0}, 400, "max_candidates: 0"),
        ({}, 400, "task"),
    ],
)
async def test_bad_requests(client: httpx.AsyncClient, body: Any, status: int, message: str) -> None:
    response = await client.post("/v1/plans", json=body)
    assert response.status_code == status
    assert message in response.json()["message"]


async def test_every_route_needs_the_token(client: httpx.AsyncClient) -> None:
    for method, path in (("POST", "/v1/plans"), ("GET", "/v1/catalog"), ("POST", "/v1/outcomes")):
        response = await client.request(method, path, headers={"Authorization": "Bearer wrong"})
        assert response.status_code == 401


async def test_accelerators(client: httpx.AsyncClient) -> None:
    overview = await client.get("/v1/accelerators")
    assert any(row.accelerator == "A100" for row in wire.loads(AcceleratorList, overview.content).summaries)
    params = {"name": "a100", "count": "8", "cloud": "aws", "region": "us-east-1"}
    detail = wire.loads(AcceleratorList, (await client.get("/v1/accelerators", params=params)).content)
    assert [row.instance_type for row in detail.offers] == ["p4d.24xlarge"]
    assert (await client.get("/v1/accelerators", params={"count": "x"})).status_code == 400


async def test_catalog(client: httpx.AsyncClient) -> None:
    info = wire.loads(CatalogInfo, (await client.get("/v1/catalog")).content)
    assert info.offers > 190_000
    assert info.sources


async def test_an_outcome_changes_the_next_plan_and_survives_a_restart(tmp_path: Path) -> None:
    async with client_of(tmp_path) as client:
        before = await first_cloud(client)
        assert before == "civo"
        assert (await client.post("/v1/outcomes", json=outcome(id="one"))).json() == {"recorded": True}
        assert await first_cloud(client) != before
    async with client_of(tmp_path) as client:
        assert await first_cloud(client) != before
        assert (await client.post("/v1/outcomes", json=outcome(id="one"))).json() == {"recorded": False}


async def test_bad_outcomes_are_refused(client: httpx.AsyncClient) -> None:
    for bad in ({"result": ""}, {"cloud": "x" * 65}, {"colour": "red"}):
        assert (await client.post("/v1/outcomes", json=outcome(**bad))).status_code == 400


async def test_health_and_readiness(client: httpx.AsyncClient) -> None:
    assert (await client.get("/healthz")).json()["service"] == "optimizer"
    assert (await client.get("/readyz")).json()["checks"] == {"store": "ok"}


async def test_planning_goes_on_without_the_store(tmp_path: Path) -> None:
    """The table is missing, as after a lost database: the memory is empty, plans still come."""
    database = Database(f"sqlite:///{tmp_path}/empty.db")
    keeper = MemoryKeeper(OutcomeStore(database), SystemClock())
    assert (await keeper.current()).penalties == {}
    await database.close()


async def test_outcomes_are_pruned_and_read_by_age(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/outcomes.db")
    await ensure_schema(database, SCHEMA)
    store = OutcomeStore(database)
    for number, at in enumerate((10.0, 20.0, 30.0)):
        await store.record(LaunchOutcome("red", "r1", "", "m8", False, "ok", at, id=str(number)))
    assert [item.at for item in await store.since(20.0)] == [20.0, 30.0]
    assert await store.prune(before=30.0) == 2
    assert [item.at for item in await store.since(0.0)] == [30.0]
    with pytest.raises(InvalidRequest, match="at: nan is not a time"):
        await store.record(LaunchOutcome("red", "r1", "", "m8", False, "ok", float("nan")))
    await database.close()


async def test_the_migrations_make_the_same_tables(tmp_path: Path) -> None:
    """A database made by Alembic and one made from the tables have the same columns and indexes."""
    from alembic import command
    from alembic.config import Config
    from sqlalchemy import Connection, inspect

    def migrate(connection: Connection) -> None:
        config = Config()
        config.set_main_option("script_location", str(SCHEMA.migrations))
        config.attributes.update(connection=connection, schema=SCHEMA)
        command.upgrade(config, "head")

    def shape(connection: Connection) -> Any:
        inspector = inspect(connection)
        return {
            table: (
                [
                    (item["name"], str(item["type"]), item["nullable"])
                    for item in inspector.get_columns(table)
                ],
                sorted(str(index["name"]) for index in inspector.get_indexes(table)),
            )
            for table in inspector.get_table_names()
        }

    migrated, fresh = (Database(f"sqlite:///{tmp_path}/{name}.db") for name in ("migrated", "fresh"))
    async with migrated.write() as connection:
        await connection.run_sync(migrate)
    await ensure_schema(fresh, SCHEMA)
    async with migrated.read() as one, fresh.read() as other:
        assert await one.run_sync(shape) == await other.run_sync(shape)
    await ensure_schema(migrated, SCHEMA)
    await migrated.close()
    await fresh.close()


def test_openapi_needs_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SKYLOOM_SERVICE_TOKEN", raising=False)
    paths = openapi_app().openapi()["paths"]
    ours = {
        "/v1/plans",
        "/v1/plans/dag",
        "/v1/plans/fleet",
        "/v1/accelerators",
        "/v1/catalog",
        "/v1/outcomes",
    }
    assert ours <= set(paths)


def test_settings_name_what_is_wrong(tmp_path: Path) -> None:
    environ = {"SKYLOOM_HOME": str(tmp_path), "SKYLOOM_SERVICE_TOKEN": TOKEN, "SKYLOOM_CATALOG": "/no/such"}
    with pytest.raises(SettingsError, match="SKYLOOM_CATALOG: '/no/such' is not a file"):
        OptimizerSettings.from_env(environ)


async def test_older_outcomes_are_summed_up_and_still_count(tmp_path: Path) -> None:
    clock = SystemClock()
    database = Database(f"sqlite:///{tmp_path}/outcomes.db")
    await ensure_schema(database, SCHEMA)
    store = OutcomeStore(database)
    for number in range(30):
        old = outcome(id=f"old{number}", at=clock.now() - 5 * 3600 - number, use_spot=True, zone="z")
        await store.record(LaunchOutcome(**old))
    gone = outcome(
        id="gone", result="interrupted", ran_seconds=600.0, at=clock.now() - 4 * 3600, use_spot=True, zone="z"
    )
    await store.record(LaunchOutcome(**gone))
    summed = await store.summed(0.0, clock.now() - 3600)
    assert sum(item.count for item in summed) == 31 and len(summed) <= 3
    memory = await MemoryKeeper(store, clock).current()
    place = ("civo", "global", "z", "gpu-a100-40-xlarge", True)
    assert memory.chance(*place) < 0.4
    assert memory.capacity.interruptions_per_hour(*place, 0.001) > 0.01
    await database.close()


async def test_graphs_and_fleets_over_http(client: httpx.AsyncClient) -> None:
    task = wire.to_wire(request(ResourcesSpec(cpus=at_least(8))).task)
    body = {
        "tasks": [{"name": "a", "task": task}, {"name": "b", "task": task}],
        "edges": [{"source": "a", "target": "b"}],
    }
    dag = wire.loads(DagPlan, (await client.post("/v1/plans/dag", json=body)).content)
    assert len(dag.placements) == 2 and dag.proof is not None and dag.proof.optimal
    cloud = dag.placements[0].candidate.offer.cloud
    fleet_body = {
        "tasks": [{"name": "a", "task": task, "count": 5}],
        "quotas": [{"name": "q", "limit": 3, "cloud": cloud}],
    }
    fleet = wire.loads(FleetPlan, (await client.post("/v1/plans/fleet", json=fleet_body)).content)
    assert sorted(group.count for group in fleet.groups) == [2, 3]
    wrong = await client.post("/v1/plans/fleet", json={"tasks": [], "quota": []})
    assert wrong.status_code == 400
