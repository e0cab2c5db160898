"""Trees on a node: additive, atomic per file, confined, never through a symlink, nothing left behind."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from skyloom_agent import file_apply, file_survey
from skyloom_agent.file_trees import FileTrees
from skyloom_common.contracts.file_frames import Frame
from skyloom_common.contracts.files import (
    AppliedTree,
    CorruptChunk,
    Entry,
    FilePlan,
    InvalidManifest,
    NodeDiskFull,
    encode_manifest,
    manifest_id,
    pack_manifest,
    tree_order,
)
from skyloom_common.core.chunks import CHUNK_SIZE
from skyloom_common.core.errors import Conflict, InvalidRequest, PermissionDenied

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def chunks_of(data: bytes) -> list[bytes]:
    return [data[at : at + CHUNK_SIZE] for at in range(0, len(data), CHUNK_SIZE)]


class Node:
    """A node's home and the sender's side of a sync: `tree` maps paths to bytes (file), None (directory), str (link)."""

    def __init__(self, home: Path, confine: bool = False) -> None:
        self.home = home
        self.trees = FileTrees(home, confine_to_home=confine)
        self.sent: list[str] = []

    def manifest(self, tree: dict[str, Any], modes: dict[str, int]) -> tuple[str, bytes]:
        entries: list[Entry] = []
        for path in sorted(tree, key=tree_order):
            value = tree[path]
            if value is None:
                entries.append((path, "d", modes.get(path, 0o755), 0, ""))
            elif isinstance(value, str):
                entries.append((path, "l", 0, 0, value))
            else:
                hashes = "".join(map(sha, chunks_of(value)))
                entries.append((path, "f", modes.get(path, 0o644), len(value), hashes))
        text = encode_manifest(entries)
        return manifest_id(text), pack_manifest(text)

    def plan(
        self,
        tree: dict[str, Any],
        destination: str,
        is_file: bool = False,
        modes: dict[str, int] | None = None,
    ) -> FilePlan:
        self.id, packed = self.manifest(tree, modes or {})
        return self.trees.plan(self.id, destination, is_file, packed)

    def sync(
        self,
        tree: dict[str, Any],
        destination: str = "~/sky_workdir",
        is_file: bool = False,
        modes: dict[str, int] | None = None,
    ) -> AppliedTree:
        plan = self.plan(tree, destination, is_file, modes)
        have = {
            sha(part): part
            for value in tree.values()
            if isinstance(value, bytes)
            for part in chunks_of(value)
        }
        self.trees.put([Frame(name, 0, have[name]) for name in plan.missing])
        self.sent = list(plan.missing)
        return self.trees.apply(self.id, destination, is_file)

    def leftovers(self) -> list[str]:
        own = list((self.home / ".sky/files/chunks").rglob("*"))
        return [str(path) for path in own] + [str(path) for path in self.home.rglob(".skyloom*")]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    return home


@pytest.fixture
def node(home: Path) -> Node:
    return Node(home)


def contents(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        else:
            found[name] = None if path.is_dir() else path.read_bytes()
    return found


TREE: dict[str, Any] = {
    "a.py": b"a",
    "empty": b"",
    "sub": None,
    "sub/b": b"bb",
    "sub/deep": None,
    "sub/l": "../a.py",
}


def test_a_tree_arrives_as_it_is_and_again_costs_nothing(node: Node, home: Path) -> None:
    node.sync(TREE, modes={"a.py": 0o755, "sub": 0o750})
    workdir = home / "sky_workdir"
    assert contents(workdir) == TREE
    assert (workdir / "a.py").stat().st_mode & 0o777 == 0o755
    assert (workdir / "sub").stat().st_mode & 0o777 == 0o750
    assert node.leftovers() == []
    again = node.plan(TREE, "~/sky_workdir", modes={"a.py": 0o755, "sub": 0o750})
    assert again == FilePlan()


def test_an_unchanged_tree_is_known_by_its_id_and_not_read(
    node: Node, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.sync(TREE)
    monkeypatch.setattr(file_survey, "hash_open_file", lambda fd: pytest.fail("a file was read"))
    assert node.trees.plan(node.id, "~/sky_workdir", False) == FilePlan()
    assert FileTrees(home).plan(node.id, "~/sky_workdir", False) == FilePlan(), (
        "also after the agent restarted"
    )


def test_an_unknown_manifest_is_asked_for(node: Node) -> None:
    assert node.trees.plan(sha(b"?"), "~/x", False) == FilePlan(need_manifest=True)
    with pytest.raises(Conflict, match="plan first"):
        node.trees.apply(sha(b"?"), "~/x", False)


def test_only_changed_chunks_are_asked_for(node: Node, home: Path) -> None:
    data = os.urandom(3 * CHUNK_SIZE + 77)
    node.sync({"big": data})
    edited = data[:CHUNK_SIZE] + b"x" + data[CHUNK_SIZE + 1 :]
    node.sync({"big": edited})
    assert node.sent == [sha(edited[CHUNK_SIZE : 2 * CHUNK_SIZE])]
    assert (home / "sky_workdir/big").read_bytes() == edited


def test_renamed_and_copied_files_are_made_from_what_is_there(node: Node, home: Path) -> None:
    data = os.urandom(CHUNK_SIZE + 5)
    node.sync({"old": data, "z": b"zz"})
    node.sync({"copy": data, "new": data, "y": b"zz"})
    assert node.sent == []
    assert contents(home / "sky_workdir") == {"copy": data, "new": data, "old": data, "y": b"zz", "z": b"zz"}
    inodes = {(home / "sky_workdir" / name).stat().st_ino for name in ("copy", "new", "old")}
    assert len(inodes) == 3, "copies, not links to one file"


def test_it_is_additive(node: Node, home: Path) -> None:
    node.sync({"a": b"1", "gone": b"2"})
    (home / "sky_workdir/made-by-the-job").write_text("result")
    node.sync({"a": b"3"})
    assert sorted(contents(home / "sky_workdir")) == ["a", "gone", "made-by-the-job"]


def test_what_a_job_changed_is_put_right_again(node: Node, home: Path) -> None:
    node.sync(TREE)
    workdir = home / "sky_workdir"
    (workdir / "a.py").write_text("b")
    (workdir / "sub/b").unlink()
    (workdir / "sub/l").unlink()
    (workdir / "sub/l").symlink_to("elsewhere")
    (workdir / "empty").chmod(0o600)
    assert node.sync(TREE).written == 4
    assert contents(workdir) == TREE
    assert (workdir / "empty").stat().st_mode & 0o777 == 0o644


def test_files_that_were_there_before_are_compared_by_content(node: Node, home: Path) -> None:
    (home / "data").mkdir()
    (home / "data/same").write_bytes(b"12345")
    (home / "data/other").write_bytes(b"54321")
    inode = (home / "data/same").stat().st_ino
    node.sync({"same": b"12345", "other": b"99999"}, "~/data")
    assert node.sent == [sha(b"99999")]
    assert (home / "data/same").stat().st_ino == inode


def test_an_edit_that_keeps_size_and_times_is_seen_by_its_inode_or_ctime(node: Node, home: Path) -> None:
    node.sync({"a": b"one"})
    file = home / "sky_workdir/a"
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    file.write_bytes(b"two")
    os.utime(file, ns=times)
    assert node.sync({"a": b"one"}).written == 1
    assert file.read_bytes() == b"one"


def test_a_source_that_changed_after_the_plan_is_not_used(node: Node, home: Path) -> None:
    data = os.urandom(2 * CHUNK_SIZE)
    node.sync({"big": data})
    new = data + b"more"
    plan = node.plan({"big": new}, "~/sky_workdir")
    assert plan.missing == (sha(b"more"),)
    node.trees.put([Frame(sha(b"more"), 0, b"more")])
    spoilt = b"!" + data[1:]
    (home / "sky_workdir/big").write_bytes(spoilt)
    applied = node.trees.apply(node.id, "~/sky_workdir", False)
    assert applied.missing and applied.written == 0
    assert (home / "sky_workdir/big").read_bytes() == spoilt
    node.sync({"big": new})
    assert (home / "sky_workdir/big").read_bytes() == new


def test_a_read_only_directory_can_be_synced_twice(home: Path) -> None:
    node = Node(home)
    node.sync({"ro": None, "ro/a": b"1"}, modes={"ro": 0o555})
    node.sync({"ro": None, "ro/a": b"2"}, modes={"ro": 0o555})
    assert (home / "sky_workdir/ro/a").read_bytes() == b"2"
    assert (home / "sky_workdir/ro").stat().st_mode & 0o777 == 0o555


def test_odd_names_arrive_byte_by_byte(node: Node, home: Path) -> None:
    tree = {"new\nline": b"1", "bad\udcff": b"2", "ü": None, "ü/é": b"3", "-rf": b"4"}
    node.sync(tree)
    assert sorted(os.listdir(os.fsencode(home) + b"/sky_workdir")) == [
        b"-rf",
        b"bad\xff",
        b"new\nline",
        "ü".encode(),
    ]


# --- destinations ---


@pytest.mark.parametrize(
    ("destination", "where"),
    [
        ("~/data", "data"),
        ("rel/x", "sky_workdir/rel/x"),
        ("./rel", "sky_workdir/rel"),
        ("~/a//b/./c/", "a/b/c"),
    ],
)
def test_destinations(node: Node, home: Path, destination: str, where: str) -> None:
    node.sync({"f": b"1"}, destination)
    assert (home / where / "f").read_bytes() == b"1"


def test_an_absolute_destination_is_taken_where_the_node_owns_its_machine(node: Node, tmp_path: Path) -> None:
    node.sync({"f": b"1"}, str(tmp_path / "data/set"))
    assert (tmp_path / "data/set/f").read_bytes() == b"1"


def test_a_single_file_is_placed_as_the_destination_itself(node: Node, home: Path) -> None:
    node.sync({"local-name": b"1"}, "~/conf/app.cfg", is_file=True, modes={"local-name": 0o600})
    assert (home / "conf/app.cfg").read_bytes() == b"1"
    assert (home / "conf/app.cfg").stat().st_mode & 0o777 == 0o600
    assert node.plan({"local-name": b"1"}, "~/conf/app.cfg", True, modes={"local-name": 0o600}) == FilePlan()


def test_a_manifest_of_several_entries_is_not_a_file(node: Node) -> None:
    with pytest.raises(InvalidManifest, match="just one file"):
        node.plan({"a": b"1", "b": b"2"}, "~/x", is_file=True)


@pytest.mark.parametrize("destination", ["../x", "~/../x", "/a/../../etc", "~root/x", "a\0b", ""])
def test_traversal_in_a_destination_is_refused(node: Node, destination: str) -> None:
    with pytest.raises(InvalidRequest, match="file_mounts"):
        node.sync({"f": b"1"}, destination)


def test_a_node_that_shares_its_machine_writes_in_its_home_only(home: Path, tmp_path: Path) -> None:
    node = Node(home, confine=True)
    (home / "way-out").symlink_to(tmp_path)
    for destination in ("/data", str(tmp_path / "x"), "~/way-out/x", "~/way-out", str(home) + "-evil"):
        with pytest.raises(PermissionDenied, match=r"outside of the node's home.*use '~/"):
            node.sync({"f": b"1"}, destination)
    node.sync({"f": b"1"}, str(home / "inside"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home"]


def test_the_agents_own_files_are_out_of_reach(node: Node, home: Path) -> None:
    with pytest.raises(PermissionDenied):
        node.sync({"f": b"1"}, "~/.sky")
    with pytest.raises(PermissionDenied):
        node.sync({"agent.json": b"1"}, "~/.sky/sub")
    with pytest.raises(PermissionDenied):
        node.sync({".sky": None, ".sky/agent.json": b"1"}, "~")
    (home / "alias").symlink_to(home / ".sky")
    with pytest.raises(PermissionDenied):
        node.sync({"f": b"1"}, "~/alias")
    node.sync({"f": b"1", ".skyrc": b"2"}, "~")
    assert (home / ".skyrc").read_bytes() == b"2"


# --- symlinks and conflicts at the destination ---


def test_nothing_is_written_through_a_symlink_below_the_destination(
    node: Node, home: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "f").write_bytes(b"precious")
    node.sync({"d": str(outside), "l": str(outside / "f")})
    node.sync({"d": None, "d/f": b"new", "l": b"file"})
    assert (outside / "f").read_bytes() == b"precious"
    assert contents(home / "sky_workdir") == {"d": None, "d/f": b"new", "l": b"file"}


def test_a_link_that_appears_between_plan_and_apply_is_not_followed(
    node: Node, home: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    node.sync({"d": None, "d/f": b"1"})
    node.plan({"d": None, "d/f": b"2"}, "~/sky_workdir")
    node.trees.put([Frame(sha(b"2"), 0, b"2")])
    shutil.rmtree(home / "sky_workdir/d")
    (home / "sky_workdir/d").symlink_to(outside)
    with pytest.raises(Conflict):
        node.trees.apply(node.id, "~/sky_workdir", False)
    assert list(outside.iterdir()) == []


def test_kinds_may_change_but_a_full_directory_is_not_swept_away(node: Node, home: Path) -> None:
    node.sync({"x": b"1", "y": None, "z": "nowhere"})
    node.sync({"x": None, "x/in": b"2", "y": b"3", "z": None})
    assert contents(home / "sky_workdir") == {"x": None, "x/in": b"2", "y": b"3", "z": None}
    with pytest.raises(Conflict, match=r"'x' is a directory with files in it"):
        node.sync({"a": b"new", "x": b"4"})
    assert not (home / "sky_workdir/a").exists(), "refused before anything was written"


def test_a_file_where_the_destination_should_be_is_named(node: Node, home: Path) -> None:
    (home / "data").write_text("a file")
    with pytest.raises(Conflict, match="~/data"):
        node.sync({"f": b"1"}, "~/data")


# --- failures ---


def test_a_corrupt_chunk_is_refused_and_the_good_ones_are_kept(node: Node) -> None:
    plan = node.plan({"a": b"good", "b": b"bad"}, "~/sky_workdir")
    assert len(plan.missing) == 2
    with pytest.raises(CorruptChunk):
        node.trees.put([Frame(sha(b"bad"), 0, b"BAD"), Frame(sha(b"good"), 0, b"good")])
    assert node.plan({"a": b"good", "b": b"bad"}, "~/sky_workdir").missing == (sha(b"bad"),)


def test_apply_with_chunks_missing_says_which_and_changes_nothing(node: Node, home: Path) -> None:
    node.sync({"a": b"old"})
    node.plan({"a": b"new", "b": b"more"}, "~/sky_workdir")
    node.trees.put([Frame(sha(b"new"), 0, b"new")])
    assert node.trees.apply(node.id, "~/sky_workdir", False).missing == (sha(b"more"),)
    assert contents(home / "sky_workdir") == {"a": b"old"}


def test_a_restart_in_the_middle_keeps_chunks_and_drops_half_made_files(node: Node, home: Path) -> None:
    plan = node.plan({"a": b"1", "b": b"2"}, "~/sky_workdir")
    node.trees.put([Frame(plan.missing[0], 0, b"1")])
    (home / ".sky/files/chunks/stage-dead").mkdir()
    (home / ".sky/files/chunks/stage-dead/1").write_text("half")
    node = Node(home)
    assert node.plan({"a": b"1", "b": b"2"}, "~/sky_workdir").missing == (sha(b"2"),)
    node.sync({"a": b"1", "b": b"2"})
    assert node.sent == [sha(b"2")] and node.leftovers() == []


def test_chunks_that_nobody_came_back_for_go(node: Node, home: Path) -> None:
    node.trees.put([Frame(sha(b"lost"), 0, b"lost")])
    os.utime(home / ".sky/files/chunks" / sha(b"lost"), (time.time() - 7200,) * 2)
    node.plan({}, "~/x")
    assert node.leftovers() == []


def test_a_failure_while_making_files_ready_leaves_the_old_ones(
    node: Node, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.sync({"a": b"old"})
    monkeypatch.setattr(file_apply, "_copy", _raise_no_space)
    big = os.urandom(CHUNK_SIZE + 1)
    with pytest.raises(NodeDiskFull, match="disk is full"):
        node.sync({"a": b"new", "big": big})
    assert contents(home / "sky_workdir") == {"a": b"old"}
    assert node.leftovers() == []


def _raise_no_space(*args: object) -> bool:
    raise OSError(28, "No space left on device")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if made.returncode != 0:
        pytest.skip(f"a tmpfs cannot be mounted here: {made.stderr.decode().strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=False)


@as_root
def test_a_full_disk_is_named_and_leaves_no_crumbs(small_disk: Path) -> None:
    node = Node(small_disk)
    node.sync({"a": b"old"})
    tree = {"a": b"new", **{f"big{number}": os.urandom(CHUNK_SIZE) for number in range(5)}}
    with pytest.raises(NodeDiskFull, match="disk is full"):
        node.sync(tree)
    assert contents(small_disk / "sky_workdir") == {"a": b"old"}
    assert node.leftovers() == []
    assert shutil.disk_usage(small_disk).free > 11 * 2**20


@as_root
def test_a_destination_on_another_disk_is_filled_atomically_too(home: Path, small_disk: Path) -> None:
    node = Node(home)
    node.sync(
        {"sub": None, "sub/f": b"1", "l": "sub/f", "big": bytes(CHUNK_SIZE + 3)}, str(small_disk / "data")
    )
    assert contents(small_disk / "data") == {
        "sub": None,
        "sub/f": b"1",
        "l": "sub/f",
        "big": bytes(CHUNK_SIZE + 3),
    }
    with pytest.raises(NodeDiskFull):
        node.sync({"sub": None, "sub/f": b"2", "more": os.urandom(3 * CHUNK_SIZE)}, str(small_disk / "data"))
    assert (small_disk / "data/sub/f").read_bytes() == b"1"
    assert node.leftovers() == [] and sorted(os.listdir(small_disk / "data")) == ["big", "l", "sub"]


@as_root
def test_a_mount_inside_the_destination_is_written_over_its_edge(home: Path, small_disk: Path) -> None:
    node = Node(small_disk)
    inner = small_disk / "sky_workdir/cache"
    inner.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(inner)], check=True)
    try:
        node.sync({"cache": None, "cache/f": b"1", "cache/l": "f", "g": b"2"}, modes={"cache/f": 0o640})
        assert contents(small_disk / "sky_workdir") == {
            "cache": None,
            "cache/f": b"1",
            "cache/l": "f",
            "g": b"2",
        }
        assert (inner / "f").stat().st_mode & 0o777 == 0o640
    finally:
        subprocess.run(["umount", str(inner)], check=False)
