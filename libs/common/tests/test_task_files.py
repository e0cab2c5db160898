"""Whole files: paths, several documents, what the client adds, `$NAME`, and what leaves again."""

from __future__ import annotations

from pathlib import Path

import pytest

from skyloom_common.contracts.task.model import TaskFile
from skyloom_common.contracts.task.parse import parse_task_file, parse_task_mapping
from skyloom_common.contracts.task.write import task_file_to_yaml, task_to_yaml_config
from skyloom_common.core.errors import InvalidTask
from skyloom_common.core.wire import dumps, loads

GROUP = "name: g\nexecution: parallel\n"


def _refused(text: str, **options: object) -> str:
    with pytest.raises(InvalidTask) as caught:
        parse_task_file(text, filename="t.yaml", **options)  # type: ignore[arg-type]
    return str(caught.value)


def test_a_path_as_text_or_as_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "task.yaml"
    path.write_text("run: hi\n")
    assert parse_task_file(path).filename == str(path)
    assert parse_task_file(str(path)).tasks[0].run == "hi"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_task_file("~/task.yaml").tasks[0].run == "hi"
    (tmp_path / "noend").write_text("run: other\n")
    monkeypatch.chdir(tmp_path)
    assert parse_task_file("noend").tasks[0].run == "other"


def test_a_pipeline_names_the_tasks_that_have_no_name() -> None:
    file = parse_task_file("name: nightly\n---\nrun: a\n---\nname: mine\nrun: b\n---\nrun: c\n")
    assert (file.name, file.execution) == ("nightly", "serial")
    assert [task.name for task in file.tasks] == ["nightly-0", "mine", "nightly-2"]


def test_a_pipeline_without_a_header() -> None:
    file = parse_task_file("name: a\nrun: a\n---\nrun: b\n")
    assert file.name is None
    assert [task.name for task in file.tasks] == ["a", None]


def test_one_document_with_only_a_name_is_a_task() -> None:
    assert parse_task_file("name: a\n").tasks[0].name == "a"


def test_a_last_separator_adds_no_task() -> None:
    assert len(parse_task_file("run: a\n---\n").tasks) == 1


def test_a_header_may_say_serial() -> None:
    assert parse_task_file("name: p\nexecution: serial\n---\nrun: a\n").tasks[0].name == "p-0"


def test_a_job_group() -> None:
    file = parse_task_file(
        GROUP + "primary_tasks: [a]\ntermination_delay: {default: 30s, b: 2m}\ninter_connection: false\n"
        "---\nname: a\nrun: a\n---\nname: b\nrun: b\n"
    )
    assert file.execution == "parallel"
    assert file.primary_tasks == ("a",)
    assert file.termination_delay == {"default": 30.0, "b": 120.0}
    assert file.inter_connection is False


def test_one_delay_for_the_whole_group() -> None:
    assert parse_task_file(GROUP + "termination_delay: 15\n---\nname: a\n").termination_delay == {
        "default": 15.0
    }


def test_unknown_keys_of_a_header_are_ignored_with_a_notice() -> None:
    file = parse_task_file(GROUP + "colour: blue\n---\nname: a\n")
    assert file.notices == ("colour in the header of several tasks is not known and ignored",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GROUP, "t.yaml:1: a header without tasks; use one more document (after `---`) for each task"),
        (
            "execution: parallel\n---\nname: a\n",
            "t.yaml:1: name is missing; use name: NAME in the header of a job group",
        ),
        (
            "name: a.b\nexecution: parallel\n---\nname: a\n",
            "t.yaml:1: name: 'a.b' is not the name of a job group",
        ),
        (
            GROUP + "primary_tasks: [x]\n---\nname: a\n",
            "t.yaml:3: primary_tasks[0]: 'x' is no task of this group",
        ),
        (
            GROUP + "termination_delay: {x: 1}\n---\nname: a\n",
            "termination_delay.x: 'x' is no task of this group",
        ),
        (
            GROUP + "---\nrun: a\n",
            "t.yaml:1: task 1 of the group has no name; use a name of its own for each",
        ),
        (GROUP + "---\nname: a\n---\nname: a\n", "t.yaml:1: name: two tasks of the group are named 'a'"),
        (
            "name: p\nprimary_tasks: [a]\n---\nname: a\n",
            "primary_tasks: primary_tasks without execution: parallel",
        ),
        (
            "name: p\nexecution: random\n---\nrun: a\n",
            "execution: 'random' is not known here; use one of serial, parallel",
        ),
        ("name: p\n---\nrun: a\n---\nrun: 7\n", "t.yaml:5: run: '7' is not a script"),
    ],
)
def test_headers_that_are_wrong(text: str, message: str) -> None:
    assert message in _refused(text)


def test_the_client_adds_variables_to_every_task() -> None:
    file = parse_task_file(
        "name: p\n---\nenvs: {A: , B: file}\nrun: a\n---\nrun: b\n",
        env_overrides={"A": "1", "B": None},
        client_env={"B": "shell"},
    )
    assert [task.envs for task in file.tasks] == [{"A": "1", "B": "shell"}] * 2


def test_a_declared_secret_stays_a_secret() -> None:
    file = parse_task_file(
        "secrets: {A: }\nrun: a\n", env_overrides={"A": "x", "B": "y"}, secret_overrides={"C": "z"}
    )
    assert file.tasks[0].secrets == {"A": "x", "C": "z"}
    assert file.tasks[0].envs == {"B": "y"}


def test_a_variable_that_the_shell_does_not_have() -> None:
    assert (
        _refused("run: a\n", env_overrides={"A": None})
        == "t.yaml:1: --env.A: A is not set in this shell; use --env A=VALUE"
    )


def test_names_stand_for_their_values_in_four_sections_only() -> None:
    file = parse_task_file(
        "envs: {B: bucket, N: , R: v1}\nsecrets: {S: s3cret}\n"
        "workdir: {url: 'https://h/$B', ref: '${R}'}\n"
        "file_mounts: {'/data/$B': 's3://${B}/$N/$UNKNOWN'}\n"
        "volumes: {/v: $B-vol}\n"
        "service: {readiness_probe: {path: /, headers: {X: $S}}}\n"
        "setup: echo $B\nrun: echo ${B}\n",
    )
    task = file.tasks[0]
    assert task.workdir.url == "https://h/bucket"  # type: ignore[union-attr]
    assert task.workdir.ref == "v1"  # type: ignore[union-attr]
    assert task.file_mounts == {"/data/bucket": "s3://bucket/$N/$UNKNOWN"}
    assert task.volumes["/v"].name is not None
    assert task.service.readiness_probe.headers == {"X": "s3cret"}  # type: ignore[union-attr]
    assert (task.setup, task.run) == ("echo $B", "echo ${B}")


def test_an_override_is_what_is_substituted() -> None:
    text = "envs: {B: one}\nfile_mounts: {/d: s3://$B}\n"
    assert parse_task_file(text, env_overrides={"B": "two"}).tasks[0].file_mounts == {"/d": "s3://two"}
    mapping = {"envs": {"B": "one"}, "file_mounts": {"/d": "s3://$B"}}
    assert parse_task_mapping(mapping, env_overrides={"B": "two"}).file_mounts == {"/d": "s3://two"}


def test_a_value_that_looks_like_a_name_is_not_replaced_twice() -> None:
    file = parse_task_file("envs: {A: $B, B: x}\nfile_mounts: {/d: ./$A}\n")
    assert file.tasks[0].file_mounts == {"/d": "./$B"}
    text = task_file_to_yaml(file)
    assert "_verbatim: true" in text
    assert parse_task_file(text) == file


def test_redacted_text_holds_no_secret() -> None:
    text = (
        "name: x\nenvs: {A: a, SKYPILOT_DOCKER_USERNAME: u, SKYPILOT_DOCKER_PASSWORD: docker-pass, SKYPILOT_DOCKER_SERVER: s}\n"
        "secrets: {TOKEN: tok, LONG: tok-and-more, REF: }\n"
        "resources: {_docker_login_config: {password: docker-pass}}\n"
        "_user_specified_yaml: 'secrets: {TOKEN: tok-and-more}'\n"
        "file_mounts: {/a: 's3://$LONG', /b: {name: 'bucket-$TOKEN'}}\n"
        "service: {readiness_probe: {path: /, headers: {Authorization: Bearer $TOKEN}}}\n"
        "run: echo $TOKEN\n"
    )
    file = parse_task_file(text)
    assert "tok-and-more" in task_file_to_yaml(file)
    safe = task_file_to_yaml(file, redact=True)
    assert "tok" not in safe.replace("_token", "")
    assert "docker-pass" not in safe
    config = task_to_yaml_config(file.tasks[0], redact=True)
    assert config["secrets"] == {"TOKEN": "<redacted>", "LONG": "<redacted>", "REF": None}
    assert config["file_mounts"]["/a"] == "s3://${LONG}"
    assert config["service"]["readiness_probe"]["headers"] == {"Authorization": "Bearer ${TOKEN}"}


def test_secrets_do_not_show_in_repr() -> None:
    assert "hunter2" not in repr(parse_task_file("secrets: {A: hunter2}\nrun: a\n"))


def test_a_file_crosses_the_wire_whole() -> None:
    file = parse_task_file(
        GROUP + "primary_tasks: [a]\n---\nname: a\nresources: {any_of: [{infra: aws}, {infra: gcp}]}\n"
    )
    assert loads(TaskFile, dumps(file), strict=True) == file


def test_lines_are_kept_for_later_checks() -> None:
    file = parse_task_file("name: p\n---\nworkdir: x\nenvs:\n  A:\nfile_mounts:\n  /d: ./x\n")
    assert file.lines[0]["workdir"] == 3
    assert file.lines[0]["envs.A"] == 5
    assert file.lines[0]["file_mounts./d"] == 7


def test_scripts_are_written_as_blocks() -> None:
    text = task_file_to_yaml(parse_task_file("run: |\n  a\n  b\n"))
    assert text == "run: |\n  a\n  b\n"
