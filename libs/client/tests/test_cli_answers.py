"""What commands answer where little goes wrong: whole records, reasons, names that match nothing, Ctrl-C, what Tab offers."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from typing import Any

import pytest
from click.shell_completion import ShellComplete

from skyloom_common.contracts.clusters import Cluster, ClusterStatus, CostRow, NodeView
from skyloom_common.contracts.jobs import Job, JobStatus
from skyloom_common.contracts.operations import Operation, OperationStatus
from skyloom_common.contracts.task.model import AutostopSpec

Sky = Callable[..., Any]


def fields(kind: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def test_json_rows_have_every_field(fake: Any, sky: Sky) -> None:
    fake.add_cluster("dev", nodes=(NodeView(0, "n", "UP"),), autostop=AutostopSpec(idle_minutes=5))
    fake.add_job("dev")
    (row,) = json.loads(sky("status", "-o", "json").out)
    assert set(row) == fields(Cluster)
    assert row["ssh"] is None and row["labels"] == {} and row["unhealthy"] is False
    assert set(row["nodes"][0]) == fields(NodeView)
    assert set(row["autostop"]) == fields(AutostopSpec)
    assert set(json.loads(sky("queue", "dev", "-o", "json").out)["dev"][0]) == fields(Job)
    sky("exec", "dev", "true")
    assert set(json.loads(sky("api", "status", "-a", "-o", "json").out)[0]) == fields(Operation)
    for report in json.loads(sky("cost-report", "-o", "json").out)["rows"]:
        assert set(report) == fields(CostRow)


def test_api_info_has_the_same_keys_whether_the_server_answers_or_not(
    fake: Any, sky: Sky, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = json.loads(sky("api", "info", "-o", "json").out)
    monkeypatch.setenv("SKYLOOM_API_SERVER_ENDPOINT", "http://127.0.0.1:9")
    away = json.loads(sky("api", "info", "-o", "json").out)
    assert set(there) == set(away)
    assert there["error"] is None and away["server_version"] is None


def test_a_job_that_could_not_start_says_why(fake: Any, sky: Sky) -> None:
    fake.add_cluster("dev")
    fake.add_job("dev", JobStatus.FAILED, reason="the job needs 1 GPU and the biggest node has 0")
    ran = sky("logs", "dev")
    assert ran.code == 100
    assert "Job 1 failed: the job needs 1 GPU and the biggest node has 0" in ran.err
    assert ran.out == ""


def test_names_that_match_nothing_are_not_an_empty_fleet(fake: Any, sky: Sky) -> None:
    fake.add_cluster("dev")
    ran = sky("status", "nope")
    assert (ran.code, "No existing clusters" in ran.out) == (1, False)
    assert "no cluster is up" not in sky("queue", "nope").text
    ran = sky("status", "--ip", "dev", "nope")
    assert (ran.code, ran.out) == (1, "")
    assert "'nope' does not exist" in ran.err


def test_a_cluster_that_is_up_is_nothing_to_start(fake: Any, sky: Sky) -> None:
    fake.add_cluster("dev", ClusterStatus.UP)
    ran = sky("start", "-y", "dev")
    assert ran.code == 0
    assert ran.out == "Cluster 'dev' is up already.\nNothing to do.\n"


def test_cancelling_autostop_does_not_say_set(fake: Any, sky: Sky) -> None:
    fake.add_cluster("dev")
    assert sky("autostop", "-y", "--cancel", "dev").out == "Cancelling autostop of dev: cancelled\n"
    assert sky("autostop", "-y", "dev").out == "Setting autostop of dev: set\n"


def test_a_request_that_has_ended_is_not_cancelled(
    fake: Any, sky: Sky, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = Operation("op-1", "exec", "dev", "ann", OperationStatus.SUCCEEDED, 1.0)
    monkeypatch.setattr("sky.api.Gateway.cancel_operation", lambda *_: ended)
    ran = sky("api", "cancel", "op-1")
    assert (ran.code, ran.out) == (1, "")
    assert "has ended: SUCCEEDED" in ran.err


def test_all_regions_asks_for_regions_and_not_for_rare_names(fake: Any, sky: Sky) -> None:
    assert sky("gpus", "list", "A100", "--all-regions").code == 0
    assert fake.last("/accelerators").query == {"name": ["A100"], "all_regions": ["1"]}
    import sky as sdk

    sdk.list_accelerators(name_filter="A100", all_regions=True)
    assert fake.last("/accelerators").query == {"name": ["A100"], "all_regions": ["1"]}


def test_the_catalog_is_found_at_its_old_address() -> None:
    import sky as sdk

    assert sdk.clouds.service_catalog.constants.CATALOG_SCHEMA_VERSION == sdk.catalog.CATALOG_SCHEMA_VERSION


def test_what_was_typed_could_be_typed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from sky.cli.entry import typed_command

    monkeypatch.setattr(sys, "argv", ["sky", "exec", "dev", "--num-nodes=2", 'echo "a b"; exit 1'])
    assert typed_command() == "sky exec dev --num-nodes=2 'echo \"a b\"; exit 1'"


@pytest.mark.parametrize("where", ["sky.cli.launch._after_launch", "sky.cli.session._show_progress"])
def test_ctrl_c_says_how_to_come_back_wherever_it_comes(
    fake: Any, sky: Sky, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def interrupted(*_args: Any, **_kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(where, interrupted)
    ran = sky("launch", "-y", "-c", "dev", "true")
    assert ran.code == 130
    assert ran.err.count("goes on.") == 1
    assert "To come back to it:  sky api logs" in ran.err


def test_the_end_of_input_at_a_prompt_ends_its_line(fake: Any, sky: Sky) -> None:
    fake.add_cluster("dev")
    ran = sky("down", "dev", stdin="")
    assert ran.code == 1
    assert ran.err == "\nAborted.\n"


def test_a_forbidden_start_is_not_announced(fake: Any, sky: Sky, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SKYLOOM_API_SERVER_ENDPOINT")
    monkeypatch.setenv("SKYLOOM_NO_AUTOSTART", "1")
    ran = sky("status")
    assert (ran.code, "forbids" in ran.err, "Starting" in ran.err) == (1, True, False)


def offered(*words: str) -> list[tuple[str, str]]:
    from sky.cli.app import cli

    items = ShellComplete(cli, {}, "sky", "_SKY_COMPLETE").get_completions(list(words[:-1]), words[-1])
    return [(item.type, item.value) for item in items]


def test_tab_offers_clusters_and_files(fake: Any) -> None:
    fake.add_cluster("dev")
    fake.add_cluster("train")
    both = [("plain", "dev"), ("plain", "train")]
    assert offered("exec", "") == offered("launch", "-c", "") == offered("down", "") == both
    assert offered("logs", "t") == [("plain", "train")]
    assert offered("exec", "dev", "ta") == offered("launch", "ta") == [("file", "ta")]
    assert offered("exec", "-c", "dev", "ta") == offered("launch", "--env-file", "ta") == [("file", "ta")]
    assert offered("launch", "--workdir", "x") == [("dir", "x")]
