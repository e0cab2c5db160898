"""The gateway in front of a provisioner in memory: who may ask, what goes on unchanged, what streams, what is refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import pytest

from skyloom_common.clients.asgi import AsgiTransport
from skyloom_common.clients.optimizer import OptimizerClient
from skyloom_common.clients.provisioner import ProvisionerClient
from skyloom_common.contracts.clusters import Cluster, ClusterStatus
from skyloom_common.contracts.operations import OperationStatus
from skyloom_common.core.errors import ClusterNotUp
from skyloom_common.core.sse import SseReader
from skyloom_common.service.auth import UserTokenAuth, token_hash
from skyloom_common.testing.provisioner import FakeProvisioner
from skyloom_gateway.main import create_app
from skyloom_gateway.settings import GatewaySettings

SERVICE = "service-token-of-the-tests"
ALICE, BOB, ZOE = "token-of-alice", "token-of-bob", "token-of-zoe"


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0)


def _inner(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=AsgiTransport(app), base_url="http://inner", headers={"Authorization": f"Bearer {SERVICE}"}
    )


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[FakeProvisioner, Path, Any]:
    """Making two apps takes longer than most tests: all use these, each finds them as new."""
    home = tmp_path_factory.mktemp("gateway")
    fake, log = FakeProvisioner(SERVICE), home / "server.log"
    settings = GatewaySettings(
        home=home, service_token=SERVICE, database_url="sqlite:///x.db", server_log=log
    )
    app = create_app(
        settings,
        provisioner=ProvisionerClient(_inner(fake.app)),
        optimizer=OptimizerClient(_inner(fake.app)),
        auth=UserTokenAuth(
            {token_hash(ALICE): "alice", token_hash(BOB): "bob", token_hash(ZOE): "Zoë"}, hint="sky api login"
        ),
    )
    return fake, log, app


@pytest.fixture
def provisioner(shared: tuple[FakeProvisioner, Path, Any]) -> FakeProvisioner:
    shared[0].reset()
    return shared[0]


@pytest.fixture
def server_log(shared: tuple[FakeProvisioner, Path, Any]) -> Path:
    shared[1].unlink(missing_ok=True)
    return shared[1]


@pytest.fixture
def gateway(shared: tuple[FakeProvisioner, Path, Any], provisioner: FakeProvisioner, server_log: Path) -> Any:
    return shared[2]


@pytest.fixture
def http(gateway: Any) -> httpx.AsyncClient:
    return client_of(gateway)


def client_of(gateway: Any, token: str | None = ALICE) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.AsyncClient(transport=AsgiTransport(gateway), base_url="http://gw/api/v1", headers=headers)


PATHS = [
    ("GET", "/info"), ("GET", "/clusters"), ("POST", "/clusters/c/launch"), ("GET", "/clusters/c/jobs"),
    ("GET", "/clusters/c/jobs/1/logs"), ("GET", "/clusters/c/jobs/1/archive"), ("GET", "/operations"),
    ("GET", "/operations/x/events"), ("POST", "/operations/x/cancel"), ("PUT", "/files/chunks"),
    ("GET", "/server-logs"), ("GET", "/accelerators"), ("POST", "/plans"), ("GET", "/nothing/here"),
    ("GET", "/catalog"), ("POST", "/catalog/refresh"), ("GET", "/prices/history"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), PATHS)
@pytest.mark.parametrize("token", [None, "wrong", SERVICE])
async def test_nothing_answers_without_a_users_token(
    gateway: Any, provisioner: FakeProvisioner, method: str, path: str, token: str | None
) -> None:
    answer = await client_of(gateway, token).request(method, path)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
    assert answer.json()["hint"] == "sky api login"
    assert provisioner.calls == []


async def test_a_status_call_goes_on_as_it_came_and_comes_back_as_it_is(
    http: httpx.AsyncClient, provisioner: FakeProvisioner
) -> None:
    provisioner.clusters["c"] = Cluster("1", "c", ClusterStatus.UP, "alice", 1, 5.0)
    answer = await http.get("/clusters?name=c*&name=d&refresh=1")
    assert answer.json()["clusters"][0]["name"] == "c"
    [call] = provisioner.calls
    assert (call.path, call.query, call.user) == ("/v1/clusters", "name=c*&name=d&refresh=1", "alice")


async def test_who_asks_is_the_tokens_owner_whatever_headers_say(
    gateway: Any, provisioner: FakeProvisioner
) -> None:
    await client_of(gateway, BOB).get("/clusters", headers={"X-Skyloom-User": "alice"})
    assert provisioner.calls[0].user == "bob"


async def test_a_users_name_need_not_be_ascii(gateway: Any, provisioner: FakeProvisioner) -> None:
    answer = await client_of(gateway, ZOE).post("/clusters/c/stop", json={})
    assert answer.json()["user"] == "Zoë"
    assert provisioner.calls[0].user == "Zoë"


@pytest.mark.parametrize("header", ["Last-Event-ID", "Content-Type", "Idempotency-Key", "X-Request-ID"])
async def test_odd_bytes_in_headers_are_no_fault_of_ours(
    http: httpx.AsyncClient, provisioner: FakeProvisioner, header: str
) -> None:
    for method, path in (
        ("GET", "/operations/x/events"),
        ("PUT", "/files/chunks"),
        ("POST", "/clusters/c/stop"),
    ):
        answer = await http.request(method, path, content=b"{}", headers={header: b"\xb2\xff"})
        assert answer.status_code < 500, path


@pytest.mark.parametrize(
    "query", ["name=%00", "name=%0d%0aX-Skyloom-User:%20bob", "name=" + "x" * 70_000, "name=\xff", "&&==&"]
)
async def test_odd_queries_are_no_fault_of_ours(
    gateway: Any, provisioner: FakeProvisioner, query: str
) -> None:
    answer = await _raw(gateway, b"/api/v1/clusters?" + query.encode("latin-1"))
    assert answer.status_code < 500
    assert all(call.user == "alice" for call in provisioner.calls)


@pytest.mark.parametrize("verb", ["launch", "exec", "start", "stop", "down", "autostop"])
async def test_a_mutating_call_is_an_operation_with_the_callers_key(
    http: httpx.AsyncClient, provisioner: FakeProvisioner, verb: str
) -> None:
    body = {"task": {"run": "echo hi", "envs": {"Ä": "ö"}}} if verb in ("launch", "exec") else {}
    answer = await http.post(f"/clusters/my-c/{verb}", json=body, headers={"Idempotency-Key": "k-1"})
    assert (answer.status_code, answer.json()["kind"]) == (202, verb)
    [call] = provisioner.calls
    assert (call.path, call.key, json.loads(call.body)) == (f"/v1/clusters/my-c/{verb}", "k-1", body)


async def test_a_call_without_a_key_gets_one(http: httpx.AsyncClient, provisioner: FakeProvisioner) -> None:
    await http.post("/clusters/c/stop", json={})
    await http.post("/clusters/c/stop", json={})
    keys = {call.key for call in provisioner.calls}
    assert len(keys) == 2
    assert all(len(key) == 26 for key in keys)


@pytest.mark.parametrize("key", ["with blank", "x" * 201])
async def test_a_bad_key_is_refused(http: httpx.AsyncClient, provisioner: FakeProvisioner, key: str) -> None:
    answer = await http.post("/clusters/c/stop", json={}, headers={"Idempotency-Key": key})
    assert answer.status_code == 400
    assert provisioner.calls == []


async def test_a_wrong_body_stops_here(http: httpx.AsyncClient, provisioner: FakeProvisioner) -> None:
    answer = await http.post("/clusters/c/launch", json={"task": {}, "retry_until_upp": True})
    assert (answer.status_code, answer.json()["details"]["field"]) == (400, "retry_until_upp")
    assert provisioner.calls == []


async def test_an_error_behind_comes_through_as_it_is(
    http: httpx.AsyncClient, provisioner: FakeProvisioner
) -> None:
    error = ClusterNotUp("cluster 'c' is stopped", hint="sky start c", details={"status": "STOPPED"})
    provisioner.fail_next(error)
    answer = await http.post("/clusters/c/exec", json={"task": {}})
    assert (answer.status_code, answer.json()) == (409, error.to_wire())


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "%2e%2e",
        "a%2Fb",
        "..%2F..%2Fv1",
        "a;b",
        "a b",
        "a%00b",
        "-x",
        "$(id)",
        "x" * 300,
        "%C3%A4",
        "a..b",
    ],
)
@pytest.mark.parametrize("rest", ["jobs", "jobs/1/logs", "provision-logs"])
async def test_names_that_climb_or_inject_reach_nobody(
    gateway: Any, provisioner: FakeProvisioner, name: str, rest: str
) -> None:
    answer = await _raw(gateway, f"/api/v1/clusters/{name}/{rest}".encode())
    assert answer.status_code in (400, 404)
    assert answer.json()["code"] in ("invalid_request", "not_found")
    assert provisioner.calls == []


@pytest.mark.parametrize(
    "path",
    ["clusters/c/jobs/..%2f1/logs", "clusters/c/jobs/1;x/logs", "clusters/c/jobs/-1/logs", "operations/%2e%2e",
     "operations/a%2Fb/events", "operations/*/events", "operations/a%20b", "../../v1/clusters", "%2e%2e/v1/clusters"],
)  # fmt: skip
async def test_ids_that_climb_reach_nobody(gateway: Any, provisioner: FakeProvisioner, path: str) -> None:
    answer = await _raw(gateway, f"/api/v1/{path}".encode())
    assert answer.status_code in (400, 404)
    assert provisioner.calls == []


async def _raw(app: Any, target: bytes) -> httpx.Response:
    """As a server hands it over, without any client's tidying of dots and bytes."""
    path, _, query = target.partition(b"?")
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    headers = [(b"authorization", f"Bearer {ALICE}".encode())]
    scope = {"type": "http", "method": "GET", "path": unquote(path.decode("latin-1")), "raw_path": path,
             "query_string": query, "headers": headers, "http_version": "1.1", "scheme": "http", "root_path": "",
             "server": ("gw", 80), "client": ("127.0.0.1", 1)}  # fmt: skip
    await app(scope, receive, send)
    return httpx.Response(
        sent[0]["status"], content=b"".join(message.get("body", b"") for message in sent[1:])
    )


async def test_bodies_are_limited(http: httpx.AsyncClient, provisioner: FakeProvisioner) -> None:
    answer = await http.post("/clusters/c/launch", content=b"x" * (9 << 20))
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    assert provisioner.calls == []


# --- streams ---


async def _operation(http: httpx.AsyncClient) -> str:
    return str((await http.post("/clusters/c/launch", json={"task": {}})).json()["id"])


class Follower:
    """Reads an operation's events until told otherwise."""

    def __init__(self, http: httpx.AsyncClient, path: str, **headers: str) -> None:
        self._http, self._path, self._headers = http, path, headers
        self.seen: list[int] = []
        self.ended = False

    async def run(self) -> None:
        reader = SseReader()
        async with self._http.stream("GET", self._path, headers=self._headers) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert answer.headers["cache-control"] == "no-store"
            async for piece in answer.aiter_raw():
                self.seen += [int(event.id) for event in reader.feed(piece)]
        self.ended = True


async def test_events_come_while_they_happen_and_end_with_the_operation(
    http: httpx.AsyncClient, provisioner: FakeProvisioner
) -> None:
    operation = await _operation(http)
    follower = Follower(http, f"/operations/{operation}/events")
    task = asyncio.create_task(follower.run())
    for number, phase in enumerate(("planning", "provisioning"), 1):
        await provisioner.add_event(operation, phase)
        await until(lambda number=number: follower.seen == list(range(1, number + 1)))  # type: ignore[misc]
    await provisioner.add_event(operation, "done", OperationStatus.SUCCEEDED)
    await asyncio.wait_for(task, 5)
    assert follower.seen == [1, 2, 3]


@pytest.mark.parametrize("how", ["header", "query"])
async def test_events_go_on_where_a_reader_stopped(
    http: httpx.AsyncClient, provisioner: FakeProvisioner, how: str
) -> None:
    operation = await _operation(http)
    for phase in ("planning", "provisioning", "syncing"):
        await provisioner.add_event(operation, phase)
    await provisioner.add_event(operation, "done", OperationStatus.SUCCEEDED)
    path = f"/operations/{operation}/events"
    follower = (
        Follower(http, path + "?after=2")
        if how == "query"
        else Follower(http, path, **{"Last-Event-ID": "2"})
    )
    await asyncio.wait_for(follower.run(), 5)
    assert follower.seen == [3, 4]


async def test_a_reader_that_leaves_leaves_nothing_open(
    http: httpx.AsyncClient, provisioner: FakeProvisioner
) -> None:
    operation = await _operation(http)
    task = asyncio.create_task(Follower(http, f"/operations/{operation}/events").run())
    await until(lambda: provisioner.streams_open == 1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await until(lambda: provisioner.streams_open == 0)


async def test_a_log_streams_with_its_offset_and_query(
    http: httpx.AsyncClient, provisioner: FakeProvisioner
) -> None:
    provisioner.log = b"0123456789"
    async with http.stream("GET", "/clusters/c/jobs/latest/logs?follow=1&offset=4&rank=0") as answer:
        assert answer.headers["x-log-offset"] == "4"
        pieces = answer.aiter_raw()
        assert await anext(pieces) == b"456789"
        await provisioner.append_log(b"more")
        assert await anext(pieces) == b"more"
        await provisioner.append_log(b"", ended=True)
        assert [piece async for piece in pieces] == []
    call = provisioner.calls[-1]
    assert (call.path, call.query) == ("/v1/clusters/c/jobs/latest/logs", "follow=1&offset=4&rank=0")


async def test_an_error_instead_of_a_stream_is_an_error(
    http: httpx.AsyncClient, provisioner: FakeProvisioner
) -> None:
    answer = await http.get("/operations/nothing/events")
    assert (answer.status_code, answer.json()["code"]) == (404, "operation_does_not_exist")


async def test_an_upload_goes_on_while_it_comes_in(
    http: httpx.AsyncClient, provisioner: FakeProvisioner
) -> None:
    gate = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"first"
        await gate.wait()
        yield b"second"

    task = asyncio.create_task(http.put("/files/chunks", content=body()))
    await until(lambda: provisioner.received == [b"first"])
    gate.set()
    answer = await task
    assert answer.json() == {"received": 2, "stored": 2}
    assert provisioner.received == [b"first", b"second"]


async def test_an_upload_that_breaks_off_ends_behind_too(
    http: httpx.AsyncClient, provisioner: FakeProvisioner
) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"first"
        raise ConnectionError

    with pytest.raises(httpx.ReadError):
        await asyncio.wait_for(http.put("/files/chunks", content=body()), 5)


# --- the server itself ---


async def test_info_tells_of_all_services(http: httpx.AsyncClient, provisioner: FakeProvisioner) -> None:
    info = (await http.get("/info")).json()
    assert (info["status"], info["user"], info["api_version"], info["store"]) == (
        "healthy",
        "alice",
        1,
        "sqlite",
    )
    assert info["services"] == {"gateway": "ok", "optimizer": "ok", "provisioner": "ok"}
    provisioner.state = "disk full at /var/lib/x"
    sick = (await http.get("/info")).json()
    assert sick["status"] == "unhealthy"
    assert sick["services"]["provisioner"] == "not ready: store unavailable"


async def test_readiness_follows_the_services(gateway: Any, provisioner: FakeProvisioner) -> None:
    http = httpx.AsyncClient(transport=AsgiTransport(gateway), base_url="http://gw")
    assert (await http.get("/readyz")).status_code == 200
    provisioner.state = "broken"
    assert (await http.get("/readyz")).status_code == 503


async def test_a_service_that_is_away_is_unavailable(tmp_path: Path) -> None:
    settings = GatewaySettings(
        home=tmp_path, service_token=SERVICE, database_url="sqlite:///x.db",
        provisioner_url="http://127.0.0.1:1", optimizer_url="http://127.0.0.1:1",
    )  # fmt: skip
    http = client_of(create_app(settings, auth=UserTokenAuth({token_hash(ALICE): "alice"})))
    answer = await http.get("/clusters")
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert "the provisioner cannot be reached" in answer.json()["message"]
    info = (await http.get("/info")).json()
    assert info["services"]["provisioner"].startswith("cannot be reached")


@pytest.mark.parametrize(
    ("query", "shown"), [("", "1\n2\n3\n"), ("?tail=2", "2\n3\n"), ("?tail=0", ""), ("?tail=9", "1\n2\n3\n")]
)
async def test_the_servers_log(http: httpx.AsyncClient, server_log: Path, query: str, shown: str) -> None:
    server_log.write_text("1\n2\n3\n")
    answer = await http.get(f"/server-logs{query}")
    assert (answer.status_code, answer.text) == (200, shown)


async def test_the_servers_log_is_followed_across_a_rotation(
    http: httpx.AsyncClient, server_log: Path
) -> None:
    server_log.write_text("old\n")
    async with http.stream("GET", "/server-logs?follow=1&tail=1") as answer:
        pieces = answer.aiter_raw()
        assert await anext(pieces) == b"old\n"
        server_log.rename(server_log.with_suffix(".1"))
        server_log.write_text("new\n")
        assert await asyncio.wait_for(anext(pieces), 5) == b"new\n"


async def test_no_log_file_says_where_to_look(http: httpx.AsyncClient) -> None:
    answer = await http.get("/server-logs")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert answer.json()["hint"]


async def test_a_long_last_line_is_found(http: httpx.AsyncClient, server_log: Path) -> None:
    server_log.write_text("a\n" + "x" * 200_000 + "\nb\n")
    assert (await http.get("/server-logs?tail=2")).text == "x" * 200_000 + "\nb\n"
