"""What clients with limits are told on each answer, and what becomes of an endpoint's own 429."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import yaml

from skyloom_lb.admission.config import Limits
from skyloom_lb.admission.taken import Taken, duration
from skyloom_lb.fronts import make_front
from skyloom_lb.settings import Retries, ServiceSettings

BUSY = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 7\r\nContent-Length: 4\r\n\r\nbusy"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, b"0ms"), (0.0004, b"1ms"), (0.12, b"120ms"), (1.5, b"1.5s"), (59.9995, b"1m0s"), (360.2, b"6m1s")],
)
def test_durations(seconds: float, text: bytes) -> None:
    assert duration(seconds) == text


def test_what_is_left_is_told_only_where_there_is_a_rate() -> None:
    one = Taken("k")
    one.configure(Limits(concurrency=3), 1, None, None, 0.0)
    assert one.told(0.0) == ()
    one.configure(Limits(requests_per_minute=60, tokens_per_minute=6000), 1, None, None, 0.0)
    assert one.requests is not None and one.tokens is not None
    one.requests.take_now(6, 0.0)
    one.tokens.correct(-7000, 0.0)
    assert dict(one.told(3.0)) == {
        b"x-ratelimit-limit-requests": b"60",
        b"x-ratelimit-remaining-requests": b"57",
        b"x-ratelimit-reset-requests": b"3s",
        b"x-ratelimit-limit-tokens": b"6000",
        b"x-ratelimit-remaining-tokens": b"0",
        b"x-ratelimit-reset-tokens": b"1m7s",
    }


def keys(folder: Path, **entries: dict[str, Any]) -> str:
    path = folder / "keys.yaml"
    rows = [
        {"name": name, "sha256": hashlib.sha256(name.encode()).hexdigest(), **fields}
        for name, fields in entries.items()
    ]
    path.write_text(yaml.safe_dump({"keys": rows}))
    return str(path)


@pytest.mark.parametrize("lane", ["fast", "careful"])
async def test_answers_say_what_is_left(kit: Any, tmp_path: Path, lane: str) -> None:
    async def provider(wire: Any) -> None:
        """It tells of limits too: those of the balancer's operator, not of its client."""
        while True:
            await endpoint.request(wire)
            extra = b"x-ratelimit-remaining-requests: 999\r\nX-RateLimit-Limit-Tokens: 5\r\nx-other: kept\r\n"
            await wire.send(kit.answer(b"{}", extra=extra))

    endpoint = await kit.endpoint(provider)
    path = keys(tmp_path, few={"limits": {"requests_per_minute": 3}}, free={})
    lb = await kit.lb(endpoint, make_front=make_front, keys_file=path)
    odd = b"Connection: X-Odd\r\n" if lane == "careful" else b""

    async def ask(key: bytes) -> Any:
        return await lb.ask(kit.post(extra=b"Authorization: Bearer " + key + b"\r\n" + odd))

    for left in (b"2", b"1", b"0"):
        got = await ask(b"few")
        assert got.status == 200 and got.get(b"x-other") == b"kept"
        told = [value for name, value in got.headers if name == b"x-ratelimit-remaining-requests"]
        assert told == [left] and got.get(b"x-ratelimit-limit-requests") == b"3"
        assert got.get(b"x-ratelimit-limit-tokens") is None
    got = await ask(b"few")
    assert got.status == 429 and got.get(b"x-ratelimit-remaining-requests") == b"0"
    assert 19 <= int(got.get(b"retry-after") or 0) <= 20
    assert (got.get(b"x-ratelimit-reset-requests") or b"").startswith((b"59.", b"1m0s"))
    assert (await ask(b"free")).get(b"x-ratelimit-remaining-requests") == b"999", "not ours, not touched"


def busy(kit: Any, endpoints: list[Any]) -> Any:
    async def serve(wire: Any) -> None:
        while True:
            await endpoints[-1].request(wire)
            await wire.send(BUSY)

    return serve


async def test_a_full_endpoint_is_not_the_end_while_another_has_room(kit: Any) -> None:
    crowd: list[Any] = []
    crowd.append(await kit.endpoint(busy(kit, crowd)))
    free = await kit.endpoint()
    service = ServiceSettings(retries=Retries(budget=1.0))
    lb = await kit.lb(crowd[0], free, service=service, make_front=make_front)
    body = b'{"model": "any", "messages": []}'
    for _ in range(8):
        got = await lb.ask(kit.post(body))
        assert (got.status, got.body.split()[0]) == (200, b"%d" % free.port)
    assert crowd[0].requests, "it was asked, and not blamed"
    assert lb.service.backends["e0"].signals.consecutive == 0
    assert lb.service.backends["e0"].state == "ready"
    assert lb.service.stats.retries == len(crowd[0].requests)


async def test_a_429_of_all_is_the_answer_with_its_retry_after(kit: Any) -> None:
    crowd: list[Any] = []
    crowd.append(await kit.endpoint(busy(kit, crowd)))
    lb = await kit.lb(crowd[0], make_front=make_front)
    got = await lb.ask(kit.post(b'{"model": "any", "messages": []}'))
    assert (got.status, got.get(b"retry-after"), got.body) == (429, b"7", b"busy")
    assert len(crowd[0].requests) == 1


async def test_a_429_is_not_repeated_where_a_request_may_not_be(kit: Any) -> None:
    """A POST of which nobody knows that it may be sent again; and 429s beyond the budget."""
    crowd: list[Any] = []
    crowd.append(await kit.endpoint(busy(kit, crowd)))
    other: list[Any] = []
    other.append(await kit.endpoint(busy(kit, other)))
    lb = await kit.lb(crowd[0], other[0], service=ServiceSettings(retries=Retries(budget=0.0)))
    assert (await lb.ask(kit.post())).status == 429
    assert len(crowd[0].requests) + len(other[0].requests) == 1
    for _ in range(30):
        assert (await lb.ask(kit.get())).status == 429
    assert len(crowd[0].requests) + len(other[0].requests) == 1 + 30 + 10, "ten retries are always there"


async def test_a_quick_no_does_not_make_an_endpoint_look_quick(kit: Any) -> None:
    crowd: list[Any] = []
    crowd.append(await kit.endpoint(busy(kit, crowd)))
    lb = await kit.lb(crowd[0], service=ServiceSettings(policy="latency"))
    before = lb.service.backends["e0"].latency
    await lb.ask(kit.post())
    assert lb.service.backends["e0"].latency == before
