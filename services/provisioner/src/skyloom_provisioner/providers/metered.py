"""Counts and times every call of a provider, and logs the failed ones; adds nothing else."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from prometheus_client import CollectorRegistry, Histogram

from skyloom_common.core.errors import SkyloomError

_log = logging.getLogger(__name__)
_VERBS = (
    "check",
    "offers",
    "create",
    "get",
    "list",
    "delete",
    "bootstrap",
    "channel",
    "stop",
    "start",
    "ssh",
)


class ProviderMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.calls = Histogram(
            "skyloom_provider_call_seconds",
            "Time of one call to a provider by its outcome (ok or the error's code)",
            ["provider", "verb", "outcome"],
            registry=registry,
            buckets=(0.01, 0.1, 1, 10, 60),
        )


class MeteredProvider:
    """`inner` with its verbs wrapped; everything else is passed through."""

    def __init__(self, inner: Any, metrics: ProviderMetrics) -> None:
        self.inner = inner
        self._metrics = metrics
        for verb in _VERBS:
            if hasattr(inner, verb):
                setattr(self, verb, self._wrap(verb, getattr(inner, verb)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def _wrap(self, verb: str, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def wrapped(*args: Any, **kwargs: Any) -> Any:
            outcome, began = "ok", time.monotonic()
            try:
                return await call(*args, **kwargs)
            except SkyloomError as error:
                outcome = error.code
                raise
            except BaseException as error:
                outcome = type(error).__name__
                raise
            finally:
                self._metrics.calls.labels(self.inner.name, verb, outcome).observe(time.monotonic() - began)
                if outcome not in ("ok", "instance_not_found", "agent_unreachable"):
                    _log.info("provider %s: %s: %s", self.inner.name, verb, outcome)

        return wrapped
