"""Plans on the command line: lists of places, several tasks in one file, explanations as text and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from skyloom_common.contracts.plan import Plan, Rejection

Sky = Callable[..., Any]

PIPELINE = """\
name: pipe
---
name: prep
inputs: {s3://raw: 500}
run: echo a
---
name: train
resources: {infra: [aws/us-east-1, gcp]}
num_nodes: 2
run: echo b
"""


@pytest.fixture
def pipeline(tmp_path: Path) -> str:
    path = tmp_path / "pipe.yaml"
    path.write_text(PIPELINE)
    return str(path)


def planned(fake: Any) -> dict[str, Any]:
    found: dict[str, Any] = fake.last("/plans").json()["task"]["resources"]
    return found


PLACES = [
    (["--infra", "aws/us-east-1", "--infra", "gcp"], {"infra": ["aws/us-east-1", "gcp"]}),
    (["--infra", "aws/us-east-1,us-west-2"], {"cloud": "aws", "region": "us-east-1,us-west-2"}),
    (["--region", "us-east-1,us-west-2"], {"region": "us-east-1,us-west-2"}),
    (["--cloud", "aws", "--cloud", "gcp"], {"cloud": "aws,gcp"}),
    (["--infra", "aws/us-*"], {"cloud": "aws", "region": "us-*"}),
]


@pytest.mark.parametrize(("flags", "expected"), PLACES)
def test_lists_of_places_reach_the_server(
    fake: Any, sky: Sky, flags: list[str], expected: dict[str, Any]
) -> None:
    assert sky("launch", "--dryrun", *flags, "echo hi").code == 0
    assert planned(fake) == expected


def test_a_wrong_name_in_a_list_is_told(fake: Any, sky: Sky) -> None:
    ran = sky("launch", "--dryrun", "--infra", "aws", "--infra", "gpc", "echo hi")
    assert "--infra[1]: 'gpc' is not a known cloud; did you mean 'gcp'?" in ran.text
    assert fake.count("POST", "/plans") == 0


def test_a_dry_run_as_json(fake: Any, sky: Sky) -> None:
    ran = sky("launch", "--dryrun", "-o", "json", "echo hi")
    told = json.loads(ran.out)
    assert ran.code == 0
    assert told["chosen"]["cloud"] == "kubernetes"
    assert told["chosen"]["price_per_hour"] == 0.0
    assert [one["rank"] for one in told["later"]] == [2, 3]
    assert told["rejected"][0]["numbers"] == {}
    assert sky("launch", "-o", "json", "echo hi").code == 2
    fake.plan = Plan(hints=("nothing offers X",))
    ran = sky("launch", "--dryrun", "-o", "json", "echo hi")
    assert (ran.code, json.loads(ran.out)["chosen"]) == (1, None)


def test_the_explanation_groups_and_verbose_does_not(fake: Any, sky: Sky) -> None:
    rejected = tuple(Rejection(cloud, "accelerator", "has no T4", 5) for cloud in ("oci", "ibm"))
    fake.plan = Plan(fake.plan.candidates, rejected)
    short = sky("launch", "--dryrun", "--explain", "echo hi").out
    assert "not 2 clouds (oci, ibm): has no T4 (10 offers)" in short
    long = sky("launch", "--dryrun", "--explain", "-v", "echo hi").out
    assert "not oci: has no T4 (5 offers)" in long


def test_what_is_impossible_is_said_first(fake: Any, sky: Sky) -> None:
    rejected = (
        Rejection("aws", "price", "too dear"),
        Rejection("local", "size", "2 vCPUs is the nearest to 64"),
    )
    fake.plan = Plan(rejected=rejected, hints=("nothing offers cpus: 64", "without cpus: 64: local/local"))
    ran = sky("launch", "-y", "--cpus", "64", "echo hi")
    assert ran.code == 1
    assert (
        "Nothing can run this task: nothing offers cpus: 64 (local: 2 vCPUs is the nearest to 64)" in ran.err
    )
    assert "Hint: without cpus: 64: local/local" in ran.err


def test_several_tasks_are_planned_together(fake: Any, sky: Sky, pipeline: str) -> None:
    ran = sky(
        "launch", "--dryrun", "--explain", "--bucket", "s3://raw=aws/us-west-2", "--cpus", "4", pipeline
    )
    assert ran.code == 0
    asked = fake.last("/plans/dag").json()
    assert asked["edges"] == [{"source": "prep", "target": "train"}]
    assert asked["buckets"] == [{"uri": "s3://raw", "cloud": "aws", "region": "us-west-2"}]
    assert asked["tasks"][1]["task"]["resources"] == {"infra": ["aws/us-east-1", "gcp"]}
    assert "--cpus: ignored" in ran.err
    lines = ran.out.splitlines()
    assert lines[1] == "Estimated cost: $3.90 for 2 h; proven the best"
    assert [line.split()[0] for line in lines[5:7]] == ["prep", "train"]
    assert "prep -> train: 10 GiB, $0.90, 0.5 h" in lines
    assert "in all: compute $3.00, egress $0.90" in lines
    assert "the region of s3://raw is not known; say --bucket URI=CLOUD/REGION" in lines
    assert sky("launch", "-y", pipeline).code == 2
    assert sky("launch", "--dryrun", "--bucket", "raw", pipeline).code == 2


def test_why_of_several_tasks(fake: Any, sky: Sky, pipeline: str) -> None:
    ran = sky("why", pipeline)
    assert ran.out.splitlines()[0].endswith("$0.00 an hour: near its data")
    assert json.loads(sky("why", "-o", "json", pipeline).out)["usd"] == 3.9
    fake.plan = Plan(rejected=(Rejection("aws", "size", "too small"),))
    ran = sky("launch", "--dryrun", pipeline)
    assert ran.code == 1
    assert "Nothing can run these tasks: train: nothing offers A100:64" in ran.err
    assert "train: not aws: too small" in sky("why", pipeline).out


def test_accelerators_by_memory_and_number(fake: Any, sky: Sky) -> None:
    assert sky("gpus", "list", "nvidia:80GB+:4").code == 0
    assert fake.last("/accelerators").query == {"name": ["nvidia:80GB+"], "count": ["4"]}


def test_why_of_a_cluster_says_where_it_is_and_its_price(fake: Any, sky: Sky) -> None:
    fake.add_cluster("dev", cloud="aws", region="us-east-1", instance_type="g5.xlarge", price_per_hour=1.006)
    first = sky("why", "dev").out.splitlines()[0]
    assert first.startswith("Cluster 'dev' is UP on aws/us-east-1")
    assert "g5.xlarge, $1.01 an hour" in first
