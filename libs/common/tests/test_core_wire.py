"""The wire codec: what goes out comes back, requests are strict, answers are lenient, and wrong values are named."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyloom_common.contracts.clusters import LaunchRequest, MountRef
from skyloom_common.contracts.jobs import Job, JobStatus
from skyloom_common.contracts.task.model import Quantity, ResourcesSpec, StorageSpec, TaskSpec
from skyloom_common.core import wire
from skyloom_common.core.errors import InvalidRequest


class Colour(enum.StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Leaf:
    number: float
    colour: Colour = Colour.RED


@dataclass(frozen=True)
class Tree:
    name: str
    leaves: tuple[Leaf, ...] = ()
    notes: dict[str, str] = field(default_factory=dict)
    either: str | Leaf | None = None
    anything: Any = None


leaves = st.builds(
    Leaf, number=st.floats(allow_nan=False, allow_infinity=False), colour=st.sampled_from(Colour)
)
trees = st.builds(
    Tree,
    name=st.text(),
    leaves=st.lists(leaves).map(tuple),
    notes=st.dictionaries(st.text(), st.text()),
    either=st.none() | st.text() | leaves,
    anything=st.none() | st.lists(st.integers()),
)


@given(trees)
def test_what_goes_out_comes_back(tree: Tree) -> None:
    assert wire.loads(Tree, wire.dumps(tree), strict=True) == tree


def test_defaults_and_none_are_left_out() -> None:
    assert wire.to_wire(Tree(name="a")) == {"name": "a"}


def test_a_request_with_an_unknown_field_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(InvalidRequest, match=r"leaves\[0\]\.colur: unknown field; did you mean 'colour'\?"):
        wire.from_wire(Tree, {"name": "a", "leaves": [{"number": 1, "colur": "red"}]}, strict=True)


def test_an_answer_with_an_unknown_field_is_accepted() -> None:
    assert wire.from_wire(Leaf, {"number": 1, "from_the_future": True}) == Leaf(1.0)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"name": 3}, r"name: 3 is not a str"),
        ({"name": "a", "leaves": {}}, r"leaves: \{\} is not a list"),
        ({"name": "a", "leaves": [{"number": "x"}]}, r"leaves\[0\]\.number: 'x' is not a float"),
        ({"name": "a", "leaves": [{"number": True}]}, r"number: True is not a float"),
        ({"name": "a", "leaves": [{"number": 1, "colour": "green"}]}, r"'green' is not one of red, blue"),
        ({"leaves": []}, r"name: missing"),
        ([], r"body: \[\] is not a Tree mapping"),
    ],
)
def test_a_wrong_value_is_named_with_its_place_and_the_right_form(data: Any, sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        wire.from_wire(Tree, data, strict=True)


def test_a_body_that_is_not_json_is_an_invalid_request() -> None:
    with pytest.raises(InvalidRequest, match="not JSON"):
        wire.loads(Tree, b"{")


def test_a_launch_request_survives_the_wire() -> None:
    task = TaskSpec(
        name="x",
        resources=ResourcesSpec(cpus=Quantity(4, at_least=True), any_of=(ResourcesSpec(cloud="aws"),)),
        file_mounts={"/a": "b", "/c": StorageSpec(source=("a", "b"))},
        envs={"A": None},
    )
    request = LaunchRequest(task=task, mounts=(MountRef("~/sky_workdir", "abc", kind="workdir"),))
    assert wire.loads(LaunchRequest, wire.dumps(request), strict=True) == request


def test_a_job_survives_the_wire_with_gaps_in_its_exit_codes() -> None:
    job = Job(1, "a", "me", JobStatus.RUNNING, 0.0, exit_codes=(None, 3))
    assert wire.loads(Job, wire.dumps(job)) == job


@dataclass(frozen=True)
class Priced:
    name: str
    price: float | None


def test_none_in_a_field_without_a_default_comes_back() -> None:
    assert wire.loads(Priced, wire.dumps(Priced("a", None)), strict=True) == Priced("a", None)
    with pytest.raises(InvalidRequest, match="name: missing"):
        wire.loads(Priced, b"{}")


def test_the_full_form_has_every_field_of_every_contract_in_it() -> None:
    request = LaunchRequest(
        task=TaskSpec(resources=ResourcesSpec(cpus=Quantity(4))), mounts=(MountRef("~/a", "m"),)
    )
    full = wire.to_full_wire({"all": [request]})["all"][0]
    assert set(full) == {item.name for item in fields(LaunchRequest)}
    assert full["autostop"] is None and full["fast"] is False
    assert full["mounts"] == [
        {"destination": "~/a", "manifest_id": "m", "kind": "file_mount", "is_file": False}
    ]
    assert full["task"]["resources"]["cpus"] == {"value": 4, "at_least": False, "per_cpu": False}
    assert wire.from_wire(LaunchRequest, full, strict=True) == request
