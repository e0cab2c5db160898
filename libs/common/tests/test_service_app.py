"""The app every service starts from: closed by default, errors as contracts, metrics, ids, limits, quiet logs."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import httpx
import pytest
from fastapi import FastAPI
from starlette.responses import StreamingResponse

from skyloom_common.clients.asgi import AsgiTransport
from skyloom_common.contracts.clusters import LaunchRequest
from skyloom_common.core.errors import ClusterDoesNotExist
from skyloom_common.service.app import create_service_app
from skyloom_common.service.auth import (
    Authenticator,
    CurrentCaller,
    ServiceTokenAuth,
    UserTokenAuth,
    token_hash,
)
from skyloom_common.service.logs import LineFormatter
from skyloom_common.service.responses import wire_response
from skyloom_common.service.shell import BodyLimit

TOKEN = "service-token-of-the-tests"


@dataclass(frozen=True)
class Ask:
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    count: int
    secret: int = 0


def make_app(
    auth: Authenticator | None = None, states: Mapping[str, str] | None = None, limit: int = 1000
) -> FastAPI:
    async def readiness() -> Mapping[str, str]:
        return states or {"store": "ok"}

    app = create_service_app(
        name="demo",
        version="1",
        auth=auth or ServiceTokenAuth(TOKEN),
        readiness=readiness,
        body_limit=BodyLimit(limit, {"/v1/big": 10 * limit}),
    )

    @app.get("/v1/who/{name}")
    async def who(name: str, caller: CurrentCaller) -> Any:
        return wire_response({"user": caller.user})

    @app.post("/v1/ask")
    async def ask(body: Ask) -> Any:
        return wire_response(body, 202)

    @app.post("/v1/launch")
    async def launch(body: LaunchRequest) -> Any:
        return wire_response(body)

    @app.post("/v1/big")
    async def big(body: dict[str, Any]) -> Any:
        return wire_response({"size": len(body["x"])})

    @app.get("/v1/missing")
    async def missing() -> Any:
        raise ClusterDoesNotExist("cluster 'x' does not exist", hint="sky status")

    @app.get("/v1/broken")
    async def broken() -> Any:
        raise RuntimeError("the secret reason")

    @app.get("/v1/torn")
    async def torn() -> Any:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"begin"
            raise ClusterDoesNotExist("gone in the middle")

        return StreamingResponse(pieces())

    return app


def client_of(app: FastAPI, token: str | None = TOKEN, **headers: str) -> httpx.AsyncClient:
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    return httpx.AsyncClient(transport=AsgiTransport(app), base_url="http://demo", headers=headers)


@pytest.fixture
def http() -> httpx.AsyncClient:
    return client_of(make_app())


async def test_health_is_open_and_says_little() -> None:
    http = client_of(make_app(), token=None)
    answer = await http.get("/healthz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok", "service": "demo"})
    ready = await http.get("/readyz")
    assert (ready.status_code, ready.json()["checks"]) == (200, {"store": "ok"})


async def test_readiness_gives_names_and_no_detail() -> None:
    http = client_of(make_app(states={"store": "password 'x' refused by db-1", "bus": "ok"}), token=None)
    answer = await http.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["checks"] == {"store": "unavailable", "bus": "ok"}
    assert "db-1" not in answer.text


@pytest.mark.parametrize("path", ["/metrics", "/openapi.json", "/v1/who/x", "/no/such/path", "/docs"])
@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN + "x", TOKEN[:-1]])
async def test_everything_else_needs_the_token(path: str, token: str | None) -> None:
    answer = await client_of(make_app(), token=token).get(path)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["code"] == "unauthenticated"
    assert TOKEN not in answer.text


async def test_the_user_is_whom_the_token_holder_names(http: httpx.AsyncClient) -> None:
    assert (await http.get("/v1/who/x", headers={"X-Skyloom-User": "alice"})).json() == {"user": "alice"}
    assert (await http.get("/v1/who/x")).json() == {"user": ""}
    refused = await http.get("/v1/who/x", headers={"X-Skyloom-User": "a" * 500})
    assert (refused.status_code, refused.json()["code"]) == (400, "invalid_request")


async def test_user_tokens_decide_who_somebody_is() -> None:
    auth = UserTokenAuth({token_hash("t-alice"): "alice"}, hint="ask somebody")
    http = client_of(make_app(auth), token="t-alice")
    # A user cannot say to be somebody else.
    assert (await http.get("/v1/who/x", headers={"X-Skyloom-User": "bob"})).json() == {"user": "alice"}
    for wrong in ("Bearer t-bob", "Basic t-alice", "t-alice"):
        answer = await client_of(make_app(auth), token=None).get(
            "/v1/who/x", headers={"Authorization": wrong}
        )
        assert (answer.status_code, answer.json()["hint"]) == (401, "ask somebody"), wrong


async def test_an_error_is_its_contract(http: httpx.AsyncClient) -> None:
    answer = await http.get("/v1/missing")
    assert answer.status_code == 404
    assert answer.json() == {
        "code": "cluster_does_not_exist",
        "message": "cluster 'x' does not exist",
        "hint": "sky status",
    }


async def test_a_fault_is_an_internal_error_without_its_words(
    http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await http.get("/v1/broken")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "secret reason" not in answer.text
    assert "the secret reason" in caplog.text


async def test_an_unknown_path_and_method_are_json(http: httpx.AsyncClient) -> None:
    nowhere = await http.get("/v1/nowhere")
    assert (nowhere.status_code, nowhere.json()["code"]) == (404, "not_found")
    wrong = await http.delete("/v1/ask")
    assert (wrong.status_code, wrong.json()["code"]) == (405, "method_not_allowed")


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        (b'{"count": "many"}', "count", "'many' is not valid"),
        (b"{}", "count", "missing"),
        (b'{"count": 1, "cuont": 2}', "cuont", "unknown field"),
        (b"{", "body", "not valid JSON"),
        (b"[]", "body", ""),
    ],
)
async def test_a_wrong_body_names_field_value_and_right_form(
    http: httpx.AsyncClient, body: bytes, field: str, words: str
) -> None:
    answer = await http.post("/v1/ask", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    assert answer.json()["details"]["field"] == field
    assert words in answer.json()["message"]


async def test_values_that_may_be_secret_are_not_repeated(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/ask", json={"count": 1, "secret": "hunter22"})
    assert answer.status_code == 400
    assert "hunter22" not in answer.text
    untyped = await http.post("/v1/ask", content=b'{"count": 1, "secret": "hunter22"}')
    assert untyped.status_code == 400
    assert "hunter22" not in untyped.text
    assert "Content-Type: application/json" in untyped.text


async def test_a_nested_problem_has_its_path(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/launch", json={"task": {"num_nodse": 2}})
    assert answer.json()["details"]["field"] == "task.num_nodse"


async def test_bodies_have_a_limit(http: httpx.AsyncClient) -> None:
    told = await http.post("/v1/ask", json={"count": 1, "x": "y" * 2000})
    assert (told.status_code, told.json()["code"]) == (413, "too_large")

    async def untold() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield b"y" * 500

    grown = await http.post("/v1/ask", content=untold(), headers={"Content-Type": "application/json"})
    assert (grown.status_code, grown.json()["code"]) == (413, "too_large")
    allowed = await http.post("/v1/big", json={"x": "y" * 2000})
    assert allowed.json() == {"size": 2000}


async def test_a_request_id_is_kept_or_made(http: httpx.AsyncClient) -> None:
    kept = await http.get("/v1/who/x", headers={"X-Request-ID": "abc-1"})
    assert kept.headers["x-request-id"] == "abc-1"
    for bad in ("a b", "x" * 65, "a;b"):
        made = await http.get("/v1/who/x", headers={"X-Request-ID": bad})
        assert made.headers["x-request-id"] != bad
        assert len(made.headers["x-request-id"]) == 16
    assert (await http.get("/v1/nowhere")).headers["x-request-id"]


async def test_metrics_are_by_route_and_not_by_path(http: httpx.AsyncClient) -> None:
    for name in ("a", "b"):
        await http.get(f"/v1/who/{name}")
    for number in range(3):
        await http.get(f"/v1/nowhere/{number}")
    text = (await http.get("/metrics")).text
    assert 'skyloom_http_requests_total{method="GET",route="/v1/who/{name}",status="200"} 2.0' in text
    assert 'skyloom_http_requests_total{method="GET",route="unmatched",status="404"} 3.0' in text
    assert 'skyloom_http_request_seconds_count{route="/v1/who/{name}"} 2.0' in text
    assert "nowhere/1" not in text


async def test_two_apps_of_one_process_count_for_themselves() -> None:
    first, second = client_of(make_app()), client_of(make_app())
    await first.get("/v1/who/x")
    assert "/v1/who" in (await first.get("/metrics")).text
    assert "/v1/who" not in (await second.get("/metrics")).text


async def test_no_token_query_or_body_is_logged(
    http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="skyloom")
    await http.get("/v1/who/x?password=hunter22")
    await http.post("/v1/ask", json={"count": 1, "secret": "hunter22"})
    await http.get("/v1/broken?key=hunter22")
    assert "path=/v1/who/x status=200" in caplog.text
    assert "hunter22" not in caplog.text
    assert TOKEN not in caplog.text


async def test_a_stream_that_breaks_is_torn_and_not_ended(http: httpx.AsyncClient) -> None:
    async with http.stream("GET", "/v1/torn") as answer:
        assert answer.status_code == 200
        with pytest.raises(httpx.ReadError):
            await answer.aread()


async def test_endless_answers_end_when_the_process_stops() -> None:
    app = make_app()

    @app.get("/v1/endless")
    async def endless() -> Any:
        async def pieces() -> AsyncIterator[bytes]:
            while True:
                yield b"x"
                await asyncio.sleep(0.01)

        return StreamingResponse(pieces())

    async with client_of(app).stream("GET", "/v1/endless") as answer:
        pieces = answer.aiter_raw()
        await anext(pieces)
        app.state.streams.cut()
        with pytest.raises(httpx.ReadError):
            async with asyncio.timeout(5):
                async for _ in pieces:
                    pass


async def test_openapi_has_our_contracts(http: httpx.AsyncClient) -> None:
    document = (await http.get("/openapi.json")).json()
    schema = document["paths"]["/v1/launch"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert schema["$ref"].endswith("/LaunchRequest")
    assert document["components"]["schemas"]["LaunchRequest"]["additionalProperties"] is False


@pytest.mark.parametrize(
    ("message", "hidden"),
    [
        ("Authorization: Bearer abcdefghijkl", "abcdefghijkl"),
        ("{'token': 'abcdefghijkl'}", "abcdefghijkl"),
        ("at postgresql://me:abcdefghijkl@db/x", "abcdefghijkl"),
        ("plain KNOWN-SECRET here", "KNOWN-SECRET"),
        ("password=abcdefghijkl&x=1", "abcdefghijkl"),
    ],
)
def test_the_formatter_hides_secrets(message: str, hidden: str) -> None:
    record = logging.LogRecord("x", logging.INFO, "f", 1, message, None, None)
    line = LineFormatter(("KNOWN-SECRET", "")).format(record)
    assert hidden not in line
    assert "***" in line


def test_the_formatter_keeps_what_is_no_secret_and_breaks_no_line() -> None:
    text = "the token is wrong\nfake 2026 INFO line"
    line = LineFormatter(()).format(logging.LogRecord("x", logging.INFO, "f", 1, text, None, None))
    assert "the token is wrong" in line
    assert "\n" not in line


def test_answers_are_compact_json() -> None:
    assert json.loads(bytes(wire_response(Ask(3)).body)) == {"count": 3}
