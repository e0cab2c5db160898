"""Clients that send what they should not, half of it, or more than they read: what endpoints get to see of it."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml

from skyloom_common.contracts.endpoints import Endpoint
from skyloom_lb.fast.front import plain_address
from skyloom_lb.fronts import make_front
from skyloom_lb.settings import DEFAULT_SERVICE

pytestmark = pytest.mark.integration

ODD = b"Connection: X-Odd\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: lb\r\nTransfer-Encoding: chunked\r\n\r\n"


async def narrow(kit: Any, lb: Any) -> Any:
    """A client that has room for very little, and reads only when it is asked to."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.setblocking(False)
    await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", lb.port))
    reader, writer = await asyncio.open_connection(sock=raw, limit=1024)
    wire = kit.Wire(reader, writer)
    lb.wires.append(wire)
    return wire


async def until_swept(kit: Any, lb: Any, true: Any) -> None:
    """The sweep looks at every time-out again and again, as it would with time."""
    await kit.until(lambda: lb.worker.balancer.sweep() or true())


# --- after a refusal nothing of the connection is served


async def only_the_next_one_is_served(kit: Any, lb: Any, endpoint: Any) -> None:
    """What another client asks after it has come and gone when the endpoint has answered that."""
    assert (await lb.ask(kit.get(b"/next"))).status == 200
    await kit.until(lb.quiet)
    assert [request.start for request in endpoint.requests] == [b"GET /next HTTP/1.1"]


async def test_nothing_is_served_after_a_refused_connect(kit: Any) -> None:
    endpoint = await kit.endpoint()
    lb = await kit.lb(endpoint)
    wire = await lb.client()
    await wire.send(b"CONNECT lb:80 HTTP/1.1\r\nHost: lb:80\r\n\r\n")
    got = await wire.message()
    assert (got.status, got.get(b"connection")) == (405, b"close")
    await wire.send(kit.post(b"hello"))
    await only_the_next_one_is_served(kit, lb, endpoint)
    assert await wire.ended() == b""
    assert lb.service.backends["e0"].stats.failures == {}
    assert lb.worker.balancer.early == {"method_not_allowed": 1}
    assert got.get(b"allow") is not None


@pytest.mark.parametrize("lane", ["fast", "careful"])
async def test_the_rest_of_a_body_after_its_408_is_for_nobody(kit: Any, lane: str) -> None:
    endpoint = await kit.endpoint()
    lb = await kit.lb(endpoint, body_seconds=0.1)
    wire = await lb.client()
    half, rest = (
        (kit.post(b"hello")[:-2], b"lo") if lane == "fast" else (CHUNKED + b"3\r\nhe", b"l\r\n0\r\n\r\n")
    )
    await wire.send(half)
    reading = asyncio.create_task(wire.message())
    await until_swept(kit, lb, reading.done)
    got = await reading
    assert (got.status, got.get(b"connection")) == (408, b"close")
    await wire.send(rest)
    await only_the_next_one_is_served(kit, lb, endpoint)
    assert await wire.ended() == b""
    assert lb.service.backends["e0"].stats.failures == {}


async def test_a_head_that_drips_is_timed_from_its_first_byte(kit: Any) -> None:
    lb = await kit.lb(await kit.endpoint(), header_seconds=0.2)
    wire = await lb.client()

    async def drip() -> None:
        await wire.send(b"GET / HTTP/1.1\r\nHost: lb\r\nX-A: ")
        while True:
            wire.writer.write(b"a")
            await asyncio.sleep(0.02)

    dripping = asyncio.create_task(drip())
    try:
        reading = asyncio.create_task(wire.message())
        await until_swept(kit, lb, reading.done)
        assert (await reading).status == 408
    finally:
        dripping.cancel()


# --- those who do not read


async def test_one_who_sends_ahead_and_does_not_read_waits(kit: Any) -> None:
    async def big(wire: Any) -> None:
        while True:
            await endpoint.request(wire)
            await wire.send(kit.answer(b"x" * 60_000))

    endpoint = await kit.endpoint(big)
    lb = await kit.lb(endpoint)
    wire = await narrow(kit, lb)
    count = 400  # 24 MB of answers
    wire.writer.write(kit.get() * count)
    balancer = lb.worker.balancer
    await kit.until(lambda: any(one.write_paused for one in balancer.fronts) and not balancer.exchanges)
    asked = len(endpoint.requests)
    for _ in range(20):
        balancer.sweep()
        await asyncio.sleep(0)
    assert len(endpoint.requests) == asked < count / 2
    for _ in range(count):
        assert len((await wire.message()).body) == 60_000
    assert len(endpoint.requests) == count


async def reads_nothing_of_its_answer(kit: Any, extra: bytes, **fields: Any) -> tuple[Any, Any]:
    """A balancer, and a client whose answer is finished, but has not left for it."""

    async def big(wire: Any) -> None:
        while True:
            await endpoint.request(wire)
            await wire.send(kit.answer(b"x" * 50_000))

    endpoint = await kit.endpoint(big)
    lb = await kit.lb(endpoint, **fields)
    wire = await narrow(kit, lb)
    balancer = lb.worker.balancer
    await kit.until(lambda: balancer.fronts)
    (front,) = balancer.fronts
    raw = front.transport.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    front.transport.set_write_buffer_limits(high=1)
    await wire.send(kit.get(extra=extra))
    await kit.until(lambda: lb.outcomes)
    assert lb.outcomes[0].error == ""
    assert front.transport.get_write_buffer_size() > 0
    return lb, wire


@pytest.mark.parametrize("extra", [b"", b"Connection: close\r\n", ODD], ids=["stays", "closes", "careful"])
async def test_one_who_never_reads_a_finished_answer_is_cut(kit: Any, extra: bytes) -> None:
    lb, _ = await reads_nothing_of_its_answer(kit, extra, body_seconds=0.2)
    await until_swept(kit, lb, lambda: not lb.worker.balancer.fronts)


@pytest.mark.parametrize("extra", [b"", b"Connection: close\r\n"], ids=["stays", "closes"])
async def test_one_who_reads_late_gets_all_of_its_answer(kit: Any, extra: bytes) -> None:
    lb, wire = await reads_nothing_of_its_answer(kit, extra)
    for _ in range(5):
        lb.worker.balancer.sweep()
    assert len((await wire.message()).body) == 50_000
    if not extra:
        await wire.send(kit.get())
        assert len((await wire.message()).body) == 50_000


# --- the end of the process


@pytest.mark.parametrize(
    ("half", "rest"),
    [
        (b"GET / HTTP/1.1\r\nHost: lb\r\n", b"\r\n"),
        (b"POST / HTTP/1.1\r\nHost: lb\r\nContent-Length: 5\r\n\r\nhel", b"lo"),
        (CHUNKED + b"3\r\nhe", b"l\r\n0\r\n\r\n"),
    ],
    ids=["head", "body", "chunks"],
)
async def test_a_request_that_is_half_here_is_answered_before_the_end(
    kit: Any, half: bytes, rest: bytes
) -> None:
    lb = await kit.lb(await kit.endpoint())
    idle, wire = await lb.client(), await lb.client()
    balancer = lb.worker.balancer
    await wire.send(half)
    await kit.until(lambda: len(balancer.fronts) == 2)
    await kit.until(lambda: balancer.exchanges or any(one.receiving for one in balancer.fronts))
    draining = asyncio.create_task(balancer.drain(5.0))
    assert await idle.ended() == b""
    await wire.send(rest)
    got = await wire.message()
    assert (got.status, got.get(b"connection")) == (200, b"close")
    assert await wire.ended() == b""
    await asyncio.wait_for(draining, 2.0)


async def test_an_answer_that_has_not_all_left_is_not_cut_by_the_end(kit: Any) -> None:
    """A client that reads slowly gets what Content-Length says."""
    lb, wire = await reads_nothing_of_its_answer(kit, b"")
    draining = asyncio.create_task(lb.worker.balancer.drain(5.0))
    await kit.until(lambda: lb.worker.balancer.draining)
    assert len((await wire.message()).body) == 50_000
    await asyncio.wait_for(draining, 2.0)


async def test_a_request_that_never_becomes_whole_does_not_hold_the_end_up(kit: Any) -> None:
    lb = await kit.lb(await kit.endpoint())
    wire = await lb.client()
    await wire.send(b"GET / HTT")
    await kit.until(lambda: any(one.receiving for one in lb.worker.balancer.fronts))
    await asyncio.wait_for(lb.worker.balancer.drain(0.1), 2.0)
    assert await wire.ended() == b""


# --- who they say they are


@pytest.mark.parametrize(
    ("address", "plain"),
    [
        ("::ffff:127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "::1"),
        ("::ffff:7f00:1", "::ffff:7f00:1"),
        ("fe80::1", "fe80::1"),
    ],
)
def test_a_mapped_address_is_the_address(address: str, plain: str) -> None:
    assert plain_address(address) == plain


@pytest.mark.parametrize("odd", [b"", ODD], ids=["fast", "careful"])
@pytest.mark.parametrize("order", list(itertools.permutations([b"X-Request-Id: one", b"x-request-ID: two"])))
async def test_of_two_request_ids_the_endpoint_gets_ours_alone(
    kit: Any, order: tuple[bytes, ...], odd: bytes
) -> None:
    endpoint = await kit.endpoint()
    lb = await kit.lb(endpoint)
    got = await lb.ask(kit.get(extra=b"\r\n".join(order) + b"\r\n" + odd))
    ids = [value for name, value in endpoint.requests[0].headers if name == b"x-request-id"]
    assert ids == [lb.outcomes[0].request_id] == [got.get(b"x-request-id")]
    assert ids[0] not in (b"one", b"two")


CLAIMS = (
    b"X-Real-IP: 6.6.6.6\r\nX_Forwarded_For: 6.6.6.6\r\nX-Forwarded-Port: 66\r\nX-Forwarded-Prefix: /six\r\n"
    b"X_Real_IP: 6.6.6.6\r\n"
)


@pytest.mark.parametrize("odd", [b"", ODD], ids=["fast", "careful"])
@pytest.mark.parametrize("trusted", [(), ("127.0.0.0/8",)], ids=["stranger", "trusted proxy"])
async def test_who_asked_is_told_by_those_who_may(kit: Any, trusted: tuple[str, ...], odd: bytes) -> None:
    endpoint = await kit.endpoint()
    lb = await kit.lb(endpoint, trusted_proxies=trusted)
    wire = await lb.client()
    for extra in (CLAIMS, b""):  # the lines of one request are not those of the next
        await wire.send(kit.get(extra=extra + odd))
        assert (await wire.message()).status == 200
    first, second = endpoint.requests
    told = {name: value for name, value in first.headers if value in (b"6.6.6.6", b"66", b"/six")}
    if trusted:
        assert told[b"x-real-ip"] == b"6.6.6.6"
        assert told[b"x-forwarded-port"] == b"66"
        assert told[b"x-forwarded-prefix"] == b"/six"
    else:
        assert told == {}
    assert first.get(b"x-forwarded-for") == second.get(b"x-forwarded-for") == b"127.0.0.1"
    assert b"x-real-ip" not in dict(second.headers)


async def test_options_of_the_server_have_no_path(kit: Any) -> None:
    endpoint = await kit.endpoint()
    lb = await kit.lb(endpoint)
    lb.worker.balancer.set_endpoints(DEFAULT_SERVICE, [Endpoint(id="e0", url=endpoint.url + "/below")])
    assert (await lb.ask(b"OPTIONS * HTTP/1.1\r\nHost: lb\r\n\r\n")).status == 200
    assert (await lb.ask(kit.get(b"/a", ODD))).status == 200
    assert (await lb.ask(kit.get(b"/a"))).status == 200
    starts = [request.start for request in endpoint.requests]
    assert starts == [b"OPTIONS * HTTP/1.1", b"GET /below/a HTTP/1.1", b"GET /below/a HTTP/1.1"]


@pytest.mark.parametrize("key", [b"", b"Authorization: Bearer sk-none\r\n"], ids=["no key", "wrong key"])
async def test_half_a_body_of_a_stranger_is_not_waited_for(kit: Any, tmp_path: Path, key: bytes) -> None:
    rows = [{"name": "t", "sha256": hashlib.sha256(b"sk-t").hexdigest()}]
    (tmp_path / "keys").write_text(yaml.safe_dump({"keys": rows}))
    endpoint = await kit.endpoint()
    lb = await kit.lb(endpoint, make_front=make_front, keys_file=str(tmp_path / "keys"))
    wire = await lb.client()
    await wire.send(kit.post(b'{"model":"default"}', extra=key)[:-5])
    got = await wire.message()
    assert (got.status, got.get(b"connection"), got.get(b"www-authenticate")) == (401, b"close", b"Bearer")
    await wire.send(b"ault")
    assert await wire.ended() == b""
    assert endpoint.connections == 0
    whole = kit.post(b'{"model":"default"}', extra=b"Authorization: Bearer sk-t\r\n")
    wire = await lb.client()
    await wire.send(whole[:-5])
    await kit.until(lambda: any(one.receiving for one in lb.worker.balancer.fronts))
    await wire.send(whole[-5:])
    assert (await wire.message()).status == 200
