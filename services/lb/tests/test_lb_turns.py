"""What comes in within one turn of the loop is looked at together: in its order, each for itself, and counted at the end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from skyloom_lb.balancer import Balancer
from skyloom_lb.fast.upstream import Upstream
from skyloom_lb.settings import DEFAULT_SERVICE
from skyloom_testing_unplugged import FakeTransport, open_front, unplugged

GET = b"GET / HTTP/1.1\r\nHost: lb\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
ODD = b"POST / HTTP/1.1\r\nHost: lb\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"


class World:
    def __init__(self) -> None:
        self.balancer, self.made = unplugged()
        self.requests = self.balancer.services[DEFAULT_SERVICE].stats

    def client(self) -> FakeTransport:
        return open_front(self.balancer)

    def says(self, wire: Any, data: bytes) -> None:
        """In this turn, which is not at its end."""
        transport = wire.transport if isinstance(wire, Upstream) else wire
        transport.get_protocol().data_received(data)

    def served(self, client: FakeTransport) -> Upstream:
        """An answered request leaves its connection to the endpoint idle."""
        self.says(client, GET)
        self.balancer.turn.end()
        upstream = self.made[-1]
        self.says(upstream, ANSWER)
        self.balancer.turn.end()
        client.written.clear()
        return upstream


@pytest.fixture
async def world() -> World:
    return World()


def told(client: FakeTransport) -> bytes:
    return b"".join(client.written)


async def test_the_loop_ends_the_turn(world: World) -> None:
    client = world.client()
    world.says(client, GET)
    assert not world.made
    await asyncio.sleep(0)
    world.says(world.made[0], ANSWER)
    assert not client.written
    await asyncio.sleep(0)
    assert told(client).endswith(b"\r\n\r\nok")
    assert world.requests.requests == 1
    assert not world.balancer.exchanges


async def test_parts_of_one_turn_are_one_after_the_other(world: World) -> None:
    client = world.client()
    for at in range(0, len(GET), 9):
        world.says(client, GET[at : at + 9])
    world.balancer.turn.end()
    for at in range(0, len(ANSWER), 7):
        world.says(world.made[0], ANSWER[at : at + 7])
    world.balancer.turn.end()
    assert told(client).endswith(b"\r\n\r\nok")
    assert len(world.made) == 1


async def test_a_body_in_parts_goes_to_the_other_lane_whole(world: World) -> None:
    client = world.client()
    world.says(client, ODD[:60])
    world.says(client, ODD[60:])
    world.says(client, b"3\r\nyou\r\n0\r\n\r\n")
    world.balancer.turn.end()
    await asyncio.sleep(0)
    sent = b"".join(world.made[0].transport.written)  # type: ignore[attr-defined]
    assert sent.endswith((b"5\r\nhello\r\n3\r\nyou\r\n0\r\n\r\n", b"8\r\nhelloyou\r\n0\r\n\r\n"))


async def test_what_an_idle_connection_says_is_no_answer_to_who_gets_it_next(world: World) -> None:
    """Both in one turn, the request first: an answer that nobody has asked for would be given to a stranger."""
    client = world.client()
    idle = [world.served(client) for _ in world.balancer.services[DEFAULT_SERVICE].backends]
    world.says(client, GET)
    for one in idle:
        world.says(one, b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged")
    world.balancer.turn.end()
    assert all(one.transport.is_closing() for one in idle)
    assert not client.written and world.made[-1] not in idle
    world.says(world.made[-1], ANSWER)
    world.balancer.turn.end()
    assert told(client).endswith(b"\r\n\r\nok")


async def test_more_than_an_answer_is_no_answer_to_the_next_request(world: World) -> None:
    client, other = world.client(), world.client()
    world.says(client, GET)
    world.balancer.turn.end()
    first = world.made[-1]
    world.says(first, ANSWER)
    world.says(first, ANSWER.replace(b"ok", b"no"))
    world.says(other, GET)
    world.balancer.turn.end()
    assert told(client).endswith(b"\r\n\r\nok")
    assert first.transport.is_closing() and world.made[-1] is not first


async def test_the_end_of_a_connection_comes_after_what_it_said(world: World) -> None:
    client = world.client()
    world.says(client, GET)
    world.balancer.turn.end()
    upstream = world.made[0]
    world.says(upstream, b"HTTP/1.1 200 OK\r\n\r\nuntil the end")
    upstream.transport.close()
    upstream.connection_lost(None)
    world.balancer.turn.end()
    assert told(client).endswith(b"d\r\nuntil the end\r\n0\r\n\r\n")


@pytest.mark.parametrize(
    "then", [b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", ODD]
)
async def test_an_answer_goes_before_what_its_client_is_told_next(world: World, then: bytes) -> None:
    """The next request is here in the same turn, and is refused at once or goes to the other lane."""
    client = world.client()
    world.says(client, GET)
    world.balancer.turn.end()
    world.says(world.made[0], ANSWER)
    world.says(client, then)
    world.balancer.turn.end()
    await asyncio.sleep(0)
    first, _, rest = told(client).partition(b"\r\n\r\nok")
    assert first.startswith(b"HTTP/1.1 200")
    assert rest.startswith(b"HTTP/1.1 400") if then is not ODD else not rest


async def test_the_last_answer_goes_out_before_its_connection_is_closed(world: World) -> None:
    client = world.client()
    world.says(client, GET.replace(b"lb\r\n", b"lb\r\nConnection: close\r\n"))
    world.balancer.turn.end()
    closed: list[bytes] = []
    close = client.close

    def closes() -> None:
        closed.append(told(client))
        close()

    client.close = closes  # type: ignore[method-assign]
    world.says(world.made[0], ANSWER)
    world.balancer.turn.end()
    assert len(closed) == 1 and closed[0].endswith(b"\r\n\r\nok")


async def test_all_is_looked_at_before_anything_is_written(world: World) -> None:
    clients = [world.client() for _ in range(3)]
    for client in clients:
        world.says(client, GET)
    world.balancer.turn.end()
    assert [len(one.transport.written) for one in world.made] == [1, 1, 1]  # type: ignore[attr-defined]
    looked: list[int] = []
    for client in clients:
        write = client.write

        def writes(data: Any, write: Any = write) -> None:
            looked.append(len(world.balancer.exchanges))
            write(data)

        client.write = writes  # type: ignore[method-assign]
    for one in world.made:
        world.says(one, ANSWER)
    world.balancer.turn.end()
    assert looked == [0, 0, 0]


async def test_a_connection_that_cannot_be_written_to_is_not_the_others(world: World) -> None:
    bad, good = world.client(), world.client()
    for client in (bad, good):
        world.says(client, GET)
    world.balancer.turn.end()

    def fails(data: Any) -> None:
        raise RuntimeError("a fault of ours")

    bad.write = fails  # type: ignore[method-assign]
    for one in world.made:
        world.says(one, ANSWER)
    world.balancer.turn.end()
    assert bad.closed and told(good).endswith(b"\r\n\r\nok")
    assert world.requests.requests == 2


async def test_a_client_that_has_gone_asks_for_nothing(world: World) -> None:
    client = world.client()
    world.says(client, GET)
    client.close()
    client.get_protocol().connection_lost(None)
    world.balancer.turn.end()
    assert not world.made and not world.balancer.exchanges


async def test_what_was_dropped_says_nothing_more(world: World) -> None:
    """The client goes in the turn in which its answer comes."""
    client = world.client()
    world.says(client, GET)
    world.balancer.turn.end()
    world.says(world.made[0], ANSWER)
    client.close()
    client.get_protocol().connection_lost(None)
    world.balancer.turn.end()
    assert world.made[0].transport.is_closing() and not client.written
    service = world.balancer.services[DEFAULT_SERVICE]
    assert all(one.in_flight == 0 for one in service.backends.values())


async def test_a_fault_at_one_connection_is_not_the_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = world.client(), world.client()
    protocol = type(bad.get_protocol())
    received = protocol.received

    def fails(self: Any, data: bytes) -> None:
        if self.transport is bad:
            raise RuntimeError("a fault of ours")
        received(self, data)

    monkeypatch.setattr(protocol, "received", fails)
    world.says(bad, GET)
    world.says(good, GET)
    world.balancer.turn.end()
    assert bad.closed and len(world.made) == 1


async def test_a_fault_of_counting_is_not_the_others(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[Any] = []

    def finish(self: Balancer, outcome: Any) -> None:
        counted.append(outcome)
        if len(counted) == 1:
            raise RuntimeError("a fault of ours")

    monkeypatch.setattr(Balancer, "finish", finish)
    for _ in range(2):
        client = world.client()
        world.says(client, GET)
        world.balancer.turn.end()
        world.says(world.made[-1], ANSWER)
    world.balancer.turn.end()
    assert len(counted) == 2 and not world.balancer.exchanges


async def test_a_connection_is_not_idle_while_something_is_unread(world: World) -> None:
    client = world.client()
    world.says(client, GET)
    client.get_protocol().check(client.get_protocol().since + 1e6)
    world.balancer.turn.end()
    assert world.made and not client.closed


async def test_an_end_waits_for_what_was_not_looked_at(world: World) -> None:
    """A request that came in the turn in which the balancer is told to end is answered."""
    client = world.client()
    ending = asyncio.create_task(world.balancer.drain(5.0))
    world.says(client, GET)
    await asyncio.sleep(0)
    assert world.balancer.draining
    world.says(world.made[0], ANSWER)
    await ending
    assert b"connection: close" in told(client) and told(client).endswith(b"ok")


async def test_what_is_cut_at_the_end_is_counted(world: World) -> None:
    client = world.client()
    world.says(client, GET)
    world.balancer.turn.end()
    await world.balancer.drain(0.0)
    assert world.requests.requests == 1
    assert world.requests.errors == {"Drained": 1}
