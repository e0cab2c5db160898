"""Files that are too big, too deep, a bomb, or not YAML are refused at once, and say so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from skyloom_common.contracts.task import source
from skyloom_common.contracts.task.parse import parse_task_file
from skyloom_common.core.errors import InvalidTask


def _refused(text: str | bytes | Path) -> str:
    with pytest.raises(InvalidTask) as caught:
        parse_task_file(text, filename="task.yaml")
    return str(caught.value)


def test_a_bomb_of_aliases_is_refused_where_it_is_too_much() -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    lines += [
        f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]"
        for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    message = _refused("\n".join(lines) + "\n")
    assert message == "task.yaml:4: aliases that expand to more than 10,000 values", "not at the last line"


def test_a_bomb_of_merges_is_refused() -> None:
    lines = ["a: &a {k0: x, k1: x, k2: x, k3: x, k4: x, k5: x, k6: x, k7: x, k8: x, k9: x}"]
    lines += [
        f"{new}: &{new} {{{', '.join(f'k{n}: *{old}' for n in range(10))}}}"
        for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    lines += ["<<: *i"]
    assert "aliases that expand" in _refused("\n".join(lines) + "\n")


def test_an_anchor_inside_itself_is_refused() -> None:
    assert _refused("a: &a [*a]\n") == "task.yaml:1: the alias *a has no anchor before it"


def test_aliases_within_reason_are_fine() -> None:
    file = parse_task_file("envs: &e {A: x}\nsecrets: *e\nrun: x\n")
    assert file.tasks[0].secrets == {"A": "x"}


@pytest.mark.parametrize(
    "text", ["[" * 100_000 + "\n", "- " * 1_000 + "x\n", "{a: " * 1_000 + "}" * 1_000 + "\n"]
)
def test_depth_is_bounded(text: str) -> None:
    assert _refused(text).startswith("task.yaml:1: nested deeper than 64 levels")


def test_the_number_of_values_is_bounded() -> None:
    assert "more than 100,000 values" in _refused("envs:\n" + "- a\n" * 150_000)


def test_a_text_of_more_than_a_megabyte_is_refused() -> None:
    assert "2,000,001 bytes are more than a task file may have (1,000,000)" in _refused(
        "x" * 2_000_000 + "\n"
    )
    assert "bytes are more than" in _refused(b"x" * 1_000_001)


def test_a_file_of_a_hundred_megabytes_is_refused_without_reading_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "big.yaml"
    with path.open("wb") as file:
        file.truncate(100_000_000)

    def no_read(*_: object, **__: object) -> None:
        raise AssertionError("it was parsed")

    monkeypatch.setattr(source, "load_documents", no_read)
    monkeypatch.setattr(source, "_decoded", no_read)
    with pytest.raises(InvalidTask, match="100,000,000 bytes are more than a task file may have"):
        parse_task_file(path)


def test_a_pipe_is_read_no_further_than_allowed(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    os.write(write_end, b"run: hi\n")
    os.close(write_end)
    try:
        assert parse_task_file(Path(f"/dev/fd/{read_end}")).tasks[0].run == "hi"
    finally:
        os.close(read_end)


def test_only_utf_8() -> None:
    assert _refused(b"name: x\nrun: caf\xe9\n") == (
        "task.yaml:2: byte 16 is not UTF-8; use UTF-8 as the encoding of a task file"
    )
    assert parse_task_file("run: héllo\n".encode()).tasks[0].run == "héllo"
    assert parse_task_file(b"\xef\xbb\xbfrun: x\n").tasks[0].run == "x"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "task.yaml: the file is empty; use at least `run: COMMAND`"),
        ("# only a comment\n", "task.yaml: the file is empty; use at least `run: COMMAND`"),
        ("---\n---\n", "task.yaml: the file is empty; use at least `run: COMMAND`"),
        (
            "nvidia-smi",
            "task.yaml:1: 'nvidia-smi' is a command, not a task file; use `run: COMMAND` in a task file",
        ),
        ("- a\n", "task.yaml:1: a list is not a mapping; use the fields of a task"),
        (
            "run: !!python/name:os.system\n",
            "the tag tag:yaml.org,2002:python/name:os.system is not allowed in a task file",
        ),
        ("run: !mine x\n", "task.yaml:1: the tag !mine is not allowed in a task file"),
        ("? [a]\n: b\n", "task.yaml:1: a list or mapping cannot be a key"),
        ("run: a\x07b\n", "task.yaml: character 6 is not allowed in YAML"),
        ("name: a\n\trun: b\n", "task.yaml:2: this is not valid YAML:"),
        (
            "run: {a,b}: c\n",
            "task.yaml:1: this is not valid YAML: mapping values are not allowed in this context",
        ),
        ("missing.yaml", "task.yaml: there is no such file"),
    ],
)
def test_what_is_not_a_task_file(text: str, message: str) -> None:
    assert message in _refused(text)


def test_a_directory_is_not_a_task_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidTask, match="it is a directory, not a task file"):
        parse_task_file(tmp_path)


def test_repeated_keys_name_both_lines_also_when_nested() -> None:
    message = _refused("resources:\n  cpus: 1\n  memory: 2\n  cpus: 3\n---\nrun: a\nrun: b\n")
    assert message.splitlines()[1:] == [
        "  task.yaml:4: resources.cpus: given twice, on line 2 and on line 4; use it once",
        "  task.yaml:7: run: given twice, on line 6 and on line 7; use it once",
    ]


def test_without_the_c_parser_everything_reads_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [
        "resources:\n  accelerators: {A100,V100}:8 # x\n  disk_size: 500+\nrun: |\n  a\n  b\n",
        "name: p\n---\nrun: a\n---\nrun: b\n",
        "envs: {A: 12:30, B: 0x1f, C: 1e3, D: ~}\nrun: x\n",
    ]
    fast = [parse_task_file(text) for text in texts]
    monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    slow = [parse_task_file(text) for text in texts]
    assert slow == fast
    assert [file.lines for file in slow] == [file.lines for file in fast]
