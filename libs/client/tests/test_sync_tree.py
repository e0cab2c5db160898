"""Trees on the client: odd names, links, the hash cache and files that change under the reader."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

import sky.sync.tree as tree_module
from sky.sync.cache import HashCache
from sky.sync.tree import FileKeepsChanging, read_tree
from skyloom_common.contracts.files import pack_manifest, parse_manifest
from skyloom_common.core.chunks import CHUNK_SIZE, FileChanged, stamp_of
from skyloom_common.core.errors import InvalidRequest

LONG_AGO = (time.time() - 3600, time.time() - 3600)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    root.mkdir()
    return root


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Change times cannot be set back, so the hashes are made later instead."""
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + 10_000_000_000)


def entries_of(root: Path, cache: Path) -> dict[str, tuple[str, int, int, str]]:
    tree = read_tree(str(root), None, cache)
    again, entries = parse_manifest(pack_manifest(tree.text))
    assert again == tree.id
    return {entry[0]: entry[1:] for entry in entries}


def test_odd_names_modes_and_empty_things_survive_the_manifest(root: Path, cache: Path) -> None:
    names = [
        "ünï.txt",
        "with space",
        "new\nline",
        "-rf",
        'quo"te',
        "back\\slash",
        os.fsdecode(b"bad\xff\xfe"),
    ]
    for name in names:
        (root / name).write_text(name, errors="surrogateescape")
    (root / "empty").touch()
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o4755)
    (root / "dir").mkdir(mode=0o750)
    entries = entries_of(root, cache)
    assert set(names) <= set(entries)
    assert entries["run.sh"][1] == 0o755, "set-uid bits do not travel"
    assert entries["empty"][2:] == (0, "")
    assert entries["dir"][:2] == ("d", 0o750)


def test_tree_order_is_what_receivers_demand(root: Path, cache: Path) -> None:
    for path in ("a/z", "a-b", "a.c", "a!/x", "a/b/c"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    assert list(entries_of(root, cache)) == ["a", "a/b", "a/b/c", "a/z", "a!", "a!/x", "a-b", "a.c"]


def test_absolute_links_into_the_tree_become_relative_and_others_stay(root: Path, cache: Path) -> None:
    (root / "deep").mkdir()
    (root / "real").write_text("x")
    (root / "deep/inside").symlink_to(root / "real")
    (root / "deep/outside").symlink_to("/no/such/place")
    (root / "deep/relative").symlink_to("../../elsewhere")
    tree = read_tree(str(root), None, cache)
    targets = {entry[0]: entry[4] for entry in tree.entries if entry[1] == "l"}
    assert targets == {
        "deep/inside": "../real",
        "deep/outside": "/no/such/place",
        "deep/relative": "../../elsewhere",
    }
    assert [warning for warning in tree.scanned.warnings if "deep/outside" in warning]


def test_sockets_are_left_out_with_a_warning(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s.sock")
        tree = read_tree(str(root), None, cache)
    assert tree.entries == [] and "s.sock" in tree.scanned.warnings[0]


def test_a_path_that_is_not_there_is_named(root: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"nothing.*No such file"):
        read_tree(str(root / "nothing"))


def test_an_unchanged_tree_is_not_read_again(
    root: Path, cache: Path, settled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "a").write_text("a" * 100)
    (root / "b").write_text("b")
    first = read_tree(str(root), None, cache)

    def refuse(path: str) -> tuple[object, str]:
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr(tree_module, "_hash_file", refuse)
    assert read_tree(str(root), None, cache).id == first.id
    (root / "b").write_text("c")
    with pytest.raises(AssertionError, match="/b was read"):
        read_tree(str(root), None, cache)


def test_a_file_younger_than_its_hash_by_too_little_is_not_trusted(root: Path, cache: Path) -> None:
    """Written again within the clock's tick, with the same size and times: only not believing helps."""
    (root / "a").write_text("one")
    before = read_tree(str(root), None, cache)
    status = os.stat(root / "a")
    file = HashCache(cache, str(root))
    assert file.get("a", stamp_of(status)) is None
    (root / "a").write_text("two")
    assert read_tree(str(root), None, cache).id != before.id


def test_a_replaced_file_with_the_same_size_and_time_is_noticed(
    root: Path, cache: Path, settled: None
) -> None:
    (root / "a").write_text("one")
    os.utime(root / "a", LONG_AGO)
    before = read_tree(str(root), None, cache)
    (root / "new").write_text("two")
    os.utime(root / "new", LONG_AGO)
    (root / "new").rename(root / "a")
    assert read_tree(str(root), None, cache).id != before.id


@pytest.mark.parametrize(
    "damage", [b"", b"{", b'{"version":1,"files":{"a":[1]}}', b'{"version":99,"files":{}}']
)
def test_a_damaged_cache_only_costs_time(root: Path, cache: Path, settled: None, damage: bytes) -> None:
    (root / "a").write_text("one")
    first = read_tree(str(root), None, cache)
    (file,) = cache.iterdir()
    file.write_bytes(damage)
    assert read_tree(str(root), None, cache).id == first.id


def test_a_file_that_changes_once_while_it_is_read_is_read_again(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "a").write_bytes(b"x" * 10)
    real = os.read
    calls: list[int] = []

    def growing(fd: int, length: int) -> bytes:
        data = real(fd, length)
        if not calls:
            calls.append(1)
            with open(root / "a", "ab") as file:
                file.write(b"more")
        return data

    monkeypatch.setattr(os, "read", growing)
    tree = read_tree(str(root), None, cache)
    assert tree.entries[0][3] == 14


def test_a_file_that_never_rests_is_reported(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "busy.log").write_bytes(b"x")

    def busy(path: str) -> tuple[object, str]:
        raise FileChanged

    monkeypatch.setattr(tree_module, "_hash_file", busy)
    with pytest.raises(FileKeepsChanging, match=r"busy\.log"):
        read_tree(str(root), None, cache)


def test_reading_a_chunk_of_a_file_that_changed_since_raises(root: Path, cache: Path) -> None:
    (root / "a").write_bytes(os.urandom(CHUNK_SIZE + 5))
    tree = read_tree(str(root), None, cache)
    places = tree.places([tree.entries[0][4][64:]])
    (place,) = places.values()
    assert (place.offset, place.length) == (CHUNK_SIZE, 5)
    assert tree.read(place) == (root / "a").read_bytes()[CHUNK_SIZE:]
    with open(root / "a", "r+b") as file:
        file.write(b"changed")
    with pytest.raises(FileChanged):
        tree.read(place)
