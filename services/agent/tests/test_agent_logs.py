"""Reading logs: tails, names, prefixes, following."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyloom_agent import joblogs
from skyloom_agent.joblogs import LogView, file_size, last_lines, read_log, tail_offset
from skyloom_agent.model import RUN, SETUP, JobRecord, check_uid, log_dir_name, rank_uid
from skyloom_agent.paths import Paths
from skyloom_agent.signals import Signal
from skyloom_common.contracts.jobs import Job, JobStatus, JobSubmit
from skyloom_common.core.errors import InvalidRequest


@given(
    st.lists(st.sampled_from([b"", b"a", b"bc", b"\r", b"long " * 5]), max_size=12),
    st.integers(0, 14),
    st.booleans(),
)
def test_tail_finds_what_splitting_finds(tmp_path_factory, parts, count, ends_with_newline):
    data = b"\n".join(parts) + (b"\n" if ends_with_newline else b"")
    path = tmp_path_factory.mktemp("t") / "log"
    path.write_bytes(data)
    lines = data.split(b"\n")
    lines = [line + b"\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])
    expected = b"".join(lines[-count:] if count else lines)
    block = joblogs.READ_SIZE
    joblogs.READ_SIZE = 4  # Many blocks even for a short log.
    try:
        assert data[tail_offset(path, len(data), count) :] == expected
    finally:
        joblogs.READ_SIZE = block


def test_the_tail_ends_where_the_reader_may_look(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"one\ntwo\nthree\n")
    assert tail_offset(path, 8, 1) == 4


def test_last_lines_are_few_and_short(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"\n".join(b"%d" % number for number in range(100)))
    assert last_lines(path, 3) == ("97", "98", "99")
    path.write_bytes(b"x" * 10_000_000 + b"\xff\n")
    (line,) = last_lines(path)
    assert len(line) == 500
    assert last_lines(tmp_path / "absent") == ()


@pytest.mark.parametrize(
    ("name", "directory"),
    [
        ("train", "7-train"),
        ("../../etc/passwd", "7-_.._etc_passwd"),
        ("..", "7-job"),
        ("", "7-job"),
        ("a b;rm -rf $HOME\n", "7-a_b_rm_-rf_HOME_"),
        ("é" * 3, "7-_"),
        ("x" * 300, "7-" + "x" * 100),
    ],
)
def test_a_job_name_becomes_one_harmless_path_segment(name, directory):
    assert log_dir_name(7, name) == directory


@pytest.mark.parametrize(
    "uid", ["../x", "1-a.run.0/..", "1-a.run", "1-a.walk.0", "", "1-A.run.0", "1-a.run.0\n"]
)
def test_only_ranks_become_directories(uid):
    with pytest.raises(InvalidRequest):
        check_uid(uid)
    assert check_uid(rank_uid("12-0af3", RUN, 3)) == "12-0af3.run.3"


def record(num_nodes: int, cluster_size: int) -> JobRecord:
    job = Job(3, "train", "me", JobStatus.RUNNING, 0.0, num_nodes=num_nodes)
    return JobRecord("3-ab", job, JobSubmit("k", "train", "me", num_nodes), cluster_size=cluster_size)


@pytest.mark.parametrize(
    ("size", "phase", "rank", "node", "path", "prefix"),
    [
        (1, RUN, 0, 0, "sky_logs/3-train/tasks/run.log", b"(train, pid=5) "),
        (2, RUN, 0, 0, "sky_logs/3-train/tasks/0-head.log", b"(head, rank=0, pid=5) "),
        (2, RUN, 1, 1, "sky_logs/3-train/tasks/1-worker1.log", b"(worker1, rank=1, pid=5, ip=10.0.0.2) "),
        (1, SETUP, 0, 0, ".sky/jobs/3-ab/setup-0.log", b"(setup, pid=5) "),
        (2, SETUP, 1, 1, ".sky/jobs/3-ab/setup-1.log", b"(setup worker1, pid=5) "),
    ],
)
def test_names_and_prefixes(size, phase, rank, node, path, prefix):
    of = record(size, size)
    assert joblogs.rank_log(of, phase, rank, node) == path
    assert joblogs.prefix(of, phase, rank, node, "10.0.0.2", 5) == prefix


def test_a_small_job_of_a_big_cluster_is_named_by_its_node():
    of = replace(record(1, 4))
    assert joblogs.rank_log(of, RUN, 0, 2) == "sky_logs/3-train/tasks/0-worker2.log"
    assert joblogs.prefix(of, RUN, 0, 2, "10.0.0.3", 5) == b"(train, pid=5) "


def test_a_path_out_of_the_home_is_refused(tmp_path):
    paths = Paths(tmp_path)
    assert paths.inside("sky_logs/x") == tmp_path / "sky_logs" / "x"
    for bad in ("../x", "/etc/passwd", "sky_logs/../../x"):
        with pytest.raises(ValueError, match="leads out"):
            paths.inside(bad)


async def test_a_follower_gets_every_byte_up_to_the_end_and_no_more_than_is_committed(tmp_path):
    path = tmp_path / "log"
    shown, over, grown = [0], [False], Signal()
    view = LogView(path, lambda: shown[0], grown, lambda: over[0])
    got: list[bytes] = []

    async def read() -> None:
        async for part in read_log(view, 2, True):
            got.append(part)

    reading = asyncio.ensure_future(read())
    await asyncio.sleep(0)
    path.write_bytes(b"abcdef uncommitted")
    shown[0] = 4
    grown.fire()
    for _ in range(5):
        await asyncio.sleep(0)
    assert got == [b"cd"]
    shown[0], over[0] = 6, True
    grown.fire()
    await asyncio.wait_for(reading, 5)
    assert b"".join(got) == b"cdef"
    assert [part async for part in read_log(view, 0, False)] == [b"abcdef"]
    assert [part async for part in read_log(view, 99, False)] == []


async def test_a_signal_fired_between_looking_and_waiting_is_not_lost():
    signal = Signal()
    seen = signal.version
    signal.fire()
    assert await signal.wait(seen)
    assert not await signal.wait(signal.version, 0.001)
    waits = [asyncio.ensure_future(signal.wait(signal.version)) for _ in range(3)]
    await asyncio.sleep(0)
    waits[0].cancel()
    signal.fire()
    results = await asyncio.wait_for(asyncio.gather(*waits, return_exceptions=True), 5)
    assert results[1:] == [True, True]


def test_the_size_of_what_is_not_there(tmp_path):
    assert file_size(tmp_path / "x") == 0
