"""The front of the balancer for API traffic: key, model, limits, usage. It ties the parts together and decides nothing itself.

Built anew on each change of settings or services; what must outlive that (keys, counts, limits) is in `State`.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import orjson

from skyloom_common.bus import Bus
from skyloom_lb.admission.admission import Admission
from skyloom_lb.admission.config import service_limits
from skyloom_lb.admission.keys import Key, KeyStore
from skyloom_lb.admission.taken import Taken
from skyloom_lb.exchange import (
    ANONYMOUS,
    FREE,
    ClientStream,
    Observer,
    Outcome,
    Permit,
    PlainFront,
    Principal,
    Refusal,
    Reply,
    Route,
    render,
)
from skyloom_lb.openai import errors
from skyloom_lb.openai.asked import Asked, JsonObserver
from skyloom_lb.openai.config import FrontSettings
from skyloom_lb.openai.form import any_model, named
from skyloom_lb.openai.models import Model, ModelTable
from skyloom_lb.openai.request import (
    MODELS,
    PATHS,
    BadRequest,
    Kind,
    choices_of,
    kind_of,
    model_of,
    object_in,
    parse,
    plain_path,
)
from skyloom_lb.openai.sending import Way, is_form, is_usual, route_to, span_of
from skyloom_lb.openai.stream import StreamObserver, StreamPlan
from skyloom_lb.openai.upstream import ApiService
from skyloom_lb.pipeline.model import Random
from skyloom_lb.wire.request import RequestHead

if TYPE_CHECKING:
    from skyloom_lb.service import Service
    from skyloom_lb.wire.response import ResponseHead

_EVENTS = b"text/event-stream"
_JSON = b"application/json"


@dataclass(slots=True)
class State:
    """What outlives a reload."""

    admission: Admission
    random: Random
    keys: KeyStore | None = None
    bus: Bus | None = None
    principals: dict[bytes, Principal] = field(default_factory=dict)
    started: int = field(default_factory=lambda: int(time.time()))

    async def close(self) -> None:
        if self.bus is not None:
            await self.bus.close()


class OpenAiFront:
    def __init__(
        self,
        services: Mapping[str, Service],
        settings: FrontSettings,
        state: State,
        environ: Mapping[str, str],
    ) -> None:
        self._services = services
        self._settings = settings
        self.state = state
        self._plain = PlainFront(dict(services))
        self._api = {name: ApiService(service, environ) for name, service in services.items()}
        self._seen: dict[str, object] = {}
        self._max_body = settings.max_body_mb * 1024 * 1024
        limits = {name: service_limits(name, one.settings.limits) for name, one in services.items()}
        state.admission.configure(limits)
        self._limited = {name for name, one in limits.items() if one.limits.any}
        self._by_tokens = {name for name, one in limits.items() if one.tokens_per_minute}
        """Services whose tokens are limited."""
        self._admission = state.admission
        self._build()

    def _build(self) -> None:
        faces = [api for api in self._api.values() if api.settings.face]
        self._seen = {name: service.backends for name, service in self._services.items()}
        self.table = ModelTable(self._settings, [api.served() for api in faces])

    def endpoints_changed(self) -> bool:
        """True when some did since the last look: they may serve models of their own."""
        if all(service.backends is self._seen.get(name) for name, service in self._services.items()):
            return False
        self._build()
        return True

    # --- who

    def authenticate(self, head: RequestHead, peer: str) -> Principal | Refusal:
        keys = self.state.keys
        if keys is None:
            return ANONYMOUS
        asker = head.asker
        if asker is not None and asker[0] is keys.by_digest:
            known: Principal = asker[1]
            return known
        given = head.authorization
        if given[:7].lower() == b"bearer ":
            secret = given[7:].strip()
        else:
            secret = head.get(b"x-api-key") or head.get(b"api-key")
        if not secret:
            return errors.NO_KEY
        key = keys.find(secret)
        if key is None:
            return errors.WRONG_KEY
        principal = self.state.principals.get(key.digest)
        if principal is None or principal.data[0] is not key:
            principal = self._new_principal(key)
        if not key.ends_at:  # else it must be asked each time
            head.asker = (keys.by_digest, principal)
        return principal

    def _new_principal(self, key: Key) -> Principal:
        """Once for each key and reading of the file."""
        state = self.state
        assert state.keys is not None
        known = state.keys.by_digest
        for gone in [digest for digest in state.principals if digest not in known]:
            del state.principals[gone]
        data = (key, state.admission.key(key.name, key.limits))
        principal = state.principals[key.digest] = Principal(key.name, key.priority, data)
        return principal

    # --- where to

    def body_wanted(self, head: RequestHead) -> int:
        below = head.method == b"POST" and plain_path(head.path).startswith(b"/v1/")
        return self._max_body if below else 0

    def route(
        self, principal: Principal, head: RequestHead, body: bytes, complete: bool
    ) -> Route | Refusal | Reply:
        pinned = self._pinned(head) if self._plain.has_rules else None
        if pinned is not None and not pinned.settings.face:
            return self._as_it_is(principal, head, body, pinned)
        kind = PATHS.get(head.target)
        if kind is None:
            path = plain_path(head.path)
            kind = kind_of(path)
            if path == MODELS or path.startswith(b"/v1/models/"):
                found = self._models(principal, head, body, path, pinned)
                if found is not None:
                    return found
            if not path.startswith(b"/v1/"):
                return self._as_it_is(principal, head, body, pinned)
        if head.method != b"POST":
            return self._as_it_is(principal, head, body, pinned)
        key: Key | None = principal.data[0] if principal.data is not None else None
        if key is not None and key.scopes and not key.may_do(kind.value):
            return errors.out_of_scope(kind.value, tuple(sorted(key.scopes)))
        try:
            if not complete:
                return self._by_beginning(principal, kind, head, body, pinned)
            if kind is Kind.OTHER:
                return self._by_what_it_names(principal, head, body, pinned)
            data = parse(body)
            way: Way | None = head.way
            if way is not None and way.fits(self.table, key, data):
                return way.route
            return self._by_model(key, kind, head, body, data, pinned)
        except BadRequest as bad:
            return errors.bad_request(bad)

    def _by_beginning(
        self, principal: Principal, kind: Kind, head: RequestHead, body: bytes, pinned: ApiService | None
    ) -> Route | Refusal | Reply:
        """Too much to be read ahead: a form may tell its model at its beginning, and one service is always right."""
        form = kind is Kind.OTHER and is_form(head)
        key: Key | None = principal.data[0] if principal.data is not None else None
        uncounted = not (form and body.startswith(b"--"))
        if uncounted and key is not None and key.limits.tokens_per_minute:
            return errors.too_large(self._settings.max_body_mb)
        if not self.table.takes_any and pinned is None:
            model = self._find(named(body, any_model(body))) if form else None
            if model is None or model.chosen[0].model not in ("", model.name):
                return errors.too_large(self._settings.max_body_mb)
            pinned = self._api[model.chosen[0].service]
        found = self._as_it_is(principal, head, body, pinned)
        if uncounted and isinstance(found, Route) and found.service.name in self._by_tokens:
            return errors.too_large(self._settings.max_body_mb)
        return found

    def _pinned(self, head: RequestHead) -> ApiService | None:
        """A service whose host or path prefix the request has."""
        service = self._plain.matched(head)
        return self._api[service.name] if service is not None else None

    def _as_it_is(
        self, principal: Principal, head: RequestHead, body: bytes, pinned: ApiService | None,
        scope: str = "other",
    ) -> Route | Refusal | Reply:  # fmt: skip
        key: Key | None = principal.data[0] if principal.data is not None else None
        if key is not None and not key.may_do(scope):
            return errors.out_of_scope(scope, tuple(sorted(key.scopes)))
        found = self._plain.route(principal, head, body, True)
        if not isinstance(found, Route):
            return found
        api = self._api[found.service.name] if pinned is None else pinned
        if api.service is not found.service:
            found = replace(found, service=api.service)
        if key is not None and not self._may_service(key, api):
            return errors.no_model(api.service.name, 1)
        if api.settings.external and pinned is None and not plain_path(head.path).startswith(b"/v1/"):
            return errors.NO_PATH  # a stranger's other pages are not to be had with our key
        drop, add = api.drop(principal.data is not None), api.add
        return (
            replace(found, drop=drop, add=add, external=True)
            if api.settings.external
            else (replace(found, drop=drop, add=add) if drop or add else found)
        )

    def _may_service(self, key: Key, api: ApiService) -> bool:
        """A key that is bound to models reaches no service by a path that names none, unless it may use it whole."""
        return not key.models or key.may_use(api.service.name)

    def _by_what_it_names(
        self, principal: Principal, head: RequestHead, body: bytes, pinned: ApiService | None
    ) -> Route | Refusal | Reply:
        """Of a path that we do not know."""
        key: Key | None = principal.data[0] if principal.data is not None else None
        data = self._data(key, head, body)
        if not data and key is not None and key.models:  # an engine may find a model in it where we do not
            return self._as_it_is(principal, head, body, pinned)
        return self._by_model(key, Kind.OTHER, head, body, data, pinned)

    def _by_model(
        self, key: Key | None, kind: Kind, head: RequestHead, body: bytes, data: dict[str, Any],
        pinned: ApiService | None,
    ) -> Route | Refusal:  # fmt: skip
        name = model_of(data)
        model = self._find(name) if pinned is None else self.table.first.get(pinned.service.name)
        if model is None and kind is Kind.OTHER and not name:
            model = next(iter(self.table.first.values()), None)
        if model is None:
            return errors.no_model(name, len(self._api)) if name else errors.NO_MODEL_NAMED
        if key is not None and key.models and not self._may_model(key, model, name, pinned):
            return errors.no_model(name, len(self._api))
        if len(model.chosen) == 1 and not model.fallbacks:
            target = model.chosen[0]
            api = self._api[target.service]
            only = route_to(api, kind, model, target, name, data, body, key, None, head)
            unlimited = api.service.name not in self._limited and (key is None or not key.limits.any)
            if unlimited and is_usual(only, api, kind, data):
                head.way = Way(self.table, key, name, only)
            return only
        first = model.choose(self.state.random.random())
        chain = (first, *model.after(first))
        route: Route | None = None
        for target in reversed(chain):
            api = self._api[target.service]
            route = route_to(api, kind, model, target, name, data, body, key, route, head)
        assert route is not None
        return route

    def _may_model(self, key: Key, model: Model, name: str, pinned: ApiService | None) -> bool:
        """The model that is served counts. Its name may be the one that was written only where that chose it, or will."""
        if key.may_use(model.name or name):
            return True
        chose = pinned is None or (self.table.takes_any and not model.chosen[0].model)
        return chose and key.may_use(name)

    def _find(self, name: str) -> Model | None:
        model = self.table.find(name)
        if model is None and self.endpoints_changed():
            model = self.table.find(name)
        return model

    def _data(self, key: Key | None, head: RequestHead, body: bytes) -> dict[str, Any]:
        """It may be no JSON at all. What it says of itself is not believed where the key's models or tokens depend on it."""
        strict = key is not None and key.strict
        if is_form(head):
            model = named(body, span_of(head, body, strict))
            return {"model": model} if model else {}
        content_type = head.get(b"content-type").lower()
        if body and (not content_type or _JSON in content_type):
            return parse(body)
        return object_in(body) if strict else {}

    # --- models

    def _models(
        self, principal: Principal, head: RequestHead, body: bytes, path: bytes, pinned: ApiService | None
    ) -> Route | Reply | Refusal | None:
        """None: nothing is asked about them. With one service and nothing configured its engine is asked."""
        key: Key | None = principal.data[0] if principal.data is not None else None
        if key is not None and not key.may_do("models"):
            return errors.out_of_scope("models", tuple(sorted(key.scopes)))
        if head.method != b"GET":
            return None
        self.endpoints_changed()
        if pinned is not None or (self.table.takes_any and not self.table.knows_names):
            if key is None or not key.models:
                return self._as_it_is(principal, head, body, pinned, "models")
            # What the endpoints would list is more than this key may use.
            owners = dict.fromkeys(key.names, Model("", (), ()))
            return self._told_of(owners, owners, path)
        if key is None or not key.models:
            owners = {one.name: one for one in self.table.names()}
            return self._told_of(owners, owners | self.table.by_alias(), path)
        known = {one.name: one for one in self.table.names()} | self.table.by_alias()
        mine = {name: one for name, one in sorted(known.items()) if key.may_use(name)}
        return self._told_of(mine, {**mine, **self._reached(key, known)}, path)

    def _reached(self, key: Key, known: Mapping[str, Model]) -> dict[str, Model]:
        """Whoever may use a model may call it by each of its aliases."""
        return {name: one for name, one in known.items() if key.may_use(one.name)}

    def _told_of(
        self, listed: Mapping[str, Model], known: Mapping[str, Model], path: bytes
    ) -> Reply | Refusal:
        """The list, or the one that the path names."""
        if path == MODELS:
            data = [self._model_object(name, one) for name, one in listed.items()]
            return Reply(200, orjson.dumps({"object": "list", "data": data}))
        wanted = path[len(MODELS) + 1 :].decode("utf-8", "replace")
        if wanted in known:
            return Reply(200, orjson.dumps(self._model_object(wanted, known[wanted])))
        return errors.no_model(wanted, len(self._api))

    def _model_object(self, name: str, model: Model) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self.state.started, "owned_by": model.owned_by}

    # --- whether now

    def admit(
        self, principal: Principal, route: Route, client: ClientStream
    ) -> Permit | Refusal | Awaitable[Permit | Refusal]:
        asked: Asked | None = route.data
        admission = self._admission
        key: Taken = principal.data[1] if principal.data is not None else admission.nobody
        if admission.is_open(route.service, key):
            return FREE
        return admission.admit(
            route.service,
            key,
            principal.priority,
            asked.tokens() if asked is not None else 0,
            client if route.stream else None,
            route.fallback is not None,
        )

    # --- what comes back

    def observer(self, route: Route, response: ResponseHead, outcome: Outcome) -> Observer | None:
        asked: Asked | None = route.data
        if asked is None:
            return None
        if response.is_json and (asked.kind is not Kind.OTHER or asked.has_usage):
            return JsonObserver(b"", outcome)
        if response.content_type.startswith(_EVENTS):
            if response.get(b"content-encoding") not in (b"", b"identity"):
                return None  # packed: it goes on as it is
            body = asked.body or outcome.body  # of a usual way nothing is kept: nobody asked for this stream
            plan = StreamPlan(
                asked.kind,
                body,
                asked.service.continues(outcome.endpoint),
                asked.by_ids,
                asked.wants_usage,
                asked.hides_usage,
                asked.prompt_tokens,
                asked.price,
                choices_of(asked.kind, asked.data or object_in(body)),
            )
            return StreamObserver(plan, outcome)
        if response.content_type.startswith(_JSON) and asked.has_usage:
            return JsonObserver(response.get(b"content-encoding"), outcome)
        return None

    def finish(self, outcome: Outcome) -> None:
        route = outcome.route
        if route is None or route.data is None:
            return
        asked: Asked = route.data
        observer = outcome.observer
        if observer is not None:
            observer.count()  # it may have been cut off in the middle
            if not outcome.prompt_tokens and outcome.completion_tokens:
                outcome.prompt_tokens = asked.prompt_tokens  # not every stream tells it where it ends
            if observer.whole:
                outcome.error = ""  # an endpoint died, but nobody misses anything
        if asked.price is not None and outcome.first_byte:
            outcome.cost = asked.price.of(
                outcome.prompt_tokens, outcome.cached_tokens, outcome.completion_tokens
            )
        asked.body, asked.data = b"", {}

    def render(self, refusal: Refusal) -> tuple[bytes, bytes]:
        return render(refusal)

    def stream_error(self, refusal: Refusal, route: Route | None) -> bytes:
        asked: Asked | None = route.data if route is not None else None
        kind = asked.kind if asked is not None else Kind.CHAT
        return errors.broken_stream(kind, refusal.code, refusal.message)

    def counters(self) -> dict[str, int]:
        """Names that begin with `now_` are gauges."""
        admission = self._admission
        return {
            "limits_without_redis": admission.redis_failures,
            "limits_unlocked": admission.ledger_missed,
            "now_limits_alone": int(bool(admission.trouble)),
        }

    @property
    def limits_trouble(self) -> str:
        return self._admission.trouble

    async def close(self) -> None:
        await self.state.close()
