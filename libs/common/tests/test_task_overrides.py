"""Alternatives, and what the command line says over a file."""

from __future__ import annotations

from typing import Any

import pytest

from skyloom_common.contracts.task.expand import alternatives, apply_overrides, split_accelerators
from skyloom_common.contracts.task.model import (
    AcceleratorSpec,
    AutostopSpec,
    GitWorkdir,
    JobRecoverySpec,
    Quantity,
    ResourcesSpec,
    TaskSpec,
    WaitFor,
)
from skyloom_common.contracts.task.parse import parse_task_file
from skyloom_common.core.errors import InvalidTask


def task(text: str) -> TaskSpec:
    return parse_task_file(text + "\n").tasks[0]


def resources(text: str) -> ResourcesSpec:
    return task(f"resources: {{{text}}}").resources


def places(text: str) -> list[tuple[Any, ...]]:
    specs, _ = alternatives(resources(text))
    return [(spec.cloud, spec.region, spec.zone) for spec in specs]


def test_without_alternatives_there_is_one() -> None:
    own = resources("infra: aws/us-east-1, cpus: 4")
    assert alternatives(own) == ((own,), False)


def test_entries_win_over_the_base_and_labels_merge() -> None:
    specs, ordered = alternatives(
        resources(
            "cpus: 4, memory: 8, use_spot: true, labels: {a: 1, b: 1}, any_of: "
            "[{infra: aws, labels: {b: 2}}, {infra: gcp, cpus: 8+, use_spot: false}]"
        )
    )
    assert not ordered
    assert [spec.labels for spec in specs] == [{"a": "1", "b": "2"}, {"a": "1", "b": "1"}]
    assert [spec.cpus for spec in specs] == [Quantity(4), Quantity(8, at_least=True)]
    assert [spec.use_spot for spec in specs] == [True, False]
    assert all(spec.memory == Quantity(8) and spec.any_of == () for spec in specs)


def test_order_is_a_preference() -> None:
    specs, ordered = alternatives(resources("ordered: [{accelerators: H100}, {accelerators: A100}]"))
    assert ordered
    assert [spec.accelerators[0].name for spec in specs] == ["H100", "A100"]


def test_infra_of_an_entry_replaces_the_whole_place() -> None:
    base = "infra: aws/us-east-1/us-east-1a, any_of: "
    assert places(base + "[{infra: aws}, {infra: gcp}, {infra: '*/us-west-2'}, {infra: '*'}, {cpus: 4}]") == [
        ("aws", None, None),
        ("gcp", None, None),
        (None, "us-west-2", None),
        (None, None, None),
        ("aws", "us-east-1", "us-east-1a"),
    ]


def test_older_place_fields_of_an_entry_replace_what_they_name() -> None:
    base = "cloud: aws, region: us-east-1, zone: us-east-1a, any_of: "
    assert places(base + "[{region: us-west-2}, {cloud: gcp}, {cloud: aws}, {zone: us-east-1b}]") == [
        ("aws", "us-west-2", None),
        ("gcp", None, None),
        ("aws", "us-east-1", "us-east-1a"),
        ("aws", "us-east-1", "us-east-1b"),
    ]


EU_PAIRS = ("aws/eu-west-1", "aws/eu-west-2", "gcp/eu-west-1", "gcp/eu-west-2")
LISTED = [
    ("any_of: [{region: eu-west-1}]", (None, None, None, ("aws/eu-west-1", "gcp/eu-west-1"))),
    ("any_of: [{cloud: azure}]", ("azure", None, None, ())),
    ("any_of: [{infra: '*'}]", (None, None, None, ())),
    ("any_of: [{infra: [azure, oci/x]}]", (None, None, None, ("azure", "oci/x"))),
    ("any_of: [{infra: '*/x,y'}]", (None, "x,y", None, ())),
    ("any_of: [{cpus: 4}]", (None, None, None, ("aws/us-east-1", "gcp"))),
]


@pytest.mark.parametrize(("entry", "expected"), LISTED)
def test_entries_over_a_list_of_places(entry: str, expected: tuple[Any, ...]) -> None:
    specs, _ = alternatives(resources("infra: [aws/us-east-1, gcp], " + entry))
    fields = [(spec.cloud, spec.region, spec.zone, spec.infra) for spec in specs]
    assert fields == [expected]


PLACE_FLAGS = [
    ({"infra": ("aws/us-east-1", "gcp")}, (None, None, None, ("aws/us-east-1", "gcp"))),
    ({"infra": "aws/us-east-1,us-west-2"}, ("aws", "us-east-1,us-west-2", None, ())),
    ({"infra": ("none",)}, (None, None, None, ())),
    ({"region": "eu-west-1,eu-west-2"}, (None, None, None, EU_PAIRS)),
    ({"cloud": "aws"}, ("aws", None, None, ())),
    ({"cpus": "8"}, (None, None, None, ("aws/us-east-1/us-east-1a", "gcp/us-west1"))),
]


@pytest.mark.parametrize(("given", "expected"), PLACE_FLAGS)
@pytest.mark.parametrize("form", ["infra: {}", "cpus: 2, any_of: [{{infra: {}}}]"])
def test_place_flags_over_lists(form: str, given: dict[str, Any], expected: tuple[Any, ...]) -> None:
    own = task("resources: {" + form.format("[aws/us-east-1/us-east-1a, gcp/us-west1]") + "}")
    (found,), _ = alternatives(apply_overrides(own, given).resources)
    assert (found.cloud, found.region, found.zone, found.infra) == expected


def test_a_list_of_accelerators_in_an_entry_brings_its_order() -> None:
    specs, _ = alternatives(ResourcesSpec(any_of=(resources("accelerators: [A:1, B:1]"),)))
    assert specs[0].accelerators_ordered


def test_accelerators_one_by_one() -> None:
    split = split_accelerators(resources("cpus: 4, accelerators: [A:1, B:2]"))
    assert [spec.accelerators for spec in split] == [(AcceleratorSpec("A", 1),), (AcceleratorSpec("B", 2),)]
    assert not any(spec.accelerators_ordered for spec in split)
    assert split_accelerators(ResourcesSpec()) == (ResourcesSpec(),)


BASE = (
    "name: x\nnum_nodes: 2\nworkdir: ./code\nenvs: {A: 1}\nresources:\n  infra: aws/us-east-1/us-east-1a\n  cpus: 4\n"
    "  memory: 16\n  accelerators: A100:8\n  disk_tier: high\n  image_id: docker:a\n  ports: 80\n  priority: 5\n"
    "  job_recovery: failover\n  instance_type: m\n  local_disk: nvme"
)

OVERRIDES = [
    ({"cpus": "8+"}, "cpus", Quantity(8, at_least=True)),
    ({"cpus": "none"}, "cpus", None),
    ({"memory": "32GB"}, "memory", Quantity(32)),
    ({"memory": "None"}, "memory", None),
    ({"gpus": "H100:4"}, "accelerators", (AcceleratorSpec("H100", 4),)),
    ({"gpus": "{A100,V100}:2"}, "accelerators", (AcceleratorSpec("A100", 2), AcceleratorSpec("V100", 2))),
    ({"gpus": "none"}, "accelerators", ()),
    ({"disk_size": 500}, "disk_size", Quantity(500)),
    ({"disk_tier": "none"}, "disk_tier", None),
    ({"disk_tier": "best"}, "disk_tier", "best"),
    ({"network_tier": "best"}, "network_tier", "best"),
    ({"use_spot": True}, "use_spot", True),
    ({"use_spot": False}, "use_spot", False),
    ({"image_id": "none"}, "image_id", None),
    ({"ports": ("8080", "9000-9001")}, "ports", ("8080", "9000-9001")),
    ({"ports": ("none",)}, "ports", ()),
    ({"instance_type": "none"}, "instance_type", None),
    ({"local_disk": "ssd:500+"}, "local_disk", "ssd:500+"),
    ({"priority": "7"}, "priority", 7),
    ({"priority": "none"}, "priority", None),
    ({"priority": "high"}, "priority_class", "high"),
    ({"job_recovery": "auto"}, "job_recovery", JobRecoverySpec("EAGER_NEXT_REGION")),
    ({"infra": "gcp"}, "cloud", "gcp"),
    ({"infra": "gcp"}, "region", None),
    ({"infra": "none"}, "cloud", None),
    ({"cloud": "gcp"}, "zone", None),
    ({"cloud": "aws"}, "region", "us-east-1"),
    ({"cloud": "none"}, "cloud", None),
    ({"region": "us-west-2"}, "zone", None),
    ({"zone": "none"}, "zone", None),
    ({"cpus": None, "gpus": None, "ports": ()}, "cpus", Quantity(4)),
]


@pytest.mark.parametrize(("given", "field", "expected"), OVERRIDES)
def test_flags_win(given: dict[str, Any], field: str, expected: Any) -> None:
    assert getattr(apply_overrides(task(BASE), given).resources, field) == expected


def test_flags_of_the_task() -> None:
    given = {
        "name": "y",
        "num_nodes": 3,
        "workdir": "./other",
        "env": {"A": "2", "B": None},
        "secret": {"S": "s"},
    }
    found = apply_overrides(task(BASE), given, client_env={"B": "b"})
    assert (found.name, found.num_nodes, found.workdir) == ("y", 3, "./other")
    assert found.envs == {"A": "2", "B": "b"}
    assert found.secrets == {"S": "s"}


def test_nothing_given_changes_nothing() -> None:
    own = task(BASE)
    assert apply_overrides(own, {}) == own
    assert apply_overrides(own, {"cpus": None, "down": False}) == own


def test_a_repository_as_workdir() -> None:
    found = apply_overrides(task(BASE), {"git_url": "https://h/r", "git_ref": "v1"})
    assert found.workdir == GitWorkdir("https://h/r", "v1")
    again = apply_overrides(found, {"git_ref": "v2"})
    assert again.workdir == GitWorkdir("https://h/r", "v2")


AUTOSTOPS: list[tuple[dict[str, Any], AutostopSpec | None]] = [
    ({"idle_minutes_to_autostop": 5}, AutostopSpec(idle_minutes=5)),
    ({"down": True}, AutostopSpec(down=True)),
    (
        {"idle_minutes_to_autostop": 5, "down": True, "wait_for": "none"},
        AutostopSpec(True, 5, True, WaitFor.NONE),
    ),
    ({"idle_minutes_to_autostop": -1}, AutostopSpec(enabled=False)),
]


@pytest.mark.parametrize(("given", "expected"), AUTOSTOPS)
def test_autostop_flags(given: dict[str, Any], expected: AutostopSpec | None) -> None:
    assert apply_overrides(TaskSpec(), given).resources.autostop == expected


def test_autostop_flags_complete_what_the_file_says() -> None:
    own = task("resources: {autostop: 30}")
    assert apply_overrides(own, {"down": True}).resources.autostop == AutostopSpec(idle_minutes=30, down=True)
    never = task("resources: {autostop: false}")
    assert apply_overrides(never, {"idle_minutes_to_autostop": 1}).resources.autostop == AutostopSpec(
        idle_minutes=1
    )


def test_a_flag_wins_over_every_alternative() -> None:
    own = task("resources: {any_of: [{infra: aws, cpus: 4}, {infra: gcp/us-west1, cpus: 8}], cpus: 2}")
    found = apply_overrides(own, {"cpus": "16"}).resources
    specs, _ = alternatives(found)
    assert [(spec.cloud, spec.cpus) for spec in specs] == [("aws", Quantity(16)), ("gcp", Quantity(16))]
    specs, _ = alternatives(apply_overrides(own, {"infra": "azure"}).resources)
    assert [(spec.cloud, spec.region, spec.cpus) for spec in specs] == [
        ("azure", None, Quantity(4)),
        ("azure", None, Quantity(8)),
    ]


def test_alternatives_that_become_the_same_become_one() -> None:
    own = task("resources: {any_of: [{infra: aws}, {infra: gcp}], cpus: 2}")
    found = apply_overrides(own, {"infra": "azure"}).resources
    assert found == ResourcesSpec(cloud="azure", cpus=Quantity(2))


MISTAKES = [
    (
        {"cpus": "2x"},
        "--cpus: '2x' is not a number of vCPUs; use a number of vCPUs such as 4, or 4+ (at least)",
    ),
    ({"infra": "aws", "cloud": "aws"}, "--infra: --infra together with --cloud; use --infra alone"),
    ({"workdir": ".", "git_url": "u"}, "--workdir: --workdir together with --git-url; use one of the two"),
    ({"git_ref": "u"}, "--git-ref: --git-ref without a repository; use --git-url as well"),
    ({"num_nodes": 0}, "--num-nodes: '0' is not in range; use a whole number from 1"),
    ({"env": {"A": None}}, "--env.A: A is not set in this shell; use --env A=VALUE"),
    ({"wait_for": "jobs"}, "--wait-for: --wait-for without an idle time; use -i MINUTES or --down as well"),
    ({"cpuss": 1}, "--cpuss: unknown option; did you mean 'cpus'?"),
    ({"priority": 5000}, "--priority: '5000' is not in range; use a whole number from -1000 to 1000"),
]


@pytest.mark.parametrize(("given", "message"), MISTAKES)
def test_mistakes_name_the_flag(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidTask) as caught:
        apply_overrides(task("run: x"), given)
    assert str(caught.value) == message


def test_all_mistakes_at_once() -> None:
    with pytest.raises(InvalidTask) as caught:
        apply_overrides(TaskSpec(), {"cpus": "x", "num_nodes": -1, "disk_tier": "slow"})
    assert len(caught.value.details["problems"]) == 3
