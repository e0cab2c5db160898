"""A service as the API front sees it: its engine, what its requests lose and gain on their way, what it can be asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from skyloom_common.core.errors import InvalidRequest
from skyloom_lb.openai.config import ServiceOpenAi, secret_of, service_settings
from skyloom_lb.openai.models import Served
from skyloom_lb.openai.request import Kind

if TYPE_CHECKING:
    from skyloom_lb.service import Service

_KEY_HEADERS = (b"authorization", b"x-api-key", b"api-key")
_PRIVATE = (*_KEY_HEADERS, b"host", b"cookie", b"accept-encoding", b"openai-organization", b"openai-project")
_GENERATES = (Kind.CHAT, Kind.COMPLETIONS, Kind.EMBEDDINGS)


class ApiService:
    def __init__(self, service: Service, environ: Mapping[str, str]) -> None:
        self.service = service
        self.settings: ServiceOpenAi = service_settings(service.name, service.settings.openai)
        self.add = self._added(environ)
        self._drop = {
            (with_key, stream): self._dropped(with_key, stream)
            for with_key in (False, True)
            for stream in (False, True)
        }
        self._engines: tuple[object, str] = (None, "")
        self.affine = service.affine or service.settings.affinity.user

    def _added(self, environ: Mapping[str, str]) -> bytes:
        secret = secret_of(self.settings, environ)
        if any(sign in secret for sign in "\r\n") or not secret.isascii():
            raise InvalidRequest(
                f"services.{self.service.name}.openai: the API key holds a line end or is not ASCII"
            )
        lines = b"authorization: Bearer %b\r\n" % secret.encode() if secret else b""
        if self.settings.external:
            lines += b"host: %b\r\n" % self._host()
        return lines

    def _host(self) -> bytes:
        endpoints = self.service.settings.endpoints
        if len(endpoints) != 1:
            raise InvalidRequest(
                f"services.{self.service.name}: an external service wants exactly one endpoint in the settings"
            )
        return endpoints[0].url.partition("://")[2].partition("/")[0].encode()

    def _dropped(self, with_key: bool, stream: bool) -> tuple[bytes, ...]:
        """Our own keys are nobody else's business; a packed stream could not be read."""
        if self.settings.external:
            return _PRIVATE
        drop = _KEY_HEADERS if with_key or self.add else ()
        return (*drop, b"accept-encoding") if stream else drop

    def drop(self, with_key: bool, stream: bool = False) -> tuple[bytes, ...]:
        return self._drop[with_key, stream]

    @property
    def engine(self) -> str:
        """The engine all endpoints have, as the settings or they themselves say; "" when they differ or do not say."""
        if self.settings.engine:
            return self.settings.engine
        backends = self.service.backends
        if self._engines[0] is not backends:
            names = {one.spec.engine for one in backends.values()}
            self._engines = (backends, names.pop() if len(names) == 1 else "")
        return self._engines[1]

    @property
    def counts(self) -> bool:
        return self.settings.counts(self.engine)

    def continues(self, endpoint: str) -> bool:
        return self.settings.continues(self.engine)

    def replays(self, kind: Kind, data: dict[str, Any]) -> bool | None:
        return True if kind in _GENERATES and self.settings.replays() and not data.get("store") else None

    def served(self) -> Served:
        names = dict.fromkeys(name for one in self.service.backends.values() for name in one.spec.models)
        return Served(
            self.service.name,
            self.settings.models,
            tuple(names),
            self.settings.price,
            self.settings.external,
        )
