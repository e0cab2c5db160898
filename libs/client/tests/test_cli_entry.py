"""What was typed to a task: files, commands, variables; and the command line as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sky.cli import tree
from sky.cli.app import cli

Sky = Callable[..., Any]

ROOT_HELP = """\
Usage: sky [OPTIONS] COMMAND [ARGS]...

  Skyloom runs AI and batch work on any cloud, cluster or own machine, where it is cheapest and available.

Options:
  -v, --version                       Show the version and exit.
  -c, --commit                        Show the commit this was built from and exit.
  --install-shell-completion SHELL    Install completion for bash, zsh, fish or auto.
  --uninstall-shell-completion SHELL  Remove it again.
  -h, --help                          Show this message and exit.

Clusters:
  launch    Run a task on a cluster, making the cluster if needed.
  exec      Run a task or command on an existing cluster.
  status    Show clusters.
  queue     Show the jobs of clusters.
  logs      Show or follow the log of a job.
  cancel    Cancel jobs on a cluster.
  stop      Stop clusters, keeping their disks.
  start     Start stopped clusters again.
  down      Tear clusters down.
  autostop  Stop or tear down clusters when they are idle.

Infrastructure:
  check        Show which infrastructure can be used, and why not.
  gpus         Accelerators and their prices.
  catalog      The price catalog: its age, and current prices.
  why          Say why a plan, a cluster, a job or a request is as it is.
  cost-report  Show what clusters have cost.
  api          The API server: start, stop, login, requests.

Not supported yet:
  jobs        Managed jobs: recovery, pipelines, pools.
  serve       Services: replicas behind one endpoint.
  storage     Buckets.
  volumes     Volumes.
  ssh         Own machines as infrastructure.
  workspace   Workspaces.
  dashboard   Open the web dashboard.
  debug-dump  Collect logs and state in one file.

`sky COMMAND --help` shows more about a command.
"""


def test_the_help_is_the_same_by_both_ways(sky: Sky) -> None:
    assert tree.quick_answer(["--help"]) == ROOT_HELP.rstrip("\n")
    assert sky("--help").out == ROOT_HELP
    assert sky().out == ROOT_HELP
    for group in ("api", "catalog", "gpus", "jobs", "jobs pool"):
        assert sky(*group.split(), "-h").out.rstrip() == tree.quick_answer([*group.split(), "--help"])


def every_command() -> list[str]:
    return [tree.path_of(group, name) for group in tree.TREE for name in tree.rows(group)]


@pytest.mark.parametrize("path", every_command())
def test_every_command_has_help_and_takes_it_from_the_tree(sky: Sky, path: str) -> None:
    ran = sky(*path.split(), "--help")
    assert ran.code == 0, ran.text
    assert ran.out.startswith("Usage: ")


def test_no_two_options_of_a_command_share_a_flag() -> None:
    import click

    for path in every_command():
        command: click.Command = cli
        context = click.Context(cli)
        for word in path.split():
            assert isinstance(command, click.Group)
            found = command.get_command(context, word)
            assert found is not None
            command = found
        flags = [
            flag
            for parameter in command.params
            if isinstance(parameter, click.Option)
            for flag in parameter.opts
        ]
        assert len(flags) == len(set(flags)), path


def test_unknown_commands_suggest(sky: Sky) -> None:
    ran = sky("statsu")
    assert ran.code == 2
    assert "did you mean 'status'?" in ran.err


def test_a_task_file(fake: Any, sky: Sky, tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    (tmp_path / "task.yaml").write_text("name: t\nenvs: {A: 1, TOKEN: }\nnum_nodes: 2\nrun: echo $A\n")
    fake.add_cluster("dev")
    ran = sky("exec", "dev", "task.yaml", "--env", "TOKEN=x", "-d")
    assert ran.code == 0, ran.text
    task = fake.last("/exec").json()["task"]
    assert task == {"name": "t", "num_nodes": 2, "envs": {"A": "1", "TOKEN": "x"}, "run": "echo $A"}
    missing = sky("exec", "dev", "task.yaml")
    assert missing.code == 1
    assert "envs.TOKEN: it has no value" in missing.err


def test_variables_from_the_shell_and_from_files(
    fake: Any, sky: Sky, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.add_cluster("dev")
    (tmp_path / "env").write_text("# comment\nexport A=1\nB='two words'\nC=3 # more\n\n")
    (tmp_path / "sec").write_text('S="hush"\n')
    monkeypatch.setenv("D", "4")
    ran = sky(
        "exec", "dev", "--env-file", "env", "--env", "A=9", "--env", "D", "--secret-file", "sec", "true", "-d"
    )
    assert ran.code == 0, ran.text
    task = fake.last("/exec").json()["task"]
    assert task["envs"] == {"A": "9", "B": "two words", "C": "3", "D": "4"}
    assert task["secrets"] == {"S": "hush"}


@pytest.mark.parametrize(
    "words",
    [
        ["--env", "NOT_SET_HERE"],
        ["--env", "=x"],
        ["--env-file", "nowhere"],
        ["--workdir", "w", "--git-url", "u"],
    ],
)
def test_variables_that_are_not_there_are_usage_errors(fake: Any, sky: Sky, words: list[str]) -> None:
    assert sky("launch", *words, "true").code == 2


def test_a_missing_task_file_is_asked_about(fake: Any, sky: Sky) -> None:
    assert sky("launch", "typo.yaml", stdin="n\n").code == 1
    assert sky("launch", "-y", "typo.yaml").code == 2
    assert fake.count("POST", "/launch") == 0


def test_several_tasks_are_not_for_launch(fake: Any, sky: Sky, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("name: p\n---\nrun: a\n---\nrun: b\n")
    ran = sky("launch", "p.yaml")
    assert ran.code == 2
    assert "sky jobs launch p.yaml" in ran.err


def test_every_problem_of_a_file_at_once(fake: Any, sky: Sky, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("resorces: {cpus: 2}\nnum_nodes: zero\nrun: hi\n")
    ran = sky("launch", "bad.yaml")
    assert ran.code == 1
    assert "bad.yaml:1: resorces: unknown field; did you mean 'resources'?" in ran.err
    assert "bad.yaml:2: num_nodes" in ran.err


@pytest.mark.parametrize("name", ["a;b", "../x", "1x", "x y", "$(id)"])
def test_names_with_other_characters_are_refused(fake: Any, sky: Sky, name: str) -> None:
    ran = sky("launch", "-y", "-c", name, "true")
    assert ran.code == 1
    assert "is not valid" in ran.err
    assert fake.count("POST", "/launch") == 0


def test_config_goes_with_the_task(fake: Any, sky: Sky) -> None:
    fake.add_cluster("dev")
    assert sky("exec", "dev", "-d", "--config", "docker.run_options=[--rm]", "true").code == 0
    assert fake.last("/exec").json()["task"]["config"] == {"docker": {"run_options": ["--rm"]}}


def test_what_was_typed_is_remembered_without_values(
    fake: Any, sky: Sky, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sky.cli.entry import typed_command

    monkeypatch.setattr(sys, "argv", ["sky", "exec", "dev", "--secret", "S=hush", "--env=A=1", "true"])
    assert typed_command() == "sky exec dev --secret S --env=A true"


def test_workdir_and_file_mounts_are_uploaded(
    fake: Any, sky: Sky, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sky.sync import UploadResult

    seen = []

    def upload(_transport: Any, path: str, **_more: Any) -> UploadResult:
        seen.append(path)
        return UploadResult(f"m{len(seen)}", Path(path).is_file(), 1, 1, 1, 1, ("a warning",))

    monkeypatch.setattr("sky.sync.upload_tree", upload)
    (tmp_path / "w").mkdir()
    (tmp_path / "f").write_text("x")
    (tmp_path / "t.yaml").write_text("workdir: w\nfile_mounts: {~/f: f, /data: 's3://bucket'}\nrun: ls\n")
    ran = sky("launch", "-y", "-c", "dev", "t.yaml")
    assert ran.code == 0, ran.text
    assert fake.last("/launch").json()["mounts"] == [
        {"destination": "~/sky_workdir", "manifest_id": "m1", "kind": "workdir"},
        {"destination": "~/f", "manifest_id": "m2", "is_file": True},
    ]
    assert "a warning" in ran.err
    seen.clear()
    assert sky("exec", "dev", "t.yaml").code == 0
    assert len(seen) == 1


# --- as a process ---


def process(fake: Any, *words: str, **more: str) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, **more}
    command = [sys.executable, "-m", "sky.cli.main", *words]
    return subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False)


@pytest.mark.integration
def test_output_of_a_job_is_copied_byte_for_byte(fake: Any) -> None:
    fake.add_cluster("dev")
    fake.job_output = bytes(range(256)) * 100
    fake.cut_log_after = [12_345]
    done = process(fake, "exec", "dev", "cat data")
    assert (done.returncode, done.stdout) == (0, fake.job_output)


@pytest.mark.integration
def test_errors_leave_no_stack_and_no_secret(fake: Any) -> None:
    done = process(fake, "status", SKYLOOM_TOKEN="sky_wrong")
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == [
        "Error: The token is missing or wrong.", "Hint: sky api login",
    ]  # fmt: skip
    assert b"sky_wrong" not in done.stdout + done.stderr
    done = process(fake, "status", SKYLOOM_API_SERVER_ENDPOINT="nonsense")
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    assert b"environment SKYLOOM_API_SERVER_ENDPOINT" in done.stderr


@pytest.mark.integration
def test_a_reader_that_goes_away_is_no_error_message(fake: Any) -> None:
    fake.add_cluster("dev")
    fake.add_job("dev", output=b"line\n" * 200_000)
    command = f"{sys.executable} -m sky.cli.main logs dev | head -1"
    done = subprocess.run(
        ["bash", "-c", command], env=dict(os.environ), capture_output=True, timeout=60, check=False
    )
    assert done.stdout == b"line\n"
    assert done.stderr == b""
