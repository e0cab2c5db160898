"""sky logs, sky api, check, gpus, cost-report: output and exit codes; broken connections in the middle."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from skyloom_common.contracts.clusters import InfraStatus
from skyloom_common.contracts.jobs import JobStatus, RankFailure

Sky = Callable[..., Any]


def test_logs_follow_the_latest_job_and_take_its_code(fake: Any, sky: Sky) -> None:
    fake.add_cluster("dev")
    fake.add_job("dev", output=b"old\n")
    fake.add_job("dev", JobStatus.FAILED, b"new\n")
    ran = sky("logs", "dev")
    assert (ran.code, ran.out) == (100, "new\n")
    assert sky("logs", "dev", "1").out == "old\n"


def test_logs_survive_a_cut_in_the_middle(fake: Any, sky: Sky) -> None:
    fake.add_cluster("dev")
    text = "".join(f"line {number}\n" for number in range(500))
    fake.add_job("dev", output=text.encode())
    fake.cut_log_after = [1234]
    ran = sky("logs", "dev")
    assert ran.code == 0
    assert ran.out == text
    assert "broke" in ran.err


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (JobStatus.SUCCEEDED, 0), (JobStatus.RUNNING, 101), (JobStatus.PENDING, 101), (JobStatus.FAILED_DRIVER, 100),
        (JobStatus.CANCELLED, 103),
    ],
)  # fmt: skip
def test_logs_status(fake: Any, sky: Sky, status: JobStatus, code: int) -> None:
    fake.add_cluster("dev")
    fake.add_job("dev", status)
    ran = sky("logs", "dev", "1", "--status")
    assert (ran.code, ran.out) == (code, f"Job 1: {status.value}\n")


def test_logs_of_what_is_not_there(fake: Any, sky: Sky) -> None:
    fake.add_cluster("dev")
    assert sky("logs", "dev").code == 102
    assert sky("logs", "dev", "7", "--status").code == 102
    assert sky("logs", "nope").code == 1


@pytest.mark.parametrize(
    "words",
    [
        ["--status", "--sync-down"], ["1", "2"], ["-w", "1"], ["--provision", "1"], ["x"], ["--status", "--tail", "3"],
        ["--provision", "--status"], ["--tail", "-1"], ["--hook", "never"],
    ],
)  # fmt: skip
def test_combinations_that_mean_nothing(fake: Any, sky: Sky, words: list[str]) -> None:
    fake.add_cluster("dev")
    assert sky("logs", "dev", *words).code == 2


def test_tail_and_no_follow(fake: Any, sky: Sky) -> None:
    fake.add_cluster("dev")
    fake.add_job("dev", output=b"1\n2\n3\n")
    assert sky("logs", "dev", "--tail", "2", "--no-follow").out == "2\n3\n"
    assert fake.last("/logs").query == {"follow": ["0"], "tail": ["2"]}
    assert sky("logs", "dev", "--no-follow").out == "1\n2\n3\n"
    assert "tail" not in fake.last("/logs").query
    sky("logs", "dev")
    assert fake.last("/logs").query["tail"] == ["1000"]
    sky("logs", "dev", "--tail", "0")
    assert "tail" not in fake.last("/logs").query


def test_provision_logs(fake: Any, sky: Sky) -> None:
    fake.add_cluster("dev")
    assert sky("logs", "dev", "--provision").out == "[provisioning] starting 1 node\n"


def a_tar(*members: tuple[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def test_sync_down(fake: Any, sky: Sky, tmp_path: Path) -> None:
    fake.add_cluster("dev")
    fake.add_job("dev")
    fake.archives["dev", 1] = a_tar(("1-train/run.log", b"hello\n"), ("1-train/tasks/run.log", b"hello\n"))
    ran = sky("logs", "dev", "-s")
    folder = tmp_path / "sky_logs" / "dev" / "1-train"
    assert (ran.code, ran.out) == (0, f"Job 1: {folder}\n")
    assert (folder / "tasks" / "run.log").read_bytes() == b"hello\n"


def test_an_archive_cannot_write_elsewhere(fake: Any, sky: Sky, tmp_path: Path) -> None:
    fake.add_cluster("dev")
    fake.add_job("dev")
    fake.archives["dev", 1] = a_tar(("../../../evil", b"x"))
    assert sky("logs", "dev", "-s").code == 1
    assert not list(tmp_path.rglob("evil"))


def test_a_failed_rank_is_named(fake: Any, sky: Sky) -> None:
    fake.add_cluster("dev")
    fake.job_status = JobStatus.FAILED
    fake.add_job("dev")
    add_job = fake.add_job

    def failing(*args: Any, **more: Any) -> Any:
        return add_job(*args, **more, failure=RankFailure(1, "dev-1", "run", 7, "killed the rest"))

    fake.add_job = failing
    ran = sky("exec", "dev", "exit 7")
    assert ran.code == 100
    assert "failed first on rank 1 (dev-1) in run: exit code 7." in ran.err


# --- sky api ---


def test_info(fake: Any, sky: Sky) -> None:
    ran = sky("api", "info")
    assert ran.code == 0
    assert f"Endpoint:       {fake.endpoint}" in ran.out
    assert "environment SKYLOOM_API_SERVER_ENDPOINT" in ran.out
    assert "User:           ann" in ran.out
    assert fake.token not in ran.text
    facts = json.loads(sky("api", "info", "-o", "json").out)
    assert facts["server_version"] == "0.1.0"


def test_info_of_a_server_that_is_not_there(fake: Any, sky: Sky, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKYLOOM_API_SERVER_ENDPOINT", "http://user:secret@127.0.0.1:1")
    ran = sky("api", "info")
    assert ran.code == 0
    assert "unreachable" in ran.out
    assert "secret" not in ran.out.replace("unreachable", "")


def test_status_cancel_and_logs_of_requests(fake: Any, sky: Sky) -> None:
    fake.add_cluster("dev")
    sky("stop", "-y", "dev")
    ran = sky("api", "status", "-a")
    assert ran.out.splitlines()[0].split() == ["ID", "User", "Name", "Cluster", "Created", "Status"]
    assert ran.out.splitlines()[1].split()[:4] == ["0001op", "ann", "sky.stop", "dev"]
    assert "starting 1 node" in sky("api", "logs", "0001").out
    assert sky("api", "cancel", "-y", "0001").code == 0
    assert sky("api", "cancel", "-y", "zzz").code == 1
    assert sky("api", "cancel").code == 2
    assert sky("api", "logs", "--server-logs").out == "server log\n"


def test_without_a_server_status_shows_a_dash_row(
    fake: Any, sky: Sky, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SKYLOOM_API_SERVER_ENDPOINT")
    ran = sky("api", "status")
    assert ran.code == 0
    assert ran.out.splitlines()[1].split() == ["-"] * 6


def test_login_and_logout(fake: Any, sky: Sky, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    endpoint = fake.endpoint
    monkeypatch.delenv("SKYLOOM_API_SERVER_ENDPOINT")
    monkeypatch.delenv("SKYLOOM_TOKEN")
    assert sky("api", "login", "-e", endpoint, "-t", "wrong").code == 1
    ran = sky("api", "login", "-e", endpoint, "-t", fake.token)
    assert (ran.code, ran.out) == (0, f"Logged in to {endpoint} as ann.\n")
    config = tmp_path / "skyloom" / "config.yaml"
    assert config.stat().st_mode & 0o777 == 0o600
    fake.add_cluster("dev")
    assert "dev" in sky("status").out
    assert sky("api", "logout").out == "Logged out.\n"
    assert "api_server" not in config.read_text()


# --- infrastructure ---


def test_check(fake: Any, sky: Sky) -> None:
    ran = sky("check")
    assert ran.code == 0
    assert ran.out == (
        "Enabled infra:\n  ✔ Local [compute]\nDisabled infra:\n  ✘ AWS: no credentials were found\n"
        "      Hint: aws configure\n"
    )
    assert json.loads(sky("check", "-o", "json").out) == {"default": ["local"]}
    fake.infra = (InfraStatus("aws", False, "no"),)
    assert sky("check").code == 1


def test_gpus(fake: Any, sky: Sky) -> None:
    assert sky("gpus", "list").out == (
        "COMMON_GPU  AVAILABLE_QUANTITIES\nA100        1, 2, 8\n\n"
        "GOOGLE_TPU  AVAILABLE_QUANTITIES\ntpu-v5e-8   1\n"
    )
    assert "OTHER_GPU" in sky("gpus", "list", "--all").out
    ran = sky("gpus", "list", "A100:8", "--infra", "aws/us-east-1")
    assert ran.out.splitlines()[1].split() == [
        "A100", "8", "AWS", "p4d.24xlarge", "40GB", "96", "1152GB", "$", "32.77", "$", "9.83", "us-east-1",
    ]  # fmt: skip
    query = fake.last("/accelerators").query
    assert query == {"name": ["A100"], "count": ["8"], "cloud": ["aws"], "region": ["us-east-1"]}
    old = sky("show-gpus", "A100")
    assert old.code == 0
    assert "deprecated" in old.err
    assert "deprecated" not in old.out
    assert sky("gpus", "list", "A100:x").code == 2


def test_cost_report(fake: Any, sky: Sky) -> None:
    ran = sky("cost-report")
    assert ran.out.splitlines()[1].split() == [
        "dev", "1", "hr", "ago", "1h", "1x(A100:1)", "TERMINATED", "$", "2.50", "$", "2.50",
    ]  # fmt: skip
    assert "Total: $ 2.50" in ran.out
    assert fake.last("/cost-report").query == {"days": ["30"]}


def test_ctrl_c_stops_following_only(fake: Any, sky: Sky, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.add_cluster("dev")
    fake.job_status = JobStatus.RUNNING

    def interrupted(_pieces: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sky.cli.session.copy_out", interrupted)
    ran = sky("exec", "dev", "sleep 9")
    assert ran.code == 130
    assert "sky logs dev 1" in ran.err
    assert "sky cancel dev 1" in ran.err
    assert fake.jobs["dev"][0].status is JobStatus.RUNNING
    assert fake.count("POST", "/cancel") == 0


def test_ctrl_c_while_an_operation_runs(fake: Any, sky: Sky, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.add_cluster("dev")

    def interrupted(*_args: Any, **_more: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sky.net.follow.operation_events", interrupted)
    ran = sky("stop", "-y", "dev")
    assert ran.code == 130
    assert "sky api logs 0001op" in ran.err
    assert "sky api cancel 0001op" in ran.err
