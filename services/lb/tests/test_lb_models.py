"""Models by name: which service gets a request, what else is tried, what is listed; and reading requests and answers."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from typing import Any

import pytest
import yaml

from skyloom_common.core.errors import InvalidRequest
from skyloom_lb.openai.config import Price, front_settings, secret_of, service_settings
from skyloom_lb.openai.form import any_model, named, the_model, with_model
from skyloom_lb.openai.models import Model, ModelTable, Served
from skyloom_lb.openai.request import (
    BadRequest,
    Kind,
    choices_of,
    estimate,
    kind_of,
    model_of,
    parse,
    plain_path,
    prompt_bytes,
    stream_of,
    with_fields,
)
from skyloom_lb.openai.usage import Tail, Usage, usage_in

TWO = {
    "models": {
        "small": {
            "to": [{"service": "v1", "weight": 9}, {"service": "v2", "model": "tiny-2"}],
            "aliases": ["gpt-4o-mini"],
            "fallbacks": [{"service": "big"}, {"service": "outside", "model": "gpt"}],
            "price": {"prompt": 1, "completion": 2},
        }
    }
}
SERVICES = (Served("v1"), Served("v2"), Served("big", ("llama",)), Served("outside", external=True))


def table(data: dict[str, Any] = TWO, services: tuple[Served, ...] = SERVICES) -> ModelTable:
    return ModelTable(front_settings(data), services)


def found(one: ModelTable, name: str) -> Model:
    model = one.find(name)
    assert model is not None
    return model


def test_names_and_aliases() -> None:
    one = table()
    assert one.find("small") is one.find("gpt-4o-mini") is not None
    assert one.find("gpt-5") is None and one.find("") is None
    assert [model.name for model in one.names()] == ["small"]
    assert one.by_alias() == {"gpt-4o-mini": one.find("small")}


def test_weights_share_the_requests_and_the_rest_is_a_fallback() -> None:
    model = found(table(), "small")
    chosen = Counter(model.choose(number / 1000).service for number in range(1000))
    assert chosen == {"v1": 900, "v2": 100}
    first = model.choose(0.0)
    assert [(one.service, one.model) for one in model.after(first)] == [
        ("v2", "tiny-2"), ("big", "llama"), ("outside", "gpt"),
    ]  # fmt: skip


def test_a_models_price_is_its_own_or_that_of_whoever_answers() -> None:
    price = Price(1.0)
    one = table(
        {"models": {"m": {"to": [{"service": "a"}], "fallbacks": [{"service": "b"}]}}},
        (Served("a", price=price), Served("b")),
    )
    assert found(one, "m").price is None and found(table(), "small").price == Price(1.0, 2.0)


def test_a_weight_of_nothing_gets_nothing() -> None:
    one = table({"models": {"m": {"to": [{"service": "v1"}, {"service": "v2", "weight": 0}]}}})
    assert {found(one, "m").choose(number / 100).service for number in range(100)} == {"v1"}


def test_a_missing_service_is_told_and_left_out() -> None:
    one = table({"models": {"m": {"to": [{"service": "gone"}], "fallbacks": [{"service": "v1"}]}}})
    assert one.missing == ["gone"] and found(one, "m").choose(0.5).service == "v1"


def test_without_a_table_services_and_their_endpoints_speak_for_themselves() -> None:
    one = table(
        {}, (Served("a", ("m1", "m2")), Served("b", (), ("m3",)), Served("c"), Served("x", external=True))
    )
    assert [model.name for model in one.names()] == ["c", "m1", "m2", "m3"]
    assert found(one, "a").chosen[0].model == "m1" and found(one, "c").chosen[0].model == ""
    assert one.find("m9") is None


def test_one_service_takes_any_name() -> None:
    one = table({}, (Served("only"),))
    assert found(one, "whatever").chosen[0] == found(one, "").chosen[0]


def test_the_default_model() -> None:
    assert table({**TWO, "default_model": "small"}).find("") is not None


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"models": {"m": {}}}, "at least one service"),
        ({"models": {"m": {"to": [{"service": "a", "weight": -1}]}}}, "below 0"),
        ({"models": {"m": {"to": [{"service": "a", "weight": 0}]}}}, "above 0"),
        ({"models": {"m": {"to": [{"service": "a"}], "aliases": ["m"]}}}, "'m' is a name of"),
        ({"default_model": "x", "models": {"m": {"to": [{"service": "a"}]}}}, "'x'"),
        ({"modells": {}}, "modells"),
    ],
)
def test_wrong_tables_are_named(data: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        front_settings(data)


def test_switches_as_yaml_reads_them() -> None:
    made = service_settings("s", yaml.safe_load("{continuation: off, usage: on, engine: vllm}"))
    assert not made.continues("vllm") and made.counts("unknown")


def test_wrong_services_are_named() -> None:
    with pytest.raises(InvalidRequest, match="'sometimes'"):
        service_settings("s", {"continuation": "sometimes"})
    with pytest.raises(InvalidRequest, match="SKYLOOM_NO_SUCH"):
        secret_of(service_settings("s", {"api_key_env": "SKYLOOM_NO_SUCH"}), {})


# --- requests


@pytest.mark.parametrize("wrong", [b"", b"{", b"[]", b'"x"', b"\xff"])
def test_bodies_that_are_no_object(wrong: bytes) -> None:
    with pytest.raises(BadRequest):
        parse(wrong)


def test_a_model_is_a_string() -> None:
    assert model_of({}) == "" and model_of({"model": "m"}) == "m"
    with pytest.raises(BadRequest):
        model_of({"model": 7})


def test_a_form_has_a_model_too() -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n--x--\r\n'
    for find in (any_model, lambda body: the_model(b"multipart/form-data; boundary=x", body)):
        assert named(body, find(body)) == "whisper-1"
        changed = with_model(body, find(body), "other")
        assert named(changed, find(changed)) == "other"
    assert named(b"--x", any_model(b"--x")) == "" and with_model(b"--x", None, "other") == b"--x"


FORM = b"multipart/form-data; boundary=XX"
MODEL = b'Content-Disposition: form-data; name="model"'
FILE = b'Content-Disposition: form-data; name="file"; filename="a b.wav"\r\nContent-Type: audio/wav\r\n\r\n\r\n\0-'


def form(*parts: bytes, end: bytes = b"--XX--\r\n") -> bytes:
    return b"".join(b"--XX\r\n" + part + b"\r\n" for part in parts) + end


@pytest.mark.parametrize(
    ("body", "model"),
    [
        (form(MODEL + b"\r\n\r\nm1", FILE), "m1"),
        (form(FILE, MODEL + b"\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 2\r\n\r\nm1"), "m1"),
        (form(b"content-disposition:form-data;name=model\r\n\r\nm1", end=b"--XX--"), "m1"),
        (form(FILE), ""),
        (form(b'Content-Disposition: form-data; name="prompt"\r\n\r\nname="model"\r\n\r\nm2', MODEL + b"\r\n\r\nm1"), "m1"),
        (form(b"Content-Disposition: form-data; name=\"f\"; filename=\"x\"; filename*=utf-8''x\r\n\r\nx"), ""),
    ],
)  # fmt: skip
def test_a_plain_form(body: bytes, model: str) -> None:
    assert named(body, the_model(FORM, body)) == model
    assert named(body, the_model(b'multipart/form-data; boundary="XX"', body)) == model


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (form(MODEL + b"\r\n\r\nm1", MODEL + b"\r\n\r\nm2"), "there twice"),
        (form(MODEL + b"; x=1\r\n\r\nm1"), "Content-Disposition"),
        (form(b'Content-Disposition: form-data; NAME="model"\r\n\r\nm1'), "Content-Disposition"),
        (form(MODEL + b'; filename="x"\r\n\r\nm1'), "plain text"),
        (form(MODEL + b'; name="file"\r\n\r\nm1'), "Content-Disposition"),
        (form(b'Content-Disposition: form-data; name="f"; filename="a\\"; name=\\"model"\r\n\r\nm1'), "Content-Disposition"),
        (form(b'Content-Disposition: form-data; name*=utf-8\'\'model\r\n\r\nm1'), "Content-Disposition"),
        (form(b'Content-Disposition: form-data;\r\n name="model"\r\n\r\nm1'), "folded"),
        (form(b'Content-Disposition: form-data; name="f"\r\n' + MODEL + b"\r\n\r\nm1"), "there twice"),
        (form(MODEL + b"\r\nContent-Transfer-Encoding: base64\r\n\r\nbTI="), "plain text"),
        (form(MODEL + b"\r\nContent-Type: text/plain; charset=utf-16\r\n\r\nm1"), "plain text"),
        (form(MODEL + b"\r\n\r\n m1"), "not a name"),
        (form(MODEL + b"\r\n\r\nm1\r\n"), "not a name"),
        (form(MODEL + b"\r\n\r\n"), "not a name"),
        (form(MODEL), "headers"),
        (form(b"\r\nm1"), "headers"),
        (form(MODEL + b"\r\n\r\nm1", end=b""), "end with"),
        (form(MODEL + b"\r\n\r\nm1", end=b"--XX-- \r\n"), "more after its end"),
        (form(MODEL + b"\r\n\r\nm1", end=b"--XX--\r\n--XX\r\n"), "within a part"),
        (b"\r\n" + form(MODEL + b"\r\n\r\nm1"), "begin with"),
        (form(MODEL + b"\r\n\r\nm1").replace(b"\r\n", b"\n"), "begin with"),
        (form(FILE + b"\n--XX\n" + MODEL + b"\n\nm2\n", MODEL + b"\r\n\r\nm1"), "within a part"),
        (form(FILE + b"\r\n--XX \r\n" + MODEL + b"\r\n\r\nm2", MODEL + b"\r\n\r\nm1"), "end with"),
        (b'{"model": "m1"}', "begin with"),
        (b"", "begin with"),
    ],
)  # fmt: skip
def test_a_form_with_two_readings_is_refused(body: bytes, why: str) -> None:
    with pytest.raises(BadRequest, match=why):
        the_model(FORM, body)


@pytest.mark.parametrize(
    "content_type",
    [b"multipart/mixed; boundary=XX", b"multipart/form-data", b"multipart/form-data; boundary=YY; boundary=XX",
     b"multipart/form-data; boundary=XX,YY",     b"multipart/form-data; boundary=XX; charset=utf-16", b"multipart/form-data; boundary=X X"],
)  # fmt: skip
def test_a_form_whose_type_has_two_readings_is_refused(content_type: bytes) -> None:
    with pytest.raises(BadRequest, match="Content-Type"):
        the_model(content_type, form(MODEL + b"\r\n\r\nm1"))


def test_stream_is_true_or_false() -> None:
    assert stream_of({"stream": True}) and not stream_of({"stream": False})
    assert not stream_of({}) and not stream_of({"stream": None})
    for wrong in (1, 0, "true", "", [], 1.0):
        with pytest.raises(BadRequest) as refused:
            stream_of({"stream": wrong})
        assert refused.value.param == "stream"


@pytest.mark.parametrize(
    ("kind", "data", "count"),
    [
        (Kind.CHAT, {}, 1),
        (Kind.CHAT, {"n": 3}, 3),
        (Kind.CHAT, {"n": 0}, 1),
        (Kind.CHAT, {"n": -2}, 1),
        (Kind.CHAT, {"n": "3"}, 1),
        (Kind.CHAT, {"n": True}, 1),
        (Kind.CHAT, {"n": 2, "prompt": ["a", "b"]}, 2),
        (Kind.COMPLETIONS, {"prompt": "abc"}, 1),
        (Kind.COMPLETIONS, {"prompt": []}, 1),
        (Kind.COMPLETIONS, {"prompt": ["a"]}, 1),
        (Kind.COMPLETIONS, {"prompt": ["a", "b"], "n": 2}, 4),
        (Kind.COMPLETIONS, {"prompt": [1, 2, 3]}, 1),
        (Kind.COMPLETIONS, {"prompt": [[1, 2], [3], [4]]}, 3),
    ],
)
def test_how_many_answers_are_asked_for(kind: Kind, data: dict[str, Any], count: int) -> None:
    assert choices_of(kind, data) == count


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        (b"/v1/chat/completions/", Kind.CHAT),
        (b"//v1/completions", Kind.COMPLETIONS),
        (b"/%76%31/embeddings", Kind.EMBEDDINGS),
        (b"/v1/messages", Kind.OTHER),
    ],
)
def test_a_path_is_known_however_it_is_written(path: bytes, kind: Kind) -> None:
    assert kind_of(plain_path(path)) is kind


@pytest.mark.parametrize(
    ("kind", "data", "least", "most"),
    [
        (Kind.CHAT, {"messages": [{"role": "user", "content": "x" * 400}], "max_tokens": 10}, 100, 130),
        (Kind.CHAT, {"messages": [], "n": 3, "max_completion_tokens": 100}, 300, 330),
        (Kind.COMPLETIONS, {"prompt": "x"}, 256, 270),
        (Kind.COMPLETIONS, {"prompt": ["x"] * 10, "max_tokens": 5}, 50, 80),
        (Kind.EMBEDDINGS, {"input": ["x" * 4000]}, 1000, 1010),
        (Kind.OTHER, {"model": "m", "messages": [], "max_tokens": 50}, 50, 70),
        (Kind.OTHER, {"model": "m", "documents": ["x" * 400]}, 0, 0),
        (
            Kind.CHAT,
            {
                "messages": [
                    {
                        "content": [
                            {"image_url": {"url": "data:image/png;base64," + "A" * 50_000}},
                            {"text": "hi"},
                        ]
                    }
                ],
                "max_tokens": 1,
            },
            1,
            20,
        ),
    ],
)
def test_estimates(kind: Kind, data: dict[str, Any], least: int, most: int) -> None:
    assert least <= estimate(kind, data, len(json.dumps(data))) <= most


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (b'{"a": 1}', {"b": {"c": True}}),
        (b'{"a": {"x": "}"}} \n', {"b": 2}),
        (b'{"a": 1}', {"a": 2}),
        (b"{}", {"a": 2}),
    ],
)
def test_fields_are_added(body: bytes, fields: dict[str, Any]) -> None:
    data = json.loads(body)
    assert json.loads(with_fields(body, data, fields)) == {**data, **fields}


def test_the_prompt_begins_where_it_begins() -> None:
    assert prompt_bytes(b'{"model":"m","temperature":1,"messages":[1]}') == b'"messages":[1]}'
    assert prompt_bytes(b'{"model":"m","prompt":"x"}') == b'"prompt":"x"}'


# --- usage


@pytest.mark.parametrize(
    ("body", "usage"),
    [
        (b'{"usage": {"prompt_tokens": 3, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 2}}}',
         Usage(3, 4, 2)),
        (b'{"usage":{"input_tokens":3,"output_tokens":4,"input_tokens_details":{"cached_tokens":1}}}', Usage(3, 4, 1)),
        (b'{"usage":{"prompt_tokens":9,"total_tokens":9}}', Usage(9, 0, 0)),
        (b'{"choices":[{"text":"\\"usage\\": {\\"prompt_tokens\\": 99}"}],"usage":{"prompt_tokens":1}}', Usage(1)),
        (b'{"usage":{"prompt_tokens":1,"completion_tokens":1},"x":{"usage":null}}', Usage(1, 1)), (b"[]", None),
        (b'{"usage":null}', None), (b'{"usage":{"prompt_tokens":', None), (b"", None), (b'"usage"', None),
        (b'{"usage":{"prompt_tokens":-5,"completion_tokens":"x"}}', None),
        (b'{"usage":{"prompt_tokens":18446744073709551615,"completion_tokens":1099511627776}}', None),
        (b'{"usage":{"prompt_tokens":true,"completion_tokens":1.5,"total_tokens":1e300}}', None),
        (b'{"usage":{"prompt_tokens":18446744073709551615,"completion_tokens":7}}', Usage(0, 7)),
    ],
)  # fmt: skip
def test_usage_in_an_answer(body: bytes, usage: Usage | None) -> None:
    assert usage_in(body) == usage
    padded = body.replace(b"{", b'{"x":"' + b"y" * 5000 + b'",', 1) if body.startswith(b"{") else body
    assert usage_in(padded) == usage


def test_usage_of_a_long_or_packed_answer() -> None:
    body = b'{"data": "' + b"x" * 3_000_000 + b'", "usage": {"prompt_tokens": 5}}'
    for encoding, sent in ((b"", body), (b"gzip", gzip.compress(body[-2000:]))):
        tail = Tail(encoding)
        for at in range(0, len(sent), 1000):
            tail.add(sent[at : at + 1000])
        assert tail.usage() == Usage(5)
    bomb, unknown = Tail(b"gzip"), Tail(b"br")
    bomb.add(gzip.compress(b"\0" * 50_000_000))
    unknown.add(b'{"usage": {"prompt_tokens": 5}}')
    assert bomb.usage() is None and unknown.usage() is None


def test_a_price() -> None:
    assert Price(1.0, 2.0, 0.5).of(1_000_000, 200_000, 1_000_000) == pytest.approx(0.8 + 0.1 + 2.0)
    assert Price(1.0).of(10, 20, 0) == pytest.approx(10 / 1e6)
