"""What the balancer is told: flags over environment over a settings file, validated once, then passed as arguments.

A settings file has the shape of `Settings`; a reload reads it again, and everything but the listening addresses, the number
of workers and Redis takes effect without a dropped connection.
"""

from __future__ import annotations

import argparse
import dataclasses
import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from skyloom_common.contracts.endpoints import Endpoint
from skyloom_common.core.errors import InvalidRequest
from skyloom_common.core.wire import from_wire

DEFAULT_SERVICE = "default"


@dataclass(frozen=True)
class Timeouts:
    """Seconds; 0 = no limit. `first_byte` runs from the sent request, `idle` between two reads of an answer."""

    connect: float = 5.0
    first_byte: float = 120.0
    idle: float = 120.0
    total: float = 0.0


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
        "--service", action="append", metavar="NAME", help="a service whose endpoints are in Redis"
    )
    for flag, variable, _, words in FLAGS:
        made.add_argument(flag, help=f"{words} [{variable}]")
    return made


def load(arguments: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """Raises InvalidRequest with one sentence for whatever is wrong."""
    flags = parser().parse_args(list(arguments))
    settings = from_file(flags.config or environ.get("SKYLOOM_LB_CONFIG", ""))
    for flag, variable, name, _ in FLAGS:
        text = getattr(flags, flag[2:].replace("-", "_")) or environ.get(variable)
        if text:
            settings = replace(settings, **{name: _scalar(flag, text, getattr(settings, name))})
    if flags.open or environ.get("SKYLOOM_LB_OPEN", "").lower() in ("1", "true", "yes"):
        settings = replace(settings, open=True)
    if not settings.redis_url and environ.get("REDIS_URL"):
        settings = replace(settings, redis_url=environ["REDIS_URL"])
    if flags.service:
        settings = replace(settings, redis_services=tuple(flags.service))
    urls = flags.endpoint or environ.get("SKYLOOM_LB_ENDPOINTS", "").split()
    settings = _with_default(settings, urls, flags.policy or environ.get("SKYLOOM_LB_POLICY"))
    return checked(settings)


def from_file(path: str) -> Settings:
    if not path:
        return Settings()
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        raise InvalidRequest(f"{path}: cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise InvalidRequest(f"{path}: a mapping is wanted, as in docs/lb.md")
    for service in (data.get("services") or {}).values():
        if isinstance(service, dict) and "endpoints" in service:
            service["endpoints"] = endpoint_mappings(service["endpoints"], f"{path}: endpoints")
    settings = from_wire(Settings, data, strict=True)
    return replace(
        settings, services={name: replace(one, name=name) for name, one in settings.services.items()}
    )


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
    """Everything that one value alone can get wrong. URLs are checked where they are used: see endpoints/url.py."""
    from skyloom_lb.admission.config import service_limits
    from skyloom_lb.endpoints.url import parse_url
    from skyloom_lb.openai.config import front_settings, service_settings
    from skyloom_lb.pipeline.registry import check_policy

    front_settings(settings.front)

    if bool(settings.certfile) != bool(settings.keyfile):
        raise InvalidRequest("certfile and keyfile: give both for TLS, or none")
    if not 0 <= settings.port <= 65535:
        raise InvalidRequest(f"port: {settings.port} is not between 0 and 65535")
    if settings.workers < 1:
        raise InvalidRequest(f"workers: {settings.workers} is not at least 1")
    for service in settings.services.values():
        check_policy(service.policy, service.options)
        service_settings(service.name, service.openai)
        service_limits(service.name, service.limits)
        _positive(service)
        for endpoint in service.endpoints:
            parse_url(endpoint.url)
            if endpoint.weight <= 0:
                raise InvalidRequest(f"endpoint {endpoint.id}: weight {endpoint.weight:g} is not above 0")
    return settings


def _positive(service: ServiceSettings) -> None:
    for part in (service.timeouts, service.retries, service.health):
        for one in dataclasses.fields(part):
            value = getattr(part, one.name)
            if isinstance(value, (int, float)) and value < 0:
                raise InvalidRequest(f"{service.name}: {one.name} {value:g} is below 0")
