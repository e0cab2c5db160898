"""What a key may reach: the model that is really served counts, whatever host, path, form or type a request comes with."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from skyloom_common.contracts.endpoints import Endpoint
from skyloom_lb.fronts import make_front
from skyloom_lb.settings import ServiceSettings

pytestmark = pytest.mark.integration
FORM = b"Content-Type: multipart/form-data; boundary=XX\r\n"
SPEECH = b"/v1/audio/transcriptions"


class World:
    """Raw endpoints by name, and a balancer before them; keys are called by their secret."""

    def __init__(self, kit: Any, folder: Path) -> None:
        self.kit = kit
        self.folder = folder
        self.engines: dict[str, Any] = {}
        self.lb: Any = None

    async def service(self, name: str, **fields: Any) -> ServiceSettings:
        engine = self.engines[name] = await self.kit.endpoint()
        return ServiceSettings(name=name, endpoints=(Endpoint(id=name, url=engine.url),), **fields)

    async def start(self, *services: ServiceSettings, keys: dict[str, Any], **fields: Any) -> None:
        rows = [
            {"name": name, "sha256": hashlib.sha256(name.encode()).hexdigest(), **entry}
            for name, entry in keys.items()
        ]
        path = self.folder / "keys.yaml"
        path.write_text(yaml.safe_dump({"keys": rows}))
        self.lb = await self.kit.lb(
            services={one.name: one for one in services}, make_front=make_front, keys_file=str(path), **fields
        )

    async def post(
        self, body: bytes, target: bytes = b"/v1/chat/completions", key: str = "k", host: bytes = b"lb",
        extra: bytes = b"",
    ) -> Any:  # fmt: skip
        raw = self.kit.post(body, target, b"Authorization: Bearer %b\r\n%b" % (key.encode(), extra))
        return await self.lb.ask(raw.replace(b"Host: lb", b"Host: " + host, 1))

    async def get(self, target: bytes, key: str = "k", host: bytes = b"lb") -> Any:
        raw = self.kit.get(target, b"Authorization: Bearer %b\r\n" % key.encode())
        return await self.lb.ask(raw.replace(b"Host: lb", b"Host: " + host, 1))

    async def listed(self, key: str) -> list[str]:
        answer = await self.get(b"/v1/models", key)
        assert answer.status == 200
        return [one["id"] for one in json.loads(answer.body)["data"]]

    def asked(self) -> int:
        return sum(len(one.requests) for one in self.engines.values())


@pytest.fixture
def world(kit: Any, tmp_path: Path) -> World:
    return World(kit, tmp_path)


def chat(model: str) -> bytes:
    return json.dumps({"model": model, "messages": []}).encode()


# --- hosts and prefixes


@pytest.mark.parametrize("pin", [{"hosts": ("b.example",)}, {"path_prefix": "/v1/chat"}])
@pytest.mark.parametrize("names", [(), ("big",)])
async def test_a_host_or_prefix_gives_no_other_model(world: World, pin: Any, names: Any) -> None:
    first = await world.service("a", openai={"models": ["llama"]})
    second = await world.service("b", openai={"models": names}, **pin)
    allowed = names[0] if names else "b"
    await world.start(first, second, keys={"k": {"models": ["llama"]}, "b": {"models": [allowed]}, "all": {}})
    assert (await world.post(chat("llama"), host=b"b.example")).status == 404
    assert not world.asked()
    for key in ("b", "all"):
        assert (await world.post(chat("llama"), host=b"b.example", key=key)).status == 200
    assert len(world.engines["b"].requests) == 2


async def test_with_one_service_a_host_changes_nothing(world: World) -> None:
    await world.start(await world.service("a", hosts=("a.example",)), keys={"k": {"models": ["llama"]}})
    assert (await world.post(chat("llama"), host=b"a.example")).status == 200
    assert (await world.post(chat("big"), host=b"a.example")).status == 404


# --- forms and types


def form(*fields: tuple[bytes, bytes]) -> bytes:
    parts = [b'--XX\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % field for field in fields]
    return b"".join(parts) + b"--XX--\r\n"


async def two_models(world: World, **fields: Any) -> None:
    service = await world.service("s", openai={"models": ["llama", "big"]})
    await world.start(
        service, keys={"k": {"models": ["llama"]}, "whole": {"models": ["s"]}, "all": {}}, **fields
    )


@pytest.mark.parametrize(
    ("body", "extra", "status"),
    [
        (form((b"model", b"llama")), FORM, 200),
        (form((b"model", b"big")), FORM, 404),
        (form((b"model", b"llama"), (b"model", b"big")), FORM, 400),
        (form((b"prompt", b'name="model"\r\n\r\nllama\r\n'), (b"model", b"big")), FORM, 404),
        (form((b'model"; x="', b"big")), FORM, 400),
        (form((b"model", b"llama")) + form((b"model", b"big")), FORM, 400),
        (form((b"model", b"llama")), FORM + b"Content-Type: multipart/form-data; boundary=YY\r\n", 400),
        (form((b"model", b"llama")).replace(b"\r\n", b"\n"), FORM, 400),
        (form((b"file", b"x")), FORM, 404),
        (chat("big"), FORM, 400),
        (b"", FORM, 400),
    ],
)
async def test_a_form_gives_no_other_model(world: World, body: bytes, extra: bytes, status: int) -> None:
    await two_models(world)
    assert (await world.post(body, SPEECH, extra=extra)).status == status
    assert world.asked() == (status == 200)
    assert (await world.post(body, SPEECH, key="all", extra=extra)).status == 200


async def test_a_form_is_renamed_where_its_model_is(world: World) -> None:
    service = await world.service("s", openai={"models": ["inner"]})
    models = {"llama": {"to": [{"service": "s", "model": "inner"}]}}
    await world.start(service, keys={"k": {"models": ["llama"]}}, front={"models": models})
    decoy = b'name="model"\r\n\r\nllama\r\n'
    answer = await world.post(form((b"prompt", decoy), (b"model", b"llama")), SPEECH, extra=FORM)
    assert answer.status == 200
    assert world.engines["s"].requests[0].body == form((b"prompt", decoy), (b"model", b"inner"))


@pytest.mark.parametrize(
    "claims",
    [b"text/plain", b"application/x+json", b"application/x-www-form-urlencoded", b"application/json", b""],
)
async def test_a_type_gives_no_other_model(world: World, claims: bytes) -> None:
    await two_models(world)
    extra = b"Content-Type: %b\r\n" % claims if claims else b""
    assert (await world.post(b'{"model": "big", "query": "x"}', b"/v1/rerank", extra=extra)).status == 404
    assert not world.asked()
    twice = b'{"model": "big", "query": "&model=big&", "model": "llama"}'
    assert (await world.post(twice, b"/v1/rerank", extra=extra)).status == 200
    (seen,) = world.engines["s"].requests
    assert (
        json.loads(seen.body) == {"model": "llama", "query": "&model=big&"}
        and seen.body.count(b'"model"') == 1
    )
    assert [value for name, value in seen.headers if name == b"content-type"] == [b"application/json"]


@pytest.mark.parametrize("body", [b"model=big", b"RIFF....", b"[1]", b""])
async def test_what_names_no_model_that_we_can_read_is_for_who_may_use_all(world: World, body: bytes) -> None:
    await two_models(world)
    extra = b"Content-Type: application/x-www-form-urlencoded\r\n"
    assert (await world.post(body, SPEECH, extra=extra)).status == 404
    assert not world.asked()
    for key in ("whole", "all"):
        assert (await world.post(body, SPEECH, key=key, extra=extra)).status == 200


async def test_a_known_path_with_the_type_of_a_form_is_json_all_the_same(world: World) -> None:
    await two_models(world)
    body = b'{"model": "big", "messages": [], "model": "llama"}'
    assert (await world.post(body, extra=FORM)).status == 200
    assert world.engines["s"].requests[0].body.count(b"model") == 1


@pytest.mark.parametrize("stream", [1, 0, "true", "false", []])
async def test_a_stream_that_is_neither_true_nor_false_is_refused(world: World, stream: Any) -> None:
    await two_models(world)
    body = json.dumps({"model": "llama", "messages": [], "stream": stream}).encode()
    answer = await world.post(body)
    assert answer.status == 400 and json.loads(answer.body)["error"]["param"] == "stream"
    assert not world.asked()


# --- lists of models


async def test_models_are_listed_where_their_engine_is_asked(world: World) -> None:
    await world.start(
        await world.service("s"),
        keys={
            "k": {"scopes": ["chat", "models"]},
            "other": {"scopes": ["other"]},
            "chat": {"scopes": ["chat"]},
        },
    )
    assert (await world.get(b"/v1/models")).status == 200
    assert (await world.get(b"/v1/models/m")).status == 200
    assert len(world.engines["s"].requests) == 2
    assert (await world.get(b"/v1/files")).status == 403
    for key in ("other", "chat"):
        assert (await world.get(b"/v1/models", key)).status == 403


async def test_a_key_sees_the_names_that_it_may_use(world: World) -> None:
    models = {
        "llama": {"to": [{"service": "s"}], "aliases": ["gpt-mini", "gpt-small"]},
        "big": {"to": [{"service": "s"}]},
    }
    keys = {
        "alias": {"models": ["gpt-mini"]},
        "pattern": {"models": ["gpt-*"]},
        "own": {"models": ["llama"]},
        "all": {},
    }
    await world.start(await world.service("s"), keys=keys, front={"models": models})
    assert await world.listed("alias") == ["gpt-mini"]
    assert await world.listed("pattern") == ["gpt-mini", "gpt-small"]
    assert await world.listed("own") == ["llama"]
    assert await world.listed("all") == ["big", "llama"]
    for key, name, status in (
        ("alias", "gpt-mini", 200), ("alias", "llama", 404), ("alias", "big", 404),
        ("own", "llama", 200), ("own", "gpt-mini", 200), ("own", "big", 404), ("all", "gpt-small", 200),
    ):  # fmt: skip
        answer = await world.get(b"/v1/models/" + name.encode(), key)
        assert answer.status == status, (key, name)
        if status == 200:
            assert json.loads(answer.body)["id"] == name
            assert (await world.post(chat(name), key=key)).status == 200


async def test_a_pattern_is_no_model(world: World) -> None:
    keys = {"pattern": {"models": ["ll*"]}, "both": {"models": ["ll*", "big"]}}
    await world.start(await world.service("s"), keys=keys)
    assert await world.listed("pattern") == [] and await world.listed("both") == ["big"]
    assert (await world.get(b"/v1/models/big", "both")).status == 200
    assert (await world.get(b"/v1/models/ll*", "both")).status == 404


# --- prices


async def test_a_fallback_costs_what_its_own_service_does(world: World) -> None:
    prices = {"a": 1.0, "b": 50.0}
    services = []
    for name, price in prices.items():
        services.append(await world.service(name, openai={"price": {"prompt": price}}))

    async def behave(wire: Any) -> None:
        while True:
            await world.engines["b"].request(wire)
            told = b'{"usage": {"prompt_tokens": 1000000}}'
            await wire.send(world.kit.answer(told, extra=b"Content-Type: application/json\r\n"))

    world.engines["b"].behave = behave
    await world.engines["a"].stop()
    models = {"m": {"to": [{"service": "a"}], "fallbacks": [{"service": "b"}]}}
    await world.start(*services, keys={"k": {}}, front={"models": models})
    assert (await world.post(chat("m"))).status == 200
    await world.kit.until(world.lb.quiet)
    assert world.lb.worker.snapshot()["models"]["m"]["cost"] == pytest.approx(50.0)


# --- providers outside


async def test_a_providers_other_pages_are_not_to_be_had(world: World) -> None:
    outside = await world.service("outside", openai={"external": True})
    await world.start(outside, keys={"k": {}})
    for target in (b"/", b"/admin", b"/v1x", b"/v1/../admin", b"/%61dmin"):
        assert (await world.get(target)).status == 404
        assert (await world.post(b"{}", target)).status == 404
    assert not world.asked()
    assert (await world.get(b"/v1/files")).status == 200
    assert (await world.post(chat("m"))).status == 200


async def test_a_provider_with_a_host_of_its_own_has_its_pages(world: World) -> None:
    first = await world.service("a")
    outside = await world.service("outside", openai={"external": True}, hosts=("out.example",))
    await world.start(first, outside, keys={"k": {}})
    assert (await world.get(b"/admin", host=b"out.example")).status == 200
    assert len(world.engines["outside"].requests) == 1


# --- one connection, many requests


@pytest.mark.parametrize("end", ["taken away", "expired", "bound to another model"])
async def test_a_key_that_ends_ends_on_a_connection_that_is_open(world: World, end: str) -> None:
    """Who asks is known again with the head of the request before it, and no longer than that holds."""
    now = time.time()
    expires = dt.datetime.fromtimestamp(now + 600, dt.UTC).isoformat()
    await world.start(
        await world.service("a", openai={"models": ["a"]}),
        keys={"k": {"expires": expires} if end == "expired" else {}},
    )
    keys = world.lb.worker.balancer.front.state.keys
    raw = world.kit.post(chat("a"), b"/v1/chat/completions", b"Authorization: Bearer k\r\n")
    wire = await world.lb.client()
    for _ in range(3):
        await wire.send(raw)
        assert (await wire.message()).status == 200
    path = world.folder / "keys.yaml"
    if end == "expired":
        keys._clock = lambda: now + 601
    elif end == "taken away":
        path.write_text("keys: []")
        assert keys.poll()
    else:
        path.write_text(path.read_text().replace("- name: k", "- models: [b]\n  name: k"))
        assert keys.poll()
    await wire.send(raw)
    assert (await wire.message()).status == (404 if end == "bound to another model" else 401)
    assert world.asked() == 3
