"""Many requests on one connection: what is known again with a head is no more than the head says, and what differs, differs."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from skyloom_common.contracts.endpoints import Endpoint
from skyloom_lb.exchange import Outcome
from skyloom_lb.fronts import make_front
from skyloom_lb.settings import Affinity, ServiceSettings
from skyloom_lb.wire.request import parse_request
from skyloom_lb.wire.response import parse_response

pytestmark = pytest.mark.integration
KEY = b"Authorization: Bearer k\r\n"


class World:
    """Raw endpoints, a balancer before them, and one connection to it."""

    def __init__(self, kit: Any, folder: Path) -> None:
        self.kit = kit
        self._keys = folder / "keys.yaml"
        self.lb: Any = None
        self._wire: Any = None

    async def service(self, name: str, *behaviours: Any, path: str = "", **fields: Any) -> ServiceSettings:
        """With one endpoint that answers, where no behaviours are given."""
        made = [await self.kit.endpoint(one) for one in behaviours or (None,)]
        fields.setdefault("openai", {"models": [name]})
        endpoints = tuple(Endpoint(id=f"{name}{n}", url=one.url + path) for n, one in enumerate(made))
        return ServiceSettings(name=name, endpoints=endpoints, **fields)

    async def start(self, *services: ServiceSettings, key: Any = None, **fields: Any) -> None:
        entry = {"name": "k", "sha256": hashlib.sha256(b"k").hexdigest(), **(key or {})}
        self._keys.write_text(yaml.safe_dump({"keys": [entry]}))
        named = {one.name: one for one in services}
        self.lb = await self.kit.lb(
            services=named, make_front=make_front, keys_file=str(self._keys), **fields
        )
        self._wire = await self.lb.client()

    async def ask(self, extra: bytes = b"", **fields: Any) -> Any:
        """Heads differ in their length alone."""
        body = json.dumps({"messages": [], **fields}).encode()
        await self._wire.send(self.kit.post(body, b"/v1/chat/completions", KEY + extra))
        return await self._wire.message()

    @property
    def front(self) -> Any:
        return self.lb.worker.balancer.front

    def seen(self) -> list[list[Any]]:
        """What each endpoint was asked."""
        return [one.requests for one in self.kit.endpoints]


@pytest.fixture
def world(kit: Any, tmp_path: Path) -> World:
    return World(kit, tmp_path)


async def test_each_request_goes_by_its_own_model(world: World) -> None:
    a, b = [await world.service(name, openai={"models": [name], "usage": "on"}) for name in "ab"]
    await world.start(a, b)
    for model in "aabbabaab":
        assert (await world.ask(model=model)).status == 200
    assert [len(one) for one in world.seen()] == [5, 4]
    assert (await world.ask(model="b", stream=0)).status == 400
    assert (await world.ask(model="c")).status == 404
    assert (await world.ask()).status == 400
    assert (await world.ask(model=1)).status == 400
    assert (await world.ask(model="b", stream=True)).status == 200
    assert json.loads(world.seen()[1][-1].body)["stream_options"] == {"include_usage": True}
    assert (await world.ask(model="b")).status == 200
    assert "stream_options" not in json.loads(world.seen()[1][-1].body)


async def test_streams_and_others_take_turns(world: World) -> None:
    """What a request loses on its way is that of its own kind: only a stream must not come packed."""
    await world.start(await world.service("a", openai={"models": ["a"], "usage": "off"}))
    for stream in (True, False, True, False, False):
        answer = await world.ask(b"Accept-Encoding: gzip\r\n", model="a", stream=stream)
        assert answer.status == 200
        assert (world.seen()[0][-1].get(b"accept-encoding") is None) == stream


async def test_each_request_has_its_own_body(world: World) -> None:
    """Also where the model has another name at its endpoint, so that the body is written anew."""
    await world.start(
        await world.service("a", openai={"models": ["inner"]}),
        front={"models": {"outer": {"to": [{"service": "a", "model": "inner"}]}}},
    )
    for number in range(3):
        assert (await world.ask(model="outer", seed=number)).status == 200
        body = json.loads(world.seen()[0][-1].body)
        assert (body["model"], body["seed"]) == ("inner", number)


async def test_a_user_stays_where_he_was(world: World) -> None:
    names = ("user-a", "user-b", "user-c", "user-d", "user-e", "user-f")
    affine = await world.service("a", None, None, policy="session_affinity", affinity=Affinity(user=True))
    await world.start(affine)
    where: dict[str, set[int]] = {name: set() for name in names}
    for name in names * 3:
        before = [len(one) for one in world.seen()]
        assert (await world.ask(model="a", user=name)).status == 200
        after = [len(one) for one in world.seen()]
        where[name].add([now > then for now, then in zip(after, before, strict=True)].index(True))
    assert all(len(one) == 1 for one in where.values())
    assert set.union(*where.values()) == {0, 1}


@pytest.mark.parametrize("whose", ["service", "key"])
async def test_each_request_counts_what_it_may_cost(world: World, whose: str) -> None:
    """There are 5,000 tokens a minute, of which each asks for about 2,000."""
    limits: Any = {"limits": {"tokens_per_minute": 5000}}
    await world.start(
        await world.service("a", **(limits if whose == "service" else {})),
        key=limits if whose == "key" else {},
    )
    answers = [(await world.ask(model="a", max_tokens=2000)).status for _ in range(4)]
    assert answers == [200, 200, 429, 429]


@pytest.mark.parametrize("limited", [False, True])
async def test_rate_limits_are_told_by_whose_they_are(world: World, limited: bool) -> None:
    """A key with limits gets its own; any other gets what the endpoint says."""

    async def tells(wire: Any) -> None:
        while True:
            await wire.message()
            await wire.send(world.kit.answer(b"{}", extra=b"x-ratelimit-limit-requests: 7\r\n"))

    await world.start(
        await world.service("a", tells), key={"limits": {"requests_per_minute": 100}} if limited else {}
    )
    for _ in range(3):
        answer = await world.ask(model="a")
        told = [value for name, value in answer.headers if name == b"x-ratelimit-limit-requests"]
        assert told == [b"100" if limited else b"7"]


async def test_a_model_that_goes_away_is_gone_on_a_connection_that_is_open(world: World) -> None:
    engine = await world.kit.endpoint()
    await world.start(ServiceSettings(name="a"), await world.service("z"))

    def serves(*models: str) -> None:
        world.lb.worker.balancer.set_endpoints("a", [Endpoint(id="e", url=engine.url, models=models)])

    serves("a1")
    for _ in range(3):
        assert (await world.ask(model="a1")).status == 200
    serves("a2")
    assert (await world.ask(model="a1")).status == 404
    assert (await world.ask(model="a2")).status == 200


async def test_endpoints_with_different_paths(world: World) -> None:
    kit = world.kit
    urls = [(await kit.endpoint()).url + path for path in ("/one", "", "/two")]
    endpoints = tuple(Endpoint(id=f"e{n}", url=url) for n, url in enumerate(urls))
    await world.start(ServiceSettings(name="a", endpoints=endpoints, policy="round_robin"))
    for _ in range(9):
        assert (await world.ask(model="a")).status == 200
    targets = [{one.start.split(b" ")[1] for one in each} for each in world.seen()]
    assert targets == [
        {b"/one/v1/chat/completions"}, {b"/v1/chat/completions"}, {b"/two/v1/chat/completions"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "name", "count"),
    [
        (b"X-Request-Id: mine\r\n", b"x-request-id", 1),
        (b"X-Forwarded-For: 10.9.8.7\r\n", b"x-forwarded-for", 1),
        (b"", b"x-request-id", 1),
        (b"", b"content-length", 1),
        (b"", b"authorization", 0),
    ],
)
async def test_lines_of_ours_are_there_once(world: World, line: bytes, name: bytes, count: int) -> None:
    await world.start(await world.service("a"))
    for _ in range(3):
        assert (await world.ask(line, model="a")).status == 200
    found = [[value for key, value in one.headers if key == name] for one in world.seen()[0]]
    assert [len(values) for values in found] == [count] * 3
    if line.startswith(b"X-Request"):
        assert found == [[b"mine"]] * 3
    elif name == b"x-request-id":
        assert len({values[0] for values in found}) == 3


async def test_what_a_client_claims_of_others_is_its_requests_own(world: World) -> None:
    """By a proxy that is trusted: it speaks for many clients on one connection."""
    await world.start(await world.service("a"), trusted_proxies=("127.0.0.0/8",))
    for number in (1, 2, 2, 3):
        assert (await world.ask(b"X-Forwarded-For: 10.0.0.%d\r\n" % number, model="a")).status == 200
        assert b"10.0.0.%d" % number in (world.seen()[0][-1].get(b"x-forwarded-for") or b"")


async def test_the_last_answer_says_that_it_is_the_last(world: World) -> None:
    await world.start(await world.service("a"))
    for _ in range(2):
        assert (await world.ask(model="a")).get(b"connection") is None
    assert (await world.ask(b"Connection: close\r\n", model="a")).get(b"connection") == b"close"


@pytest.mark.parametrize("stored_first", [False, True])
@pytest.mark.parametrize("stored_last", [False, True])
async def test_what_is_stored_is_not_asked_again(world: World, stored_first: bool, stored_last: bool) -> None:
    """Whether a request may be sent twice is its own, whatever the one before it on its connection was."""
    count = 0

    async def dies(wire: Any) -> None:
        nonlocal count
        while True:
            await wire.message()
            count += 1
            if count == 4:
                await asyncio.sleep(0.3)  # not as a connection ends that was idle
                return wire.close()
            await wire.send(world.kit.answer(b"{}"))

    await world.start(await world.service("a", dies, dies))
    for _ in range(3):
        assert (await world.ask(model="a", store=stored_first)).status == 200
    assert ((await world.ask(model="a", store=stored_last)).status == 200) == (not stored_last)


def event(text: str) -> bytes:
    data = b"data: %b\n\n" % json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}).encode()
    return b"%x\r\n%b\r\n" % (len(data), data)


async def test_a_stream_that_nobody_asked_for_goes_on_with_its_own_request(world: World) -> None:
    """Of the requests that go the same way nothing is kept; what continues a stream is that request's own body."""
    bodies: list[dict[str, Any]] = []

    async def breaks_off(wire: Any) -> None:
        while True:
            bodies.append(json.loads((await wire.message()).body))
            if len(bodies) < 3:
                await wire.send(world.kit.answer(b"{}"))
                continue
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")  # fmt: skip
            if len(bodies) == 3:
                await wire.send(event("Hel"))
                return wire.close()
            last = b"data: [DONE]\n\n"
            await wire.send(event("lo") + b"%x\r\n%b\r\n0\r\n\r\n" % (len(last), last))

    openai = {"models": ["a"], "continuation": "on"}
    await world.start(await world.service("a", breaks_off, breaks_off, openai=openai))
    for number in range(2):
        assert (await world.ask(model="a", seed=number)).status == 200
    answer = await world.ask(model="a", seed=2)
    assert answer.body.count(b"Hel") == answer.body.count(b'"lo"') == 1 and b"[DONE]" in answer.body
    assert [one["seed"] for one in bodies] == [0, 1, 2, 2]
    assert bodies[-1]["messages"] == [{"role": "assistant", "content": "Hel"}]


async def test_how_many_answers_a_stream_has_is_its_own_requests(world: World) -> None:
    await world.start(await world.service("a"))
    head = parse_request(world.kit.post(b"", extra=KEY))
    principal = world.front.authenticate(head, "")
    bodies = [json.dumps({"model": "a", "messages": [], "n": n}).encode() for n in (1, 1, 2)]
    routes = [world.front.route(principal, head, body, True) for body in bodies]
    assert routes[0] is routes[1] is routes[2]
    events = parse_response(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n", b"POST")
    for body, choices in zip(bodies, (1, 1, 2), strict=True):
        outcome = Outcome(0.0, head, "", b"", "fast")
        outcome.route, outcome.body = routes[0], body
        observer = outcome.observer = world.front.observer(routes[0], events, outcome)
        assert observer._plan.sent == body and observer._plan.choices == choices
        world.front.finish(outcome)
