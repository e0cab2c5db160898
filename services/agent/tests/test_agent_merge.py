"""Merging the ranks' outputs: exactly once, line by line, also across crashes."""

from __future__ import annotations

import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyloom_agent import merge as merge_module
from skyloom_agent.merge import Ledger, LineMerger, Merge, Source

PREFIX = {0: b"(a) ", 1: b"(b) ", 2: b"(c) "}


class Ticker:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class World:
    """A merge with its files; `crash` forgets everything that is not on disk."""

    def __init__(self, folder, count: int = 2) -> None:
        self.folder = folder
        self.clock = Ticker()
        self.paths = [folder / f"{number}.log" for number in range(count)]
        self.open()

    def open(self) -> None:
        sources = [Source(path) for path in self.paths]
        for number, source in enumerate(sources):
            source.prefix = PREFIX[number]
        self.merge = Merge(self.folder / "out" / "run.log", self.folder / "ledger", sources, self.clock)

    def say(self, number: int, data: bytes) -> None:
        with open(self.paths[number], "ab") as file:
            file.write(data)

    def drain(self) -> bytes:
        while self.merge.step():
            pass
        return self.output()

    def end(self) -> bytes:
        for source in self.merge.sources:
            source.ended = True
        output = self.drain()
        assert self.merge.drained
        return output

    def output(self) -> bytes:
        return (self.folder / "out" / "run.log").read_bytes()[: self.merge.committed]

    def crash(self) -> None:
        self.merge.close()
        self.open()


@pytest.mark.parametrize(
    ("blocks", "result"),
    [
        ([(0, b"x\ny\n")], b"(a) x\n(a) y\n"),
        ([(0, b"x"), (0, b"y\nz")], b"(a) xy\n(a) z"),
        ([(0, b"\n\n"), (1, b"q\n")], b"(a) \n(a) \n(b) q\n"),
        ([(0, b"progress 1\rprogress 2\r"), (0, b"done\n")], b"(a) progress 1\rprogress 2\rdone\n"),
    ],
)
def test_prefixes(blocks, result):
    lines = LineMerger()
    assert b"".join(lines.take(source, PREFIX[source], block) for source, block in blocks) == result


def test_a_rank_in_the_middle_of_a_line_keeps_the_others_waiting_for_a_while(tmp_path):
    world = World(tmp_path)
    world.say(0, b"unfin")
    assert world.drain() == b"(a) unfin"
    world.say(1, b"other\n")
    assert world.drain() == b"(a) unfin" and world.merge.wait_seconds() == merge_module.TURN_SECONDS
    world.say(0, b"ished\n")
    assert world.drain() == b"(a) unfinished\n(b) other\n" and world.merge.wait_seconds() is None
    world.say(0, b"never ")
    world.drain()
    world.say(1, b"tired of waiting\n")
    world.clock.now += merge_module.TURN_SECONDS
    assert world.drain().endswith(b"(a) never \n(b) tired of waiting\n")
    world.say(0, b"ends\n")
    assert world.drain().endswith(b"(a) ends\n")


def test_a_rank_that_ends_inside_a_line_gets_its_newline(tmp_path):
    world = World(tmp_path)
    world.say(1, b"no newline")
    assert world.end() == b"(b) no newline\n"


def test_a_source_without_a_name_waits(tmp_path):
    world = World(tmp_path)
    world.merge.sources[0].prefix = None
    world.say(0, b"x\n")
    assert world.drain() == b""
    world.merge.sources[0].prefix = b"(late) "
    assert world.drain() == b"(late) x\n"


def test_a_full_disk_changes_nothing_and_is_tried_again(tmp_path, monkeypatch):
    world = World(tmp_path)
    world.say(0, b"one\ntwo\n")
    real = os.pwrite

    def full(fd, data, at):
        if fd == world.merge._fd:
            real(fd, bytes(data)[:3], at)
            raise OSError(28, "No space left on device")
        return real(fd, data, at)

    monkeypatch.setattr(merge_module.os, "pwrite", full)
    with pytest.raises(OSError, match="No space"):
        world.drain()
    assert world.merge.committed == 0
    monkeypatch.setattr(merge_module.os, "pwrite", real)
    assert world.drain() == b"(a) one\n(a) two\n"


def test_an_unknown_log_is_never_cut(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.log").write_bytes(b"from before\n")
    world = World(tmp_path)
    world.say(0, b"x\n")
    assert world.drain() == b"from before\n(a) x\n"


def test_a_torn_slot_is_not_believed(tmp_path):
    ledger = Ledger(tmp_path / "ledger", 2)
    for committed in (10, 20, 30):
        ledger.committed, ledger.offsets, ledger.holder = committed, [committed, 1], 1
        ledger.commit()
    ledger.close()
    with open(tmp_path / "ledger", "r+b") as file:  # 30 lies in the second slot, 20 in the first.
        file.seek(ledger._size + 9)
        file.write(b"\xff")
    again = Ledger(tmp_path / "ledger", 2)
    assert (again.committed, again.offsets, again.holder) == (20, [20, 1], 1)
    again.close()


lines = st.lists(st.binary(max_size=12).map(lambda data: data.replace(b"(", b"_")), max_size=8)


@given(
    st.lists(
        st.one_of(
            st.tuples(
                st.just("say"), st.integers(0, 2), st.binary(max_size=20).map(lambda d: d.replace(b"(", b"_"))
            ),
            st.tuples(st.just("step"), st.integers(1, 3), st.none()),
            st.tuples(st.just("crash"), st.none(), st.none()),
            st.tuples(st.just("torn"), st.none(), st.none()),
            st.tuples(st.just("wait"), st.none(), st.none()),
        ),
        max_size=40,
    )
)
def test_every_byte_of_every_rank_comes_once_and_in_order_whatever_happens(tmp_path_factory, script):
    world = World(tmp_path_factory.mktemp("m"), 3)
    said = {0: b"", 1: b"", 2: b""}
    shown = b""
    for what, first, second in script:
        if what == "say":
            world.say(first, second)
            said[first] += second
        elif what == "step":
            for _ in range(first):
                world.merge.step()
        elif what == "wait":
            world.clock.now += 2
        else:
            if what == "torn":  # Killed after the write and before the commit.
                with open(world.folder / "out" / "run.log", "ab") as file:
                    file.write(b"half a blo")
            world.crash()
        assert world.output().startswith(shown), "what a reader saw never changes"
        shown = world.output()
    output = world.end()
    world.merge.close()
    for number, data in said.items():
        mine = re.findall(rb"^\(%s\) ([^\n]*)\n" % b"abc"[number : number + 1], output, re.M)
        assert b"".join(mine) == data.replace(b"\n", b""), "the bytes of the rank"
        assert len(mine) >= data.count(b"\n")
    assert output.count(b"(") == len(re.findall(rb"^\([abc]\) ", output, re.M))


def test_blocks_keep_up(tmp_path):
    """By blocks: the number of steps grows with the bytes, not with the lines."""
    world = World(tmp_path)
    world.say(0, b"y\n" * 1_000_000)
    steps = 0
    while world.merge.step():
        steps += 1
    assert steps <= 2_000_000 // merge_module.BLOCK + 2
    assert world.merge.committed == 6_000_000
