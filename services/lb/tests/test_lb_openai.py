"""The API face from end to end: the real `openai` client, the balancer in this process, engines that are deterministic."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml

import skyloom_testing_engine as engines
from skyloom_common.contracts.endpoints import Endpoint
from skyloom_lb.fronts import make_front
from skyloom_lb.settings import Health, ServiceSettings, Timeouts

pytestmark = pytest.mark.integration
engine = engines.load()
ASK: list[Any] = [{"role": "user", "content": "what is a loom"}]
PRICE = {"price": {"prompt": 1.0, "completion": 2.0}}


def expected(count: int, messages: list[Any] = ASK) -> str:
    return "".join(text for _, text in engine.generate(engine.render(messages), count))


class World:
    """Engines, one balancer, clients; everything is checked for stuck counts when it ends."""

    def __init__(self, kit: Any, folder: Path) -> None:
        self.kit = kit
        self.folder = folder
        self.lb: Any = None
        self.engines: dict[str, Any] = {}
        self._servers: list[asyncio.AbstractServer] = []
        self._clients: list[openai.AsyncOpenAI] = []

    async def engine(self, name: str, **settings: Any) -> Endpoint:
        one = self.engines[name] = engine.Engine(engine.Settings(**settings))
        server = await one.serve("127.0.0.1", 0)
        self._servers.append(server)
        return Endpoint(
            id=name, url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", engine="skyloom-engine"
        )

    def service(self, name: str, *endpoints: Endpoint, **fields: Any) -> ServiceSettings:
        health = Health(slow_start_seconds=0, failures=1000)
        return ServiceSettings(name=name, endpoints=endpoints, health=health, **fields)

    async def start(self, *services: ServiceSettings, **fields: Any) -> None:
        self.lb = await self.kit.lb(
            services={one.name: one for one in services}, make_front=make_front, **fields
        )

    def keys(self, **entries: dict[str, Any]) -> str:
        """A keys file; the secret of each is `sk-` and its name."""
        path = self.folder / "keys.yaml"
        rows = [
            {"name": name, "sha256": hashlib.sha256(f"sk-{name}".encode()).hexdigest(), **fields}
            for name, fields in entries.items()
        ]
        path.write_text(yaml.safe_dump({"keys": rows}))
        return str(path)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.lb.port}/v1"

    def client(self, key: str = "none", **fields: Any) -> openai.AsyncOpenAI:
        made = openai.AsyncOpenAI(
            base_url=self.url, api_key=f"sk-{key}", **{"max_retries": 0, "timeout": 10, **fields}
        )
        self._clients.append(made)
        return made

    def counts(self, what: str) -> Any:
        return self.lb.worker.snapshot()[what]

    async def close(self) -> None:
        for client in self._clients:
            await client.close()
        await self.kit.until(self.lb.quiet)
        assert set(self.lb.worker.balancer.front.state.admission.counts().values()) == {0}
        for server in self._servers:
            server.close()


@pytest.fixture
async def world(kit: Any, tmp_path: Path) -> AsyncIterator[World]:
    made = World(kit, tmp_path)
    yield made
    await made.close()


async def simple(world: World, **openai_fields: Any) -> openai.AsyncOpenAI:
    await world.start(world.service("tiny", await world.engine("e0"), openai={**PRICE, **openai_fields}))
    return world.client()


# --- ordinary use


async def test_chat(world: World) -> None:
    client = await simple(world)
    answer = await client.chat.completions.create(model="tiny", messages=ASK, max_tokens=7)
    assert answer.choices[0].message.content == expected(7)
    assert answer.usage is not None and answer.usage.completion_tokens == 7
    counted = world.counts("models")["tiny"]
    assert (counted["prompt_tokens"], counted["completion_tokens"]) == (answer.usage.prompt_tokens, 7)
    assert counted["cost"] == pytest.approx((answer.usage.prompt_tokens + 2 * 7) / 1e6)


def test_chat_with_the_synchronous_client(world_in_a_thread: Any) -> None:
    with openai.OpenAI(base_url=world_in_a_thread, api_key="x", max_retries=0, timeout=10) as client:
        answer = client.chat.completions.create(model="tiny", messages=ASK, max_tokens=3)
        assert answer.choices[0].message.content == expected(3)
        stream = client.chat.completions.create(model="tiny", messages=ASK, max_tokens=5, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == expected(5)
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model="tiny", messages=[{}], max_tokens="x")  # type: ignore[arg-type, list-item]


@pytest.fixture
async def world_in_a_thread(world: World) -> AsyncIterator[str]:
    """The loop of the fixtures does not run during a synchronous test: this one has its own thread."""
    import threading

    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    main = asyncio.get_running_loop()
    stop = threading.Event()

    async def serve() -> None:
        kit = type(world.kit)()
        inner = World(kit, world.folder)
        await inner.start(inner.service("tiny", await inner.engine("e0")))
        main.call_soon_threadsafe(ready.set_result, inner.url)
        while not stop.is_set():
            await asyncio.sleep(0.01)
        await inner.close()
        await kit.close()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    await world.start(world.service("unused"))
    yield await ready
    stop.set()
    thread.join(10)
    assert not thread.is_alive()


async def read(stream: Any) -> tuple[str, list[Any], list[Any]]:
    text, finish, usage = "", [], []
    async for chunk in stream:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finish += [choice.finish_reason] if choice.finish_reason else []
        usage += [chunk.usage] if chunk.usage else []
    return text, finish, usage


@pytest.mark.parametrize("wants", [False, True])
async def test_a_streams_usage_is_counted_and_shown_to_who_asked(world: World, wants: bool) -> None:
    client = await simple(world)
    options: Any = {"stream_options": {"include_usage": True}} if wants else {}
    stream = await client.chat.completions.create(
        model="tiny", messages=ASK, max_tokens=9, stream=True, **options
    )
    text, finish, usage = await read(stream)
    assert (text, finish, len(usage)) == (expected(9), ["length"], int(wants))
    await world.kit.until(lambda: world.counts("models")["tiny"]["completion_tokens"] == 9)
    assert world.counts("models")["tiny"]["prompt_tokens"] == engine.prompt_tokens(engine.render(ASK))


async def test_completions_embeddings_and_responses(world: World) -> None:
    client = await simple(world)
    done = await client.completions.create(model="tiny", prompt="once", max_tokens=4)
    assert done.choices[0].text == "".join(text for _, text in engine.generate("once", 4))
    vectors = await client.embeddings.create(model="tiny", input=["a b", "c"])
    assert len(vectors.data) == 2
    answer = await client.responses.create(model="tiny", input="what is a loom", max_output_tokens=4)
    assert answer.output_text == expected(4)
    events = [
        one
        async for one in await client.responses.create(
            model="tiny", input="x", max_output_tokens=3, stream=True
        )
    ]
    assert [one.type for one in events][0::4] == ["response.created", "response.completed"]
    used = world.counts("models")["tiny"]
    assert used["completion_tokens"] == 4 + 4 + 3 and used["prompt_tokens"] > 4


async def test_tools(world: World) -> None:
    client = await simple(world)
    tools: Any = [{"type": "function", "function": {"name": "weave", "parameters": {"type": "object"}}}]
    answer = await client.chat.completions.create(model="tiny", messages=ASK, tools=tools)
    calls = answer.choices[0].message.tool_calls
    assert calls is not None and calls[0].function.name == "weave"  # type: ignore[union-attr]
    stream = await client.chat.completions.create(model="tiny", messages=ASK, tools=tools, stream=True)
    arguments = ""
    async for chunk in stream:
        for choice in chunk.choices:
            for call in choice.delta.tool_calls or ():
                arguments += call.function.arguments or "" if call.function else ""
    assert arguments == calls[0].function.arguments  # type: ignore[union-attr]


@pytest.mark.parametrize("size", [2_000, 3_000_000])
async def test_pictures_as_data_urls(world: World, size: int) -> None:
    """The big one is for the careful lane."""
    client = await simple(world)
    url = "data:image/png;base64," + base64.b64encode(b"\x89PNG" * (size // 4)).decode()
    content = [{"type": "text", "text": "what is it"}, {"type": "image_url", "image_url": {"url": url}}]
    messages: Any = [{"role": "user", "content": content}]
    answer = await client.chat.completions.create(model="tiny", messages=messages, max_tokens=3)
    assert answer.choices[0].message.content == expected(3, messages)
    stream = await client.chat.completions.create(model="tiny", messages=messages, max_tokens=3, stream=True)
    assert (await read(stream))[0] == expected(3, messages)
    lanes = {one.lane for one in world.lb.outcomes} if world.lb.outcomes else set()
    assert lanes <= {"fast", "careful"}


async def test_several_choices_and_log_probabilities(world: World) -> None:
    client = await simple(world)
    stream = await client.chat.completions.create(
        model="tiny", messages=ASK, max_tokens=3, stream=True, n=2, logprobs=True
    )
    texts = ["", ""]
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            assert not choice.delta.content or choice.logprobs is not None
    assert texts[0] == expected(3) and texts[1] != texts[0]


# --- models, keys, limits


async def test_models_a_key_may_use(world: World) -> None:
    first = world.service("a", await world.engine("e0"), openai={"models": ["m1", "m2"]})
    second = world.service("b", await world.engine("e1"))
    path = world.keys(all={}, some={"models": ["m*"], "scopes": ["models", "chat"]})
    await world.start(first, second, keys_file=path)
    assert [one.id async for one in world.client("all").models.list()] == ["b", "m1", "m2"]
    client = world.client("some")
    assert [one.id async for one in client.models.list()] == ["m1", "m2"]
    assert (await client.models.retrieve("m2")).id == "m2"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("b")
    with pytest.raises(openai.NotFoundError, match="does not exist or this key may not use it"):
        await client.chat.completions.create(model="b", messages=ASK)
    with pytest.raises(openai.PermissionDeniedError, match="embeddings"):
        await client.embeddings.create(model="m1", input="x")
    assert (await client.chat.completions.create(model="m1", messages=ASK, max_tokens=1)).model == "m1"


async def test_wrong_keys_and_bodies(world: World, caplog: pytest.LogCaptureFixture) -> None:
    await world.start(world.service("tiny", await world.engine("e0")), keys_file=world.keys(a={}))
    with caplog.at_level(logging.DEBUG, logger="skyloom_lb"):
        for wrong in ("b", ""):
            with pytest.raises(openai.AuthenticationError) as refused:
                await world.client(wrong).models.list()
            assert refused.value.code == "invalid_api_key"
    assert "sk-b" not in caplog.text
    client = world.client("a")
    with pytest.raises(openai.BadRequestError, match="not JSON") as bad:
        await client.post("/chat/completions", body=None, cast_to=object, options={"headers": {"x": "y"}})
    assert bad.value.type == "invalid_request_error"
    with pytest.raises(openai.NotFoundError, match="no route GET"):
        await client.get("/nowhere", cast_to=object)


async def test_the_clients_key_goes_no_further(world: World) -> None:
    await world.start(world.service("tiny", await world.engine("e0")), keys_file=world.keys(a={}))
    client = world.client("a")
    seen: Any = await client.get(f"http://127.0.0.1:{world.lb.port}/echo", cast_to=object)
    assert "authorization" not in seen["headers"]


async def test_an_alias_a_canary_and_a_renamed_model(world: World) -> None:
    services = [
        world.service("v1", await world.engine("e1"), openai=PRICE),
        world.service("v2", await world.engine("e2"), openai=PRICE),
    ]
    models = {
        "chat": {
            "aliases": ["gpt-4o-mini"],
            "to": [{"service": "v1", "weight": 3, "model": "one"}, {"service": "v2", "model": "two"}],
        }
    }
    await world.start(*services, front={"models": models})
    client = world.client()
    asked = [
        client.chat.completions.create(model="gpt-4o-mini", messages=ASK, max_tokens=1) for _ in range(80)
    ]
    answers = [(await one).model for one in asked]
    assert set(answers) == {"one", "two"} and answers.count("one") > answers.count("two")
    assert world.counts("models")["chat"]["requests"] == 80


async def test_fallbacks_also_to_a_provider_with_a_key_of_its_own(
    world: World, monkeypatch: pytest.MonkeyPatch, kit: Any
) -> None:
    monkeypatch.setenv("PROVIDER_KEY", "sk-outside")
    provider = await world.engine("provider", api_key="sk-outside")
    services = [
        world.service("down", Endpoint(id="gone", url=kit.closed_port())),
        world.service("failing", await world.engine("failing"), openai=PRICE),
        world.service("outside", provider, openai={"external": True, "api_key_env": "PROVIDER_KEY"}),
    ]
    chain = {"fallbacks": [{"service": "failing"}, {"service": "outside", "model": "gpt"}]}
    await world.start(*services, front={"models": {"m": {"to": [{"service": "down"}], **chain}}})
    client = world.client("mine")
    assert (await client.chat.completions.create(model="m", messages=ASK, max_tokens=1)).model == "m"
    for mode in ("busy", "reset"):
        world.engines["failing"].faults = [engine.Fault(mode, 0, 0)]
        answer = await client.chat.completions.create(model="m", messages=ASK, max_tokens=1)
        assert answer.model == "gpt"


async def test_a_provider_is_not_told_who_asks(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROVIDER_KEY", "sk-outside")
    provider = await world.engine("provider", api_key="sk-outside")
    fields: Any = {"external": True, "api_key_env": "PROVIDER_KEY"}
    await world.start(
        world.service("first"),
        world.service("outside", provider, openai=fields, hosts=("127.0.0.1",)),  # so that it has all paths
        keys_file=world.keys(a={}),
    )
    seen: Any = await world.client("a").get(f"http://127.0.0.1:{world.lb.port}/echo", cast_to=object)
    headers = seen["headers"]
    assert headers["authorization"] == "Bearer sk-outside" and headers["host"] == provider.url[7:]
    assert not {"cookie", "forwarded", "x-forwarded-for"} & set(headers)
    # The careful lane keeps the same silence.
    big: Any = [{"role": "user", "content": "x" * 1_500_000}]
    answer = await world.client("a").chat.completions.create(model="any", messages=big, max_tokens=2)
    assert answer.choices[0].message.content == expected(2, big)


async def test_limits_of_a_key(world: World) -> None:
    path = world.keys(
        few={"limits": {"requests_per_minute": 2}}, tokens={"limits": {"tokens_per_minute": 300}}, free={}
    )
    await world.start(world.service("tiny", await world.engine("e0")), keys_file=path)
    few, tokens = world.client("few"), world.client("tokens")
    for _ in range(2):
        await few.chat.completions.create(model="tiny", messages=ASK, max_tokens=1)
    with pytest.raises(openai.RateLimitError, match="2 requests a minute") as refused:
        await few.chat.completions.create(model="tiny", messages=ASK, max_tokens=1)
    assert 1 <= int(refused.value.response.headers["retry-after"]) <= 31
    # About 280 tokens are set aside, and what is not used is given back.
    with pytest.raises(openai.RateLimitError):
        long: Any = [{"role": "user", "content": "say it " * 100}]
        await asyncio.gather(
            *(tokens.chat.completions.create(model="tiny", messages=long, max_tokens=20) for _ in range(2))
        )
    await tokens.chat.completions.create(model="tiny", messages=ASK, max_tokens=20)
    with pytest.raises(openai.RateLimitError, match="300 tokens a minute"):
        for _ in range(5):
            await tokens.chat.completions.create(model="tiny", messages=ASK, max_tokens=90)
    await world.client("free").chat.completions.create(model="tiny", messages=ASK, max_tokens=1)


async def test_a_service_at_its_limit_queues_in_a_fair_order(world: World) -> None:
    endpoint = await world.engine("e0", first_token_seconds=0.05)
    service = world.service("tiny", endpoint, limits={"concurrency": 2, "queue": 100})
    await world.start(service, keys_file=world.keys(greedy={}, modest={}))
    greedy, modest = world.client("greedy"), world.client("modest")

    async def ask(client: openai.AsyncOpenAI) -> None:
        await client.chat.completions.create(model="tiny", messages=ASK, max_tokens=1)

    await ask(modest)  # its connection is there
    crowd = [asyncio.ensure_future(ask(greedy)) for _ in range(40)]
    await world.kit.until(lambda: world.lb.worker.balancer.services["tiny"].waiting >= 30)
    await ask(modest)
    assert sum(one.done() for one in crowd) < 20
    await asyncio.gather(*crowd)
    assert world.engines["e0"].stats.most_in_flight == 2


async def test_a_held_stream_hears_from_us_and_then_its_answer(world: World) -> None:
    service = world.service("tiny", limits={"hold_seconds": 30, "keep_alive_seconds": 1})
    await world.start(service)
    endpoint = await world.engine("e0")
    body = json.dumps({"model": "tiny", "messages": ASK, "max_tokens": 3, "stream": True}).encode()
    wire = await world.lb.client()
    await wire.send(world.kit.post(body))
    head = await wire.head()
    assert head.status == 200 and head.get(b"content-type") == b"text/event-stream"
    parts = wire.chunks()
    assert await anext(parts) == b": waiting for a replica\n\n"
    world.lb.worker.balancer.set_endpoints("tiny", [endpoint])
    rest = b"".join([part async for part in parts])
    events = [one for one in rest.split(b"\n\n") if one.startswith(b"data: {")]
    text = "".join(json.loads(one[6:])["choices"][0]["delta"].get("content", "") for one in events)
    assert text == expected(3) and rest.endswith(b"data: [DONE]\n\n")


async def test_nobody_comes_for_a_held_request(world: World) -> None:
    await world.start(world.service("tiny", limits={"hold_seconds": 1.2, "keep_alive_seconds": 1}))
    client = world.client()
    with pytest.raises(openai.InternalServerError, match=r"no endpoint after 1\.2 s") as refused:
        await client.chat.completions.create(model="tiny", messages=ASK)
    assert refused.value.response.headers["retry-after"]
    with pytest.raises(openai.APIError, match="no endpoint after"):
        await read(await client.chat.completions.create(model="tiny", messages=ASK, stream=True))


# --- streams survive


@pytest.mark.parametrize("mode", ["die", "half_chunk", "half_utf8", "end_early", "error_event", "die_at_end"])
@pytest.mark.parametrize("by", ["text", "token ids"])
async def test_a_broken_stream_goes_on_elsewhere(world: World, mode: str, by: str) -> None:
    endpoints = [await world.engine(f"e{number}") for number in range(3)]
    continuation = "tokens" if by == "token ids" else "auto"
    await world.start(world.service("tiny", *endpoints, openai={"continuation": continuation}))
    client = world.client()
    for after in range(0, 12, 4):
        for one in world.engines.values():
            one.faults = [engine.Fault(mode, after, 1)]
        stream = await client.chat.completions.create(
            model="tiny", messages=ASK, max_tokens=20, stream=True, stream_options={"include_usage": True}
        )
        text, finish, usage = await read(stream)
        assert (text, finish) == (expected(20), ["length"])
        prompt = engine.prompt_tokens(engine.render(ASK))
        assert [(one.prompt_tokens, one.completion_tokens) for one in usage] == [(prompt, 20)]
    done = await client.completions.create(model="tiny", prompt="once", max_tokens=30, stream=True)
    assert "".join([one.choices[0].text async for one in done if one.choices]) == "".join(
        text for _, text in engine.generate("once", 30)
    )
    assert world.counts("services")["tiny"]["stats"]["errors"] == {}


async def test_the_careful_lane_continues_too(world: World) -> None:
    endpoints = [await world.engine(f"e{number}") for number in range(2)]
    await world.start(world.service("tiny", *endpoints))
    big: Any = [{"role": "user", "content": "x" * 1_200_000}]
    for one in world.engines.values():
        one.faults = [engine.Fault("die", 5, 1)]
    stream = await world.client().chat.completions.create(
        model="tiny", messages=big, max_tokens=20, stream=True
    )
    assert (await read(stream))[0] == expected(20, big)


async def test_a_stream_whose_endpoints_are_all_away_waits_for_one(world: World) -> None:
    endpoint = await world.engine("e0")
    await world.start(world.service("tiny", endpoint))
    world.engines["e0"].faults = [
        engine.Fault("die", 5, 1),
        engine.Fault("reset", 0, 1),
        engine.Fault("reset", 0, 1),
    ]
    stream = await world.client().chat.completions.create(
        model="tiny", messages=ASK, max_tokens=20, stream=True
    )
    assert (await read(stream))[0] == expected(20)


@pytest.mark.parametrize("lane", ["fast", "careful"])
async def test_a_stream_that_cannot_go_on_ends_with_an_error(world: World, lane: str) -> None:
    endpoints = [await world.engine(f"e{number}") for number in range(2)]
    await world.start(world.service("tiny", *endpoints))
    client = world.client()
    for one in world.engines.values():
        one.faults = [engine.Fault("die", 2, 0)]
    messages: Any = ASK if lane == "fast" else [{"role": "user", "content": "x" * 1_200_000}]
    tools: Any = [{"type": "function", "function": {"name": "weave", "parameters": {}}}]
    for extra, why in (
        ({"tools": tools}, "a tool call has begun"),
        ({"logprobs": True}, "log probabilities"),
    ):
        with pytest.raises(openai.APIError, match=why):
            await read(
                await client.chat.completions.create(
                    model="tiny", messages=messages, max_tokens=9, stream=True, **extra
                )
            )
    events = [one async for one in await client.responses.create(model="tiny", input="x", stream=True)]
    assert events[-1].type == "error" and "does not continue" in events[-1].message
    assert sum(world.counts("services")["tiny"]["stats"]["errors"].values()) == 3


async def test_continuation_can_be_switched_off(world: World) -> None:
    endpoints = [await world.engine(f"e{number}") for number in range(2)]
    await world.start(world.service("tiny", *endpoints, openai={"continuation": "off"}))
    world.engines["e0"].faults = world.engines["e1"].faults = [engine.Fault("die", 2, 0)]
    with pytest.raises(openai.APIError, match="does not continue streams"):
        await read(await world.client().chat.completions.create(model="tiny", messages=ASK, stream=True))


async def test_time_outs_and_leaving_early(world: World) -> None:
    slow = await world.engine("slow", tokens_per_second=20)
    stuck = await world.engine("stuck", first_token_seconds=60)
    await world.start(
        world.service("tiny", slow, openai=PRICE),
        world.service("stuck", stuck, timeouts=Timeouts(first_byte=0.5)),
    )
    stream = await world.client().chat.completions.create(
        model="tiny", messages=ASK, max_tokens=500, stream=True
    )
    async for chunk in stream:
        if chunk.choices[0].delta.content:
            break
    await stream.close()
    await world.kit.until(lambda: world.engines["slow"].stats.in_flight == 0)
    await world.kit.until(lambda: world.counts("models")["tiny"]["completion_tokens"] >= 1)
    assert world.counts("models")["tiny"]["cost"] > 0
    with pytest.raises(openai.APITimeoutError):
        await world.client(timeout=0.2).chat.completions.create(model="stuck", messages=ASK)
    with pytest.raises(openai.InternalServerError, match="did not answer in time"):
        await world.client().chat.completions.create(model="stuck", messages=ASK)


# --- nothing passes by the checks


@pytest.mark.parametrize(
    "path",
    [
        b"/v1/%63hat/completions",
        b"/%761/chat/completions",
        b"//v1/chat/completions",
        b"/x/../v1/chat/completions",
    ],
)
async def test_a_path_in_disguise_is_the_same_path(world: World, path: bytes) -> None:
    keys = world.keys(a={"models": ["m1"], "scopes": ["chat"]}, b={"scopes": ["other"]})
    first = world.service("s", await world.engine("e0"), openai={"models": ["m1", "m2"]})
    await world.start(first, keys_file=keys)
    body = json.dumps({"model": "m2", "messages": ASK}).encode()
    for key, code in (("a", "model_not_found"), ("b", "insufficient_scope")):
        extra = b"Authorization: Bearer sk-%b\r\n" % key.encode()
        answer = await world.lb.ask(world.kit.post(body, target=path, extra=extra))
        assert json.loads(answer.body)["error"]["code"] == code


async def test_a_second_model_in_the_body_means_nothing(world: World) -> None:
    first = world.service("s", await world.engine("e0"), openai={"models": ["m1", "m2"]})
    await world.start(first, keys_file=world.keys(a={"models": ["m1"]}))
    extra = b"Authorization: Bearer sk-a\r\n"
    for body in (
        b'{"model":"m1","messages":[],"\\u006dodel":"m2"}',
        b'{"model":"m2","model":"m2","messages":[]}',
    ):
        answer = await world.lb.ask(world.kit.post(body, extra=extra))
        assert answer.status == 404
    answer = await world.lb.ask(world.kit.post(b'{"model":"m2","messages":[],"model":"m1"}', extra=extra))
    assert json.loads(answer.body)["model"] == "m1"


async def test_the_same_user_goes_to_the_same_endpoint(world: World) -> None:
    from skyloom_lb.settings import Affinity

    endpoints = [await world.engine(f"e{number}") for number in range(4)]
    service = world.service("tiny", *endpoints, policy="session_affinity", affinity=Affinity(user=True))
    await world.start(service)
    client = world.client()
    for user in ("ann", "ben", "cy"):
        before = {name: one.stats.requests for name, one in world.engines.items()}
        for _ in range(4):
            await client.chat.completions.create(model="tiny", messages=ASK, max_tokens=1, user=user)
        served = [one.stats.requests - before[name] for name, one in world.engines.items()]
        assert sorted(served) == [0, 0, 0, 4]


async def test_keys_change_while_streams_run(world: World) -> None:
    path = world.keys(a={"limits": {"concurrency": 2}})
    await world.start(world.service("tiny", await world.engine("e0", tokens_per_second=40)), keys_file=path)
    stream = await world.client("a").chat.completions.create(
        model="tiny", messages=ASK, max_tokens=30, stream=True
    )
    world.keys(b={})
    assert world.lb.worker.balancer.front.state.keys.poll()
    with pytest.raises(openai.AuthenticationError):
        await world.client("a").models.list()
    world.lb.worker.configure(world.lb.worker.settings)  # a reload builds the front anew
    assert (await read(stream))[0] == expected(30)
    await world.client("b").chat.completions.create(model="tiny", messages=ASK, max_tokens=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
async def test_counts_return_to_zero_after_any_mix(world: World, seed: int) -> None:
    """Success, failure, time-out, disconnect at any moment; the fixture asks for the counts."""
    import random

    chance = random.Random(seed)
    endpoints = [await world.engine(f"e{number}", tokens_per_second=400) for number in range(3)]
    service = world.service(
        "tiny", *endpoints, limits={"concurrency": 6, "queue": 20, "queue_seconds": 0.3, "hold_seconds": 1},
        timeouts=Timeouts(first_byte=0.4, idle=0.6, total=2.0),
    )  # fmt: skip
    limits = {"concurrency": 4, "requests_per_minute": 100_000, "tokens_per_minute": 10**8}
    await world.start(service, keys_file=world.keys(a={"limits": limits}, b={"priority": 1}))
    modes = [*engine.FAULTS]
    modes.remove("exit")

    async def one() -> None:
        wire = await world.lb.client()
        body = {"model": "tiny", "messages": ASK, "max_tokens": 30, "stream": chance.random() < 0.7}
        fault = (
            f"X-Engine-Fault: {chance.choice(modes)}:{chance.randrange(20)}\r\n"
            if chance.random() < 0.5
            else ""
        )
        extra = f"Authorization: Bearer sk-{chance.choice('ab')}\r\n{fault}"
        raw = world.kit.post(json.dumps(body).encode(), extra=extra.encode())
        await wire.send(raw[: chance.randrange(len(raw))] if chance.random() < 0.1 else raw)
        await asyncio.wait(
            [asyncio.ensure_future(wire.reader.read(-1))], timeout=chance.choice((0.01, 0.1, 0.5, 2.5))
        )
        wire.writer.transport.abort()

    for _ in range(3):
        await asyncio.gather(*(one() for _ in range(20)))
        world.lb.worker.balancer.set_endpoints("tiny", endpoints[: chance.randrange(4)])
    world.lb.worker.balancer.set_endpoints("tiny", endpoints)
    await world.client("a").chat.completions.create(model="tiny", messages=ASK, max_tokens=1)
