"""Manifests: what is taken, and every way of writing where one may not that is refused."""

from __future__ import annotations

import hashlib
import json
import time
import tracemalloc
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyloom_common.contracts import files
from skyloom_common.contracts.files import (
    Entry,
    InvalidManifest,
    check_destination,
    encode_manifest,
    manifest_id,
    needed_chunks,
    pack_manifest,
    parse_manifest,
    tree_order,
    unpack_entries,
)
from skyloom_common.core.chunks import CHUNK_SIZE
from skyloom_common.core.errors import InvalidRequest, SkyloomError, TooLarge

ONE = hashlib.sha256(b"1").hexdigest()
TWO = hashlib.sha256(b"2").hexdigest()


def file(path: str, size: int = 1, data: str = ONE) -> Entry:
    return (path, "f", 0o644, size, data)


def directory(path: str) -> Entry:
    return (path, "d", 0o755, 0, "")


def link(path: str, target: str) -> Entry:
    return (path, "l", 0, 0, target)


def parse(*entries: Any) -> list[Entry]:
    return parse_manifest(pack_manifest(encode_manifest(entries)))[1]


def test_a_manifest_comes_back_as_it_was() -> None:
    entries = [
        directory("a"),
        directory("a/b"),
        file("a/b/c"),
        link("a/l", "../x"),
        file("a-b", CHUNK_SIZE + 1, ONE + TWO),
        file("é\udcff", 0, ""),
    ]
    text = encode_manifest(entries)
    assert parse_manifest(pack_manifest(text)) == (manifest_id(text), entries)
    assert list(unpack_entries(pack_manifest(text), manifest_id(text))) == entries
    assert parse() == []


def test_the_id_is_of_the_text_and_does_not_depend_on_how_it_was_packed() -> None:
    text = encode_manifest([file("a")])
    other = zlib.compressobj(9, zlib.DEFLATED, 31)
    assert parse_manifest(other.compress(text) + other.flush())[0] == manifest_id(text)
    assert encode_manifest([("a", "f", 0o600, 1, ONE)]) != text


def test_another_id_than_expected_is_refused() -> None:
    with pytest.raises(InvalidManifest, match="has the id"):
        list(unpack_entries(pack_manifest(encode_manifest([file("a")])), ONE))


@pytest.mark.parametrize(
    "path",
    ["", "/", "/etc/passwd", "..", "../a", "a/../b", "a/..", ".", "./a", "a/.", "a//b", "a/", "a\0b", "x" * 256,
     "/".join(["d"] * 3000), "\ud800", 7, None, ["a"]],
)  # fmt: skip
def test_a_path_that_leads_elsewhere_is_refused(path: Any) -> None:
    with pytest.raises(InvalidManifest):
        parse((path, "f", 0o644, 0, ""))


@pytest.mark.parametrize(
    "path", ["...", "..a", "a..", ".a", "a/...", " ", "a\nb", "~", "-", "C:\\x", "a" * 255]
)
def test_a_path_that_only_looks_odd_is_taken(path: str) -> None:
    folders = [directory("a")] if path.startswith("a/") else []
    assert parse(*folders, file(path))[-1][0] == path


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([file("a"), file("a")], "twice"),
        ([file("b"), file("a")], "out of order"),
        ([directory("a"), file("a-b"), file("a/x")], "out of order"),
        ([directory("a"), directory("a")], "twice"),
        ([file("a"), directory("a")], "twice"),
        ([file("a/b")], "not a directory"),
        ([file("a"), file("a/b")], "not a directory"),
        ([link("a", "/etc"), file("a/passwd")], "not a directory"),
        ([directory("a"), file("ab/c")], "not a directory"),
        ([directory("a"), directory("a/b/c")], "not a directory"),
        ([("a", "f", 0o4755, 1, ONE)], "mode"),
        ([("a", "f", -1, 1, ONE)], "mode"),
        ([("a", "f", True, 1, ONE)], "mode"),
        ([("a", "f", 0o644, 1.0, ONE)], "size"),
        ([("a", "f", 0o644, -1, "")], "hashes"),
        ([file("a", 1, "")], "hashes"),
        ([file("a", 0, ONE)], "hashes"),
        ([file("a", 1, ONE + TWO)], "hashes"),
        ([file("a", CHUNK_SIZE + 1, ONE)], "hashes"),
        ([file("a", 1, ONE.upper())], "hashes"),
        ([file("a", 1, "../" + ONE[3:])], "hashes"),
        ([file("a", 10**30, ONE)], "hashes"),
        ([("a", "f", 0o644, 1, 5)], "data"),
        ([("a", "x", 0o644, 0, "")], "kind"),
        ([("a", ["f"], 0o644, 0, "")], "kind"),
        ([link("a", "")], "target"),
        ([link("a", "b\0c")], "target"),
        ([link("a", "t" * 5000)], "target"),
        ([("a", "f", 0o644, 1)], "not \\[path"),
        ([{"path": "a"}], "not \\[path"),
    ],
)
def test_entries_that_contradict_are_refused(entries: list[Any], words: str) -> None:
    with pytest.raises(InvalidManifest, match=words):
        parse(*entries)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}\n",
        b'{"skyloom_manifest":2,"chunk_size":4194304}\n',
        encode_manifest([file("a")])[:-1],
        encode_manifest([]) + b"[\n",
        encode_manifest([]) + b"[" * 100_000 + b"\n",
        encode_manifest([]) + b'["\xff"]\n',
        encode_manifest([]) + b"\n",
        encode_manifest([]) + b"NaN\n",
    ],
)
def test_what_is_not_a_manifest_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidManifest):
        parse_manifest(pack_manifest(text))


@pytest.mark.parametrize("packed", [b"", b"x", b"\x1f\x8b", pack_manifest(encode_manifest([file("a")]))[:-1]])
def test_what_is_not_gzip_is_refused(packed: bytes) -> None:
    with pytest.raises(InvalidManifest):
        parse_manifest(packed)
    with pytest.raises(InvalidManifest):
        parse_manifest(pack_manifest(encode_manifest([])) + b"more")


def test_a_bomb_is_refused_before_it_is_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_MANIFEST", 10_000_000)
    packed = pack_manifest(encode_manifest([]) + b"0" * 500_000_000)
    assert len(packed) < 3_000_000
    tracemalloc.start()
    with pytest.raises(TooLarge):
        parse_manifest(packed)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 3 * files.MAX_MANIFEST


def test_too_many_entries_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_ENTRIES", 10)
    with pytest.raises(TooLarge):
        parse(*(file(f"f{number:02}") for number in range(11)))


def test_ten_thousand_entries_are_checked_in_a_tenth_of_a_second() -> None:
    entries: list[Entry] = []
    for folder in range(100):
        entries.append(directory(f"dir{folder:03}"))
        entries += [file(f"dir{folder:03}/file{number:03}.py", 9) for number in range(100)]
    packed = pack_manifest(encode_manifest(entries))
    times = []
    for _ in range(5):
        started = time.perf_counter()
        assert len(parse_manifest(packed)[1]) == 10_100
        times.append(time.perf_counter() - started)
    assert min(times) < 0.1


def test_needed_chunks_have_their_lengths_and_come_once() -> None:
    entries = [file("a", CHUNK_SIZE + 3, ONE + TWO), file("b", 3, TWO), file("c", 0, ""), directory("d")]
    assert needed_chunks(entries) == {ONE: CHUNK_SIZE, TWO: 3}


_names = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=5
).filter(lambda name: name not in (".", ".."))


@given(st.lists(st.lists(_names, min_size=1, max_size=4), max_size=20))
def test_any_tree_of_files_makes_a_manifest_that_is_taken(paths: list[list[str]]) -> None:
    kinds: dict[str, str] = {}
    for parts in paths:
        for end in range(1, len(parts)):
            kinds["/".join(parts[:end])] = "d"
        kinds.setdefault("/".join(parts), "f")
    entries = [
        directory(path) if kinds[path] == "d" else file(path) for path in sorted(kinds, key=tree_order)
    ]
    assert parse(*entries) == entries


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=8), st.lists, max_leaves=12))
def test_no_json_gets_past_as_anything_but_our_own_error(row: Any) -> None:
    line = json.dumps(row).encode() + b"\n"
    try:
        parse_manifest(pack_manifest(encode_manifest([]) + line))
    except SkyloomError:
        return


@pytest.mark.parametrize("destination", ["/data", "~/x", "~", "rel/x", "./x", "/a..b", "a/...", "/"])
def test_destinations_that_are_taken(destination: str) -> None:
    assert check_destination(destination) == destination


@pytest.mark.parametrize(
    "destination", ["", "..", "../x", "~/../x", "/a/../b", "a/..", "~root/x", "a\0b", "x" * 5000]
)
def test_destinations_that_are_refused(destination: str) -> None:
    with pytest.raises(InvalidRequest, match="file_mounts"):
        check_destination(destination)
