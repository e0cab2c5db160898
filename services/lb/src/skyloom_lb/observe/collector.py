"""Renders summed snapshots as a Prometheus page. Runs on the admin port, never on a request's way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from skyloom_lb.observe.stats import BOUNDS

STATES = ("ready", "warming", "draining", "open", "ejected", "unhealthy")


class LbCollector(Collector):
    def __init__(self, read: Callable[[], Mapping[str, Any]]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        data = self._read()
        services: Mapping[str, Any] = data["services"]
        yield _gauge(
            "skyloom_lb_client_connections", "Open client connections.", (), [((), data["connections"])]
        )
        yield _counter(
            "skyloom_lb_early_refusals",
            "Requests refused before they had a service, by code.",
            ("code",),
            [((code,), count) for code, count in data["early"].items()],
        )
        yield _counter(
            "skyloom_lb_access_log_dropped",
            "Access log lines that were dropped.",
            (),
            [((), data.get("log_dropped", 0))],
        )
        yield _gauge(
            "skyloom_lb_source_trouble",
            "1 while a source of endpoints is away or wrong in any worker.",
            ("source",),
            [((name,), float(count > 0)) for name, count in data.get("source_trouble", {}).items()],
        )
        yield _counter(
            "skyloom_lb_load_reports_lost",
            "Load reports that Redis did not take.",
            (),
            [((), data.get("reports_lost", 0))],
        )
        yield from _of_services(services)
        yield from _of_endpoints(services)
        yield from _of_labels("model", data["models"])
        yield from _of_labels("key", data["keys"])
        for name, value in data.get("extra", {}).items():
            if name.startswith("now_"):
                yield _gauge(f"skyloom_lb_{name[4:]}", "What the front is in now.", (), [((), value)])
            else:
                yield _counter(f"skyloom_lb_{name}", "Counted by the front.", (), [((), value)])


def render(read: Callable[[], Mapping[str, Any]]) -> bytes:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(LbCollector(read))
    return generate_latest(registry)


Rows = Iterable[tuple[tuple[str, ...], float]]


def _counter(name: str, words: str, labels: tuple[str, ...], rows: Rows) -> Metric:
    family = CounterMetricFamily(name, words, labels=labels)
    for values, count in rows:
        family.add_metric(values, count)
    return family


def _gauge(name: str, words: str, labels: tuple[str, ...], rows: Rows) -> Metric:
    family = GaugeMetricFamily(name, words, labels=labels)
    for values, count in rows:
        family.add_metric(values, count)
    return family


def _histogram(
    name: str, words: str, labels: tuple[str, ...], rows: Iterable[tuple[tuple[str, ...], Mapping[str, Any]]]
) -> Metric:
    family = HistogramMetricFamily(name, words, labels=labels)
    for values, histogram in rows:
        buckets, seen = [], 0
        for bound, count in zip((*BOUNDS, "+Inf"), histogram["counts"], strict=True):
            seen += count
            buckets.append((str(bound), seen))
        family.add_metric(values, buckets, sum_value=histogram["total"])
    return family


def _of_services(services: Mapping[str, Any]) -> Iterable[Metric]:
    rows = list(services.items())
    yield _gauge(
        "skyloom_lb_in_flight",
        "Requests being served.",
        ("service",),
        [((name,), service["active"] - service["waiting"]) for name, service in rows],
    )
    yield _gauge(
        "skyloom_lb_queued",
        "Requests waiting for admission.",
        ("service",),
        [((n,), s["waiting"]) for n, s in rows],
    )
    for field, words in (
        ("requests", "Requests that ended."),
        ("retries", "Attempts made again."),
        ("retries_denied", "Failed attempts that were not made again."),
        ("hedges", "Second attempts beside a slow first one."),
        ("resumes", "Broken streams continued on another endpoint."),
    ):
        values = [((n,), s["stats"][field]) for n, s in rows]
        yield _counter(f"skyloom_lb_{field}", words, ("service",), values)
    for field, label, words in (
        ("refused", "code", "Requests refused, by code."),
        ("errors", "reason", "Requests that broke off, by reason."),
    ):
        pairs = [((n, key), count) for n, s in rows for key, count in s["stats"][field].items()]
        yield _counter(f"skyloom_lb_{field}", words, ("service", label), pairs)
    yield _histogram(
        "skyloom_lb_inter_chunk_seconds",
        "Time between two reads of a stream (inter-token latency).",
        ("service",),
        [((n,), s["stats"]["gaps"]) for n, s in rows],
    )


def _of_endpoints(services: Mapping[str, Any]) -> Iterable[Metric]:
    labels = ("service", "endpoint")
    rows = [((n, id), row) for n, s in services.items() for id, row in s["endpoints"].items()]
    there = [(names, row) for names, row in rows if "state" in row]
    for field, words in (
        ("in_flight", "Attempts running on the endpoint."),
        ("idle_connections", "Kept-alive connections to it."),
        ("effective_weight", "Its weight, as slow start and floor leave it."),
    ):
        yield _gauge(
            f"skyloom_lb_endpoint_{field}", words, labels, [(names, row[field]) for names, row in there]
        )
    yield _gauge(
        "skyloom_lb_endpoint_state",
        "1 for the state the endpoint is in.",
        (*labels, "state"),
        [((*names, state), float(row["state"] == state)) for names, row in there for state in STATES],
    )
    for field, words in (
        ("attempts", "Attempts sent to it."),
        ("ejections", "Times it was taken out."),
        ("stale", "Kept-alive connections found closed."),
        ("prompt_tokens", "Prompt tokens it was billed for."),
        ("completion_tokens", "Tokens it made."),
    ):
        values = [(names, row["stats"][field]) for names, row in rows]
        yield _counter(f"skyloom_lb_endpoint_{field}", words, labels, values)
    for field, label, words in (
        ("failures", "reason", "Failed attempts, by reason."),
        ("statuses", "status", "Answers by status."),
    ):
        pairs = [((*names, key), count) for names, row in rows for key, count in row["stats"][field].items()]
        yield _counter(f"skyloom_lb_endpoint_{field}", words, (*labels, label), pairs)
    yield _histogram(
        "skyloom_lb_request_seconds",
        "From the request's head to the last byte of its answer.",
        labels,
        [(names, row["stats"]["latency"]) for names, row in rows],
    )
    yield _histogram(
        "skyloom_lb_first_byte_seconds",
        "From the request's head to the first byte of its answer (time to first token).",
        labels,
        [(names, row["stats"]["first_byte"]) for names, row in rows],
    )


def _of_labels(label: str, data: Mapping[str, Any]) -> Iterable[Metric]:
    for field in ("requests", "errors", "prompt_tokens", "completion_tokens", "cached_tokens", "cost"):
        rows = [((name,), row[field]) for name, row in data.items()]
        yield _counter(
            f"skyloom_lb_{label}_{field}", f"By {label}: {field.replace('_', ' ')}.", (label,), rows
        )
