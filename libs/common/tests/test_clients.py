"""Clients over the in-process transport: real streaming, back-pressure, cancellation, errors as classes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from skyloom_common.clients.agent import AgentClient
from skyloom_common.clients.asgi import AsgiTransport
from skyloom_common.clients.base import ServiceClient
from skyloom_common.clients.optimizer import OptimizerClient
from skyloom_common.clients.provisioner import ProvisionerClient
from skyloom_common.contracts.agent import Heartbeat
from skyloom_common.contracts.clusters import StopRequest
from skyloom_common.contracts.operations import OperationEvent
from skyloom_common.contracts.plan import LaunchOutcome
from skyloom_common.core.errors import (
    AgentUnreachable,
    ClusterNotUp,
    InsufficientCapacity,
    InvalidRequest,
    RemoteError,
    Unavailable,
)
from skyloom_common.core.sse import SseReader
from skyloom_common.core.wire import dumps

App = Callable[[Any, Any, Any], Any]


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0)


def http_of(app: App) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=AsgiTransport(app, "demo"), base_url="http://demo")


def answers(body: bytes, status: int = 200, seen: list[dict[str, Any]] | None = None) -> App:
    """An app that reads the request and answers with `body`."""

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        content, more = b"", True
        while more:
            message = await receive()
            content, more = content + message["body"], message["more_body"]
        if seen is not None:
            seen.append({**scope, "body": content})
        await send({"type": "http.response.start", "status": status, "headers": [(b"x-a", b"1")]})
        await send({"type": "http.response.body", "body": body})

    return app


class Streaming:
    """An app that streams numbers and notes what happens to it."""

    def __init__(self) -> None:
        self.sent = 0
        self.cancelled = False
        self.disconnected = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        watching = asyncio.ensure_future(self._watch(receive))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while True:
                await send({"type": "http.response.body", "body": b"%d\n" % self.sent, "more_body": True})
                self.sent += 1
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        finally:
            watching.cancel()

    async def _watch(self, receive: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            continue
        self.disconnected.set()


async def test_a_call_brings_method_path_query_headers_and_body() -> None:
    seen: list[dict[str, Any]] = []
    answer = await http_of(answers(b"ok", 201, seen)).post(
        "/v1/a%2Fb/c?x=1&x=2", content=b"body", headers={"X-Thing": "t"}
    )
    assert (answer.status_code, answer.content, answer.headers["x-a"]) == (201, b"ok", "1")
    [scope] = seen
    assert (scope["method"], scope["path"], scope["raw_path"]) == ("POST", "/v1/a/b/c", b"/v1/a%2Fb/c")
    assert (scope["query_string"], scope["body"]) == (b"x=1&x=2", b"body")
    assert (b"x-thing", b"t") in scope["headers"]
    assert (b"host", b"demo") in scope["headers"]


async def test_an_answer_begins_before_it_ends_and_its_sender_waits_for_the_reader() -> None:
    app = Streaming()
    async with http_of(app).stream("GET", "/") as answer:
        pieces = answer.aiter_raw()
        assert await anext(pieces) == b"0\n"
        for _ in range(100):
            await asyncio.sleep(0)
        # One piece of room, one in the sender's hand: it cannot run ahead.
        assert app.sent <= 3
        assert await anext(pieces) == b"1\n"


async def test_leaving_a_stream_cancels_its_app() -> None:
    app = Streaming()
    async with http_of(app).stream("GET", "/") as answer:
        await anext(answer.aiter_raw())
    await until(lambda: app.cancelled)


async def test_a_cancelled_reader_cancels_the_app() -> None:
    app = Streaming()

    async def read() -> None:
        async with http_of(app).stream("GET", "/") as answer:
            async for _ in answer.aiter_raw():
                pass

    task = asyncio.create_task(read())
    await until(lambda: app.sent > 5)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert app.cancelled


async def test_a_call_that_has_not_answered_is_not_cut_in_two() -> None:
    """A caller who gave up must not leave half a write behind: behind a socket the handler would go on, too."""
    entered, release, finished = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        entered.set()
        await release.wait()
        finished.set()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    task = asyncio.create_task(http_of(app).get("/"))
    await entered.wait()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    release.set()
    async with asyncio.timeout(5):
        await finished.wait()


async def test_closing_the_transport_ends_what_still_runs() -> None:
    entered = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        entered.set()
        await asyncio.Event().wait()

    transport = AsgiTransport(app)
    http = httpx.AsyncClient(transport=transport, base_url="http://demo")
    task = asyncio.create_task(http.get("/"))
    await entered.wait()
    async with asyncio.timeout(5):
        await transport.aclose()
        with pytest.raises(httpx.ReadError):
            await task


async def test_a_request_body_is_pulled_as_the_app_reads() -> None:
    made: list[int] = []
    may_read = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        for number in range(50):
            made.append(number)
            yield b"x"

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await may_read.wait()
        more, size = True, 1
        while more:
            message = await receive()
            more, size = message["more_body"], size + len(message["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": str(size).encode()})

    task = asyncio.create_task(http_of(app).put("/", content=body()))
    await until(lambda: bool(made))
    for _ in range(50):
        await asyncio.sleep(0)
    assert len(made) <= 2
    may_read.set()
    assert (await task).content == b"50"


async def test_a_sender_that_breaks_off_is_a_client_that_went_away() -> None:
    got: list[str] = []

    async def body() -> AsyncIterator[bytes]:
        yield b"x"
        raise ConnectionError("the sender's own fault")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while True:
            message = await receive()
            got.append(message["type"])
            if message["type"] == "http.disconnect":
                return

    with pytest.raises(httpx.ReadError):
        await http_of(app).put("/", content=body())
    assert got == ["http.request", "http.disconnect"]


async def test_an_app_that_fails_is_a_read_error() -> None:
    async def before(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("boom")

    with pytest.raises(httpx.ReadError, match="boom"):
        await http_of(before).get("/")

    async def midway(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})

    with pytest.raises(httpx.ReadError):
        await http_of(midway).get("/")


# --- the typed clients ---


async def test_an_error_comes_back_as_its_class() -> None:
    error = InsufficientCapacity("sold out", hint="try another", details={"blocks": "zone"})
    client = OptimizerClient(http_of(answers(dumps(error.to_wire()), 502)))
    with pytest.raises(InsufficientCapacity) as caught:
        await client.accelerators(name="H100")
    assert (caught.value.hint, caught.value.details) == ("try another", {"blocks": "zone"})


@pytest.mark.parametrize(("status", "kind"), [(500, RemoteError), (503, Unavailable), (404, RemoteError)])
async def test_an_answer_that_is_no_error_of_ours_is_told_in_its_words(
    status: int, kind: type[Exception]
) -> None:
    client = ProvisionerClient(http_of(answers(b"<html>proxy</html>", status)))
    with pytest.raises(kind, match=f"the provisioner answered with status {status}: <html>proxy"):
        await client.clusters()


async def test_an_answer_of_another_form_is_not_believed() -> None:
    client = ProvisionerClient(http_of(answers(b'{"clusters": 7}')))
    with pytest.raises(RemoteError, match="not a ClusterList"):
        await client.clusters()


async def test_a_service_that_is_away_is_named() -> None:
    async with httpx.AsyncClient(base_url="http://127.0.0.1:1") as http:
        with pytest.raises(Unavailable, match=r"the optimizer cannot be reached at http://127\.0\.0\.1:1"):
            await OptimizerClient(http).accelerators()
        with pytest.raises(AgentUnreachable):
            await AgentClient(http).info()
        assert await AgentClient(http).healthy() is False


async def test_a_mutating_call_has_a_key_and_a_user() -> None:
    seen: list[dict[str, Any]] = []
    body = b'{"id":"1","kind":"stop","target":"c","user":"u","status":"PENDING","created_at":1}'
    client = ProvisionerClient(http_of(answers(body, 202, seen)))
    await client.stop("c", StopRequest(purge=True), user="alice", key="k1")
    await client.stop("c", StopRequest())
    headers = dict(seen[0]["headers"])
    assert (headers[b"idempotency-key"], headers[b"x-skyloom-user"]) == (b"k1", b"alice")
    assert seen[0]["body"] == b'{"purge":true}'
    assert len(dict(seen[1]["headers"])[b"idempotency-key"]) == 26


@pytest.mark.parametrize("name", ["../x", "a/b", "a;b", "", "a?b", "x" * 300])
async def test_a_bad_cluster_name_never_becomes_a_path(name: str) -> None:
    seen: list[dict[str, Any]] = []
    with pytest.raises(InvalidRequest):
        await ProvisionerClient(http_of(answers(b"{}", 200, seen))).jobs(name)
    assert seen == []


async def test_an_outcome_needs_no_answer() -> None:
    client = OptimizerClient(http_of(answers(b"", 204)))
    await client.record_outcome(LaunchOutcome("aws", "r", "z", "t", False, "ok", 1.0))


def pieces_of(*pieces: bytes, status: int = 200, headers: list[tuple[bytes, bytes]] | None = None) -> App:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": headers or []})
        for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    return app


async def test_heartbeats_are_lines_in_any_pieces_and_their_end_is_an_error() -> None:
    beats = [Heartbeat("n", "b", number, 1.0) for number in range(3)]
    text = b"\n".join(map(dumps, beats)) + b"\n\n"
    client = AgentClient(http_of(pieces_of(text[:10], text[10:70], text[70:])))
    seen = []
    with pytest.raises(AgentUnreachable, match="ended its heartbeats"):
        async for beat in client.watch():
            seen.append(beat)
    assert seen == beats


async def test_a_log_says_where_it_begins() -> None:
    client = AgentClient(http_of(pieces_of(b"a", b"b", headers=[(b"x-log-offset", b"17")])))
    async with client.logs(1, follow=True, tail=5) as log:
        assert log.offset == 17
        assert [piece async for piece in log] == [b"a", b"b"]


async def test_an_error_instead_of_a_stream_is_raised() -> None:
    body = dumps(ClusterNotUp("cluster 'c' is stopped").to_wire())
    client = ProvisionerClient(http_of(pieces_of(body, status=409)))
    with pytest.raises(ClusterNotUp):
        async for _ in client.job_logs("c", "latest"):
            pass


async def test_operation_events() -> None:
    events = [OperationEvent("o", number, 1.0, "planning", "…") for number in (1, 2)]
    text = b": keep-alive\n\n" + b"".join(
        b"id: %d\nevent: progress\ndata: %b\n\n" % (event.seq, dumps(event)) for event in events
    )
    client = ProvisionerClient(http_of(pieces_of(text[:20], text[20:])))
    assert [event async for event in client.operation_events("o")] == events


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_sse_in_any_pieces(size: int) -> None:
    text = (
        b": hi\r\n\r\nid: 1\r\nevent: progress\r\ndata: a\r\ndata: b\r\n\r\ndata:x\n\nid: 3\ndata: unfinished"
    )
    reader = SseReader()
    found = [event for at in range(0, len(text), size) for event in reader.feed(text[at : at + size])]
    assert [(event.id, event.event, event.data) for event in found] == [
        ("1", "progress", "a\nb"),
        ("1", "message", "x"),
    ]


async def test_a_client_of_any_service_reads_errors_of_streams() -> None:
    client = ServiceClient(http_of(pieces_of(b"no", status=500)))
    with pytest.raises(RemoteError, match="status 500: no"):
        async with client.stream("GET", "/"):
            pass
