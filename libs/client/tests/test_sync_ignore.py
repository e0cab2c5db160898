"""Ignore rules: a table for what people write, and git itself as the judge of random trees."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from sky.sync.ignore import IgnoreRules
from sky.sync.scan import scan
from skyloom_common.contracts.task.model import SyncSpec

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")

NAMES = [
    "a",
    "b",
    "ab",
    "a.log",
    "b.txt",
    "build",
    "data",
    "x y",
    "!bang",
    "#hash",
    "foo[1]",
    "é",
    "-d",
    "A",
    "a*b",
]
BETWEEN = "|"
PATTERNS = (
    r"*|a|b|*.log|/a|a/|a/b|/a/b|**/a|a/**|a/**/b|**|*/b|?|[ab]|[!a]|[^b]*|build/|!a|!*.txt|!build/|!/a/b|# c|\#hash|\!bang"
    r"|x\ y|x y  |tr\ ||foo[[]1]|foo\[1\]|[[:alpha:]]|[[:upper:]]*|a\*b|a*b|**/b/|/**/b|data/*|!data/a|/*|!/a|a**|**b"
    r"|a/***|a/*/b|[a-|[]a]|[]-a]|\|b\\c|é|?é|/|//|a//b|!|[a-b]*|[z-a]|[[:foo:]]|*/|*/*|***|data/**/|!*/|[\]]|a?b|[!/]"
    r"|[a/b]|x[ ]y|**/**|**/*/b|./a"
).split(BETWEEN)


def files_of(root: Path, sync: SyncSpec | None = None) -> set[str]:
    return {found.path for found in scan(str(root), sync).found if found.kind != "d"}


def lay(root: Path, *paths: str, **texts: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(texts.get(path, "x"))


@pytest.mark.parametrize(
    ("lines", "path", "is_directory", "verdict"),
    [
        ("*.log", "a/b.log", False, True),
        ("*.log", "a/b.txt", False, None),
        ("*.log\n!keep.log", "a/keep.log", False, False),
        ("!keep.log\n*.log", "keep.log", False, True),
        ("build/", "build", False, None),
        ("build/", "src/build", True, True),
        ("/build", "src/build", True, None),
        ("a/b", "c/a/b", False, None),
        ("a/**/b", "a/b", False, True),
        ("a/**/b", "a/x/y/b", False, True),
        ("**/b", "x/y/b", False, True),
        ("a/**", "a", True, None),
        ("# note\n\n  \n", "# note", False, None),
        (r"\#note", "#note", False, True),
        (r"\!bang", "!bang", False, True),
        ("trailing  ", "trailing", False, True),
        ("dos.txt\r\n", "dos.txt", False, True),
        ("a[0-9].txt", "a5.txt", False, True),
        ("a[!0-9].txt", "a5.txt", False, None),
    ],
)
def test_verdicts(lines: str, path: str, is_directory: bool, verdict: bool | None) -> None:
    rules = IgnoreRules(lines.split("\n"))
    assert rules.verdict(path, path.rpartition("/")[2], is_directory) is verdict


def test_skyignore_patterns_with_an_inner_slash_match_at_any_depth() -> None:
    assert IgnoreRules(["out/*.bin"], any_depth=True).verdict("deep/out/x.bin", "x.bin", False) is True
    assert IgnoreRules(["/out/*.bin"], any_depth=True).verdict("deep/out/x.bin", "x.bin", False) is None


def _random_tree(root: Path, random_: random.Random, depth: int) -> None:
    for name in random_.sample(NAMES, random_.randint(1, 6)):
        if depth and random_.random() < 0.55:
            (root / name).mkdir()
            _random_tree(root / name, random_, depth - 1)
        else:
            (root / name).write_text("x")
    if random_.random() < 0.6:
        lines = random_.choices(PATTERNS, k=random_.randint(1, 5))
        (root / ".gitignore").write_text("\n".join(lines) + random_.choice(["", "\n"]))


@needs_git
@pytest.mark.parametrize("seed", range(25))
def test_what_is_sent_is_what_git_would_not_ignore(tmp_path: Path, seed: int) -> None:
    random_ = random.Random(seed)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    _random_tree(tmp_path, random_, 3)
    if random_.random() < 0.4:
        exclude = tmp_path / ".git/info/exclude"
        exclude.parent.mkdir(exist_ok=True)
        exclude.write_text("\n".join(random_.choices(PATTERNS, k=2)))
    listed = subprocess.run(
        ["git", "-C", str(tmp_path), "-c", "core.excludesFile=/dev/null", "ls-files", "-z", "--others", "--exclude-standard"],
        capture_output=True,
        check=True,
    ).stdout  # fmt: skip
    assert files_of(tmp_path) == {os.fsdecode(path) for path in listed.split(b"\0") if path}


@needs_git
def test_a_directory_inside_a_checkout_follows_the_rules_above_it(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    lay(tmp_path, "job/main.py", "job/x.tmp", "job/out/o.bin", "job/sub/y.tmp", "job/sub/out/p.bin")
    (tmp_path / ".gitignore").write_text("*.tmp\n/job/out/\n")
    (tmp_path / "job/sub/.gitignore").write_text("!y.tmp\n")
    assert files_of(tmp_path / "job") == {"main.py", "sub/.gitignore", "sub/y.tmp", "sub/out/p.bin"}


@needs_git
def test_rules_are_dropped_with_a_warning_when_git_ignores_the_whole_directory(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    lay(tmp_path, "scratch/run.py", "scratch/data.log")
    (tmp_path / ".gitignore").write_text("scratch/\n*.log\n")
    result = scan(str(tmp_path / "scratch"))
    assert {found.path for found in result.found} == {"run.py", "data.log"}
    assert "ignored by git" in result.warnings[0]


@needs_git
def test_a_submodule_has_its_own_rules(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    lay(tmp_path, "top.log", "sub/inner.log", "sub/inner.tmp", "sub/secret")
    (tmp_path / ".gitignore").write_text("*.log\n")
    (tmp_path / "sub/.gitignore").write_text("*.tmp\n")
    gitdir = tmp_path / ".git/modules/sub"
    (gitdir / "info").mkdir(parents=True)
    (gitdir / "info/exclude").write_text("secret\n")
    (tmp_path / "sub/.git").write_text("gitdir: ../.git/modules/sub\n")
    assert files_of(tmp_path) == {".gitignore", "sub/.gitignore", "sub/inner.log"}


def test_skyignore_is_the_only_source_and_knows_negation(tmp_path: Path) -> None:
    lay(tmp_path, "a.py", "b.log", "keep.log", "deep/c.log", "deep/out/x.bin", "deep/y.tmp")
    (tmp_path / ".gitignore").write_text("*.tmp\n*.py\n")
    (tmp_path / ".skyignore").write_text("# what stays here\n*.log\n!keep.log\nout/*.bin\n/.*ignore\n")
    assert files_of(tmp_path) == {"a.py", "keep.log", "deep/y.tmp"}


def test_git_stays_behind_unless_asked_for(tmp_path: Path) -> None:
    lay(tmp_path, "a.py", ".git/HEAD", ".git/objects/ab/cd.log", "sub/.git")
    (tmp_path / ".gitignore").write_text("*.log\n")
    assert files_of(tmp_path) == {"a.py", ".gitignore"}
    everything = {"a.py", ".gitignore", ".git/HEAD", ".git/objects/ab/cd.log", "sub/.git"}
    assert files_of(tmp_path, SyncSpec(git=True)) == everything


def test_include_lets_only_matching_files_through_and_exclude_takes_more_away(tmp_path: Path) -> None:
    lay(tmp_path, "m.pt", "deep/n.pt", "deep/o.txt", "w/p.safetensors", "none/q.txt", "old/r.pt", "all/s.txt")
    sync = SyncSpec(include=("*.pt", "*.safetensors", "/all/"), exclude=("old/",))
    assert files_of(tmp_path, sync) == {"m.pt", "deep/n.pt", "w/p.safetensors", "all/s.txt"}
    directories = {found.path for found in scan(str(tmp_path), sync).found if found.kind == "d"}
    assert directories == {"deep", "w", "all"}


def test_a_file_named_by_itself_is_sent_whatever_the_rules_say(tmp_path: Path) -> None:
    lay(tmp_path, "secret.log")
    (tmp_path / ".gitignore").write_text("*\n")
    result = scan(str(tmp_path / "secret.log"))
    assert result.is_file and [found.path for found in result.found] == ["secret.log"]
