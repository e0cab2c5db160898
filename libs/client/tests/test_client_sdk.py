"""import sky: what programs written for the ecosystem call, against a gateway in a thread."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
from typing import Any

import pytest

import sky
from sky import exceptions
from sky.client import sdk_async
from skyloom_common.contracts.clusters import ClusterStatus
from skyloom_common.contracts.jobs import JobStatus
from skyloom_common.core import errors


def test_launch_returns_an_id_and_get_the_result(fake: Any) -> None:
    request = sky.launch(sky.Task(name="t", run="echo hello"), cluster_name="dev")
    assert isinstance(request, sky.RequestId) and isinstance(request, str)
    job_id, handle = sky.get(request)
    assert (job_id, handle.cluster_name, handle.head_ip) == (1, "dev", "127.0.9.1")
    assert handle.launched_resources.cloud == sky.Local()
    assert sky.get(request[:4])[0] == 1


def test_stream_and_get_prints_progress_even_over_a_cut(fake: Any) -> None:
    request = sky.launch(sky.Task(run="true"), "dev")
    fake.cut_events_after = [1]
    out = io.StringIO()
    job_id, _ = sky.stream_and_get(request, output_stream=out)
    assert job_id == 1
    assert out.getvalue().splitlines() == [
        "[queued] launch of dev is queued", "[provisioning] starting 1 node", "[done] done",
    ]  # fmt: skip


def test_errors_of_the_server_are_raised_by_get(fake: Any) -> None:
    fake.fail_kind["launch"] = errors.ResourcesUnavailable(
        "sold out",
        details={"attempts": [{"cloud": "aws", "error": {"code": "quota_exceeded", "message": "q"}}]},
    )
    request = sky.launch(sky.Task(run="true"), "dev")
    with pytest.raises(exceptions.ResourcesUnavailableError) as caught:
        sky.get(request)
    assert isinstance(caught.value, errors.ResourcesUnavailable)
    assert isinstance(caught.value.failover_history[0], errors.QuotaExceeded)
    with pytest.raises(ValueError, match="does not exist"):
        sky.get(sky.stop("nope"))


def test_a_cancelled_request(fake: Any) -> None:
    fake.add_cluster("dev")
    request = sky.stop("dev")
    assert sky.get(sky.api_cancel(request[:4])) == [str(request)]
    with pytest.raises(exceptions.RequestCancelled):
        sky.get(request)


def test_reading_calls(fake: Any) -> None:
    fake.add_cluster("dev", endpoints={"80": "http://h:80"})
    fake.add_job("dev", JobStatus.RUNNING)
    (row,) = sky.get(sky.status())
    assert row["name"] == row.name == "dev"
    assert (row.status, row.autostop, row.handle.cluster_name) == (sky.ClusterStatus.UP, -1, "dev")
    assert sky.get(sky.queue("dev"))[0].status is sky.JobStatus.RUNNING
    assert sky.get(sky.job_status("dev")) == {1: JobStatus.RUNNING}
    assert sky.get(sky.job_status("dev", [7])) == {7: None}
    assert sky.get(sky.endpoints("dev")) == {80: "http://h:80"}
    with pytest.raises(exceptions.PortDoesNotExistError):
        sky.endpoints("dev", 81)
    assert sky.get(sky.cost_report())[0]["total_cost"] == 2.5
    assert sky.get(sky.enabled_clouds()) == ["local"]
    assert sky.get(sky.check()) == {"default": {"local": ["compute"]}}
    assert sky.list_accelerators(name_filter="A100")["A100"][0].price == 32.77
    assert sky.get(sky.list_accelerator_counts())["A100"] == [1, 2, 8]
    assert sky.api_info().status == "healthy"
    sky.get(sky.cancel("dev"))
    assert fake.jobs["dev"][0].status is JobStatus.CANCELLED


def test_lifecycle(fake: Any) -> None:
    fake.add_cluster("dev")
    sky.get(sky.autostop("dev", 10, down=True))
    assert fake.last("/autostop").json() == {"autostop": {"idle_minutes": 10, "down": True}}
    sky.get(sky.autostop("dev", -1))
    assert fake.last("/autostop").json() == {}
    sky.get(sky.stop("dev"))
    assert fake.clusters["dev"].status is ClusterStatus.STOPPED
    assert sky.get(sky.start("dev", idle_minutes_to_autostop=5)).cluster_name == "dev"
    sky.get(sky.down("dev"))
    assert fake.clusters == {}
    assert next(row.name for row in sky.api_status(all_status=True)) == "sky.down"


def test_tail_logs(fake: Any) -> None:
    fake.add_cluster("dev")
    fake.add_job("dev", JobStatus.FAILED, b"one\ntwo \xff\n")
    raw, text = io.BytesIO(), io.StringIO()
    fake.cut_log_after = [3]
    assert sky.tail_logs("dev", output_stream=raw) == 100
    assert raw.getvalue() == b"one\ntwo \xff\n"
    assert sky.tail_logs("dev", 1, follow=False, tail=1, output_stream=text) == 100
    assert text.getvalue() == "two \ufffd\n"
    assert list(sky.tail_logs("dev", preload_content=False)) == ["one\n", "two \ufffd\n"]
    assert sky.tail_logs("dev", 9) == 102


def test_exec_takes_a_list_and_streams(fake: Any, capsys: pytest.CaptureFixture[str]) -> None:
    fake.add_cluster("dev")
    request = sky.exec([sky.Task(run="a"), sky.Task(run="b")], cluster_name="dev", stream_logs=True)
    assert [job for job, _ in sky.get(request)] == [1, 2]
    assert capsys.readouterr().out == "hello\nhello\n"


def test_async_returns_values(fake: Any) -> None:
    out = io.StringIO()

    async def main() -> Any:
        job_id, _ = await sdk_async.launch(
            sky.Task(run="true"), "dev", stream_logs=sdk_async.StreamConfig(output_stream=out)
        )
        rows = await sdk_async.status(stream_logs=None)
        return (
            job_id,
            [row.name for row in rows],
            await sdk_async.tail_logs("dev", job_id, output_stream=io.StringIO()),
        )

    assert asyncio.run(main()) == (1, ["dev"], 0)
    assert "starting 1 node" in out.getvalue()


def test_optimize_and_validate(fake: Any) -> None:
    with sky.Dag() as dag:
        a = sky.Task(name="a", run="true")
        b = sky.Task(name="b", run="true")
        assert a >> b is b
    assert dag.is_chain()
    sky.validate(dag)
    assert sky.get(sky.optimize(dag)) is dag
    assert a.best_resources is not None
    assert a.best_resources.cloud == sky.Kubernetes()
    dag.add_edge(b, a)
    with pytest.raises(ValueError, match="circle"):
        sky.validate(dag)
    with pytest.raises(ValueError, match="exactly one"):
        sky.launch(dag, "dev")
    with pytest.raises(RuntimeError, match=r"with sky\.Dag"):
        _ = a >> b


def test_resources_take_lists_of_places() -> None:
    pairs = sky.Resources(infra=["aws/us-east-1", "gcp"])
    assert (pairs.infra, pairs.cloud, pairs.region) == ("aws/us-east-1,gcp", None, None)
    assert pairs == sky.Resources(infra="aws/us-east-1, gcp")
    regions = sky.Resources(cloud=sky.AWS(), region=["us-east-1", "us-west-2"])
    assert (regions.infra, regions.cloud) == ("aws/us-east-1,aws/us-west-2", sky.AWS())
    assert regions == sky.Resources(infra=["aws/us-east-1", "aws/us-west-2"])
    assert regions.copy(region="eu-west-1").infra == "aws/eu-west-1"
    assert pairs.copy(cloud=[sky.AWS(), "azure"]).to_yaml_config() == {"cloud": ["aws", "azure"]}
    with pytest.raises(ValueError, match=r"infra=\[\.\.\.\]"):
        pairs.copy(region="eu-west-1")
    assert pairs.less_demanding_than(sky.Resources(infra="gcp/us-west1"))
    assert not pairs.less_demanding_than(sky.Resources(infra="aws"))
    assert sky.Resources(infra="hetzner/fsn1").cloud == sky.Resources(cloud="Hetzner").cloud


def test_tasks_of_a_graph_are_placed_together(fake: Any) -> None:
    with sky.Dag() as dag:
        last = sky.Task(name="x", run="true")
        first = sky.Task(name="x", run="true")
        _ = first >> last
    sky.get(sky.optimize(dag))
    assert fake.last("/plans/dag").json()["edges"] == [{"source": "x-2", "target": "x"}]
    assert last.best_resources.cloud == sky.Kubernetes()
    assert first.best_resources.cloud == sky.Azure()


def test_dryrun_launches_nothing(fake: Any) -> None:
    assert sky.get(sky.launch(sky.Task(run="true"), "dev", dryrun=True)) == (None, None)
    assert fake.count("POST", "/launch") == 0


# --- classes ---


def test_names_of_the_articles() -> None:
    task = sky.Task(run="true", env_vars={"A": "1"})
    assert task.envs == {"A": "1"}
    assert task.set_resources(sky.Resources(cloud=sky.AWS(), accelerators="A100:8", use_spot=True)) is task
    assert sky.Resources(spot_recovery="auto").job_recovery is not None
    assert sky.Resources(memory="500+", disk_size="500+").to_yaml_config() == {
        "memory": "500+",
        "disk_size": "500+",
    }
    task.set_storage_mounts({"/data": "s3://bucket/"})
    assert task.storage_mounts["/data"].source in ("s3://bucket", "s3://bucket/")
    with pytest.raises(TypeError):
        sky.Task(env_varz={})  # type: ignore[call-arg]


def test_resources_alternatives() -> None:
    aws, gcp = sky.Resources(infra="aws"), sky.Resources(cloud=sky.GCP())
    task = sky.Task(run="x")
    assert task.set_resources([aws, gcp]).resources == [aws, gcp]
    assert "ordered" in task.to_yaml_config()["resources"]
    assert task.set_resources({aws, gcp}).resources == {aws, gcp}
    assert "any_of" in task.to_yaml_config()["resources"]
    assert task.set_resources({"cpus": "4+"}).to_yaml_config()["resources"] == {"cpus": "4+"}
    assert task.set_resources_override({"use_spot": True}).use_spot
    with pytest.raises(TypeError, match=r"not a sky\.Resources"):
        task.set_resources(["aws", "gcp"])  # type: ignore[list-item]


def test_resources_are_values() -> None:
    one = sky.Resources(infra="aws/us-east-1", accelerators={"A100": 8}, cpus="4+", ports=[80, "8000-8010"])
    assert one == sky.Resources(
        cloud=sky.AWS(), region="us-east-1", accelerators="A100:8", cpus="4+", ports=["80", "8000-8010"]
    )
    assert len({one, one.copy()}) == 1
    moved = one.copy(region="us-west-2", use_spot=True)
    assert (moved.region, moved.use_spot, one.region, one.use_spot) == ("us-west-2", True, "us-east-1", False)
    assert one.copy(cloud=sky.GCP(), region=None).infra == "gcp"
    assert (one.infra, one.accelerators, one.get_accelerators_str()) == (
        "aws/us-east-1",
        {"A100": 8},
        "A100:8",
    )
    assert sky.Resources().is_empty()
    assert not one.is_launchable()
    assert sky.Resources(cpus="2").less_demanding_than(sky.Resources(cpus="4"))
    assert not sky.Resources(accelerators="A100:8").less_demanding_than(sky.Resources(accelerators="A100:4"))
    assert one.should_be_blocked_by(sky.Resources(infra="aws"))
    found = sky.Resources.from_yaml_config({"accelerators": ["A100:8", "H100:8"]})
    assert [next(iter(item.accelerators or {})) for item in found] == ["A100", "H100"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"infra": "aws", "cloud": "aws"},
        {"cpus": "many"},
        {"accelerators": "A100:0"},
        {"ports": 70000},
        {"cloud": "awz"},
    ],
)
def test_wrong_resources_are_value_errors(wrong: dict[str, Any]) -> None:
    with pytest.raises(exceptions.InvalidSkyPilotConfigError) as caught:
        sky.Resources(**wrong)
    assert isinstance(caught.value, ValueError)
    assert caught.value.details["problems"]


def test_tasks_round_trip(tmp_path: Any) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(
        "name: t\nnum_nodes: 2\nenvs: {A: 1}\nsecrets: {S: hush}\nresources: {cpus: 4+}\nsetup: a\nrun: b\n"
    )
    task = sky.Task.from_yaml(str(path))
    again = sky.Task.from_yaml_config(task.to_yaml_config())
    assert again.spec == task.spec
    assert sky.Task.from_yaml_str(path.read_text()).spec == task.spec
    assert (task.name, task.num_nodes, task.setup, task.run, task.envs) == ("t", 2, "a", "b", {"A": "1"})
    assert task.secrets == {"S": "<redacted>"}
    assert "hush" not in repr(task.spec)
    assert "hush" not in str(task.to_yaml_config(redact_secrets=True))
    task.num_nodes = 3
    task.update_envs({"B": "2"}).update_secrets({"T": "x"}).set_file_mounts({"/a": "b"}).update_file_mounts(
        {"/c": "d"}
    )
    assert (task.num_nodes, task.envs, task.file_mounts) == (3, {"A": "1", "B": "2"}, {"/a": "b", "/c": "d"})
    with pytest.raises(ValueError, match="num_nodes"):
        task.num_nodes = 0
    assert task.num_nodes == 3
    with pytest.raises(ValueError, match="does not exist"):
        task.validate()
    assert sky.Task(run=["a", "b"]).run == "a\nb"


def test_clouds() -> None:
    assert sky.AWS() == sky.AWS() != sky.GCP()
    assert sky.CLOUD_REGISTRY.from_str("K8S") == sky.K8s()
    with pytest.raises(ValueError, match="did you mean 'azure'"):
        sky.CLOUD_REGISTRY.from_str("azur")


def test_what_comes_later_says_so() -> None:
    for call in (
        sky.jobs.launch,
        sky.serve.up,
        sky.volumes.ls,
        sky.dashboard,
        sky.ServeConfig,
        sky.jobs.pool_apply,
        sky.serve,
    ):
        with pytest.raises(exceptions.NotSupportedError, match="not supported yet: sky"):
            call()  # type: ignore[operator]


def test_a_debug_block_has_a_cluster_and_leaves_none(fake: Any) -> None:
    with sky.debug(autostop=30, resources=sky.Resources(cpus="1+")) as handle:
        name = handle.cluster_name
        assert name in fake.clusters
        assert fake.last("/launch").json()["autostop"] == {"idle_minutes": 30, "down": True}
    assert fake.clusters == {}
    with pytest.raises(ZeroDivisionError), sky.debug():
        _ = 1 / 0
    assert fake.clusters == {}
    fake.fail_kind["launch"] = errors.ResourcesUnavailable("No place is left.")
    with pytest.raises(exceptions.ResourcesUnavailableError), sky.debug():
        pass


def test_every_name_is_there() -> None:
    for name in sky.__all__:
        assert getattr(sky, name) is not None, name
    assert set(sky.__all__) <= set(dir(sky))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = sky.nonsense  # type: ignore[attr-defined]


def test_admin_policies_can_be_written() -> None:
    class Cheap(sky.AdminPolicy):
        @classmethod
        def validate_and_mutate(cls, user_request: sky.UserRequest) -> sky.MutatedUserRequest:
            user_request.skypilot_config.set_nested(("a", "b"), 1)
            return sky.MutatedUserRequest(user_request.task, user_request.skypilot_config)

    made = Cheap.validate_and_mutate(sky.UserRequest(sky.Task(run="x"), sky.Config()))
    assert made.skypilot_config.get_nested(("a", "b")) == 1


# --- start time, by what is loaded rather than by the clock ---

HEAVY = {
    "httpx", "asyncio", "yaml", "rich", "ssl", "email", "urllib.request", "http.client", "subprocess", "pydantic",
    "logging", "multiprocessing", "concurrent.futures", "numpy",
}  # fmt: skip


def loaded_by(code: str) -> set[str]:
    program = f"import sys; before = set(sys.modules)\n{code}\nprint(*sorted(set(sys.modules) - before), file=sys.__stderr__)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stderr.split())


@pytest.mark.integration
def test_import_sky_loads_nothing() -> None:
    assert loaded_by("import sky") <= {"sky", "__future__"}


@pytest.mark.integration
def test_help_loads_no_command_line_library() -> None:
    loaded = loaded_by("sys.argv = ['sky', '--help']\nfrom sky.cli.main import main\nmain()")
    assert loaded <= {"sky", "sky.cli", "sky.cli.main", "sky.cli.tree", "__future__"}


@pytest.mark.integration
def test_status_loads_little(fake: Any) -> None:
    fake.add_cluster("dev")
    loaded = loaded_by("from sky.cli.app import cli\ncli.main(['status'], standalone_mode=False)")
    assert not loaded & HEAVY
    assert not {name for name in loaded if name.startswith("skyloom_common.contracts.")} - {
        "skyloom_common.contracts.http"
    }
    assert len(loaded) < 110


@pytest.mark.integration
def test_exec_of_a_command_loads_no_yaml(fake: Any) -> None:
    fake.add_cluster("dev")
    loaded = loaded_by(
        "from sky.cli.app import cli\ncli.main(['exec', 'dev', 'true'], standalone_mode=False)"
    )
    assert not loaded & HEAVY
    assert not {name for name in loaded if name.startswith("skyloom_common.contracts.task")}
    assert "skyloom_common.contracts.clusters" not in loaded
