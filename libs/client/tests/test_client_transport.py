"""The client's HTTP, retries and resumption: nothing is lost, nothing comes twice, nothing is done twice."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sky import exceptions
from sky.net.follow import LogStream, Patience, operation_events
from sky.net.http1 import Address, Connection, ConnectionLost
from sky.net.transport import Transport, encode_query, quote
from skyloom_common.contracts.jobs import JobStatus
from skyloom_common.contracts.operations import OperationStatus
from skyloom_common.core import errors
from skyloom_common.core.sse import ServerEvent, SseReader


def quiet(fake: Any) -> Transport:
    return Transport(fake.endpoint, fake.token, sleep=lambda _seconds: None)


def hurried() -> Patience:
    return Patience(5.0, sleep=lambda _seconds: None)


class Scripted:
    """A server that answers each connection with the next bytes of a script, then closes."""

    def __init__(self, *answers: bytes) -> None:
        self.received: list[bytes] = []
        self._answers = answers
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        for answer in self._answers:
            connection, _ = self._listener.accept()
            with connection:
                self.received.append(connection.recv(65536))
                connection.sendall(answer)

    def close(self) -> None:
        self._thread.join(5)
        self._listener.close()


@pytest.fixture
def scripted() -> Iterator[Callable[..., Scripted]]:
    made: list[Scripted] = []

    def make(*answers: bytes) -> Scripted:
        made.append(Scripted(*answers))
        return made[-1]

    yield make
    for server in made:
        server.close()


@pytest.mark.parametrize(
    ("endpoint", "host", "port", "base"),
    [
        ("http://h:46580", "h", 46580, ""),
        ("https://h/sky/", "h", 443, "/sky"),
        ("http://[::1]:80", "::1", 80, ""),
        ("http://u:p@h:1", "h", 1, ""),
    ],
)
def test_endpoints(endpoint: str, host: str, port: int, base: str) -> None:
    address = Address(endpoint)
    assert (address.host, address.port, address.base) == (host, port, base)


@pytest.mark.parametrize("endpoint", ["h:46580", "ftp://h", "http://", "http://h:port"])
def test_what_is_no_endpoint_is_refused(endpoint: str) -> None:
    with pytest.raises(ValueError, match="API server endpoint"):
        Address(endpoint)


def test_lengths_chunks_and_connections_that_end(scripted: Any) -> None:
    server = scripted(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\nTrailer: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nhello",
        b"HTTP/1.1 204 No Content\r\n\r\n",
    )
    bodies = [Connection(Address(server.endpoint)).request("GET", "/x", {}).read() for _ in range(4)]
    assert bodies == [b"hello", b"hello", b"hello", b""]


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_a_broken_answer_is_never_taken_for_a_whole_one(scripted: Any, answer: bytes) -> None:
    with pytest.raises(ConnectionLost):
        Connection(Address(scripted(answer).endpoint)).request("GET", "/x", {}).read()


def test_a_header_cannot_be_smuggled(fake: Any) -> None:
    transport = Transport(fake.endpoint, "token\r\nX-Admin: 1")
    with pytest.raises(ValueError, match="line break"):
        transport.call("GET", "/info")


def test_unix_socket(tmp_path: Any) -> None:
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

        threading.Thread(target=serve, daemon=True).start()
        assert Transport(f"unix://{path}").get_json("/info") == {}


def test_queries() -> None:
    query = {"name": ["a b", "c/ü"], "all": True, "follow": False, "none": None, "n": 3}
    assert encode_query(query) == "?name=a%20b&name=c%2F%C3%BC&all=1&follow=0&n=3"
    assert quote("a;rm -rf/..") == "a%3Brm%20-rf%2F.."


def test_connections_are_kept(fake: Any) -> None:
    transport = quiet(fake)
    opened = []
    take = transport._take

    def counting() -> Connection:
        connection = take()
        opened.append(id(connection))
        return connection

    transport._take = counting  # type: ignore[method-assign]
    for _ in range(3):
        transport.get_json("/info")
    assert len(set(opened)) == 1


def test_reads_are_repeated_writes_without_key_are_not(fake: Any) -> None:
    transport = quiet(fake)
    fake.drop_next = 2
    assert transport.get_json("/info")["user"] == "ann"
    fake.add_cluster("dev")
    fake.drop_next = 1
    with pytest.raises(exceptions.ApiServerConnectionError):
        transport.call("POST", "/clusters/dev/stop", body=b"{}")
    assert fake.count("POST", "/stop") == 1


def test_a_busy_server_is_asked_again(fake: Any) -> None:
    busy = json.dumps(errors.Unavailable("starting").to_wire()).encode()
    fake.fail_next = [(503, busy)] * 3
    assert quiet(fake).get_json("/info")["user"] == "ann"
    fake.fail_next = [(503, busy)] * 9
    with pytest.raises(errors.Unavailable, match="starting"):
        quiet(fake).get_json("/info")
    assert len(fake.fail_next) == 5


def test_errors_come_back_as_their_class(fake: Any) -> None:
    with pytest.raises(exceptions.ApiServerAuthenticationError) as caught:
        Transport(fake.endpoint, "wrong").get_json("/info")
    assert caught.value.hint == "sky api login"
    assert isinstance(caught.value, errors.Unauthenticated)
    fake.fail_next = [(500, b"<html>oops</html>")]
    with pytest.raises(exceptions.ApiServerError, match="HTTP 500: <html>oops"):
        quiet(fake).get_json("/info")


def test_nobody_listens() -> None:
    pauses: list[float] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(exceptions.ApiServerConnectionError, match="cannot be reached") as caught:
        Transport(f"http://127.0.0.1:{port}", sleep=pauses.append).get_json("/info")
    assert "sky api info" in str(caught.value.hint)
    assert sum(pauses) < 1  # the address may be wrong: nobody should wait for long to be told


def test_a_moved_local_server_is_found_again(fake: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    transport = Transport(
        f"http://127.0.0.1:{port}", "old", locate=lambda: (fake.endpoint, fake.token), sleep=lambda _s: None
    )
    assert transport.get_json("/info")["user"] == "ann"


def test_a_local_server_is_waited_for_while_it_starts_again(fake: Any) -> None:
    pauses: list[float] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        nowhere = f"http://127.0.0.1:{listener.getsockname()[1]}"

    def locate() -> tuple[str, str]:
        return (fake.endpoint if sum(pauses) > 3 else nowhere), fake.token

    transport = Transport(nowhere, fake.token, locate=locate, sleep=pauses.append)
    assert transport.get_json("/info")["user"] == "ann"
    assert 3 < sum(pauses) < 8


def test_a_connection_lost_in_a_call_is_a_server_that_was_there() -> None:
    pauses: list[float] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        port = listener.getsockname()[1]

        def take_and_die() -> None:
            listener.accept()[0].close()
            listener.close()

        dying = threading.Thread(target=take_and_die)
        dying.start()
        with pytest.raises(exceptions.ApiServerConnectionError):
            Transport(f"http://127.0.0.1:{port}", sleep=pauses.append).get_json("/info")
        dying.join()
    assert 3 < sum(pauses) < 8


# --- events ---


def test_events_in_any_pieces() -> None:
    text = b": hi\n\nid: 1\nevent: progress\ndata: a\ndata: b\n\nretry: 5\r\nid: 2\r\ndata:c\r\n\r\ndata: unfinished\n"
    expected = [ServerEvent("1", "progress", "a\nb"), ServerEvent("2", "message", "c")]
    for size in (1, 3, 1000):
        parser = SseReader()
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        assert [event for piece in pieces for event in parser.feed(piece)] == expected


@pytest.mark.parametrize("cuts", [[], [0], [1], [2], [1, 0, 1], [0, 0, 0, 0]])
def test_a_cut_event_stream_goes_on_where_it_stopped(fake: Any, cuts: list[int]) -> None:
    fake.add_cluster("dev")
    operation = fake.act("stop", "dev", b"{}", "k")
    fake.cut_events_after = list(cuts)
    seen = list(operation_events(quiet(fake), operation.id, patience=hurried()))
    assert [event.seq for event in seen] == [1, 2, 3]
    assert seen[-1].status is OperationStatus.SUCCEEDED
    assert fake.count("GET", "/events") == len(cuts) + 1
    if cuts:
        assert fake.cut_events_after == []


def test_patience_ends(fake: Any) -> None:
    fake.add_cluster("dev")
    operation = fake.act("stop", "dev", b"{}", "k")
    fake.drop_next = 10_000
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    patience = Patience(30.0, sleep=sleep, monotonic=lambda: now[0])
    with pytest.raises(exceptions.ApiServerConnectionError):
        list(operation_events(quiet(fake), operation.id, patience=patience))
    assert 25 < now[0] <= 30


def test_an_unknown_operation_is_not_waited_for(fake: Any) -> None:
    with pytest.raises(errors.OperationDoesNotExist):
        list(operation_events(quiet(fake), "nope", patience=hurried()))


# --- logs ---

LOG = bytes(range(256)) * 40 + b"\xff\xfe last line without end"


@pytest.mark.parametrize("cuts", [[], [0], [1, 1, 1], [999, 1, 1000, 5000], [len(LOG)]])
@pytest.mark.parametrize("tail", [None, 2])
def test_a_cut_log_comes_whole_and_once(fake: Any, cuts: list[int], tail: int | None) -> None:
    fake.add_cluster("dev")
    fake.add_job("dev", output=LOG)
    fake.cut_log_after = list(cuts)
    stream = LogStream(
        quiet(fake), "/clusters/dev/jobs/1/logs", tail=tail, is_over=lambda: True, patience=hurried()
    )
    expected = LOG if tail is None else b"".join(LOG.splitlines(keepends=True)[-tail:])
    assert b"".join(stream) == expected
    assert fake.cut_log_after == []


def test_a_log_that_ends_before_its_job_is_asked_for_more(fake: Any) -> None:
    fake.add_cluster("dev")
    fake.add_job("dev", JobStatus.RUNNING, b"one\n")
    asked = []

    def is_over() -> bool:
        asked.append(1)
        if len(asked) == 2:
            fake.logs["dev", 1] += b"two\n"
        return len(asked) >= 3

    said = []
    stream = LogStream(
        quiet(fake),
        "/clusters/dev/jobs/1/logs",
        is_over=is_over,
        patience=hurried(),
        on_reconnect=lambda: said.append(1),
    )
    assert b"".join(stream) == b"one\ntwo\n"
    assert said == []


def test_a_broken_log_says_so_once(fake: Any) -> None:
    fake.add_cluster("dev")
    fake.add_job("dev", output=b"hello\n")
    fake.drop_next = 3
    said = []
    stream = LogStream(
        quiet(fake),
        "/clusters/dev/jobs/1/logs",
        is_over=lambda: True,
        patience=hurried(),
        on_reconnect=lambda: said.append(1),
    )
    assert b"".join(stream) == b"hello\n"
    assert said == [1]


def test_a_connection_that_the_server_closed_meanwhile_is_not_used(scripted: Any) -> None:
    """A person who thinks at a prompt for longer than the server keeps connections must not see an error."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
    server = scripted(answer, answer)
    transport = Transport(server.endpoint, sleep=lambda _s: None)
    transport.get_json("/info")
    (idle,) = transport._idle
    for _ in range(1000):
        if idle.is_stale():
            break
        threading.Event().wait(0.005)
    assert transport.call("POST", "/clusters/x/jobs/cancel", body=b"{}") == b"{}"
    assert len(server.received) == 2
