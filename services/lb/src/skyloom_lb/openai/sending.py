"""What an endpoint gets of an API request: the model under the name it knows there, the stream options that we need, no key of ours."""

from __future__ import annotations

from typing import Any

import orjson

from skyloom_lb.admission.keys import Key
from skyloom_lb.exchange import Route
from skyloom_lb.openai.asked import Asked
from skyloom_lb.openai.config import TOKENS, Target
from skyloom_lb.openai.form import Span, any_model, the_model, with_model
from skyloom_lb.openai.models import Model, ModelTable
from skyloom_lb.openai.request import (
    BadRequest,
    Kind,
    prompt_bytes,
    prompt_tokens_of,
    stream_of,
    with_fields,
)
from skyloom_lb.openai.upstream import ApiService
from skyloom_lb.pipeline.model import NO_FACTS, LbRequest
from skyloom_lb.wire.request import RequestHead

_TYPE = b"content-type"
_AS_JSON = b"content-type: application/json\r\n"


def route_to(
    api: ApiService, kind: Kind, model: Model, target: Target, name: str, data: dict[str, Any], body: bytes,
    key: Key | None, fallback: Route | None, head: RequestHead,
) -> Route:  # fmt: skip
    asked = Asked(kind, api, model.price or api.settings.price, data)
    stream = stream_of(data)
    sent = body
    drop, add = api.drop(key is not None, stream), api.add
    if target.model and target.model != name:
        if kind is Kind.OTHER and is_form(head):
            sent = with_model(body, span_of(head, body, key is not None and key.strict), target.model)
        elif data:
            data = {**data, "model": target.model}
            sent = orjson.dumps(data)
    if key is not None and key.models and data and not (kind is Kind.OTHER and is_form(head)):
        # Exactly what was checked, as what it was read: neither a second "model" nor another type may mean something.
        sent = orjson.dumps(data) if sent is body else sent
        drop, add = (*drop, _TYPE), add + _AS_JSON
    if stream:
        sent = _prepared_stream(asked, api, data, sent)
    asked.body = sent
    return Route(
        api.service,
        _facts(api, head, body, data) if api.affine else NO_FACTS,
        None,
        None if sent is body else sent,
        drop,
        add,
        model.name or api.service.name,
        stream,
        api.replays(kind, data),
        fallback,
        True,
        asked,
        api.settings.external,
    )


class Way:
    """Where a head's last request went, for the next one: the models, the key and what the body says must be the same. What only
    that request said is forgotten."""

    __slots__ = ("_key", "_name", "_table", "route")

    def __init__(self, table: ModelTable, key: Key | None, name: str, route: Route) -> None:
        self._table = table
        self._key = key
        self._name = name
        self.route = route
        route.usual = True
        asked: Asked = route.data
        asked.body, asked.data = b"", {}

    def fits(self, table: ModelTable, key: Key | None, data: dict[str, Any]) -> bool:
        if self._table is not table or self._key is not key or data.get("model") != self._name:
            return False
        stream = data.get("stream")
        return (stream is None or stream is False) and not data.get("store")


def is_usual(route: Route, api: ApiService, kind: Kind, data: dict[str, Any]) -> bool:
    """Whether nothing of the route depends on the body, but for what `Way.fits` looks at."""
    return (
        route.body is None
        and not (route.stream or api.affine)
        and kind is not Kind.OTHER
        and not data.get("store")
        and isinstance(data.get("model"), str)
    )


def _prepared_stream(asked: Asked, api: ApiService, data: dict[str, Any], body: bytes) -> bytes:
    """Usage is asked for although the client did not want it, and hidden from it again."""
    asked.prompt_tokens = prompt_tokens_of(data, len(body))
    if asked.kind not in (Kind.CHAT, Kind.COMPLETIONS):
        return body
    options = data.get("stream_options")
    asked.wants_usage = isinstance(options, dict) and bool(options.get("include_usage"))
    fields: dict[str, Any] = {}
    if not asked.wants_usage and api.counts:
        asked.hides_usage = True
        fields["stream_options"] = {
            **(options if isinstance(options, dict) else {}),
            "include_usage": True,
        }
    if api.settings.continuation == TOKENS and "return_token_ids" not in data:
        fields["return_token_ids"] = True
        asked.by_ids = True
    return with_fields(body, data, fields) if fields else body


def _facts(api: ApiService, head: RequestHead, body: bytes, data: dict[str, Any]) -> LbRequest:
    facts = api.service.facts(head, prompt_bytes(body))
    if not facts.session and api.service.settings.affinity.user:
        user = data.get("user") or data.get("prompt_cache_key") or data.get("safety_identifier")
        if isinstance(user, str):
            return LbRequest(user, facts.prompt, facts.zone)
    return facts


def is_form(head: RequestHead) -> bool:
    return head.get(b"content-type").lower().startswith(b"multipart/")


def span_of(head: RequestHead, body: bytes, strict: bool) -> Span | None:
    """Where a form names its model. `strict`: something is allowed by it, so that there must be no other reading."""
    if not strict:
        return any_model(body)
    types = [value for name, value in head.headers if name == _TYPE]
    if len(types) != 1:
        raise BadRequest("The form cannot be read in one way only: Content-Type is there twice.")
    return the_model(types[0], body)
