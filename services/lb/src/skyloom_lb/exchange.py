"""The seams of one request: what both lanes ask the front (keys, models, limits) and what they tell it.

Both lanes call the hooks in this order: `authenticate`, `route`, `admit`, then per attempt the endpoint's service, then
`observer` once the final response head of a successful answer is there, `Observer.feed` for its payload, and `finish` exactly
once however the request ended. Everything but `admit` returns at once. No hook does I/O on the hot path; none may raise.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from skyloom_lb.pipeline.model import NO_FACTS, LbRequest
from skyloom_lb.wire.chunks import chunk
from skyloom_lb.wire.request import IDEMPOTENT, RequestHead

if TYPE_CHECKING:
    from skyloom_lb.service import Service
    from skyloom_lb.wire.response import ResponseHead


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that the balancer gives itself (a model list, a page of words)."""

    status: int
    body: bytes
    content_type: bytes = b"application/json"
    headers: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not served: `code` for programs, `message` for people; `Front.render` gives it its form.

    `param` names the field of the request that is wrong, when one is.
    """

    status: int
    code: str
    message: str
    retry_after: float | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()
    param: str | None = None


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks: `id` is the key's name in metrics and logs (never the key itself), `data` is the front's own."""

    id: str = ""
    priority: int = 0
    data: Any = None


ANONYMOUS = Principal()
_TEXTS = 256
"""Texts that are kept one by one before they are put together."""


@dataclass(slots=True)
class Route:
    """Where a request goes and what is changed on its way. Not to be changed once it is given (frozen costs 1.5 µs).

    `target` and `body`: None = as the client sent them. `drop`: lower-case names of headers that do not go on; `add`: raw
    lines, each with its CR LF. `replayable`: the same request may be sent again although an endpoint may have begun with it
    (None = by its method). `fallback`: tried when this service gave no answer before the first byte.
    `observe`: an observer is wanted for this request's answer. `external`: to a stranger, who is not told who asked. `usual`: the
    next request with this head may get the same object; then nothing but the client's own body goes on.
    """

    service: Service
    facts: LbRequest = NO_FACTS
    target: bytes | None = None
    body: bytes | None = None
    drop: tuple[bytes, ...] = ()
    add: bytes = b""
    model: str = ""
    stream: bool = False
    replayable: bool | None = None
    fallback: Route | None = None
    observe: bool = False
    data: Any = None
    external: bool = False
    usual: bool = False

    def goes_on(self, refusal: Refusal) -> bool:
        """Whether the fallback is asked: not for what is the client's own fault or limit."""
        return self.fallback is not None and refusal.status >= 500

    def may_replay(self, head: RequestHead) -> bool:
        return head.method in IDEMPOTENT if self.replayable is None else self.replayable

    def with_facts(self, facts: LbRequest) -> Route:
        return replace(self, facts=facts)


class Permit(Protocol):
    """A place that was taken for a request; `release` is called exactly once. `headers`: raw lines for the answer's head."""

    @property
    def headers(self) -> bytes: ...

    def release(self, outcome: Outcome) -> None: ...


class FreePermit:
    headers = b""

    def release(self, outcome: Outcome) -> None:
        """Nothing was taken."""


FREE = FreePermit()


class ClientStream(Protocol):
    """The client's side while its request is held: an early start of a stream keeps impatient proxies and SDKs waiting."""

    def begin_stream(self) -> None:
        """Sends `200 text/event-stream` now. From here on errors can only be told as events (`Front.stream_error`)."""
        ...

    def send_payload(self, payload: bytes) -> None:
        """More of the stream, e.g. `b": waiting\\n\\n"`. Dropped once the client has gone."""
        ...


@dataclass(frozen=True, slots=True)
class Resume:
    """A request that continues a broken stream on another endpoint of the same service. `before`: first for the client."""

    body: bytes
    target: bytes | None = None
    drop: tuple[bytes, ...] = ()
    add: bytes = b""
    before: bytes = b""


class Steady:
    """How the next events of a stream look when they differ from the last one in their text alone.

    Such an event, alone in its chunk, may be passed on without `Observer.feed` if its text is noted here: as in JSON, without the
    quotes, with no quote in it and no backslash at its end. The observer takes them over (`taken`) before it looks at anything
    else. `before` and `after` hold the quotes; `onto` are the same two as the client gets them, None = as they come.
    """

    __slots__ = ("_texts", "after", "before", "count", "onto")

    def __init__(self, before: bytes, after: bytes, onto: tuple[bytes, bytes] | None = None) -> None:
        self.before = before
        self.after = after
        self.onto = onto
        self.count = 0
        self._texts: list[bytes] = []

    def note(self, text: bytes) -> None:
        self.count += 1
        texts = self._texts
        texts.append(text)
        if len(texts) > _TEXTS:
            self._texts = [b"".join(texts)]

    def rewritten(self, text: bytes) -> bytes:
        """The chunk that the client gets, where that is another one."""
        return chunk(b"%b%b%b" % (self.onto[0], text, self.onto[1])) if self.onto is not None else b""

    def taken(self) -> tuple[int, bytes]:
        """How many events there were, and their texts; from now on anew."""
        found = self.count, b"".join(self._texts)
        self.count, self._texts = 0, []
        return found


class Observer(Protocol):
    """Sees the payload (no chunk framing, content encoding as sent) of one answer.

    `rewrites`: the client gets what `feed` returns, framed anew; otherwise it gets the endpoint's own bytes and the return
    value is ignored, which costs less. `steady`: events that need not be fed one by one, until the next one that is fed.
    `whole`: nobody misses anything, although an endpoint may have died.
    """

    rewrites: bool
    whole: bool

    @property
    def steady(self) -> Steady | None: ...

    def feed(self, payload: bytes) -> bytes: ...

    def end(self, outcome: Outcome) -> bytes | Resume:
        """The endpoint ended its answer properly: last bytes for the client, or how to go on when it was not the end."""
        ...

    def broken(self, reason: str, outcome: Outcome) -> Resume | bytes | None:
        """The endpoint died in mid-answer. Bytes end the answer with them (a well-formed error event); None means that
        there is no good end and the client's connection is closed."""
        ...

    def resumed(self, head: ResponseHead) -> bool:
        """Whether the answer to a Resume goes on from here; if not, `broken` is asked again."""
        ...

    def count(self) -> None:
        """The outcome is told what the answer cost; once, at its end."""
        ...


class Outcome:
    """What is known of one request, from its start to its end; the fast lane's exchange is one itself.

    Times are of the monotonic clock. `error` is "" or a CamelCase reason (ClientDisconnected, EndpointDied, ...).
    Token counts and `cost` are for the observer to fill. `body`: the client's, once all of it is here and until the end.
    """

    # Slots, as in all classes that are made for each request or read in each: a look at a default of the class costs ten times that.
    __slots__ = (
        "body", "bytes_in", "bytes_out", "cached_tokens", "completion_tokens", "cost", "ended", "endpoint", "error", "first_byte",
        "head", "lane", "observer", "peer", "principal", "prompt_tokens", "refused", "request_id", "resumes", "retries", "route",
        "started", "status",
    )  # fmt: skip

    head: RequestHead | None
    route: Route | None

    def __init__(
        self, started: float, head: RequestHead | None, peer: str, request_id: bytes, lane: str
    ) -> None:
        self.started = started
        self.head = head
        self.peer = peer
        self.request_id = request_id
        self.lane = lane
        self.body = b""
        self.observer: Observer | None = None
        self.principal: Principal | None = None
        self.route = None
        self.endpoint = ""
        self.status = 0
        self.error = ""
        self.refused = ""
        self.first_byte = 0.0
        self.ended = 0.0
        self.bytes_in = 0
        self.bytes_out = 0
        self.retries = 0
        self.resumes = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.cached_tokens = 0
        self.cost: float | None = None


class Front(Protocol):
    """Keys, routes and limits in front of the services; one per process, replaced as a whole on reload."""

    def authenticate(self, head: RequestHead, peer: str) -> Principal | Refusal: ...

    def body_wanted(self, head: RequestHead) -> int:
        """How many bytes of the body `route` needs to see at least (0 = none). The fast lane always has the whole body;
        the careful lane reads ahead as far as this says."""
        ...

    def route(
        self, principal: Principal, head: RequestHead, body: bytes, complete: bool
    ) -> Route | Refusal | Reply:
        """`body` is all of it when `complete`, else its beginning; only a complete body may be replaced."""
        ...

    def admit(
        self, principal: Principal, route: Route, client: ClientStream
    ) -> Permit | Refusal | Awaitable[Permit | Refusal]:
        """May wait (a queue, a service without endpoints); is cancelled when the client goes. Called again for a fallback."""
        ...

    def observer(self, route: Route, response: ResponseHead, outcome: Outcome) -> Observer | None: ...

    def finish(self, outcome: Outcome) -> None: ...

    def endpoints_changed(self) -> bool:
        """A service's endpoints are others now; True when that means something to the front."""
        ...

    def render(self, refusal: Refusal) -> tuple[bytes, bytes]:
        """Content type and body of a refusal."""
        ...

    def stream_error(self, refusal: Refusal, route: Route | None) -> bytes:
        """The refusal as the last events of a stream that has begun."""
        ...


@runtime_checkable
class Closes(Protocol):
    """A front that holds connections of its own; asked once, at the end of the process."""

    async def close(self) -> None: ...


@dataclass(slots=True)
class PlainFront:
    """No keys, no limits: requests go to the service whose hosts or path prefix match, else to the first one."""

    services: dict[str, Service] = field(default_factory=dict)
    has_rules: bool = False
    _default: Route | Refusal = Refusal(503, "no_service", "No service is configured.")
    _rules: list[tuple[str, bytes, Route]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for service in self.services.values():
            route = Route(service)
            if isinstance(self._default, Refusal):
                self._default = route
            for host in service.settings.hosts or ("",):
                prefix = service.settings.path_prefix.encode()
                if host or prefix:
                    self._rules.append((host, prefix, route))
        self._rules.sort(key=lambda rule: (not rule[0], -len(rule[1])))
        self.has_rules = bool(self._rules)

    def authenticate(self, head: RequestHead, peer: str) -> Principal | Refusal:
        return ANONYMOUS

    def body_wanted(self, head: RequestHead) -> int:
        return 0

    def route(
        self, principal: Principal, head: RequestHead, body: bytes, complete: bool
    ) -> Route | Refusal | Reply:
        route = self._match(head) if self._rules else self._default
        if isinstance(route, Refusal) or not route.service.affine:
            return route
        return route.with_facts(route.service.facts(head, body))

    def matched(self, head: RequestHead) -> Service | None:
        """The service whose host or path prefix the request has; None = no service's."""
        found = self._by_rule(head)
        return found.service if found is not None else None

    def _match(self, head: RequestHead) -> Route | Refusal:
        return self._by_rule(head) or self._default

    def _by_rule(self, head: RequestHead) -> Route | None:
        name = (head.host or b"").partition(b":")[0].decode("latin-1").lower()
        for host, prefix, route in self._rules:
            if host in ("", name) and head.target.startswith(prefix):
                return route
        return None

    def admit(
        self, principal: Principal, route: Route, client: ClientStream
    ) -> Permit | Refusal | Awaitable[Permit | Refusal]:
        return FREE

    def observer(self, route: Route, response: ResponseHead, outcome: Outcome) -> Observer | None:
        return None

    def finish(self, outcome: Outcome) -> None:
        """Nobody counts."""

    def endpoints_changed(self) -> bool:
        return False

    def render(self, refusal: Refusal) -> tuple[bytes, bytes]:
        return render(refusal)

    def stream_error(self, refusal: Refusal, route: Route | None) -> bytes:
        return b"data: " + render(refusal)[1] + b"\n\n"


def render(refusal: Refusal) -> tuple[bytes, bytes]:
    """OpenAI's form of an error."""
    import orjson

    kind = "invalid_request_error" if refusal.status < 500 and refusal.status != 429 else "server_error"
    kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(
        refusal.status, kind
    )
    error = {"message": refusal.message, "type": kind, "param": refusal.param, "code": refusal.code}
    return b"application/json", orjson.dumps({"error": error})


def with_retry_after(refusal: Refusal) -> tuple[tuple[bytes, bytes], ...]:
    """The refusal's headers, `Retry-After` (whole seconds, at least one) among them when it has one."""
    if refusal.retry_after is None:
        return refusal.headers
    return (*refusal.headers, (b"retry-after", b"%d" % max(1, math.ceil(refusal.retry_after))))
