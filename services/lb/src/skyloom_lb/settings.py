"""What the balancer is told: flags over environment over a settings file, validated once, then passed as arguments.

A settings file has the shape of `Settings`; a reload reads it again, and everything but `FIXED` takes effect without a dropped
connection.
"""

from __future__ import annotations

import argparse
import dataclasses
import ipaddress
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from skyloom_common.contracts.endpoints import Endpoint
from skyloom_common.core.errors import InvalidRequest
from skyloom_common.core.wire import from_wire, to_wire
from skyloom_lb.loop import check_loop

DEFAULT_SERVICE = "default"


@dataclass(frozen=True)
class Timeouts:
    """Seconds; 0 = no limit. `first_byte` runs from the sent request, `idle` between two reads of an answer, `tunnel` while neither
    side of a WebSocket (or another upgrade) says anything."""

    connect: float = 5.0
    first_byte: float = 120.0
    idle: float = 120.0
    total: float = 0.0
    tunnel: float = 3600.0


@dataclass(frozen=True)
class Retries:
    """`budget`: retries as a share of requests, beyond a few a second; `hedge_after`: seconds, 0 = never.

    `statuses` say that the endpoint did not begin: 429 is its own queue being full, another one may have room.
    """

    attempts: int = 3
    budget: float = 0.2
    statuses: tuple[int, ...] = (429, 502, 503, 504)
    hedge_after: float = 0.0


@dataclass(frozen=True)
class Health:
    """Passive signals, ejection and probes. `floor`: the share of endpoints that stays in whatever they look like."""

    failures: int = 5
    open_seconds: float = 5.0
    max_open_seconds: float = 60.0
    floor: float = 0.5
    window_seconds: float = 10.0
    min_requests: int = 20
    error_share: float = 0.5
    latency_factor: float = 0.0
    """Eject whose mean time to first byte is so many times the median of its peers; 0 = never."""
    eject_seconds: float = 15.0
    slow_start_seconds: float = 10.0
    probe_path: str = ""
    """Empty = no active probes."""
    probe_seconds: float = 5.0
    probe_timeout: float = 3.0
    probe_failures: int = 3


@dataclass(frozen=True)
class Affinity:
    """Where a request's session is: the first of these that is there. `user` reads the `user` field of an API request."""

    header: str = "x-session-id"
    cookie: str = ""
    user: bool = False


@dataclass(frozen=True)
class ServiceSettings:
    """One service. `options` go to the policy; `openai` and `limits` are read by the front."""

    name: str = DEFAULT_SERVICE
    policy: str = "least_load"
    options: dict[str, Any] = field(default_factory=dict)
    endpoints: tuple[Endpoint, ...] = ()
    hosts: tuple[str, ...] = ()
    path_prefix: str = ""
    affinity: Affinity = Affinity()
    timeouts: Timeouts = Timeouts()
    retries: Retries = Retries()
    health: Health = Health()
    openai: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    host: str = "127.0.0.1"
    port: int = 8080
    open: bool = False
    """Serves the network without keys. Otherwise `host` must be a loopback address, or a keys file be given."""
    admin_host: str = "127.0.0.1"
    admin_port: int = 0
    """0 = the port after `port`; -1 = no admin port."""
    admin_token: str = ""
    workers: int = 1
    certfile: str = ""
    keyfile: str = ""
    services: dict[str, ServiceSettings] = field(default_factory=dict)
    endpoints_file: str = ""
    keys_file: str = ""
    """With one, every request needs a key of it."""
    redis_url: str = ""
    redis_services: tuple[str, ...] = ()
    """Names of the services whose endpoints are in Redis; empty with a `redis_url` = all of the index."""
    zone: str = ""
    balancer: str = ""
    access_log: str = ""
    """A path, "-" for standard output, "" for none."""
    trusted_proxies: tuple[str, ...] = ()
    """Networks whose X-Forwarded-* and Forwarded headers are kept and added to."""
    max_connections: int = 0
    """Client connections per worker; 0 = what the file descriptor limit leaves."""
    header_seconds: float = 15.0
    body_seconds: float = 60.0
    """How long a client may pause in the middle of sending a request."""
    keep_alive_seconds: float = 300.0
    drain_seconds: float = 60.0
    event_loop: str = "auto"
    """uvloop where it is installed; or "asyncio", "uvloop"."""
    fast_body: int = 1 << 20
    """Bodies up to this size are taken whole by the fast lane."""
    front: dict[str, Any] = field(default_factory=dict)
    """Keys, models and limits: read by the front."""

    @property
    def is_local(self) -> bool:
        """Only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def real_admin_port(self) -> int:
        return self.admin_port or (self.port + 1 if self.port else 0)


FIXED = (
    "host", "port", "admin_host", "admin_port", "admin_token", "workers", "endpoints_file", "redis_url", "redis_services",
    "zone", "balancer", "access_log", "event_loop",
)  # fmt: skip
"""What is read once, at the start; so is whether there is a certificate."""


def keep_fixed(asked: Settings, started: Settings) -> tuple[Settings, tuple[str, ...]]:
    """`asked` without what wants a restart, and the names of that."""
    fields: tuple[str, ...] = FIXED
    if bool(asked.certfile) != bool(started.certfile):
        fields += ("certfile", "keyfile")
    others = tuple(name for name in fields if getattr(asked, name) != getattr(started, name))
    return replace(asked, **{name: getattr(started, name) for name in others}), others


FLAGS: tuple[tuple[str, str, str, str], ...] = (
    # flag, environment variable, field, help
    ("--host", "SKYLOOM_LB_HOST", "host", "address to listen on"),
    ("--port", "SKYLOOM_LB_PORT", "port", "port to listen on"),
    ("--admin-host", "SKYLOOM_LB_ADMIN_HOST", "admin_host", "address of the admin port"),
    (
        "--admin-port",
        "SKYLOOM_LB_ADMIN_PORT",
        "admin_port",
        "admin port; 0 = the port after --port, -1 = none",
    ),
    (
        "--admin-token",
        "SKYLOOM_LB_ADMIN_TOKEN",
        "admin_token",
        "bearer token that /debug and /metrics ask for",
    ),
    ("--workers", "SKYLOOM_LB_WORKERS", "workers", "processes that share the port"),
    ("--certfile", "SKYLOOM_LB_CERTFILE", "certfile", "PEM certificate chain; with --keyfile: TLS"),
    ("--keyfile", "SKYLOOM_LB_KEYFILE", "keyfile", "PEM private key"),
    ("--endpoints-file", "SKYLOOM_LB_ENDPOINTS_FILE", "endpoints_file", "YAML or JSON of endpoints, watched"),
    (
        "--redis-url",
        "SKYLOOM_LB_REDIS_URL",
        "redis_url",
        "Redis with the endpoint tables (REDIS_URL also works)",
    ),
    ("--zone", "SKYLOOM_LB_ZONE", "zone", "zone of this balancer, for zone-aware policies"),
    ("--keys-file", "SKYLOOM_LB_KEYS_FILE", "keys_file", "YAML of API keys (hashes only), watched"),
    ("--balancer", "SKYLOOM_LB_ID", "balancer", "name of this balancer in load reports"),
    ("--access-log", "SKYLOOM_LB_ACCESS_LOG", "access_log", "file of JSON lines; - for standard output"),
    (
        "--drain-seconds",
        "SKYLOOM_LB_DRAIN_SECONDS",
        "drain_seconds",
        "how long streams may finish after SIGTERM",
    ),
    (
        "--event-loop",
        "SKYLOOM_LB_EVENT_LOOP",
        "event_loop",
        "auto (uvloop if it is there), asyncio or uvloop",
    ),
    ("--max-connections", "SKYLOOM_LB_MAX_CONNECTIONS", "max_connections", "client connections per worker"),
)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="skyloom-lb", description="One address for many endpoints.")
    made.add_argument(
        "--config", help="settings file (YAML), reloaded on SIGHUP and on change [SKYLOOM_LB_CONFIG]"
    )
    made.add_argument(
        "--open",
        action="store_true",
        help="serve the network although there is no keys file [SKYLOOM_LB_OPEN=1]",
    )
    made.add_argument("--endpoint", action="append", metavar="URL", help="an endpoint; may be repeated")
    made.add_argument("--policy", help="policy of the default service [SKYLOOM_LB_POLICY]")
    made.add_argument(
        "--service",
        action="append",
        metavar="NAME",
        help="a service whose endpoints are in Redis; may be repeated [SKYLOOM_LB_SERVICES]",
    )
    for flag, variable, _, words in FLAGS:
        made.add_argument(flag, help=f"{words} [{variable}]")
    return made


def load(arguments: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """Raises InvalidRequest with one sentence for whatever is wrong."""
    flags = parser().parse_args(list(arguments))
    return _finished(_asked(flags, environ), flags, environ)


def load_again(
    arguments: Sequence[str], environ: Mapping[str, str], started: Settings
) -> tuple[Settings, tuple[str, ...]]:
    """As far as it can be had without a restart, and the names of the fields that want one. What could not be started with is
    refused, used now or not."""
    flags = parser().parse_args(list(arguments))
    asked = _asked(flags, environ)
    _finished(asked, flags, environ)
    settings, others = keep_fixed(asked, started)
    return _finished(settings, flags, environ), others


def _asked(flags: argparse.Namespace, environ: Mapping[str, str]) -> Settings:
    settings = from_file(flags.config or environ.get("SKYLOOM_LB_CONFIG", ""))
    for flag, variable, name, _ in FLAGS:
        text = getattr(flags, flag[2:].replace("-", "_")) or environ.get(variable)
        if text:
            settings = replace(settings, **{name: _scalar(flag, text, getattr(settings, name))})
    if flags.open or environ.get("SKYLOOM_LB_OPEN", "").lower() in ("1", "true", "yes"):
        settings = replace(settings, open=True)
    if not settings.redis_url and environ.get("REDIS_URL"):
        settings = replace(settings, redis_url=environ["REDIS_URL"])
    names = flags.service or environ.get("SKYLOOM_LB_SERVICES", "").split()
    return replace(settings, redis_services=tuple(names)) if names else settings


def _finished(settings: Settings, flags: argparse.Namespace, environ: Mapping[str, str]) -> Settings:
    urls = flags.endpoint or environ.get("SKYLOOM_LB_ENDPOINTS", "").split()
    return checked(_with_default(settings, urls, flags.policy or environ.get("SKYLOOM_LB_POLICY")))


def from_file(path: str) -> Settings:
    if not path:
        return Settings()
    try:
        data = parse_yaml(Path(path).read_text(encoding="utf-8"), path)
    except (OSError, UnicodeDecodeError) as error:
        words = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InvalidRequest(f"{path}: cannot be read: {words}") from error
    if data is None:
        raise InvalidRequest(f"{path}: is empty; write {{}} for no settings")
    if not isinstance(data, dict):
        raise InvalidRequest(f"{path}: a mapping is wanted, as in docs/lb.md")
    if not isinstance(data.get("admin_token", ""), str):
        raise InvalidRequest("admin_token: text is wanted; put it in quotes")
    _spell_out_endpoints(data.get("services"), path)
    settings = from_wire(Settings, data, strict=True)
    return replace(
        settings, services={name: replace(one, name=name) for name, one in settings.services.items()}
    )


def parse_yaml(text: str, where: str) -> Any:
    """Raises InvalidRequest. The parser itself raises whatever Python does of a 30th of February or a list in a thousand lists."""
    try:
        return _with_text_keys(yaml.safe_load(text))
    except yaml.MarkedYAMLError as error:  # its own words show the line, and what may be a secret in it
        at = f"line {error.problem_mark.line + 1}: " if error.problem_mark is not None else ""
        raise InvalidRequest(f"{where}: is neither YAML nor JSON: {at}{error.problem}") from error
    except yaml.YAMLError as error:
        raise InvalidRequest(f"{where}: is neither YAML nor JSON: {error}") from error
    except Exception as error:
        raise InvalidRequest(f"{where}: has a value that YAML cannot read: {error}") from error


def _with_text_keys(data: Any) -> Any:
    """A service may be called 7; and what nobody knows can be named."""
    if isinstance(data, dict):
        return {str(key): _with_text_keys(value) for key, value in data.items()}
    return [_with_text_keys(one) for one in data] if isinstance(data, list) else data


def _spell_out_endpoints(services: Any, path: str) -> None:
    for service in services.values() if isinstance(services, dict) else ():
        if isinstance(service, dict) and "endpoints" in service:
            service["endpoints"] = endpoint_mappings(service["endpoints"], f"{path}: endpoints")


def endpoint_mappings(data: Any, where: str) -> list[dict[str, Any]]:
    """Endpoints may be written as URLs; the id is then the URL's host and port."""
    if not isinstance(data, list):
        raise InvalidRequest(f"{where}: {data!r} is not a list of URLs or of mappings with a url")
    return [{"url": one} if isinstance(one, str) else one for one in map(_with_id, data)]


def _with_id(data: Any) -> Any:
    if isinstance(data, str):
        data = {"url": data}
    if isinstance(data, dict) and "id" not in data and isinstance(data.get("url"), str):
        return {"id": data["url"].partition("://")[2].rstrip("/") or data["url"], **data}
    return data


def _with_default(settings: Settings, urls: Sequence[str], policy: str | None) -> Settings:
    """`--endpoint` and `--policy` speak of the default service, which is there when nothing else was named."""
    elsewhere = settings.services or settings.redis_url or settings.endpoints_file
    if not urls and not policy and elsewhere:
        return settings
    default = settings.services.get(DEFAULT_SERVICE, ServiceSettings())
    if urls:
        endpoints = [
            from_wire(Endpoint, one, strict=True) for one in endpoint_mappings(list(urls), "--endpoint")
        ]
        default = replace(default, endpoints=tuple(endpoints))
    if policy:
        default = replace(default, policy=policy)
    return replace(settings, services={**settings.services, DEFAULT_SERVICE: default})


def _scalar(flag: str, text: str, like: Any) -> Any:
    try:
        return type(like)(text)
    except ValueError:
        raise InvalidRequest(f"{flag}: {text!r} is not a number") from None


def checked(settings: Settings) -> Settings:
    """Everything that its value alone can get wrong; what files it names say is `fronts.check`'s."""
    from skyloom_lb.openai.config import front_settings

    front_settings(settings.front)
    if bool(settings.certfile) != bool(settings.keyfile):
        raise InvalidRequest("certfile and keyfile: give both for TLS, or none")
    _check_ports(settings)
    check_loop(settings.event_loop)
    if settings.workers < 1:
        raise InvalidRequest(f"workers: {settings.workers} is not at least 1")
    for name in ("max_connections", "fast_body"):
        _at_least_0(name, getattr(settings, name))
    for name in ("header_seconds", "body_seconds", "keep_alive_seconds", "drain_seconds"):
        _at_least_0(name, getattr(settings, name))
    _check_networks(settings.trusted_proxies)
    if settings.redis_url:
        _check_redis(settings.redis_url)
    for service in settings.services.values():
        _check_service(service)
    return settings


def _check_ports(settings: Settings) -> None:
    if not 0 <= settings.port <= 65535:
        raise InvalidRequest(f"port: {settings.port} is not between 0 and 65535")
    if not -1 <= settings.admin_port <= 65535:
        raise InvalidRequest(f"admin_port: {settings.admin_port} is not between -1 (none) and 65535")
    if settings.real_admin_port > 65535:
        raise InvalidRequest(
            f"admin_port: the port after {settings.port} is above 65535; give --admin-port PORT, or -1 for none"
        )


def _check_networks(networks: Sequence[str]) -> None:
    for one in networks:
        try:
            ipaddress.ip_network(one, strict=False)
        except ValueError:
            raise InvalidRequest(
                f"trusted_proxies: {one!r} is not an address or a network as in 10.0.0.0/8"
            ) from None


def _check_redis(url: str) -> None:
    """Without the URL's own text: there may be a password in it."""
    from redis.connection import parse_url as parse_redis_url

    right = "the form is redis://[USER:PASSWORD@]HOST[:PORT][/DB], rediss://... or unix:///PATH"
    try:
        parts = urlsplit(url)
        where = parts.path if parts.scheme == "unix" else parts.hostname if parts.port != 0 else ""
    except ValueError:
        raise InvalidRequest(f"redis_url: its host or port is wrong; {right}") from None
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise InvalidRequest(f"redis_url: the scheme {parts.scheme!r} is unknown; {right}")
    try:
        parse_redis_url(url)
    except ValueError as error:
        raise InvalidRequest(f"redis_url: {error}; {right}") from None
    if not where:
        raise InvalidRequest(f"redis_url: it names no host or path; {right}")


_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


def _check_service(service: ServiceSettings) -> None:
    from skyloom_lb.admission.config import service_limits
    from skyloom_lb.endpoints.check import check_endpoints
    from skyloom_lb.openai.config import service_settings
    from skyloom_lb.pipeline.registry import check_policy

    where = f"services.{service.name}"
    check_policy(service.policy, service.options)
    try:
        to_wire(service.options)
    except TypeError as error:
        raise InvalidRequest(f"{where}.options: {error}; write numbers, text, lists and mappings") from None
    service_settings(service.name, service.openai)
    service_limits(service.name, service.limits)
    _check_numbers(service)
    header = service.affinity.header
    if header and not _TOKEN.fullmatch(header):
        raise InvalidRequest(f"{where}.affinity.header: {header!r} is not a header's name as in x-session-id")
    check_endpoints(service.endpoints, where)


def _check_numbers(service: ServiceSettings) -> None:
    for part in ("timeouts", "retries", "health"):
        values = getattr(service, part)
        for one in dataclasses.fields(values):
            value = getattr(values, one.name)
            if isinstance(value, (int, float)):
                _at_least_0(f"services.{service.name}.{part}.{one.name}", value)
    if service.retries.attempts < 1:
        raise InvalidRequest(f"services.{service.name}.retries.attempts: 0 is not at least 1, the first one")
    probe = service.health.probe_path
    if probe and not probe.startswith("/"):
        raise InvalidRequest(f"services.{service.name}.health.probe_path: {probe!r} does not begin with /")
    if service.health.floor > 1:
        raise InvalidRequest(
            f"services.{service.name}.health.floor: {service.health.floor:g} is not a share between 0 and 1"
        )


def _at_least_0(field: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise InvalidRequest(
            f"{field}: {value:g} is {'below 0' if value < 0 else 'not a number of at least 0'}"
        )
